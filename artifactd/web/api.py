"""The Registry V2 API: distribution-spec, "Endpoints"."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar

from attrs import define, field
from klein import Klein

from artifactd.auth.identity import Kind
from artifactd.auth.rules import Uncounted
from artifactd.auth.token_service import TokenService
from artifactd.catalog.events import LONGEST, Requester, RequestTold
from artifactd.oci.errors import (
    ChunkOutOfOrder,
    ManifestUnknown,
    NameUnknown,
    QueryInvalid,
    RegistryError,
)
from artifactd.oci.manifest import MEDIA_TYPE_LENGTH, OCI_INDEX
from artifactd.oci.names import Algorithm, Digest, ImageName, Reference, Tag, parse_reference
from artifactd.oci.ranges import ByteRange
from artifactd.registry.local import index_of
from artifactd.registry.metrics import CONTENT_TYPE
from artifactd.registry.model import LOCAL
from artifactd.registry.pulls import Pulls
from artifactd.registry.registry import Target
from artifactd.settings.access import Action
from artifactd.web.answer import (
    Answer,
    blob_answer,
    blob_headers,
    body_answer,
    content_headers,
    etag,
    link_to_next,
    list_answer,
    not_modified,
    provenance_headers,
    upload_headers,
)
from artifactd.web.audit import Change
from artifactd.web.fields import (
    blob_wanted,
    content_range,
    header,
    list_wanted,
    location_offset,
    parameter,
    parameters,
    precondition,
    required_digest,
)
from artifactd.web.gate import Need
from artifactd.web.routing import Routed, new_app, route
from artifactd.web.server.body import ManifestBodies
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.proxies import owner_of
from artifactd.web.status import WholeDaemon
from artifactd.web.token import answer_get, answer_post


@define(slots=False)  # as its base
class OperationsApi(Routed):
    """
    The endpoints about the registry itself: health, metrics, version and tokens.

    :param scrape: returns the metrics in Prometheus' text format.
    :param service: gives tokens; ``None``: there is no token service.
    """

    daemon: WholeDaemon
    scrape: Callable[[], Awaitable[bytes]]
    service: TokenService | None = field(kw_only=True)

    app: ClassVar[Klein] = new_app()

    @route(app, "/healthz", "GET", needs=Need.NOTHING)
    async def healthz(self, request: RegistryRequest) -> Answer:
        """200 while the process answers at all."""
        return Answer.json({"status": "ok"})

    @route(app, "/readyz", "GET", needs=Need.NOTHING)
    async def readyz(self, request: RegistryRequest) -> Answer:
        """
        200 while the store takes bytes and the catalog answers, in all processes of the daemon;
        otherwise 503.

        Also 200 in the read-only mode: pulls are still answered, so load balancers should stay.
        """
        await self.daemon.check()
        mode = {"mode": "read-only"} if self.gate.read_only() else {}
        return Answer.json({"status": "ok", **mode})

    @route(app, "/metrics", "GET", needs=Need.METRICS)
    async def metrics(self, request: RegistryRequest) -> Answer:
        """The metrics, in Prometheus' text format."""
        return Answer(headers={"Content-Type": CONTENT_TYPE}, body=await self.scrape())

    @route(app, "/status", "GET", needs=Need.STATUS)
    async def status(self, request: RegistryRequest) -> Answer:
        """What the daemon does now: its requests, the longest first, fills and upstreams."""
        return Answer.json(await self.daemon.status(request), {"Cache-Control": "no-store"})

    @route(app, "/v2/", "GET", needs=Need.IDENTITY)
    async def version(self, request: RegistryRequest) -> Answer:
        """Say that the distribution-spec is implemented here."""  # end-1
        return Answer.json({})

    @route(app, "/token", "GET", needs=Need.TOKEN)
    async def token(self, request: RegistryRequest) -> Answer:
        """Give a token for the caller: registry-auth-token, "Requesting a Token"."""
        return await answer_get(self._service(), request, request.caller)

    @route(app, "/token", "POST", needs=Need.TOKEN)
    async def token_by_form(self, request: RegistryRequest) -> Answer:
        """Give a token for the login in a form: registry-auth-oauth, "Getting a token"."""
        return await answer_post(self._service(), request, request.address)

    def _service(self) -> TokenService:
        if self.service is None:
            raise NameUnknown("no tokens are given here: log in by Basic")
        return self.service


