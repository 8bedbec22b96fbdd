"""The API for operators and their programs, ``/api/v1``: docs/api.md, and openapi.json beside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import msgspec
from attrs import define, field
from klein import Klein

from artifactd.auth.decisions import EVERY, decide
from artifactd.catalog.overview import TagOrder
from artifactd.kit.start import StartError
from artifactd.oci.errors import Denied, ManifestUnknown, QueryInvalid
from artifactd.oci.names import Digest, ImageName, Reference, Tag, parse_reference
from artifactd.registry.registry import Target
from artifactd.registry.seeing import PAGE, Page, found_in, instant
from artifactd.settings.access import Action
from artifactd.settings.settings import Settings
from artifactd.web.answer import Answer, link_to_next, not_modified
from artifactd.web.fields import parameter, precondition
from artifactd.web.gate import Need
from artifactd.web.operated import Operated
from artifactd.web.routing import new_app, route
from artifactd.web.server.protocol import RegistryRequest

_MOST = 1000  # entries of a page
_LIMIT = re.compile(r"[0-9]{1,9}")
_DOCUMENT = files("artifactd.web").joinpath("openapi.json").read_bytes()
_NO_STORE = {"Cache-Control": "no-store"}


@define(slots=False)  # as its base
class JsonApi(Operated):
    """The endpoints of ``/api/v1``."""

    settings: Settings = field(kw_only=True)

    app: ClassVar[Klein] = new_app()

    @route(app, "/api/v1/openapi.json", "GET", needs=Need.NOTHING)
    async def document(self, request: RegistryRequest) -> Answer:
        """Describe this API: OpenAPI 3.1."""
        return _conditional(request, _DOCUMENT)

    # -- lists of images and tags

    @route(app, "/api/v1/images", "GET", needs=Need.CATALOG)
    async def images(self, request: RegistryRequest) -> Answer:
        """List the images that the caller may pull, in pages."""
        page = await self.seeing.images(
            parameter(request, "after"),
            _limit(request),
            pattern=_pattern(request),
            prefix=parameter(request, "prefix") or "",
            shown=self.gate.listed(request),
            asker=self.gate.asker(request),
            sees_all=self.sees_all(request),
        )
        if not page.entries:
            self.gate.nothing_listed(request)
        return await self._page(request, "images", page)

    @route(app, "/api/v1/images/<name:name>/tags", "GET", needs=Action.PULL)
    async def tags(self, request: RegistryRequest, target: Target) -> Answer:
        """List the tags of an image, in pages."""
        order = parameter(request, "sort") or TagOrder.NAME
        if order not in tuple(TagOrder):
            raise QueryInvalid(f"sort must be one of {', '.join(TagOrder)}", {"sort": order[:100]})
        page = await self.seeing.tags(
            await self.readable(target),
            parameter(request, "after"),
            _limit(request),
            pattern=_pattern(request),
            order=TagOrder(order),
        )
        return await self._page(request, "tags", await self.told(request, page))

    # -- a tag

    @route(app, "/api/v1/images/<name:name>/tags/<reference>", "GET", needs=Action.PULL)
    async def tag(self, request: RegistryRequest, target: Target, reference: str) -> Answer:
        """Describe a tag.  The entity tag is the digest that it points at, for ``If-Match``."""
        seen = await self.seeing.tag(await self.readable(target), Tag.parse(reference))
        (shown,) = (await self.told(request, Page([seen], None))).entries
        return _conditional(request, msgspec.json.encode(shown), f'"{shown.digest}"')

    @route(app, "/api/v1/images/<name:name>/tags/<reference>", "PUT", needs=Action.CREATE)
    async def point_tag(self, request: RegistryRequest, target: Target, reference: str) -> Answer:
        """Point a tag at a manifest that the image has, or at the one it pointed at at a time."""
        tag, image = Tag.parse(reference), target.pushed
        digest, at = parameter(request, "digest"), parameter(request, "at")
        if (digest is None) == (at is None):
            raise QueryInvalid("say either digest or at: what the tag shall point at")
        if digest is not None:
            wanted = Digest.parse(digest)
        elif request.sees_stored:
            wanted = await self._pointed_at(image, tag, at or "")
        else:
            raise Denied("at takes the right pull, too: the answer tells what the tag pointed at")
        change = await self.point(request, target, tag, wanted, precondition(request))
        told: dict[str, object] = {"image": str(image), "tag": str(tag), "digest": str(wanted)}
        if request.sees_stored:
            told["before"] = None if change.before is None else str(change.before)
        answer = Answer.json(told, {"ETag": f'"{wanted}"', **_NO_STORE})
        answer.changes = [change]
        return answer

    async def _pointed_at(self, image: ImageName, tag: Tag, at: str) -> Digest:
        try:
            until = instant(at)
        except ValueError as error:
            raise QueryInvalid(f"at: {error}") from None
        digest = await self.registry.catalog.tag_at(image, tag, until)
        if digest is None:
            raise ManifestUnknown("the tag was not there at that time", {"tag": str(tag)})
        return digest

    @route(app, "/api/v1/images/<name:name>/tags/<reference>", "DELETE", needs=Action.DELETE)
    async def delete_tag(self, request: RegistryRequest, target: Target, reference: str) -> Answer:
        """Delete a tag; one of an upstream is evicted from the cache."""
        return await self._delete(request, target, Tag.parse(reference))

    # -- a manifest

    @route(app, "/api/v1/images/<name:name>/manifests/<reference>", "GET", needs=Action.PULL)
    async def manifest(self, request: RegistryRequest, target: Target, reference: str) -> Answer:
        """Describe a manifest as a tree, and what keeps it."""
        parsed = parse_reference(reference)
        image = await self.readable(target)
        shown = await self.seeing.manifest(image, parsed, sees_all=self.sees_all(request))
        return await self._answer(request, shown)

    @route(app, "/api/v1/images/<name:name>/manifests/<reference>", "DELETE", needs=Action.DELETE)
    async def delete_manifest(
        self, request: RegistryRequest, target: Target, reference: str
    ) -> Answer:
        """Delete a manifest and its tags; one of an upstream is evicted from the cache."""
        return await self._delete(request, target, Digest.parse(reference))

    async def _delete(
        self, request: RegistryRequest, target: Target, reference: Reference
    ) -> Answer:
        change = await self.delete(request, target, reference, precondition(request))
        return Answer(204, changes=[change])

    @route(app, "/api/v1/images/<name:name>/referrers/<digest>", "GET", needs=Action.PULL)
    async def referrers(self, request: RegistryRequest, target: Target, digest: str) -> Answer:
        """List the referrers of a manifest that are here, in pages."""
        # A "+" that is not encoded means a space; a type of media has none, but often a "+".
        artifact_type = (parameter(request, "artifactType") or "").replace(" ", "+") or None
        page = await self.seeing.referrers(
            await self.readable(target),
            Digest.parse(digest),
            artifact_type,
            parameter(request, "after"),
            _limit(request),
        )
        return await self._page(request, "referrers", page)

    # -- what was

    @route(app, "/api/v1/images/<name:name>/history", "GET", needs=Action.PULL)
    async def history(self, request: RegistryRequest, target: Target) -> Answer:
        """List the movements of an image's tags, or of one, the newest first, in pages."""
        tag = parameter(request, "tag")
        page = await self.seeing.history(
            await self.readable(target),
            None if tag is None else Tag.parse(tag),
            parameter(request, "after"),
            _limit(request),
        )
        return await self._page(request, "history", await self.told(request, page))

    @route(app, "/api/v1/images/<name:name>/deleted", "GET", needs=Action.PULL)
    async def deleted_of(self, request: RegistryRequest, target: Target) -> Answer:
        """List what was deleted from an image and can be brought back, in pages."""
        image = await self.readable(target)
        page = await self.seeing.deleted(image, parameter(request, "after"), _limit(request))
        return await self._page(request, "deleted", await self.told(request, page))

    @route(app, "/api/v1/images/<name:name>/deleted", "POST", needs=Action.CREATE)
    async def undelete(self, request: RegistryRequest, target: Target) -> Answer:
        """Bring back a tag, a manifest or a blob that was deleted, or all that was."""
        text = parameter(request, "reference")
        reference = None if text is None else parse_reference(text)
        restored, changes = await self.bring_back(request, target, reference)
        told: dict[str, object] = {"image": str(target.image)}
        if request.sees_stored:
            told["tags"], told["occupied"] = restored.tags, restored.occupied
            told["manifests"] = list(map(str, restored.manifests))
            told["blobs"] = list(map(str, restored.blobs))
        answer = Answer.json(told, _NO_STORE)
        answer.changes = changes
        return answer

    @route(app, "/api/v1/deleted", "GET", needs=Need.CONTENT)
    async def deleted(self, request: RegistryRequest) -> Answer:
        """List what was deleted from all images that the caller may pull, in pages."""
        shown = self.gate.listed(request)
        page = await self.seeing.deleted(None, parameter(request, "after"), _limit(request), shown)
        if not page.entries:
            self.gate.nothing_listed(request)
        return await self._page(request, "deleted", await self.told(request, page))

    # -- what is stale

    @route(app, "/api/v1/stale", "GET", needs=Need.CONTENT)
    async def stale(self, request: RegistryRequest) -> Answer:
        """List the tags that are answered stale, of images that the caller may pull, in pages."""
        page = await self.seeing.stale(
            await self.daemon.stale_tags(),
            parameter(request, "after"),
            _limit(request),
            pattern=_pattern(request),
            shown=self.gate.listed(request),
            asker=self.gate.asker(request),
        )
        if not page.entries:
            self.gate.nothing_listed(request)
        return await self._page(request, "stale", page)

    # -- the registry itself

    @route(app, "/api/v1/usage", "GET", needs=Need.METRICS)
    async def usage(self, request: RegistryRequest) -> Answer:
        """Tell what each repository holds."""
        return await self._answer(request, {"repositories": await self.seeing.usage()})

    @route(app, "/api/v1/upstreams", "GET", needs=Need.STATUS)
    async def upstreams(self, request: RegistryRequest) -> Answer:
        """Tell what each remote repository does now."""
        return Answer.json({"upstreams": (await self.daemon.status(request)).remotes}, _NO_STORE)

    @route(app, "/api/v1/status", "GET", needs=Need.STATUS)
    async def status(self, request: RegistryRequest) -> Answer:
        """Tell what the daemon does now."""
        return Answer.json(await self.daemon.status(request), _NO_STORE)

    @route(app, "/api/v1/access", "GET", needs=Need.STATUS)
    async def access(self, request: RegistryRequest) -> Answer:
        """Tell whether an account may do something, and by which rule."""
        who, action, name = (parameter(request, each) for each in ("who", "action", "image"))
        if not who or action not in tuple(Action) or not name:
            raise QueryInvalid(
                f"say who, action (one of {', '.join(Action)}) and image (* is every one)"
            )
        wanted = Action(action)
        # As a pull asks: a name without a repository's before it may mean several images.
        images: Sequence[ImageName | None] = [None]
        if name != EVERY:
            images = self.registry.meant(name, wanted)
        try:
            decisions = await self.run(decide, self.settings, who, wanted, images)
        except StartError as error:
            raise QueryInvalid(f"who: {error}") from None
        return Answer.json({"decisions": decisions}, _NO_STORE)

    # -- answers

    async def _page(self, request: RegistryRequest, name: str, page: Page[Any]) -> Answer:
        answer = await self._answer(request, {name: page.entries, "next": page.after})
        if page.after is not None:
            query = dict(parse_qsl((request.uri.partition(b"?")[2]).decode("latin-1")))
            path = request.path.decode("latin-1")
            answer.headers = {
                **answer.headers,
                "Link": link_to_next(path, {**query, "after": page.after}),
            }
        return answer

    async def _answer(self, request: RegistryRequest, document: object) -> Answer:
        # In a thread: a page may be large.
        body, digest = await self.run(_encoded, document)
        return _conditional(request, body, digest)


def _encoded(document: object) -> tuple[bytes, str]:
    body = msgspec.json.encode(document)
    return body, f'"{sha256(body).hexdigest()}"'


def _conditional(request: RegistryRequest, body: bytes, tag: str | None = None) -> Answer:
    """Answer with JSON, or 304 if the client has it; the entity tag is by default its digest."""
    tag = tag or f'"{sha256(body).hexdigest()}"'
    headers = {"Content-Type": "application/json", "ETag": tag, "Cache-Control": "no-cache"}
    if not_modified(request, tag):
        return Answer(304, headers)
    return Answer(200, headers, body)


def _limit(request: RegistryRequest) -> int:
    """How many entries the page shall have.  :raises QueryInvalid: if ``limit`` is no such."""
    text = parameter(request, "limit")
    if text is None:
        return PAGE
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= _MOST:
        raise QueryInvalid(f"limit must be a whole number from 1 to {_MOST}", {"limit": text[:100]})
    return int(text)


def _pattern(request: RegistryRequest) -> str:
    return found_in(parameter(request, "search") or "")
