"""A blob that is not here yet: what its clients get, and what stays."""

from __future__ import annotations

from artifactd.oci.names import Algorithm, Digest
from tests.pull.case import ALPINE, HELD, PullCase, noise, remote
from tests.upstreams.faulty import BLOBS, CDN

SIZE = 1_000_000
CONTENT = noise(SIZE)


class ColdTests(PullCase):
    async def test_it_is_asked_for_once_and_then_it_is_here(self) -> None:
        digest = self.blob(CONTENT)
        first = await self.pull(digest)
        self.assert_whole(first, CONTENT)
        self.assertEqual((self.hub.count("*", BLOBS), self.hub.count("*", CDN)), (2, 1))
        self.assertEqual((self.blob_bytes, await self.counted("misses")), (SIZE, 1))
        self.assert_kept(digest, CONTENT)
        self.hub.forget_requests()
        second = await self.pull(digest)
        self.assert_whole(second, CONTENT)
        self.assertEqual((self.hub.requests, await self.counted("hits")), ([], 1))
        self.assertEqual(await self.counted("client_bytes"), 2 * SIZE)

    async def test_its_headers_are_those_of_a_blob_that_is_here_but_for_where_it_is_from(
        self,
    ) -> None:
        digest = self.blob(CONTENT)
        cold, warm = await self.pull(digest), await self.pull(digest)
        expected = {
            "content-length": str(SIZE),
            "content-type": "application/octet-stream",
            "docker-content-digest": str(digest),
            "etag": f'"{digest}"',
            "accept-ranges": "bytes",
            "x-artifact-source": "remote",
            "cache-status": "artifactd; fwd=miss; fwd-status=200; stored",
        }
        self.assertEqual({name: cold.headers[name] for name in expected}, expected)
        expected |= {"x-artifact-source": "cache", "cache-status": "artifactd; hit"}
        self.assertEqual({name: warm.headers[name] for name in expected}, expected)
        self.assertRegex(cold.headers["server-timing"], r"^upstream;dur=[0-9.]+, total;dur=")
        self.assertNotIn("upstream", warm.headers["server-timing"])

    async def test_it_is_right_at_every_size_about_that_of_the_held_piece(self) -> None:
        for size in (0, 1, HELD - 1, HELD, HELD + 1, 2 * HELD):
            content = noise(size, size)
            digest = self.blob(content)
            for _ in range(2):
                download = await self.pull(digest)
                self.assert_whole(download, content)
                self.assertEqual(download.headers["content-length"], str(size))
            self.assertEqual(self.blob_bytes, size)
            self.assertEqual(self.holders(digest), ["docker.io/library/alpine"])
            self.hub.forget_requests()

    async def test_a_small_one_is_not_begun_before_it_is_verified(self) -> None:
        digest = self.blob(noise(HELD))
        held = self.hub.withhold(CDN, HELD - 1)
        download = await self.ask(digest)
        await held.reached
        await self.filled(digest, HELD - 1)
        self.assertEqual(download.status, 0)
        held.release()
        self.assert_whole(await download.end(), noise(HELD))

    async def test_an_answer_that_is_not_verified_ends_64_kib_before_the_blob_does(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, SIZE - 1)
        download = await (await self.ask(digest)).has(SIZE - HELD)
        await self.filled(digest, SIZE - 1)
        # Answered after whatever else the fill has told its followers.
        part = await (await self.ask(digest, f"{SIZE - 9}-{SIZE - 2}")).end()
        self.assert_part(part, CONTENT, SIZE - 9, SIZE - 2)
        self.assertEqual((download.count, download.ended), (SIZE - HELD, False))
        held.release()
        self.assert_whole(await download.end(), CONTENT)

    async def test_a_client_gets_every_byte_as_soon_as_the_upstream_sends_it(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, 1)
        download = await self.ask(digest)
        for upto in (1, 2, 1000, 300_000, SIZE - HELD):
            held.release(upto)
            await download.has(upto)
            self.assertEqual(download.count, upto)
        held.release()
        self.assert_whole(await download.end(), CONTENT)

    async def test_a_client_of_http_1_0_gets_one_with_a_length_as_it_comes(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, 1000)
        download = await (await self.ask(digest, version="1.0")).has(1000)
        held.release()
        self.assert_whole(await download.end(), CONTENT)
        self.assertEqual(download.headers["content-length"], str(SIZE))

    async def test_a_sha512_digest_is_verified_as_such(self) -> None:
        digest = self.hub.images.add_blob(CONTENT, ALPINE, algorithm=Algorithm.SHA512)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assert_kept(digest, CONTENT)


