"""Uploads: claims, their bytes, and what becomes of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.names import Algorithm, Digest
from artifactd.store.files import Directory, FileOperations
from artifactd.store.uploads import (
    Owners,
    UploadBusy,
    UploadDirectory,
    UploadMissing,
    UploadRevoked,
    UploadsFull,
)
from tests.store.fixture import (
    MEBIBYTE,
    RecordedProducer,
    Stores,
    StoreTestCase,
    ThreadedTestCase,
    UploadTestCase,
)


class UploadTests(ThreadedTestCase, UploadTestCase):
    async def test_one_may_begin_and_be_claimed_at_once(self) -> None:
        upload_id = str(uuid4())
        session = await self.stores.uploads.claim(upload_id, Algorithm.SHA256, create=True)
        self.addCleanup(lambda: ensureDeferred(session.close()))
        session.write(b"blob")
        self.assertEqual(4, await session.flush())
        await self.assert_raises(UploadBusy, self.stores.uploads.claim(upload_id, Algorithm.SHA256))

    async def test_an_upload_is_empty_at_first(self) -> None:
        upload_id = await self.created()
        self.assertEqual(0, await self.stores.uploads.offset(upload_id))
        session = await self.claimed(upload_id)
        self.assertEqual((upload_id, 0), (session.id, session.offset))

    async def test_one_that_is_there_is_not_begun_again(self) -> None:
        upload_id, append = str(uuid4()), self.stores.uploads.append
        for offset, begun in ((4, True), (8, False)):
            appended = await append(upload_id, Algorithm.SHA256, [b"blob"], None, create=True)
            self.assertEqual((offset, begun), appended)
        session = await self.stores.uploads.claim(upload_id, Algorithm.SHA256, create=True)
        self.assertEqual((8, False), (session.offset, session.begun))
        await session.close()
        self.assertEqual(b"blobblob", await self.content(upload_id))

    async def test_one_that_gets_no_byte_is_as_if_it_had_not_been_begun(self) -> None:
        for size in (0, 4):
            upload_id = str(uuid4())
            session = await self.stores.uploads.claim(upload_id, Algorithm.SHA256, create=True)
            session.write(bytes(size))
            await session.flush()
            await session.rollback(0)
            await session.close()
            await self.assert_raises(UploadMissing, self.stores.uploads.offset(upload_id))
        self.assertEqual([], self.below("uploads"))

    async def test_another_that_goes_on_with_it_keeps_it(self) -> None:
        upload_id, other = str(uuid4()), self.open_stores()
        session = await self.stores.uploads.claim(upload_id, Algorithm.SHA256, create=True)
        await session.release()
        taken = await self.claimed(upload_id, stores=other)
        await session.close()
        taken.write(b"its")
        await taken.close()
        self.assertEqual(b"its", await self.content(upload_id))

    async def test_an_upload_that_was_never_created_is_missing(self) -> None:
        uploads, upload_id = self.stores.uploads, str(uuid4())
        await self.assert_raises(UploadMissing, uploads.offset(upload_id))
        await self.assert_raises(UploadMissing, uploads.claim(upload_id, Algorithm.SHA256))
        await uploads.discard(upload_id)

    async def test_what_is_no_id_reaches_nothing(self) -> None:
        uploads = self.stores.uploads
        for name in ("", ".", "..", "../staging", "/etc/passwd", "a/b", "UPPER", "a\0b", "%2e"):
            with self.subTest(name=name):
                begin = uploads.claim(name, Algorithm.SHA256, create=True)
                await self.assert_raises(ValueError, begin)
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


class OwnerTests(StoreTestCase):
    """What one owner may have at the same time, whichever process begins it."""

    def setUp(self) -> None:
        super().setUp()
        self.seconds = Clock()

    def process(self) -> Owners:
        directory = Directory.open(self.path / "uploads")
        self.addCleanup(directory.close)
        uploads = UploadDirectory(directory, FileOperations())
        return Owners(uploads, 2, self.seconds.seconds)

    def id_of(self, owner: str) -> str:
        return f"{uuid4()}.{owner * 16}.{'x' * 30}"

    def test_more_are_refused_until_one_has_gone(self) -> None:
        owners, ids = self.process(), [self.id_of("a") for _ in range(3)]
        for upload_id in ids[:2]:
            self.assertFalse(owners.seems_full(upload_id))
            owners.require_room(upload_id)
            self.assertTrue(owners.create(upload_id))
        for upload_id in (*ids[2:], self.id_of("a")):
            self.assertTrue(owners.seems_full(upload_id))
            self.assertRaises(UploadsFull, owners.require_room, upload_id)
            self.assertRaises(UploadsFull, owners.create, upload_id)
        self.assertEqual(sorted(ids[:2]), self.below("uploads"))
        (self.path / "uploads" / ids[0]).unlink()
        self.assertTrue(owners.create(ids[2]))

    def test_others_have_room_and_so_has_nobody_in_particular(self) -> None:
        owners = self.process()
        for _ in range(2):
            owners.create(self.id_of("a"))
        for upload_id in (self.id_of("b"), str(uuid4()), f"{uuid4()}.{'x' * 30}"):
            self.assertFalse(owners.seems_full(upload_id))
            owners.require_room(upload_id)
            self.assertTrue(owners.create(upload_id))

    def test_one_that_is_there_is_not_counted_again(self) -> None:
        owners, upload_id = self.process(), self.id_of("a")
        self.assertEqual([True, False], [owners.create(upload_id) for _ in range(2)])
        self.assertTrue(owners.create(self.id_of("a")))

    def test_those_of_another_process_are_noticed_within_a_second(self) -> None:
        owners, other = self.process(), self.process()
        self.assertTrue(owners.create(self.id_of("b")))
        for _ in range(2):
            other.create(self.id_of("a"))
        self.seconds.advance(1)
        self.assertRaises(UploadsFull, owners.create, self.id_of("a"))

    def test_few_listings_are_needed(self) -> None:
        owners, listed = self.process(), []
        names = Directory.names

        def listing(directory: Directory) -> list[str]:
            listed.append(directory)
            return names(directory)

        self.patch(Directory, "names", listing)
        for number in range(16):
            upload_id = self.id_of(f"{number:x}")
            owners.create(upload_id)
            owners.seems_full(upload_id)
        self.assertEqual(1, len(listed))


class ClaimTests(ThreadedTestCase, UploadTestCase):
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
            with contextlib.suppress(UploadBusy):
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

    async def test_one_that_is_revoked_can_not_be_begun_anew_until_it_is_discarded(self) -> None:
        for by_holder in (False, True):
            with self.subTest(by_holder=by_holder):
                upload_id, others = await self.created(), self.open_stores().uploads
                session = await self.claimed(upload_id)
                session.write(b"in vain")
                digest = await session.digest(Algorithm.SHA256)
                await (session.revoke() if by_holder else others.revoke(upload_id))
                self.assertFalse(await session.still_there())
                await self.assert_raises(UploadMissing, session.stage(digest))
                await session.close()
                self.assertEqual(0, (self.path / "uploads" / upload_id).stat().st_size)
                for uploads in (self.stores.uploads, others):
                    await self.assert_raises(UploadRevoked, uploads.offset(upload_id))
                    begin = uploads.claim(upload_id, Algorithm.SHA256, create=True)
                    await self.assert_raises(UploadRevoked, begin)
                    close = (upload_id, Algorithm.SHA256, [b"other"], None, Digest.of(b"other"))
                    await self.assert_raises(UploadRevoked, uploads.close(*close, create=True))
                    await uploads.revoke(upload_id)
                await others.discard(upload_id)
                self.assertEqual([], self.below("uploads"))

    async def test_what_begins_anew_while_one_is_revoked_keeps_its_bytes(self) -> None:
        class Overtaken(FileOperations):
            """Another process writes to each file as soon as it is made."""

            def create(self, directory: int, name: str) -> int:
                fd = super().create(directory, name)
                other = os.open(name, os.O_RDWR, dir_fd=directory)
                cleanup(os.close, other)
                fcntl.flock(other, fcntl.LOCK_EX)
                os.write(other, b"anew")
                return fd

        cleanup, upload_id = self.addCleanup, await self.created()
        session = await self.claimed(upload_id)
        await self.open_stores(Overtaken()).uploads.revoke(upload_id)
        self.assertEqual(b"anew", (self.path / "uploads" / upload_id).read_bytes())
        await session.close()

    async def test_only_what_nobody_holds_is_idle(self) -> None:
        held, free = await self.created(), await self.created()
        session = await self.claimed(held)
        self.assertEqual([free], list(await self.stores.uploads.idle(0)))
        await session.close()
        self.assertEqual({held, free}, set(await self.stores.uploads.idle(0)))

    async def test_what_was_just_written_is_not_idle(self) -> None:
        await self.appended(await self.created(), b"new")
        self.assertEqual([], list(await self.stores.uploads.idle(3600)))


class UploadDigestTests(ThreadedTestCase, UploadTestCase):
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


class RollbackTests(ThreadedTestCase, UploadTestCase):
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


class StagingTests(ThreadedTestCase, UploadTestCase):
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
        self.assertEqual(0, len(await self.open_stores().blobs.sweep(self.rows.forget)))
        await staged.publish()
        staged.confirm()
        staged.release()
        await self.assert_blob(b"blob")

    async def test_what_takes_its_name_in_that_moment_is_not_staged_in_its_place(self) -> None:
        class Overtaken(FileOperations):
            """Another process cancels the upload, or begins it anew, right before it is moved."""

            def rename(self, directory: int, name: str, target: int, target_name: str) -> None:
                overtake(name)
                super().rename(directory, name, target, target_name)

        def begin_anew(name: str) -> None:
            others.discard(name)
            (self.path / "uploads" / name).write_bytes(b"evil")

        others = UploadDirectory(Directory.open(self.path / "uploads"), FileOperations())
        self.addCleanup(others.directory.close)
        staged = await self.stores.blobs.publish(Digest.of(b"blob"), b"blob")
        staged.release()
        for overtake in (others.revoke, begin_anew):
            with self.subTest(by=overtake.__name__):
                session = await self.claimed(
                    await self.created(), stores=self.open_stores(Overtaken())
                )
                session.write(b"blob")
                await self.assert_raises(UploadMissing, session.stage(Digest.of(b"blob")))
                await session.close()
                self.assertEqual([], self.below("staging"))

    async def test_who_closes_it_again_stages_another_file(self) -> None:
        """A client may send its PUT again, to another process, while the first one still syncs."""
        upload_id, staged = await self.created(), []
        for _ in range(2):
            await self.appended(upload_id, b"blob")
            session = await self.claimed(upload_id)
            staged.append(await session.stage(Digest.of(b"blob")))
            self.new_upload(upload_id)
        for each in staged:
            await each.publish()
            each.confirm()
            each.release()
        await self.assert_blob(b"blob")
        self.assertEqual([], self.below("staging"))

    async def test_two_uploads_of_the_same_bytes_become_one_blob(self) -> None:
        for _ in range(2):
            upload_id = await self.created()
            await self.appended(upload_id, b"the same")
            self.assertEqual(b"the same", await self.content(upload_id))


class LookTests(SynchronousTestCase):
    """Somebody looks whether the upload is idle: holds a shared lock for an instant."""

    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.mkdir()
        self.directory = Directory.open(path)
        self.addCleanup(self.directory.close)
        self.upload_id = str(uuid4())
        self.uploads().create(self.upload_id)
        self.looking = os.open(path / self.upload_id, os.O_RDONLY)
        self.addCleanup(os.close, self.looking)
        fcntl.flock(self.looking, fcntl.LOCK_SH)
        self.waited = 0

    def uploads(self, meanwhile: Callable[[], None] = lambda: None) -> UploadDirectory:
        """In which ``meanwhile`` happens when a claim waits for the tenth time."""

        def pause(_: float) -> None:
            self.waited += 1
            if self.waited == 10:
                meanwhile()

        return UploadDirectory(self.directory, FileOperations(), pause)

    def look_away(self) -> None:
        fcntl.flock(self.looking, fcntl.LOCK_UN)

    def test_a_claim_waits_for_who_only_looks(self) -> None:
        fd, size = self.uploads(self.look_away).claim(self.upload_id)
        self.addCleanup(os.close, fd)
        self.assertEqual((0, 10), (size, self.waited))

    def test_a_claim_does_not_wait_for_another_claim(self) -> None:
        fcntl.flock(self.looking, fcntl.LOCK_EX)
        with self.assertRaises(UploadBusy):
            self.uploads().claim(self.upload_id)
        self.assertEqual(0, self.waited)

    def test_a_claim_that_waited_finds_what_was_discarded_missing(self) -> None:
        def discard_and_look_away() -> None:
            self.uploads().discard(self.upload_id)
            self.look_away()

        with self.assertRaises(UploadMissing):
            self.uploads(discard_and_look_away).claim(self.upload_id)

    def test_a_claim_does_not_wait_for_ever(self) -> None:
        with self.assertRaises(UploadBusy):
            self.uploads().claim(self.upload_id)

    def test_two_may_look_at_once(self) -> None:
        self.assertEqual([self.upload_id], self.uploads().idle(float("inf")))
