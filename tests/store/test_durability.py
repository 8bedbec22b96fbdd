"""In which order the filesystem is told to do things, and what is left of it."""

from __future__ import annotations

import os
from uuid import uuid4

from artifactd.oci.names import Algorithm, Digest
from artifactd.store.publication import StagedBlob
from artifactd.store.uploads import UploadMissing
from tests.store.fixture import RecordedFiles, StoreTestCase

DIGEST = Digest.of(b"blob")
FAN_OUT = f"blobs/sha256/{DIGEST.encoded[:2]}"


class OrderTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.recorded = RecordedFiles()
        self.stores = self.open_stores(self.recorded)
        self.recorded.calls.clear()

    async def staged(self) -> StagedBlob:
        return await self.stores.blobs.stage(DIGEST, b"blob")

    async def test_a_blob_is_whole_and_read_only_before_it_has_a_name(self) -> None:
        staged = await self.staged()
        await staged.publish()
        staged.release()
        self.assertEqual(
            [
                "create staging/sha256-….…",
                "write staging/sha256-….…",
                "chmod 444 staging/sha256-….…",
                "sync staging/sha256-….…",
                f"mkdir {FAN_OUT}",
                "sync blobs/sha256",
                f"link staging/sha256-….… {FAN_OUT}/…",
                f"sync {FAN_OUT}",
                "unlink staging/sha256-….…",
            ],
            self.recorded.calls,
        )

    async def test_an_upload_is_whole_and_read_only_before_it_has_a_name(self) -> None:
        upload_id = str(uuid4())
        session = await self.stores.uploads.claim(upload_id, Algorithm.SHA256, create=True)
        session.write(b"blob")
        staged = await session.stage(await session.digest(Algorithm.SHA256))
        await staged.publish()
        await session.close()
        self.assertEqual(
            [
                "create uploads/…",
                "write uploads/…",
                "rename uploads/… staging/sha256-….…",
                "chmod 444 staging/sha256-….…",
                "sync staging/sha256-….…",
                f"mkdir {FAN_OUT}",
                "sync blobs/sha256",
                f"link staging/sha256-….… {FAN_OUT}/…",
                f"sync {FAN_OUT}",
            ],
            self.recorded.calls,
        )
        staged.release()

    async def test_an_upload_that_comes_whole_is_written_once_and_has_no_other_name(self) -> None:
        closed = self.stores.uploads.close(
            str(uuid4()), Algorithm.SHA256, [b"bl", b"ob"], None, DIGEST, create=True
        )
        session, staged = await closed
        self.assertIsNone(session)
        assert staged is not None
        await staged.publish()
        staged.release()
        self.assertEqual(
            [
                "create staging/sha256-….…",
                "write staging/sha256-….…",
                "chmod 444 staging/sha256-….…",
                "sync staging/sha256-….…",
                f"mkdir {FAN_OUT}",
                "sync blobs/sha256",
                f"link staging/sha256-….… {FAN_OUT}/…",
                f"sync {FAN_OUT}",
                "unlink staging/sha256-….…",
            ],
            self.recorded.calls,
        )
        await self.assert_blob(b"blob")

    async def test_one_that_has_begun_or_has_other_bytes_keeps_its_file(self) -> None:
        for begun, content in ((b"bl", b"ob"), (b"", b"other")):
            upload_id = str(uuid4())
            if begun:
                await self.stores.uploads.append(
                    upload_id, Algorithm.SHA256, [begun], 0, create=True
                )
            session, staged = await self.stores.uploads.close(
                upload_id, Algorithm.SHA256, [content], len(begun), DIGEST, create=not begun
            )
            assert session is not None
            self.assertEqual(session.offset, len(begun) + len(content))
            self.assertEqual(staged is not None, bool(begun))
            await session.close()
            if staged is not None:
                staged.release()

    async def test_a_directory_that_another_process_has_made_is_synced_too(self) -> None:
        (self.path / FAN_OUT).mkdir()
        staged = await self.staged()
        self.recorded.calls.clear()
        await staged.publish()
        self.assertEqual("sync blobs/sha256", self.recorded.calls[0])

    async def test_a_directory_known_to_be_durable_is_not_synced_again(self) -> None:
        await (await self.staged()).publish()
        again = await self.staged()
        self.recorded.calls.clear()
        await again.publish()
        self.assertNotIn("sync blobs/sha256", self.recorded.calls)

    async def test_what_is_pushed_again_takes_its_place_without_a_gap(self) -> None:
        await (await self.staged()).publish()
        again = await self.staged()
        self.recorded.calls.clear()
        await again.publish()
        self.assertEqual(
            [
                f"link staging/sha256-….… {FAN_OUT}/…",
                "link staging/sha256-….… staging/sha256-….…",
                f"rename staging/sha256-….… {FAN_OUT}/…",
                f"sync {FAN_OUT}",
            ],
            self.recorded.calls,
        )

    async def test_a_name_that_another_process_has_linked_is_synced_too(self) -> None:
        await (await self.open_stores().blobs.stage(DIGEST, b"blob")).publish()
        await (await self.staged()).publish()
        self.assertEqual(f"sync {FAN_OUT}", self.recorded.calls[-1])

    async def test_confirming_what_is_still_there_writes_nothing(self) -> None:
        staged = await self.staged()
        await staged.publish()
        self.recorded.calls.clear()
        staged.confirm()
        self.assertEqual([], self.recorded.calls)

    async def test_confirming_what_is_gone_links_and_syncs(self) -> None:
        staged = await self.staged()
        await staged.publish()
        (self.path / FAN_OUT / DIGEST.encoded).unlink()
        self.recorded.calls.clear()
        staged.confirm()
        self.assertEqual(
            [f"link staging/sha256-….… {FAN_OUT}/…", f"sync {FAN_OUT}"], self.recorded.calls
        )
        await self.assert_blob(b"blob")

    async def test_another_file_under_the_name_may_not_be_durable_yet(self) -> None:
        first, second = await self.staged(), await self.staged()
        await first.publish()
        await second.publish()
        await first.withdraw(self.rows.forget)
        await (await self.staged()).publish()
        self.recorded.calls.clear()
        second.confirm()
        self.assertEqual(f"sync {FAN_OUT}", self.recorded.calls[-1])

    async def test_a_probe_is_written_synced_and_removed(self) -> None:
        await self.stores.blobs.require_room()
        self.recorded.calls.clear()
        await self.stores.blobs.check_writable()
        self.assertEqual(
            ["create", "write", "sync", "unlink"],
            [call.split(" ")[0] for call in self.recorded.calls],
        )
        self.assertEqual([], self.below("staging"))


