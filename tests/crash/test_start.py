"""Whom a start lets in, with other processes on the same data folder."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.process import Daemon
from tests.programs import Process, run_module, wait_for

HELLO = b"hello"
UPLOAD = f"/v2/crash/blobs/uploads/?digest={Digest.of(HELLO)}"
BLOB = f"/v2/crash/blobs/{Digest.of(HELLO)}"


def set_version(data: Path, version: int) -> int:
    """Let the catalog in ``data`` say that it has another schema than it has; which it said."""
    with closing(sqlite3.connect(data / "catalog.sqlite3")) as db:
        (said,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version}")
        return int(said)


def environment(data: Path) -> dict[str, str]:
    """For a daemon on ``data``."""
    return {
        "ARTIFACTD_DATA": str(data),
        "ARTIFACTD_LISTEN": "tcp:0:interface=127.0.0.1",
    }


class StartTests(TestCase):
    async def refusal(self, data: Path) -> str:
        """What a daemon says that does not start on ``data``; it says it in one line, at last."""
        env = environment(data)
        result = await run_module(self, "artifactd", env=env, check=False)
        self.assertEqual(result.status, 1, result)
        lines = (result.out + result.err).splitlines()
        self.assertEqual([line for line in lines if "artifactd: " in line], lines[-1:])
        self.assertNotIn("Traceback", result.out + result.err)
        return lines[-1].partition("artifactd: ")[2]

    async def test_a_migration_stops_and_names_who_is_in_the_way(self) -> None:
        one = await Daemon.start(self, workers="1")
        other = await Daemon.start(self, data=one.data, workers="1")
        set_version(one.data, 0)
        said = await self.refusal(one.data)
        for daemon in (one, other):
            self.assertRegex(said, rf"in use by .*\b{daemon.process.pid}\b.*: stop it first")
            self.assertEqual((await daemon.request("POST", UPLOAD, body=HELLO)).status, 201)

    async def test_who_was_killed_is_in_nobodys_way(self) -> None:
        one = await Daemon.start(self, workers="1")
        other = await Daemon.start(self, data=one.data, workers="1")
        set_version(one.data, 0)
        await one.kill()
        said = await self.refusal(one.data)
        self.assertNotRegex(said, rf"\b{one.process.pid}\b")
        self.assertRegex(said, rf"in use by process {other.process.pid}:")

    async def test_a_catalog_of_a_newer_release_is_refused_and_left_alone(self) -> None:
        daemon = await Daemon.start(self)
        self.assertEqual((await daemon.request("POST", UPLOAD, body=HELLO)).status, 201)
        await daemon.kill(signal.SIGTERM)
        version = set_version(daemon.data, 99)
        self.assertRegex(await self.refusal(daemon.data), "has schema 99, made by a newer release")
        set_version(daemon.data, version)
        await daemon.restart()
        self.assertEqual((await daemon.request("GET", BLOB)).body, HELLO)

    async def test_a_catalog_of_another_program_is_refused_and_left_alone(self) -> None:
        daemon = await Daemon.start(self)
        await daemon.kill(signal.SIGTERM)
        catalog = daemon.data / "catalog.sqlite3"
        catalog.unlink()
        with closing(sqlite3.connect(catalog)) as db:
            db.execute("CREATE TABLE theirs (n)")
        before = catalog.read_bytes()
        self.assertRegex(await self.refusal(daemon.data), "a database of another program")
        self.assertEqual(catalog.read_bytes(), before)

    async def test_a_lost_catalog_is_not_replaced_by_an_empty_one(self) -> None:
        daemon = await Daemon.start(self)
        self.assertEqual((await daemon.request("POST", UPLOAD, body=HELLO)).status, 201)
        await daemon.kill(signal.SIGTERM)
        catalog, kept = daemon.data / "catalog.sqlite3", daemon.data / "catalog.sqlite3.kept"
        catalog.rename(kept)
        for left in ("nothing", "an empty file"):
            if left == "an empty file":
                catalog.touch()
            said = await self.refusal(daemon.data)
            self.assertRegex(said, "is lost, and there are blobs beside it.* backup")
            self.assertFalse(catalog.exists() and catalog.stat().st_size, left)
        kept.replace(catalog)
        await daemon.restart()
        self.assertEqual((await daemon.request("GET", BLOB)).body, HELLO)

    async def test_several_started_at_once_on_a_fresh_folder_all_come_up(self) -> None:
        data = Path(self.mktemp()).absolute()
        starting = [Deferred.fromCoroutine(Daemon.start(self, data=data)) for _ in range(4)]
        daemons = await gatherResults(starting)
        self.assertEqual((await daemons[0].request("POST", UPLOAD, body=HELLO)).status, 201)
        for daemon in daemons:
            self.assertEqual((await daemon.request("GET", BLOB)).body, HELLO)

    async def test_a_first_start_that_was_killed_is_made_good_by_the_next(self) -> None:
        for name in ("artifactd.lock", "staging", "catalog.sqlite3"):
            data = Path(self.mktemp()).absolute()
            env = {**os.environ, **environment(data)}
            killed = Process.fork(self, "artifactd", env=env)
            await wait_for((data / name).exists)
            await killed.kill(signal.SIGKILL)
            daemon = await Daemon.start(self, data=data)
            self.assertEqual((await daemon.request("POST", UPLOAD, body=HELLO)).status, 201, name)
            await daemon.kill(signal.SIGTERM)
