"""The Registry V2 API: distribution-spec, "Endpoints".  Routes parse, call, and answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

from attrs import define
from klein import Klein

from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.errors import ChunkOutOfOrder, DigestInvalid, QueryInvalid
from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.name import Tag, parse_reference
from artifactd.oci.ranges import ByteRange, parse_content_range, parse_range
from artifactd.registry.health import Health
from artifactd.registry.registry import Registry, Target
from artifactd.web.answer import Answer
from artifactd.web.conditional import not_modified, precondition, range_applies
from artifactd.web.contents import content_answer
from artifactd.web.headers import blob_headers, content_headers, header, upload_headers
from artifactd.web.lists import list_answer
from artifactd.web.query import Page, link_to_next, parameter, parameters
from artifactd.web.referrers import referrers_page
from artifactd.web.request import RegistryRequest
from artifactd.web.routing import new_app, route
from artifactd.web.sendfile import FileSender

# Bytes that the transfer buffers have at least, so that acquiring them can't fail.
_LEAST_BUDGET = 4 << 20


@define(slots=False)  # Klein hangs the bound app onto the instance
class Api:
    """
    Every endpoint of the spec.

    :param max_manifest: bytes of a manifest at most; beyond it 413.
    :param min_chunk: bytes, told as ``OCI-Chunk-Min-Length``; 0: not told.
    """

    registry: Registry
    sender: FileSender
    health: Health
    max_manifest: int
    min_chunk: int

    app: ClassVar[Klein] = new_app()

    # -- the daemon itself

    @route(app, "/healthz", "GET")
    async def healthz(self, request: RegistryRequest) -> Answer:
        """200 while the process answers at all."""
        return Answer.json({"status": "ok"})

    @route(app, "/readyz", "GET")
    async def readyz(self, request: RegistryRequest) -> Answer:
        """200 while the store takes bytes and the catalog answers, otherwise 503."""
        await self.health.check()
        return Answer.json({"status": "ok"})

    # -- end-1 and the list of images

    @route(app, "/v2/", "GET")
    async def version(self, request: RegistryRequest) -> Answer:
        """end-1: says that the spec is implemented here."""
        return Answer.json({})

    @route(app, "/v2/_catalog", "GET")
    async def images(self, request: RegistryRequest) -> Answer:
        """The images there are, in pages; not in the OCI spec, but in Docker's."""
        page = Page.of(request)
        names = await self.registry.images(page.after or "", page.limit + 1)
        return list_answer({"repositories": names[: page.limit]}, "/v2/_catalog", names, page)

    # -- blobs

    @route(app, "/v2/<name:name>/blobs/<digest>", "GET")
    async def get_blob(self, request: RegistryRequest, target: Target, digest: str) -> Answer:
        """end-2, GET and HEAD, ranges included."""
        parsed = Digest.parse(digest)
        size = await target.repository.blob_size(target.image, parsed)
        headers = {**content_headers("application/octet-stream", parsed), "Accept-Ranges": "bytes"}
        if not_modified(request, headers["ETag"]):
            return Answer(304, headers)
        if request.method == b"HEAD":
            return Answer(200, headers, length=size)
        span, status = ByteRange(0, size - 1), 200
        wanted = header(request, "Range")
        if wanted is not None and range_applies(request, headers["ETag"]):
            part = parse_range(wanted, size)
            if part is not None:
                span, status = part, 206
                headers["Content-Range"] = f"bytes {part.first}-{part.last}/{size}"
        return await content_answer(target, parsed, size, span, status, headers)

    @route(app, "/v2/<name:name>/blobs/<digest>", "DELETE")
    async def delete_blob(self, request: RegistryRequest, target: Target, digest: str) -> Answer:
        """end-10."""
        await target.repository.delete_blob(target.image, Digest.parse(digest))
        return Answer(202)

    # -- uploads

    @route(app, "/v2/<name:name>/blobs/uploads/", "POST")
    async def start_upload(self, request: RegistryRequest, target: Target) -> Answer:
        """end-4a to end-4c, end-11."""
        mount, pushed = parameter(request, "mount"), parameter(request, "digest")
        if mount is not None:
            digest = Digest.parse(mount)
            if await self.registry.mount(target.image, digest, parameter(request, "from")):
                return Answer(201, blob_headers(target, digest))
        elif pushed is not None:
            return await self._push(request, target, pushed)
        algorithm = Algorithm.parse(parameter(request, "digest-algorithm") or Algorithm.SHA256)
        upload_id = await self.registry.uploads.start(target.image, algorithm)
        headers = upload_headers(target, upload_id, 0)
        if self.min_chunk:
            headers["OCI-Chunk-Min-Length"] = str(self.min_chunk)
        return Answer(202, headers)

    @route(app, "/v2/<name:name>/blobs/uploads/", "PUT")
    async def put_blob(self, request: RegistryRequest, target: Target) -> Answer:
        """A whole blob without a session, as end-4b by another method."""
        return await self._push(request, target, parameter(request, "digest"))

    async def _push(self, request: RegistryRequest, target: Target, digest: str | None) -> Answer:
        parsed = _required_digest(digest)
        await self.registry.uploads.push(target.image, parsed, request.body)
        return Answer(201, blob_headers(target, parsed))

    @route(app, "/v2/<name:name>/blobs/uploads/<upload_id>", "PATCH")
    async def append(self, request: RegistryRequest, target: Target, upload_id: str) -> Answer:
        """end-5."""
        try:
            offset = await self.registry.uploads.append(
                target.image, upload_id, _chunk(request), request.body
            )
        except ChunkOutOfOrder as error:
            error.headers.update(upload_headers(target, upload_id, error.offset))
            raise
        return Answer(202, upload_headers(target, upload_id, offset))

    @route(app, "/v2/<name:name>/blobs/uploads/<upload_id>", "PUT")
    async def close_upload(
        self, request: RegistryRequest, target: Target, upload_id: str
    ) -> Answer:
        """end-6."""
        digest = _required_digest(parameter(request, "digest"))
        try:
            await self.registry.uploads.close(
                target.image, upload_id, digest, _chunk(request), request.body
            )
        except ChunkOutOfOrder as error:
            error.headers.update(upload_headers(target, upload_id, error.offset))
            raise
        return Answer(201, blob_headers(target, digest))

    @route(app, "/v2/<name:name>/blobs/uploads/<upload_id>", "GET")
    async def upload_status(
        self, request: RegistryRequest, target: Target, upload_id: str
    ) -> Answer:
        """end-13."""
        offset = await self.registry.uploads.offset(target.image, upload_id)
        return Answer(204, upload_headers(target, upload_id, offset))

    @route(app, "/v2/<name:name>/blobs/uploads/<upload_id>", "DELETE")
    async def cancel_upload(
        self, request: RegistryRequest, target: Target, upload_id: str
    ) -> Answer:
        """end-14."""
        await self.registry.uploads.cancel(target.image, upload_id)
        return Answer(204)

    # -- manifests

    @route(app, "/v2/<name:name>/manifests/<reference>", "GET")
    async def get_manifest(
        self, request: RegistryRequest, target: Target, reference: str
    ) -> Answer:
        """end-3, GET and HEAD."""
        parsed = parse_reference(reference)
        record = await target.repository.manifest(target.image, parsed)
        headers = content_headers(record.media_type, record.digest)
        if isinstance(parsed, Tag):
            headers["Cache-Control"] = "no-cache"
        if not_modified(request, headers["ETag"]):
            return Answer(304, headers)
        if request.method == b"HEAD":
            return Answer(200, headers, length=record.size)
        span = ByteRange(0, record.size - 1)
        return await content_answer(target, record.digest, record.size, span, 200, headers)

    @route(app, "/v2/<name:name>/manifests/<reference>", "PUT")
    async def put_manifest(
        self, request: RegistryRequest, target: Target, reference: str
    ) -> Answer:
        """end-7a, end-7b."""
        parsed = parse_reference(reference)
        tags = [Tag.parse(tag) for tag in dict.fromkeys(parameters(request, "tag"))]
        if tags and isinstance(parsed, Tag):
            raise QueryInvalid("tag parameters need a digest in the path, not a tag")
        async with self._buffered(request):
            manifest = await target.repository.put_manifest(
                target.image,
                parsed,
                tags,
                await request.body.read(self.max_manifest) if request.body else b"",
                header(request, "Content-Type"),
                precondition(request),
                _actor(request),
            )
        headers = {
            "Location": f"{target.path}/manifests/{parsed}",
            "Docker-Content-Digest": str(manifest.digest),
        }
        if manifest.subject is not None:
            headers["OCI-Subject"] = str(manifest.subject)
        if tags:
            headers["OCI-Tag"] = ", ".join(map(str, tags))
        return Answer(201, headers)

    @asynccontextmanager
    async def _buffered(self, request: RegistryRequest) -> AsyncIterator[None]:
        """Take what a body may need in memory out of the transfer buffers, before it is read."""
        declared = request.body.length if request.body else 0
        size = min(self.max_manifest if declared is None else declared, _LEAST_BUDGET)
        await self.sender.budget.acquire(size)
        try:
            yield
        finally:
            self.sender.budget.release(size)

    @route(app, "/v2/<name:name>/manifests/<reference>", "DELETE")
    async def delete_manifest(
        self, request: RegistryRequest, target: Target, reference: str
    ) -> Answer:
        """end-9."""
        await target.repository.delete_manifest(
            target.image, parse_reference(reference), _actor(request)
        )
        return Answer(202)

    # -- lists

    @route(app, "/v2/<name:name>/tags/list", "GET")
    async def tags(self, request: RegistryRequest, target: Target) -> Answer:
        """end-8a, end-8b."""
        page = Page.of(request)
        tags = await target.repository.tags(target.image, page.after, page.limit + 1)
        document = {"name": str(target.name), "tags": tags[: page.limit]}
        return list_answer(document, f"{target.path}/tags/list", tags, page)

    @route(app, "/v2/<name:name>/referrers/<digest>", "GET")
    async def referrers(self, request: RegistryRequest, target: Target, digest: str) -> Answer:
        """end-12a, end-12b."""
        subject = Digest.parse(digest)
        artifact_type = parameter(request, "artifactType") or None
        page = Page.of(request, most=1000)
        records = await target.repository.referrers(
            target.image, subject, artifact_type, page.after, page.limit + 1
        )
        index, last = referrers_page(records, page.limit)
        headers = {"Content-Type": OCI_INDEX}
        if artifact_type is not None:
            headers["OCI-Filters-Applied"] = "artifactType"
        if last is not None:
            headers["Link"] = link_to_next(
                f"{target.path}/referrers/{subject}",
                n=parameter(request, "n"),
                last=last,
                artifactType=artifact_type,
            )
        return Answer(200, headers, index)


def _actor(request: RegistryRequest) -> str:
    """Who is asking, for the journal: a name once there is one, and the address."""
    return f"{request.actor}@{getattr(request.client, 'host', 'unix')}"


def _chunk(request: RegistryRequest) -> ByteRange | None:
    value = header(request, "Content-Range")
    return None if value is None else parse_content_range(value)


def _required_digest(text: str | None) -> Digest:
    if text is None:
        raise DigestInvalid("the digest of the whole blob is missing: add ?digest=<digest>")
    return Digest.parse(text)