class FileTests(StoreTestCase):
    async def test_a_blob_lies_under_its_digest_and_can_be_read_only(self) -> None:
        for algorithm in Algorithm:
            digest = Digest.of(b"blob", algorithm)
            staged = await self.stores.blobs.stage(digest, b"blob")
            await staged.publish()
            staged.release()
            file = self.path / "blobs" / algorithm / digest.encoded[:2] / digest.encoded
            self.assertEqual(b"blob", file.read_bytes())
            self.assertEqual((0o100444, 1), (file.stat().st_mode, file.stat().st_nlink))

    async def test_nobody_else_may_look_into_the_store(self) -> None:
        await self.published(b"blob")
        upload_id = self.new_upload()
        directories = [self.path, *(d for d in self.path.rglob("*") if d.is_dir())]
        self.assertEqual({0o40700}, {d.stat().st_mode for d in directories})
        self.assertEqual(0o100600, (self.path / "uploads" / upload_id).stat().st_mode)

    async def test_two_pushes_of_the_same_bytes_leave_one_file(self) -> None:
        other = self.open_stores()
        pushes = [await self.published(b"blob"), await self.published(b"blob", other)]
        for push in pushes:
            push.confirm()
            push.release()
        self.assertEqual(1, len(self.below("blobs")))
        self.assertEqual([], self.below("staging"))

    async def test_a_withdrawn_push_leaves_nothing(self) -> None:
        staged = await self.published(b"blob")
        await staged.withdraw(self.rows.forget)
        self.assertEqual([], self.below("blobs") + self.below("staging"))

    async def test_a_withdrawn_push_leaves_the_file_of_another(self) -> None:
        first, second = await self.published(b"blob"), await self.published(b"blob")
        await first.withdraw(self.rows.forget)
        self.assertEqual(1, len(self.below("blobs")))
        await second.withdraw(self.rows.forget)
        self.assertEqual([], self.below("blobs"))

    async def test_what_took_the_place_of_another_and_was_withdrawn_is_put_back(self) -> None:
        first, second = await self.published(b"blob"), await self.published(b"blob")
        await second.withdraw(self.rows.forget)
        first.confirm()
        await self.assert_blob(b"blob")

    async def test_a_damaged_blob_gives_way_to_the_one_pushed(self) -> None:
        # Until issue 4 this was refused: nobody but an operator could mend a blob.
        for damaged in (b"blo", b"blobs", b"", b"bl0b"):
            (await self.published(b"blob")).release()
            file = self.path / "blobs" / self.below("blobs")[0]
            file.chmod(0o600)
            file.write_bytes(damaged)
            (await self.published(b"blob")).release()
            await self.assert_blob(b"blob")
            self.assertEqual((0o100444, 1), (file.stat().st_mode, file.stat().st_nlink))
        self.assertEqual([], self.below("staging"))

    async def test_what_is_provably_damaged_is_kept_in_quarantine_with_a_record(self) -> None:
        (await self.published(b"blob")).release()
        file = self.path / "blobs" / self.below("blobs")[0]
        file.chmod(0o600)
        os.truncate(file, 3)
        (await self.published(b"blob")).release()
        kept, record = self.below("quarantine")
        self.assertTrue(kept.startswith(f"sha256-{DIGEST.encoded}."))
        self.assertEqual(0o100000, (self.path / "quarantine" / kept).stat().st_mode)
        self.assertEqual(3, (self.path / "quarantine" / kept).stat().st_size)
        self.assertIn("3 bytes instead of 4", (self.path / "quarantine" / record).read_text())

    async def test_who_reads_what_turns_out_damaged_gets_no_more_of_it(self) -> None:
        (await self.published(b"blob")).release()
        other = await self.open_stores().blobs.open(DIGEST)
        assert other is not None
        self.addCleanup(other.close)
        file = self.path / "blobs" / self.below("blobs")[0]
        file.chmod(0o600)
        file.write_bytes(b"blo")
        other.fileno()
        (await self.published(b"blob")).release()
        self.assertRaises(OSError, other.fileno)

    async def test_an_upload_that_was_sealed_is_gone_on_with_by_nobody(self) -> None:
        # What a power cut can leave: the rename undone, the mode there, and no other name.
        upload_id = self.new_upload()
        (self.path / "uploads" / upload_id).chmod(0o444)
        claim = self.stores.uploads.claim(upload_id, Algorithm.SHA256)
        await self.assert_raises(UploadMissing, claim)
        self.assertEqual([upload_id], list(await self.stores.uploads.idle(0)))

    async def test_an_old_name_of_published_bytes_is_no_upload(self) -> None:
        # What a power cut can leave: the rename undone, the link there.
        upload_id = str(uuid4())
        (await self.published(b"blob")).release()
        os.link(self.path / "blobs" / self.below("blobs")[0], self.path / "uploads" / upload_id)
        claim = self.stores.uploads.claim(upload_id, Algorithm.SHA256)
        await self.assert_raises(UploadMissing, claim)
        await self.assert_raises(UploadMissing, self.stores.uploads.offset(upload_id))
        self.assertEqual([upload_id], list(await self.stores.uploads.idle(0)))
        await self.stores.uploads.discard(upload_id)
        await self.assert_blob(b"blob")
