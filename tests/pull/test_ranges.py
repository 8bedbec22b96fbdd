"""Parts of a blob that is not here, as lazy clients ask for them."""

from __future__ import annotations

from typing import Any

from artifactd.oci.names import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.registry.mirror.range_cache import Parts
from tests.programs import wait_for
from tests.pull.case import HELD, Later, PullCase, noise, remote
from tests.upstreams.faulty import (
    BLOBS,
    CDN,
    Corrupt,
    Fault,
    Garbage,
    NoLength,
    NoRanges,
    Silence,
    Status,
    Truncate,
)

SIZE = 4_000_000
CONTENT = noise(SIZE)
FIRST, LAST = 1_000_000, 2_999_999
PART = LAST - FIRST + 1
MIDDLE = f"{FIRST}-{LAST}"

FETCHED = "artifactd; fwd=partial; fwd-status=206; stored; detail=unverified"
KEPT = "artifactd; hit; detail=unverified"


class BoundedTests(PullCase):
    """Ranges that are bounded on both sides, and suffixes: answered before all is verified."""

    settings = remote(freshness="1d")

    async def test_a_part_from_the_middle_is_fetched_alone_and_kept(self) -> None:
        digest = self.blob(CONTENT)
        part = await self.pull(digest, MIDDLE)
        self.assert_part(part, CONTENT, FIRST, LAST)
        self.assertEqual(part.headers["cache-status"], FETCHED)
        self.assertEqual(part.headers["docker-content-digest"], str(digest))
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, PART))
        self.assertEqual(self.holders(digest), [])
        self.hub.forget_requests()
        for first, last in ((FIRST, LAST), (FIRST + 5, LAST - 5), (FIRST, FIRST), (LAST, LAST)):
            part = await self.pull(digest, f"{first}-{last}")
            self.assert_part(part, CONTENT, first, last)
            self.assertEqual(part.headers["cache-status"], KEPT)
        self.assertEqual(self.hub.requests, [])

    async def test_parts_that_touch_are_one(self) -> None:
        digest = self.blob(CONTENT)
        await self.pull(digest, "1000-1999")
        await self.pull(digest, "2000-2999")
        await self.recorded(digest, 2)
        self.hub.forget_requests()
        self.assert_part(await self.pull(digest, "1500-2500"), CONTENT, 1500, 2500)
        self.assertEqual(self.hub.requests, [])
        # One byte more than there is.
        self.assert_part(await self.pull(digest, "1500-3000"), CONTENT, 1500, 3000)
        self.assertEqual(self.hub.count("GET", CDN), 1)

    async def test_the_end_of_a_blob_is_fetched_alone_and_kept(self) -> None:
        digest = self.blob(CONTENT)
        for _ in range(2):
            self.assert_part(await self.pull(digest, "-1000"), CONTENT, SIZE - 1000, SIZE - 1)
            self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, 1000))
        past = await self.pull(digest, f"{SIZE - 10}-{SIZE + 10}")
        self.assert_part(past, CONTENT, SIZE - 10, SIZE - 1)
        self.assertEqual(self.hub.count("GET", CDN), 1)

    async def test_a_part_survives_the_daemon(self) -> None:
        digest = self.blob(CONTENT)
        await self.pull(digest, MIDDLE)
        await self.recorded(digest, 1)
        await self.restart()
        self.hub.forget_requests()
        self.assert_part(await self.pull(digest, MIDDLE), CONTENT, FIRST, LAST)
        # Whether this image may have it is asked; the bytes are not asked for.
        self.assertEqual((self.hub.count("HEAD", CDN), self.hub.count("GET", CDN)), (1, 0))

    async def test_a_part_comes_as_the_upstream_sends_it_and_is_joined(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, FIRST + 1000)
        first = await (await self.ask(digest, MIDDLE)).has(1000)
        second = await (await self.ask(digest, f"{FIRST + 10}-{LAST - 10}")).has(990)
        self.assertIn("collapsed", second.headers["cache-status"])
        self.assertEqual((first.count, second.count), (1000, 990))
        held.release()
        self.assert_part(await first.end(), CONTENT, FIRST, LAST)
        self.assert_part(await second.end(), CONTENT, FIRST + 10, LAST - 10)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, PART))

    async def test_a_large_one_that_nobody_reads_any_more_is_left(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, FIRST + 1000)
        clients = [await (await self.ask(digest, MIDDLE)).has(1000) for _ in range(2)]
        await clients[0].leave()
        held.release(FIRST + 2000)
        await clients[1].has(2000)
        self.assertEqual(self.parts_under_way(), 1)
        await clients[1].leave()
        await wait_for(lambda: not self.parts_under_way())
        self.hub.faults.clear()
        self.hub.forget_requests()
        part = await self.pull(digest, f"{FIRST}-{FIRST + 1999}")
        self.assert_part(part, CONTENT, FIRST, FIRST + 1999)
        self.assertEqual(self.hub.count("GET", CDN), 0)
        self.assert_part(await self.pull(digest, MIDDLE), CONTENT, FIRST, LAST)

    async def test_a_small_one_is_fetched_to_its_end(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, FIRST + 1000)
        client = await (await self.ask(digest, f"{FIRST}-{FIRST + 99_999}")).has(1000)
        await client.leave()
        held.release()
        await wait_for(lambda: not self.parts_under_way())
        self.hub.forget_requests()
        await self.pull(digest, f"{FIRST}-{FIRST + 99_999}")
        self.assertEqual(self.hub.count("GET", CDN), 0)

    def parts_under_way(self) -> int:
        """How many parts are being fetched."""
        (parts,) = self.parts.remotes._parts
        return len(parts._running)

    async def test_many_who_ask_for_the_same_part_at_once_have_it_fetched_once(self) -> None:
        digest = self.blob(CONTENT)
        silence = Silence()
        self.hub.faults.add(silence, on=CDN)
        coming = self.hub.coming("GET", CDN)
        clients = [await self.ask(digest, MIDDLE) for _ in range(20)]
        await coming
        await self.registry.request("GET", "/healthz")  # answered after those have been read
        silence.release()
        for client in clients:
            self.assert_part(await client.end(), CONTENT, FIRST, LAST)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, PART))
        collapsed = ["collapsed" in client.headers["cache-status"] for client in clients]
        kept = [client.headers["cache-status"] == KEPT for client in clients]
        self.assertEqual(sum(collapsed) + sum(kept), 19)

    async def test_one_that_another_client_has_brought_since_it_was_looked_for_is_a_hit(
        self,
    ) -> None:
        digest = self.blob(CONTENT)
        looking, others = Parts.stored, [MIDDLE]

        async def stored(parts: Parts, digest: Digest, size: int, span: ByteRange) -> Any:
            found = await looking(parts, digest, size, span)
            while others:
                self.assert_part(await self.pull(digest, others.pop()), CONTENT, FIRST, LAST)
                await wait_for(lambda: not self.parts_under_way())
            return found

        self.patch(Parts, "stored", stored)
        part = await self.pull(digest, MIDDLE)
        self.assert_part(part, CONTENT, FIRST, LAST)
        self.assertEqual(part.headers["cache-status"], KEPT)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, PART))

    async def test_a_part_that_breaks_off_is_gone_on_with(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=1000), on=CDN)
        self.assert_part(await self.pull(digest, MIDDLE), CONTENT, FIRST, LAST)
        ranges = [asked.headers["range"] for asked in self.hub.asked("GET", CDN)]
        self.assertEqual(ranges, [f"bytes={MIDDLE}", f"bytes={FIRST + 1000}-{LAST}"])
        self.assertEqual(self.blob_bytes, PART)

    async def test_a_part_that_can_not_be_had_is_cut_off_and_the_next_client_gets_it(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=1000), on=CDN)
        self.hub.faults.add(Later(Status(503)), on=CDN, times=None)
        part = await self.pull(digest, MIDDLE)
        self.assertEqual((part.status, part.whole), (206, False))
        self.assertTrue(CONTENT[FIRST : FIRST + 1000].startswith(part.body))
        self.hub.faults.clear()
        self.assert_part(await self.pull(digest, MIDDLE), CONTENT, FIRST, LAST)

    async def test_a_part_of_what_is_not_there_is_404(self) -> None:
        digest = self.blob(CONTENT, "library/another")
        self.blob(b"")
        part = await self.pull(digest, MIDDLE)
        self.assertEqual(part.error[:2], (404, "BLOB_UNKNOWN"))
        self.assertEqual(self.blob_bytes, 0)

    async def test_a_range_behind_the_end_is_416_and_says_where_that_is(self) -> None:
        digest = self.blob(CONTENT)
        for wanted in (f"{SIZE}-{SIZE + 9}", f"{SIZE}-", "-0"):
            part = await self.pull(digest, wanted)
            self.assertEqual(part.status, 416)
            self.assertEqual(part.headers["content-range"], f"bytes */{SIZE}")
        self.assert_whole(await self.pull(digest), CONTENT)

    async def test_what_the_fill_has_passed_is_answered_from_its_file(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, LAST + 1)
        whole = await self.ask(digest)
        await held.reached
        await self.filled(digest, LAST + 1)
        part = await (await self.ask(digest, MIDDLE)).end()
        self.assert_part(part, CONTENT, FIRST, LAST)
        self.assertEqual(part.headers["cache-status"], KEPT)
        self.assertEqual(self.hub.count("GET", CDN), 1)
        held.release()
        self.assert_whole(await whole.end(), CONTENT)

    async def test_what_the_fill_has_not_come_to_is_fetched_before_it(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, 1000)
        whole = await (await self.ask(digest)).has(1000)
        # Only what is asked for from the start is withheld.
        self.hub.faults.clear()
        part = await (await self.ask(digest, MIDDLE)).end()
        self.assert_part(part, CONTENT, FIRST, LAST)
        self.assertEqual((whole.count, whole.ended), (1000, False))
        held.release()
        self.assert_whole(await whole.end(), CONTENT)

    async def test_an_upstream_without_ranges_has_all_of_it_fetched(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoRanges(), on=CDN, times=None)
        part = await self.pull(digest, MIDDLE)
        self.assert_part(part, CONTENT, FIRST, LAST)
        self.assert_kept(digest, CONTENT)
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.hub.requests, [])

    async def test_an_upstream_that_does_not_say_the_size_has_all_of_it_fetched(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoLength(), on=CDN, method="*", times=None)
        self.hub.faults.add(NoRanges(), on=CDN, times=None)
        self.assert_part(await self.pull(digest, MIDDLE), CONTENT, FIRST, LAST)
        self.assert_kept(digest, CONTENT)

    async def test_where_head_is_refused_or_wrong_get_says_the_size(self) -> None:
        refused = (Status(status) for status in (401, 403, 404, 405, 500))
        faults: tuple[Fault, ...] = (NoLength(), Garbage(), *refused)
        for seed, fault in enumerate(faults):
            content = noise(SIZE, seed)
            digest = self.blob(content)
            self.hub.faults.add(fault, on=CDN, method="HEAD", times=None)
            self.assert_part(await self.pull(digest, MIDDLE), content, FIRST, LAST)
            self.hub.faults.clear()
            self.assertLess(self.blob_bytes, SIZE)
            self.hub.forget_requests()

    async def test_a_part_of_what_is_here_needs_no_upstream(self) -> None:
        digest = self.blob(CONTENT)
        await self.pull(digest)
        self.hub.forget_requests()
        for wanted, first, last in (
            ("0-9", 0, 9),
            (MIDDLE, FIRST, LAST),
            ("-5", SIZE - 5, SIZE - 1),
        ):
            part = await self.pull(digest, wanted)
            self.assert_part(part, CONTENT, first, last)
            self.assertEqual(part.headers["cache-status"], "artifactd; hit")
        self.assertEqual(self.hub.requests, [])


