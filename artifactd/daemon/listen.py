"""Listening on the configured endpoints."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactd.kit.start import StartError
from artifactd.tls.certificates import Certificates
from artifactd.tls.endpoint import TlsEndpoint

if TYPE_CHECKING:  # the supervisor does without
    from artifactd.registry.metrics import Counters

_log = Logger()


def listen(
    descriptions: Sequence[str],
    site: IProtocolFactory,
    reactor: Any,
    counters: Counters,
    opened: ExitStack,
) -> list[IListeningPort]:
    """
    Listen on all of ``descriptions``, Twisted's endpoint strings.

    :param counters: get the metrics of the certificates.
    :param opened: takes the callbacks that close the ports again if a later step fails.
    :raises StartError: naming the first endpoint that can't be listened on.
    """
    ports = []
    certificates = []
    for description in descriptions:
        endpoint, port = listen_on(description, site, reactor)
        opened.callback(port.stopListening)
        ports.append(port)
        if isinstance(endpoint, TlsEndpoint):
            certificates.append(endpoint.certificates)
    if certificates:
        measure_certificates(counters, certificates)
    return ports


def listen_on(
    description: str, site: IProtocolFactory, reactor: Any
) -> tuple[IStreamServerEndpoint, IListeningPort]:
    """
    Listen on ``description``, one of Twisted's endpoint strings.

    As many connections as the kernel allows (``net.core.somaxconn``) may wait to be accepted,
    unless the string says how many.

    :raises StartError: naming it, if it can't be listened on.
    """
    outcome: list[IListeningPort | Failure] = []
    endpoint = parse_endpoint(description, reactor)
    try:
        endpoint.listen(site).addBoth(outcome.append)
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
    except Exception as error:
        # An endpoint plugin may raise anything.
        raise StartError(f"listen: {description}: {error}") from error
    assert not isinstance(outcome[0], Failure)
    port = outcome[0]
    if isinstance(port, Port) and "backlog=" not in description:  # a worker's has no socket
        # Twisted's default is 50: of a burst of clients the 52nd would ask again after a second.
        port.socket.listen(socket.SOMAXCONN)
    return endpoint, port


def parse_endpoint(description: str, reactor: Any) -> IStreamServerEndpoint:
    """
    The endpoint of one of Twisted's endpoint strings; it asks ``reactor`` for the time at most.

    :raises StartError: naming it, if it is wrong.
    """
    try:
        # It takes no subclass of str.
        endpoint: IStreamServerEndpoint = serverFromString(reactor, str(description))
    except Exception as error:
        # An endpoint plugin may raise anything about its own string.
        raise StartError(f"listen: {description}: {error}") from error
    return endpoint


def stop_listening(ports: Iterable[IListeningPort]) -> Deferred[Any]:
    """
    Close the ports, also the others when one fails, which is logged.  Fires when that is done.
    """
    closing = [maybeDeferred(port.stopListening).addErrback(_not_closed) for port in ports]
    return DeferredList(closing)


def _not_closed(failure: Failure) -> None:
    _log.failure("a listener can't be closed", failure)


def measure_certificates(counters: Counters, certificates: Sequence[Certificates]) -> None:
    """Add the metrics of the certificates."""
    counters.metrics.measure(
        "tls_certificate_expiry_timestamp_seconds",
        "When the certificate in use expires",
        "listener",
        lambda: {each.listener: each.not_after for each in certificates},
    )
    counters.metrics.measure(
        "tls_reload_failing",
        "1 while a listener's files have changed and can't be used",
        "listener",
        lambda: {each.listener: float(each.failing) for each in certificates},
    )
