"""The daemon as a process: how it starts, stops, and says that it can't."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import closing
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from twisted.application.service import IServiceMaker
from twisted.internet.threads import deferToThread
from twisted.logger import Logger, LogPublisher, textFileLogObserver
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.daemon import tap
from artifactd.daemon.tap import makeService
from artifactd.oci.names import Digest
from artifactd.settings.settings import Settings
from tests.crash.test_start import set_version
from tests.process import CHECKOUT, Daemon, Fresh
from tests.programs import reactor, run, run_module
from tests.workers import FreshWorkers


class StartTests(TestCase):
    async def start_in_vain(self, **environ: str) -> str:
        """What the daemon writes to its standard error and log when it does not start."""
        result = await run_module(self, "artifactd", env=environ, check=False)
        self.assertEqual(result.status, 1)
        return result.out + result.err

    async def test_twistd_knows_it(self) -> None:
        program = "from twisted.scripts.twistd import run; run()"
        env = {"PYTHONPATH": str(CHECKOUT)}
        result = await run(self, sys.executable, "-c", program, "--help", env=env)
        self.assertRegex(result.out, r"artifactd +A Docker/OCI registry")

    async def test_a_wrong_setting_is_all_that_it_says(self) -> None:
        self.assertEqual(
            await self.start_in_vain(ARTIFACTD_THREADS="0"),
            'artifactd: ARTIFACTD_THREADS: expected a whole number from 1 to 64, got "0"\n',
        )

    async def test_a_folder_of_something_else_is_named(self) -> None:
        other = Path(self.mktemp()).absolute()
        other.mkdir()
        (other / "thesis.tex").touch()
        said = await self.start_in_vain(ARTIFACTD_DATA=str(other))
        self.assertIn(f"the data folder {other} holds other things ('thesis.tex')", said)
        self.assertNotIn("Traceback", said)

    async def test_an_access_log_that_can_not_be_written_is_named(self) -> None:
        said = await self.start_in_vain(
            ARTIFACTD_LISTEN="tcp:0:interface=127.0.0.1",
            ARTIFACTD_DATA=str(Path(self.mktemp()).absolute()),
            ARTIFACTD_ACCESS_LOG_FILE="/absent/log",
            ARTIFACTD_LOG_FORMAT="json",
        )
        lines = [json.loads(line) for line in said.splitlines()]  # of twistd's start, too
        self.assertGreater(len(lines), 1)
        self.assertEqual(lines[-1]["level"], "error")
        self.assertEqual(
            lines[-1]["message"],
            "artifactd: access_log_file: /absent/log: No such file or directory",
        )

    async def test_an_address_in_use_is_named(self) -> None:
        daemon = await Daemon.start(self)
        address = f"tcp:{daemon.port}:interface=127.0.0.1"
        said = await self.start_in_vain(
            ARTIFACTD_LISTEN=address, ARTIFACTD_DATA=str(Path(self.mktemp()).absolute())
        )
        self.assertIn(f"artifactd: listen: {address}: ", said)
        self.assertNotIn("Traceback", said)


class LogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(reactor, "seconds", reactor.seconds)  # a start makes it steady

    def test_the_log_of_twistd_has_printable_lines_alone(self) -> None:
        file, publisher = StringIO(), LogPublisher()
        self.patch(tap, "globalLogPublisher", publisher)
        for kind in ("_service", "_supervisor"):
            self.patch(tap, kind, lambda *_: None)
        options = tap.Options()
        options.parseOptions([])
        makeService(options)
        publisher.addObserver(textFileLogObserver(file))  # as twistd does, after makeService
        error = OSError("denied\n2026-01-01 by \x1b[2J\u202e")
        Logger("any", observer=publisher).error("no answer: {error}", error=error)
        line = file.getvalue().removesuffix("\n")
        self.assertTrue(line.isprintable(), ascii(line))
        self.assertIn("denied\\u000a2026-01-01 by \\u001b[2J\\u202e", line)

    def test_a_form_of_the_log_that_twistd_does_not_write_stops_the_start(self) -> None:
        self.patch(tap, "globalLogPublisher", LogPublisher())
        options: Any = tap.Options()
        options.parseOptions([])
        options.parent = {"syslog": False, "nodaemon": True, "logfile": "twistd.log"}
        for name, value in (("log_format", "json"), ("log_level", "error")):
            self.patch(options, "load", partial(replace, Settings(), **{name: value}))
            with self.assertRaises(SystemExit) as caught:
                makeService(options)
            self.assertTrue(str(caught.exception).startswith(f"artifactd: {name}: "))

    def test_a_reason_not_to_start_is_one_line(self) -> None:
        self.patch(tap, "globalLogPublisher", LogPublisher())
        options = tap.Options()
        options.parseOptions(["--config", "/absent/a\nb\x1b"])
        stopped = self.assertRaises(SystemExit, makeService, options)
        self.assertTrue(str(stopped).isprintable(), ascii(str(stopped)))
        self.assertIn("/absent/a\\u000ab\\u001b", str(stopped))


class WorkersTests(TestCase):
    async def test_a_start_in_the_way_is_told_the_supervisor_and_ctrl_c_ends_all(self) -> None:
        daemon = await FreshWorkers.start(self, workers="2")
        workers = await daemon.all_ready(2)
        set_version(daemon.data, 0)
        environment = {"ARTIFACTD_DATA": str(daemon.data)}
        second = await run_module(self, "artifactd", env=environment, check=False)
        self.assertEqual(second.status, 1)
        self.assertIn(f"is in use by process {daemon.process.pid}: stop it first", second.out)
        # As the terminal does it.
        for pid in (daemon.process.pid, *workers):
            os.kill(pid, signal.SIGINT)
        self.assertEqual(await daemon.process.ended(), -signal.SIGINT)
        self.assertIn("Server Shut Down.", daemon.process.output)
        self.assertNotIn("Traceback", daemon.process.output)


class StopTests(TestCase):
    async def test_sigterm_ends_it_cleanly(self) -> None:
        daemon = await Fresh.start(self)
        # Listening comes before handling signals; once it answers it does both.
        await daemon.request("GET", "/healthz")
        # As systemd expects it: twistd ends itself by the signal when all is shut down.
        self.assertEqual(await daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertIn("Server Shut Down.", daemon.process.output)
        self.assertNotIn("Traceback", daemon.process.output)

    async def test_sighup_is_logged_and_changes_nothing(self) -> None:
        daemon = await Daemon.start(self)
        os.kill(daemon.process.pid, signal.SIGHUP)
        await daemon.process.matched("SIGHUP: nothing to do")
        self.assertEqual((await daemon.request("GET", "/healthz")).status, 200)

    def test_sighup_does_not_end_a_start_either(self) -> None:
        [maker] = (each for each in getPlugins(IServiceMaker) if each.tapname == "artifactd")
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self.assertIs(maker.options, tap.Options)  # twistd asks for it first
        self.assertIs(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

    async def test_a_second_sigterm_ends_the_drain_at_once(self) -> None:
        daemon = await Daemon.start(self, toml='shutdown_timeout = "1d"\n')
        opened = await daemon.request("POST", "/v2/hello/blobs/uploads/")
        location = opened.header("Location") or ""
        with closing(socket.create_connection(("127.0.0.1", daemon.port))) as client:
            client.sendall(
                f"PUT {location}?digest={Digest.of(b'hello')} HTTP/1.1\r\nHost: a\r\n"
                "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n".encode()
            )
            # Asked to go on: the request is running, and will not end.
            self.assertIn(b"100 Continue", await deferToThread(client.recv, 100))
            os.kill(daemon.process.pid, signal.SIGTERM)
            told = await daemon.process.matched(
                "stopping: waiting up to .* for 1 running requests.*"
            )
            self.assertIn("PUT /v2/hello/blobs/uploads/", told[0])
            self.assertEqual(await daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertIn("Server Shut Down.", daemon.process.output)
        self.assertNotIn("Traceback", daemon.process.output)

    async def test_it_comes_back_at_its_address_after_a_crash(self) -> None:
        daemon = await Daemon.start(self)
        port = daemon.port
        self.assertEqual(await daemon.kill(), -signal.SIGKILL)
        await daemon.restart()
        self.assertEqual(daemon.port, port)
        self.assertEqual((await daemon.request("GET", "/healthz")).status, 200)
