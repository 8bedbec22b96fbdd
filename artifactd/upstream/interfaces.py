"""What the registry asks of an upstream; ``tests/upstream`` holds the client to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer

from artifactd.oci.digest import Digest
from artifactd.oci.names import Reference
from artifactd.upstream.credentials import Credentials


@frozen
class UpstreamManifest:
    """
    A manifest as an upstream sent it.  Not verified: that is for the caller.

    :ivar content_type: its ``Content-Type``, or ``None``.
    :ivar digest: what the upstream says that its digest is; ``None`` where it doesn't.
    """

    content: bytes = field(repr=False)
    content_type: str | None
    digest: Digest | None = None


@frozen
class UpstreamBlob:
    """
    What an upstream tells of a blob.

    :ivar size: in bytes; ``None`` where it doesn't say.
    """

    size: int | None


@frozen
class UpstreamPage:
    """
    One page of a list.

    :ivar body: the JSON document, as sent.
    :ivar next: the query parameters of the ``Link`` to the next page; ``None``: there is none.
    :ivar filtered: what ``OCI-Filters-Applied`` says, or ``None``.
    """

    body: bytes = field(repr=False)
    next: Mapping[str, str] | None = None
    filtered: str | None = None


class BlobBody(Protocol):
    """
    The body of a blob, or of a part of it, whose headers have come.

    Either :meth:`deliver_to` or :meth:`abort` has to be called.

    :ivar first: offset in the blob of the first byte that comes: what was asked for, or 0 where the
        upstream ignores ranges or the validator does not match any more.
    :ivar length: bytes that come; ``None`` where the upstream doesn't say.
    :ivar size: bytes of the whole blob; ``None`` where the upstream doesn't say.
    :ivar validator: a strong entity tag (with its quotes) for ``If-Range``, or ``None``.
    :ivar host: who sends it: the host of the last redirect.
    """

    first: int
    length: int | None
    size: int | None
    validator: str | None
    host: str

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """
        Deliver all of it to ``consumer``, which may pause it; fires with the number of bytes.

        Cancelling it, and ``stopProducing`` by the consumer, close the connection.

        :raises Unreachable: if the upstream breaks off before the end.
        :raises TimedOut: if nothing comes for the idle timeout while the consumer takes bytes.
        """

    def abort(self) -> None:
        """Nobody wants it: close the connection."""


class Upstream(Protocol):
    """
    Another registry.  ``image`` is always the name there (``library/alpine``).

    Everything raises :class:`artifactd.upstream.http.errors.UpstreamError` and nothing else.  What
    may be retried has been, before it raises.

    :ivar name: of the repository whose upstream it is, for logs.
    """

    name: str

    async def manifest(self, image: str, reference: Reference) -> UpstreamManifest:
        """
        end-3, GET, always with all media types that we know in ``Accept``.

        :raises Unreachable: also if it has more bytes than a manifest may have.
        """

    async def manifest_digest(
        self, image: str, reference: Reference, known: Digest | None
    ) -> Digest | None:
        """
        end-3, HEAD, with ``known`` in ``If-None-Match``: the digest that ``reference`` has there
        now, ``known`` after a 304; ``None`` where the upstream doesn't say it.
        """

    async def blob(self, image: str, digest: Digest) -> UpstreamBlob:
        """end-2, HEAD."""

    async def open_blob(
        self,
        image: str,
        digest: Digest,
        first: int = 0,
        last: int | None = None,
        validator: str | None = None,
    ) -> BlobBody:
        """
        end-2, GET: bytes ``first`` to ``last`` (inclusive; ``None``: to the end) of a blob.

        Without ``first`` and ``last`` no ``Range`` is sent.

        :param validator: sent as ``If-Range``.
        :raises RangeRefused: if the blob has no such bytes.
        """

    async def tags(self, image: str, query: Mapping[str, str]) -> UpstreamPage:
        """end-8, with ``n`` and ``last`` as ``query`` says."""

    async def referrers(
        self, image: str, subject: Digest, query: Mapping[str, str]
    ) -> UpstreamPage:
        """
        end-12, with ``artifactType`` and whatever the last page's ``next`` had as ``query``.

        :raises Missing: also where the upstream does not know this endpoint.
        """

    def frugality(self) -> float:
        """
        By how much the freshness of tags is to be stretched, at least 1, as the budget of requests
        that the upstream tells of (``RateLimit-Remaining``) falls (docs/pull-through.md).
        """


class UpstreamAccess(Protocol):
    """
    What an upstream lets others have.  Raises as :class:`Upstream`; ``LoginRefused`` with the
    status 401 or 403 where the credentials are wrong, ``Missing`` where they don't do.
    """

    async def may_pull(
        self, image: str, credentials: Credentials | None, known: Reference | None
    ) -> bool:
        """
        Ask for ``image`` with ``credentials`` (``None``: anonymously).

        :param known: what the image is known to have, or is asked for.
        :returns: whether the credentials were needed for that; else anybody may have it.
        :raises Missing: if it may not be had so.
        """

    async def logs_in(self, credentials: Credentials) -> bool:
        """
        Show ``credentials`` for no image.

        :returns: whether they were wanted; else nothing is known of them.
        """


class UpstreamWatch(Protocol):
    """
    Is told what passes between an upstream and us; for counters.
    """

    def received(self, count: int) -> None:
        """``count`` bytes of bodies of blobs and manifests came."""

    def requested(self, method: str, status: int | None) -> None:
        """A request was answered, or (``None``) was not."""