class AbsentTests(PullCase):
    settings = remote(freshness="0s", negative_freshness="0s")

    async def test_a_head_is_answered_from_upstream_and_fetches_nothing(self) -> None:
        digest = self.blob(CONTENT)
        path = f"/v2/docker.io/library/alpine/blobs/{digest}"
        answer = await self.registry.request("HEAD", path)
        self.assertEqual((answer.status, answer.header("Content-Length")), (200, str(SIZE)))
        self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))
        self.assertEqual(answer.header("Cache-Status"), "artifactd; fwd=miss; fwd-status=200")
        self.assertEqual(self.hub.count("GET", BLOBS) + self.hub.count("GET", CDN), 0)
        self.assert_nothing_kept(digest)
        await self.pull(digest)
        self.hub.forget_requests()
        answer = await self.registry.request("HEAD", path)
        self.assertEqual((answer.status, answer.header("Content-Length")), (200, str(SIZE)))
        self.assertEqual(self.hub.requests, [])

    async def test_who_has_it_already_is_told_so_and_nothing_is_fetched(self) -> None:
        digest = self.blob(CONTENT)
        download = await self.pull(digest, if_none_match=f'"{digest}"')
        self.assertEqual((download.status, download.count), (304, 0))
        self.assertEqual(download.headers["etag"], f'"{digest}"')
        self.assertEqual(self.hub.count("GET", BLOBS) + self.hub.count("GET", CDN), 0)
        self.assert_nothing_kept(digest)
        self.assert_whole(await self.pull(digest, if_none_match='"another"'), CONTENT)
        absent = Digest.of(b"absent")
        denied = await self.pull(absent, if_none_match=f'"{absent}"')
        self.assertEqual(denied.error[:2], (404, "BLOB_UNKNOWN"))

    async def test_what_the_upstream_does_not_have_is_not_here(self) -> None:
        self.blob(b"another")
        digest = Digest.of(CONTENT)
        for wanted in (None, "5-9", "-9", "5-"):
            download = await self.pull(digest, wanted)
            status, code, detail = download.error
            self.assertEqual((status, code), (404, "BLOB_UNKNOWN"))
            self.assertIn("answers 404", detail["reason"])
            self.assertIn("fwd-status=404", download.headers["cache-status"])
            self.assert_nothing_kept(digest)
        path = f"/v2/docker.io/library/alpine/blobs/{digest}"
        self.assertEqual((await self.registry.request("HEAD", path)).status, 404)
        self.assertEqual(self.blob_bytes, 0)
        self.blob(CONTENT)
        self.assert_whole(await self.pull(digest), CONTENT)

    async def test_a_name_that_does_not_exist_is_not_found(self) -> None:
        download = await self.pull(Digest.of(CONTENT), name="library/nothing")
        self.assertEqual(download.error[:2], (404, "BLOB_UNKNOWN"))


class OfflineTests(PullCase):
    async def test_what_is_here_is_served_when_the_upstream_is_gone(self) -> None:
        digest = self.blob(CONTENT)
        await self.pull(digest)
        await self.hub.stop()
        self.assert_whole(await self.pull(digest), CONTENT)
        missing = await self.pull(Digest.of(b"missing"))
        self.assertEqual(missing.error[:2], (502, "UNKNOWN"))
