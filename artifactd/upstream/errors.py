"""What an upstream registry refuses: each kind that a caller handles differently."""

from __future__ import annotations

from artifactd.upstream.http.errors import UpstreamError


class Missing(UpstreamError):
    """
    It definitely does not have it, or does not let us have it: 404, 410, or 401 and 403 in spite of
    a fresh token (Docker Hub answers so for names that do not exist).

    :ivar asked: whether it was asked just now; else this is what is remembered of it.
    """

    def __init__(self, reason: str, status: int | None = None, *, asked: bool = True) -> None:
        super().__init__(reason, status)
        self.asked = asked


class Throttled(UpstreamError):
    """
    429, or it has answered so lately.

    :ivar retry_after: seconds from now on in which it need not be asked again.
    """

    def __init__(self, reason: str, retry_after: float, status: int | None = 429) -> None:
        super().__init__(reason, status)
        self.retry_after = retry_after


class LoginRefused(UpstreamError):
    """No token can be had, or the credentials are refused."""


class RangeRefused(UpstreamError):
    """416: it has no byte of the range asked for."""
