"""What goes wrong between the daemon and an HTTP server."""

from __future__ import annotations


class UpstreamError(Exception):
    """
    An upstream has not given what was asked for.

    :ivar reason: one sentence for the operator and the client; names the host, and no credential.
    :ivar status: the status that the upstream answered with, if it answered.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Unreachable(UpstreamError):
    """It can't be connected to, broke off, answered 5xx or nonsense; or did so just before."""


class TimedOut(Unreachable):
    """It took longer than the settings allow."""
