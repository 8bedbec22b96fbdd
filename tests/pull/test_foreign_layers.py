"""Layers that the upstream lacks, and that a manifest says where to get."""

from __future__ import annotations

import json
from typing import Any

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest, ImageName
from tests.api.served import descriptor
from tests.process import Answer
from tests.pull.case import PullCase, noise, remote
from tests.upstreams.faulty import BLOBS, CDN, Corrupt, Truncate
from tests.upstreams.hub import Hub

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
NAME, OTHER = "team/windows", "team/other"
LAYER = noise(300_000, 7)
DIGEST = Digest.of(LAYER)


class ForeignCase(PullCase):
    """:ivar owner: another host, which has the layer, and gives it to everybody."""

    more = remote()

    def setUp(self) -> None:
        self.owner = Hub.start(self)
        self.owner.challenges = False
        self.owner.images.add_blob(LAYER, "owner/base")
        self.url = f"{self.owner.url}/v2/owner/base/blobs/{DIGEST}"
        self.gone = f"{self.owner.url}/v2/owner/gone/blobs/{DIGEST}"
        hosts = [self.owner.host, self.owner.cdn_host]
        usual = {"foreign_layers": True, "private_hosts": hosts, "resumes": 0}
        self.settings = remote(**{**usual, **self.more})
        super().setUp()

    async def image(self, *urls: str, name: str = NAME, **more: Any) -> None:
        """Let the upstream have an image with the layer, but not the layer; the client has it."""
        self.hub.images.add_image(name, "latest")
        document = json.loads(self.hub.images.manifest_of(name, "latest"))
        document["layers"] = [{**descriptor(LAYER, FOREIGN), "urls": list(urls), **more}]
        content = json.dumps(document).encode()
        digest = self.hub.images.add_manifest(name, "latest", content, OCI_MANIFEST)
        path = f"/v2/docker.io/{name}/manifests/{digest}"
        self.assertEqual((await self.registry.request("GET", path)).status, 200)

    async def head(self, name: str = NAME) -> Answer:
        return await self.registry.request("HEAD", f"/v2/docker.io/{name}/blobs/{DIGEST}")

    async def settled(self, digest: Digest) -> None:
        await super().settled(digest)
        for name in (NAME, OTHER):
            await self.fills.ended(digest, ImageName("docker.io", name))


class ForeignTests(ForeignCase):
    async def test_they_are_fetched_and_kept(self) -> None:
        await self.image(self.url)
        first = await self.pull(DIGEST, name=NAME)
        self.assert_whole(first, LAYER)
        self.assertEqual(first.headers["x-artifact-source"], "remote")
        self.assertEqual(self.holders(DIGEST), [f"docker.io/{NAME}"])
        await self.owner.stop()
        self.hub.forget_requests()
        again = await self.pull(DIGEST, name=NAME)
        self.assert_whole(again, LAYER)
        self.assertEqual(again.headers["cache-status"], "artifactd; hit")
        self.assertEqual(self.hub.requests, [])

    async def test_the_upstream_comes_first(self) -> None:
        await self.image(self.url)
        self.blob(LAYER, NAME)
        self.assert_whole(await self.pull(DIGEST, name=NAME), LAYER)
        self.assertEqual(self.owner.requests, [])

    async def test_head_says_whether_it_is_there_and_how_large(self) -> None:
        await self.image(self.url)
        answer = await self.head()
        self.assertEqual((answer.status, answer.header("Content-Length")), (200, str(len(LAYER))))
        self.assertEqual(answer.header("Cache-Control"), "no-store")
        self.owner.images.remove("owner/base")
        self.assertEqual((await self.head()).status, 404)
        self.assert_nothing_kept_of_it()

    async def test_a_range_comes_from_there_too(self) -> None:
        await self.image(self.url)
        part = await self.pull(DIGEST, "1000-1999", name=NAME)
        self.assert_part(part, LAYER, 1000, 1999)

    async def test_urls_are_asked_in_turn(self) -> None:
        await self.image("ftp://127.0.0.1/", self.gone, self.url)
        self.assert_whole(await self.pull(DIGEST, name=NAME), LAYER)
        names = [asked.uri.split("/")[3] for asked in self.owner.asked("GET", BLOBS)]
        self.assertEqual(names, ["gone", "base"])

    async def test_clients_share_a_download(self) -> None:
        await self.image(self.url)
        held = self.owner.withhold(CDN, 100_000)
        first = await self.ask(DIGEST, name=NAME)
        await held.reached
        second = await self.ask(DIGEST, name=NAME)
        await second.has(0)
        held.release()
        for download in (first, second):
            self.assert_whole(await download.end(), LAYER)
        self.assertEqual(self.owner.count("GET", CDN), 1)

    def assert_nothing_kept_of_it(self) -> None:
        self.assertEqual(self.holders(DIGEST), [])
        self.assertEqual([name for name in self.files() if DIGEST.encoded in name], [])


