"""How many large transfers have a turn before the reactor serves everything else again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

MOST = 4
"""So many transfers may each move a piece in one turn of the reactor."""

Step = Callable[[], object]
"""Moves one piece of a transfer, or lets it come; waits for nothing."""


@define(eq=False)
class Turns:
    """
    Lets large transfers take turns where they are many, so that the reactor serves everything else
    after at most :data:`MOST` pieces.

    Only the reactor's thread may use it.

    :param clock: the reactor, or a test's clock.
    :ivar transfers: how many there are.
    """

    _clock: IReactorTime
    transfers: int = field(default=0, init=False)
    _waiting: OrderedDict[Step, None] = field(factory=OrderedDict, init=False)
    _next: IDelayedCall | None = field(default=None, init=False)

    def join(self) -> None:
        """Count a transfer that begins."""
        self.transfers += 1

    def leave(self, step: Step) -> None:
        """Count a transfer no more, and forget that its ``step`` waits, if it does."""
        self.transfers -= 1
        self._waiting.pop(step, None)

    @property
    def crowded(self) -> bool:
        """Whether a step that is asked for has to wait for its turn."""
        return self.transfers > MOST or bool(self._waiting)

    def ask(self, step: Step) -> None:
        """
        Call ``step``: at once, or, where the transfers are many, in one of the next turns of the
        reactor, behind those that have asked before.  One that waits already keeps its place.
        """
        if not self.crowded:
            step()
            return
        self._waiting[step] = None
        if self._next is None:
            self._next = self._clock.callLater(0, self._serve)

    def _serve(self) -> None:
        self._next = None
        try:
            for step in tuple(islice(self._waiting, MOST)):
                if step in self._waiting:  # none before it has made it leave
                    del self._waiting[step]
                    step()
        finally:  # a step that fails holds up no other
            if self._waiting and self._next is None:
                self._next = self._clock.callLater(0, self._serve)
