"""Open blobs that tell somebody when they have been read, or can't be."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred

from artifactd.store.interfaces import OpenBlob


@define(eq=False)
class Passed:
    """``blob`` itself: what is to be different about it, a subclass says."""

    blob: OpenBlob

    @property
    def size(self) -> int | None:
        return self.blob.size

    @property
    def available(self) -> int:
        return self.blob.available

    def wait(self, beyond: int) -> Deferred[None]:
        return self.blob.wait(beyond)

    def fileno(self) -> int:
        return self.blob.fileno()

    def failed(self, error: OSError) -> None:
        self.blob.failed(error)

    def close(self) -> None:
        self.blob.close()


@define(eq=False)
class Reading(Passed):
    """``blob`` itself; :meth:`close` calls ``end`` besides, once."""

    _end: Callable[[], None]
    _closed: bool = field(default=False, init=False)

    def close(self) -> None:
        super().close()
        if not self._closed:
            self._closed = True
            self._end()


@define(eq=False)
class Watched(Passed):
    """``blob`` itself; where reading it fails, ``suspect`` is told."""

    _suspect: Callable[[], None]

    def failed(self, error: OSError) -> None:
        self._suspect()
