"""Deferreds and threads beyond what Twisted has: single flight, a pool of threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredLock, ensureDeferred, maybeDeferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RunInThread(Protocol):
    """
    Calls a function in a thread, where it may block.

    It is ``Threads.run``, or in a test something that runs at once.
    """

    def __call__(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]: ...


def run_here(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
    """Call ``function`` at once: a :class:`RunInThread` for commands, which may block."""
    return maybeDeferred(function, *args, **kwargs)


def _ignore(outcome: object) -> None:
    pass


def uncancelled(
    work: Deferred[_T] | Coroutine[Deferred[Any], Any, _T],
    abandoned: Callable[[_T], object] = _ignore,
    failed: Callable[[Failure], object] = _ignore,
) -> Deferred[_T]:
    """
    Run ``work`` to its end, even if the Deferred returned here is cancelled: that gives up waiting.

    For work that must not stop between its steps, and for threads, which can't be stopped.

    :param abandoned: called with the result if the waiter was cancelled, to close what it holds.
    :param failed: called with the failure if the waiter was cancelled.
    """
    waiting: Deferred[_T] = Deferred()

    def ended(outcome: _T | Failure) -> None:
        if not waiting.called:
            waiting.callback(outcome)
        elif isinstance(outcome, Failure):
            failed(outcome)
        else:
            abandoned(outcome)

    ensureDeferred(work).addBoth(ended)
    return waiting


class Serial:
    """
    Runs functions in threads one after the other, such as all that work on one file.

    :param compute: calls functions that keep a core busy; ``None``: ``run`` does.
    """

    def __init__(self, run: RunInThread, compute: RunInThread | None = None) -> None:
        self._run, self._compute = run, compute or run
        self._lock = DeferredLock()

    def run(
        self, function: Callable[[], _T], abandoned: Callable[[_T], object] = _ignore
    ) -> Deferred[_T]:
        """
        Call ``function`` in a thread, after all functions passed before have returned.

        Cancelling gives up waiting; the function still runs, and the next one starts after it.

        :param abandoned: called with the result if the waiter was cancelled.
        """

        def start() -> Deferred[_T]:
            return self._run(function)

        return uncancelled(self._lock.run(start), abandoned)

    def compute(self, function: Callable[[], _T]) -> Deferred[_T]:
        """Call ``function``, which keeps a core busy, as :meth:`run` does."""

        def start() -> Deferred[_T]:
            return self._compute(function)

        return uncancelled(self._lock.run(start))

    def idle(self) -> Deferred[None]:
        """Fires when all functions passed before have returned."""
        return uncancelled(self._lock.run(lambda: None))


class Stopped(Exception):
    """The work was stopped before its end: nobody waits for it any more, or the daemon stops."""


@define(eq=False)
class Interrupt:
    """
    Stops one piece of work at the places where it waits through this object, and only there.

    The work waits for one thing at a time.
    """

    stopped: bool = field(default=False, init=False)
    _waiting: Deferred[Any] | None = field(default=None, init=False)

    def stop(self) -> None:
        """Cancel what the work waits for, now and later."""
        self.stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def wait(self, waiting: Deferred[_T]) -> _T:
        """
        Wait for ``waiting``, which is cancelled by :meth:`stop`.

        :raises Stopped: if it fails after :meth:`stop`; before that, its own failure.
        """
        self._waiting = waiting
        if self.stopped:
            waiting.cancel()

        def ended(result: _T | Failure) -> _T | Failure:
            self._waiting = None
            if self.stopped and isinstance(result, Failure):
                raise Stopped("left for later")
            return result

        outcome: Deferred[_T] = waiting.addBoth(ended)
        return await outcome

    async def wait_uncancelled(
        self,
        work: Callable[[], Coroutine[Deferred[Any], Any, _T]],
        abandoned: Callable[[_T], object] = _ignore,
    ) -> _T:
        """
        Begin ``work`` and wait for it; :meth:`stop` ends the waiting, not the work.

        :param abandoned: called with the result of the work if it comes after :meth:`stop`.
        :raises Stopped: if stopped; ``work`` is not begun then if :meth:`stop` came before.
        """
        if self.stopped:
            raise Stopped("left for later")
        return await self.wait(uncancelled(work(), abandoned))


_K = TypeVar("_K", bound=Hashable)


@define(eq=False)
class _Flight(Generic[_T]):
    waiting: list[Deferred[_T]] = field(factory=list)
    running: Deferred[None] | None = None


@define(eq=False)
class SingleFlight(Generic[_K, _T]):
    """
    Does work that several callers ask for at the same time only once.

    :param cancel_unwanted: whether work is cancelled when its last waiter is; else it runs to its
        end, and later callers join it.
    """

    _cancel_unwanted: bool = False
    _flights: dict[_K, _Flight[_T]] = field(factory=dict, init=False)

    def under_way(self, key: _K) -> bool:
        """Whether :meth:`join` would join work that has begun."""
        return key in self._flights

    def join(
        self,
        key: _K,
        work: Callable[[], Coroutine[Deferred[Any], Any, _T]],
        afterwards: Callable[[_T], object] = _ignore,
    ) -> Deferred[_T]:
        """
        The outcome of the work for ``key``: of that under way, else of ``work``, begun now.

        Cancelling gives up waiting, and disturbs no other waiter.

        :param afterwards: called with the result once all waiters have it, if ``work`` is begun.
        """

        def leave(outcome: Deferred[_T]) -> None:
            if outcome not in flight.waiting:
                return  # just being told
            flight.waiting.remove(outcome)
            if self._cancel_unwanted and not flight.waiting and flight.running is not None:
                del self._flights[key]
                flight.running.cancel()

        def ended(result: _T | Failure) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]
            waiting, flight.waiting = flight.waiting, []
            for each in waiting:
                if not each.called:  # a waiter told before it may have cancelled it
                    each.callback(result)
            if not isinstance(result, Failure):
                afterwards(result)

        outcome: Deferred[_T] = Deferred(leave)
        if key in self._flights:
            flight = self._flights[key]
            flight.waiting.append(outcome)
        else:
            flight = self._flights[key] = _Flight([outcome])
            flight.running = Deferred.fromCoroutine(work()).addBoth(ended)
        return outcome


_Task = Callable[[], object]

_log = Logger()


class Aside(Generic[_T]):
    """
    A function whose result one thread needs later, and which another thread may call meanwhile.

    It is called once: in the thread that comes first to :meth:`begin` or :meth:`result`.
    """

    def __init__(self, function: Callable[[], _T]) -> None:
        self._function = function
        self._begun, self._ended = Lock(), Lock()
        self._ended.acquire()
        self._outcome: tuple[_T] | BaseException

    def begin(self) -> None:
        """Call the function, unless another thread has begun to.  Raises nothing."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            self._outcome = (self._function(),)
        except BaseException as error:
            self._outcome = error
        finally:
            self._ended.release()

    def result(self) -> _T:
        """
        Return what the function returned, or raise what it raised.  Calls it, or waits for the
        thread that does.
        """
        self.begin()
        with self._ended:
            if isinstance(self._outcome, BaseException):
                raise self._outcome
            return self._outcome[0]


