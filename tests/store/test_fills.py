"""Fills: claims, growth, what others see of them, cancellation, their ends."""

from __future__ import annotations

import os

from twisted.internet.defer import CancelledError, ensureDeferred, gatherResults
from twisted.internet.interfaces import IConsumer
from zope.interface.verify import verifyObject

from artifactd.oci.names import Algorithm, Digest
from artifactd.oci.ranges import ByteRange
from artifactd.store.fills import (
    Contradicted,
    FillInfo,
    FillSession,
    FillState,
)
from tests.store.filling import CHUNK, CONTENT, DIGEST, INFO, FillTestCase, SlowFillTestCase, read
from tests.store.fixture import MEBIBYTE, RecordedProducer, ThreadedTestCase

SPAN = ByteRange(2, 4)


class FillClaimTests(ThreadedTestCase, FillTestCase):
    async def test_a_fill_is_empty_at_first(self) -> None:
        session = await self.claimed()
        self.assertEqual((0, 0, None), (session.offset, session.written, session.info))
        self.assertTrue(session.compared)

    async def test_a_fill_has_one_writer_at_a_time(self) -> None:
        await self.claimed()
        for stores in (self.stores, self.open_stores()):
            for create in (True, False):
                self.assertIsNone(await stores.fills.claim(DIGEST, create=create))

    async def test_of_many_that_want_it_at_once_one_gets_it(self) -> None:
        processes = [self.stores, *(self.open_stores() for _ in range(3))]
        claims = [ensureDeferred(stores.fills.claim(DIGEST)) for stores in processes * 5]
        won = [session for session in await gatherResults(claims) if session is not None]
        for session in won:
            await session.close()
        self.assertEqual(1, len(won))

    async def test_what_was_never_begun_is_not_claimed_unless_it_shall_be_begun(self) -> None:
        self.assertIsNone(await self.stores.fills.claim(DIGEST, create=False))
        self.assertIsNone(await self.stores.fills.view(DIGEST))

    async def test_two_blobs_do_not_get_in_each_others_way(self) -> None:
        await self.claimed()
        await self.claimed(Digest.of(b"other"))
        await self.claimed(Digest.of(CONTENT, Algorithm.SHA512))

    async def test_a_closed_session_lets_others_go_on(self) -> None:
        await self.left(b"hello ")
        session = await self.open_stores().fills.claim(DIGEST, create=False)
        assert session is not None
        self.assertEqual((6, 6), (session.offset, session.written))
        session.write(b"world")
        self.assertEqual(11, await session.flush())
        self.assertEqual(DIGEST, await session.computed())
        await session.close()

    async def test_closing_keeps_what_was_not_flushed(self) -> None:
        session = await self.claimed()
        session.write(b"hello")
        await session.close()
        self.assertEqual(5, (await self.claimed()).written)

    async def test_a_session_may_be_closed_twice(self) -> None:
        session = await self.claimed()
        await session.close()
        await self.claimed()
        await session.close()
        self.assertIsNone(await self.stores.fills.claim(DIGEST))

    async def test_what_was_described_is_there_for_all(self) -> None:
        session = await self.claimed()
        self.assertIsNone(await self.stores.fills.info(DIGEST))
        for info in (FillInfo(None), FillInfo(0), INFO):
            await session.describe(info)
            self.assertEqual(info, session.info)
            other = self.open_stores()
            self.assertEqual(info, await other.fills.info(DIGEST))
            found = await other.fills.view(DIGEST)
            assert found is not None
            found[0].close()
            self.assertEqual(info, found[1])
        await session.close()
        self.assertEqual(INFO, (await self.claimed()).info)