class OffTests(ForeignCase):
    more = remote(foreign_layers=False)

    async def test_without_the_setting_nobody_else_is_asked(self) -> None:
        await self.image(self.url)
        download = await self.pull(DIGEST, name=NAME)
        self.assertEqual(download.error[:2], (404, "BLOB_UNKNOWN"))
        self.assertEqual((await self.head()).status, 404)
        self.assertEqual(self.owner.requests, [])


class LoginTests(ForeignCase):
    more = remote(username="ann", password="secret")

    async def test_no_login_goes_there(self) -> None:
        self.hub.tokens.users["ann"] = self.owner.tokens.users["ann"] = "secret"
        self.hub.private.add(NAME)
        self.owner.challenges = True
        await self.image(self.url)
        download = await self.pull(DIGEST, name=NAME)
        self.assertEqual(download.error[:2], (404, "BLOB_UNKNOWN"))
        (asked,) = self.owner.requests
        self.assertNotIn("authorization", asked.headers)


class AddressTests(ForeignCase):
    more = remote(private_hosts=[])

    async def test_those_that_are_not_public_have_to_be_named(self) -> None:
        # The upstream is on loopback itself, and may lead there; a manifest of it may not.
        port = self.owner.host.partition(":")[2]
        for host in ("127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1"):
            await self.image(f"http://{host}:{port}/v2/owner/base/blobs/{DIGEST}")
            status, _, detail = (await self.pull(DIGEST, name=NAME)).error
            self.assertEqual(status, 502)
            self.assertIn("a manifest may lead there only if private_hosts", detail["reason"])
            self.assertEqual((await self.head()).status, 502)
        await self.image(self.hub.url + f"/v2/{NAME}/blobs/{DIGEST}")
        self.assertEqual((await self.pull(DIGEST, name=NAME)).status, 502)
        self.assertEqual(self.owner.requests, [])


class DistrustTests(ForeignCase):
    """What a person may not do who pushes images to the upstream."""

    async def test_wrong_bytes_are_not_kept(self) -> None:
        await self.image(self.url)
        self.owner.faults.add(Corrupt(5), on=CDN)
        self.assert_cut(await self.pull(DIGEST, name=NAME))
        self.assertEqual(self.holders(DIGEST), [])
        self.assertEqual([name for name in self.files() if DIGEST.encoded in name], [])

    async def test_another_size_than_the_manifests_is_refused(self) -> None:
        await self.image(self.url, size=len(LAYER) + 1)
        status, _, detail = (await self.pull(DIGEST, name=NAME)).error
        self.assertEqual(status, 502)
        self.assertIn("bytes where the manifest says", detail["reason"])

    async def test_a_url_gives_no_access_to_what_another_image_has(self) -> None:
        self.blob(LAYER, OTHER)
        self.assert_whole(await self.pull(DIGEST, name=OTHER), LAYER)
        await self.image(self.url)
        # It may say that it has the blob, but the bytes have to come from there.
        self.owner.faults.add(Truncate(1000), on=CDN, times=None)
        self.assertEqual((await self.head()).status, 200)
        download = await self.pull(DIGEST, name=NAME)
        self.assertEqual((download.whole, download.count), (False, 1000))
        self.assertEqual(self.holders(DIGEST), [f"docker.io/{OTHER}"])

    async def test_nor_to_what_is_coming_for_another_image(self) -> None:
        self.blob(LAYER, OTHER)
        held = self.hub.withhold(CDN, 200_000)
        coming = await self.ask(DIGEST, name=OTHER)
        await coming.has(100_000)
        await self.image(self.gone)
        self.assertEqual((await (await self.ask(DIGEST, name=NAME)).end()).status, 404)
        await self.image(self.url)
        self.assert_whole(await (await self.ask(DIGEST, name=NAME)).end(), LAYER)
        held.release()
        self.assert_whole(await coming.end(), LAYER)

    async def test_what_came_by_a_url_is_no_other_images(self) -> None:
        await self.image(self.url)
        self.assert_whole(await self.pull(DIGEST, name=NAME), LAYER)
        self.hub.images.add_image(OTHER, "latest")
        self.assertEqual((await self.pull(DIGEST, name=OTHER)).status, 404)
        await self.image(self.gone, name=OTHER)
        self.assertEqual((await self.pull(DIGEST, name=OTHER)).status, 404)

    async def test_a_part_of_it_is_only_for_the_image_that_it_came_for(self) -> None:
        await self.image(self.url)
        await self.image(self.url, name=OTHER)
        self.owner.faults.add(Truncate(200_000), on=CDN)
        await self.pull(DIGEST, name=NAME)
        self.owner.forget_requests()
        for name, wanted in ((OTHER, None), (NAME, "bytes=200000-")):
            self.assert_whole(await self.pull(DIGEST, name=name), LAYER)
            (asked,) = self.owner.asked("GET", CDN)
            self.assertEqual(asked.headers.get("range"), wanted)
            self.owner.forget_requests()
