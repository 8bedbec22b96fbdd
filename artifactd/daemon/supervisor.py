"""
The supervisor: it has the sockets, starts the workers, and hands each connection to one of them.

It reads no request, and nothing of the data folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

from attrs import define, field
from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, DeferredLock, fail, maybeDeferred
from twisted.internet.error import CannotListenError, ProcessExitedAlready
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger, LogLevel
from twisted.python.failure import Failure

from artifactd import __version__
from artifactd.daemon.greeting import greet
from artifactd.daemon.link import (
    BEAT,
    CONTROL,
    MEMORY,
    SETTINGS,
    Link,
    Ready,
    Told,
    close_descriptor,
    handing,
    read_closed,
)
from artifactd.daemon.log import StreamLog
from artifactd.daemon.sockets import Bound, Sockets
from artifactd.kit.printable import printable
from artifactd.kit.shared import SharedMemory
from artifactd.kit.start import StartError
from artifactd.settings.settings import Settings, read
from artifactd.store.folder import ReadOnlyMode, ReloadSocket
from artifactd.store.procfs import WORKER
from artifactd.web.server.limits import Connections, Counted
from artifactd.web.server.proxies import TrustedProxies
from artifactd.web.server.refused import not_now, too_many_connections

# Seconds that a worker has to serve for its end to count as the first one; and the most between its
# end and the start of another one.
_STEADY = 60.0
_LONGEST_PAUSE = 30.0

# For how many BEATs a worker may be silent.  The supervisor counts those that it sees itself: a
# machine that stood still is no fault of a worker.
_SILENT = 5  # then it gets no connections while others are not silent
_HUNG = 60  # then it is made to print where it hangs, and to end
_NOT_READY = 80  # the same before it is ready: systemd waits 90 seconds for a reload
_LOST = 5  # so many later it is killed

# Seconds beyond shutdown_timeout that the workers get to end, before they are killed.
_GRACE = 15.0

# A line of a worker's log, with its time.  Some of Twisted's lines have no namespace, but "-".
_LOGGED = re.compile(
    r"\d{4}-\S+ \[(?:-|(?P<namespace>[^\]#]+)#(?P<level>debug|info|warn|error|critical))\]"
    r" (?P<line>.*)"
)

_log = Logger()


@define(eq=False)
class Generation:
    """
    Workers with the same settings: one that is started again must not read others meanwhile.

    :ivar text: the descriptor of the content of the settings file; -1 if there is none.
    :ivar number: how many workers there shall be.
    """

    text: int
    number: int

    @classmethod
    def of(cls, source: Path | None, number: int) -> Self:
        """
        Read the settings file.

        :raises StartError: if it can't be read.
        """
        if source is None:
            return cls(-1, number)
        text = os.memfd_create("artifactd-settings")
        try:
            with open(text, "wb", closefd=False) as file:
                file.write(read(source))
        except BaseException:
            os.close(text)
            raise
        return cls(text, number)

    def close(self) -> None:
        """Forget the settings."""
        text, self.text = self.text, -1
        if text >= 0:
            os.close(text)


@define(eq=False)
class Worker:
    """
    A worker as the supervisor sees it.

    :ivar came: fires when it is ready, or fails with :class:`StartError`; ``None`` if nobody waits.
    :ivar process: the transport of its process.
    :ivar ready: what it told when it was ready; ``None`` before.
    :ivar refusal: why it did not start.
    :ivar connections: those that it was given and has not closed, by their numbers.
    :ivar latest: the number of the last connection that it was given.
    :ivar admitted: whether it may be given connections.
    :ivar leaving: whether it may be given none any more.
    :ivar drained: whether it has no request under way, while the daemon stops.
    :ivar started: when it was started, in seconds of the clock.
    :ivar silent: for how many of :data:`BEAT` it has told nothing.
    """

    generation: Generation
    started: float
    came: Deferred[Ready] | None = field(default=None, init=False)
    link: Link = field(init=False)
    process: Any = field(default=None, init=False)
    pid: int = field(default=0, init=False)
    ready: Ready | None = field(default=None, init=False)
    refusal: str = field(default="", init=False)
    connections: dict[int, Counted] = field(factory=dict, init=False)
    latest: int = field(default=0, init=False)
    admitted: bool = field(default=False, init=False)
    leaving: bool = field(default=False, init=False)
    drained: bool = field(default=False, init=False)
    silent: int = field(default=0, init=False)

    @property
    def serves(self) -> bool:
        """Whether it is given connections."""
        return self.admitted and not self.leaving

    def dismiss(self) -> None:
        """Give it no connections, and let it end."""
        self.link.tell(Told.STOP)
        self.leave()

    def retire(self) -> None:
        """Give it no more connections, and let it end after those that it has."""
        self.link.tell(Told.RETIRE)
        self.leave()

    def leave(self) -> None:
        """Give it no more connections; it has been told what to do then."""
        self.leaving = True
        self.link.tell(Told.LAST)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._signal("KILL")

    def abort(self) -> None:
        """Make it print where its threads are, and end."""
        self._signal(signal.SIGABRT)

    def _signal(self, number: str | int) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.process.signalProcess(number)

    def unlinked(self) -> None:
        """Give it no connections: it has ended, which will be told by itself."""
        self.admitted = False

    def __str__(self) -> str:
        return f"worker {self.pid}"


class _Process(ProcessProtocol):
    """
    The process of a worker.

    :param ended: called when it has ended, with how it did.
    """

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._rest = b""

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Log what it prints, where this process alone can write to the log."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            _log_again(line.decode(errors="backslashreplace"))

    def processEnded(self, reason: Failure) -> None:
        """Log what it has begun to print."""
        if self._rest:
            self.childDataReceived(1, b"\n")

    def processExited(self, reason: Failure) -> None:
        end: Any = reason.value
        self._ended(f"signal {end.signal}" if end.signal else f"exit status {end.exitCode}")


def _log_again(line: str) -> None:
    """Log a line of a worker's log."""
    found = _LOGGED.fullmatch(line)
    if found is None:  # a line of a traceback, or of another program
        _log.info("{line}", line=line)
    elif found["level"] is None:
        _log.info("{line}", line=found["line"], log_system="-")
    else:
        level = LogLevel.levelWithName(found["level"])
        Logger(namespace=found["namespace"]).emit(level, "{line}", line=found["line"])