class FillGrowthTests(ThreadedTestCase, FillTestCase):
    async def test_growth_is_told_when_it_can_be_read(self) -> None:
        session = await self.claimed()
        reader = session.reader()
        self.addCleanup(reader.close)
        told = []

        def grown(written: int) -> None:
            told.append(written)
            self.assertEqual(CONTENT[:written], read(reader, written))

        session.watch(grown)
        for piece, offset in ((b"hello", 5), (b" ", 6), (b"world", 11)):
            session.write(piece)
            self.assertEqual(offset, session.offset)
        self.assertEqual(11, await session.flush())
        self.assertEqual((11, 11), (session.offset, session.written))
        self.assertEqual((sorted(set(told)), 11), (told, told[-1]))

    async def test_many_small_and_some_large_pieces_come_out_in_order(self) -> None:
        pieces = [bytes([n % 256]) * (n % 7) for n in range(5000)]
        pieces += [bytes([n]) * MEBIBYTE for n in range(5)]
        content = b"".join(pieces)
        session = await self.filled(*pieces, digest=Digest.of(content))
        self.assertEqual(Digest.of(content), await session.computed())
        reader = session.reader()
        self.addCleanup(reader.close)
        self.assertEqual(content, read(reader))

    async def test_another_process_sees_it_grow(self) -> None:
        session = await self.filled(b"hello ")
        view = await self.viewed(stores=self.open_stores())
        self.assert_looks(view, FillState.GROWING, 6)
        session.write(b"world")
        await session.flush()
        self.assert_looks(view, FillState.GROWING, 11)
        self.assertEqual(CONTENT, read(view))

    async def test_readers_do_not_keep_the_claim(self) -> None:
        session = await self.filled(b"hello ")
        for reader in (session.reader(), await self.viewed()):
            self.addCleanup(reader.close)
        await session.close()
        again = await self.claimed()
        again.write(b"world")
        await again.flush()
        self.assertEqual(CONTENT, read(reader))

    async def test_a_reader_may_be_closed_twice(self) -> None:
        session = await self.filled(CONTENT)
        for reader in (session.reader(), await self.viewed()):
            fd = reader.fileno()
            reader.close()
            reader.close()
            self.assertRaises(OSError, os.fstat, fd)

    async def test_the_digest_goes_on_after_it_was_told(self) -> None:
        session = await self.filled(b"hello")
        self.assertEqual(Digest.of(b"hello"), await session.computed())
        session.write(b" world")
        self.assertEqual(DIGEST, await session.computed())

    async def test_the_digest_is_by_the_algorithm_of_the_blob(self) -> None:
        digest = Digest.of(CONTENT, Algorithm.SHA512)
        session = await self.filled(CONTENT, digest=digest)
        self.assertEqual(digest, await session.computed())

    async def test_a_long_fill_that_another_process_has_begun(self) -> None:
        content = bytes(range(251)) * (20 * MEBIBYTE // 251)
        digest = Digest.of(content + b"end")
        await self.left(content, digest=digest)
        session = await self.claimed(digest, self.open_stores())
        session.registerProducer(RecordedProducer(), True)
        session.write(b"end")
        session.unregisterProducer()
        self.assertEqual(digest, await session.computed())


class ComparisonTests(ThreadedTestCase, FillTestCase):
    async def begun(self) -> FillSession:
        """A fill whose first half is here, and comes again."""
        await self.left(b"hello ")
        session = await self.claimed()
        session.restart()
        self.assertFalse(session.compared)
        return session

    async def assert_contradicted(self, *pieces: bytes) -> None:
        session, producer, told = await self.begun(), RecordedProducer(), list[int]()
        session.watch(told.append)
        session.registerProducer(producer, True)
        for piece in pieces:
            session.write(piece)
        for _ in range(2):
            await self.assert_raises(Contradicted, session.flush())
        self.assertEqual(["stop"], producer.told)
        self.assertEqual((6, 6, []), (session.offset, session.written, told))
        self.assertEqual(b"hello ", read(await self.viewed()))

    async def test_what_comes_again_is_not_written_again(self) -> None:
        session = await self.begun()
        told: list[int] = []
        session.watch(told.append)
        for piece in (b"he", b"llo"):
            session.write(piece)
            self.assertEqual(6, session.offset)
        self.assertEqual(6, await session.flush())
        self.assertEqual((False, []), (session.compared, told))
        session.write(b" world")
        self.assertEqual(11, session.offset)
        self.assertEqual(11, await session.flush())
        self.assertEqual((True, [11]), (session.compared, told))
        self.assertEqual(DIGEST, await session.computed())

    async def test_all_at_once(self) -> None:
        session = await self.begun()
        session.write(CONTENT)
        self.assertEqual(DIGEST, await session.computed())

    async def test_exactly_what_is_here(self) -> None:
        session = await self.begun()
        session.write(b"hello ")
        self.assertEqual(6, await session.flush())
        self.assertTrue(session.compared)

    async def test_the_first_byte_is_another(self) -> None:
        await self.assert_contradicted(b"Hello world")

    async def test_the_last_byte_is_another(self) -> None:
        await self.assert_contradicted(b"hello", b"_world")

    async def test_less_than_is_here_is_not_all(self) -> None:
        session = await self.begun()
        session.write(b"hello")
        self.assertEqual(6, await session.flush())
        self.assertFalse(session.compared)

    async def test_what_is_left_unfinished_may_be_begun_again(self) -> None:
        session = await self.begun()
        session.write(b"hel")
        await session.flush()
        session.restart()
        session.write(CONTENT)
        self.assertEqual(DIGEST, await session.computed())

    async def test_or_the_rest_is_appended_after_all(self) -> None:
        session = await self.begun()
        session.write(b"hel")
        await session.flush()
        self.assertEqual(0, await session.take_extents(None))
        self.assertTrue(session.compared)
        session.write(b"world")
        self.assertEqual(11, session.offset)
        self.assertEqual(DIGEST, await session.computed())

    async def test_nothing_is_here_to_compare_with(self) -> None:
        session = await self.claimed()
        session.restart()
        self.assertTrue(session.compared)
        session.write(CONTENT)
        self.assertEqual(DIGEST, await session.computed())

    async def test_a_long_one_that_grew_since(self) -> None:
        content = bytes(range(251)) * (3 * MEBIBYTE // 251)
        digest = Digest.of(content)
        session = await self.filled(content[: 2 * MEBIBYTE], digest=digest)
        session.restart()
        for start in range(0, len(content), 100_000):
            session.write(content[start : start + 100_000])
        self.assertEqual(digest, await session.computed())


class FillStagingTests(ThreadedTestCase, FillTestCase):
    async def test_a_verified_fill_becomes_a_blob(self) -> None:
        session = await self.filled(CONTENT)
        self.assertEqual(DIGEST, await session.computed())
        staged = await session.stage()
        self.assertEqual((DIGEST, 11), (staged.digest, staged.size))
        await self.assert_no_blob(DIGEST)
        await staged.publish()
        staged.confirm()
        staged.release()
        await self.assert_blob(CONTENT)

    async def test_its_followers_see_that_it_is_verified(self) -> None:
        session = await self.filled(CONTENT)
        views = [await self.viewed(), await self.viewed(stores=self.open_stores())]
        staged = await session.stage()
        for step in (staged.publish, session.close):
            for view in views:
                self.assert_looks(view, FillState.VERIFIED, 11)
            await step()
        staged.release()
        for view in views:
            self.assert_looks(view, FillState.VERIFIED, 11)
            self.assertEqual(CONTENT, read(view))

    async def test_its_followers_see_that_it_failed_if_it_is_withdrawn(self) -> None:
        session = await self.filled(CONTENT)
        view = await self.viewed()
        staged = await session.stage()
        await staged.publish()
        await staged.withdraw(self.rows.forget)
        self.assert_looks(view, FillState.FAILED, 11)

    async def test_a_staged_fill_is_no_fill_any_more(self) -> None:
        session = await self.filled(CONTENT)
        await session.describe(INFO)
        await self.recorded(2, b"llo")
        await session.stage()
        self.assertIsNone(await self.stores.fills.view(DIGEST))
        self.assertIsNone(await self.stores.fills.claim(DIGEST, create=False))
        self.assertIsNone(await self.stores.fills.info(DIGEST))
        self.assertIsNone(await self.stores.fills.find_extent(DIGEST, SPAN))
        self.assertEqual(0, len(await self.stores.all_fills.sweep(0)))

    async def test_it_is_staged_until_it_is_published_or_given_up(self) -> None:
        for publish in (True, False):
            session = await self.filled(CONTENT)
            await self.assert_staged(False)
            staged = await session.stage()
            await session.close()
            await staged.publish()
            await self.assert_staged(True)
            if publish:
                staged.confirm()
                staged.release()
            else:
                await staged.withdraw(self.rows.forget)
            await self.assert_staged(False)

    async def assert_staged(self, expected: bool) -> None:
        """As this process sees it, and another one; of no other blob."""
        for stores in (self.stores, self.open_stores()):
            self.assertEqual(expected, await stores.fills.is_staged(DIGEST))
            self.assertFalse(await stores.fills.is_staged(Digest.of(b"another")))

    async def test_it_stays_protected_when_the_session_is_closed(self) -> None:
        session = await self.filled(CONTENT)
        staged = await session.stage()
        await session.close()
        self.assertEqual(0, len(await self.open_stores().blobs.sweep(self.rows.forget)))
        await staged.publish()
        staged.confirm()
        staged.release()
        await self.assert_blob(CONTENT)

    async def test_a_fill_that_was_begun_since_is_not_touched(self) -> None:
        session = await self.filled(CONTENT)
        staged = await session.stage()
        await self.left(b"hel")
        view = await self.viewed()
        await session.discard()
        await session.close()
        await staged.withdraw(self.rows.forget)
        self.assert_looks(view, FillState.GROWING, 3)
        self.assertEqual(3, (await self.claimed()).written)


class FillDiscardTests(ThreadedTestCase, FillTestCase):
    async def assert_nothing_kept(self, digest: Digest = DIGEST) -> None:
        fills = self.open_stores().fills
        self.assertIsNone(await fills.view(digest))
        self.assertIsNone(await fills.info(digest))
        self.assertIsNone(await fills.find_extent(digest, SPAN))

    async def test_nothing_is_left_of_a_discarded_fill(self) -> None:
        session = await self.filled(b"HELL")
        await session.describe(INFO)
        await self.recorded(2, b"LLO")
        await session.discard()
        await self.assert_nothing_kept()
        await session.close()
        self.assertEqual(0, (await self.claimed()).written)

    async def test_its_followers_see_that_it_failed_and_may_read_on(self) -> None:
        session = await self.filled(b"hello")
        reader = session.reader()
        self.addCleanup(reader.close)
        view = await self.viewed()
        await session.discard()
        self.assert_looks(view, FillState.FAILED, 5)
        await session.close()
        await self.left(CONTENT)
        self.assert_looks(view, FillState.FAILED, 5)
        self.assertEqual((b"hello", b"hello"), (read(view), read(reader)))
        self.assert_looks(await self.viewed(), FillState.GROWING, 11)

    async def test_one_that_is_left_alone_is_still_growing(self) -> None:
        session = await self.filled(b"hello")
        view = await self.viewed()
        await session.close()
        self.assert_looks(view, FillState.GROWING, 5)

    async def test_the_store_discards_what_nobody_has_claimed(self) -> None:
        await self.left(b"hello")
        await self.recorded(2, b"llo")
        view = await self.viewed()
        await self.open_stores().fills.discard(DIGEST)
        self.assert_looks(view, FillState.FAILED, 5)
        await self.assert_nothing_kept()

    async def test_and_extents_without_a_fill(self) -> None:
        await self.recorded(2, b"llo")
        await self.stores.fills.discard(DIGEST)
        await self.assert_nothing_kept()
        await self.stores.fills.discard(DIGEST)

    async def test_but_not_what_somebody_has_claimed(self) -> None:
        session = await self.filled(b"hello ")
        await session.describe(INFO)
        await self.recorded(2, b"llo")
        await self.open_stores().fills.discard(DIGEST)
        self.assertEqual(INFO, await self.stores.fills.info(DIGEST))
        found = await self.stores.fills.find_extent(DIGEST, SPAN)
        assert found is not None
        found.close()
        session.write(b"world")
        self.assertEqual(DIGEST, await session.computed())
        await (await session.stage()).publish()
        await self.assert_blob(CONTENT)


class RepositoryTests(FillTestCase):
    """Two remote repositories, whose upstreams send a blob of the same digest."""

    def setUp(self) -> None:
        super().setUp()
        self.other = self.stores.all_fills.of("ghcr.io")

    async def test_what_one_has_so_far_the_other_does_not_see(self) -> None:
        await (await self.filled(b"hello ")).describe(INFO)
        await self.recorded(2, b"llo")
        self.assertIsNone(await self.other.view(DIGEST))
        self.assertIsNone(await self.other.info(DIGEST))
        self.assertIsNone(await self.other.find_extent(DIGEST, SPAN))
        self.assertIsNone(await self.other.claim(DIGEST, create=False))

    async def test_both_are_filled_at_once_and_the_second_publishes_over_the_first(self) -> None:
        first, second = await self.filled(CONTENT), await self.other.claim(DIGEST)
        assert second is not None
        self.addCleanup(lambda: ensureDeferred(second.close()))
        self.assertEqual((0, None), (second.written, second.info))
        self.assertEqual((0, None), (await second.take_extents(None), await second.next_extent()))
        second.write(CONTENT)
        for session in (first, second):
            self.assertEqual(DIGEST, await session.computed())
            staged = await session.stage()
            await staged.publish()
            staged.release()
        await self.assert_blob(CONTENT)
        self.assertEqual([], self.below("fills") + self.below("staging"))

    async def test_what_one_discards_the_other_keeps(self) -> None:
        await self.left(b"hello ")
        await self.recorded(2, b"llo")
        kept = self.below("fills")
        await self.other.discard(DIGEST)
        session = await self.other.claim(DIGEST)
        assert session is not None
        await session.discard()
        await session.close()
        self.assertEqual(kept, self.below("fills"))

    async def test_a_repository_with_the_longest_name_has_fills_of_the_longest_digests(
        self,
    ) -> None:
        digest = Digest.of(CONTENT, Algorithm.SHA512)
        fills = self.stores.all_fills.of("a" * 64)
        session = await fills.claim(digest)
        assert session is not None
        await session.describe(INFO)
        await session.close()
        extent = await fills.add_extent(digest, 6, INFO)
        extent.write(b"world")
        await extent.record()
        await extent.close()
        self.assertEqual(4, len(self.below("fills")))
        self.assertEqual(1, len(await self.stores.all_fills.sweep(0)))
        self.assertEqual([], self.below("fills"))


class FillSweepTests(ThreadedTestCase, FillTestCase):
    async def test_what_nobody_holds_is_swept(self) -> None:
        await self.left(b"hello")
        await self.left(b"other", digest=Digest.of(b"other blob"))
        await self.recorded(2, b"third", digest=Digest.of(b"third blob"))
        view = await self.viewed()
        self.assertEqual(3, len(await self.stores.all_fills.sweep(0)))
        self.assert_looks(view, FillState.FAILED, 5)
        self.assertEqual(0, len(await self.stores.all_fills.sweep(0)))

    async def test_what_an_earlier_release_left_is_swept(self) -> None:
        await self.left(b"hello")
        await self.recorded(2, b"third")
        for name in self.below("fills"):
            folder = self.path / "fills"
            (folder / name).rename(folder / name.partition("@")[2])
        self.assertEqual(1, len(await self.stores.all_fills.sweep(0)))
        self.assertEqual([], self.below("fills"))

    async def test_what_somebody_holds_stays(self) -> None:
        session = await self.filled(b"hello ")
        await session.describe(INFO)
        await self.recorded(6, b"world")
        self.assertEqual(0, len(await self.open_stores().all_fills.sweep(0)))
        self.assertEqual(INFO, await self.stores.fills.info(DIGEST))
        self.assertEqual(5, await session.take_extents(None))
        self.assertEqual(DIGEST, await session.computed())

    async def test_what_was_just_written_stays(self) -> None:
        await self.left(b"hello")
        await self.recorded(2, b"other", digest=Digest.of(b"other"))
        self.assertEqual(0, len(await self.stores.all_fills.sweep(3600)))
        self.assertEqual(5, (await self.claimed()).written)

    async def test_what_was_swept_may_be_begun_again(self) -> None:
        await self.left(b"hello")
        await self.stores.all_fills.sweep(0)
        session = await self.filled(CONTENT)
        self.assertEqual(DIGEST, await session.computed())


HIGH_WATER = FillSession.high_water


class HopTests(SlowFillTestCase):
    def test_it_is_a_consumer(self) -> None:
        self.assertTrue(verifyObject(IConsumer, self.session))

    def test_the_first_byte_goes_at_once(self) -> None:
        self.session.write(b"h")
        self.assertEqual(1, len(self.slow_threads.waiting))
        self.slow_threads.run_one()
        self.assertEqual((1, 1), (self.size, self.session.written))

    def test_what_comes_while_a_thread_is_busy_goes_together(self) -> None:
        for piece in (b"h", b"e", b"l", b"lo"):
            self.session.write(piece)
        self.assertEqual((5, 0), (self.session.offset, self.session.written))
        sizes = []
        while self.slow_threads.waiting:
            self.slow_threads.run_one()
            sizes.append(self.size)
        self.assertEqual([1, 5], sizes)

    def test_the_next_thread_begins_before_growth_is_told(self) -> None:
        waiting: list[int] = []
        self.session.watch(lambda _: waiting.append(len(self.slow_threads.waiting)))
        self.session.write(b"h")
        self.session.write(b"ello")
        self.slow_threads.run_all()
        self.assertEqual([1, 0], waiting)

    def test_a_part_goes_at_once_too(self) -> None:
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 6, FillInfo(11)))
        extent.write(b"w")
        self.slow_threads.run_one()
        self.assertEqual(7, extent.written)
        self.ended(extent.close())

    def test_what_gathered_meanwhile_is_recorded_too(self) -> None:
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 6, FillInfo(11)))
        extent.write(b"w")
        extent.write(b"orld")
        self.ended(extent.record())
        self.ended(extent.close())
        found = self.ended(self.slow.fills.find_extent(DIGEST, ByteRange(6, 10)))
        assert found is not None
        found.close()


