"""A pool of threads, for functions that block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Task = Callable[[], object]

_log = Logger()


class Threads:
    """
    A pool of threads that takes the place of Twisted's ``ThreadPool``.

    A small request takes some turns of threads, and Twisted's pool needs five times the
    instructions for a turn: it coordinates its threads under a lock that they contend for, and
    wakes the reactor for each result.  Here the threads take from one queue, and the results that
    come while the reactor is busy are delivered together.

    Threads start as they are needed, none before :meth:`start`, so that a daemon may fork before.

    :param reactor: runs the callbacks.
    :param most: the number of threads, at least 1.
    :param name: begins the names of the threads.
    """

    def __init__(self, reactor: IReactorFromThreads, most: int, name: str) -> None:
        self._reactor, self._most, self._name = reactor, most, name
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._lock = Lock()  # of the rest
        self._running = self._stopped = False
        self._unfinished = 0  # tasks in the queue or in a thread
        self._results: list[_Task] = []

    def start(self) -> None:
        """Begin to run functions."""
        self._running = True
        for _ in range(min(self._unfinished, self._most)):
            self._add_thread()

    def stop(self) -> None:
        """Wait until all functions that were passed before have returned.  Later ones never run."""
        self._stopped = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    @property
    def queued(self) -> int:
        """The number of functions that wait for a thread."""
        return self._tasks.qsize()

    @property
    def busy(self) -> int:
        """The number of threads that run a function."""
        return max(0, self._unfinished - self._tasks.qsize())

    def run(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """
        Call ``function`` in a thread; its result comes in the reactor's.  Cancelling gives up
        waiting for it.
        """
        done: Deferred[_T] = Deferred()

        def finished(_: bool, result: Any) -> None:
            self.callFromThread(done.callback, result)

        self.callInThreadWithCallback(finished, function, *args, **kwargs)
        return done

    def callInThreadWithCallback(
        self,
        finished: Callable[[bool, Any], object],
        function: Callable[_P, object],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> None:
        """
        Call ``function`` in a thread, and there ``finished`` with whether it returned, and with
        what; or with the failure.
        """
        if self._stopped:
            return

        def task() -> None:
            result: object
            try:
                result, succeeded = function(*args, **kwargs), True
            except BaseException:
                result, succeeded = Failure(), False
            with self._lock:
                self._unfinished -= 1
            finished(succeeded, result)

        with self._lock:
            self._unfinished += 1
            count = len(self._threads)
            more = self._running and count < min(self._unfinished, self._most)
        self._tasks.put(task)
        if more:
            self._add_thread()

    def callFromThread(
        self, function: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """Call ``function`` in the reactor's thread, behind those that were passed before."""
        with self._lock:
            waiting = bool(self._results)
            self._results.append(partial(function, *args, **kwargs))
        if not waiting:
            self._reactor.callFromThread(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            results, self._results = self._results, []
        for result in results:
            try:
                result()
            except Exception:
                _log.failure("a result of a thread could not be delivered")

    def _add_thread(self) -> None:
        thread = Thread(target=self._work, name=f"{self._name}-{len(self._threads)}")
        try:
            thread.start()
        except RuntimeError:  # the system gives no more: those that are there go on
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # and what it holds, before the wait for the next one
