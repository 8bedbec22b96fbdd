"""What a process leaves that is killed, and what locks say of one that lives."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import PIPE, Popen
from uuid import uuid4

from artifactd.oci.names import Algorithm, Digest
from artifactd.store.uploads import UploadBusy
from tests.store.fixture import StoreTestCase

# Arguments: data folder, upload.  Writes to the upload, publishes a blob, and hangs.
PROGRAM = """
import sys
from pathlib import Path
from twisted.internet.defer import ensureDeferred
from artifactd.oci.names import Algorithm, Digest
from artifactd.kit.budget import BufferBudget
from artifactd.store.blobs import BlobStore
from artifactd.store.uploads import UploadStore
from artifactd.store.folder import DataFolder
from tests.store.fixture import at_once

async def work():
    session = await uploads.claim(sys.argv[2], Algorithm.SHA256)
    session.write(b"hello ")
    await session.flush()
    staged = await blobs.stage(Digest.of(b"blob"), b"blob")
    await staged.publish()
    print("ready", flush=True)
    sys.stdin.read()

folder = DataFolder.open(Path(sys.argv[1]))
folder.settle()
blobs = BlobStore(folder, at_once)
uploads = UploadStore(folder, at_once, blobs, BufferBudget(2 ** 26))
ensureDeferred(work())
"""


class KilledProcessTests(StoreTestCase):
    async def begin(self) -> None:
        """A process that has an upload and a staged blob in its hands."""
        self.upload_id = self.new_upload()
        root = str(Path(__file__).parents[2])
        self.process = Popen(
            [sys.executable, "-c", PROGRAM, str(self.path), self.upload_id],
            env={**os.environ, "PYTHONPATH": root},
            stdin=PIPE,
            stdout=PIPE,
        )
        self.addCleanup(self.kill)
        assert self.process.stdout is not None
        self.assertEqual(b"ready\n", self.process.stdout.readline())

    def kill(self) -> None:
        with self.process:
            self.process.kill()

    async def test_while_it_lives_nobody_else_touches_its_work(self) -> None:
        await self.begin()
        claim = self.stores.uploads.claim(self.upload_id, Algorithm.SHA256)
        self.assertEqual(6, (await self.assert_raises(UploadBusy, claim)).offset)
        self.assertEqual([], list(await self.stores.uploads.idle(0)))
        self.assertEqual(0, len(await self.stores.blobs.sweep(self.rows.forget)))

    async def test_when_it_is_killed_its_upload_goes_on_here(self) -> None:
        await self.begin()
        self.kill()
        session = await self.stores.uploads.claim(self.upload_id, Algorithm.SHA256)
        session.write(b"world")
        self.assertEqual(Digest.of(b"hello world"), await session.digest(Algorithm.SHA256))
        await session.close()

    async def test_when_it_is_killed_a_blob_without_a_row_is_swept(self) -> None:
        await self.begin()
        self.kill()
        await self.assert_blob(b"blob")
        self.assertEqual(1, len(await self.stores.blobs.sweep(self.rows.forget)))
        self.assertEqual([], self.below("staging") + self.below("blobs"))

    async def test_when_it_is_killed_a_blob_with_a_row_stays(self) -> None:
        await self.begin()
        self.kill()
        self.rows.needed.add(Digest.of(b"blob"))
        self.assertEqual(1, len(await self.stores.blobs.sweep(self.rows.forget)))
        self.assertEqual([], self.below("staging"))
        await self.assert_blob(b"blob")

    async def test_a_probe_it_left_is_swept(self) -> None:
        (self.path / "staging" / f"probe.{uuid4()}").touch()
        await self.stores.blobs.sweep(self.rows.forget)
        self.assertEqual([], self.below("staging"))
