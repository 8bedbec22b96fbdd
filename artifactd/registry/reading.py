"""An open blob whose end of being read is told."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred

from artifactd.storage.interfaces import OpenBlob


@define(eq=False)
class Reading:
    """``blob`` itself; :meth:`close` calls ``end`` besides, once."""

    blob: OpenBlob
    _end: Callable[[], None]
    _closed: bool = field(default=False, init=False)

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
        if not self._closed:
            self._closed = True
            self._end()
