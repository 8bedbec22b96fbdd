"""An upstream whose connections fail: what the client gets, what is kept, who comes next."""

from __future__ import annotations

import json

from artifactd.oci.names import Digest
from tests.pull.case import ALPINE, HELD, Later, PullCase, noise, remote
from tests.upstreams.faulty import (
    BLOBS,
    CDN,
    MANIFESTS,
    TAGS,
    TOKEN,
    Closing,
    Corrupt,
    Expired,
    Fault,
    NoRanges,
    Reset,
    Silence,
    Stall,
    Truncate,
)

SIZE = 1_000_000
BREAK = 600_000
CONTENT = noise(SIZE)


class BreakingOffCase(PullCase):
    async def assert_resumed(self, digest: Digest) -> None:
        """The client has not noticed anything, and no byte was asked for twice."""
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE)
        ranges = [asked.headers.get("range") for asked in self.hub.asked("GET", CDN)]
        self.assertEqual(ranges, [None, f"bytes={BREAK}-"])
        again = self.hub.asked("GET", CDN)[1]
        self.assertEqual(again.headers["if-range"], f'"{digest.encoded[:32]}"')
        self.assertEqual(await self.counted("resumed"), 1)
        self.assertEqual(len(self.logged(str(digest), f"goes on at byte {BREAK}")), 1)
        await self.assert_kept_for_the_next(digest, CONTENT)

    async def assert_given_up(self, digest: Digest) -> None:
        """
        Nor does the second attempt get any further: the client is cut off, and the next one has it
        go on.
        """
        self.assert_cut(await self.pull(digest), CONTENT)
        self.assert_begun(digest, BREAK)
        self.assertEqual(len(self.logged("the fill of", str(digest), "failed")), 1)
        self.assertEqual(await self.counted("corrupt"), 0)
        self.hub.faults.clear()
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE - BREAK)
        self.assert_kept(digest, CONTENT)


class ClosingTests(BreakingOffCase):
    """Nothing but the end of the connection marks the end of a body."""

    async def test_it_is_whole_if_the_digest_says_so_and_is_fetched_once(self) -> None:
        for size in (0, 1, 1000, SIZE):
            content = noise(size)
            digest = self.blob(content)
            self.hub.faults.clear()
            self.hub.faults.add(Closing(), on=CDN, times=None)
            self.hub.forget_requests()
            self.assert_whole(await self.pull(digest), content)
            self.assertEqual(self.hub.count("GET", CDN), 1)
            self.assertEqual(self.holders(digest), [f"docker.io/{ALPINE}"])
        self.assertEqual(await self.counted("resumed"), 0)

    async def test_what_has_broken_off_is_gone_on_with(self) -> None:
        for fault in (Truncate(after=BREAK), Reset(after=BREAK)):
            digest = self.blob(noise(SIZE, fault.__class__ is Reset))
            self.hub.faults.clear()
            self.hub.faults.add(Closing(), on=CDN, times=None)
            self.hub.faults.add(fault, on=CDN)
            self.hub.forget_requests()
            self.assertTrue((await self.pull(digest)).whole)
            ranges = [asked.headers.get("range") for asked in self.hub.asked("GET", CDN)]
            self.assertEqual(ranges, [None, f"bytes={BREAK}-"])

    async def test_nor_is_it_noticed_where_no_ranges_are_served(self) -> None:
        digest = self.blob(CONTENT)
        for fault in (Closing(), NoRanges()):
            self.hub.faults.add(fault, on=CDN, times=None)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.assert_whole(await self.pull(digest), CONTENT)

    async def test_wrong_bytes_are_completed_by_nobody(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Closing(), on=CDN, times=None)
        self.hub.faults.add(Corrupt(10), on=CDN, times=None)
        self.assert_cut(await self.pull(digest))
        self.hub.faults.clear()
        while not (again := await self.pull(digest)).whole:
            self.assert_cut(again)
        self.assert_whole(again, CONTENT)

    async def test_a_range_is_whole_if_it_has_the_bytes_that_it_says(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Closing(), on=CDN, times=None)
        self.assert_part(await self.pull(digest, "5-99999"), CONTENT, 5, 99999)
        self.assertEqual(self.hub.count("GET", CDN), 1)

    async def test_manifests_tokens_and_lists_are_fetched_once(self) -> None:
        manifest = self.hub.images.add_image(ALPINE, "latest", b"layer")
        for on in (MANIFESTS, TOKEN, TAGS):
            self.hub.faults.add(Closing(), on=on, times=None)
        tag, tags = f"/v2/docker.io/{ALPINE}/manifests/latest", f"/v2/docker.io/{ALPINE}/tags/list"
        answer = await self.registry.request("GET", tag)
        self.assertEqual(answer.header("Docker-Content-Digest"), str(manifest))
        answer = await self.registry.request("GET", tags)
        self.assertEqual(json.loads(answer.body)["tags"], ["latest"])
        asked = [asked.path for asked in self.hub.requests if asked.status == 200]
        paths = [f"/v2/{ALPINE}/manifests/latest", f"/v2/{ALPINE}/tags/list"]
        self.assertEqual(asked, ["/token", *paths])