class VerifiedTests(PullCase):
    """Ranges from the beginning, and those without an end: nobody completes wrong bytes."""

    async def test_the_beginning_is_not_answered_before_all_is_verified(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, SIZE - 1)
        part = await self.ask(digest, "0-99")
        await held.reached
        await self.filled(digest, SIZE - 1)
        self.assertEqual(part.status, 0)
        held.release()
        self.assert_part(await part.end(), CONTENT, 0, 99)
        self.assertNotIn("unverified", part.headers["cache-status"])
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, SIZE))
        await self.settled(digest)
        self.assert_kept(digest, CONTENT)

    async def test_of_a_long_beginning_the_last_64_kib_are_held_back(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, SIZE - 1)
        part = await (await self.ask(digest, f"0-{LAST}")).has(LAST + 1 - HELD)
        await self.filled(digest, SIZE - 1)
        self.assertEqual(part.count, LAST + 1 - HELD)
        held.release()
        self.assert_part(await part.end(), CONTENT, 0, LAST)

    async def test_a_range_without_end_is_a_fill_whose_end_is_held_back(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, SIZE - 1)
        part = await (await self.ask(digest, f"{FIRST}-")).has(SIZE - HELD - FIRST)
        await self.filled(digest, SIZE - 1)
        self.assertEqual(part.count, SIZE - HELD - FIRST)
        held.release()
        self.assert_part(await part.end(), CONTENT, FIRST, SIZE - 1)
        await self.settled(digest)
        self.assert_kept(digest, CONTENT)

    async def test_more_of_the_end_than_there_is_is_all_of_it_and_verified(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, SIZE - 1)
        part = await (await self.ask(digest, f"-{SIZE + 1}")).has(SIZE - HELD)
        await self.filled(digest, SIZE - 1)
        self.assertEqual(part.count, SIZE - HELD)
        held.release()
        self.assert_part(await part.end(), CONTENT, 0, SIZE - 1)
        self.assertNotIn("unverified", part.headers["cache-status"])
        await self.settled(digest)
        self.assert_kept(digest, CONTENT)

    async def test_several_ranges_are_all_of_it_and_verified(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Corrupt(SIZE // 2), on=CDN)
        part = await self.pull(digest, "5-9,20-29")
        self.assertEqual((part.status, part.whole, part.ended), (200, False, True))
        self.assert_whole(await self.pull(digest, "5-9,20-29"), CONTENT)

    async def test_wrong_bytes_in_another_part_of_the_blob_cut_them_off(self) -> None:
        for number, (wanted, at) in enumerate(
            (("5-", 0), ("0-", SIZE - 1), (f"0-{LAST}", SIZE - 1))
        ):
            digest = self.blob(noise(SIZE, number))
            self.hub.faults.add(Corrupt(at), on=CDN)
            part = await self.pull(digest, wanted)
            self.assertEqual((part.status, part.whole, part.ended), (206, False, True))
            self.assertEqual(self.holders(digest), [])
        self.assertEqual(self.files(), {})


class IfRangeTests(PullCase):
    async def test_a_range_of_this_blob_is_one(self) -> None:
        digest = self.blob(CONTENT)
        part = await self.pull(digest, MIDDLE, if_range=f'"{digest}"')
        self.assert_part(part, CONTENT, FIRST, LAST)
        self.assertEqual(self.blob_bytes, PART)

    async def test_of_another_one_it_is_all_of_this_blob(self) -> None:
        digest = self.blob(CONTENT)
        self.assert_whole(await self.pull(digest, MIDDLE, if_range='"another"'), CONTENT)
        self.assert_kept(digest, CONTENT)


class ExtentTests(PullCase):
    """The fill takes what parts have brought."""

    async def test_the_fill_asks_only_for_what_is_missing(self) -> None:
        digest = self.blob(CONTENT)
        await self.pull(digest, MIDDLE)
        await self.recorded(digest, 1)
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        ranges = [asked.headers.get("range") for asked in self.hub.asked("GET", CDN)]
        self.assertEqual(ranges, [f"bytes=0-{FIRST - 1}", f"bytes={LAST + 1}-"])
        self.assertEqual(self.blob_bytes, SIZE - PART)
        self.assert_kept(digest, CONTENT)

    async def test_parts_that_are_all_of_it_become_the_blob_once_it_is_asked_for(self) -> None:
        digest = self.blob(CONTENT)
        await self.pull(digest, "1-1999999")
        await self.pull(digest, f"2000000-{SIZE - 1}")
        await self.recorded(digest, 2)
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, 1))
        self.assert_kept(digest, CONTENT)

    async def test_wrong_bytes_of_a_part_never_become_a_blob(self) -> None:
        for number, (wanted, at) in enumerate((("5-1999999", 6), ("-2000000", SIZE - 1))):
            with self.subTest(wanted=wanted):
                content = noise(SIZE, number)
                digest = self.blob(content)
                self.hub.faults.add(Corrupt(at), on=CDN)
                part = await self.pull(digest, wanted)
                # It is said that nobody has verified this.
                self.assertEqual((part.status, part.whole), (206, True))
                self.assertIn("unverified", part.headers["cache-status"])
                await self.recorded(digest, 1)
                whole = await self.pull(digest)
                self.assertEqual((whole.status, whole.whole, whole.ended), (200, False, True))
                self.assertLessEqual(whole.count, SIZE - HELD)
                mine = [name for name in self.files() if digest.encoded in name]
                self.assertEqual((mine, self.holders(digest)), ([], []))
                self.assertEqual(await self.counted("corrupt"), number + 1)
                self.assert_whole(await self.pull(digest), content)

    async def test_parts_are_no_way_round_what_the_upstream_allows(self) -> None:
        digest = self.blob(CONTENT)
        self.blob(b"", "library/another")
        await self.pull(digest, "1-1999999")
        await self.pull(digest, f"2000000-{SIZE - 1}")
        for wanted in (None, "5-9", "0-9", "5-"):
            denied = await self.pull(digest, wanted, name="library/another")
            self.assertEqual(denied.error[:2], (404, "BLOB_UNKNOWN"))
        self.assertEqual(self.holders(digest), [])

    async def test_what_the_upstream_will_not_give_does_not_cost_the_parts(self) -> None:
        digest = self.blob(CONTENT)
        await self.pull(digest, MIDDLE)
        await self.recorded(digest, 1)
        self.hub.faults.add(Status(503), on=BLOBS)
        self.assertEqual((await self.pull(digest)).error[:2], (502, "UNKNOWN"))
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE - PART)
