"""What a killed daemon leaves behind, and what is left of that after the next start."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.commands.test_main import artifactd
from tests.crash.upload import CONTENT, Upload, send
from tests.process import Daemon
from tests.programs import Process, wait_for

HELLO = "hello"
BLOB = f"/v2/crash/blobs/{Digest.of(HELLO.encode())}"
DIGEST = Digest.of(CONTENT)
HALF = len(CONTENT) // 2
DAYS = 2 * 24 * 3600


def unfinished(data: Path) -> list[Path]:
    """The files of uploads, and those staged."""
    return [*(data / "uploads").iterdir(), *(data / "staging").iterdir()]


async def swept(daemon: Daemon) -> None:
    """Restart a daemon that has ended, some days later, and wait until it has swept."""
    for file in unfinished(daemon.data):
        os.utime(file, (time.time() - DAYS,) * 2)
    await daemon.restart()
    await daemon.process.matched("swept ")  # told once all of it has gone
    assert not unfinished(daemon.data)


def stored(data: Path) -> dict[str, int]:
    """The digests and sizes of the files in ``blobs``."""
    files = data.glob("blobs/*/*/*")
    return {f"{file.parts[-3]}:{file.name}": file.stat().st_size for file in files}


def listed(data: Path) -> dict[str, int]:
    """The same of the rows in the catalog."""
    with closing(sqlite3.connect(f"file:{data}/catalog.sqlite3?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT digest, size FROM blob").fetchall())


class SweepTests(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.daemon = await Daemon.start(self)

    async def publish_and_die(self) -> None:
        """Leave :data:`HELLO` published and staged, by a process that has died then."""
        process = Process.fork(self, "tests.crash.dying", str(self.daemon.data), HELLO)
        self.assertEqual(await process.ended(), -signal.SIGKILL, process.output)
        self.assertEqual(len(list(self.daemon.data.glob("staging/*"))), 1)
        self.assertIn(str(Digest.of(HELLO.encode())), stored(self.daemon.data))

    async def assert_stored_and_listed(self) -> None:
        self.assertEqual((await self.daemon.request("GET", BLOB)).body, HELLO.encode())
        self.assertEqual(stored(self.daemon.data), listed(self.daemon.data))

    async def test_a_blob_published_without_a_row_goes(self) -> None:
        await self.publish_and_die()
        self.assertEqual((await self.daemon.request("HEAD", BLOB)).status, 404)
        await self.daemon.kill()
        await swept(self.daemon)
        self.assertEqual(stored(self.daemon.data), {})
        self.assertEqual((await self.daemon.request("HEAD", BLOB)).status, 404)

    async def test_one_that_a_later_push_has_given_a_row_stays(self) -> None:
        await self.publish_and_die()
        await self.daemon.push_blob("crash", HELLO.encode())
        await self.daemon.kill()
        await swept(self.daemon)
        await self.assert_stored_and_listed()

    async def test_one_that_had_a_row_before_stays(self) -> None:
        await self.daemon.push_blob("crash", HELLO.encode())
        await self.publish_and_die()
        await self.daemon.kill()
        await swept(self.daemon)
        await self.assert_stored_and_listed()

    async def test_uploads_that_were_cut_go_when_they_are_old(self) -> None:
        upload = await Upload.start(self.daemon)
        await send(self, self.daemon, "PATCH", upload.path, CONTENT[:HALF], length=len(CONTENT))
        whole = f"/v2/crash/blobs/uploads/?digest={DIGEST}"
        await send(self, self.daemon, "POST", whole, CONTENT[:HALF], length=len(CONTENT))
        await wait_for(
            lambda: (
                [bool(file.stat().st_size) for file in unfinished(self.daemon.data)] == [True, True]
            )
        )
        await self.daemon.kill()
        await swept(self.daemon)
        self.assertEqual((await self.daemon.request("GET", upload.path)).status, 404)
        self.assertEqual(stored(self.daemon.data), {})

    async def test_an_upload_that_is_young_stays(self) -> None:
        upload = await Upload.start(self.daemon)
        await send(self, self.daemon, "PATCH", upload.path, CONTENT[:HALF], length=len(CONTENT))
        await upload.receiving(self.daemon)
        await self.publish_and_die()
        await self.daemon.kill()
        await self.daemon.restart()
        await self.daemon.process.matched("swept 1 ")
        offset = await upload.offset(self.daemon)
        answer = await self.daemon.request(
            "PUT", f"{upload.path}?digest={DIGEST}", body=CONTENT[offset:]
        )
        self.assertEqual(answer.status, 201)

    async def test_what_another_process_is_about_to_publish_stays(self) -> None:
        upload = await Upload.start(self.daemon)
        chunk = await send(
            self, self.daemon, "PATCH", upload.path, CONTENT[:HALF], length=len(CONTENT)
        )
        await upload.receiving(self.daemon)
        await self.publish_and_die()
        upload_file = upload.file(self.daemon.data)
        os.utime(upload_file, (time.time() - DAYS,) * 2)
        swept = await artifactd(self, "gc", ARTIFACTD_DATA=str(self.daemon.data))
        self.assertIn(": the process that wrote it has died\n", swept.out)
        other = await Daemon.start(self, data=self.daemon.data)
        self.assertEqual(unfinished(self.daemon.data), [upload_file])
        chunk.send(CONTENT[HALF:])
        await chunk.take_more()
        answer = await other.request("PUT", f"{upload.path}?digest={DIGEST}")
        self.assertEqual(answer.status, 201)