class CutDocumentTests(PullCase):
    settings = remote(retries=1)

    async def test_one_whose_json_is_cut_is_asked_for_again(self) -> None:
        self.hub.images.add_image(ALPINE, "latest", b"layer")
        for on in (MANIFESTS, TOKEN, TAGS):
            self.hub.faults.add(Closing(), on=on, times=None)
            self.hub.faults.add(Truncate(after=20), on=on)
        for path in ("manifests/latest", "tags/list"):
            answer = await self.registry.request("GET", f"/v2/docker.io/{ALPINE}/{path}")
            self.assertEqual(answer.status, 200, answer.body)
            self.assertEqual(self.hub.count("GET", f"*/{path}"), 2 + (path[0] == "m"))


class BreakingOffTests(BreakingOffCase):
    async def test_what_is_truncated_is_gone_on_with(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        await self.assert_resumed(digest)

    async def test_what_is_reset_is_gone_on_with(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Reset(after=BREAK), on=CDN)
        await self.assert_resumed(digest)

    async def test_what_breaks_off_again_without_a_byte_more_is_given_up(self) -> None:
        broken: list[tuple[Fault, str]] = [
            (Truncate(after=0), CDN),
            (Reset(after=0), CDN),
            (Truncate(after=-1), CDN),
            (Reset(after=-1), BLOBS),
        ]
        for number, (fault, where) in enumerate(broken):
            with self.subTest(fault=fault):
                content = noise(SIZE, number + 1)
                digest = self.blob(content)
                self.hub.faults.add(Truncate(after=BREAK), on=CDN)
                self.hub.faults.add(Later(fault), on=where, times=None)
                self.assert_cut(await self.pull(digest), content)
                self.hub.faults.clear()
                self.hub.forget_requests()
                self.assert_whole(await self.pull(digest), content)
                self.assertEqual(self.blob_bytes, SIZE - BREAK)

    async def test_what_breaks_off_again_and_again_but_gets_further_comes_to_its_end(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=SIZE // 5), on=CDN, times=None)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (5, SIZE))

    async def test_what_breaks_off_in_the_held_piece_is_gone_on_with(self) -> None:
        for number, after in enumerate((SIZE - HELD, SIZE - 1)):
            content = noise(SIZE, number + 1)
            digest = self.blob(content)
            self.hub.faults.add(Truncate(after=after), on=CDN)
            self.assert_whole(await self.pull(digest), content)

    async def test_a_small_blob_that_breaks_off_is_gone_on_with(self) -> None:
        digest = self.blob(noise(1000))
        self.hub.faults.add(Truncate(after=10), on=CDN)
        self.assert_whole(await self.pull(digest), noise(1000))

    async def test_an_upstream_that_is_gone_in_the_middle_is_gone_on_with_when_it_is_back(
        self,
    ) -> None:
        digest = self.blob(CONTENT)
        self.hub.withhold(CDN, BREAK)
        download = await (await self.ask(digest)).has(BREAK - HELD)
        await self.filled(digest, BREAK)
        await self.hub.stop()
        self.assert_cut(await download.end(), CONTENT)
        await self.settled(digest)
        self.assert_begun(digest, BREAK)
        self.hub.resume()
        self.hub.faults.clear()
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE - BREAK)


class StallingTests(BreakingOffCase):
    settings = remote(idle_timeout="1s")

    async def test_what_stalls_is_gone_on_with(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Stall(after=BREAK), on=CDN)
        await self.assert_resumed(digest)

    async def test_what_stalls_for_ever_is_given_up(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.withhold(CDN, BREAK)
        await self.assert_given_up(digest)

    async def test_a_small_blob_that_is_given_up_is_an_error(self) -> None:
        digest = self.blob(noise(1000))
        self.hub.withhold(CDN, 10)
        status, code, detail = (await self.pull(digest)).error
        self.assertEqual((status, code), (504, "UNKNOWN"))
        self.assertIn("sent nothing for 1 seconds", detail["reason"])
        self.assert_begun(digest, 10)
        self.hub.faults.clear()
        self.assert_whole(await self.pull(digest), noise(1000))


class SlowTests(PullCase):
    settings = remote(idle_timeout="1h")

    async def test_a_slow_upstream_is_as_good_as_any(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, 1)
        clients = [await self.ask(digest) for _ in range(3)]
        for upto in range(1, SIZE - HELD, 100_000):
            held.release(upto)
            for client in clients:
                self.assertEqual((await client.has(upto)).count, upto)
        held.release()
        for client in clients:
            self.assert_whole(await client.end(), CONTENT)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, SIZE))
        await self.settled(digest)
        await self.assert_kept_for_the_next(digest, CONTENT)


