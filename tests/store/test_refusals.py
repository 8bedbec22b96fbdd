"""What the store did not make it neither serves nor touches."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from artifactd.oci.names import Algorithm, Digest
from tests.programs import require
from tests.store.fixture import StoreTestCase

DIGEST = Digest.of(b"blob")
FOREIGN = 4711


class RefusalTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.elsewhere = Path(self.mktemp())
        self.elsewhere.write_bytes(b"blob")
        self.fan_out = self.path / "blobs" / "sha256" / DIGEST.encoded[:2]
        self.upload_id = str(uuid4())
        self.upload = self.path / "uploads" / self.upload_id

    def blob(self) -> Path:
        self.fan_out.mkdir()
        return self.fan_out / DIGEST.encoded

    async def assert_blob_refused(self, why: str) -> None:
        for call in (self.stores.blobs.open(DIGEST), self.stores.blobs.read(DIGEST)):
            self.assertIn(why, str(await self.assert_raises(OSError, call)))
        error = await self.assert_raises(OSError, self.published(b"blob"))
        self.assertIn(why, str(error))

    async def assert_upload_refused(self, why: str) -> None:
        claim = self.stores.uploads.claim(self.upload_id, Algorithm.SHA256)
        for call in (claim, self.stores.uploads.offset(self.upload_id)):
            self.assertIn(why, str(await self.assert_raises(OSError, call)))
        self.assertEqual([], list(await self.stores.uploads.idle(0)))

    async def test_a_symbolic_link_in_place_of_a_blob(self) -> None:
        self.blob().symlink_to(self.elsewhere.absolute())
        await self.assert_blob_refused("not a regular file")

    async def test_a_symbolic_link_in_place_of_a_directory(self) -> None:
        real = Path(self.mktemp())
        real.mkdir()
        (real / DIGEST.encoded).write_bytes(b"blob")
        self.fan_out.symlink_to(real.absolute())
        await self.assert_blob_refused("not a directory")

    async def test_a_directory_in_place_of_a_blob(self) -> None:
        self.blob().mkdir()
        await self.assert_blob_refused("not a regular file")

    async def test_a_pipe_in_place_of_a_blob_is_not_waited_for(self) -> None:
        os.mkfifo(self.blob())
        await self.assert_blob_refused("not a regular file")

    async def test_a_blob_of_another_user(self) -> None:
        require(root=True)
        blob = self.blob()
        blob.write_bytes(b"blob")
        os.chown(blob, FOREIGN, FOREIGN)
        await self.assert_blob_refused("belongs to another user")

    async def test_a_symbolic_link_in_place_of_an_upload(self) -> None:
        self.upload.symlink_to(self.elsewhere.absolute())
        await self.assert_upload_refused("not a regular file")
        await self.stores.uploads.discard(self.upload_id)
        self.assertEqual(b"blob", self.elsewhere.read_bytes())

    async def test_an_upload_of_another_user(self) -> None:
        require(root=True)
        self.upload.touch()
        os.chown(self.upload, FOREIGN, FOREIGN)
        await self.assert_upload_refused("belongs to another user")

    async def test_a_new_upload_does_not_follow_a_link(self) -> None:
        target = Path(self.mktemp()).absolute()
        self.upload.symlink_to(target)
        begin = self.stores.uploads.claim(self.upload_id, Algorithm.SHA256, create=True)
        await self.assert_raises(OSError, begin)
        self.assertFalse(target.exists())

    async def test_a_sweep_leaves_alone_what_is_not_a_staged_file(self) -> None:
        staging = self.path / "staging"
        name = f"sha256-{DIGEST.encoded}.{uuid4()}"
        (staging / name).symlink_to(self.elsewhere.absolute())
        (staging / "notes.txt").touch()
        (staging / f"md5-{'0' * 32}.{uuid4()}").touch()
        before = self.below("staging")
        self.assertEqual(0, len(await self.stores.blobs.sweep(self.rows.forget)))
        self.assertEqual(before, self.below("staging"))
        self.assertEqual([], self.rows.asked)

    async def test_idle_uploads_are_those_with_an_id(self) -> None:
        (self.path / "uploads" / "notes.txt").touch()
        self.assertEqual([], list(await self.stores.uploads.idle(0)))
