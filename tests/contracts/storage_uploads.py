"""What every store of uploads does; ``storage_sessions`` has what becomes of their bytes."""

from __future__ import annotations

from contextlib import suppress
from uuid import uuid4

from attrs import define, field
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from artifactd.oci.digest import Algorithm
from artifactd.store.uploads import UploadBusy, UploadMissing, UploadSession
from tests.contracts.storage import StorageTestCase, Stores

MEBIBYTE = 1024 * 1024


@implementer(IPushProducer)
@define
class RecordedProducer:
    """A sender that does nothing but remember what it was told."""

    told: list[str] = field(factory=list)

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class UploadTestCase(StorageTestCase):
    """Uploads in the stores of a test."""

    async def created(self) -> str:
        upload_id = str(uuid4())
        self.stores.uploads.create(upload_id)
        return upload_id

    async def claimed(
        self,
        upload_id: str,
        algorithm: Algorithm = Algorithm.SHA256,
        stores: Stores | None = None,
    ) -> UploadSession:
        session = await (stores or self.stores).uploads.claim(upload_id, algorithm)
        self.addCleanup(lambda: ensureDeferred(session.close()))
        return session

    async def appended(self, upload_id: str, *pieces: bytes, stores: Stores | None = None) -> None:
        """One request that appends ``pieces``."""
        session = await self.claimed(upload_id, stores=stores)
        for piece in pieces:
            session.write(piece)
        await session.flush()
        await session.close()

    async def content(self, upload_id: str) -> bytes | None:
        """All that is staged, by turning it into a blob."""
        session = await self.claimed(upload_id)
        digest = await session.digest(Algorithm.SHA256)
        staged = await session.stage(digest)
        await session.close()
        await staged.publish()
        staged.release()
        return await self.stores.blobs.read(digest)


class UploadContract(UploadTestCase):
    async def test_one_may_begin_and_be_claimed_at_once(self) -> None:
        upload_id = str(uuid4())
        session = await self.stores.uploads.begin(upload_id, Algorithm.SHA256)
        self.addCleanup(lambda: ensureDeferred(session.close()))
        session.write(b"blob")
        self.assertEqual(4, await session.flush())
        await self.assert_raises(UploadBusy, self.stores.uploads.claim(upload_id, Algorithm.SHA256))

    async def test_an_upload_is_empty_at_first(self) -> None:
        upload_id = await self.created()
        self.assertEqual(0, await self.stores.uploads.offset(upload_id))
        session = await self.claimed(upload_id)
        self.assertEqual((upload_id, 0), (session.id, session.offset))

    async def test_an_id_serves_once(self) -> None:
        upload_id = await self.created()
        await self.appended(upload_id, b"kept")
        self.assertRaises(FileExistsError, self.stores.uploads.create, upload_id)
        self.assertEqual(4, await self.stores.uploads.offset(upload_id))

    async def test_an_upload_that_was_never_created_is_missing(self) -> None:
        uploads, upload_id = self.stores.uploads, str(uuid4())
        await self.assert_raises(UploadMissing, uploads.offset(upload_id))
        await self.assert_raises(UploadMissing, uploads.claim(upload_id, Algorithm.SHA256))
        await uploads.discard(upload_id)

    async def test_what_is_no_id_reaches_nothing(self) -> None:
        uploads = self.stores.uploads
        for name in ("", ".", "..", "../staging", "/etc/passwd", "a/b", "UPPER", "a\0b", "%2e"):
            with self.subTest(name=name):
                self.assertRaises(ValueError, uploads.create, name)
                await self.assert_raises(UploadMissing, uploads.offset(name))
                await self.assert_raises(UploadMissing, uploads.claim(name, Algorithm.SHA256))
                await uploads.discard(name)

    async def test_flushed_bytes_are_seen_by_other_processes(self) -> None:
        upload_id = await self.created()
        session = await self.claimed(upload_id)
        session.write(b"hello ")
        session.write(b"world")
        self.assertEqual(11, session.offset)
        self.assertEqual(11, await session.flush())
        self.assertEqual(11, await self.open_stores().uploads.offset(upload_id))

    async def test_closing_keeps_what_was_not_flushed(self) -> None:
        upload_id = await self.created()
        session = await self.claimed(upload_id)
        session.write(b"hello")
        await session.close()
        self.assertEqual(b"hello", await self.content(upload_id))

    async def test_a_session_may_be_closed_twice(self) -> None:
        upload_id = await self.created()
        session = await self.claimed(upload_id)
        await session.close()
        again = await self.claimed(upload_id)
        await session.close()
        self.assertTrue(await again.still_there())
        claim = self.stores.uploads.claim(upload_id, Algorithm.SHA256)
        await self.assert_raises(UploadBusy, claim)

    async def test_requests_append_one_after_the_other(self) -> None:
        upload_id = await self.created()
        await self.appended(upload_id, b"one ", b"", b"two ")
        await self.appended(upload_id)
        await self.appended(upload_id, b"three")
        self.assertEqual(b"one two three", await self.content(upload_id))

    async def test_processes_may_append_in_turns(self) -> None:
        upload_id = await self.created()
        other = self.open_stores()
        await self.appended(upload_id, b"here ")
        await self.appended(upload_id, b"there ", stores=other)
        await self.appended(upload_id, b"here again")
        self.assertEqual(b"here there here again", await self.content(upload_id))

    async def test_many_small_and_some_large_pieces_come_out_in_order(self) -> None:
        upload_id = await self.created()
        pieces = [bytes([n % 256]) * (n % 7) for n in range(5000)]
        pieces += [bytes([n]) * MEBIBYTE for n in range(5)]
        await self.appended(upload_id, *pieces)
        self.assertEqual(b"".join(pieces), await self.content(upload_id))

    async def test_a_producer_that_stops_leaves_what_it_sent(self) -> None:
        upload_id = await self.created()
        session = await self.claimed(upload_id)
        session.registerProducer(RecordedProducer(), True)
        session.write(b"half of")
        session.unregisterProducer()
        await session.close()
        self.assertEqual(7, await self.stores.uploads.offset(upload_id))