class NoAnswerCase(PullCase):
    """Where nothing has been said to the client yet, it is told what is the matter."""

    async def assert_told(self, fault: Fault, where: str, status: int, *reason: str) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(fault, on=where, times=None)
        download = await self.pull(digest)
        told, code, detail = download.error
        self.assertEqual((told, code), (status, "UNKNOWN"))
        for part in (self.host(where), *reason):
            self.assertIn(part, detail["reason"])
        self.assertEqual(detail["digest"], str(digest))
        self.assertEqual(download.headers["cache-status"], "artifactd; fwd=miss")
        self.assert_nothing_kept(digest)
        self.hub.faults.clear()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assert_kept(digest, CONTENT)

    def host(self, where: str) -> str:
        return self.hub.cdn_host if where == CDN else self.hub.host


class NoAnswerTests(NoAnswerCase):
    async def test_a_connection_that_is_closed_is_502(self) -> None:
        await self.assert_told(Truncate(after=-1), CDN, 502, "can't be reached")

    async def test_a_connection_that_is_reset_is_502(self) -> None:
        await self.assert_told(Reset(after=-1), BLOBS, 502, "can't be reached")

    async def test_an_upstream_that_is_not_there_is_502(self) -> None:
        digest = self.blob(CONTENT)
        await self.hub.stop()
        status, code, detail = (await self.pull(digest)).error
        self.assertEqual((status, code), (502, "UNKNOWN"))
        self.assertIn("connection refused", detail["reason"])
        self.assert_nothing_kept(digest)
        self.hub.resume()
        self.assert_whole(await self.pull(digest), CONTENT)


class SilenceTests(NoAnswerCase):
    settings = remote(first_byte_timeout="1s")

    async def test_silence_is_504(self) -> None:
        await self.assert_told(Silence(), CDN, 504, "did not answer within 1 seconds")

    async def test_silence_about_tokens_is_502(self) -> None:
        await self.assert_told(Silence(), TOKEN, 502, "no token", "did not answer within 1 s")


class RepeatedTests(PullCase):
    settings = remote(retries=2)

    async def test_one_that_answers_the_second_time_is_not_noticed(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=-1), on=CDN)
        self.hub.faults.add(Reset(after=-1), on=BLOBS)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE)


class ExpiredTests(PullCase):
    async def test_a_token_that_has_expired_in_the_middle_is_renewed(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(Expired()), on=BLOBS, times=2)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual((self.hub.count("GET", TOKEN), self.blob_bytes), (2, SIZE))
        await self.assert_kept_for_the_next(digest, CONTENT)

    async def test_a_token_that_is_not_good_any_more_is_renewed(self) -> None:
        self.assert_whole(await self.pull(self.blob(CONTENT)), CONTENT)
        digest = self.blob(noise(SIZE, 1))
        self.hub.faults.add(Expired(), on=BLOBS)
        self.assert_whole(await self.pull(digest), noise(SIZE, 1))
        self.assertEqual(self.hub.count("GET", TOKEN), 2)


class NoRangesTests(PullCase):
    """Where no ranges are served, what breaks off comes again from the start, and is compared."""

    def setUp(self) -> None:
        super().setUp()
        self.hub.faults.add(NoRanges(), on=CDN, times=None)

    async def test_one_that_breaks_off_comes_again_and_nobody_notices(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        held = self.hub.withhold(CDN, 1000)
        clients = [await self.ask(digest) for _ in range(3)]
        await held.reached
        held.release()
        for client in clients:
            self.assert_whole(await client.end(), CONTENT)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (2, BREAK + SIZE))
        await self.settled(digest)
        await self.assert_kept_for_the_next(digest, CONTENT)

    async def test_one_that_breaks_off_earlier_the_second_time_is_given_up(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Truncate(after=BREAK // 2), on=CDN, times=None)
        self.assert_cut(await self.pull(digest), CONTENT)
        self.assert_begun(digest, BREAK)
        self.hub.faults.clear()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(await self.counted("corrupt"), 0)
        await self.assert_kept_for_the_next(digest, CONTENT)

    async def test_one_that_does_not_break_off_is_as_good_as_any(self) -> None:
        digest = self.blob(CONTENT)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, SIZE))
