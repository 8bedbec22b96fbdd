"""What one upstream says or sends is nothing to images of others, until the digest is verified."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from attrs import frozen

from artifactd.oci.errors import BlobUnknown
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.store.fills import blob_name
from tests.api.served import Served
from tests.programs import wait_for
from tests.pull.case import noise, remote
from tests.pull.download import Download
from tests.pull.mirrors import MirrorCase, side_by_side
from tests.upstreams.backing import Bytes
from tests.upstreams.faulty import BLOBS, CDN, Truncate
from tests.upstreams.hub import Hub
from tests.upstreams.reply import Reply

SIZE = 300_000
CONTENT = noise(SIZE)
DIGEST = Digest.of(CONTENT)
WRONG = b"E" * SIZE
APP = ImageName("good", "app"), ImageName("evil", "app")
EVERY_WAY: tuple[dict[str, str], ...] = (
    {},
    {"Range": "bytes=0-9"},
    {"Range": "bytes=5-9"},
    {"Range": "bytes=-9"},
)


@frozen
class Claims:
    """A fault: the blob is there, whichever it is, and has this content."""

    content: bytes

    def change(self, reply: Reply) -> None:
        reply.status, reply.ranges, reply.etag = 200, True, None
        reply.headers.clear()
        reply.content = Bytes(self.content)


class TwoUpstreamsCase(MirrorCase):
    """
    :ivar hub: ``good``, whose image ``app`` has the blob.
    :ivar evil: an upstream that has an image ``app`` too, but not the blob.
    """

    settings: Mapping[str, Any] = remote(resumes=0)
    rules = ""

    def setUp(self) -> None:
        super().setUp()
        self.evil = Hub.start(self)
        for hub in (self.hub, self.evil):
            hub.images.add_image("app", "1", b"a layer")
            hub.tokens.users["builder"] = "ours"
        self.hub.images.add_blob(CONTENT, "app")
        hubs = {"good": self.hub, "evil": self.evil}
        toml = side_by_side(hubs, **self.settings)
        self.registry = Served.start(self, f"{self.rules}\n{toml}")

    def lie(self, content: bytes, method: str = "*") -> None:
        """Let evil claim to have every blob."""
        self.evil.faults.add(Claims(content), on=BLOBS, method=method, times=None)

    async def pull(self, repository: str, headers: dict[str, str] | None = None) -> Any:
        path = f"/v2/{repository}/app/blobs/{DIGEST}"
        answer = await self.registry.request("GET", path, headers=headers)
        await self.filled(self.registry, DIGEST)
        return answer

    async def follow(self, repository: str) -> Download:
        """Begin to pull."""
        path = f"/v2/{repository}/app/blobs/{DIGEST}"
        return await Download.start(self, self.registry.port, path)

    async def holders(self) -> list[str]:
        """Those of the two images that hold the blob."""
        catalog = self.registry.parts.catalog
        sizes = {image.repository: await catalog.blob_size(image, DIGEST) for image in APP}
        return [repository for repository, size in sizes.items() if size is not None]

    def assert_stored_once(self) -> None:
        found = [name for name in self.registry.files() if DIGEST.encoded in name]
        self.assertEqual(len(found), 1, found)
        stored = (self.registry.data / found[0]).read_bytes()
        self.assertTrue(stored == CONTENT)


class LyingTests(TwoUpstreamsCase):
    """Evil answers HEAD 200 for any digest, and has nothing to send."""

    async def test_it_gives_away_no_blob_that_was_pushed_here(self) -> None:
        await self.registry.push_blob("team/secret", CONTENT)
        await self.assert_gives_nothing_away()

    async def test_nor_one_that_another_upstream_has_sent(self) -> None:
        self.assertEqual((await self.pull("good")).body, CONTENT)
        await self.assert_gives_nothing_away()

    async def test_nor_one_that_is_coming_from_another_upstream(self) -> None:
        held = self.hub.withhold(CDN, SIZE // 2)
        good = await (await self.follow("good")).has(1000)
        self.lie(bytes(100), method="HEAD")
        for headers in EVERY_WAY:
            path = f"/v2/evil/app/blobs/{DIGEST}"
            answer = await self.registry.request("GET", path, headers=headers)
            self.assertEqual(answer.status, 404, answer.body[:100])
        held.release()
        self.assertTrue((await good.end()).body == CONTENT)
        await self.filled(self.registry, DIGEST)
        self.assertEqual(await self.holders(), ["good"])

    async def assert_gives_nothing_away(self) -> None:
        self.lie(bytes(100), method="HEAD")
        before = self.registry.files(), await self.holders()
        for headers in EVERY_WAY:
            answer = await self.pull("evil", headers)
            self.assertEqual(answer.status, 404, answer.body[:100])
        # The upstream's own answer.
        head = await self.registry.request("HEAD", f"/v2/evil/app/blobs/{DIGEST}")
        self.assertEqual((head.status, head.header("Content-Length")), (200, "100"))
        mount = f"/v2/mine/blobs/uploads/?mount={DIGEST}&from=evil/app"
        mounted = await self.registry.request("POST", mount, b"")
        self.assertEqual(mounted.status, 202)
        await self.registry.request("DELETE", mounted.header("Location") or "")
        evil = self.registry.parts.registry.for_operator().repositories["evil"]
        assert isinstance(evil, RemoteRepository)
        with self.assertRaises(BlobUnknown):  # as it is warmed, or fetched by fsck
            await evil.blobs.whole(APP[1], DIGEST)
        self.assertEqual((self.registry.files(), await self.holders()), before)


class ProofTests(LyingTests):
    """Everybody has a proof of access to evil's image."""

    settings = remote(proof_of_access=True, username="builder", password="ours")
    rules = '[[access]]\nwho = ["anonymous"]\nmay = ["pull", "push"]\nimages = ["*"]\n'


