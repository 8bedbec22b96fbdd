"""
A fill, open: by who has claimed it (``fills/<algorithm>-<encoded>``), or who looks from outside.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

from attrs import define, field

from artifactd.oci.digest import Digest
from artifactd.storage.appended import HashedFile
from artifactd.storage.blobs import FilesystemStagedBlob
from artifactd.storage.files import Directory, OpenFile, split
from artifactd.storage.fillfiles import FillFiles
from artifactd.storage.growing import Contradicted, FillInfo, FillState
from artifactd.storage.staging import Staging


@define(eq=False)
class FillFile(HashedFile):
    """A claimed fill.  All methods block, unless they say not; one call at a time."""

    _fills: FillFiles
    # The offset of the next byte that comes again, if any does.
    _again: int | None = field(default=None, init=False)

    @property
    def compared(self) -> bool:
        """Whether all bytes that were here have come again since :meth:`restart`.  Doesn't block"""
        return self._again is None

    def restart(self) -> None:
        """What is appended next is compared from the first byte on.  Does not block."""
        self._again = 0 if self.size else None

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """
        Compare ``pieces`` with what is here, as far as they have come again; append the rest.

        :raises Contradicted: at the first difference; nothing is changed then.
        :raises OSError: if not all could be written.  What was written is hashed, and stays.
        """
        super().append(self._compare(pieces))

    def take_extents(self, until: int | None) -> int:
        """As :meth:`artifactd.storage.growing.FillSession.take_extents`."""
        self._again = None
        return self._fills.extents.copy(self.name, self, until)

    def next_extent(self, least: int) -> int | None:
        """Where the first extent of ``least`` bytes behind the end begins, or ``None``."""
        found = self._fills.extents.map(self.name)
        spans = found.spans if found is not None else ()
        return next((s.first for s in spans if s.first > self.size and s.length >= least), None)

    def describe(self, info: FillInfo) -> None:
        """Keep ``info`` beside the bytes."""
        self._fills.describe(self.name, info)

    def stage(self, staging: Staging, digest: Digest) -> FilesystemStagedBlob:
        """
        Sync it, move it to the staged files, and drop what was kept beside it.

        :raises OSError: if that fails.  If it can't be synced it is removed.
        """
        # Before it moves, so that until then others find it here, and a crash leaves it whole.
        # What can't be synced must not be tried again: the bytes are lost, and fsync forgets it.
        try:
            self._files.sync_data(self.fd)
        except OSError:
            self.discard()
            raise
        extents = self._fills.forget(self.name)
        try:
            return self.move(staging, digest, str(uuid4()))
        finally:
            with suppress(OSError):  # the sweep's, then
                self._fills.unlink(extents)

    def discard(self) -> None:
        """Remove it, and what is kept beside it."""
        if self.is_there():
            self._fills.drop(self.name)
        self.ended = True

    def _compare(self, pieces: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
        while pieces and self._again is not None:
            here = self._read(len(pieces[0]), self._again)  # up to the end of the file
            again, pieces = memoryview(pieces[0])[: len(here)], split(pieces, len(here))[1]
            if here != again:
                at = next(n for n, (a, b) in enumerate(zip(here, again, strict=True)) if a != b)
                raise Contradicted(f"byte {self._again + at} is not what it was")
            self._again += len(here)
            if self._again == self.size:
                self._again = None
        return pieces


@define(eq=False)
class FilesystemFillView(OpenFile):
    """A fill, seen from outside (:class:`artifactd.storage.growing.FillView`)."""

    _directory: Directory
    _name: str
    _file: os.stat_result

    def look(self) -> tuple[FillState, int]:
        """Its state, and then the bytes in its file."""
        # First the name, then the links: what is unlinked in between has failed, while a file that
        # has lost its name here and has another has been staged.
        is_named = self._directory.holds(self._name, self._file)
        status = os.fstat(self.fileno())
        if not status.st_nlink:
            return FillState.FAILED, status.st_size
        return FillState.GROWING if is_named else FillState.VERIFIED, status.st_size
