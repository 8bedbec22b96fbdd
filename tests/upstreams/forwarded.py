"""A real registry behind a test's upstream: what it has is fetched as it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlencode

from attrs import field, frozen
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from artifactd.oci.manifest import MANIFEST_TYPES
from artifactd.oci.names import Digest, Reference
from tests.programs import reactor
from tests.upstreams.backing import Content, StoredManifest


@frozen
class Forwarded:
    """
    A :class:`~tests.upstreams.backing.Backing`: the registry at ``url``, which wants no login.

    Only what it is asked for is fetched, a piece at a time.
    """

    url: str
    _agent: Agent = field(repr=False)

    @classmethod
    def to(cls, test: TestCase, url: str) -> Self:
        """
        :param url: such as ``http://127.0.0.1:5000``.
        """
        pool = HTTPConnectionPool(reactor)
        test.addCleanup(pool.closeCachedConnections)
        return cls(url, Agent(reactor, pool=pool))

    async def knows(self, name: str) -> bool:
        response, _ = await self._get(f"{name}/tags/list")
        return bool(response.code == 200)

    async def manifest(self, name: str, reference: Reference) -> StoredManifest | None:
        accept = {"Accept": ", ".join(sorted(MANIFEST_TYPES))}
        response, body = await self._get(f"{name}/manifests/{reference}", accept)
        if response.code != 200:
            return None
        media_type = response.headers.getRawHeaders("Content-Type", [""])[0]
        return StoredManifest(body, media_type)

    async def blob(self, name: str, digest: Digest) -> Content | None:
        # One byte tells how many there are.
        path = f"{name}/blobs/{digest}"
        response, _ = await self._get(path, {"Range": "bytes=0-0"})
        ranges = response.headers.getRawHeaders("Content-Range")
        if response.code != 206 or not ranges:
            return None
        return _ForwardedBlob(self, path, int(ranges[0].rpartition("/")[2]))

    async def tags(self, name: str) -> Sequence[str]:
        _, body = await self._get(f"{name}/tags/list?{urlencode({'n': 1000})}")
        return sorted(json.loads(body)["tags"] or ())

    async def referrers(self, name: str, subject: Digest) -> Sequence[Mapping[str, Any]] | None:
        response, body = await self._get(f"{name}/referrers/{subject}")
        if response.code != 200:
            return None
        found: Sequence[Mapping[str, Any]] = json.loads(body)["manifests"]
        return found

    async def read(self, path: str, first: int, last: int) -> bytes:
        """The bytes ``first`` to ``last``, inclusive, of a blob."""
        response, body = await self._get(path, {"Range": f"bytes={first}-{last}"})
        assert response.code == 206, response.code
        return body

    async def _get(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[IResponse, bytes]:
        raw = {name: [value] for name, value in (headers or {}).items()}
        url = f"{self.url}/v2/{path}".encode()
        response = await self._agent.request(b"GET", url, Headers(raw))
        return response, await readBody(response)


@frozen
class _ForwardedBlob:
    registry: Forwarded
    path: str
    size: int

    async def read(self, first: int, count: int) -> bytes:
        return await self.registry.read(self.path, first, first + count - 1)
