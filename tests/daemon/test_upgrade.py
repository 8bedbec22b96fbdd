"""The program is replaced while it runs, and a reload lets workers of the new one take over."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.trial.unittest import TestCase

from artifactd import __version__
from artifactd.store.procfs import daemon_of
from tests.crash.upload import CONTENT, send, status
from tests.process import CHECKOUT, Daemon
from tests.programs import wait_for
from tests.workers import Busy, FreshWorkers, running

NEWER = f"{__version__}.newer"


class Installed(FreshWorkers):
    """
    Several workers of a program that can be replaced.

    :ivar program: its package.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.program = self._folder / "installed" / "artifactd"
        self.path = f"{self.program.parent}{os.pathsep}{self.path}"
        shutil.copytree(CHECKOUT / "artifactd", self.program)

    def install(self, version: str) -> None:
        """Replace the program by another version of it."""
        shutil.rmtree(self.program)
        shutil.copytree(CHECKOUT / "artifactd", self.program)
        (self.program / "__init__.py").write_text(f'__version__ = "{version}"\n')


class UpgradeTests(TestCase):
    async def start(self) -> Installed:
        daemon = await Installed.start(
            self, workers="2", idle_timeout="1s", stall_timeout="1h", access_log="off"
        )
        await daemon.all_ready(2)
        return daemon

    async def version(self, daemon: Daemon) -> str:
        """What the daemon says that it is, in an answer."""
        answer = await daemon.request("GET", "/v2/")
        self.assertEqual(answer.status, 200)
        return answer.header("Server") or ""

    async def test_under_load_no_request_fails_and_what_is_under_way_goes_on(self) -> None:
        daemon = await self.start()
        old = daemon.pids()
        content = CONTENT * 4  # more than the sockets hold
        digest = await daemon.push_blob("crash", content)
        pull = await send(self, daemon, "GET", f"/v2/crash/blobs/{digest}")
        self.assertEqual(await status(pull), 200)
        IPushProducer(pull.transport).pauseProducing()
        busy = Busy(self, daemon)
        self.assertEqual(await self.version(daemon), f"artifactd/{__version__}")

        daemon.install(NEWER)
        # Nobody has looked at the page: its templates are not those of the new version.
        page = await daemon.request("GET", "/", headers={"Accept": "text/html"})
        self.assertEqual(page.status, 200)
        self.assertEqual(await self.version(daemon), f"artifactd/{__version__}")
        os.kill(daemon.process.pid, signal.SIGHUP)
        await daemon.process.matched(f"reloaded: 2 workers of artifactd {NEWER} serve")
        self.assertEqual(await self.version(daemon), f"artifactd/{NEWER}")
        await daemon.process.matched(f"stays artifactd {__version__} until a restart")

        await wait_for(lambda: sum(map(running, old)) == 1)  # the one that sends the blob
        self.assertTrue(all(await busy.ended()))
        IPushProducer(pull.transport).resumeProducing()
        _, body = await pull.response()
        self.assertTrue(body == content, "other bytes than were pushed")
        await wait_for(lambda: not any(map(running, old)))
        new = daemon.pids()[2:]
        self.assertEqual([daemon_of(pid) for pid in new], [daemon.process.pid] * 2)
        self.assertEqual(await daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertNotIn("Traceback", daemon.process.output)

    async def test_a_version_that_can_not_start_is_refused_in_one_line(self) -> None:
        daemon = await self.start()
        old = daemon.pids()

        async def assert_refused(why: str) -> None:
            before = daemon.process.output
            result = await daemon.reload()
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertRegex(result.err, rf"\Aartifactd: reload refused: {why}\n\Z")
            await daemon.process.matched(rf"reload refused, all stays as it was: {why}\n")
            told = daemon.process.output.removeprefix(before).splitlines()
            self.assertEqual(len(told), 1, told)
            self.assertEqual(await self.version(daemon), f"artifactd/{__version__}")
            self.assertTrue(all(map(running, old)))

        daemon.install(NEWER)
        wrong = daemon.program / "web" / "api.py"
        wrong.write_text("def (")
        where = r"SyntaxError: invalid syntax \(api.py, line 1\)"
        await assert_refused(f"artifactd {NEWER} can't be loaded: {where}")

        daemon.install(NEWER)
        schema = daemon.program / "catalog" / "schema"
        number = len(list(schema.glob("*.sql"))) + 1
        (schema / f"{number:04}.sql").write_text("CREATE TABLE newer (id INTEGER) STRICT;")
        await assert_refused(
            f"the data folder {daemon.data} is needed alone, for a migration or a backup into it,"
            f" but is in use by process {daemon.process.pid}: stop it first"
        )
        self.assertEqual(await daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertNotIn("Traceback", daemon.process.output)
