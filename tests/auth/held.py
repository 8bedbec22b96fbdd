"""Threads that a test lets run when it wants to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import bcrypt
from twisted.internet.defer import Deferred, maybeDeferred

_P = ParamSpec("_P")
_T = TypeVar("_T")


class HeldThreads:
    """
    Runs what it is given at once, or while :attr:`held`, at :meth:`finish`.

    :ivar hashes: those that passwords were compared with, in this order.
    """

    def __init__(self) -> None:
        self.held = False
        self.hashes: list[bytes] = []
        self._waiting: list[Callable[[], object]] = []

    def __call__(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        if function == bcrypt.checkpw:
            self.hashes.append(_second(*args))
        if not self.held:
            return maybeDeferred(function, *args, **kwargs)
        outcome: Deferred[_T] = Deferred()
        work = partial(function, *args, **kwargs)

        def run() -> None:
            maybeDeferred(work).chainDeferred(outcome)

        self._waiting.append(run)
        return outcome

    @property
    def running(self) -> int:
        """How many threads there are."""
        return len(self._waiting)

    def finish(self) -> None:
        """Let the one end that began first."""
        self._waiting.pop(0)()


def _second(*args: Any) -> bytes:
    assert isinstance(args[1], bytes)
    return args[1]
