"""A circuit breaker: a dead upstream costs nobody a timeout but those who found out."""

from __future__ import annotations

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.upstream.errors import Unreachable


class Interrupted(Unreachable):
    """It was not asked: it has failed just before."""


@frozen
class BreakerSettings:
    """
    :ivar failures: in a row, after which nobody asks for a while.
    :ivar pause: seconds of that while; doubled each time that asking again fails too.
    :ivar longest: seconds that it is at most.
    """

    failures: int = 5
    pause: float = 5.0
    longest: float = 60.0


@define(eq=False)
class CircuitBreaker:
    """
    Counts the requests that failed in a row, each attempt of a retried one too.

    Once there are too many, every request is refused for a while.  Then one is let through: if it
    fails, the next while is longer; any answer ends it.

    :param name: of the repository, for the log.
    :param subject: what is asked, for reasons: a host.
    """

    name: str
    subject: str
    clock: IReactorTime
    settings: BreakerSettings = field(factory=BreakerSettings)
    _failures: int = field(default=0, init=False)
    _cause: str = field(default="", init=False)
    _pause: float = field(default=0.0, init=False)
    _until: float | None = field(default=None, init=False)
    _trying: bool = field(default=False, init=False)

    _log = Logger()

    def admit(self) -> bool:
        """
        A request is about to be made: whether it is the one that tries after a pause.

        One of :meth:`answered`, :meth:`failed` and :meth:`abandoned` has to follow.

        :raises Interrupted: if it is not to be made.
        """
        if self._until is None:
            return False
        left = self._until - self.clock.seconds()
        if left > 0:
            raise Interrupted(
                f"{self.subject} has failed {self._failures} times in a row and is not asked again"
                f" for {left:.1f} s: {self._cause}"
            )
        if self._trying:
            raise Interrupted(
                f"{self.subject} has failed {self._failures} times in a row and is being tried"
                f" again at this moment: {self._cause}"
            )
        self._trying = True
        return True

    def answered(self) -> None:
        """It lives."""
        if self._until is not None:
            self._log.info("{name}: {subject} answers again", name=self.name, subject=self.subject)
        self._failures, self._pause, self._until, self._trying = 0, 0.0, None, False

    def failed(self, trial: bool, reason: str) -> None:
        """
        It has not answered, or with a failure of its own.

        :param trial: what :meth:`admit` said.
        """
        self._failures += 1
        if trial and self._until is not None:
            self._trying = False
        elif self._until is not None or self._failures < self.settings.failures:
            return  # begun before the pause: it tells nothing new
        self._cause = reason
        self._pause = min(self._pause * 2 or self.settings.pause, self.settings.longest)
        self._until = self.clock.seconds() + self._pause
        self._log.warn(
            "{name}: {subject} is not asked for {pause} s, after {failures} failures: {reason}",
            name=self.name,
            subject=self.subject,
            pause=self._pause,
            failures=self._failures,
            reason=reason,
        )

    def abandoned(self, trial: bool) -> None:
        """Nobody wanted the answer any more."""
        if trial:
            self._trying = False
