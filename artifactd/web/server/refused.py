"""Answers for where there is no request: to connections, and to bytes that are none."""

from __future__ import annotations

from artifactd.oci.errors import RegistryError, Unavailable

_BUSY = Unavailable("too many connections: close some, or try again later")
_AGAIN = Unavailable("nothing serves at the moment: try again", None, {"Retry-After": "5"})


def too_many_connections() -> bytes:
    """Make the answer to a connection that there is no room for."""
    return whole(b"503 Service Unavailable", _BUSY)


def not_now() -> bytes:
    """Make the answer to a connection that there is no worker for."""
    return whole(b"503 Service Unavailable", _AGAIN)


def whole(status: bytes, error: RegistryError) -> bytes:
    """Make a whole response with ``error``."""
    body = error.body()
    fields = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items()).encode()
    return (
        b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Type: application/json\r\n%b"
        b"Docker-Distribution-Api-Version: registry/2.0\r\n"
        b"Cache-Status: artifactd\r\nServer-Timing: total;dur=0.0\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (status, fields, len(body), body)
    )
