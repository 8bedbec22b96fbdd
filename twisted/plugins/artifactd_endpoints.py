"""
The kind of endpoint ``artifactd-tls:``.

It is not in the module of the ServiceMaker.  Twisted caches the plugins of each module by the
module's time; where only root can write the cache, it may keep an old list of a module that it
knows, but never of a module that is new to it.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _TlsParser:
    """Imports the endpoint when it is used: every twistd loads every plugin."""

    prefix = "artifactd-tls"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamServerEndpoint:
        """Parse the endpoint string.  :raises ValueError: naming what is wrong in it."""
        from artifactd.tls.endpoint import TlsEndpoint  # noqa: PLC0415

        return TlsEndpoint.parse(reactor, *args, **kwargs)


tls = _TlsParser()
