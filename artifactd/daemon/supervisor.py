"""
The supervisor: it has the sockets, starts the workers, and hands each connection to one of them.

It reads no request and opens no file of the data folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

from artifactd.daemon.greeting import greet
from artifactd.daemon.link import Link, Ready, Told, close_descriptor, handing, read_closed
from artifactd.daemon.log import StreamLog
from artifactd.daemon.sockets import Bound, Sockets
from artifactd.kit.printable import printable
from artifactd.kit.shared import SharedMemory
from artifactd.kit.start import StartError
from artifactd.settings.settings import Settings
from artifactd.store.folder import ReadOnlyMode
from artifactd.web.server.limits import Connections, Counted
from artifactd.web.server.protocol import not_now, too_many_connections
from artifactd.web.server.proxies import TrustedProxies, from_here

CONTROL = 3
"""The descriptor of the link in a worker."""

MEMORY = 4
"""The descriptor of the shared memory in a worker."""

# Seconds that a worker has to serve for its end to count as the first one; and the most between its
# end and the start of another one.
_STEADY = 60.0
_LONGEST_PAUSE = 30.0

# Seconds beyond shutdown_timeout that the workers get to end, before they are killed.
_GRACE = 15.0

_log = Logger()


@define(eq=False)
class Worker:
    """
    A worker as the supervisor sees it.

    :ivar process: the transport of its process.
    :ivar ready: what it told when it was ready; ``None`` before.
    :ivar refusal: why it did not start.
    :ivar connections: those that it was given and has not closed, by their numbers.
    :ivar latest: the number of the last connection that it was given.
    :ivar leaving: whether it gets no more connections.
    :ivar started: the clock's seconds then.
    """

    started: float
    link: Link = field(init=False)
    process: Any = field(default=None, init=False)
    pid: int = field(default=0, init=False)
    ready: Ready | None = field(default=None, init=False)
    refusal: str = field(default="", init=False)
    connections: dict[int, Counted] = field(factory=dict, init=False)
    latest: int = field(default=0, init=False)
    leaving: bool = field(default=False, init=False)

    @property
    def serves(self) -> bool:
        """Whether it may be given connections."""
        return self.ready is not None and not self.leaving

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
            _log.info("{line}", line=line.decode(errors="backslashreplace"))

    def processExited(self, reason: Failure) -> None:
        end: Any = reason.value
        self._ended(f"signal {end.signal}" if end.signal else f"exit status {end.exitCode}")


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
        self._memory, self._log = memory, log
        self._sockets = Sockets(reactor, self._accepted)
        self._connections = Connections(settings.limits, _exempt(settings.trusted_proxies))
        self._numbers = count(1)
        self._workers: list[Worker] = []
        self._wanted = settings.processes
        self._failures = 0
        self._stopped: Deferred[None] | None = None

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
        Listen, start the first worker and wait until it is ready, then start the others.

        One by one, since the first may have to migrate the catalog.

        :raises StartError: if the daemon can't run; then nothing is left running.
        """
        self._sockets.bind(self._settings.listen)
        try:
            self._wait_for(self._spawn())
        except StartError:
            self._sockets.close()
            raise
        greet(
            self._settings,
            self._source,
            [port.getHost() for port in self._sockets.ports],
            read_only=ReadOnlyMode(self._settings.data, self._settings.read_only).on(),
        )
        self._fill_up()

    def stopService(self) -> Deferred[None]:
        """
        Let the workers answer what is under way, and 503 to new requests; then close all.  Workers
        that have not ended long after ``shutdown_timeout`` are killed.
        """
        super().stopService()
        self._stopped = Deferred()
        for worker in self._workers:
            worker.link.tell(Told.STOP)
        self._settle()
        late = self._reactor.callLater(self._settings.shutdown_timeout + _GRACE, self._kill)

        def stopped(outcome: Any) -> Deferred[Any]:
            if late.active():
                late.cancel()
            return self._sockets.close()

        return self._stopped.addCallback(stopped)

    def hurry(self) -> None:
        """Cut the transfers that :meth:`stopService` waits for, if it does."""
        if self._stopped is not None:
            for worker in self._workers:
                worker.link.tell(Told.CUT)

    # -- Workers

    def _spawn(self) -> Worker:
        """Start a worker."""
        ours, its = Link.pair()
        worker = Worker(self._reactor.seconds())
        worker.link = Link(ours, self._reactor, partial(self._told, worker), _nothing)
        # Where twistd has the log, this process writes it for all.
        out: Any = 1 if self._log is not None else "r"
        argv = [sys.executable, "-P", "-m", "artifactd.daemon.worker"]
        if self._source is not None:
            argv += ["--config", str(self._source)]
        with its:
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
                },
            )
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
        """Start as many workers as are missing."""
        if self._stopped is None:
            for _ in range(self._wanted - sum(not each.leaving for each in self._workers)):
                self._spawn()

    def _told(self, worker: Worker, kind: Told, body: bytes, descriptor: int) -> None:
        close_descriptor(descriptor)  # workers hand nothing back
        if kind is Told.CLOSED:
            counted = worker.connections.pop(read_closed(body), None)
            if counted is not None:
                self._connections.remove(counted)
        elif kind is Told.READY:
            worker.ready = msgspec.json.decode(body, type=Ready)
            _log.info(
                "{worker} is ready: {count} of {wanted}",
                worker=worker,
                count=sum(each.serves for each in self._workers),
                wanted=self._wanted,
            )
            if self._stopped is not None:
                worker.link.tell(Told.STOP)
        elif kind is Told.REFUSED:
            worker.refusal = body.decode(errors="backslashreplace")
        elif kind is Told.DRAINED:
            worker.leaving = True
            worker.link.tell(Told.LAST)
            self._settle()

    def _ended(self, worker: Worker, how: str) -> None:
        """The process of a worker has ended."""
        if worker not in self._workers:
            return  # it never was ready
        self._workers.remove(worker)
        worker.link.stopReading()
        worker.link.connectionLost()
        for counted in worker.connections.values():
            self._connections.remove(counted)
        if self._stopped is not None:
            self._settle()
            return
        if worker.leaving:
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
        """While the daemon stops: close the sockets when no worker serves, and end after all."""
        stopped = self._stopped
        if stopped is None:
            return
        if not any(worker.serves for worker in self._workers):
            self._sockets.close()
        if not self._workers and not stopped.called:
            stopped.callback(None)

    def _kill(self) -> None:
        for worker in self._workers:
            _log.error("{worker} does not end, and is killed", worker=worker)
            worker.process.signalProcess("KILL")

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
        worker = min(serving, key=lambda each: (len(each.connections), each.latest))
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


def _exempt(trusted_proxies: Sequence[str]) -> Callable[[object], bool]:
    proxies = TrustedProxies.parse(trusted_proxies)
    return lambda peer: from_here(peer) or proxies.trusts(peer)


def _nothing() -> None:
    """Do nothing when a link is closed: the end of the process is told by itself."""
