"""What a route answers, as a value; and how it gets to the client."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from attrs import define, field
from twisted.web import resource, server

from artifactd import __version__
from artifactd.oci.errors import RegistryError, Unavailable
from artifactd.oci.ranges import ByteRange
from artifactd.registry.model import BlobFound
from artifactd.store.blobs import OpenBlob
from artifactd.web.fields import link_to_next
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.sendfile import FileSender

_SERVER = f"artifactd/{__version__}".encode()


@define
class Answer:
    """
    A response.

    :ivar length: the ``Content-Length`` in bytes where it is not that of ``body`` (HEAD); a HEAD
        with neither is answered without.
    :ivar blob: sent instead of ``body``: its bytes ``span``, as they become available; ``None``:
        all of them, also where nobody knows yet how many that are.  Owned by the answer.
    """

    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""
    length: int | None = None
    blob: OpenBlob | None = None
    span: ByteRange | None = None

    @classmethod
    def json(cls, document: object, headers: Mapping[str, str] | None = None) -> Answer:
        """200 with a JSON body."""
        return cls(
            headers={"Content-Type": "application/json", **(headers or {})},
            body=msgspec.json.encode(document),
        )

    @classmethod
    def error(cls, error: RegistryError) -> Answer:
        """The spec's JSON for ``error``."""
        return cls(
            status=error.status,
            headers={"Content-Type": "application/json", **error.headers},
            body=error.body(),
        )

    def close(self) -> None:
        """Give up what has not been sent."""
        if self.blob is not None:
            self.blob.close()

    async def send(self, request: RegistryRequest, sender: FileSender) -> None:
        """Write all of it but the finish, which is Klein's."""
        if self.blob is None:
            self.write(request)
            return
        self._write_head(request)
        if self.span is None:
            await sender.send(request, self.blob, 0, None)
        else:
            await sender.send(request, self.blob, self.span.first, self.span.length)

    def write(self, request: RegistryRequest) -> None:
        """Write an answer without a blob; the finish is the caller's."""
        self._write_head(request)
        head = request.method == b"HEAD"
        length = self.length
        if length is None and (self.body or not head):
            length = len(self.body)
        if length is not None and self.status not in (204, 304):
            request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % length])
        request.write(b"" if head else self.body)

    def _write_head(self, request: RegistryRequest) -> None:
        request.setResponseCode(self.status)
        headers = request.responseHeaders
        headers.setRawHeaders(b"Server", [_SERVER])
        headers.setRawHeaders(b"Docker-Distribution-Api-Version", [b"registry/2.0"])
        if request.sees_cache:
            headers.setRawHeaders(b"Cache-Status", [b"artifactd"])
        for name, value in self.headers.items():
            headers.setRawHeaders(name, [value])
        if request.sees_cache:
            # What it took tells what was looked up.
            headers.addRawHeader(b"Server-Timing", b"total;dur=%.1f" % (request.elapsed * 1000))


# The bytes of a manifest or a blob as an answer.


def body_answer(body: OpenBlob | bytes, size: int | None, headers: dict[str, str]) -> Answer:
    """All of ``body``; ``size`` in bytes, ``None`` as long as nobody knows."""
    if isinstance(body, bytes):
        return Answer(200, headers, body)
    span = None if size is None else ByteRange(0, size - 1)
    return Answer(200, headers, blob=body, span=span)


def blob_answer(found: BlobFound, headers: dict[str, str]) -> Answer:
    """What was found of a blob: all of it, or (206) the part that was asked for."""
    if found.body is None:
        return Answer(200, headers, length=found.size)
    span = found.span
    if span is None:
        return body_answer(found.body, found.size, headers)
    headers["Content-Range"] = f"bytes {span.first}-{span.last}/{found.size}"
    if isinstance(found.body, bytes):
        return Answer(206, headers, found.body)
    return Answer(206, headers, blob=found.body, span=span)


# A page of a list as an answer.


def list_answer(
    document: Mapping[str, object],
    path: str,
    following: Mapping[str, str] | None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One page; ``following`` is the query of the next one."""
    answer_headers = dict(headers or {})
    if following is not None:
        answer_headers["Link"] = link_to_next(path, following)
    return Answer.json(document, answer_headers)


class Refusal(resource.Resource):
    """Answers every request with the same error."""

    isLeaf = True

    def __init__(self, error: RegistryError) -> None:
        super().__init__()
        self._error = error

    def render(self, request: server.Request) -> int:
        assert isinstance(request, RegistryRequest)
        Answer.error(self._error).write(request)
        request.finish()
        return server.NOT_DONE_YET


def stopping() -> Refusal:
    """Answers the requests that come while the daemon stops."""
    return Refusal(
        Unavailable(
            "the registry is being stopped: try again in a moment", None, {"Retry-After": "10"}
        )
    )
