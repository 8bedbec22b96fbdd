"""What the client asks of HTTP; ``artifactd.upstream.transport`` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer


class HttpResponse(Protocol):
    """
    An answer whose headers have come.

    Exactly one of :meth:`read`, :meth:`deliver_to` and :meth:`abort` has to be called.
    """

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def host(self) -> str:
        """``host[:port]`` of who answered: of the last redirect."""

    @property
    def length(self) -> int | None:
        """Bytes of the body that comes; ``None`` where that isn't said."""

    def header(self, name: str) -> str | None:
        """The value of a header field, or ``None``."""

    def headers(self, name: str) -> list[str]:
        """All values of a header field."""

    async def read(self, limit: int, seconds: float | None = None) -> bytes:
        """
        The whole body.

        :param seconds: in which all of it has to come; ``None``: as long as some of it comes.
        :raises Unreachable: if it has more than ``limit`` bytes, or breaks off, or takes longer.
        """

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """As ``BlobBody.deliver_to``."""

    def abort(self) -> None:
        """Close the connection."""


class Http(Protocol):
    """HTTP as it goes to one upstream."""

    async def request(self, method: str, url: str, headers: Mapping[str, str]) -> HttpResponse:
        """
        Ask, and follow redirects; ``Authorization`` goes to the origin of ``url`` alone.

        :raises Unreachable: if no answer can be had.
        """
