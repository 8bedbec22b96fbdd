"""What may be found among the files of fills, and is none or is left over."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from attrs import field, frozen

from artifactd.store import procfs
from artifactd.store.files import Directory
from tests.programs import require
from tests.store.filling import CONTENT, DIGEST, INFO, NAME, FillFilesTestCase, fill_directory


class StrangeFilesTests(FillFilesTestCase):
    async def test_what_is_known_but_unreadable_is_not_known(self) -> None:
        await self.kept()
        info = self.fills / f"{NAME}.info"
        for content in (b"", b"\0" * 30, b'{"size":', b'{"size":"11"}', b'{"size":-1}', b"[]"):
            info.write_bytes(content)
            self.assertIsNone(await self.stores.fills.info(DIGEST), content)
        session = await self.claimed()
        self.assertIsNone(session.info)
        await session.describe(INFO)
        self.assertEqual(INFO, await self.stores.fills.info(DIGEST))

    async def test_names_that_are_not_ours_are_left_alone(self) -> None:
        names = ("notes.txt", "a@md5-0123", "a@sha256-abc", f"{NAME}.bak", f"{NAME}.x.extents")
        # With a repository that no settings can name.
        for name in (*names, f"A{NAME}", f"@{NAME}"):
            (self.fills / name).touch()
        before = self.below("fills")
        self.assertEqual(0, len(await self.stores.all_fills.sweep(-3600)))
        await self.stores.fills.discard(DIGEST)
        self.assertEqual(before, self.below("fills"))

    async def test_what_a_process_left_half_done_goes_with_the_rest(self) -> None:
        await self.kept()
        for kind in ("new", "extents"):
            (self.fills / f"{NAME}.{uuid4()}.{kind}").touch()
        self.assertEqual(1, len(await self.stores.all_fills.sweep(0)))
        self.assertEqual([], self.below("fills"))

    async def test_one_file_that_was_just_written_to_keeps_all(self) -> None:
        await self.kept()
        for file in self.fills.iterdir():
            os.utime(file, (0, 0))
        for file in self.fills.iterdir():
            os.utime(file)
            self.assertEqual(0, len(await self.stores.all_fills.sweep(3600)), file)
            os.utime(file, (0, 0))
        self.assertEqual(1, len(await self.stores.all_fills.sweep(3600)))

    async def test_a_fill_that_was_gone_on_with_meanwhile_is_not_swept(self) -> None:
        await self.kept()
        names = self.below("fills")
        with Directory.open(self.fills) as directory:
            before = (self.fills / NAME).stat().st_mtime - 1
            self.assertFalse(fill_directory(directory).remove_stale(NAME, names, before))
        self.assertEqual(names, self.below("fills"))

    async def test_a_symbolic_link_in_place_of_a_fill(self) -> None:
        elsewhere = Path(self.mktemp())
        elsewhere.write_bytes(b"hello")
        (self.fills / NAME).symlink_to(elsewhere.absolute())
        for call in (
            self.stores.fills.claim(DIGEST),
            self.stores.fills.view(DIGEST),
            self.stores.fills.discard(DIGEST),
        ):
            error = await self.assert_raises(OSError, call)
            self.assertIn("not a regular file", str(error))
        self.assertEqual(0, len(await self.stores.all_fills.sweep(-3600)))
        self.assertEqual(b"hello", elsewhere.read_bytes())

    async def test_one_beside_a_fill_keeps_a_sweep_away_from_both(self) -> None:
        await self.left(b"hello")
        (self.fills / f"{NAME}.info").symlink_to("elsewhere")
        self.assertEqual(0, len(await self.stores.all_fills.sweep(-3600)))
        self.assertEqual([NAME, f"{NAME}.info"], sorted(os.listdir(self.fills)))

    async def test_a_pipe_in_place_of_what_is_known_is_not_waited_for(self) -> None:
        os.mkfifo(self.fills / f"{NAME}.info")
        error = await self.assert_raises(OSError, self.stores.fills.info(DIGEST))
        self.assertIn("not a regular file", str(error))

    async def test_a_fill_of_another_user(self) -> None:
        require(root=True)
        (self.fills / NAME).touch()
        os.chown(self.fills / NAME, 4711, 4711)
        error = await self.assert_raises(OSError, self.stores.fills.claim(DIGEST))
        self.assertIn("belongs to another user", str(error))

    async def test_an_old_name_of_a_published_blob_is_no_fill(self) -> None:
        # What a power cut can leave: the rename undone, the link there.
        (await self.published(CONTENT)).release()
        os.link(self.path / "blobs" / self.below("blobs")[0], self.fills / NAME)
        self.assertIsNone(await self.stores.fills.view(DIGEST))
        self.assertIsNone(await self.stores.fills.claim(DIGEST, create=False))
        os.link(self.path / "blobs" / self.below("blobs")[0], self.fills / NAME)
        session = await self.filled(b"begun anew")
        self.assertEqual(10, session.written)
        await self.assert_blob(CONTENT)

    async def test_an_old_name_of_a_published_blob_that_another_process_looks_at_is_no_fill(
        self,
    ) -> None:
        @frozen
        class LookedAt(Directory):
            """Another process has each file locked for an instant."""

            locked: set[str] = field(factory=set)

            def open_locked(
                self, name: str, flags: int = os.O_RDONLY
            ) -> tuple[int, os.stat_result]:
                if name not in self.locked:
                    self.locked.add(name)
                    raise BlockingIOError
                return super().open_locked(name, flags)

        (await self.published(CONTENT)).release()
        blob = self.path / "blobs" / self.below("blobs")[0]
        os.link(blob, self.fills / NAME)
        os.utime(blob, (0, 0))
        with Directory.open(self.fills) as directory:
            looked_at = LookedAt(directory.path, directory.fd)
            claimed = fill_directory(looked_at, booted=1).claim(NAME, DIGEST.algorithm, True)
        assert claimed is not None
        claimed[0].close()
        self.assertEqual(0, claimed[0].size)
        await self.assert_blob(CONTENT)

    async def test_a_fill_from_before_the_machine_started_is_begun_anew(self) -> None:
        # A power cut may have left its length, and other bytes.
        (self.fills / NAME).write_bytes(bytes(1000))
        os.utime(self.fills / NAME, (procfs.boot_time() - 1,) * 2)
        session = await self.filled(CONTENT)
        self.assertEqual(len(CONTENT), session.written)
        self.assertEqual(CONTENT, (self.fills / NAME).read_bytes())

    async def test_a_fill_that_was_sealed_is_begun_anew(self) -> None:
        # What a power cut can leave: the rename undone, the mode there, and no other name.
        (self.fills / NAME).write_bytes(CONTENT)
        (self.fills / NAME).chmod(0o444)
        self.assertIsNone(await self.stores.fills.view(DIGEST))
        session = await self.filled(b"begun anew")
        self.assertEqual(10, session.written)

    async def test_a_fill_that_somebody_took_away_can_not_be_staged(self) -> None:
        session = await self.filled(CONTENT)
        (self.fills / NAME).unlink()
        await self.assert_raises(FileNotFoundError, session.stage())
        self.assertRaises(FileNotFoundError, session.reader)
        (self.fills / NAME).touch()
        self.assertRaises(FileNotFoundError, session.reader)
        await self.assert_raises(FileNotFoundError, session.stage())
        await session.discard()
        self.assertEqual([NAME], self.below("fills"))
