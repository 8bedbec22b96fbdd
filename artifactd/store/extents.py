"""
Extents: parts of a blob that were fetched before the rest, at their offsets in a sparse file.

``<blob>.map`` names that file, ``<blob>.<uuid>.extents``, and records which bytes are there.  So
one name stands for both: unlinking the map makes its extents unreachable at once, and processes
that have the two open go on with a pair that belongs together.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from uuid import uuid4

from attrs import define, field, frozen

from artifactd.oci.ranges import ByteRange
from artifactd.store.files import Directory, FileOperations, OpenFile, write_all
from artifactd.store.intake import READ, TURN, AppendedFile

_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# A record begins a line and ends with a full stop: a record that was torn by a crash is ignored,
# and does not damage the records after it.
_RECORD = re.compile(rb"\n([0-9]{1,19})-([0-9]{1,19})\.")
# Bytes of a map that are read: tens of thousands of records.
_MAP = 1024 * 1024


def map_name(blob: str) -> str:
    """The name of the map of the extents of a blob; ``blob`` is the name of its fill."""
    return f"{blob}.map"


@frozen
class ExtentMap:
    """
    The content of a map.

    :ivar name: the name of the file with the extents.
    :ivar spans: the bytes that are there, in order, and with a gap before each.
    """

    name: str
    spans: tuple[ByteRange, ...]

    @classmethod
    def parse(cls, blob: str, content: bytes) -> ExtentMap | None:
        """``None`` if ``content`` is no map, which a power cut may leave."""
        named = _UUID.match(content)
        if named is None:
            return None
        records = sorted((int(first), int(last)) for first, last in _RECORD.findall(content))
        spans: list[ByteRange] = []
        for first, last in records:
            if spans and first <= spans[-1].last + 1:
                spans[-1] = ByteRange(spans[-1].first, max(last, spans[-1].last))
            elif first <= last:
                spans.append(ByteRange(first, last))
        return cls(f"{blob}.{named[0].decode()}.extents", tuple(spans))


@define(eq=False)
class ExtentFile(AppendedFile):
    """
    The file of an extent that is being written.  All methods block; one call at a time.

    :ivar size: the offset of the next byte.
    """

    _map: int
    _unrecorded: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._unrecorded = self.size

    def record(self) -> None:
        """
        Sync the bytes written, and record them in the map.

        :raises OSError: if either fails; bytes written since the last record are lost then.
        """
        # A sync that failed is not tried again: the second one would succeed without the bytes.
        first, self._unrecorded = self._unrecorded, self.size
        if first == self.size:
            return
        self._files.sync_data(self.fd)
        record = b"\n%d-%d." % (first, self.size - 1)
        # In one call: other processes append, too.
        if self._files.append(self._map, record) < len(record):
            raise OSError(errno.ENOSPC, "the record of an extent did not go in", self.name)

    def close(self) -> None:
        """Close both files."""
        os.close(self._map)
        super().close()


@frozen
class Extents:
    """
    The extents of all blobs, by the names of their fills.  All methods block and raise OSError.
    """

    _directory: Directory
    _files: FileOperations

    def map(self, blob: str) -> ExtentMap | None:
        """The map of a blob, or ``None``."""
        try:
            fd, _ = self._directory.open_file(map_name(blob))
        except FileNotFoundError:
            return None
        try:
            return ExtentMap.parse(blob, self._files.read(fd, _MAP, 0))
        finally:
            os.close(fd)

    def find(self, blob: str, span: ByteRange) -> OpenFile | None:
        """The file of the extents, open, if it has all of ``span``."""
        found = self.map(blob)
        if found is None:
            return None
        if not any(s.first <= span.first and span.last <= s.last for s in found.spans):
            return None
        return self._open(found)

    def copy(self, blob: str, target: AppendedFile, until: int | None) -> int:
        """
        Append to ``target`` the extents that follow its end without a gap.

        :param until: the offset to stop at, in bytes; ``None``: no such limit.
        :returns: how many bytes were appended, at most 16 MiB.
        """
        found, start = self.map(blob), target.size
        spans = found.spans if found is not None else ()
        end = next((s.last + 1 for s in spans if s.first <= start <= s.last), start)
        end = min(end, start + TURN, end if until is None else until)
        if found is None or end <= start or (file := self._open(found)) is None:
            return 0
        try:
            while target.size < end:
                size = min(READ, end - target.size)
                piece = self._files.read(file.fileno(), size, target.size)
                if not piece:
                    raise OSError(errno.EIO, "shorter than its map says", found.name)
                target.append([piece])
        finally:
            file.close()
        return target.size - start

    def begin(self, blob: str, first: int) -> ExtentFile:
        """Begin an extent at the offset ``first``."""
        while True:
            with suppress(FileNotFoundError):
                return self._part(blob, first)
            self._create(blob)

    def _open(self, found: ExtentMap) -> OpenFile | None:
        with suppress(FileNotFoundError):
            return OpenFile(self._directory.open_file(found.name)[0])
        return None

    def _part(self, blob: str, first: int) -> ExtentFile:
        map_fd, status = self._directory.open_file(map_name(blob), os.O_RDWR | os.O_APPEND)
        try:
            found = ExtentMap.parse(blob, self._files.read(map_fd, _MAP, 0))
            if found is None:
                raise FileNotFoundError(errno.ENOENT, "not a map", map_name(blob))
            fd, _ = self._directory.open_file(found.name, os.O_RDWR)
        except BaseException as error:
            # One of the two is missing: after a power cut, or while both are being removed.
            half = isinstance(error, FileNotFoundError)
            if half and self._directory.holds(map_name(blob), status):
                self._files.unlink(self._directory.fd, map_name(blob))
            os.close(map_fd)
            raise
        return ExtentFile(found.name, fd, first, self._files, map_fd)

    def _create(self, blob: str) -> None:
        """Make a map without records and its file, unless another process is faster."""
        directory, uuid = self._directory.fd, str(uuid4())
        extents, written = f"{blob}.{uuid}.extents", f"{blob}.{uuid}.new"
        os.close(self._files.create(directory, extents))
        try:
            fd = self._files.create(directory, written)
            try:
                write_all(self._files, fd, [uuid.encode()], 0)
                self._files.link(directory, written, directory, map_name(blob))
            finally:
                os.close(fd)
                self._files.unlink(directory, written)
        except BaseException as error:
            self._files.unlink(directory, extents)
            if not isinstance(error, FileExistsError):
                raise
