"""What becomes of the bytes of an upload: they are hashed, taken back, turned into a blob."""

from __future__ import annotations

from artifactd.oci.digest import Algorithm, Digest
from artifactd.store.uploads import UploadMissing
from tests.contracts.storage_uploads import MEBIBYTE, UploadTestCase


class UploadDigestContract(UploadTestCase):
    async def test_it_is_that_of_all_requests_together(self) -> None:
        upload_id = await self.created()
        await self.appended(upload_id, b"one ")
        await self.appended(upload_id, b"two ", stores=self.open_stores())
        session = await self.claimed(upload_id)
        session.write(b"three")
        for algorithm in Algorithm:
            expected = Digest.of(b"one two three", algorithm)
            self.assertEqual(expected, await session.digest(algorithm))

    async def test_an_empty_upload_has_one(self) -> None:
        session = await self.claimed(await self.created())
        self.assertEqual(Digest.of(b""), await session.digest(Algorithm.SHA256))

    async def test_it_goes_on_after_it_was_told(self) -> None:
        session = await self.claimed(await self.created(), Algorithm.SHA512)
        session.write(b"one")
        await session.digest(Algorithm.SHA512)
        session.write(b" two")
        expected = Digest.of(b"one two", Algorithm.SHA512)
        self.assertEqual(expected, await session.digest(Algorithm.SHA512))

    async def test_a_long_upload_another_process_has_begun(self) -> None:
        upload_id, content = await self.created(), bytes(range(251)) * (20 * MEBIBYTE // 251)
        await self.appended(upload_id, content, stores=self.open_stores())
        session = await self.claimed(upload_id)
        session.write(b"end")
        self.assertEqual(Digest.of(content + b"end"), await session.digest(Algorithm.SHA256))


class RollbackContract(UploadTestCase):
    async def test_it_takes_back_what_the_request_has_brought(self) -> None:
        upload_id = await self.created()
        await self.appended(upload_id, b"kept")
        session = await self.claimed(upload_id)
        session.write(b" wrong")
        await session.rollback(4)
        self.assertEqual(4, session.offset)
        self.assertEqual(Digest.of(b"kept"), await session.digest(Algorithm.SHA256))
        session.write(b" right")
        self.assertEqual(Digest.of(b"kept right"), await session.digest(Algorithm.SHA256))
        await session.close()
        self.assertEqual(b"kept right", await self.content(upload_id))

    async def test_it_may_leave_a_part(self) -> None:
        session = await self.claimed(await self.created())
        session.write(b"half of it")
        await session.rollback(4)
        self.assertEqual(Digest.of(b"half"), await session.digest(Algorithm.SHA256))

    async def test_it_reaches_neither_before_the_claim_nor_beyond_the_end(self) -> None:
        upload_id = await self.created()
        await self.appended(upload_id, b"kept")
        session = await self.claimed(upload_id)
        for offset in (3, 5):
            await self.assert_raises(ValueError, session.rollback(offset))
        self.assertEqual(4, session.offset)


class StagingContract(UploadTestCase):
    async def test_a_staged_upload_is_an_upload_no_more(self) -> None:
        upload_id = await self.created()
        session = await self.claimed(upload_id)
        session.write(b"blob")
        staged = await session.stage(await session.digest(Algorithm.SHA256))
        self.assertEqual((Digest.of(b"blob"), 4), (staged.digest, staged.size))
        await self.assert_raises(UploadMissing, self.stores.uploads.offset(upload_id))
        await self.assert_raises(UploadMissing, session.stage(staged.digest))
        self.assertFalse(await session.still_there())
        await self.assert_no_blob(staged.digest)
        await staged.publish()
        await self.assert_blob(b"blob")

    async def test_when_it_is_a_blob_the_session_can_still_be_asked(self) -> None:
        session = await self.claimed(await self.created())
        session.write(b"blob")
        staged = await session.stage(await session.digest(Algorithm.SHA256))
        await staged.publish()
        staged.release()
        self.assertFalse(await session.still_there())
        await session.discard()
        await session.close()
        await self.assert_blob(b"blob")

    async def test_it_stays_protected_when_the_session_is_closed(self) -> None:
        upload_id = await self.created()
        session = await self.claimed(upload_id)
        session.write(b"blob")
        staged = await session.stage(await session.digest(Algorithm.SHA256))
        await session.close()
        self.assertEqual(0, await self.open_stores().blobs.sweep(self.rows.forget))
        await staged.publish()
        staged.confirm()
        staged.release()
        await self.assert_blob(b"blob")

    async def test_two_uploads_of_the_same_bytes_become_one_blob(self) -> None:
        for _ in range(2):
            upload_id = await self.created()
            await self.appended(upload_id, b"the same")
            self.assertEqual(b"the same", await self.content(upload_id))
