"""
What every store of fills does: claims, growth, and what others see of it.

``storage_comparison`` has what comes twice, ``storage_fill_ends`` what becomes of a fill, and
``storage_extents`` the parts that come before the rest.
"""

from __future__ import annotations

import os

from twisted.internet.defer import ensureDeferred, gatherResults

from artifactd.oci.digest import Algorithm, Digest
from artifactd.store.files import OpenFile
from artifactd.store.fills import ExtentSession, FillInfo, FillSession, FillState, FillView
from tests.contracts.storage import StorageTestCase, Stores
from tests.contracts.storage_uploads import MEBIBYTE, RecordedProducer

CONTENT = b"hello world"
DIGEST = Digest.of(CONTENT)
INFO = FillInfo(len(CONTENT), '"validator"')


def read(file: OpenFile, size: int = 64 * MEBIBYTE, offset: int = 0) -> bytes:
    """What can be read of an open file."""
    return os.pread(file.fileno(), size, offset)


class FillTestCase(StorageTestCase):
    """Fills and extents in the stores of a test."""

    async def claimed(self, digest: Digest = DIGEST, stores: Stores | None = None) -> FillSession:
        session = await (stores or self.stores).fills.claim(digest)
        assert session is not None
        self.addCleanup(lambda: ensureDeferred(session.close()))
        return session

    async def filled(self, *pieces: bytes, digest: Digest = DIGEST) -> FillSession:
        """A claimed fill of ``pieces``."""
        session = await self.claimed(digest)
        for piece in pieces:
            session.write(piece)
        await session.flush()
        return session

    async def left(self, *pieces: bytes, digest: Digest = DIGEST) -> None:
        """A fill that has got as far as ``pieces``, and that nobody has claimed."""
        await (await self.filled(*pieces, digest=digest)).close()

    async def viewed(self, digest: Digest = DIGEST, stores: Stores | None = None) -> FillView:
        found = await (stores or self.stores).fills.view(digest)
        assert found is not None
        self.addCleanup(found[0].close)
        return found[0]

    async def extent(
        self,
        first: int,
        content: bytes,
        *,
        digest: Digest = DIGEST,
        info: FillInfo = INFO,
        stores: Stores | None = None,
    ) -> ExtentSession:
        """A part that has been written, and is neither recorded nor closed."""
        session = await (stores or self.stores).fills.add_extent(digest, first, info)
        self.addCleanup(lambda: ensureDeferred(session.close()))
        session.write(content)
        return session

    async def recorded(
        self, first: int, content: bytes, *, digest: Digest = DIGEST, stores: Stores | None = None
    ) -> None:
        """A part that is here."""
        session = await self.extent(first, content, digest=digest, stores=stores)
        await session.record()
        await session.close()

    def assert_looks(self, view: FillView, state: FillState, size: int) -> None:
        self.assertEqual((state, size), view.look())


class FillClaimContract(FillTestCase):
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


class FillGrowthContract(FillTestCase):
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
