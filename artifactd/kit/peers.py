"""The worker processes of one daemon ask each other what only each of them knows."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError, ConnectError, ConnectionRefusedError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from artifactd.kit.tallies import Tallies

SECONDS = 2.0
"""How long an answer is awaited."""

_LARGEST = 16 << 20  # bytes of an answer
_BACKLOG = 1000  # questions that may wait for a process that hangs
_CREDENTIALS = struct.Struct("@iII")  # struct ucred: process, user, group

_log = Logger()


@frozen
class Reply:
    """
    What another process answers.

    :ivar pid: its process id; 0: it can't even be asked.
    :ivar body: ``None`` if it has not answered in time.
    """

    pid: int
    body: bytes | None


Handler = Callable[[], Awaitable[bytes]]


@define(eq=False)
class Peers:
    """
    The other worker processes of the daemon.

    They listen on sockets in Linux's abstract namespace, which end with their processes, and talk
    only to processes of the same user.

    :param name: a name of the daemon, of which all its processes know.
    :param tallies: knows which processes run.
    """

    reactor: Any
    name: str
    tallies: Tallies
    _handlers: dict[str, Handler] = field(factory=dict, init=False)
    _port: IListeningPort | None = field(default=None, init=False)

    def answer(self, question: str, handler: Handler) -> None:
        """
        Answer a question by what ``handler`` returns.

        :param question: a word.
        """
        self._handlers[question] = handler

    def listen(self) -> None:
        """
        Let the others ask.  Where that can't be, they leave this one out: another user of the
        machine may have taken the name, which must not keep this process from serving.
        """
        if self.tallies.page is None:
            return
        factory = Factory.forProtocol(lambda: _Answering(self._handlers))
        factory.noisy = False
        try:
            self._port = self.reactor.listenUNIX(
                self._address(self.tallies.page), factory, backlog=_BACKLOG
            )
        except CannotListenError as error:
            _log.error(
                "the other processes can't ask this one what it does: {error}",
                error=error.socketError,
            )

    async def close(self) -> None:
        """Let the others ask no more.  What they have asked gets no answer any more."""
        self._handlers.clear()
        if self._port is not None:
            port, self._port = self._port, None
            await maybeDeferred(port.stopListening)

    async def ask(self, question: str) -> Sequence[Reply]:
        """
        Ask all others at once; returns after :data:`SECONDS` at most.

        Those that only start, or have ended, don't reply at all.
        """
        pages = [page for page in self.tallies.running() if page != self.tallies.page]
        replies = await gatherResults(
            [Deferred.fromCoroutine(self._ask(page, question)) for page in pages],
            consumeErrors=True,
        )
        return [reply for reply in replies if reply is not None]

    async def _ask(self, page: int, question: str) -> Reply | None:
        late = self.reactor.seconds() + SECONDS
        reply = await self._ask_once(page, question, SECONDS)
        left = late - self.reactor.seconds()
        if reply is not None and reply.body is None and left > 0:
            # If it has ended meanwhile, it refuses this connection.
            reply = await self._ask_once(page, question, left)
        return reply

    async def _ask_once(self, page: int, question: str, seconds: float) -> Reply | None:
        asking = _Asking(question)
        endpoint = UNIXClientEndpoint(self.reactor, self._address(page), seconds)
        try:
            await connectProtocol(endpoint, asking)
        except ConnectionRefusedError:
            return None
        except ConnectError:
            return Reply(0, None)
        late = self.reactor.callLater(seconds, asking.abort)
        body = await asking.answered
        if late.active():
            late.cancel()
        return None if asking.pid is None else Reply(asking.pid, body)

    def _address(self, page: int) -> str:
        return f"\0artifactd-{self.name}-{page}"


def _process_of(transport: Any) -> int | None:
    """Return the process at the other end, or ``None`` if it is another user's."""
    asked = transport.getHandle().getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    pid, user, _ = _CREDENTIALS.unpack(asked)
    return pid if user == os.geteuid() else None


class _Answering(LineOnlyReceiver):
    """The end that answers: one question, then it closes."""

    transport: Any
    delimiter = b"\n"
    MAX_LENGTH = 64

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    def connectionMade(self) -> None:
        if _process_of(self.transport) is None:
            self.transport.abortConnection()

    def lineReceived(self, line: bytes) -> None:
        handler = self._handlers.get(line.decode(errors="replace"))
        if handler is None:
            self.transport.abortConnection()
            return

        async def answer() -> None:
            told = await handler()
            if self._handlers:  # else it tells of what is being closed
                self.transport.write(told + b"\n")
            self.transport.loseConnection()

        def failed(failure: Failure) -> None:
            _log.failure("a question of another process failed", failure)
            self.transport.abortConnection()

        Deferred.fromCoroutine(answer()).addErrback(failed)


class _Asking(Protocol):
    """
    The end that asks.

    :ivar pid: the process that is asked; ``None``: it is none of ours.
    :ivar answered: has the answer, or ``None``, when the connection has ended.
    """

    transport: Any
    pid: int | None = None

    def __init__(self, question: str) -> None:
        self._question = question
        self._received = bytearray()
        self.answered: Deferred[bytes | None] = Deferred()

    def connectionMade(self) -> None:
        self.pid = _process_of(self.transport)
        if self.pid is None:
            self.abort()
        else:
            self.transport.write(self._question.encode() + b"\n")

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _LARGEST:
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        whole = self._received.endswith(b"\n")
        self.answered.callback(bytes(self._received[:-1]) if whole else None)

    def abort(self) -> None:
        """Wait no longer."""
        self._received.clear()
        self.transport.abortConnection()
