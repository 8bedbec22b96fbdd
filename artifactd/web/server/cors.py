"""Which web pages may read the answers: CORS, as the Fetch standard says (3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twisted.web.server import Request

_EXPOSED = ", ".join(
    [
        "Accept-Ranges",
        "Cache-Status",
        "Content-Length",
        "Content-Range",
        "Docker-Content-Digest",
        "Docker-Distribution-Api-Version",
        "Docker-Upload-UUID",
        "ETag",
        "Link",
        "Location",
        "OCI-Chunk-Min-Length",
        "OCI-Filters-Applied",
        "OCI-Subject",
        "OCI-Tag",
        "Range",
        "Retry-After",
        "Server-Timing",
        "Warning",
        "WWW-Authenticate",
    ]
).encode()

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Accept, Authorization, Content-Range, Content-Type, If-Match,"
    " If-None-Match, If-Range, Range",
    "Access-Control-Max-Age": "3600",
}


class Cors:
    """
    Tells browsers which pages' scripts may ask the registry and read its answers.

    :param origins: those of the pages, such as ``https://ui.example.com``; these may use the login
        that the browser has for the registry.  ``*``: every page, without that login.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        named = {origin.encode() for origin in origins}
        self._any = b"*" in named
        self._named = named - {b"*"}

    def allows(self, request: Request) -> bool:
        """Whether ``request`` comes from a page that may read the answer."""
        origin = _origin(request)
        return origin is not None and (self._any or origin in self._named)

    def allows_login(self, request: Request) -> bool:
        """Whether ``request`` comes from a page that may use the login that the browser has."""
        return _origin(request) in self._named

    def allow(self, request: Request) -> None:
        """Set the header fields of the answer to ``request``."""
        headers = request.responseHeaders
        if self._named:
            # A cache must not give one page's permission to another: Fetch, 3.3.6.
            headers.addRawHeader(b"Vary", b"Origin")
        origin = _origin(request)
        if origin in self._named:
            headers.setRawHeaders(b"Access-Control-Allow-Origin", [origin])
            headers.setRawHeaders(b"Access-Control-Allow-Credentials", [b"true"])
        elif self.allows(request):
            headers.setRawHeaders(b"Access-Control-Allow-Origin", [b"*"])
        else:
            return
        headers.setRawHeaders(b"Access-Control-Expose-Headers", [_EXPOSED])

    def preflight(self) -> Mapping[str, str]:
        """Return the further fields of the answer to a preflight request: Fetch, 3.3.2."""
        return _PREFLIGHT


def _origin(request: Request) -> bytes | None:
    """The origin of the page that sends ``request``; ``None``: it says none, or several."""
    origins = request.requestHeaders.getRawHeaders(b"Origin", ())
    return origins[0] if len(origins) == 1 else None
