"""A blob that is still coming, and comes as the test says."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred, fail, succeed

from tests.wire.loopback import OpenFile


class Fill:
    """
    The bytes of a blob, which get into a file piece by piece.

    :ivar size: of the blob in bytes, or ``None`` as long as it is to be unknown.
    :ivar available: the offset before which its readers may have all bytes.
    :ivar waiting: the readers that wait, and beyond what offset.
    """

    def __init__(self, path: Path, content: bytes, size: int | None) -> None:
        self.path = path
        self.path.write_bytes(b"")
        self.size = size
        self.available = 0
        self.waiting: dict[Deferred[None], int] = {}
        self._content = content
        self._failure: OSError | None = None

    def grow(self, until: int, held: int = 0) -> None:
        """The bytes before ``until`` come, of which the last ``held`` are held back."""
        with self.path.open("ab") as file:
            file.write(self._content[file.tell() : until])
        self.available = until - held
        self._tell()

    def pretend(self, until: int) -> None:
        """Say that the bytes before ``until`` have come, which they have not."""
        self.available = until
        self._tell()

    def end(self) -> None:
        """That was all: it is verified."""
        self.size = self.available = self.path.stat().st_size
        self._tell()

    def fail(self, reason: str) -> None:
        """No more will come."""
        self._failure = OSError(reason)
        self._tell()

    def wait(self, beyond: int) -> Deferred[None]:
        if self._grown(beyond):
            return succeed(None)
        if self._failure is not None:
            return fail(self._failure)
        waiting: Deferred[None] = Deferred(self.waiting.__delitem__)
        self.waiting[waiting] = beyond
        return waiting

    def _grown(self, beyond: int) -> bool:
        return self.available > beyond or self.available == self.size

    def _tell(self) -> None:
        for waiting, beyond in list(self.waiting.items()):
            if waiting not in self.waiting:
                continue  # one of them may cancel another
            if self._grown(beyond):
                del self.waiting[waiting]
                waiting.callback(None)
            elif self._failure is not None:
                del self.waiting[waiting]
                waiting.errback(self._failure)


class Follower(OpenFile):
    """A reader of a :class:`Fill`: an :class:`artifactd.store.blobs.OpenBlob`."""

    def __init__(self, fill: Fill) -> None:
        super().__init__(fill.path)
        self._fill = fill

    @property
    def size(self) -> int | None:
        return self._fill.size

    @property
    def available(self) -> int:
        return self._fill.available

    def wait(self, beyond: int) -> Deferred[None]:
        assert not self.closings, "used after it was closed"
        return self._fill.wait(beyond)