# One app for the routes of both classes.
app = OperationsApi.app


@define(slots=False)  # as its base
class Api(OperationsApi):
    """
    All endpoints: those of the spec about images, and those of :class:`OperationsApi`.

    :param manifests: reads the manifests that are pushed.
    :param pulls: is told of the pulls of images that were pushed here.
    :param uncounted: tells those that don't count.
    :param min_chunk: bytes, sent as ``OCI-Chunk-Min-Length``; 0: not sent.
    """

    manifests: ManifestBodies
    pulls: Pulls
    uncounted: Uncounted
    min_chunk: int

    # -- the list of images

    @route(app, "/v2/_catalog", "GET", needs=Need.CATALOG)
    async def images(self, request: RegistryRequest) -> Answer:
        """List the images, in pages."""  # not in the OCI spec, but in Docker's
        wanted = list_wanted(request)
        names = await self.registry.images(
            wanted.after or "",
            wanted.limit + 1,
            self.gate.listed(request),
            self.gate.asker(request),
        )
        if not names:
            self.gate.nothing_listed(request)
        shown, following = names[: wanted.limit], None
        if shown and len(names) > len(shown):
            following = {"n": str(wanted.limit), "last": shown[-1]}
        return list_answer({"repositories": shown}, "/v2/_catalog", following)

    # -- blobs

    @route(app, "/v2/<name:name>/blobs/<digest>", "GET", needs=Action.PULL)
    async def get_blob(self, request: RegistryRequest, target: Target, digest: str) -> Answer:
        """Answer a GET or HEAD of a blob, or of a range of it."""  # end-2
        parsed = Digest.parse(digest)
        tag = etag(parsed)
        unchanged = not_modified(request, tag)
        found = await target.readable.blob(
            target.image, parsed, blob_wanted(request, tag, head=unchanged)
        )
        headers = {
            **content_headers("application/octet-stream", parsed),
            **provenance_headers(found.provenance),
            "Accept-Ranges": "bytes",
        }
        answer = Answer(304, headers) if unchanged else blob_answer(found, headers)
        answer.repeatable = found.provenance is LOCAL
        return answer

    @route(app, "/v2/<name:name>/blobs/<digest>", "DELETE", needs=Action.DELETE)
    async def delete_blob(self, request: RegistryRequest, target: Target, digest: str) -> Answer:
        """Delete a blob from one image."""  # end-10
        parsed = Digest.parse(digest)
        await target.local.delete_blob(target.image, parsed, actor_of(request))
        return Answer(202, changes=[Change(digest=parsed)])

    # -- uploads

    @route(app, "/v2/<name:name>/blobs/uploads/", "POST", needs=Action.CREATE)
    async def start_upload(self, request: RegistryRequest, target: Target) -> Answer:
        """Open an upload session, mount, or push in one request."""  # end-4, end-11
        mount = parameter(request, "mount")
        algorithm = Algorithm.parse(parameter(request, "digest-algorithm") or Algorithm.SHA256)
        if mount:
            digest = Digest.parse(mount)
            source = parameter(request, "from")
            permitted = self.gate.may_pull(request, source or "")
            asker = self.gate.asker(request)
            if await self.registry.mount(target.pushed, digest, source, permitted, asker):
                return Answer(201, blob_headers(target, digest))
        elif parameter(request, "digest") is not None:
            whole = required_digest(request)
            body = request.body
            empty = body is None or body.length == 0
            if not empty or whole == Digest.of(b"", whole.algorithm):
                return await self._push(request, target)
            # The client tells the digest, but sends the bytes by a session, as ollama does.
            algorithm = whole.algorithm
        owner = owner_of(request.caller.identity, request.address)
        upload_id = await self.registry.uploads.start(target.pushed, algorithm, owner)
        headers = upload_headers(target, upload_id, 0)
        if self.min_chunk:
            headers["OCI-Chunk-Min-Length"] = str(self.min_chunk)
        return Answer(202, headers)

    @route(app, "/v2/<name:name>/blobs/uploads/", "PUT", needs=Action.CREATE)
    async def put_blob(self, request: RegistryRequest, target: Target) -> Answer:
        """Push a whole blob without a session."""  # end-4b, by another method
        return await self._push(request, target)

    async def _push(self, request: RegistryRequest, target: Target) -> Answer:
        parsed = required_digest(request)
        await self.registry.uploads.push(target.pushed, parsed, request.body)
        return Answer(201, blob_headers(target, parsed))

    @route(app, "/v2/<name:name>/blobs/uploads/<upload_id>", "PATCH", needs=Action.CREATE)
    async def append(self, request: RegistryRequest, target: Target, upload_id: str) -> Answer:
        """Append a chunk to an upload session."""  # end-5
        try:
            offset = await self.registry.uploads.append(
                target.pushed,
                upload_id,
                content_range(request),
                request.body,
                location_offset(request),
            )
        except ChunkOutOfOrder as error:
            error.headers.update(upload_headers(target, upload_id, error.offset))
            raise
        return Answer(202, upload_headers(target, upload_id, offset))

    @route(app, "/v2/<name:name>/blobs/uploads/<upload_id>", "PUT", needs=Action.CREATE)
    async def close_upload(
        self, request: RegistryRequest, target: Target, upload_id: str
    ) -> Answer:
        """Close an upload session, with or without a last chunk."""  # end-6
        digest = required_digest(request)
        try:
            await self.registry.uploads.close(
                target.pushed,
                upload_id,
                digest,
                content_range(request),
                request.body,
                location_offset(request),
            )
        except ChunkOutOfOrder as error:
            error.headers.update(upload_headers(target, upload_id, error.offset))
            raise
        return Answer(201, blob_headers(target, digest))

    @route(app, "/v2/<name:name>/blobs/uploads/<upload_id>", "GET", needs=Action.CREATE)
    async def upload_status(
        self, request: RegistryRequest, target: Target, upload_id: str
    ) -> Answer:
        """Tell how many bytes an upload session has."""  # end-13
        offset = await self.registry.uploads.offset(target.pushed, upload_id)
        return Answer(204, upload_headers(target, upload_id, offset))

    @route(app, "/v2/<name:name>/blobs/uploads/<upload_id>", "DELETE", needs=Action.CREATE)
    async def cancel_upload(
        self, request: RegistryRequest, target: Target, upload_id: str
    ) -> Answer:
        """Cancel an upload session."""  # end-14
        await self.registry.uploads.cancel(target.pushed, upload_id)
        return Answer(204)

    # -- manifests

    @route(app, "/v2/<name:name>/manifests/<reference>", "GET", needs=Action.PULL)
    async def get_manifest(
        self, request: RegistryRequest, target: Target, reference: str
    ) -> Answer:
        """Answer a GET or HEAD of a manifest, by tag or digest."""  # end-3
        parsed = parse_reference(reference)
        head = request.method == b"HEAD"
        found = await target.readable.manifest_for(
            target.image, parsed, partial(self.gate.may_push, request, target), head=head
        )
        record = found.record
        # The hot answers that follow one that was noted come within the same hour.
        is_pull = not head and found.provenance is LOCAL
        if is_pull and (found.image, parsed) not in self.pulls.noted:
            await self._note_pull(request, found.image, parsed)
        headers = content_headers(record.media_type, record.digest)
        headers |= provenance_headers(found.provenance)
        if isinstance(parsed, Tag) and found.provenance.verified:
            headers["Cache-Control"] = "no-cache"
        if not_modified(request, headers["ETag"]):
            return Answer(304, headers)
        if head:
            answer = Answer(200, headers, length=record.size)
        else:
            body = await target.readable.body(found)
            answer = body_answer(body, ByteRange(0, record.size - 1), headers)
        answer.repeatable = found.provenance is LOCAL
        return answer

    async def _note_pull(
        self, request: RegistryRequest, image: ImageName, reference: Reference
    ) -> None:
        """:raises ManifestUnknown: if the tag or manifest has gone since it was found."""
        agent = request.requestHeaders.getRawHeaders("User-Agent", [""])[0]
        if self.uncounted(request.caller.identity, agent):
            return
        if not await self.pulls.note(image, reference):
            raise ManifestUnknown(
                "this image has no such manifest any more", {"reference": str(reference)}
            )

    @route(app, "/v2/<name:name>/manifests/<reference>", "PUT", needs=Action.CREATE)
    async def put_manifest(
        self, request: RegistryRequest, target: Target, reference: str
    ) -> Answer:
        """Push a manifest, by tag or digest."""  # end-7a, end-7b
        parsed = parse_reference(reference)
        tags = [Tag.parse(tag) for tag in dict.fromkeys(parameters(request, "tag"))]
        if tags and isinstance(parsed, Tag):
            raise QueryInvalid("tag parameters need a digest in the path, not a tag")
        async with self.manifests.read(request, request.owner) as content:
            manifest, before = await self.registry.put_manifest(
                target,
                parsed,
                tags,
                content,
                header(request, "Content-Type"),
                precondition(request),
                actor_of(request),
                self.gate.create_only(request, target),
            )
        headers = {
            "Location": f"{target.path}/manifests/{parsed}",
            "Docker-Content-Digest": str(manifest.digest),
        }
        if manifest.subject is not None:
            headers["OCI-Subject"] = str(manifest.subject)
        if tags:
            headers["OCI-Tag"] = ", ".join(map(str, tags))
        digest, size = manifest.digest, manifest.total_size
        changes = [
            Change(digest=digest, size=size, tag=tag, before=earlier)
            for tag, earlier in before.items()
        ]
        return Answer(201, headers, changes=changes or [Change(digest=digest, size=size)])

    @route(app, "/v2/<name:name>/manifests/<reference>", "DELETE", needs=Action.DELETE)
    async def delete_manifest(
        self, request: RegistryRequest, target: Target, reference: str
    ) -> Answer:
        """Delete a manifest, or a tag alone."""  # end-9
        parsed = parse_reference(reference)
        digest = await target.local.delete_manifest(
            target.image, parsed, actor_of(request), precondition(request)
        )
        return Answer(202, changes=[deletion(parsed, digest)])

    # -- lists

    @route(app, "/v2/<name:name>/tags/list", "GET", needs=Action.PULL)
    async def tags(self, request: RegistryRequest, target: Target) -> Answer:
        """List the tags of an image, in pages."""  # end-8a, end-8b
        found = await target.readable.tags(target.image, list_wanted(request))
        answer = list_answer(
            {"name": str(target.name)},
            f"{target.path}/tags/list",
            target.following(found.next),
            provenance_headers(found.provenance),
            tags=found.tags,
        )
        answer.repeatable = found.provenance is LOCAL
        return answer

    @route(app, "/v2/<name:name>/referrers/<digest>", "GET", needs=Action.PULL)
    async def referrers(self, request: RegistryRequest, target: Target, digest: str) -> Answer:
        """List the referrers of a manifest as an index, in pages."""  # end-12a, end-12b
        subject = Digest.parse(digest)
        # A "+" that is not encoded means a space; a type of media has none, but often a "+".
        artifact_type = (parameter(request, "artifactType") or "").replace(" ", "+") or None
        if artifact_type is not None and len(artifact_type) > MEDIA_TYPE_LENGTH:
            raise QueryInvalid(f"artifactType has at most {MEDIA_TYPE_LENGTH} characters")
        found = await target.readable.referrers(
            target.image, subject, artifact_type, list_wanted(request, most=1000)
        )
        headers = {"Content-Type": OCI_INDEX, **provenance_headers(found.provenance)}
        if found.filtered:
            headers["OCI-Filters-Applied"] = "artifactType"
        following = target.following(found.next)
        if following is not None:
            headers["Link"] = link_to_next(f"{target.path}/referrers/{subject}", following)
        answer = Answer(200, headers, found.index)
        # Of a name that has none here, an upstream may tell some later.
        answer.repeatable = found.provenance is LOCAL and found.index != _NO_REFERRERS
        return answer


_NO_REFERRERS = index_of([])


def deletion(
    reference: Reference, digest: Digest | None, error: RegistryError | None = None
) -> Change:
    """
    What the audit log tells of a tag or manifest that is deleted, or was to be.

    :param digest: of its manifest; ``None``: it was damaged, or is not known.
    :param error: why it is not deleted; ``None``: it is.
    """
    if isinstance(reference, Tag):
        return Change(tag=reference, before=digest, error=error)
    return Change(digest=reference, error=error)


def actor_of(request: RegistryRequest) -> Requester:
    """Return the caller's name and address, for the journal of tags, and all about the request."""
    told = RequestTold(
        id=request.request_id,
        addr=request.address,
        host=(header(request, "Host") or "")[:LONGEST],
        method=request.method.decode("latin-1"),
        useragent=(header(request, "User-Agent") or "")[:LONGEST],
    )
    is_anonymous = request.caller.identity.kind is Kind.ANONYMOUS
    user = "" if is_anonymous else request.actor
    return Requester.of(f"{request.actor}@{request.address}", user, told)
