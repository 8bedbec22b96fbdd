"""The client over real connections: a registry on loopback that behaves as Docker Hub does."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from artifactd.kit.shared import SharedMemory
from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Digest, Tag
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.values import Url
from artifactd.upstream.client import RegistryUpstream
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.errors import LoginRefused, Missing, RangeRefused
from artifactd.upstream.http.errors import OutOfReach, Unreachable
from artifactd.upstream.http.reach import Reach
from artifactd.upstream.interfaces import UpstreamHead
from artifactd.upstream.sources import GivenCredentials
from tests.programs import reactor
from tests.upstream.fake import Sink, Watch
from tests.upstream.wire import make_transport

IMAGE = "library/alpine"
LATEST = Tag("latest")
CONTENT = bytes(range(256)) * 1024
BLOB = Digest.of(CONTENT)
MANIFEST = b'{"schemaVersion":2}'
BOB = Credentials("bob", "hunter2")


@define(eq=False)
class Hub:
    """
    Registry, token service and CDN, on two ports.

    :ivar asked: method, path and ``Authorization`` of every request.
    """

    ports: list[IListeningPort] = field(factory=list)
    asked: list[tuple[str, str, str | None]] = field(factory=list)

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{self.ports[port].getHost().port}"  # type: ignore[attr-defined]

    def render(self, request: Request) -> bytes:
        path = request.path.decode()
        authorization = request.getHeader("Authorization")
        self.asked.append((request.method.decode(), path, authorization))
        if path == "/token":
            return self._token(request)
        if path.startswith("/cdn/"):
            return self._cdn(request, authorization)
        if authorization != "Bearer t0ken":
            challenge = f'Bearer realm="{self.url(1)}/token",service="hub"'
            request.setHeader("WWW-Authenticate", challenge)
            request.setResponseCode(401)
            return b'{"errors":[{"message":"authentication required"}]}'
        return self._resource(request, path.removeprefix(f"/v2/{IMAGE}/"))

    def _token(self, request: Request) -> bytes:
        if request.method == b"POST":
            content: Any = request.content
            form = parse_qs(content.read().decode())
            request.setResponseCode(200 if form.get("refresh_token") == ["1d+/="] else 400)
            return b'{"access_token":"t0ken","expires_in":300}'
        if request.getUser() != b"bob" or request.getPassword() != b"hunter2":
            request.setResponseCode(401)
            return b"{}"
        return b'{"token":"t0ken","expires_in":300}'

    def _cdn(self, request: Request, authorization: str | None) -> bytes:
        if authorization is not None:
            request.setResponseCode(400)
            return b"only one auth mechanism allowed"
        asked = (request.getHeader("Range") or "").removeprefix("bytes=")
        if not asked:
            return CONTENT
        first = int(asked.partition("-")[0])
        if first >= len(CONTENT):
            request.setResponseCode(416)
            return b""
        request.setResponseCode(206)
        last = len(CONTENT) - 1
        request.setHeader("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        request.setHeader("ETag", '"v1"')
        return CONTENT[first:]

    def _resource(self, request: Request, path: str) -> bytes:
        if path == "manifests/latest":
            request.setHeader("Content-Type", OCI_INDEX)
            request.setHeader("Docker-Content-Digest", str(Digest.of(MANIFEST)))
            request.setHeader("RateLimit-Limit", "100;w=21600")
            request.setHeader("RateLimit-Remaining", "25;w=21600")
            if request.getHeader("If-None-Match") == f'"{Digest.of(MANIFEST)}"':
                request.setResponseCode(304)
                return b""
            return MANIFEST
        if path == f"blobs/{BLOB}":
            request.setHeader("Content-Type", "application/octet-stream")
            if request.method == b"HEAD":
                request.setHeader("Content-Length", str(len(CONTENT)))
                return b""
            request.redirect(f"{self.url(1)}/cdn/{BLOB}".encode())
            request.setResponseCode(307)
            return b""
        if path == "tags/list":
            request.setHeader("Link", f'</v2/{IMAGE}/tags/list?last=a&n=1>; rel="next"')
            return b'{"tags":["a"]}'
        request.setResponseCode(404)
        request.setHeader("Content-Type", "application/json")
        return b'{"errors":[{"message":"unknown"}]}'


class _Everything(Resource):
    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.isLeaf = True
        self._hub = hub

    def render(self, request: Request) -> bytes:
        return self._hub.render(request)


class ClientOverHttpTests(TestCase):
    def setUp(self) -> None:
        self.hub = Hub()
        for _ in range(2):
            site: Any = Site(_Everything(self.hub))
            port = reactor.listenTCP(0, site, interface="127.0.0.1")
            self.hub.ports.append(port)
            self.addCleanup(port.stopListening)
        self.watch = Watch()
        self.transport = transport = make_transport(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(transport.close()))
        self.upstream = RegistryUpstream(
            "docker.io",
            RemoteSettings(upstream=Url(self.hub.url(0)), retries=0),
            transport,
            reactor,
            self.watch,
            SharedMemory.create(),
            credentials=GivenCredentials(lambda: BOB, "hub"),
        )

    async def test_an_identity_token_is_posted(self) -> None:
        token = Credentials("<token>", "1d+/=", identity_token=True)
        upstream = RegistryUpstream(
            "docker.io",
            RemoteSettings(upstream=Url(self.hub.url(0)), retries=0),
            self.transport,
            reactor,
            self.watch,
            SharedMemory.create(),
            credentials=GivenCredentials(lambda: token, "hub"),
        )
        self.assertEqual(MANIFEST, (await upstream.manifest(IMAGE, LATEST)).content)
        self.assertEqual(("POST", "/token", None), self.hub.asked[1])

    async def test_a_pull(self) -> None:
        manifest = await self.upstream.manifest(IMAGE, LATEST)
        self.assertEqual(MANIFEST, manifest.content)
        self.assertEqual(len(CONTENT), (await self.upstream.blob(IMAGE, BLOB)).size)
        body = await self.upstream.open_blob(IMAGE, BLOB)
        sink = Sink()
        self.assertEqual(len(CONTENT), await body.deliver_to(sink))
        self.assertEqual(CONTENT, sink.content)
        self.assertEqual(len(MANIFEST) + len(CONTENT), self.watch.bytes)
        self.assertEqual(
            [
                ("GET", f"/v2/{IMAGE}/manifests/latest", None),
                ("GET", "/token", BOB.basic()),
                ("GET", f"/v2/{IMAGE}/manifests/latest", "Bearer t0ken"),
                ("HEAD", f"/v2/{IMAGE}/blobs/{BLOB}", "Bearer t0ken"),
                ("GET", f"/v2/{IMAGE}/blobs/{BLOB}", "Bearer t0ken"),
                ("GET", f"/cdn/{BLOB}", None),
            ],
            self.hub.asked,
        )

    async def test_a_revalidation(self) -> None:
        digest = Digest.of(MANIFEST)
        told = await self.upstream.manifest_head(IMAGE, LATEST, None)
        self.assertEqual(UpstreamHead(digest, OCI_INDEX, len(MANIFEST)), told)
        told = await self.upstream.manifest_head(IMAGE, LATEST, digest)
        self.assertEqual(UpstreamHead(digest), told)
        self.assertEqual([("HEAD", 200), ("HEAD", 304)], self.watch.requests[2:])
        self.assertAlmostEqual(2, self.upstream.frugality())

    async def test_a_part_of_a_blob_from_the_cdn(self) -> None:
        body = await self.upstream.open_blob(IMAGE, BLOB, 1000, None, '"v1"')
        self.assertEqual(
            (1000, len(CONTENT) - 1000, len(CONTENT), '"v1"', self.hub.url(1).partition("//")[2]),
            (body.first, body.length, body.size, body.validator, body.host),
        )
        sink = Sink()
        await body.deliver_to(sink)
        self.assertEqual(CONTENT[1000:], sink.content)

    async def test_a_body_that_nobody_wants(self) -> None:
        (await self.upstream.open_blob(IMAGE, BLOB)).abort()
        self.assertEqual(0, self.watch.bytes)

    async def test_a_list(self) -> None:
        page = await self.upstream.tags(IMAGE, {"n": "1"})
        self.assertEqual((b'{"tags":["a"]}', {"last": "a", "n": "1"}), (page.body, page.next))

    async def test_refusals(self) -> None:
        await self.assert_raises(Missing, self.upstream.manifest(IMAGE, Tag("other")))
        await self.assert_raises(Missing, self.upstream.blob(IMAGE, Digest.of(b"other")))
        await self.assert_raises(RangeRefused, self.upstream.open_blob(IMAGE, BLOB, len(CONTENT)))

    async def test_an_upstream_that_is_gone(self) -> None:
        for port in self.hub.ports:
            await (port.stopListening() or succeed(None))
        await self.assert_raises(Unreachable, self.upstream.manifest(IMAGE, LATEST))
        self.assertEqual([("GET", None)], self.watch.requests)

    async def test_a_token_server_out_of_reach_is_not_asked(self) -> None:
        self.transport.reach = self.public()
        await self.assert_raises(LoginRefused, self.upstream.manifest(IMAGE, LATEST))
        self.assertEqual([f"/v2/{IMAGE}/manifests/latest"], [path for _, path, _ in self.hub.asked])

    async def test_neither_is_a_cdn_out_of_reach(self) -> None:
        await self.upstream.manifest(IMAGE, LATEST)
        self.transport.reach = self.public()
        await self.assert_raises(OutOfReach, self.upstream.open_blob(IMAGE, BLOB))
        self.assertNotIn(f"/cdn/{BLOB}", [path for _, path, _ in self.hub.asked])

    def public(self) -> Reach:
        """The upstream is public, but for its first port."""
        return Reach("registry.example", frozenset({self.hub.url(0).partition("//")[2]}))

    async def assert_raises(self, kind: type[Exception], asking: Any) -> None:
        await self.assertFailure(Deferred.fromCoroutine(asking), kind)
