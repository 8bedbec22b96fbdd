"""Content of files that is read again when the files change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from attrs import define, field

from artifactd.kit.deferreds import RunInThread, SingleFlight
from artifactd.kit.start import StartError

_T = TypeVar("_T")

_EARLY = 0.75  # of the interval


def stamp_of(*paths: Path) -> object:
    """
    A value that changes whenever one of the files does: by content, mode or replacement, also
    behind a symbolic link.  A file that can't be looked at counts as absent.
    """
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


@define(eq=False)
class Followed(Generic[_T]):
    """
    Keeps the content of one or more files, and reads them again when they have changed.

    While the new content can't be read or is wrong, the old stays in use, each look tries again,
    and ``refused`` is called once per problem.

    :param stamp: returns a value that changes with the files, such as :func:`stamp_of` does.  May
        raise OSError, which counts as content that can't be read.
    :param read: returns the content.  Blocks.  Raises OSError, ValueError or StartError.
    :param run: calls ``stamp`` and ``read`` in a thread.
    :param now: a clock, in seconds.
    :param interval: seconds between two looks at the files.
    :param refused: called with each new problem, as text.
    :param changed: called with new content.
    :param cheap: whether ``stamp`` takes microseconds and may run in the reactor's thread.
    :param settling: whether a problem is reported only if the next look finds the same: one file of
        several may have been replaced just before another.
    :ivar content: the content that was read last.
    """

    stamp: Callable[[], object]
    read: Callable[[], _T]
    run: RunInThread
    now: Callable[[], float]
    interval: float
    refused: Callable[[str], object]
    changed: Callable[[_T], object] = lambda content: None
    cheap: bool = False
    settling: bool = False
    content: _T = field(init=False)
    _known: object = field(default=None, init=False)
    _looked: float = field(default=float("-inf"), init=False)
    _looking: SingleFlight[None, None] = field(factory=SingleFlight, init=False)
    # The stamp and problem that the last look found, and the problem that was reported.
    _failed: tuple[object, str] | None = field(default=None, init=False)
    _reported: str = field(default="", init=False)

    @property
    def failing(self) -> bool:
        """Whether the last look found content that can't be used."""
        return self._failed is not None

    def load(self) -> None:
        """
        Read the files for the first time.  Blocks.

        :raises OSError, ValueError, StartError: as ``read`` does.
        """
        self._looked = self.now()
        self._known, self.content = self.stamp(), self.read()

    def put(self, content: _T, stamp: object) -> None:
        """Take content that this process has just written."""
        self.content, self._known = content, stamp

    def is_due(self) -> bool:
        """Whether the last look is longer ago than the interval."""
        # A clock that was set back must not keep the files from being looked at.
        return not 0 <= self.now() - self._looked < self.interval

    def is_fresh(self) -> bool:
        """
        Whether no look is due.  When most of the interval has passed, one begins in the background,
        so that content that is asked for all the time stays fresh.
        """
        since = self.now() - self._looked
        if not 0 <= since < self.interval * _EARLY and not self._looking.under_way(None):
            self._looking.join(None, self._look)
        return not self.is_due()

    async def look(self, *, fresh: bool = False) -> None:
        """
        Read the files again if a look is due and they have changed.

        :param fresh: look in any case, and not before this call: a look that is under way may have
            read the files already.
        """
        if fresh:
            if self._looking.under_way(None):
                await self._looking.join(None, self._look)
        elif not self.is_due():
            return
        await self._looking.join(None, self._look)

    async def _look(self) -> None:
        started = self.now()
        if not self.cheap:
            stamp, outcome = await self.run(self._read_changed)
        else:
            stamp, outcome = self._stamp_now()
            if outcome is None and stamp != self._known:
                outcome = await self.run(self._read)
        self._looked = started
        if isinstance(outcome, Exception):
            self._refuse(stamp, str(outcome))
            return
        self._failed, self._reported = None, ""
        if outcome is not None:
            self.put(outcome[0], stamp)
            self.changed(self.content)

    def _read_changed(self) -> tuple[object, tuple[_T] | Exception | None]:
        # The stamp is taken before reading, so that the next look sees a change made meanwhile.
        stamp, problem = self._stamp_now()
        if problem is not None or stamp == self._known:
            return stamp, problem
        return stamp, self._read()

    def _stamp_now(self) -> tuple[object, tuple[_T] | Exception | None]:
        try:
            return self.stamp(), None
        except OSError as error:
            return None, error

    def _read(self) -> tuple[_T] | Exception:
        try:
            return (self.read(),)
        except (OSError, ValueError, StartError) as error:
            return error

    def _refuse(self, stamp: object, problem: str) -> None:
        again, self._failed = self._failed == (stamp, problem), (stamp, problem)
        if problem != self._reported and (again or not self.settling):
            self._reported = problem
            self.refused(problem)
