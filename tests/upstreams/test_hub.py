"""The test's Docker Hub behaves as the real one does."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from artifactd.oci.digest import Digest
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.upstreams.asking import ACCEPT, ask, blob_url, brief, pull_manifest, token
from tests.upstreams.faulty import BLOBS, CDN, MANIFESTS
from tests.upstreams.hub import Hub

ALPINE = "library/alpine"
LAYER = bytes(range(256)) * 40


class HubCase(TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.hub = Hub.start(self, clock=self.clock)
        self.digest = self.hub.images.add_image(ALPINE, "3.20", LAYER)
        self.manifest = f"{self.hub.url}/v2/{ALPINE}/manifests/3.20"


class ManifestTests(HubCase):
    async def test_a_manifest_comes_with_its_digest_and_type(self) -> None:
        for reference in ("3.20", str(self.digest)):
            answer = await pull_manifest(self.hub, ALPINE, reference)
            self.assertEqual(answer.body, self.hub.images.manifest_of(ALPINE, "3.20"))
            self.assertEqual(answer.header("Docker-Content-Digest"), str(self.digest))
            self.assertEqual(answer.header("ETag"), f'"{self.digest}"')
            self.assertEqual(answer.header("Content-Type"), OCI_MANIFEST)

    async def test_head_tells_the_same_without_the_body(self) -> None:
        got = await pull_manifest(self.hub, ALPINE, "3.20")
        told = await pull_manifest(self.hub, ALPINE, "3.20", "HEAD")
        self.assertEqual((told.status, told.body), (200, b""))
        for name in ("Content-Length", "Content-Type", "ETag", "Docker-Content-Digest"):
            self.assertEqual(told.header(name), got.header(name))

    async def test_one_that_is_known_is_not_sent_again(self) -> None:
        headers = await token(self.hub, ALPINE) | ACCEPT | {"If-None-Match": f'"{self.digest}"'}
        answer = await ask(self.manifest, headers=headers)
        self.assertEqual((answer.status, answer.body), (304, b""))

    async def test_a_tag_moves(self) -> None:
        moved = self.hub.images.add_image(ALPINE, "3.20", b"another")
        answer = await pull_manifest(self.hub, ALPINE, "3.20")
        self.assertEqual(answer.header("Docker-Content-Digest"), str(moved))

    async def test_an_unknown_tag_or_digest_is_not_found(self) -> None:
        for reference in ("edge", str(Digest.of(b"absent"))):
            answer = await pull_manifest(self.hub, ALPINE, reference)
            self.assertEqual(answer.status, 404)
            self.assertEqual(json.loads(answer.body)["errors"][0]["code"], "MANIFEST_UNKNOWN")

    async def test_what_the_client_does_not_accept_it_does_not_get(self) -> None:
        self.hub.images.add_index(ALPINE, "3.20", self.digest)
        headers = await token(self.hub, ALPINE)
        for accept, status in ((OCI_MANIFEST, 404), (f"{OCI_MANIFEST}, {OCI_INDEX};q=0.5", 200)):
            answer = await ask(self.manifest, headers=headers | {"Accept": accept})
            self.assertEqual(answer.status, status)

    async def test_pulls_are_counted_down_by_get_alone(self) -> None:
        for method, left in (("GET", 99), ("HEAD", 99), ("GET", 98)):
            answer = await pull_manifest(self.hub, ALPINE, "3.20", method)
            self.assertEqual(answer.header("RateLimit-Limit"), "100;w=21600")
            self.assertEqual(answer.header("RateLimit-Remaining"), f"{left};w=21600")

    async def test_when_no_pull_is_left_it_says_so(self) -> None:
        self.hub.answers.remaining = 1
        self.assertEqual((await pull_manifest(self.hub, ALPINE, "3.20")).status, 200)
        answer = await pull_manifest(self.hub, ALPINE, "3.20")
        self.assertEqual(answer.status, 429)
        self.assertEqual(json.loads(answer.body)["errors"][0]["code"], "TOOMANYREQUESTS")
        self.assertEqual((await pull_manifest(self.hub, ALPINE, "3.20", "HEAD")).status, 200)

    async def test_nothing_can_be_pushed(self) -> None:
        headers = await token(self.hub, ALPINE)
        answer = await ask(self.manifest, "PUT", headers)
        self.assertEqual(answer.status, 405)


class BlobTests(HubCase):
    async def test_a_blob_is_at_another_host_under_a_signed_url(self) -> None:
        url = await blob_url(self.hub, ALPINE, Digest.of(LAYER))
        self.assertNotEqual(urlsplit(url).hostname, urlsplit(self.hub.url).hostname)
        self.assertEqual(urlsplit(url).netloc, self.hub.cdn_host)
        self.assertIn("X-Amz-Signature", parse_qs(urlsplit(url).query))
        answer = await ask(url)
        self.assertEqual((answer.status, brief(answer.body)), (200, brief(LAYER)))
        self.assertEqual(answer.header("Content-Length"), str(len(LAYER)))

    async def test_there_nobody_may_send_authorization(self) -> None:
        url = await blob_url(self.hub, ALPINE, Digest.of(LAYER))
        answer = await ask(url, headers=await token(self.hub, ALPINE))
        self.assertEqual(answer.status, 400)

    async def test_a_signature_is_for_one_blob_and_expires(self) -> None:
        other = self.hub.images.add_blob(b"other", ALPINE)
        url = await blob_url(self.hub, ALPINE, Digest.of(LAYER))
        stolen = url.replace(Digest.of(LAYER).encoded, other.encoded)
        self.assertEqual((await ask(stolen)).status, 403)
        self.assertEqual((await ask(url.partition("?")[0])).status, 403)
        self.clock.advance(1201)
        self.assertEqual((await ask(url)).status, 403)

    async def test_an_image_has_no_blobs_of_another(self) -> None:
        other = self.hub.images.add_blob(b"other", "library/busybox")
        headers = await token(self.hub, ALPINE)
        answer = await ask(f"{self.hub.url}/v2/{ALPINE}/blobs/{other}", headers=headers)
        self.assertEqual(answer.status, 404)

    async def test_ranges_are_served(self) -> None:
        url, size = await blob_url(self.hub, ALPINE, Digest.of(LAYER)), len(LAYER)
        for asked, first, stop in (
            ("bytes=0-0", 0, 1),
            ("bytes=100-199", 100, 200),
            ("bytes=10000-", 10000, size),
            ("bytes=-10", size - 10, size),
            ("bytes=10000-99999", 10000, size),
        ):
            answer = await ask(url, headers={"Range": asked})
            self.assertEqual((answer.status, brief(answer.body)), (206, brief(LAYER[first:stop])))
            self.assertEqual(answer.header("Content-Range"), f"bytes {first}-{stop - 1}/{size}")

    async def test_a_range_beyond_the_end_is_refused(self) -> None:
        url = await blob_url(self.hub, ALPINE, Digest.of(LAYER))
        answer = await ask(url, headers={"Range": f"bytes={len(LAYER)}-"})
        self.assertEqual(answer.status, 416)
        self.assertEqual(answer.header("Content-Range"), f"bytes */{len(LAYER)}")

    async def test_a_range_of_something_else_is_all_of_it(self) -> None:
        url = await blob_url(self.hub, ALPINE, Digest.of(LAYER))
        etag = (await ask(url, "HEAD")).header("ETag") or ""
        for validator, status in ((etag, 206), ('"other"', 200)):
            answer = await ask(url, headers={"Range": "bytes=5-", "If-Range": validator})
            self.assertEqual(answer.status, status)

    async def test_blobs_can_come_from_the_registry_itself(self) -> None:
        self.hub.answers.redirects = False
        headers = await token(self.hub, ALPINE) | {"Range": "bytes=1-2"}
        url = f"{self.hub.url}/v2/{ALPINE}/blobs/{Digest.of(LAYER)}"
        answer = await ask(url, headers=headers)
        self.assertEqual((answer.status, answer.body), (206, LAYER[1:3]))


class ListTests(HubCase):
    async def pages(self, path: str) -> list[dict[str, object]]:
        """The documents from ``path`` on, as far as links lead."""
        found, headers = [], await token(self.hub, ALPINE)
        while path:
            answer = await ask(self.hub.url + path, headers=headers)
            self.assertEqual(answer.status, 200)
            found.append(json.loads(answer.body))
            path = (answer.header("Link") or "<>").partition(">")[0][1:]
        return found

    async def test_tags_come_in_pages(self) -> None:
        for tag in ("b", "c", "a", "d"):
            self.hub.images.add_image(ALPINE, tag, LAYER)
        pages = await self.pages(f"/v2/{ALPINE}/tags/list?n=2")
        self.assertEqual([page["tags"] for page in pages], [["3.20", "a"], ["b", "c"], ["d"]])
        self.assertEqual(pages[0]["name"], ALPINE)
        pages = await self.pages(f"/v2/{ALPINE}/tags/list?last=b")
        self.assertEqual([page["tags"] for page in pages], [["c", "d"]])
        pages = await self.pages(f"/v2/{ALPINE}/tags/list?n=0")
        self.assertEqual([page["tags"] for page in pages], [[]])

    async def test_referrers_come_in_pages_and_by_type(self) -> None:
        self.hub.answers.page = 1
        types = ("application/vnd.sbom", "application/vnd.signature", "application/vnd.sbom")
        added = {
            self.hub.images.add_image(
                ALPINE, None, str(n).encode(), subject=self.digest, artifactType=each
            )
            for n, each in enumerate(types)
        }
        path = f"/v2/{ALPINE}/referrers/{self.digest}"
        pages = await self.pages(path)
        self.assertEqual({_digest(page) for page in pages}, set(map(str, added)))
        filtered = await self.pages(f"{path}?artifactType=application/vnd.sbom")
        self.assertEqual(len(filtered), 2)


class RecordTests(HubCase):
    async def test_every_request_is_there_with_what_it_sent_and_got(self) -> None:
        url = await blob_url(self.hub, ALPINE, Digest.of(LAYER))
        await ask(url, headers={"Range": "bytes=0-99", "X-Asked": "a"})
        self.assertEqual(
            [(asked.role, asked.status) for asked in self.hub.requests],
            [("registry", 200), ("registry", 307), ("cdn", 206)],
        )
        last = self.hub.requests[-1]
        self.assertEqual((last.headers["x-asked"], last.sent), ("a", 100))
        self.assertEqual(last.parameter("X-Amz-Expires"), "1200")

    async def test_requests_and_bytes_are_counted(self) -> None:
        await ask(await blob_url(self.hub, ALPINE, Digest.of(LAYER)))
        self.assertEqual(self.hub.count("GET", CDN), 1)
        self.assertEqual(self.hub.count("HEAD", CDN), 0)
        self.assertEqual(self.hub.count("*", BLOBS), 1)
        self.assertEqual(self.hub.count(), 3)
        self.assertEqual(sum(asked.sent for asked in self.hub.asked("GET", CDN)), len(LAYER))
        self.hub.forget_requests()
        self.assertEqual((self.hub.count(), self.hub.bytes_sent), (0, 0))

    async def test_a_request_can_be_waited_for(self) -> None:
        second = self.hub.coming("HEAD", MANIFESTS, times=2)
        for method in ("HEAD", "GET", "HEAD"):
            self.assertFalse(second.called)
            await pull_manifest(self.hub, ALPINE, "3.20", method)
        self.assertIs(await second, self.hub.asked("HEAD", MANIFESTS)[1])
        self.assertIs(await self.hub.coming("GET", MANIFESTS), self.hub.asked("GET", MANIFESTS)[0])

    async def test_it_can_be_gone_and_come_back(self) -> None:
        await self.hub.stop()
        with self.assertRaises(ConnectionRefusedError):
            await ask(self.manifest)
        self.hub.resume()
        self.assertEqual((await pull_manifest(self.hub, ALPINE, "3.20")).status, 200)


def _digest(page: dict[str, object]) -> str:
    manifests = page["manifests"]
    assert isinstance(manifests, list)
    (descriptor,) = manifests
    return str(descriptor["digest"])
