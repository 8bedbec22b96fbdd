"""
``artifactd-tls:`` in endpoint strings.

Not beside the ServiceMaker: Twisted's cache of plugins goes by the times of files, so it may have
an old list of a module that it knows, where only root could write it anew; never of one that it
does not know yet.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _TlsParser:
    """Imports nothing until it is asked: every twistd loads every plugin."""

    prefix = "artifactd-tls"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamServerEndpoint:
        """:raises ValueError: telling what is wrong."""
        from artifactd.tls.endpoint import TlsEndpoint  # noqa: PLC0415

        return TlsEndpoint.parse(reactor, *args, **kwargs)


tls = _TlsParser()
