"""Hashes over bytes that come piece by piece, and the memory of those not finished."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from attrs import define, field

from artifactd.oci.digest import Algorithm, Digest


class RunningDigest:
    """
    The digest of the first ``length`` bytes of an upload, going on.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.length = 0
        self._hasher = hashlib.new(algorithm)

    def update(self, piece: bytes | memoryview) -> None:
        """The next bytes.  Blocks; lets other threads run."""
        self._hasher.update(piece)
        self.length += len(piece)

    def copy(self) -> RunningDigest:
        """As it is now."""
        copy = RunningDigest.__new__(RunningDigest)
        copy.algorithm, copy.length = self.algorithm, self.length
        copy._hasher = self._hasher.copy()
        return copy

    def digest(self) -> Digest:
        """Of what has come."""
        return Digest(self.algorithm, self._hasher.hexdigest())


@define
class RunningDigests:
    """
    What this process has hashed of uploads that are not being written to now.

    Only a cache: what is not in it is hashed by reading the bytes.  The bytes of an upload never
    change, they only get more, so an entry holds as long as it isn't longer than the file.

    :param limit: how many are kept; the longest unused goes first.
    """

    limit: int = 1024
    _kept: OrderedDict[str, RunningDigest] = field(factory=OrderedDict, init=False)

    def keep(self, upload_id: str, running: RunningDigest) -> None:
        """Remember one, before the claim on its upload is given up."""
        self._kept[upload_id] = running
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)

    def take(self, upload_id: str, algorithm: Algorithm, size: int) -> RunningDigest:
        """The one for an upload of ``size`` bytes, once it is claimed; a fresh one if need be."""
        running = self._kept.pop(upload_id, None)
        if running is None or running.algorithm != algorithm or running.length > size:
            return RunningDigest(algorithm)
        return running

    def forget(self, upload_id: str) -> None:
        """The upload is no more."""
        self._kept.pop(upload_id, None)
