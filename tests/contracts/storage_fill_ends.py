"""What becomes of a fill: it is a blob, or it is gone, and what its followers see."""

from __future__ import annotations

from artifactd.oci.digest import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.store.fills import FillState
from tests.contracts.storage_fills import CONTENT, DIGEST, INFO, FillTestCase, read

SPAN = ByteRange(2, 4)


class FillStagingContract(FillTestCase):
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
        self.assertEqual(0, await self.stores.fills.sweep(0))

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
        self.assertEqual(0, await self.open_stores().blobs.sweep(self.rows.forget))
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


class FillDiscardContract(FillTestCase):
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


class FillSweepContract(FillTestCase):
    async def test_what_nobody_holds_is_swept(self) -> None:
        await self.left(b"hello")
        await self.left(b"other", digest=Digest.of(b"other blob"))
        await self.recorded(2, b"third", digest=Digest.of(b"third blob"))
        view = await self.viewed()
        self.assertEqual(3, await self.stores.fills.sweep(0))
        self.assert_looks(view, FillState.FAILED, 5)
        self.assertEqual(0, await self.stores.fills.sweep(0))

    async def test_what_somebody_holds_stays(self) -> None:
        session = await self.filled(b"hello ")
        await session.describe(INFO)
        await self.recorded(6, b"world")
        self.assertEqual(0, await self.open_stores().fills.sweep(0))
        self.assertEqual(INFO, await self.stores.fills.info(DIGEST))
        self.assertEqual(5, await session.take_extents(None))
        self.assertEqual(DIGEST, await session.computed())

    async def test_what_was_just_written_stays(self) -> None:
        await self.left(b"hello")
        await self.recorded(2, b"other", digest=Digest.of(b"other"))
        self.assertEqual(0, await self.stores.fills.sweep(3600))
        self.assertEqual(5, (await self.claimed()).written)

    async def test_what_was_swept_may_be_begun_again(self) -> None:
        await self.left(b"hello")
        await self.stores.fills.sweep(0)
        session = await self.filled(CONTENT)
        self.assertEqual(DIGEST, await session.computed())
