"""A disk that is full, or fails, while a blob comes."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from types import SimpleNamespace

from artifactd.oci.names import Digest
from artifactd.store.files import FileOperations
from tests.pull.case import ALPINE, HELD, PullCase, noise
from tests.upstreams.faulty import CDN

SIZE = 1_000_000
CONTENT = noise(SIZE)
SMALL = noise(1000)


class DiskCase(PullCase):
    """
    :ivar room: bytes that go into fills before the disk is full.
    :ivar failing: what fails besides.
    """

    def setUp(self) -> None:
        super().setUp()
        self.room = 1 << 40
        self.failing: set[str] = set()
        write, sync, link = FileOperations.write, FileOperations.sync_data, FileOperations.link

        def written(
            files: FileOperations, fd: int, pieces: Sequence[bytes | memoryview], offset: int
        ) -> int:
            taken = b"".join(pieces)[: max(self.room, 0)]
            if not taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= len(taken)
            return write(files, fd, [taken], offset)

        def synced(files: FileOperations, fd: int) -> None:
            self.fail_if_told("sync")
            sync(files, fd)

        def linked(files: FileOperations, source: int, name: str, target: int, new: str) -> None:
            self.fail_if_told("link")
            link(files, source, name, target, new)

        self.patch(FileOperations, "write", written)
        self.patch(FileOperations, "sync_data", synced)
        self.patch(FileOperations, "link", linked)

    def fail_if_told(self, operation: str) -> None:
        if operation in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def assert_over(self, digest: Digest, content: bytes) -> None:
        """Nothing was kept, and with room again all is as it should be."""
        self.assert_nothing_kept(digest)
        self.assertEqual(self.parts.budgets.transfers.used, 0)
        self.room = 1 << 40
        self.failing.clear()
        self.assert_whole(await self.pull(digest), content)
        self.assert_kept(digest, content)
        self.assertEqual(await self.counted("corrupt"), 0)


class FullDiskTests(DiskCase):
    async def test_a_large_blob_is_cut_off(self) -> None:
        for room in (100, 600_000, SIZE - 1):
            with self.subTest(room=room):
                content = noise(SIZE, room)
                digest = self.blob(content)
                self.room = room
                download = await self.pull(digest)
                # The little that is remembered of it may be what does not go in.
                if download.status == 200:
                    self.assert_cut(download, content)
                    self.assertEqual(len(self.logged("the fill of", str(digest), "No space")), 1)
                else:
                    self.assertEqual(download.error[:2], (503, "UNKNOWN"))
                mine = [name for name in self.files() if digest.encoded in name]
                self.assertEqual((mine, self.holders(digest)), ([], []))
                self.room = 1 << 40
                self.assert_whole(await self.pull(digest), content)

    async def test_a_small_blob_is_503(self) -> None:
        digest = self.blob(SMALL)
        self.room = 500
        download = await self.pull(digest)
        self.assertEqual(download.error[:2], (503, "UNKNOWN"))
        self.assertIn(b"out of disk space", download.body)
        await self.assert_over(digest, SMALL)

    async def test_a_disk_with_no_room_at_all_is_503(self) -> None:
        digest = self.blob(CONTENT)
        self.room = 0
        download = await self.pull(digest)
        self.assertEqual(download.error[:2], (503, "UNKNOWN"))
        self.assertIn(b"out of disk space", download.body)
        await self.assert_over(digest, CONTENT)

    async def test_all_who_follow_are_cut_off_and_the_upstream_is_let_go(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, SIZE // 2)
        clients = [await (await self.ask(digest)).has(1) for _ in range(3)]
        await self.filled(digest, SIZE // 2)
        self.room = 1000
        held.release()
        for client in clients:
            self.assert_cut(await client.end(), CONTENT)
        await self.settled(digest)
        self.assertEqual(self.hub.count("GET", CDN), 1)
        await self.assert_over(digest, CONTENT)

    async def test_a_part_is_cut_off_and_not_kept(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, 300_000)
        part = await (await self.ask(digest, "200000-799999")).has(100_000)
        self.room = 1000
        held.release()
        await part.end()
        self.assertEqual((part.status, part.whole), (206, False))
        self.room = 1 << 40
        again = await self.pull(digest, "200000-799999")
        self.assert_part(again, CONTENT, 200_000, 799_999)


class ReserveTests(PullCase):
    """The reserve has been given back to deletions, and there is not yet room for it again."""

    async def test_nothing_is_fetched_that_would_take_it(self) -> None:
        here, large, small = (self.blob(content) for content in (b"here", CONTENT, SMALL))
        self.hub.images.add_image(ALPINE, "latest", SMALL)
        await self.pull(here)
        statvfs, reserve = os.statvfs, self.parts.blobs.reserve
        reserve.give_back()
        self.patch(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1 << 20, f_frsize=1))
        self.hub.forget_requests()
        for digest, span in ((large, None), (large, "200000-799999"), (small, None)):
            download = await self.pull(digest, span)
            self.assertEqual(download.error[:2], (503, "UNKNOWN"))
            self.assertIn(b"out of disk space", download.body)
            self.assertEqual(self.hub.count("GET", CDN), 0)
        answer = await self.registry.request("GET", f"/v2/docker.io/{ALPINE}/manifests/latest")
        self.assertEqual(answer.status, 503)
        self.assert_whole(await self.pull(here), b"here")
        self.patch(os, "statvfs", statvfs)
        self.assert_whole(await self.pull(large), CONTENT)
        self.assertTrue(reserve.is_held())


class FailingDiskTests(DiskCase):
    async def test_what_can_not_be_synced_is_served_and_not_kept(self) -> None:
        # It is right: who waits for it need not wait for the disk, nor suffer from it.
        digest = self.blob(CONTENT)
        self.failing = {"sync"}
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(len(self.logged(str(digest), "Input/output error")), 1)
        await self.assert_over(digest, CONTENT)

    async def test_what_can_not_be_published_is_served_and_not_kept(self) -> None:
        digest = self.blob(CONTENT)
        self.failing = {"link"}
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(len(self.logged(str(digest), "Input/output error")), 1)
        await self.assert_over(digest, CONTENT)


class LostTests(PullCase):
    async def test_a_blob_that_the_disk_has_lost_is_fetched_again(self) -> None:
        for content in (CONTENT, SMALL):
            digest = self.blob(content)
            await self.pull(digest)
            await self.restart()  # small ones are in memory, too
            (path,) = (self.registry.data / "blobs").rglob(digest.encoded)
            path.unlink()
            self.assert_whole(await self.pull(digest), content)
            self.assertTrue(self.logged("fetched again", str(digest)))

    async def test_a_blob_that_is_shorter_than_it_was_is_fetched_again(self) -> None:
        digest = self.blob(CONTENT)
        await self.pull(digest)
        (path,) = (self.registry.data / "blobs").rglob(digest.encoded)
        path.chmod(0o600)
        os.truncate(path, SIZE - HELD)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assert_whole(await self.pull(digest), CONTENT)
