"""Errors between the daemon and an HTTP server."""

from __future__ import annotations


class UpstreamError(Exception):
    """
    A request to an upstream failed.

    :ivar reason: one sentence for the operator and the client; names the host, and no credential.
    :ivar status: the status of the upstream's answer, if it answered.
    :ivar retry_after: after how many seconds the upstream wants to be asked again, if it says so.
    """

    retry_after: float | None = None

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Unreachable(UpstreamError):
    """
    The server can't be reached, broke off, answered 5xx or nonsense; or did so just before.

    :ivar connected: whether there was a connection: the server may answer requests for other URLs.
    :ivar led_elsewhere: whether the server has led to another one, which is the one that failed.
    """

    connected = False
    led_elsewhere = False


class EndedByClosing(Unreachable):
    """
    Nothing but the connection's end marked the end of a body: it may be whole, or have broken off.

    :ivar received: the bytes that came.
    """  # RFC 9112, 6.3

    def __init__(self, reason: str, received: int) -> None:
        super().__init__(reason)
        self.received = received


class OutOfReach(UpstreamError):
    """An upstream leads to a host whose address it may not lead to; asking again is no use."""


class TimedOut(Unreachable):
    """The upstream took longer than the settings allow."""