class SendingTests(TwoUpstreamsCase):
    async def test_an_upstream_that_has_the_blob_too_sends_it_and_it_is_stored_once(self) -> None:
        self.evil.images.add_blob(CONTENT, "app")
        await self.registry.push_blob("mine", CONTENT)
        for repository, hub in (("good", self.hub), ("evil", self.evil)):
            answer = await self.pull(repository)
            self.assertEqual((answer.status, answer.body == CONTENT), (200, True))
            self.assertEqual(hub.count("GET", CDN), 1)
            again = await self.pull(repository)
            self.assertEqual(again.header("Cache-Status"), "artifactd; hit")
        self.assertEqual(await self.holders(), ["good", "evil"])
        self.assert_stored_once()

    async def test_wrong_bytes_change_nothing_for_those_that_have_the_right_ones(self) -> None:
        await self.pull("good")
        self.lie(WRONG)
        with self.assertRaises((HTTPException, OSError)):
            await self.pull("evil")
        self.assertEqual(await self.holders(), ["good"])
        self.assert_stored_once()

    async def test_a_range_of_one_is_not_answered_with_the_bytes_of_another(self) -> None:
        self.lie(WRONG)
        part = {"Range": "bytes=100000-100019"}
        for _ in range(2):
            self.assertEqual((await self.pull("evil", part)).body, WRONG[:20])
            self.assertEqual((await self.pull("good", part)).body, CONTENT[100_000:100_020])
        answer = await self.pull("good")
        self.assertTrue(answer.body == CONTENT)
        self.assertEqual(await self.holders(), ["good"])

    async def test_a_fill_takes_over_no_parts_of_another_upstream(self) -> None:
        self.lie(WRONG)
        await self.pull("evil", {"Range": f"bytes=1-{SIZE - 1}"})
        extents = self.registry.data / "fills" / f"{blob_name('evil', DIGEST)}.map"
        await wait_for(lambda: extents.read_bytes().endswith(b"."))
        self.hub.forget_requests()
        answer = await self.pull("good")
        self.assertTrue(answer.body == CONTENT)
        self.assertEqual([asked.sent for asked in self.hub.asked("GET", CDN)], [SIZE])
        self.assertTrue(extents.exists(), "those of evil are evil's")

    async def test_a_fill_goes_on_with_nothing_that_another_upstream_has_sent(self) -> None:
        self.lie(WRONG)
        self.evil.faults.add(Truncate(after=SIZE // 2), on=BLOBS, times=None)
        with self.assertRaises((HTTPException, OSError)):
            await self.pull("evil")
        begun = self.registry.data / "fills" / blob_name("evil", DIGEST)
        self.assertEqual(begun.stat().st_size, SIZE // 2)
        answer = await self.pull("good")
        self.assertTrue(answer.body == CONTENT)
        self.assertEqual([asked.sent for asked in self.hub.asked("GET", CDN)], [SIZE])
        self.assertEqual(begun.stat().st_size, SIZE // 2)

    async def test_nobody_waits_for_another_upstream_and_both_have_it_when_both_are_verified(
        self,
    ) -> None:
        self.evil.images.add_blob(CONTENT, "app")
        held = self.evil.withhold(CDN, SIZE // 2)
        slow = await (await self.follow("evil")).has(1000)
        quick = await (await self.follow("good")).end()
        self.assertTrue(quick.body == CONTENT)
        self.assertFalse(slow.ended)
        fills = self.registry.parts.remotes.fills
        await fills["good"].ended(DIGEST)
        self.assertEqual(await self.holders(), ["good"])
        held.release()
        self.assertTrue((await slow.end()).body == CONTENT)
        await fills["evil"].ended(DIGEST)
        self.assertEqual(await self.holders(), ["good", "evil"])
        self.assert_stored_once()
