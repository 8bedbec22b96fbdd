"""The signals of the daemon's process, as far as Twisted leaves them open."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from attrs import define
from twisted.logger import Logger

_log = Logger()


@define
class Signals:
    """
    SIGHUP calls ``reload``, or is logged and changes nothing.  The first SIGTERM or SIGINT stops
    the reactor, as Twisted has it; a second one calls ``hurry``, where Twisted alone would log a
    traceback and wait on.

    :param hurry: called in the reactor's thread.
    :param reload: the same; ``None`` where nothing can be reloaded.
    """

    _reactor: Any
    _hurry: Callable[[], None]
    _reload: Callable[[], object] | None = None
    _stopping: bool = False

    def handle(self) -> None:
        """Handle the signals from now on.  Call it before the reactor runs, in its thread."""
        signal.signal(signal.SIGHUP, self._hung_up)
        self._reactor.callWhenRunning(self._wrap)  # then Twisted has set its own

    def _wrap(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._wrap_one(number, signal.getsignal(number))

    def _wrap_one(self, number: int, stop: Any) -> None:
        def stop_or_hurry(number: int, frame: object) -> None:
            if self._stopping:
                self._reactor.callFromThread(self._hurry)
            else:
                self._stopping = True
                stop(number, frame)

        if callable(stop):
            signal.signal(number, stop_or_hurry)

    def _hung_up(self, number: int, frame: object) -> None:
        if self._reload is not None:
            self._reactor.callFromThread(self._reload)
            return
        self._reactor.callFromThread(
            _log.info,
            "SIGHUP: nothing to do: accounts, passwords and certificates are read again by"
            " themselves when their files change; restart for other settings, or let several"
            " workers serve, which can be reloaded",
        )
