"""Fills and extents between two processes, one of which may be killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import PIPE, Popen

from artifactd.oci.names import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.store.fills import FillState
from tests.store.filling import CONTENT, DIGEST, INFO, FillTestCase, read

# Arguments: data folder, digest.  Claims the fill, and does what it is told, line by line.
PROGRAM = """
import sys
from pathlib import Path
from twisted.internet.defer import ensureDeferred
from artifactd.oci.names import Digest
from artifactd.kit.budget import BufferBudget
from artifactd.store.blobs import BlobStore
from artifactd.store.fills import FillStores
from artifactd.store.folder import DataFolder
from artifactd.store.fills import FillInfo
from tests.store.fixture import at_once

async def work():
    info = FillInfo(11, '"validator"')
    session = await fills.claim(digest)
    part = await fills.add_extent(digest, 6, info)
    await session.describe(info)
    print("claimed", flush=True)
    for line in sys.stdin:
        told, _, text = line.rstrip("\\n").partition(" ")
        if told == "write":
            session.write(text.encode())
            await session.flush()
        elif told == "part":
            part.write(text.encode())
            await part.flush()
        elif told == "record":
            await part.record()
        elif told == "publish":
            staged = await session.stage()
            await staged.publish()
            staged.release()
        else:
            await getattr(session, told)()
        print(told, flush=True)

folder = DataFolder.open(Path(sys.argv[1]))
folder.settle()
digest = Digest.parse(sys.argv[2])
blobs = BlobStore(folder, at_once)
fills = FillStores(folder, at_once, blobs, BufferBudget(2 ** 26)).of("docker.io")
ensureDeferred(work())
"""


class OtherProcessTests(FillTestCase):
    """Another process has claimed the fill."""

    def setUp(self) -> None:
        super().setUp()
        root = str(Path(__file__).parents[2])
        self.process = Popen(
            [sys.executable, "-c", PROGRAM, str(self.path), str(DIGEST)],
            env={**os.environ, "PYTHONPATH": root},
            stdin=PIPE,
            stdout=PIPE,
        )
        self.addCleanup(self.kill)
        self.assert_said("claimed")

    def kill(self) -> None:
        with self.process:
            self.process.kill()

    def assert_said(self, line: str) -> None:
        assert self.process.stdout is not None
        self.assertEqual(f"{line}\n", self.process.stdout.readline().decode())

    def tell(self, line: str) -> None:
        """Let it do something, to the end."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        self.assert_said(line.partition(" ")[0])

    async def test_what_it_brings_is_followed_until_it_is_a_blob(self) -> None:
        view = await self.viewed()
        self.assertEqual(INFO, await self.stores.fills.info(DIGEST))
        self.assert_looks(view, FillState.GROWING, 0)
        self.tell("write hello ")
        self.assert_looks(view, FillState.GROWING, 6)
        self.tell("write world")
        self.assert_looks(view, FillState.GROWING, 11)
        self.tell("publish")
        self.assert_looks(view, FillState.VERIFIED, 11)
        self.assertEqual(CONTENT, read(view))
        await self.assert_blob(CONTENT)

    async def test_what_it_discards_has_failed(self) -> None:
        view = await self.viewed()
        self.tell("write HELLO")
        self.tell("discard")
        self.assert_looks(view, FillState.FAILED, 5)
        session = await self.claimed()
        self.assertEqual((0, None), (session.written, session.info))

    async def test_while_it_lives_nobody_else_touches_its_work(self) -> None:
        self.tell("write hello ")
        view = await self.viewed()
        self.assertIsNone(await self.stores.fills.claim(DIGEST))
        await self.stores.fills.discard(DIGEST)
        self.assertEqual(0, len(await self.stores.all_fills.sweep(0)))
        self.assert_looks(view, FillState.GROWING, 6)

    async def test_when_it_closes_the_fill_goes_on_here(self) -> None:
        self.tell("write hello ")
        view = await self.viewed()
        self.tell("close")
        await self.assert_goes_on()
        self.assert_looks(view, FillState.GROWING, 11)

    async def test_when_it_is_killed_the_fill_goes_on_here(self) -> None:
        self.tell("write hello ")
        view = await self.viewed()
        self.kill()
        self.assert_looks(view, FillState.GROWING, 6)
        await self.assert_goes_on()
        self.assert_looks(view, FillState.GROWING, 11)

    async def test_when_it_is_killed_what_it_recorded_stays(self) -> None:
        self.tell("write hello ")
        self.tell("part wor")
        self.assertIsNone(await self.stores.fills.find_extent(DIGEST, ByteRange(6, 6)))
        self.tell("record")
        self.tell("part ld")
        self.kill()
        session = await self.claimed()
        self.assertEqual(3, await session.take_extents(None))
        session.write(b"ld")
        self.assertEqual(DIGEST, await session.computed())

    async def test_when_it_is_killed_what_it_left_is_swept(self) -> None:
        self.tell("write hello ")
        self.tell("part world")
        self.tell("record")
        self.kill()
        self.assertEqual(1, len(await self.stores.all_fills.sweep(0)))
        self.assertEqual([], self.below("fills"))

    async def assert_goes_on(self) -> None:
        """What the other process has begun is finished here."""
        session = await self.claimed()
        self.assertEqual((6, INFO), (session.written, session.info))
        session.write(b"world")
        self.assertEqual(Digest.of(CONTENT), await session.computed())
