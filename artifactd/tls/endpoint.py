"""
``artifactd-tls:``, a kind of Twisted's endpoint strings::

    artifactd-tls:5443:interface=127.0.0.1:key=key.pem:cert=fullchain.pem
    artifactd-tls:5443:cert=both.pem:client_ca=ca.pem:client_auth=optional
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

from artifactd.kit.start import StartError
from artifactd.tls.certificates import Certificates
from artifactd.tls.connection import TlsFactory
from artifactd.tls.files import TlsFiles

PREFIX = "artifactd-tls"

_OPTIONS = ("interface", "backlog", "key", "cert", "client_ca", "client_auth")
_CLIENT_AUTH = ("required", "optional")


@implementer(IStreamServerEndpoint)
@frozen
class TlsEndpoint:
    """
    Listens for TLS over TCP.

    :ivar certificates: the certificates that it sends to clients; loaded by :meth:`listen`.
    """

    reactor: Any
    port: int
    interface: str
    backlog: int
    certificates: Certificates

    @classmethod
    def parse(cls, reactor: Any, *arguments: str, **options: str) -> TlsEndpoint:
        """
        Make the endpoint of an endpoint string.

        :param arguments: the port.
        :param options: the string's options.
        :raises ValueError: saying what is wrong with the string.
        """
        unknown = sorted(options.keys() - {"port", *_OPTIONS})
        if unknown:
            raise ValueError(f"unknown {unknown[0]}=; there are {', '.join(_OPTIONS)}")
        given = [*arguments, *([options["port"]] if "port" in options else [])]
        if len(given) != 1:
            raise ValueError(f"expected one port, then options, got {len(given)} ports")
        port = _number(given[0], "the port", 65535)
        cert, authorities = options.get("cert"), options.get("client_ca")
        if not cert:
            raise ValueError("cert= is missing: the certificate, with the intermediate ones")
        auth = options.get("client_auth", _CLIENT_AUTH[0])
        if auth not in _CLIENT_AUTH:
            raise ValueError(f"client_auth= is {' or '.join(_CLIENT_AUTH)}, not {auth}")
        if not authorities and ("client_auth" in options or "client_ca" in options):
            raise ValueError("client_auth= needs client_ca=: the authorities of the clients")
        interface = options.get("interface", "")
        return cls(
            reactor,
            port,
            interface,
            _number(options.get("backlog", "50"), "backlog=", 65535),
            Certificates(
                TlsFiles(
                    Path(options.get("key") or cert),
                    Path(cert),
                    Path(authorities) if authorities else None,
                ),
                f"{PREFIX}:{port}" + (f":interface={interface}" if interface else ""),
                auth == "required",
                reactor,
                partial(_in_thread, reactor),
            ),
        )

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; fails with :class:`StartError` if a file can't be used."""
        try:
            self.certificates.load()
        except StartError:
            return fail()
        serving = TlsFactory(self.certificates, factory, self.reactor)
        return execute(self.reactor.listenTCP, self.port, serving, self.backlog, self.interface)


def _number(text: str, what: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= most):
        raise ValueError(f"{what} is a number up to {most}, not {text}")
    return int(text)


def _in_thread(reactor: Any, work: Any) -> Deferred[Any]:
    # The reactor's own pool: all threads of transfers may be busy for long.
    return deferToThreadPool(reactor, reactor.getThreadPool(), work)