class _Reloads(Factory):
    """Answers a connection of ``artifactd reload`` with why that was refused, or nothing."""

    noisy = False

    def __init__(self, reload: Callable[[], Deferred[str]]) -> None:
        self._reload = reload

    def buildProtocol(self, addr: Any) -> Protocol:
        protocol = Protocol()

        def answer(told: str) -> None:
            assert protocol.transport is not None
            protocol.transport.write(f"{told}\n".encode())
            protocol.transport.loseConnection()

        self._reload().addCallback(answer)
        return protocol


class Supervisor(Service):
    """
    The daemon where several processes serve.

    :param memory: is shared by all workers.
    :param source: the file of ``settings``; ``None`` for the embedded ones.
    :param log: writes the daemon's own log; ``None``: twistd does.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        memory: SharedMemory,
        source: Path | None = None,
        log: StreamLog | None = None,
    ) -> None:
        self._settings, self._reactor, self._source = settings, reactor, source
        self._path = source and source.absolute()  # twistd may go to another folder
        self._memory, self._log = memory, log
        self._sockets = Sockets(reactor, self._accepted)
        self._connections = Connections(
            settings.limits, TrustedProxies.parse(settings.trusted_proxies)
        )
        self._numbers = count(1)
        self._workers: list[Worker] = []
        self._generation = Generation(-1, settings.processes)
        self._reloading = DeferredLock()
        self._asking: list[Deferred[str]] = []  # for a reload that has not begun
        self._reload_socket = ReloadSocket(settings.data)
        self._patience = float(settings.shutdown_timeout)
        self._reloads: IListeningPort | None = None
        self._watching = LoopingCall(self._watch)
        self._watching.clock = reactor
        self._failures = 0
        self._stopping = False
        self._unserved: Deferred[None] = Deferred()  # no worker serves any more
        self._ended_all: Deferred[None] = Deferred()  # nor is there one

    def setServiceParent(self, parent: Any) -> None:
        # twistd asks its application for the observer of the log, after this and before the start.
        if self._log is not None:
            parent.setComponent(ILogObserver, self._log)
        super().setServiceParent(parent)

    def startService(self) -> None:
        """Start, or end the process with the reason in one line."""
        try:
            self.start()
        except StartError as error:
            raise SystemExit(printable(f"artifactd: {error}")) from None
        super().startService()

    def start(self) -> None:
        """
        Start the first worker and wait until it is ready, listen, then start the others.

        The first starts alone, since it may have to migrate the catalog.  Before it is ready,
        clients are refused; after that they are answered at once.

        :raises StartError: if the daemon can't run; then nothing is left running.
        """
        self._generation = Generation.of(self._path, self._settings.processes)
        first = self._spawn(self._generation)
        self._wait_for(first)
        try:
            self._sockets.bind(self._settings.listen)
        except StartError:
            first.kill()  # it has nothing to do, and nothing to say
            raise
        self._listen_for_reloads()
        greet(
            self._settings,
            self._source,
            [port.getHost() for port in self._sockets.ports],
            read_only=ReadOnlyMode(self._settings.data, self._settings.read_only).on(),
        )
        _log.info("{number} workers serve", number=self._generation.number)
        self._watching.start(BEAT, now=False)
        self._fill_up()

    def stopService(self) -> Deferred[None]:
        """
        Let the workers answer what is under way, and 503 to new requests; then close all.  Workers
        that have not ended long after ``shutdown_timeout`` are killed.
        """
        super().stopService()
        self._stopping = True
        for worker in self._workers:
            worker.link.tell(Told.STOP)
        self._settle()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        calls = [
            self._reactor.callLater(self._patience, self._lose_patience),
            self._reactor.callLater(self._patience + _GRACE, self._kill),
        ]
        await self._unserved
        await self._sockets.close()
        await self._ended_all
        self._watching.stop()
        for call in calls:
            if call.active():
                call.cancel()
        if self._reloads is not None:
            await maybeDeferred(self._reloads.stopListening)
        self._reload_socket.release()

    def hurry(self) -> None:
        """Cut the transfers that :meth:`stopService` waits for, if it does."""
        if self._stopping:
            for worker in self._workers:
                worker.link.tell(Told.CUT)

    # -- Reload

    def reload(self) -> Deferred[str]:
        """
        Let new workers with the settings of now take over.  The old ones get no more connections,
        and end after those that they have.

        One at a time: all who ask meanwhile share the next one.

        :returns: fires with why that was refused, and then nothing has changed; with "" if it was
            done.
        """
        told: Deferred[str] = Deferred()
        self._asking.append(told)
        if len(self._asking) == 1:
            self._reloading.run(self._reload_for_all)
        return told

    async def _reload_for_all(self) -> None:
        asking, self._asking = self._asking, []
        told = await self._reload()
        for each in asking:
            each.callback(told)

    async def _reload(self) -> str:
        started: list[Worker] = []
        try:
            generation = Generation.of(self._path, 1)
            try:
                (ready,) = await self._start(generation, started, 1)
                self._check(ready)
                generation.number = ready.workers
                await self._start(generation, started, ready.workers - 1)
                self._check(ready)
                self._sockets.bind(ready.listen)
            except BaseException:
                generation.close()
                raise
        except (StartError, OSError) as error:
            for worker in started:
                worker.dismiss()
            told = printable(str(error))
            _log.error("reload refused, all stays as it was: {why}", why=told)
            return told
        self._take_over(generation, ready, started)
        return ""

    async def _start(
        self, generation: Generation, started: list[Worker], number: int
    ) -> list[Ready]:
        """
        Start ``number`` workers, add them to ``started``, and wait until they are ready.

        :raises StartError: if one does not start.
        """
        self._check_runs()
        coming: list[Deferred[Ready]] = []
        for _ in range(number):
            try:
                worker = self._spawn(generation)
            except StartError:
                coming.append(fail())
                break
            worker.came = Deferred()
            started.append(worker)
            coming.append(worker.came)
        # When all are settled: none of them may fail unheard.
        outcomes: list[tuple[bool, Any]] = await DeferredList(coming, consumeErrors=True)
        for is_ready, outcome in outcomes:
            if not is_ready:
                outcome.raiseException()
        return [outcome for _, outcome in outcomes]

    def _check(self, ready: Ready) -> None:
        """:raises StartError: if the new workers can't take over."""
        self._check_runs()
        if ready.data != str(self._settings.data.absolute()):
            raise StartError("another data folder needs a restart")

    def _check_runs(self) -> None:
        if self._stopping:
            raise StartError("the daemon is being stopped")

    def _take_over(self, generation: Generation, ready: Ready, started: Sequence[Worker]) -> None:
        self._generation.close()
        self._generation = generation
        self._failures = 0
        self._patience = ready.shutdown_timeout
        self._connections.proxies = TrustedProxies.parse(ready.trusted_proxies)
        self._connections.limits = replace(
            self._settings.limits,
            connections=ready.connections,
            address_connections=ready.address_connections,
        )
        old = [worker for worker in self._workers if worker not in started and not worker.leaving]
        for worker in old:
            worker.retire()
        for worker in started:
            worker.admitted = True
        self._fill_up()  # one may have ended since
        _log.info(
            "reloaded: {count} workers of artifactd {version} serve; the old ones end after {open}"
            " connections",
            count=len(started),
            version=ready.version,
            open=sum(len(worker.connections) for worker in old),
        )
        if ready.version != __version__:
            _log.info(
                "this process, which hands them their connections, stays artifactd {version} until"
                " a restart",
                version=__version__,
            )

    def _listen_for_reloads(self) -> None:
        """Listen for ``artifactd reload``.  Without it there is SIGHUP."""
        try:
            name = self._reload_socket.claim()
            if name is None:
                _log.info("artifactd reload reaches another daemon on this data folder")
                return
            self._reloads = self._reactor.listenUNIX(name, _Reloads(self.reload), mode=0o600)
        except (OSError, CannotListenError) as error:
            _log.error("artifactd reload will not reach this daemon: {error}", error=error)

    # -- Workers

    def _spawn(self, generation: Generation) -> Worker:
        """
        Start a worker.

        :raises StartError: if the system gives no process, or no descriptors for it.
        """
        try:
            ours, its = Link.pair()
        except OSError as error:
            raise StartError(f"a worker can't be started: {error}") from error
        worker = Worker(generation, self._reactor.seconds())
        worker.link = Link(ours, self._reactor, partial(self._told, worker), worker.unlinked)
        # Where twistd has the log, this process writes it for all.
        out: Any = 1 if self._log is not None else "r"
        argv = [sys.executable, "-P", "-m", WORKER]
        given = {}
        if self._source is not None:
            argv.append(str(self._source))
            given[SETTINGS] = generation.text
        try:
            worker.process = self._reactor.spawnProcess(
                _Process(partial(self._ended, worker)),
                sys.executable,
                argv,
                os.environ,
                childFDs={
                    0: 0,
                    1: out,
                    2: 2 if out == 1 else out,
                    CONTROL: its.fileno(),
                    MEMORY: self._memory.descriptor,
                    **given,
                },
            )
        except OSError as error:
            worker.link.connectionLost()
            raise StartError(f"a worker can't be started: {error}") from error
        finally:
            its.close()
        worker.pid = worker.process.pid  # the transport forgets it
        self._workers.append(worker)
        return worker

    def _wait_for(self, worker: Worker) -> None:
        """
        Wait until a worker is ready, before the reactor runs.

        :raises StartError: if it does not start.
        """
        while worker.ready is None:
            select.select([worker.link], [], [])
            if worker.link.doRead() is not None:
                self._workers.remove(worker)
                worker.link.connectionLost()
                raise StartError(worker.refusal or "a worker has ended before it was ready")

    def _fill_up(self) -> None:
        """Start as many workers as are missing; what can't be started now is tried again later."""
        if self._stopping:
            return
        ours = [each for each in self._workers if each.generation is self._generation]
        try:
            for _ in range(self._generation.number - len(ours)):
                self._spawn(self._generation)
        except StartError as error:
            _log.error("{error}; tried again in {pause:.0f} s", error=error, pause=_LONGEST_PAUSE)
            self._reactor.callLater(_LONGEST_PAUSE, self._fill_up)

    def _watch(self) -> None:
        """Find the workers that hang, and end them at last."""
        for worker in self._workers:
            worker.silent += 1
            most = _NOT_READY if worker.ready is None else _HUNG
            if worker.silent == most:
                why = f"has not answered for {most * BEAT:.0f} s"
                _log.error(
                    "{worker} {why}: it is ended, and prints where it hangs", worker=worker, why=why
                )
                worker.refusal = f"a worker {why}"
                worker.abort()
            elif worker.silent == most + _LOST:
                worker.kill()
            elif worker.silent == _SILENT and worker.serves:
                _log.warn("{worker} does not answer: others get the connections", worker=worker)

    def _told(self, worker: Worker, kind: Told, body: bytes, descriptor: int) -> None:
        close_descriptor(descriptor)  # workers hand nothing back
        if worker.silent >= _SILENT and worker.serves:
            _log.info("{worker} answers again", worker=worker)
        worker.silent = 0
        if kind is Told.CLOSED:
            counted = worker.connections.pop(read_closed(body), None)
            if counted is not None:
                self._connections.remove(counted)
        elif kind is Told.READY:
            try:
                worker.ready = Ready.read(body)
            except StartError as error:
                worker.refusal = str(error)
                worker.kill()  # it has nothing to do, and other words for the rest
                return
            _log.info("{worker} is ready", worker=worker)
            if self._stopping:
                worker.link.tell(Told.STOP)
            elif worker.generation is self._generation:
                worker.admitted = True
            if worker.came is not None:
                worker.came.callback(worker.ready)
        elif kind is Told.REFUSED:
            worker.refusal = body.decode(errors="backslashreplace")
        elif kind is Told.DRAINED:
            worker.drained = True
            self._settle()

    def _ended(self, worker: Worker, how: str) -> None:
        """The process of a worker has ended."""
        if worker not in self._workers:
            return  # it never was ready
        worker.link.doRead()  # its last words may be why it does not start
        self._workers.remove(worker)
        worker.link.stopReading()
        worker.link.connectionLost()
        for counted in worker.connections.values():
            self._connections.remove(counted)
        if worker.ready is None and worker.came is not None:
            why = worker.refusal or f"a worker has ended before it was ready ({how})"
            worker.came.errback(StartError(why))
        if self._stopping:
            self._settle()
            return
        if worker.leaving or worker.generation is not self._generation:
            if worker.connections:
                _log.error(
                    "{worker} has ended ({how}) with {count} connections",
                    worker=worker,
                    how=how,
                    count=len(worker.connections),
                )
            return
        steady = worker.ready is not None and self._reactor.seconds() - worker.started >= _STEADY
        self._failures = 0 if steady else self._failures + 1
        pause = min(2.0 ** (self._failures - 2), _LONGEST_PAUSE) if self._failures > 1 else 0.0
        _log.error(
            "{worker} has ended ({how}) with {count} connections{why}; another one starts in"
            " {pause:.0f} s",
            worker=worker,
            how=how,
            count=len(worker.connections),
            why=worker.refusal and f": {worker.refusal}",
            pause=pause,
        )
        self._reactor.callLater(pause, self._fill_up)

    def _settle(self) -> None:
        """
        While the daemon stops, let workers leave that have no request under way.  One of them stays
        if those that have some get no connections any more, since a reload has replaced them; but
        no longer than requests are waited for.

        Tell when no worker serves, and when all have ended.
        """
        if not self._stopping:
            return
        busy = [worker for worker in self._workers if not worker.drained]
        stays = bool(busy and self._patience) and not any(worker.serves for worker in busy)
        for worker in self._workers:
            if worker.drained and not worker.leaving:
                if stays and worker.serves:
                    stays = False
                else:
                    worker.leave()
        if not any(worker.serves for worker in self._workers) and not self._unserved.called:
            self._unserved.callback(None)
        if not self._workers and not self._ended_all.called:
            self._ended_all.callback(None)

    def _lose_patience(self) -> None:
        """The workers have cut what they waited for."""
        self._patience = 0.0
        self._settle()

    def _kill(self) -> None:
        for worker in self._workers:
            _log.error("{worker} does not end, and is killed", worker=worker)
            worker.kill()

    # -- Connections

    def _accepted(self, bound: Bound, connection: socket.socket, peer: Any) -> None:
        """Hand a connection to the worker with the fewest."""
        counted = self._connections.add(bound.port.getHost(), peer)
        if counted is None:
            _refuse(bound, connection, too_many_connections())
            return
        serving = [worker for worker in self._workers if worker.serves]
        if not serving:
            self._connections.remove(counted)
            _refuse(bound, connection, not_now())
            return
        worker = min(
            serving,
            key=lambda each: (each.silent >= _SILENT, len(each.connections), each.latest),
        )
        number = worker.latest = next(self._numbers)
        worker.connections[number] = counted
        worker.link.tell(handing(bound.listener, number), connection)


def _refuse(bound: Bound, connection: socket.socket, answer: bytes) -> None:
    # Under TLS a handshake would cost more than the answer is worth.
    if bound.plain:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.send(answer)
    connection.close()
