"""Whether nothing may be changed at present: told by the data folder, to every process at once."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from attrs import field, frozen

from artifactd.storage.files import Directory, FileOperations

MARK = "read-only"


@frozen
class ReadOnlyMode:
    """
    An empty file in the data folder, there while the mode is on; it outlives every process.

    Each process looks whenever it has to know, so that all obey with the next request.

    :param folder: the data folder.
    :ivar always: on whatever the folder says.
    """

    folder: Path
    always: bool = False
    files: FileOperations = field(factory=FileOperations)
    _mark: str = field(init=False)

    @_mark.default
    def _where(self) -> str:
        return str(self.folder / MARK)

    def on(self) -> bool:
        """
        Whether it is on; also where the folder can't tell.  Takes a microsecond or two: the kernel
        knows which files are not there without asking the disk.
        """
        if self.always:
            return True
        try:
            os.stat(self._mark)
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True

    def turn_on(self) -> None:
        """For all processes on the folder, and durably.  Blocks.  :raises OSError:"""
        with Directory.open(self.folder) as folder:
            with suppress(FileExistsError):
                os.close(self.files.create(folder.fd, MARK))
            self.files.sync(folder.fd)

    def turn_off(self) -> None:
        """As :meth:`turn_on`."""
        with Directory.open(self.folder) as folder:
            self.files.unlink(folder.fd, MARK)
            self.files.sync(folder.fd)