class ClaimContract(UploadTestCase):
    async def test_an_upload_has_one_writer_at_a_time(self) -> None:
        upload_id = await self.created()
        await self.appended(upload_id, b"four")
        await self.claimed(upload_id)
        for stores in (self.stores, self.open_stores()):
            claim = stores.uploads.claim(upload_id, Algorithm.SHA256)
            self.assertEqual(4, (await self.assert_raises(UploadBusy, claim)).offset)

    async def test_of_many_that_want_it_at_once_one_gets_it(self) -> None:
        upload_id = await self.created()
        processes = [self.stores, *(self.open_stores() for _ in range(3))]
        won = []

        async def attempt(stores: Stores) -> None:
            with suppress(UploadBusy):
                won.append(await self.claimed(upload_id, stores=stores))

        await gatherResults([ensureDeferred(attempt(p)) for p in processes * 5])
        self.assertEqual(1, len(won))

    async def test_a_closed_session_lets_others_in(self) -> None:
        upload_id = await self.created()
        await (await self.claimed(upload_id)).close()
        self.assertEqual(0, (await self.claimed(upload_id, stores=self.open_stores())).offset)

    async def test_an_upload_can_be_discarded_under_its_holder(self) -> None:
        upload_id = await self.created()
        session = await self.claimed(upload_id)
        session.write(b"in vain")
        self.assertTrue(await session.still_there())
        await self.open_stores().uploads.discard(upload_id)
        self.assertFalse(await session.still_there())
        digest = await session.digest(Algorithm.SHA256)
        await self.assert_raises(UploadMissing, session.stage(digest))
        await session.close()
        await self.assert_raises(UploadMissing, self.stores.uploads.offset(upload_id))
        await self.assert_no_blob(digest)

    async def test_a_holder_can_discard_it(self) -> None:
        upload_id = await self.created()
        session = await self.claimed(upload_id)
        session.write(b"wrong")
        await session.discard()
        self.assertFalse(await session.still_there())
        await session.close()
        await self.assert_raises(UploadMissing, self.stores.uploads.offset(upload_id))

    async def test_only_what_nobody_holds_is_idle(self) -> None:
        held, free = await self.created(), await self.created()
        session = await self.claimed(held)
        self.assertEqual([free], list(await self.stores.uploads.idle(0)))
        await session.close()
        self.assertEqual({held, free}, set(await self.stores.uploads.idle(0)))

    async def test_what_was_just_written_is_not_idle(self) -> None:
        await self.appended(await self.created(), b"new")
        self.assertEqual([], list(await self.stores.uploads.idle(3600)))
