"""An answer as a value that can send itself, and the header fields that answers share."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import quote, urlencode

import msgspec
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.web import resource, server

from artifactd import __version__
from artifactd.oci.errors import RegistryError, Unavailable
from artifactd.oci.names import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.registry.content import InMemory
from artifactd.registry.model import LOCAL, BlobFound, Provenance
from artifactd.registry.registry import Target
from artifactd.store.blobs import OpenBlob
from artifactd.web.audit import Change
from artifactd.web.fields import OFFSET, entity_tags
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.sendfile import SMALL, FileSender

_ALWAYS = {
    "Server": f"artifactd/{__version__}",
    "Docker-Distribution-Api-Version": "registry/2.0",
}
_SEEING = {**_ALWAYS, "Cache-Status": "artifactd"}

# "immutable": what a digest names never changes (RFC 8246).
_FOR_EVER = "max-age=31536000, immutable"

_LOCAL = {"X-Artifact-Source": "local", "Cache-Status": "artifactd; hit"}

# The characters that a quoted string can't hold unescaped.
_UNQUOTED = re.compile(r"[^ !#-\[\]-~]")


@define
class Answer:
    """
    A response.

    :ivar length: the ``Content-Length`` in bytes where it is not that of ``body`` (HEAD); a HEAD
        with neither is answered without one.
    :ivar blob: sent instead of ``body``, as its bytes become available.  The answer owns it.
    :ivar span: the bytes of ``blob`` to send; ``None``: all, also if their number is not known yet.
    :ivar around: the bytes before and behind ``body``: a large body that several answers share is
        not copied before it is sent.
    :ivar again: makes an answer to the same request, so that a large ``body`` is not kept while it
        waits for memory; not for one with a blob.
    :ivar repeatable: whether the same request gets the same answer until a commit touches the
        image of its target.
    :ivar changes: the tags and manifests that the request has changed, for the audit log.
    :ivar shared: whether pages of the origins in the settings may read it.
    """

    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""
    around: tuple[bytes, bytes] | None = None
    length: int | None = None
    blob: OpenBlob | None = None
    span: ByteRange | None = None
    again: Callable[[], Awaitable[Answer]] | None = None
    repeatable: bool = False
    changes: Sequence[Change] = ()
    shared: bool = True

    @classmethod
    def json(cls, document: object, headers: Mapping[str, str] | None = None) -> Answer:
        """200 with a JSON body."""
        return cls(
            headers={"Content-Type": "application/json", **(headers or {})},
            body=msgspec.json.encode(document),
        )

    @classmethod
    def error(cls, error: RegistryError, *, sees_stored: bool = False) -> Answer:
        """
        The JSON of the spec for ``error``.

        :param sees_stored: whether the client may learn what is stored.
        """
        return cls(
            status=error.status,
            headers={"Content-Type": "application/json", **error.headers},
            body=error.body(sees_stored=sees_stored),
        )

    def close(self) -> None:
        """Close the blob of an answer that is not sent."""
        if self.blob is not None:
            self.blob.close()

    def send(
        self, request: RegistryRequest, sender: FileSender | None = None
    ) -> Deferred[bool] | None:
        """
        Write the answer; the caller finishes the request.

        :param sender: sends a blob, and a body of more than :data:`SMALL` bytes; other answers need
            none.
        :returns: fires when what ``sender`` sends is sent or the client is gone; with
            ``TooManyRequests``, before anything is written, if the client reads too few of its
            answers.
        """
        if sender is not None and len(self.body) > SMALL and request.method != b"HEAD":
            return Deferred.fromCoroutine(self._send_large(request, sender))
        if self.blob is not None:
            assert sender is not None
            return Deferred.fromCoroutine(self._send_blob(request, sender, self.blob))
        self._begin(request)
        head = request.method == b"HEAD"
        body = self.body if self.around is None else self.body.join(self.around)
        length = self.length
        if length is None and (body or not head):
            length = len(body)
        if length is not None and self.status not in (204, 304):
            request.set_fields({"Content-Length": str(length)})
        body = b"" if head else body
        if self.repeatable and self.status == 200:
            request.repeatable = body
        request.write(body)
        return None

    async def _send_blob(
        self, request: RegistryRequest, sender: FileSender, blob: OpenBlob
    ) -> bool:
        """Send a blob.  If it fails before the first byte, an error can be sent in its place."""
        first, length = (0, None) if self.span is None else (self.span.first, self.span.length)
        before = request.responseHeaders.copy()
        self._begin(request)
        try:
            return await sender.send(request, blob, first, length)
        except Exception:
            request.responseHeaders = before
            raise

    async def _send_large(self, request: RegistryRequest, sender: FileSender) -> bool:
        """Send a body that is not to be buffered whole by a connection that is not read."""
        size, again = len(self.body), None
        if self.again is not None and not sender.has_room(request, size):
            again, self.body = self.again, b""
        async with sender.room(request, size):
            answer = self if again is None else await again()
            answer._begin(request)
            before, behind = answer.around or (b"", b"")
            size = len(before) + len(answer.body) + len(behind)
            request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % size])
            request.write(before)
            sent = await sender.send(request, InMemory(answer.body), 0, len(answer.body))
            if sent:
                request.write(behind)
            return sent

    def _begin(self, request: RegistryRequest) -> None:
        """Set the status and the header fields."""
        request.setResponseCode(self.status)
        headers = request.responseHeaders
        request.set_fields(_SEEING if request.sees_cache else _ALWAYS)
        request.set_fields(self.headers)
        site = request.site
        if site.origin is not None and "Location" in self.headers:
            location = site.origin(request) + self.headers["Location"]
            headers.setRawHeaders(b"Location", [location.encode()])
        if site.cors is not None and self.shared:
            site.cors.allow(request)
        if request.is_personal and request.method in (b"GET", b"HEAD"):
            caching = self.headers.get("Cache-Control", "")
            if caching != "no-store":
                personal = f"private, {caching}" if caching else "private"
                headers.setRawHeaders(b"Cache-Control", [personal.encode()])
        if request.sees_cache:
            # The time of an answer tells whether its bytes were here, as Cache-Status does.
            headers.addRawHeader(b"Server-Timing", b"total;dur=%.1f" % (request.elapsed * 1000))


def etag(digest: Digest) -> str:
    """Return the entity tag of content with ``digest``: strong, since the bytes are the same."""
    return f'"{digest}"'


def content_headers(media_type: str, digest: Digest) -> dict[str, str]:
    """Return the header fields of content with ``digest``."""
    text = str(digest)
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": text,
        "ETag": f'"{text}"',
        "Cache-Control": _FOR_EVER,
    }


def provenance_headers(provenance: Provenance) -> dict[str, str]:
    """
    Return the header fields that tell where an answer comes from: ``Cache-Status`` (RFC 9211), the
    upstream's part of ``Server-Timing``, and ``Warning: 299`` if it is older than it should be.
    """
    if provenance is LOCAL:
        return _LOCAL
    headers = {
        "X-Artifact-Source": provenance.source,
        "Cache-Status": f"artifactd; {provenance.cache}",
    }
    if not provenance.verified:
        # A cache in front must not make a whole of such parts, nor of an answer that is cut off
        # because it turns out to be wrong (RFC 9111, 3.3 and 3.4).
        headers["Cache-Control"] = "no-store"
    if provenance.waited is not None:
        headers["Server-Timing"] = f"upstream;dur={provenance.waited * 1000:.1f}"
    if provenance.stale is not None:
        reason = _UNQUOTED.sub("", provenance.stale)[:200]
        headers["Warning"] = f'299 - "stale: {reason}"'
    return headers


def blob_headers(target: Target, digest: Digest) -> dict[str, str]:
    """Return the header fields of the answer to a blob's upload or mount."""
    return {"Location": f"{target.path}/blobs/{digest}", "Docker-Content-Digest": str(digest)}


