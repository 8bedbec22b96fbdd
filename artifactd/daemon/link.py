"""What the supervisor and a worker tell each other, over a socket that also carries connections."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from enum import Enum
from struct import Struct
from typing import Any, Final, Self

import msgspec
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from artifactd.kit.start import StartError

PROTOCOL: Final = 2
"""The version of what is told: a reload may start workers of a newer program."""

CONTROL: Final = 3
"""The descriptor of the link in a worker."""

MEMORY: Final = 4
"""The descriptor of the shared memory in a worker."""

SETTINGS: Final = 5
"""The descriptor of the content of the settings file in a worker, if there is one."""

BEAT: Final = 1.0
"""A worker tells that it is alive every so many seconds."""

_MOST = 64 << 10  # bytes of a message
_EACH_TURN = 64  # messages that are read in one turn of the reactor

# What the system says of a message that may be sent later: there is no memory for it, or there are
# more descriptors on their way than a process may have (unix(7)).  It does not tell when.
_LATER = {errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}
_PAUSE = 0.01  # seconds

_NUMBERS = Struct("!HQ")
_NUMBER = Struct("!Q")


class Told(bytes, Enum):
    """The first byte of a message says its kind.  The supervisor tells the first five."""

    CONNECTION = b"c"  # with _NUMBERS and a descriptor
    RETIRE = b"r"  # finish what is under way, in its own time; CONNECTION comes no more
    STOP = b"s"  # answer new requests with 503, finish the others in time, then say DRAINED
    CUT = b"x"  # drop all connections
    LAST = b"l"  # after STOP: CONNECTION comes no more
    READY = b"R"  # with Ready
    REFUSED = b"F"  # with a line that says why the worker does not start
    CLOSED = b"X"  # with _NUMBER
    DRAINED = b"D"  # no request is under way
    ALIVE = b"A"  # every BEAT seconds


class _Version(msgspec.Struct, frozen=True):
    """What workers of every version tell of themselves."""

    protocol: int
    version: str


class Ready(msgspec.Struct, frozen=True):
    """
    What a worker that is ready to serve tells of its settings, since it has read them.

    :ivar protocol: :data:`PROTOCOL` of the worker.
    :ivar version: of the program.
    :ivar data: the absolute path of the data folder.
    :ivar listen: endpoint strings; a connection is handed over with its index in this list.
    :ivar workers: how many there shall be.
    :ivar connections, address_connections, trusted_proxies, shutdown_timeout: as in the settings.
    """

    protocol: int
    version: str
    data: str
    listen: list[str]
    workers: int
    connections: int
    address_connections: int
    trusted_proxies: list[str]
    shutdown_timeout: float

    @classmethod
    def read(cls, body: bytes) -> Self:
        """
        Read what a worker of any version has told.

        :raises StartError: if it speaks otherwise.
        """
        told = msgspec.json.decode(body, type=_Version)
        if told.protocol != PROTOCOL:
            raise StartError(f"artifactd {told.version} needs a restart")
        return msgspec.json.decode(body, type=cls)


def handing(listener: int, number: int) -> bytes:
    """The message that hands over a connection of the listener with that index."""
    return Told.CONNECTION + _NUMBERS.pack(listener, number)


def read_handing(body: bytes) -> tuple[int, int]:
    """Return the index of the listener, and the connection's number."""
    listener, number = _NUMBERS.unpack(body)
    return listener, number


def closed(number: int) -> bytes:
    """The message that says that the connection with that number is closed."""
    return Told.CLOSED + _NUMBER.pack(number)


def read_closed(body: bytes) -> int:
    """Return the connection's number."""
    return int(_NUMBER.unpack(body)[0])


class Link(FileDescriptor):
    """
    One end of the socket between the supervisor and a worker (``SOCK_SEQPACKET``).

    :param received: called with the kind of a message, the rest of it, and its descriptor, which
        the callee has to close; -1: it has none, or this process may have no more.
    :param lost: called once, when the other end is closed or the other process has ended.
    """

    def __init__(
        self,
        end: socket.socket,
        reactor: Any,
        received: Callable[[Told, bytes, int], None],
        lost: Callable[[], None],
    ) -> None:
        super().__init__(reactor)
        end.setblocking(False)
        self._end, self._later = end, reactor.callLater
        self._received, self._lost = received, lost
        self._waiting: deque[tuple[bytes, socket.socket | None]] = deque()
        self.connected = 1
        self.startReading()

    @classmethod
    def pair(cls) -> tuple[socket.socket, socket.socket]:
        """Make a socket for each end."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self._end.fileno()

    def tell(self, message: bytes, handed: socket.socket | None = None) -> None:
        """
        Send a message; nothing happens where the other end is closed.

        :param handed: a socket that goes with it; it is closed here once it is sent.
        """
        self._waiting.append((message, handed))
        if len(self._waiting) == 1:
            self.doWrite()

    def doWrite(self) -> None:
        while self._waiting:
            message, handed = self._waiting[0]
            try:
                if handed is None:
                    self._end.send(message)
                else:
                    socket.send_fds(self._end, [message], [handed.fileno()])
            except BlockingIOError:
                self.startWriting()
                return
            except OSError as error:
                if error.errno in _LATER:
                    self.stopWriting()
                    self._later(_PAUSE, self.doWrite)
                    return
                # Otherwise the other end is closed, which reading tells.
            self._waiting.popleft()
            if handed is not None:
                handed.close()
        self.stopWriting()

    def doRead(self) -> Failure | None:
        for _ in range(_EACH_TURN):
            try:
                message, descriptors, *_ = socket.recv_fds(self._end, _MOST, 1)
            except BlockingIOError:
                return None
            except OSError:
                message, descriptors = b"", []
            if not message:
                return Failure(ConnectionDone())
            self._received(Told(message[:1]), message[1:], descriptors[0] if descriptors else -1)
            if not self.connected:
                return None
        return None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.connected:
            return
        super().connectionLost(reason)
        self.connected = 0
        self._end.close()
        while self._waiting:
            _, handed = self._waiting.popleft()
            if handed is not None:
                handed.close()
        self._lost()


def close_descriptor(descriptor: int) -> None:
    """Close a descriptor that came with a message, if one did."""
    if descriptor >= 0:
        os.close(descriptor)
