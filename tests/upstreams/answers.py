"""How a registry answers whom it admits: manifests, blobs, tags and referrers."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlencode

from artifactd.oci.errors import RegistryError
from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Digest, parse_reference
from tests.upstreams.backing import Backing, Bytes, Content
from tests.upstreams.cdn import serve_blob
from tests.upstreams.reply import Reply
from tests.upstreams.requests import Asked

_WINDOW = 21600
_PATH = re.compile(
    r"/v2/(?P<name>.+)/(?:(?P<kind>manifests|blobs|referrers)/(?P<reference>[^/]+)|tags/list)"
)


class RegistryAnswers:
    """
    What Docker Hub answers.

    :ivar limit: pulls (GET of a manifest) allowed in six hours, and ``remaining`` are left: 429 at
        0; ``None``: it tells of no limit.
    :ivar page: how many tags or referrers are on a page, if ``n`` does not ask for less.
    :ivar redirects: whether blobs come from the CDN.
    """

    def __init__(self, backing: Backing, redirect: Callable[[Digest, Content], str]) -> None:
        self.limit: int | None = 100
        self.remaining = 100
        self.page = 100
        self.redirects = True
        self._backing = backing
        self._redirect = redirect

    def image_of(self, path: str) -> str | None:
        """The image whose path that is, or ``None``."""
        match = _PATH.fullmatch(unquote(path))
        return None if match is None else match["name"]

    async def answer(self, asked: Asked, reply: Reply) -> None:
        """Let ``reply`` be what ``asked`` gets."""
        reply.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        match = _PATH.fullmatch(unquote(asked.path))
        if asked.method not in ("GET", "HEAD"):
            reply.fail(405, "UNSUPPORTED", "nothing is pushed here")
        elif asked.path == "/v2/":
            _json(reply, {})
        elif match is None:
            reply.fail(404, "NAME_UNKNOWN", "no such path")
        elif not await self._backing.knows(match["name"]):
            reply.fail(404, "NAME_UNKNOWN", "repository name not known to registry")
        else:
            answers: Mapping[str, Callable[[str, str, Asked, Reply], Awaitable[None]]] = {
                "manifests": self._manifest,
                "blobs": self._blob,
                "referrers": self._referrers,
                "tags": self._tags,
            }
            try:
                named = (match["name"], match["reference"] or "")
                await answers[match["kind"] or "tags"](*named, asked, reply)
            except RegistryError as error:
                reply.fail(error.status, error.code, error.message)

    async def _manifest(self, name: str, reference: str, asked: Asked, reply: Reply) -> None:
        manifest = await self._backing.manifest(name, parse_reference(reference))
        if manifest is None:
            reply.fail(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        if not _accepted(manifest.media_type, asked):
            kind = "index" if manifest.media_type == OCI_INDEX else "manifest"
            message = f"OCI {kind} found, but accept header does not support OCI {kind}s"
            reply.fail(404, "MANIFEST_UNKNOWN", message)
            return
        if self._spent(asked, reply):
            reply.fail(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
            return
        reply.content = Bytes(manifest.content)
        reply.etag = f'"{manifest.digest}"'
        reply.headers["Content-Type"] = manifest.media_type
        reply.headers["Docker-Content-Digest"] = str(manifest.digest)

    def _spent(self, asked: Asked, reply: Reply) -> bool:
        """Whether no pull is left for it; it is one less now."""
        if self.limit is None:
            return False
        spent = asked.method == "GET" and self.remaining <= 0
        if asked.method == "GET" and not spent:
            self.remaining -= 1
        reply.headers["RateLimit-Limit"] = f"{self.limit};w={_WINDOW}"
        reply.headers["RateLimit-Remaining"] = f"{self.remaining};w={_WINDOW}"
        return spent

    async def _blob(self, name: str, reference: str, asked: Asked, reply: Reply) -> None:
        digest = Digest.parse(reference)
        content = await self._backing.blob(name, digest)
        if content is None:
            reply.fail(404, "BLOB_UNKNOWN", "blob unknown to registry", {"digest": reference})
        elif self.redirects:
            reply.status = 307
            reply.headers["Location"] = self._redirect(digest, content)
        else:
            reply.content = content
            reply.headers["Docker-Content-Digest"] = reference
            serve_blob(digest, reply)

    async def _tags(self, name: str, _: str, asked: Asked, reply: Reply) -> None:
        tags = await self._backing.tags(name)
        last = asked.parameter("last")
        page = self._page([tag for tag in tags if last is None or tag > last], str, asked, reply)
        _json(reply, {"name": name, "tags": page})

    async def _referrers(self, name: str, reference: str, asked: Asked, reply: Reply) -> None:
        found = await self._backing.referrers(name, Digest.parse(reference))
        if found is None:
            reply.fail(404, "UNSUPPORTED", "no such endpoint")
            return
        wanted = asked.parameter("artifactType")
        if wanted is not None:
            found = [each for each in found if each["artifactType"] == wanted]
            reply.headers["OCI-Filters-Applied"] = "artifactType"
        last = asked.parameter("last")
        found = sorted(found, key=_digest)
        rest = [each for each in found if last is None or _digest(each) > last]
        page = self._page(rest, _digest, asked, reply)
        _json(reply, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page})
        reply.headers["Content-Type"] = OCI_INDEX

    def _page(
        self, rest: Sequence[Any], key: Callable[[Any], str], asked: Asked, reply: Reply
    ) -> Sequence[Any]:
        """What goes on this page; ``Link`` to the next, as RFC 8288 has it, if there is one."""
        count = min(int(asked.parameter("n") or self.page), self.page)
        page = rest[:count]
        if page and len(rest) > count:
            query = {name: values[-1] for name, values in asked.query.items()}
            query |= {"last": key(page[-1]), "n": str(count)}
            reply.headers["Link"] = f'<{asked.path}?{urlencode(query)}>; rel="next"'
        return page


def _accepted(media_type: str, asked: Asked) -> bool:
    accept = asked.headers.get("accept", "")
    types = {each.partition(";")[0].strip() for each in accept.split(",")}
    return bool({media_type, "*/*"} & types)


def _json(reply: Reply, document: object) -> None:
    reply.headers["Content-Type"] = "application/json"
    reply.content = Bytes(json.dumps(document).encode())


def _digest(descriptor: Mapping[str, Any]) -> str:
    return str(descriptor["digest"])
