"""The sockets that a supervisor listens on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol

from artifactd.daemon.listen import listen_on, stop_listening
from artifactd.kit.start import StartError


@define(eq=False)
class Bound(Factory):
    """
    A bound socket.

    :ivar place: what it is bound to.
    :ivar description: its endpoint string.
    :ivar listener: the index of the endpoint that it is bound for.
    :ivar plain: whether that endpoint has nothing under HTTP, such as TLS.
    """

    place: object
    accepted: Callable[[Bound, socket.socket, Any], None]
    description: str = ""
    listener: int = 0
    plain: bool = True
    port: Any = field(default=None, init=False)
    _peer: Any = field(default=None, init=False)

    noisy = False

    def buildProtocol(self, addr: Any) -> Protocol:
        self._peer = addr
        return Protocol()

    def hand(self, connection: socket.socket, *_: object) -> None:
        """Take the place of the transport that the port would make of a connection."""
        self.accepted(self, connection, self._peer)


class Sockets:
    """
    The sockets that are bound.

    :param accepted: called with the bound socket that a connection has come to, the socket of the
        connection, and the peer's address.
    """

    def __init__(self, reactor: Any, accepted: Callable[[Bound, socket.socket, Any], None]) -> None:
        self._reactor, self._accepted = reactor, accepted
        self._bound: list[Bound] = []

    @property
    def ports(self) -> list[IListeningPort]:
        """The ports, in the order of the endpoints."""
        return [each.port for each in self._bound]

    def bind(self, descriptions: Sequence[str]) -> None:
        """
        Listen on all of ``descriptions``, Twisted's endpoint strings, and on nothing else.

        A socket that stays where it is takes connections without a break.

        :raises StartError: naming the first that can't be listened on; then nothing has changed.
        """
        endpoints = _Endpoints(self._reactor, self._accepted, list(self._bound))
        bound: list[tuple[str, Bound, bool]] = []
        try:
            for description in map(str, descriptions):
                bound.append((description, *endpoints.listen(description)))
        except StartError:
            stop_listening(each.port for each in endpoints.made)
            raise
        self._bound = []
        for index, (description, each, plain) in enumerate(bound):
            each.description, each.listener, each.plain = description, index, plain
            self._bound.append(each)
        stop_listening(each.port for each in endpoints.before)

    def close(self) -> Deferred[Any]:
        """Close all sockets."""
        ports, self._bound = self.ports, []
        return stop_listening(ports)


class _Endpoints:
    """
    The reactor for endpoints: it binds what they ask for, unless that is bound already, and ignores
    what they put under HTTP, such as TLS, which the workers do.

    :ivar before: what was bound before, and none has asked for yet.
    :ivar made: what is bound now and was not before.
    """

    def __init__(
        self,
        reactor: Any,
        accepted: Callable[[Bound, socket.socket, Any], None],
        before: list[Bound],
    ) -> None:
        self._reactor, self._accepted, self.before = reactor, accepted, before
        self._marker = Factory()
        self._last: tuple[Bound, bool] | None = None
        self.made: list[Bound] = []

    def listen(self, description: str) -> tuple[Bound, bool]:
        """
        Listen on an endpoint.  Returns its socket, and whether there is nothing under HTTP.

        :raises StartError: if that can't be done.
        """
        for bound in self.before:
            if bound.description == description:
                self.before.remove(bound)
                return bound, bound.plain
        listen_on(description, self._marker, self)
        assert self._last is not None
        return self._last

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        return self._bind(
            ("tcp", port, interface),
            factory,
            lambda bound: self._reactor.listenTCP(port, bound, backlog, interface),
        )

    def listenSSL(
        self, port: int, factory: Any, context: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        return self.listenTCP(port, None, backlog, interface)

    def listenUNIX(self, path: str, factory: Any, *options: Any, **named: Any) -> Any:
        return self._bind(
            ("unix", path, named.get("mode")),
            factory,
            lambda bound: self._reactor.listenUNIX(path, bound, *options, **named),
        )

    def adoptStreamPort(self, descriptor: int, family: int, factory: Any) -> Any:
        return self._bind(
            ("adopted", descriptor),
            factory,
            lambda bound: self._reactor.adoptStreamPort(descriptor, family, bound),
        )

    def _bind(self, place: object, factory: Any, make: Callable[[Bound], Any]) -> Any:
        bound = next((each for each in self.before if each.place == place), None)
        if bound is not None:
            self.before.remove(bound)
        else:
            bound = Bound(place, self._accepted)
            bound.port = make(bound)
            # What the port makes of a connection may be replaced: twisted.internet.tcp.Port.
            bound.port.transport = bound.hand
            self.made.append(bound)
        self._last = bound, factory is self._marker
        return bound.port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