class FillFlowTests(SlowFillTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.producer = RecordedProducer()
        self.session.registerProducer(self.producer, True)

    def test_the_upstream_is_paused_while_the_disk_is_behind(self) -> None:
        self.write(HIGH_WATER - len(CHUNK))
        self.assertEqual([], self.producer.told)
        self.write(len(CHUNK))
        self.assertEqual(["pause"], self.producer.told)
        self.slow_threads.run_all()
        self.assertEqual(["pause", "resume"], self.producer.told)
        self.assertEqual(HIGH_WATER, self.session.written)

    def test_an_exhausted_budget_pauses_it(self) -> None:
        self.budget.acquire(self.budget.threshold)
        waiting = self.budget.acquire(1)
        self.assertEqual(["pause"], self.producer.told)
        self.budget.release(self.budget.threshold)
        self.successResultOf(waiting)
        self.assertEqual(["pause", "resume"], self.producer.told)

    def test_all_that_was_taken_is_given_back(self) -> None:
        self.write(HIGH_WATER)
        self.assertEqual(HIGH_WATER, self.budget.used)
        self.ended(self.session.close())
        self.assertEqual(0, self.budget.used)

    def test_what_comes_again_counts_in_the_budget_too(self) -> None:
        self.write(HIGH_WATER)
        self.slow_threads.run_all()
        self.session.restart()
        self.write(HIGH_WATER)
        self.assertEqual((HIGH_WATER, HIGH_WATER), (self.budget.used, self.session.offset))
        self.assertEqual(["pause", "resume", "pause"], self.producer.told)
        self.slow_threads.run_all()
        self.assertEqual((0, True), (self.budget.used, self.session.compared))

    def test_a_contradiction_gives_all_back_and_stops_the_upstream(self) -> None:
        self.write(HIGH_WATER)
        self.slow_threads.run_all()
        self.session.restart()
        self.session.write(b"y")
        self.write(HIGH_WATER)
        self.slow_threads.run_all()
        self.assertEqual((0, "stop"), (self.budget.used, self.producer.told[-1]))
        self.assertEqual((HIGH_WATER, HIGH_WATER), (self.size, self.session.offset))


class CatchingUpTests(SlowFillTestCase):
    def test_a_claim_is_answered_before_anything_is_read(self) -> None:
        self.elsewhere(b"x" * MEBIBYTE)
        self.assertEqual((MEBIBYTE, 0), (self.session.written, self.files.read_back))
        self.assertEqual([], self.slow_threads.waiting)

    def test_bytes_hashed_as_they_came_are_not_read_again(self) -> None:
        self.write(MEBIBYTE)
        self.assertEqual(Digest.of(b"x" * MEBIBYTE), self.ended(self.session.computed()))
        self.assertEqual(0, self.files.read_back)

    def test_what_was_here_is_hashed_while_the_upstream_is_waited_for(self) -> None:
        self.elsewhere(b"x" * 40 * MEBIBYTE)
        self.session.registerProducer(RecordedProducer(), True)
        turns = 0
        while self.slow_threads.waiting:
            self.slow_threads.run_one()
            turns += 1
        self.assertEqual((3, 40 * MEBIBYTE), (turns, self.files.read_back))
        self.session.write(b"end")
        digest = self.ended(self.session.computed())
        self.assertEqual(Digest.of(b"x" * 40 * MEBIBYTE + b"end"), digest)
        self.assertEqual(40 * MEBIBYTE, self.files.read_back)

    def test_what_comes_meanwhile_waits_for_one_turn_at_most(self) -> None:
        self.elsewhere(b"x" * 40 * MEBIBYTE)
        self.session.registerProducer(RecordedProducer(), True)
        self.session.write(b"end")
        self.slow_threads.run_one()
        self.assertEqual(16 * MEBIBYTE, self.files.read_back)
        self.slow_threads.run_one()
        self.assertEqual(40 * MEBIBYTE + 3, self.session.written)
        digest = self.ended(self.session.computed())
        self.assertEqual(Digest.of(b"x" * 40 * MEBIBYTE + b"end"), digest)

    def test_it_rests_when_there_is_no_upstream(self) -> None:
        self.elsewhere(b"x" * 20 * MEBIBYTE)
        self.session.registerProducer(RecordedProducer(), True)
        self.session.unregisterProducer()
        self.slow_threads.run_all()
        self.assertEqual(16 * MEBIBYTE, self.files.read_back)

    def test_it_does_not_keep_the_session_from_being_closed(self) -> None:
        self.elsewhere(b"x" * 20 * MEBIBYTE)
        self.session.registerProducer(RecordedProducer(), True)
        closing = ensureDeferred(self.session.close())
        self.slow_threads.run_one()  # a turn
        self.slow_threads.run_one()  # the close
        self.successResultOf(closing)
        self.assertEqual([], self.slow_threads.waiting)
        self.assertEqual(16 * MEBIBYTE, self.files.read_back)

    def test_there_is_one_turn_at_a_time(self) -> None:
        self.elsewhere(b"x" * 20 * MEBIBYTE)
        for _ in range(3):
            self.session.registerProducer(RecordedProducer(), True)
            self.session.unregisterProducer()
        self.slow_threads.run_all()
        self.assertEqual(16 * MEBIBYTE, self.files.read_back)

    def test_what_has_come_goes_before_what_was_here(self) -> None:
        self.elsewhere(b"x" * MEBIBYTE)
        self.session.write(b"h")
        self.session.registerProducer(RecordedProducer(), True)
        self.session.write(b"ello")
        for _ in range(2):
            self.slow_threads.run_one()
        self.assertEqual((MEBIBYTE + 5, 0), (self.session.written, self.files.read_back))

    def test_what_is_taken_from_extents_is_hashed_too(self) -> None:
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 6, FillInfo(11)))
        extent.write(b"world")
        self.ended(extent.record())
        self.ended(extent.close())
        self.session.write(b"hello ")
        self.slow_threads.run_all()
        self.assertEqual(5, self.ended(self.session.take_extents(None)))
        before = self.files.read_back
        self.assertEqual(DIGEST, self.ended(self.session.computed()))
        self.assertEqual(before, self.files.read_back)


