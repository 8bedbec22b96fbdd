"""What a browser sends, and what it is told: cookies, forms, security headers, kinds of answers."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar
from urllib.parse import urlsplit

from attrs import frozen
from twisted.web.server import Request

from artifactd.auth.identity import Caller
from artifactd.auth.sessions import LIFETIME, Session, Sessions
from artifactd.oci.errors import Denied
from artifactd.web.fields import header, is_own_origin, sent_by_another_page
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.proxies import from_here, names_loopback, was_passed_on

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
SECURITY: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer the browser would send "Origin: null" with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
"""The header fields of all that the page sends."""


def is_used_here(request: Request) -> bool:
    """
    Whether a browser on this machine asks, by an address that is this machine's alone, and no page
    of another origin has it ask.
    """
    if not (from_here(request.client) and names_loopback(request)) or was_passed_on(request):
        return False
    origin = header(request, "Origin")
    return origin is None or is_own_origin(request, origin)


@frozen
class Browser:
    """
    Keeps sessions in cookies.

    Cookies belong to a host and not to its port, so the port is part of the name: two registries on
    one machine have a session each.

    :param origin: returns the URL under which the client of a request reaches the daemon.
    """

    sessions: Sessions
    origin: Callable[[Request], str]

    def session(self, request: Request) -> Session | None:
        """The session that the browser has, if it has one."""
        name, _ = self._cookie(request)
        value = request.getCookie(name.encode())
        return None if value is None else self.sessions.open(value.decode("latin-1"))

    def keep(self, request: Request, session: Session | None) -> str:
        """The ``Set-Cookie`` that lets the browser keep ``session``, or (``None``) forget it."""
        name, secure = self._cookie(request)
        if session is None:
            value, age = "", 0
        else:
            value, age = self.sessions.seal(session), int(LIFETIME)
        end = "; Secure" if secure else ""
        return f"{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{end}"

    def check_form(self, request: Request, token: str) -> None:
        """
        Check that a form comes from a page that we have given to this browser.

        :param token: the one in the form.
        :raises Denied: if it does not.
        """
        if sent_by_another_page(request):
            raise Denied("the form was sent by another web page: nothing was changed")
        session = self.session(request)
        if session is None or not hmac.compare_digest(
            self.sessions.form_token(session).encode(), token.encode()
        ):
            raise Denied(
                "the form is out of date, or cookies are off: go back, load the page again and send"
                " it once more"
            )

    def _cookie(self, request: Request) -> tuple[str, bool]:
        """The cookie's name, and whether the browser may send it by TLS alone."""
        url = urlsplit(self.origin(request))
        secure = url.scheme == "https"
        port = url.port or (443 if secure else 80)
        return f"{'__Host-' if secure else ''}artifactd-{port}", secure


@frozen
class CookieCredentials:
    """Authenticates the requests of a browser by its session, or its certificate."""

    browser: Browser

    vary: ClassVar = b"Cookie"

    async def caller(self, request: RegistryRequest) -> Caller:
        """Return the caller; an anonymous one if the session has ended.  Nothing is raised."""
        session = self.browser.session(request)
        identity = None if session is None else await self.browser.sessions.identity(session)
        if identity is not None:
            return Caller(identity)
        return request.channel.certified or Caller()


Form = Mapping[str, Sequence[str]]
"""The values of a form's fields, by their names."""


def value(form: Form, name: str) -> str:
    """The first value of a field, without space around it; empty if there is none."""
    values = form.get(name)
    return values[0].strip() if values else ""
