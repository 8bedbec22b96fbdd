"""
A worker: the whole service in a process of its own, whose connections the supervisor hands over.

The supervisor runs it: ``python -m artifactd.daemon.worker [SETTINGS]``.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, globalLogBeginner, globalLogPublisher
from twisted.python.failure import Failure

from artifactd import __version__
from artifactd.daemon.handed import Handed
from artifactd.daemon.link import (
    BEAT,
    CONTROL,
    MEMORY,
    PROTOCOL,
    SETTINGS,
    Link,
    Ready,
    Told,
    closed,
    read_handing,
)
from artifactd.daemon.log import StreamLog
from artifactd.kit.clock import keep_steady
from artifactd.kit.printable import make_printable, printable
from artifactd.kit.shared import SharedMemory
from artifactd.kit.start import StartError
from artifactd.settings.settings import Settings

if TYPE_CHECKING:  # imported when it is made
    from artifactd.daemon.service import RegistryService

_log = Logger()


class Worker:
    """
    The service, and the link to the supervisor.

    :param end: this end of the link.
    :param make: makes the service, of the settings and what listens for it.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        end: socket.socket,
        make: Callable[[Settings, Handed], RegistryService],
    ) -> None:
        self._settings, self._reactor = settings, reactor
        self._link = Link(end, reactor, self._told, self._abandoned)
        self._handed = Handed(
            reactor,
            lambda number: self._link.tell(closed(number)),
            lambda: self._link.tell(Told.DRAINED),
        )
        # The supervisor counts the connections, since it sees those of all workers.
        limits = replace(settings.limits, connections=0, address_connections=0)
        self._service = make(replace(settings, limits=limits), self._handed)
        self._stopping = False

    def start(self) -> None:
        """
        Start the service, and tell the supervisor that it is ready.

        :raises StartError: if it can't run.
        """
        self._service.privilegedStartService()
        self._service.start()
        settings = self._settings
        ready = Ready(
            protocol=PROTOCOL,
            version=__version__,
            data=str(settings.data.absolute()),
            listen=[str(each) for each in settings.listen],
            workers=settings.processes,
            connections=settings.limits.connections,
            address_connections=settings.limits.address_connections,
            trusted_proxies=[str(each) for each in settings.trusted_proxies],
            shutdown_timeout=float(settings.shutdown_timeout),
        )
        self._link.tell(Told.READY + msgspec.json.encode(ready))
        telling = LoopingCall(self._link.tell, Told.ALIVE)
        telling.clock = self._reactor
        telling.start(BEAT, now=False)

    def stop(self) -> None:
        """Let what is under way end, then end the process."""
        if not self._stopping:
            self._stopping = True
            stopped: Deferred[None] = self._service.stopService()
            stopped.addErrback(_failed).addBoth(lambda _: self._reactor.stop())

    def _told(self, kind: Told, body: bytes, descriptor: int) -> None:
        if kind is Told.CONNECTION:
            self._handed.take(*read_handing(body), descriptor)
        elif kind is Told.STOP:
            self.stop()
        elif kind is Told.RETIRE:
            retired = self._service.retire().addErrback(_failed)
            retired.addCallback(lambda _: self.stop())
        elif kind is Told.LAST:
            self._handed.last()
        elif kind is Told.CUT:
            self._service.hurry()

    def _abandoned(self) -> None:
        """The supervisor has ended: no connection comes any more."""
        if not self._stopping:
            _log.error("the supervisor has ended: this worker ends too, after what is under way")
        self._handed.last()
        self.stop()


def _failed(failure: Failure) -> None:
    _log.failure("the end failed", failure)


def _ignore_signals() -> None:
    """A terminal's Ctrl-C comes to all processes; the supervisor tells what to do."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _settings(argv: Sequence[str]) -> Settings:
    """The settings that the supervisor has read; all workers get the same ones."""
    if not argv:
        return Settings.load(None, os.environ)
    return Settings.load(Path(argv[0]), os.environ, Path(f"/proc/self/fd/{SETTINGS}").read_bytes())


def _memory() -> SharedMemory:
    try:
        return SharedMemory(MEMORY)
    except ValueError:
        raise StartError(f"artifactd {__version__} needs a restart") from None


def _service(
    reactor: Any, log: StreamLog, memory: SharedMemory, settings: Settings, handed: Handed
) -> RegistryService:
    """
    Import the service, and make it.

    :raises StartError: if it can't be imported: an upgrade may have gone wrong.
    """
    try:
        from artifactd.daemon.service import RegistryService, prepare
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise StartError(f"artifactd {__version__} can't be loaded: {told}") from error
    prepare(reactor)
    return RegistryService(settings, reactor, log=log, memory=memory, handed=handed)


def main(argv: Sequence[str]) -> int:
    """
    Run a worker.  Returns the exit status.

    :param argv: the path of the settings file, for messages; or nothing.
    """
    faulthandler.enable()  # for the supervisor's SIGABRT, if this process hangs
    _ignore_signals()
    reactor: Any = _reactor
    keep_steady(reactor)
    for descriptor in (CONTROL, MEMORY):
        os.set_inheritable(descriptor, False)
    end = socket.socket(fileno=CONTROL)
    globalLogPublisher.addObserver(make_printable)
    log = StreamLog.on_stdout(reactor, MEMORY)
    globalLogBeginner.beginLoggingTo([log])
    try:
        settings = _settings(argv)
        log.configure(settings)
        worker = Worker(settings, reactor, end, partial(_service, reactor, log, _memory()))
        worker.start()
    except StartError as error:
        end.setblocking(True)
        end.send(Told.REFUSED + printable(str(error)).encode())
        return 1
    reactor.callWhenRunning(_ignore_signals)  # by then Twisted has set its own, for children too
    reactor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
