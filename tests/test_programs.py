"""The fixtures that run other programs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, TestCase

from tests.programs import DockerEngine, Process, require, run


class RunTests(TestCase):
    async def test_output_and_status_are_told_apart(self) -> None:
        script = "cat; echo wrong >&2; exit 3"
        result = await run(self, "sh", "-c", script, stdin=b"right\n", check=False)
        self.assertEqual((result.status, result.out, result.err), (3, "right\n", "wrong\n"))

    async def test_a_failing_program_fails_the_test_with_its_output(self) -> None:
        with self.assertRaisesRegex(AssertionError, "no space left"):
            await run(self, "sh", "-c", "echo no space left >&2; exit 1")

    async def test_a_program_that_takes_too_long_fails_the_test(self) -> None:
        with self.assertRaisesRegex(AssertionError, "took too long"):
            await run(self, "sleep", "600", seconds=0.01)


class ProcessTests(TestCase):
    async def test_its_output_can_be_waited_for(self) -> None:
        process = Process.start(self, "sh", "-c", "echo port 5000; exec sleep 600")
        self.assertEqual((await process.matched(r"port (\d+)"))[1], "5000")
        self.assertEqual(await process.kill(signal.SIGTERM), -signal.SIGTERM)

    async def test_waiting_for_its_output_ends_with_it(self) -> None:
        process = Process.start(self, "echo", "address in use")
        with self.assertRaisesRegex(AssertionError, "address in use"):
            await process.matched("listening")


class ForkTests(TestCase):
    async def test_it_is_the_program_that_was_asked_for_where_it_was(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        (folder / "said.py").write_text(
            "import os, sys; print(sys.argv[1:], dict(os.environ), os.getcwd(), __name__);"
            "print(repr(sys.stdin.read()), file=sys.stderr); sys.exit(3)"
        )
        said = Process.fork(self, "said", "a", "b c", env={"ONLY": "this"}, folder=folder)
        self.assertEqual(await said.ended(), 3)
        self.assertEqual(said.out.decode(), f"['a', 'b c'] {{'ONLY': 'this'}} {folder} __main__\n")
        self.assertEqual(said.err, b"''\n")

    async def test_several_run_at_once_and_each_end_is_told(self) -> None:
        servers = [Process.fork(self, "http.server", "--bind", "127.0.0.1", "0") for _ in range(3)]
        for server in servers:
            await server.matched("Serving HTTP")
        self.assertEqual(len({server.pid for server in servers}), 3)
        self.assertEqual(await servers[1].kill(signal.SIGKILL), -signal.SIGKILL)
        self.assertEqual(await servers[0].kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertIsNone(servers[2].status)

    async def test_they_end_with_the_process_that_started_them(self) -> None:
        program = (
            "import os; from tests import nursery;"
            'server = nursery.Program("http.server", ["--bind", "127.0.0.1", "0"], {}, "/");'
            "told, tells = os.pipe(); nursery.start(server, 1, 2, tells);"
            "print(os.read(told, 100).decode(), flush=True); os.kill(os.getpid(), 9)"
        )
        died = Process.start(
            self, sys.executable, "-c", program, env={"PYTHONPATH": str(Path(__file__).parents[1])}
        )
        # That is told when its output ends: no process has it open any more.
        self.assertEqual(await died.ended(), -signal.SIGKILL)
        self.assertRegex(died.output, r"\d+")

    async def test_it_may_change_its_output_when_that_of_the_tests_is_a_file(self) -> None:
        program = (
            "import os, socket, sys; from tests.nursery import _Nursery;"
            "_Nursery(socket.socket())._become(*(os.dup(2) for _ in range(3)));"
            "sys.stdout.reconfigure(errors='replace'); print('said')"
        )
        ran = await run(
            self,
            *("sh", "-c", 'exec "$0" -c "$1" >"$2"', sys.executable, program, self.mktemp()),
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self.assertEqual(ran.err, "said\n")


class RequireTests(TestCase):
    def test_a_missing_program_skips_the_test(self) -> None:
        self.patch(os, "environ", {"PATH": "/bin"})
        with self.assertRaisesRegex(SkipTest, "no-such-program"):
            require("sh", "no-such-program")

    def test_a_missing_program_fails_where_all_have_to_be_there(self) -> None:
        self.patch(os, "environ", {"PATH": "/bin", "ARTIFACTD_REQUIRE_PROGRAMS": "1"})
        with self.assertRaisesRegex(AssertionError, "no-such-program"):
            require("no-such-program")


class DockerEngineTests(TestCase):
    async def test_an_engine_of_its_own_answers(self) -> None:
        engine = await DockerEngine.start(self)
        result = await engine.docker("version", "--format", "{{.Server.Os}}")
        self.assertEqual(result.out.strip(), "linux")
