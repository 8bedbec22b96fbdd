"""The files of a blob that is coming, by their names in ``fills``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

from artifactd.oci.digest import Digest
from artifactd.storage.extents import Extents, map_name
from artifactd.storage.files import Directory, FileOperations
from artifactd.storage.fillinfo import info_name, read_info, write_info
from artifactd.storage.growing import FillInfo

_UNIQUE = r"\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(?:extents|new)"
_NAME = re.compile(
    r"(?P<blob>sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})"
    rf"(?:\.info|\.map|(?P<unique>{_UNIQUE}))?"
)


def blob_name(digest: Digest) -> str:
    """What the names of the files of a blob begin with, and the name of its fill."""
    return f"{digest.algorithm}-{digest.encoded}"


def blob_of(name: str) -> str | None:
    """The :func:`blob_name` that a file's name begins with; ``None`` for a file that isn't ours."""
    match = _NAME.fullmatch(name)
    return None if match is None else match["blob"]


@frozen
class FillFiles:
    """
    What can be done with the files of a blob, by its :func:`blob_name`, whoever has locked it.

    All methods block and raise OSError.
    """

    directory: Directory
    extents: Extents
    _files: FileOperations

    def info(self, blob: str) -> FillInfo | None:
        """What is known of a blob."""
        return read_info(self.directory, self._files, blob)

    def describe(self, blob: str, info: FillInfo) -> None:
        """Keep ``info``."""
        write_info(self.directory, self._files, blob, info)

    def forget(self, blob: str) -> str | None:
        """Drop what is known, and put the extents out of reach; the name of their file."""
        found = self.extents.map(blob)
        self._files.unlink(self.directory.fd, map_name(blob))
        self._files.unlink(self.directory.fd, info_name(blob))
        return found.name if found is not None else None

    def drop(self, blob: str, names: Iterable[str] = (), *, fill: bool = True) -> None:
        """
        Remove all that there is of a blob.

        :param names: of its files, some of which may have no part in it any more.
        :param fill: the fill, too, which the caller has locked.
        """
        extents = self.forget(blob)
        if fill:
            self.unlink(blob)
        # From here on others may begin anew: only what has a name of its own may go.  That is the
        # long work.
        for name in (extents, *names):
            if name and (match := _NAME.fullmatch(name)) and match["unique"]:
                self.unlink(name)

    def unlink(self, name: str | None) -> None:
        """Remove the file ``name``, if that is one."""
        if name is not None:
            self._files.unlink(self.directory.fd, name)