def upload_headers(target: Target, upload_id: str, offset: int) -> dict[str, str]:
    """
    Return the header fields that tell the state of an upload session.

    ``Range`` has no way to say "nothing": an empty session answers ``0-0``, as Docker does.
    ``Location`` has the offset in its query, so that a body that is sent there twice is not
    appended twice.
    """
    return {
        "Location": f"{target.path}/blobs/uploads/{upload_id}?{OFFSET}={offset}",
        "Range": f"0-{max(offset - 1, 0)}",
        "Docker-Upload-UUID": upload_id.partition(".")[0],
    }


def not_modified(request: server.Request, current: str) -> bool:
    """Whether a read may be answered 304: ``If-None-Match`` has ``current`` (weak comparison)."""
    if not request.requestHeaders.hasHeader(b"If-None-Match"):
        return False
    tags = entity_tags(request, "If-None-Match")
    return bool(tags) and any(tag == "*" or tag.removeprefix("W/") == current for tag in tags or ())


def body_answer(
    body: OpenBlob, span: ByteRange | None, headers: dict[str, str], status: int = 200
) -> Answer:
    """Answer with the bytes ``span`` of ``body``, or all; bytes in memory need no file sender."""
    content = body.content
    if content is None:
        return Answer(status, headers, blob=body, span=span)
    body.close()
    return Answer(status, headers, content if span is None else content[span.first : span.last + 1])


def blob_answer(found: BlobFound, headers: dict[str, str]) -> Answer:
    """Answer with all of a blob, or (206) with the part that was asked for."""
    if found.body is None:
        return Answer(200, headers, length=found.size)
    if found.span is not None:
        span = found.span
        headers["Content-Range"] = f"bytes {span.first}-{span.last}/{found.size}"
        return body_answer(found.body, span, headers, 206)
    whole = None if found.size is None else ByteRange(0, found.size - 1)
    return body_answer(found.body, whole, headers)


def link_to_next(path: str, query: Mapping[str, str]) -> str:
    """Return the value of a ``Link`` header: RFC 8288, relation ``next``; a relative path."""
    return f'<{quote(path, safe="/:@")}?{urlencode(query)}>; rel="next"'


def list_answer(
    document: Mapping[str, object],
    path: str,
    following: Mapping[str, str] | None,
    headers: Mapping[str, str] | None = None,
    tags: bytes | None = None,
) -> Answer:
    """
    Answer with one page of a list.

    :param document: at least one member.
    :param following: the query of the next page.
    :param tags: the member ``tags``, in JSON already, if there is one.
    """
    answer_headers = dict(headers or {})
    if following is not None:
        answer_headers["Link"] = link_to_next(path, following)
    answer = Answer.json(document, answer_headers)
    if tags is not None:
        answer.around = answer.body[:-1] + b',"tags":', b"}"
        answer.body = tags
    return answer


class Refusal(resource.Resource):
    """Answers every request with the same error."""

    isLeaf = True

    def __init__(self, error: RegistryError) -> None:
        super().__init__()
        self._error = error

    def render(self, request: server.Request) -> int:
        assert isinstance(request, RegistryRequest)
        Answer.error(self._error).send(request)
        request.finish()
        return server.NOT_DONE_YET


def stopping() -> Refusal:
    """Make the resource that answers requests while the daemon stops."""
    return Refusal(
        Unavailable(
            "the registry is being stopped: try again in a moment", None, {"Retry-After": "10"}
        )
    )
