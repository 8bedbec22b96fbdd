"""
The quarantine of damaged files: ``quarantine/<algorithm>-<encoded>.<id>``.

Each was published under that digest.  Beside it lies a record, ``….json``, of the flaw and the time
when it was found.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

import msgspec
from attrs import frozen

from artifactd.oci.errors import DigestInvalid
from artifactd.oci.names import Digest
from artifactd.store.files import QUARANTINED, Directory, FileOperations, write_all

_FILE = re.compile(r"(?P<algorithm>[a-z0-9]+)-(?P<encoded>[0-9a-f]+)\.[0-9a-f-]+(?P<json>\.json)?")


class _Record(msgspec.Struct):
    digest: str
    size: int
    flaw: str
    found: float


@frozen
class Quarantine:
    """Keeps the damaged files.  All methods block and raise OSError."""

    directory: Directory
    _files: FileOperations

    def keep(
        self, source: Directory, digest: Digest, flaw: str, at: float, file: os.stat_result
    ) -> None:
        """
        Link ``file``, which lies in ``source`` under ``digest``, into quarantine, durably.

        Its mode becomes 0000, which tells processes that have the file open not to send it.

        :raises FileNotFoundError: if the name is gone, or belongs to another file by now.
        """
        name = f"{digest.algorithm}-{digest.encoded}.{uuid4()}"
        fd, status = source.open_sealed(digest.encoded, self._files)
        try:
            # A push may have put a good file there since, which keeps its mode and its name.
            if not os.path.samestat(status, file):
                raise FileNotFoundError(errno.ENOENT, "it was replaced", str(digest))
            # The record first, so that no file is here without one.
            with suppress(OSError):  # the file matters more
                self._write(f"{name}.json", _Record(str(digest), status.st_size, flaw, at))
            self._files.link(source.fd, digest.encoded, self.directory.fd, name)
            if not self.directory.holds(name, status):
                self._files.unlink(self.directory.fd, name)
                raise FileNotFoundError(errno.ENOENT, "it was replaced", str(digest))
            self._files.set_mode(fd, QUARANTINED)
        except FileNotFoundError:
            self._files.unlink(self.directory.fd, f"{name}.json")
            raise
        finally:
            os.close(fd)
        self._files.sync(self.directory.fd)

    def expired(self, before: float) -> list[tuple[str, Digest]]:
        """
        List the files quarantined before ``before``, in seconds since the epoch: their names, and
        the digests they should have.  Records without a file are removed.
        """
        found, names = [], set(self.directory.names())
        for name in sorted(names):
            match = _FILE.fullmatch(name)
            with suppress(FileNotFoundError, DigestInvalid):
                # The last change of a file's status is its quarantine.
                if match is None or self.directory.status(name).st_ctime >= before:
                    continue
                if match["json"] is None:
                    found.append((name, _digest(match)))
                elif name.removesuffix(".json") not in names:
                    self._files.unlink(self.directory.fd, name)
        return found

    def remove(self, name: str) -> None:
        """Remove a file and its record."""
        self._files.unlink(self.directory.fd, name)
        self._files.unlink(self.directory.fd, f"{name}.json")

    def digests(self) -> Sequence[Digest]:
        """The digests that the files should have, one for each file."""
        found = []
        for name in sorted(self.directory.names()):
            match = _FILE.fullmatch(name)
            if match and match["json"] is None:
                with suppress(DigestInvalid):
                    found.append(_digest(match))
        return found

    def _write(self, name: str, record: _Record) -> None:
        fd = self._files.create(self.directory.fd, name)
        try:
            write_all(self._files, fd, [msgspec.json.encode(record)], 0)
            self._files.sync(fd)
        finally:
            os.close(fd)


def _digest(match: re.Match[str]) -> Digest:
    return Digest.parse(f"{match['algorithm']}:{match['encoded']}")
