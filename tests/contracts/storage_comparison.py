"""What every store of fills does when a blob comes again from its first byte."""

from __future__ import annotations

from artifactd.oci.digest import Digest
from artifactd.store.fills import Contradicted, FillSession
from tests.contracts.storage_fills import CONTENT, DIGEST, FillTestCase, read
from tests.contracts.storage_uploads import MEBIBYTE, RecordedProducer


class ComparisonContract(FillTestCase):
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
