"""The interface of an upstream registry: manifests, blobs, tags and referrers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer

from artifactd.oci.names import Digest, Reference


@frozen
class UpstreamManifest:
    """
    A manifest as an upstream sent it, which the caller has to verify.

    :ivar content_type: its ``Content-Type``, or ``None``.
    :ivar digest: the digest that the upstream states; ``None`` if it states none.
    """

    content: bytes = field(repr=False)
    content_type: str | None
    digest: Digest | None = None


@frozen
class UpstreamHead:
    """
    What an upstream says of a manifest by HEAD, which may be wrong: GET decides.

    :ivar media_type: in lower case, without parameters; ``None`` if the upstream states none.
    :ivar size: in bytes; ``None`` if the upstream states none.
    """

    digest: Digest
    media_type: str | None = None
    size: int | None = None


@frozen
class UpstreamBlob:
    """
    A blob that an upstream has.

    :ivar size: in bytes; ``None`` if the upstream states none.
    """

    size: int | None


@frozen
class UpstreamPage:
    """
    One page of a list.

    :ivar body: the JSON document, as sent.
    :ivar next: the query parameters of the ``Link`` to the next page; ``None`` on the last one.
    :ivar filtered: the value of ``OCI-Filters-Applied``, or ``None``.
    """

    body: bytes = field(repr=False)
    next: Mapping[str, str] | None = None
    filtered: str | None = None


class BlobBody(Protocol):
    """
    The body of a blob, or of a range of it, whose headers have come.

    Either :meth:`deliver_to` or :meth:`abort` has to be called.

    :ivar first: offset in the blob of the first byte that comes: as asked for, or 0 if the upstream
        ignores ranges or the validator does not match any more.
    :ivar length: bytes that come; ``None`` if the upstream doesn't say.
    :ivar size: bytes of the whole blob; ``None`` if the upstream doesn't say.
    :ivar validator: a strong entity tag (with its quotes) for ``If-Range``, or ``None``.
    :ivar host: the host that sends the body, to which the last redirect led.
    """

    first: int
    length: int | None
    size: int | None
    validator: str | None
    host: str

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """
        Deliver the body to ``consumer``, which may pause it; fires with the number of bytes.

        Cancelling it closes the connection, as does the consumer by ``stopProducing``.

        :raises EndedByClosing: if only the digest can tell whether that was the end.
        :raises Unreachable: if the upstream breaks off before the end.
        :raises TimedOut: if nothing comes for the idle timeout while the consumer takes bytes.
        """

    def abort(self) -> None:
        """Close the connection instead of reading the body."""


@frozen
class UpstreamState:
    """
    How an upstream does, as far as the requests before tell.

    :ivar host: the host that is asked.
    :ivar trouble: why it is not asked at present, or asked on trial; empty if it is well.
    :ivar pause: seconds until it is asked again after failures; 0: it is now.
    :ivar throttled: seconds for which it wants to be asked nothing of some kind (429); 0: it does
        not.
    :ivar remaining: the share of its rate limit that is left, 0 to 1; ``None``: it tells none.
    """

    host: str
    trouble: str
    pause: float
    throttled: float
    remaining: float | None


class Upstream(Protocol):
    """
    Another registry.  ``image`` is always the name there (``library/alpine``), without the prefix
    of the settings, which the implementation adds.

    All methods raise :class:`artifactd.upstream.http.errors.UpstreamError` and nothing else, after
    the retries that make sense.

    :ivar name: the name of its repository, for logs.
    """

    name: str

    async def manifest(self, image: str, reference: Reference) -> UpstreamManifest:
        """
        Get a manifest, with all media types that artifactd knows in ``Accept``.

        :raises Unreachable: also if it has more bytes than a manifest may have.
        """  # end-3

    async def manifest_head(
        self, image: str, reference: Reference, known: Digest | None
    ) -> UpstreamHead | None:
        """
        Ask by HEAD which manifest ``reference`` is at the upstream now.

        :param known: the cached digest, sent as ``If-None-Match``, and returned alone after a 304.
        :returns: ``None`` if only GET can tell: the upstream refuses HEAD with whatever status, or
            answers it without a digest or with what is no manifest.
        """  # end-3

    async def blob(self, image: str, digest: Digest, size: int | None = None) -> UpstreamBlob:
        """
        Ask whether the upstream has a blob, and how large it is: by HEAD, and by GET of one byte
        where the upstream refuses HEAD with whatever status, or answers it with what is no blob,
        without a length, or with another than ``size``.

        :param size: the bytes that the blob is known to have, or ``None``.
        :raises Unreachable: also if GET is answered with a page for people.
        """  # end-2

    async def open_blob(
        self,
        image: str,
        digest: Digest,
        first: int = 0,
        last: int | None = None,
        validator: str | None = None,
    ) -> BlobBody:
        """
        Get bytes ``first`` to ``last`` (inclusive; ``None``: to the end) of a blob.

        Without ``first`` and ``last`` no ``Range`` is sent.

        :param validator: sent as ``If-Range``.
        :raises RangeRefused: if the blob has no such bytes.
        """  # end-2

    async def tags(self, image: str, query: Mapping[str, str]) -> UpstreamPage:
        """List tags; ``query`` has ``n`` and ``last``, or the last page's ``next``."""  # end-8

    async def referrers(
        self, image: str, subject: Digest, query: Mapping[str, str]
    ) -> UpstreamPage:
        """
        List the referrers of ``subject``; ``query`` has ``artifactType``, or the last page's
        ``next``.

        :raises Missing: also if the upstream does not know this endpoint.
        """  # end-12

    def frugality(self) -> float:
        """
        Return the factor, at least 1, by which tags stay fresh for longer as the requests that the
        upstream's rate limit leaves (``RateLimit-Remaining``) run out (docs/pull-through.md).
        """


class UpstreamWatch(Protocol):
    """Counts the traffic with an upstream, for metrics."""

    def received(self, count: int) -> None:
        """Count ``count`` bytes of bodies of blobs and manifests."""

    def requested(self, method: str, status: int | None, image: str) -> None:
        """
        Count a request by the status of its answer; ``None``: no answer came.

        :param image: the name, at the upstream, of the image that it is about; ``""``: none.
        """

    def down(self, reason: str) -> None:
        """Note that a host does not answer, and is not asked for a while; ``reason`` names it."""
