"""
A catalog that is locked, damaged or on a full disk: who asks is told so, and what to do; what was
stored stays.  docs/durability.md
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from contextlib import suppress as ignored
from pathlib import Path
from random import Random

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.catalog.migrations import copy_catalog, listed_blobs, settle
from artifactd.kit.start import StartError
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Digest
from artifactd.store.files import FileOperations
from tests.api.served import Served, image_manifest
from tests.durability.client import LOCAL
from tests.durability.recording import CATALOG
from tests.programs import Result, require, run_module


class CatalogTestCase(TestCase):
    def start(self, data: Path | None = None) -> Served:
        return Served.start(self, LOCAL, data=data, gc_rate="0")

    async def assert_told(self, served: Served, *words: str) -> None:
        """Readiness says so, and what to do."""
        ready = await served.request("GET", "/readyz")
        self.assertEqual(ready.status, 503, ready.body)
        for word in words:
            self.assertIn(word, ready.body.decode())

    async def assert_refused(self, served: Served, *words: str) -> None:
        """A push is, in so many words, and nothing is logged at length."""
        blob = os.urandom(20)
        path = f"/v2/app/blobs/uploads/?digest={Digest.of(blob)}"
        answer = await served.request("POST", path, blob)
        self.assertEqual(answer.status, 503, answer.body)
        (error,) = json.loads(answer.body)["errors"]
        for word in words:
            self.assertIn(word, error["message"])
        self.assertEqual(self.flushLoggedErrors(), [])


class LockedTests(CatalogTestCase):
    async def test_a_lock_that_is_held_for_long(self) -> None:
        served = self.start()
        await served.push_image("app", "v1", b"layer")
        with closing(sqlite3.connect(served.data / CATALOG, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            waiting = ensureDeferred(served.push_image("app", "v2", b"other"))
            await self.assert_told(
                served, "another process holds its lock", "look for what holds it"
            )
            read = await served.request("GET", "/v2/app/manifests/v1")
            self.assertEqual(read.status, 200)
            db.execute("ROLLBACK")
        await waiting
        self.assertEqual((await served.request("GET", "/readyz")).status, 200)
        self.assertEqual((await served.request("GET", "/v2/app/manifests/v2")).status, 200)


class DamagedTests(CatalogTestCase):
    async def stored(self) -> Path:
        """A data folder with an image in it, that nobody uses."""
        served = self.start()
        await served.push_image("app", "v1", b"layer")
        for number in range(40):
            await served.push_blob("app", b"%d" % number)
        await served.service.stopService()
        self.addCleanup(served.service.startService)  # for the cleanup that stops it
        return served.data

    def refusal(self, data: Path) -> str:
        with self.assertRaises(SystemExit) as refused:
            self.start(data)
        return str(refused.exception)

    async def test_a_header_that_is_none_stops_the_start_and_nothing_is_changed(self) -> None:
        data = await self.stored()
        whole = (data / CATALOG).read_bytes()
        with (data / CATALOG).open("r+b") as file:
            file.write(b"\xff" * 100)
        damaged, blobs = (data / CATALOG).read_bytes(), sorted(data.glob("blobs/*/*/*"))
        said = self.refusal(data)
        self.assertIn("its file is damaged: stop the registry and restore a backup", said)
        self.assertNotIn("\n", said)
        self.assertEqual((data / CATALOG).read_bytes(), damaged)
        self.assertEqual(sorted(data.glob("blobs/*/*/*")), blobs)
        (data / CATALOG).write_bytes(whole)

    def spoil(self, data: Path, size: int) -> None:
        """All pages of the catalog but the first; by another process, as a disk would."""
        code = (
            "import os, sys; fd = os.open(sys.argv[1], os.O_WRONLY);"
            "os.pwrite(fd, bytes([0xa5]) * (int(sys.argv[2]) - 4096), 4096)"
        )
        subprocess.run([sys.executable, "-c", code, data / CATALOG, str(size)], check=True)

    async def test_pages_that_are_spoilt_are_told_and_nothing_is_written_any_more(self) -> None:
        data = await self.stored()
        whole = (data / CATALOG).read_bytes()
        blobs = sorted(data.glob("blobs/*/*/*"))
        served = self.start(data)
        self.spoil(data, len(whole))
        for path in ("/v2/app/manifests/v1", "/v2/_catalog"):
            self.assertEqual((await served.request("GET", path)).status, 503)
        await self.assert_told(served, "its file is damaged", "restore a backup")
        await self.assert_refused(served, "its file is damaged", "restore a backup")
        await self.assertFailure(ensureDeferred(served.parts.sweep.run()), Unavailable)
        with self.assertRaises(Unavailable):
            await served.once_free(lambda: served.parts.collector.run([0]))
        await served.service.stopService()
        self.addCleanup(served.service.startService)
        # What could not be given a row lies there for the sweep.
        self.assertLessEqual(set(blobs), set(data.glob("blobs/*/*/*")))
        self.assertIn("restore a backup", self.refusal(data))
        for name in (f"{CATALOG}-wal", f"{CATALOG}-shm"):
            (data / name).unlink(missing_ok=True)
        (data / CATALOG).write_bytes(whole)
        again = self.start(data)
        self.assertEqual((await again.request("GET", "/v2/app/manifests/v1")).status, 200)
        self.assertEqual((await again.request("GET", "/readyz")).status, 200)


class TornLogTests(SynchronousTestCase):
    """What is assumed of SQLite's log (WAL), shown for the one that is installed."""

    def test_of_a_log_that_is_cut_or_spoilt_anywhere_whole_commits_are_found(self) -> None:
        path = Path(self.mktemp())
        path.mkdir()
        with closing(sqlite3.connect(path / CATALOG, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("CREATE TABLE number (n, padding)")
            for number in range(20):
                db.execute("BEGIN IMMEDIATE")
                for _ in range(3):
                    db.execute("INSERT INTO number VALUES (?, ?)", (number, "x" * 3000))
                db.execute("COMMIT")
            main, log = (path / CATALOG).read_bytes(), (path / f"{CATALOG}-wal").read_bytes()
        found, random = set(), Random(7)
        for _ in range(150):
            at = random.randrange(len(log))
            spoilt = bytearray(log[:at] if random.random() < 0.5 else log)
            spoilt[at : at + 50] = b"" if at >= len(spoilt) else random.randbytes(50)
            copy = Path(self.mktemp())
            copy.mkdir()
            (copy / CATALOG).write_bytes(main)
            (copy / f"{CATALOG}-wal").write_bytes(spoilt)
            with closing(sqlite3.connect(copy / CATALOG)) as db:
                self.assertEqual(db.execute("PRAGMA integrity_check").fetchone(), ("ok",))
                with ignored(sqlite3.OperationalError):  # the table is not there yet
                    counts = db.execute("SELECT n, count(*) FROM number GROUP BY n").fetchall()
                    self.assertEqual(counts, [(n, 3) for n in range(len(counts))])
                    found.add(len(counts))
        self.assertGreater(len(found), 5)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A filesystem of its own at ``path``."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path, left: int = 0) -> None:
    """Leave so many bytes of the filesystem at ``disk``."""
    with (disk / "filler").open("wb") as filler:
        free = os.statvfs(disk)
        os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize - left)


class FullDiskTests(CatalogTestCase):
    def disk(self, size: str) -> Path:
        """A filesystem of its own."""
        require("mount", "umount", root=True)
        disk = Path(self.mktemp()).absolute()
        disk.parent.mkdir(parents=True, exist_ok=True)
        mounted = small_disk(disk, size)
        try:
            mounted.__enter__()
        except subprocess.CalledProcessError:
            require("being allowed to mount")
        self.addCleanup(mounted.__exit__, None, None, None)
        return disk

    async def test_a_full_disk_can_be_emptied_where_no_daemon_runs_and_one_starts_on_it(
        self,
    ) -> None:
        served = self.start()
        kept = await served.push_image("app", "v1", b"layer")
        await served.push_image("app", "goes", b"other")
        disk = self.disk("16m")
        data = disk / "data"
        await self.back_up(served, data)

        async def do(*argv: str) -> None:
            env = {"ARTIFACTD_DATA": str(data)}
            done = await run_module(self, "artifactd.commands.main", *argv, env=env, check=False)
            self.assertEqual(done.status, 0, done.err)

        for work in (("rm", "app:goes"), ("gc", "--now", "app"), ()):
            await do("fsck")
            self.assertTrue((data / "reserve").exists())
            fill(disk)
            if work:
                await do(*work)
                (disk / "filler").unlink()
        await do("backup", self.mktemp())
        self.assertFalse((data / "reserve").exists())
        again = self.start(data)
        found = await again.request("GET", "/v2/app/manifests/v1")
        self.assertEqual(Digest.of(found.body), kept)
        await self.assert_refused(again, "out of disk space")

    async def back_up(self, served: Served, target: Path) -> Result:
        env = {"ARTIFACTD_DATA": str(served.data)}
        main = "artifactd.commands.main"
        return await run_module(self, main, "backup", str(target), env=env, check=False)

    async def test_a_backup_tells_which_disk_is_full_and_goes_on_when_there_is_room(self) -> None:
        served = self.start()
        await served.push_image("app", "v1", os.urandom(1 << 20))
        disk = self.disk("4m")
        target, copy = disk / "backup", disk / "backup/staging/backup.catalog"
        catalog = (served.data / CATALOG).stat().st_size
        told = []
        for left in (100_000, catalog + 100_000):
            fill(disk, left)
            result = await self.back_up(served, target)
            self.assertEqual((result.status, result.out), (1, ""))
            told.append(result.err)
        self.assertIn(f" to {copy}: database or disk is full", told[0])
        self.assertIn(f"{target} is cut short: [Errno 28] No space left on device", told[1])
        (disk / "filler").unlink()
        result = await self.back_up(served, target)
        self.assertEqual((result.status, result.err), (0, ""))

    async def test_a_copied_catalog_has_its_corrections_or_there_is_an_error(self) -> None:
        disk = self.disk("2m")
        served, catalog, copied = self.start(), Path(self.mktemp()), disk / "copied"
        copy_catalog(served.data / CATALOG, catalog)
        digests = [Digest.of(b"%d" % number) for number in range(2000)]
        with closing(sqlite3.connect(catalog)) as db:
            rows = [(str(digest),) for digest in digests]
            db.executemany("INSERT INTO blob (digest, size, created_at) VALUES (?, 0, 0)", rows)
            db.commit()
        right = dict.fromkeys(digests, 1 << 40)  # the rows grow
        outcomes = set()
        for room in range(0, 1 << 20, 1 << 14):
            copy_catalog(catalog, copied)
            fill(disk, room)
            try:
                settle(copied, right, [], FileOperations())
                corrected = sum(blob.size == 1 << 40 for blob in listed_blobs(copied))
                outcomes.add(f"{corrected} corrected")
            except StartError as error:
                self.assertIn(f"can't correct the catalog {copied}: d", str(error))
                outcomes.add("told")
            (disk / "filler").unlink()
        self.assertEqual(outcomes, {"2000 corrected", "told"})

    async def test_a_disk_that_is_full_for_catalog_and_store(self) -> None:
        disk = self.disk("16m")
        served = self.start(disk / "data")
        kept = await served.push_image("app", "v1", b"layer")
        for number in range(5):
            await served.push_image("app", f"goes-{number}", b"%d" % number)
        begun = await served.request("POST", "/v2/app/blobs/uploads/")
        session = begun.header("Location") or ""
        # The whole of a chunk goes that does not fit, so that somebody else's blob does.
        refused = await served.request("PATCH", session, os.urandom(20 << 20))
        self.assertEqual(refused.status, 503)
        self.assertEqual((await served.request("GET", session)).header("Range"), "0-0")
        await served.push_blob("other", b"small")
        with ignored(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            for size in (65536, 1):
                with ignored(OSError):
                    while filler.write(bytes(size)) == size:
                        pass
        await self.assert_told(served, "the store can't be written", "No space left")
        for _ in range(3):
            await self.assert_refused(served, "out of disk space")
        # What frees space finds room in the catalog, and what comes in does not take it.
        self.assertEqual((await served.request("DELETE", session)).status, 204)
        for number in range(5):
            path = f"/v2/app/manifests/goes-{number}"
            self.assertEqual((await served.request("DELETE", path)).status, 202)
            await self.assert_refused(served, "out of disk space")
        await self.assert_told(served, "the store can't be written")
        await served.once_free(served.parts.collector.run)
        self.assertEqual(self.flushLoggedErrors(), [])
        (disk / "filler").unlink()
        self.assertEqual((await served.request("GET", "/readyz")).status, 200)
        found = await served.request("GET", f"/v2/app/manifests/{kept}")
        self.assertEqual(Digest.of(found.body), kept)
        await served.push_image("app", "v2", b"another")
        await served.push_manifest("app", "v3", image_manifest(b"another", b"another"))
