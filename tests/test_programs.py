"""The fixtures that run other programs."""

from __future__ import annotations

import os
import signal

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
