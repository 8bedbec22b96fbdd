"""Bytes are shared, access is not: each image has to be allowed them under its own name."""

from __future__ import annotations

from tests.pull.case import Later, PullCase, noise, remote
from tests.pull.download import Download
from tests.upstreams.faulty import BLOBS, CDN, Fault, Garbage, Status, Truncate

SIZE = 1_000_000
CONTENT = noise(SIZE)
A, B = "library/a", "library/b"
PAGE = b'{"login": true}'
PAGES = (Garbage(), Garbage(PAGE, "application/json"))
EVERY_WAY = (None, "0-9", "5-9", "5-", "-9")


class AccessTests(PullCase):
    settings = remote(freshness="0s")

    def setUp(self) -> None:
        super().setUp()
        self.digest = self.blob(CONTENT, A)
        self.blob(b"", B)

    async def test_a_blob_that_came_for_one_image_is_not_answered_for_another(self) -> None:
        await self.pull(self.digest, name=A)
        for wanted in EVERY_WAY:
            denied = await self.pull(self.digest, wanted, name=B)
            self.assertEqual(denied.error[:2], (404, "BLOB_UNKNOWN"))
        path = f"/v2/docker.io/{B}/blobs/{self.digest}"
        self.assertEqual((await self.registry.request("HEAD", path)).status, 404)
        self.assert_kept(self.digest, CONTENT, A)

    async def test_once_the_upstream_says_that_the_other_has_it_too_it_needs_no_bytes(self) -> None:
        await self.pull(self.digest, name=A)
        self.blob(CONTENT, B)
        self.hub.forget_requests()
        shared = await self.pull(self.digest, name=B)
        self.assert_whole(shared, CONTENT)
        self.assertEqual(shared.headers["x-artifact-source"], "cache")
        self.assertIn("detail=shared", shared.headers["cache-status"])
        self.assertEqual((self.hub.count("HEAD", CDN), self.hub.count("GET", BLOBS)), (1, 0))
        self.assert_kept(self.digest, CONTENT, A, B)
        self.hub.forget_requests()
        self.assert_whole(await self.pull(self.digest, name=B), CONTENT)
        self.assertEqual(self.hub.requests, [])

    async def test_where_head_is_refused_get_says_whether_the_other_has_it(self) -> None:
        await self.pull(self.digest, name=A)
        faults: tuple[Fault, ...] = (*map(Status, (400, 401, 403, 404, 405, 406, 500, 503)), *PAGES)
        for fault in faults:
            self.hub.faults.add(fault, on=BLOBS, method="HEAD", times=None)
            denied = await self.pull(self.digest, name=B)
            self.assertEqual(denied.error[:2], (404, "BLOB_UNKNOWN"))
            self.hub.faults.clear()
        for number, fault in enumerate(faults):
            name = f"library/c{number}"
            self.blob(CONTENT, name)
            self.hub.faults.add(fault, on=BLOBS, method="HEAD", times=None)
            shared = await self.pull(self.digest, name=name)
            self.assert_whole(shared, CONTENT)
            self.assertIn("detail=shared", shared.headers["cache-status"])
            self.hub.faults.clear()

    async def test_a_page_that_is_answered_to_everything_gives_nothing_away(self) -> None:
        await self.pull(self.digest, name=A)
        for fault in PAGES:
            self.hub.faults.add(fault, on=f"/v2/{B}/blobs/*", method="*", times=None)
            for wanted in EVERY_WAY:
                self.assert_gives_nothing(await self.pull(self.digest, wanted, name=B))
            self.hub.faults.clear()
        self.assert_kept(self.digest, CONTENT, A)

    async def test_nor_does_it_where_the_bytes_are_still_coming(self) -> None:
        held = self.hub.withhold(CDN, SIZE // 2)
        allowed = await (await self.ask(self.digest, name=A)).has(1)
        await self.filled(self.digest, SIZE // 2)
        self.hub.faults.add(PAGES[1], on=f"/v2/{B}/blobs/*", method="*", times=None)
        denied = [await self.ask(self.digest, wanted, name=B) for wanted in EVERY_WAY]
        await self.hub.coming("GET", f"/v2/{B}/blobs/*")
        held.release()
        self.assert_whole(await allowed.end(), CONTENT)
        for client in denied:
            self.assert_gives_nothing(await client.end())
        self.assertEqual(self.holders(self.digest), [f"docker.io/{A}"])

    async def test_nor_does_it_where_some_parts_are_here(self) -> None:
        await self.pull(self.digest, "5-9", name=A)
        self.hub.faults.add(PAGES[1], on=f"/v2/{B}/blobs/*", method="*", times=None)
        self.assert_gives_nothing(await self.pull(self.digest, "5-9", name=B))

    def assert_gives_nothing(self, denied: Download) -> None:
        """It is an error, or a few unverified bytes of the page."""
        if denied.status == 206:
            self.assertIn(bytes(denied.body), PAGE)
        else:
            self.assertEqual(denied.error[:2], (502, "UNKNOWN"))

    async def test_a_blob_that_was_pushed_here_is_not_answered_for_an_image_of_an_upstream(
        self,
    ) -> None:
        await self.registry.push_blob("mine", CONTENT)
        denied = await self.pull(self.digest, name=B)
        self.assertEqual(denied.error[:2], (404, "BLOB_UNKNOWN"))
        self.assert_whole(await self.pull(self.digest, name=A), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE)

    async def test_a_fill_for_one_image_is_not_joined_by_another_that_may_not_have_it(self) -> None:
        held = self.hub.withhold(CDN, SIZE // 2)
        allowed = await (await self.ask(self.digest, name=A)).has(1)
        await self.filled(self.digest, SIZE // 2)
        for wanted in EVERY_WAY:
            denied = await (await self.ask(self.digest, wanted, name=B)).end()
            self.assertEqual(denied.error[:2], (404, "BLOB_UNKNOWN"))
        held.release()
        self.assert_whole(await allowed.end(), CONTENT)
        await self.settled(self.digest)
        self.assert_kept(self.digest, CONTENT, A)

    async def test_a_fill_for_one_image_is_joined_by_another_and_both_have_it_then(self) -> None:
        self.blob(CONTENT, B)
        held = self.hub.withhold(CDN, SIZE // 2)
        clients = [await (await self.ask(self.digest, name=name)).has(1) for name in (A, B)]
        self.assertEqual(self.hub.count("HEAD", CDN), 1)
        held.release()
        for client in clients:
            self.assert_whole(await client.end(), CONTENT)
        await self.settled(self.digest)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, SIZE))
        self.assert_kept(self.digest, CONTENT, A, B)

    async def test_what_has_come_for_one_image_is_not_answered_for_another(self) -> None:
        self.hub.faults.add(Truncate(after=SIZE - 1), on=CDN)
        self.hub.faults.add(Later(Status(503)), on=CDN, times=None)
        self.assert_cut(await self.pull(self.digest, name=A), CONTENT)
        self.hub.faults.clear()
        for wanted in EVERY_WAY:
            denied = await self.pull(self.digest, wanted, name=B)
            self.assertEqual(denied.error[:2], (404, "BLOB_UNKNOWN"))
        self.assert_begun(self.digest, SIZE - 1)
        self.hub.forget_requests()
        self.assert_whole(await self.pull(self.digest, name=A), CONTENT)
        self.assertEqual(self.blob_bytes, 1)

    async def test_bytes_that_are_all_here_already_are_no_way_round_it(self) -> None:
        self.hub.faults.add(Truncate(after=SIZE // 2), on=CDN)
        self.hub.faults.add(Later(Status(503)), on=CDN, times=None)
        self.assert_cut(await self.pull(self.digest, name=A), CONTENT)
        self.hub.faults.clear()
        await self.pull(self.digest, f"{SIZE // 2}-{SIZE - 1}", name=A)
        for wanted in EVERY_WAY:
            denied = await self.pull(self.digest, wanted, name=B)
            self.assertEqual(denied.error[:2], (404, "BLOB_UNKNOWN"))
        self.assertEqual(self.holders(self.digest), [])
        self.hub.forget_requests()
        self.assert_whole(await self.pull(self.digest, name=A), CONTENT)
        self.assertEqual((self.hub.count("HEAD", CDN), self.hub.count("GET", CDN)), (1, 0))
        self.assert_kept(self.digest, CONTENT, A)

    async def test_an_image_that_may_not_have_it_does_not_spoil_it_for_one_that_may(self) -> None:
        held = self.hub.withhold(f"/v2/{B}/blobs/*", 0)
        denied = await self.ask(self.digest, name=B)
        await held.reached
        allowed = await self.ask(self.digest, name=A)
        await self.hub.coming("HEAD", CDN)
        # Answered after the other one has joined what was begun for B.
        path = f"/v2/docker.io/{A}/blobs/{self.digest}"
        self.assertEqual((await self.registry.request("HEAD", path)).status, 200)
        held.release()
        self.assertEqual((await denied.end()).error[:2], (404, "BLOB_UNKNOWN"))
        self.assert_whole(await allowed.end(), CONTENT)