class FillCancellationTests(SlowFillTestCase):
    def test_a_claim_that_nobody_waits_for_is_given_up(self) -> None:
        self.ended(self.session.close())
        claiming = ensureDeferred(self.slow.fills.claim(DIGEST))
        claiming.cancel()
        self.failureResultOf(claiming, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual(0, self.claimed().written)

    def test_closing_goes_on_when_nobody_waits_for_it(self) -> None:
        self.session.write(b"bytes")
        closing = ensureDeferred(self.session.close())
        closing.cancel()
        self.failureResultOf(closing, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual(5, self.claimed().written)

    def test_extents_that_nobody_waits_for_are_taken_all_the_same(self) -> None:
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 0, FillInfo(11)))
        extent.write(b"hello")
        self.ended(extent.record())
        self.ended(extent.close())
        taking = ensureDeferred(self.session.take_extents(None))
        taking.cancel()
        self.failureResultOf(taking, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual((5, 5), (self.session.offset, self.session.written))

    def test_a_staged_fill_that_nobody_waits_for_is_swept(self) -> None:
        self.session.write(b"hello world")
        self.slow_threads.run_all()
        staging = ensureDeferred(self.session.stage())
        staging.cancel()
        self.failureResultOf(staging, CancelledError)
        self.ended(self.session.close())
        self.assertEqual(1, len(self.ended(self.slow.blobs.sweep(self.rows.forget))))
        self.assertEqual([], self.below("staging") + self.below("fills"))

    def test_views_and_extents_that_nobody_waits_for_are_closed(self) -> None:
        self.session.write(b"hello")
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 0, FillInfo(11)))
        extent.write(b"hello")
        self.ended(extent.record())
        before = len(os.listdir("/proc/self/fd"))
        for opening in (
            ensureDeferred(self.slow.fills.view(DIGEST)),
            ensureDeferred(self.slow.fills.find_extent(DIGEST, ByteRange(0, 4))),
            ensureDeferred(self.slow.fills.add_extent(DIGEST, 0, FillInfo(11))),
        ):
            opening.cancel()
            self.failureResultOf(opening, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual(before, len(os.listdir("/proc/self/fd")))
        self.ended(extent.close())

    def test_nothing_is_taken_after_the_close(self) -> None:
        self.ended(self.session.close())
        self.session.write(b"late")
        self.slow_threads.run_all()
        self.assertEqual((0, 0), (self.size, self.budget.used))

    def test_who_looks_sees_what_a_thread_has_written(self) -> None:
        view = self.ended(self.slow.fills.view(DIGEST))
        assert view is not None
        self.addCleanup(view[0].close)
        self.session.write(b"hello")
        self.assertEqual((FillState.GROWING, 0), view[0].look())
        self.slow_threads.run_all()
        self.assertEqual((FillState.GROWING, 5), view[0].look())
