"""Reading a blob only to see whether it is right."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from attrs import define, field
from twisted.internet.defer import Deferred

from artifactd.oci.names import Digest
from artifactd.store.examine import Examination
from artifactd.store.files import FileOperations
from artifactd.store.folder import DataFolder, collection_held
from artifactd.store.publication import BlobTree
from artifactd.store.quarantine import Quarantine
from tests.store.fixture import Stores, StoreTestCase

CONTENT = b"blob" * 400_000
DIGEST = Digest.of(CONTENT)


@define(eq=False)
class BadDisk(FileOperations):
    """:ivar errors: how many reads fail from now on."""

    errors: int = 0
    cold: bool = True
    dropped: list[tuple[int, int]] = field(factory=list)
    before: dict[str, Callable[[], object]] = field(factory=dict)

    def happen(self, moment: str) -> None:
        self.before.pop(moment, lambda: None)()

    def create(self, directory: int, name: str) -> int:
        self.happen("create")
        return super().create(directory, name)

    def link(self, directory: int, name: str, target: int, target_name: str) -> None:
        self.happen("link")
        super().link(directory, name, target, target_name)

    def set_mode(self, fd: int, mode: int) -> None:
        self.happen("set_mode")
        super().set_mode(fd, mode)

    def sync(self, fd: int) -> None:
        self.happen("sync")
        super().sync(fd)

    def unlink(self, directory: int, name: str) -> None:
        self.happen("unlink")
        super().unlink(directory, name)

    def read_cached(self, fd: int, size: int, offset: int) -> bytes | None:
        return None if self.cold else os.pread(fd, size, offset)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        if self.errors:
            self.errors -= 1
            raise OSError(errno.EIO, "Input/output error")
        return super().read(fd, size, offset)

    def drop_cached(self, fd: int, offset: int, size: int) -> None:
        self.dropped.append((offset, size))


class ExaminationTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.disk = BadDisk()
        self.stores: Stores = self.open_stores(self.disk)
        folder = DataFolder.open(self.path)
        self.addCleanup(folder.close)
        self.tree = BlobTree(folder.blobs, Quarantine(folder.quarantine, self.disk), self.disk)
        self.addCleanup(self.tree.close)

    async def examined(self, size: int | None = None) -> Examination:
        (await self.published(CONTENT)).release()
        return await self.stepped(size)

    async def stepped(self, size: int | None = None) -> Examination:
        examination = await self.stores.blobs.examine(DIGEST, size)
        assert examination is not None
        self.addCleanup(examination.close)
        while await examination.step():
            pass
        return examination

    async def test_what_is_right_has_no_flaw(self) -> None:
        self.assertIsNone((await self.examined()).flaw)

    async def test_what_is_not_there_is_nothing_to_examine(self) -> None:
        self.assertIsNone(await self.stores.blobs.examine(DIGEST))

    async def test_what_was_not_in_memory_is_not_left_there(self) -> None:
        await self.examined()
        self.assertEqual([(0, 1 << 20), (1 << 20, len(CONTENT) - (1 << 20))], self.disk.dropped[:2])

    async def test_what_others_have_in_memory_stays(self) -> None:
        self.disk.cold = False
        await self.examined()
        self.assertNotIn((0, 1 << 20), self.disk.dropped)

    async def test_a_read_that_fails_once_is_made_again(self) -> None:
        self.disk.errors = 1
        self.assertIsNone((await self.examined()).flaw)

    async def test_what_can_not_be_read_is_damaged(self) -> None:
        self.disk.errors = 2
        examination = await self.examined()
        self.assertIn("can't be read", examination.flaw or "")
        self.assertTrue(examination.is_unreadable)

    async def test_one_of_another_size_need_not_be_read(self) -> None:
        examination = await self.examined(size=3)
        self.assertIn("instead of 3", examination.flaw or "")
        self.assertEqual([], self.disk.dropped)

    async def test_what_was_pushed_again_meanwhile_is_not_quarantined(self) -> None:
        self.disk.errors = 2
        examination = await self.examined()
        (await self.published(CONTENT)).release()
        self.assertFalse(examination.is_published())
        self.assertFalse(examination.quarantine())
        await self.assert_blob(CONTENT)

    async def test_what_is_quarantined_is_there_no_more_and_nobody_reads_on(self) -> None:
        self.disk.errors = 2
        examination = await self.examined()
        reader = await self.open_stores().blobs.open(DIGEST)
        assert reader is not None
        self.addCleanup(reader.close)
        reader.fileno()
        self.assertTrue(examination.quarantine())
        self.assertFalse(self.stores.blobs.is_there(DIGEST))
        self.assertRaises(OSError, reader.fileno)
        self.assertEqual(2, len(self.below("quarantine")))

    async def test_a_push_in_the_midst_of_a_quarantine_is_left_as_it_is(self) -> None:
        for moment in ("create", "link", "set_mode", "unlink"):
            self.disk.errors = 2
            examination = await self.examined()
            pushed = await self.stores.blobs.stage(DIGEST, CONTENT)
            # In another thread: it waits for no transaction of the catalog.
            self.disk.before[moment] = partial(Deferred.fromCoroutine, pushed.publish())
            examination.quarantine()
            self.assertEqual({}, self.disk.before)
            pushed.confirm()
            pushed.release()
            await self.assert_published(moment)

    async def test_what_was_pushed_before_the_damaged_file_was_opened_is_no_other(self) -> None:
        (await self.published(CONTENT)).release()
        damaged = (self.path / "blobs" / self.below("blobs")[0]).stat()
        (await self.published(CONTENT)).release()
        self.assertFalse(self.tree.quarantine(DIGEST, "it is damaged", damaged))
        await self.assert_published()
        self.assertEqual([], self.below("quarantine"))

    async def test_a_quarantine_that_was_killed_is_finished(self) -> None:
        name = await self.sealed()
        self.disk.errors = 2
        examination = await self.stepped()
        self.assertTrue(examination.quarantine())
        self.assertFalse(self.stores.blobs.is_there(DIGEST))
        kept, _ = self.below("quarantine")
        self.assertEqual(0o100000, (self.path / "quarantine" / kept).stat().st_mode)
        self.assertFalse(name.exists())

    async def test_what_is_right_is_not_taken_out_by_a_quarantine_that_was_killed(self) -> None:
        await self.sealed()
        self.assertIsNone((await self.stepped()).flaw)
        await self.assert_published()

    async def test_what_a_killed_quarantine_left_gives_way_to_the_one_pushed(self) -> None:
        file = await self.sealed()
        file.chmod(0o600)
        os.truncate(file, 3)
        file.chmod(0o000)
        (await self.published(CONTENT)).release()
        await self.assert_published()

    async def test_no_sweep_takes_what_is_being_staged_from_quarantine(self) -> None:
        name = await self.quarantined()
        other = self.open_stores(FileOperations())
        for moment in ("set_mode", "sync"):
            swept: list[object] = []

            def sweep(swept: list[object] = swept) -> None:
                ((staged),) = self.below("staging")
                swept.append(other.blobs.staging.take_over(staged))

            self.disk.before[moment] = sweep
            staged = await self.stores.blobs.stage_expired(name, DIGEST)
            self.assertEqual(swept, [None], moment)
            await staged.publish()
            sweep()
            self.assertEqual(swept, [None, None], moment)
            staged.release()
            await self.assert_blob(CONTENT)

    async def test_one_process_at_a_time_stages_a_file_of_quarantine(self) -> None:
        name = await self.quarantined()
        other = self.open_stores(FileOperations())
        staged = await self.stores.blobs.stage_expired(name, DIGEST)
        await self.assertFailure(
            Deferred.fromCoroutine(other.blobs.stage_expired(name, DIGEST)), BlockingIOError
        )
        self.assertEqual(len(self.below("staging")), 1)
        staged.abandon()
        (await other.blobs.stage_expired(name, DIGEST)).release()

    async def quarantined(self) -> str:
        """Quarantine the blob, whose bytes are right; the file's name."""
        self.disk.errors = 2
        self.assertTrue((await self.examined()).quarantine())
        return next(name for name in self.below("quarantine") if not name.endswith(".json"))

    async def sealed(self) -> Path:
        """Published, and by its mode to be read by nobody."""
        (await self.published(CONTENT)).release()
        file = self.path / "blobs" / self.below("blobs")[0]
        file.chmod(0o000)
        return file

    async def assert_published(self, when: str = "") -> None:
        await self.assert_blob(CONTENT)
        (name,) = self.below("blobs")
        status = (self.path / "blobs" / name).stat()
        self.assertEqual((0o100444, 1), (status.st_mode, status.st_nlink), when)

    async def test_nothing_is_removed_while_a_copy_is_made(self) -> None:
        await self.examined()
        with collection_held(self.path):
            error = self.assertRaises(OSError, self.stores.blobs.remove, DIGEST)
            self.assertEqual(errno.EBUSY, error.errno)
        self.stores.blobs.remove(DIGEST)
        self.assertFalse(self.stores.blobs.is_there(DIGEST))
