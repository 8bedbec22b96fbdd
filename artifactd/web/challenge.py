"""``WWW-Authenticate``: how a client may say who it is."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen
from twisted.web.server import Request

from artifactd.web.forwarded import TrustedProxies

BASIC = 'Basic realm="artifactd", charset="UTF-8"'


@frozen
class Challenge:
    """
    RFC 7617 (Basic), or registry-auth-token, "How to authenticate" (Bearer).

    Never both: clients choose the first scheme that they know, or the last.

    :ivar proxies: whose word tells by what URL a client has come.
    :ivar external_url: the URL of the daemon as clients know it; ``""``: as each has come.
    :ivar service: the name of the token service; ``""``: there is none, and Basic is asked for.
    """

    proxies: TrustedProxies
    external_url: str = ""
    service: str = ""

    def value(self, request: Request, scopes: Iterable[str] = (), error: str = "") -> str:
        """
        :param scopes: what a token has to be for.
        :param error: what is wrong with the one that came: RFC 6750, 3.1.
        """
        if not self.service:
            return BASIC
        parameters = {
            "realm": f"{self.external_url or self.proxies.origin(request)}/token",
            "service": self.service,
            "scope": " ".join(scopes),
            "error": error,
        }
        return "Bearer " + ",".join(f'{name}="{v}"' for name, v in parameters.items() if v)