def offer_nobody(function: Callable[[], object]) -> None:
    """Leave ``function`` to the thread that needs it: in place of :meth:`Threads.offer`."""


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
    :param cores: how many threads can work at the same time.
    :param computing: how many may :meth:`compute`; ``None``: as many as there are cores.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        most: int,
        name: str,
        cores: int = 1,
        computing: int | None = None,
    ) -> None:
        self._reactor, self._most, self._name = reactor, most, name
        self._useful = min(most, cores)
        self._most_computing = min(most, computing or cores)
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._lock = Lock()  # of the rest
        self._running = self._stopped = False
        self._unfinished = 0  # tasks in the queue or in a thread
        self._computing = 0  # those of them that compute
        self._computations: deque[_Task] = deque()  # which wait until fewer do
        self._results: list[_Task] = []

    def start(self) -> None:
        """Begin to run functions."""
        self._running = True
        for _ in range(min(self._unfinished, self._most)):
            self._add_thread()

    def stop(self) -> None:
        """Wait until all functions that were passed before have returned.  Later ones never run."""
        with self._lock:
            self._stopped = True
            while self._computations:
                self._add(self._computations.popleft())
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    @property
    def queued(self) -> int:
        """The number of functions that wait for a thread."""
        return self._tasks.qsize() + len(self._computations)

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

    def compute(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """
        Call ``function`` as :meth:`run` does, but no more of these functions at a time than there
        are cores, or than this process has a share of: for those that keep a core busy, so that
        the reactor's thread, and other functions, find one.
        """
        done: Deferred[_T] = Deferred()

        def finished(_: bool, result: Any) -> None:
            with self._lock:
                if self._computations:
                    self._add(self._computations.popleft())
                else:
                    self._computing -= 1
            self.callFromThread(done.callback, result)

        task = self._task(finished, partial(function, *args, **kwargs))
        with self._lock:
            if self._stopped:
                return done
            if self._computing >= self._most_computing:
                self._computations.append(task)
            else:
                self._computing += 1
                self._add(task)
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
        if not self._stopped:
            task = self._task(finished, partial(function, *args, **kwargs))
            with self._lock:
                self._add(task)

    def _task(
        self, finished: Callable[[bool, Any], object], function: Callable[[], object]
    ) -> _Task:
        def task() -> None:
            result: object
            try:
                result, succeeded = function(), True
            except BaseException:
                result, succeeded = Failure(), False
            with self._lock:
                self._unfinished -= 1
            finished(succeeded, result)

        return task

    def _add(self, task: _Task) -> None:
        """Put ``task`` into the queue, and see to it that there is a thread.  Call it locked."""
        self._unfinished += 1
        self._tasks.put(task)
        if self._running and len(self._threads) < min(self._unfinished, self._most):
            self._add_thread()

    def offer(self, function: _Task) -> None:
        """
        Let another thread call ``function``, which must not raise, if there is a core for it: if
        fewer functions wait or run than there are cores.  Any thread may call this.
        """

        def task() -> None:
            function()
            with self._lock:
                self._unfinished -= 1

        with self._lock:
            if self._stopped or not self._running or self._unfinished >= self._useful:
                return
            self._unfinished += 1
            self._tasks.put(task)
            if len(self._threads) < self._unfinished:
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
