"""Refusals of an upstream registry: each kind that a caller handles differently."""

from __future__ import annotations

from artifactd.upstream.credentials import Credentials
from artifactd.upstream.http.errors import UpstreamError


class Missing(UpstreamError):
    """
    The upstream does not have the content, or does not let the daemon have it.

    The upstream answered 404 or 410, or 401 or 403 in spite of a fresh token (Docker Hub does that
    for names that do not exist).

    :ivar asked: whether the upstream was asked just now; otherwise its answer is remembered from
        before.
    """

    def __init__(self, reason: str, status: int | None = None, *, asked: bool = True) -> None:
        super().__init__(reason, status)
        self.asked = asked


class Throttled(UpstreamError):
    """
    The upstream answers 429, or did so a short time ago.

    :ivar retry_after: seconds from now for which the upstream must not be asked again.
    :ivar guessed: whether the upstream has told no such time.
    """

    retry_after: float

    def __init__(
        self,
        reason: str,
        retry_after: float,
        status: int | None = 429,
        *,
        guessed: bool = False,
    ) -> None:
        super().__init__(reason, status)
        self.retry_after = retry_after
        self.guessed = guessed


class LoginRefused(UpstreamError):
    """
    The upstream's token service gives no token, the credentials are refused, or there are none.

    :ivar credentials: those that were refused; ``None``: none were shown.
    """

    def __init__(
        self, reason: str, status: int | None = None, credentials: Credentials | None = None
    ) -> None:
        super().__init__(reason, status)
        self.credentials = credentials


class ChallengeRefused(LoginRefused):
    """The upstream's challenge can't be answered; no token service was asked because of it."""


class RangeRefused(UpstreamError):
    """The upstream answered 416: it has no byte of the requested range."""
