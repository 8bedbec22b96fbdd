"""Logins at upstreams that a command prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessProtocol
from twisted.internet.task import Clock
from twisted.logger import eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.settings.remote import RemoteSettings
from artifactd.settings.values import Url, Word
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.errors import LoginRefused
from artifactd.upstream.sources import CommandCredentials
from tests.api.case import LogLines
from tests.programs import reactor

ALICE = Credentials("alice", "s3cr3t")


def printed(login: Credentials = ALICE) -> bytes:
    """What a helper prints."""
    return json.dumps(
        {"ServerURL": "r.example", "Username": login.username, "Secret": login.password}
    ).encode()


@define(eq=False)
class Run:
    """A process that was started, and its transport."""

    protocol: IProcessProtocol
    program: str
    arguments: Sequence[str]
    environ: Mapping[str, str]
    given: bytes = b""
    steps: list[str] = field(factory=list)

    def write(self, data: bytes) -> None:
        self.given += data

    def closeStdin(self) -> None:  # noqa: N802 - Twisted's name
        self.steps.append("stdin closed")

    def signalProcess(self, signal: str) -> None:
        self.steps.append(signal)
        if "ended" in self.steps:
            raise ProcessExitedAlready

    def loseConnection(self) -> None:
        self.steps.append("pipes closed")

    def end(self, output: bytes = b"", status: int = 0, said: bytes = b"") -> None:
        """Let it print and end."""
        self.protocol.childDataReceived(1, output)
        self.protocol.childDataReceived(2, said)
        self.exit(ProcessTerminated(status) if status else ProcessDone(0))

    def exit(self, how: Exception) -> None:
        self.steps.append("ended")
        self.protocol.processEnded(Failure(how))


class Processes(Clock):
    """:ivar runs: the processes that were started."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def spawnProcess(
        self,
        protocol: IProcessProtocol,
        program: str,
        arguments: Sequence[str],
        environ: Mapping[str, str],
    ) -> None:
        run = Run(protocol, program, arguments, environ)
        self.runs.append(run)
        protocol.makeConnection(run)  # type: ignore[arg-type]  # all of it that is called


def command(*words: str, upstream: str = "https://r.example:5000/base") -> RemoteSettings:
    """The settings of a repository with a ``credential_command``."""
    return RemoteSettings(upstream=Url(upstream), credential_command=tuple(map(Word, words)))


class CommandCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.processes = Processes()
        self.log = LogLines()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)
        self.source = self.made()

    def made(self, **settings: Any) -> CommandCredentials:
        environ = {"PATH": "/usr/bin:/bin", "HOME": "/home/a", "HUB_PASSWORD": "hunter2"}
        return CommandCredentials("team", command("sh", "-x", **settings), self.processes, environ)

    def ask(self) -> Deferred[Credentials | None]:
        return Deferred.fromCoroutine(self.source.get())

    def had(self, output: bytes) -> Credentials | None:
        """Ask, let the command print that, and return the login."""
        asked = self.ask()
        self.processes.runs[-1].end(output)
        return self.successResultOf(asked)

    def assert_fails(self, asked: Deferred[Credentials | None], why: str) -> None:
        """There is no login; the log says ``why`` in one line, and names the repository."""
        error = self.failureResultOf(asked, LoginRefused).value
        assert isinstance(error, LoginRefused)
        self.assertEqual(error.reason, "there is no login for team at present (the log says why)")
        self.assertEqual(self.lines(), [f"team: credential_command gives no login: {why}"])
        self.log.events.clear()

    def lines(self) -> list[str]:
        return [
            eventAsText(event, includeTimestamp=False, includeSystem=False)
            for event in self.log.events
        ]


class ProtocolTests(CommandCase):
    """The protocol of Docker's credential helpers."""

    def test_the_command_is_given_the_registry_and_little_of_the_environment(self) -> None:
        self.ask()
        (run,) = self.processes.runs
        self.assertIn(run.program, ("/usr/bin/sh", "/bin/sh"))
        self.assertEqual(tuple(run.arguments), (run.program, "-x", "get"))
        self.assertEqual((run.given, run.steps), (b"r.example:5000", ["stdin closed"]))
        self.assertEqual(run.environ, {"PATH": "/usr/bin:/bin", "HOME": "/home/a"})
        run.end(printed())

    def test_docker_hub_goes_by_its_old_address(self) -> None:
        self.source = self.made(upstream="https://registry-1.docker.io")
        self.ask()
        self.assertEqual(self.processes.runs[0].given, b"https://index.docker.io/v1/")
        self.processes.runs[0].end(printed())

    def test_what_it_prints_is_the_login(self) -> None:
        self.assertEqual(self.had(printed()), ALICE)
        self.assertEqual(self.lines(), [])

    def test_it_may_print_an_identity_token(self) -> None:
        token = Credentials("<token>", "t0k3n", identity_token=True)
        self.assertEqual(self.had(printed(token)), token)

    def test_whatever_else_it_prints_is_no_login(self) -> None:
        no_object = "it prints no JSON object with Username and Secret"
        no_value = "it prints no Username, or no Secret"
        wrong = "it prints a Username with a colon, or a control character in one of the two"
        for output, why in (
            (b"", no_object),
            (b"s3cr3t", no_object),
            (b'["s3cr3t"]', no_object),
            (b'{"Username": 3, "Secret": "s3cr3t"}', no_object),
            (b"\xff", no_object),
            (b"[" * 60_000, no_object),
            (b"{}", no_value),
            (printed(Credentials("", "s3cr3t")), no_value),
            (printed(Credentials("alice", "")), no_value),
            (printed(Credentials("a:b", "s3cr3t")), wrong),
            (printed(Credentials("alice", "s3cr3t\n")), wrong),
            (printed(Credentials("alice", "s3\0cr3t")), wrong),
        ):
            asked = self.ask()
            self.processes.runs[-1].end(output)
            self.assert_fails(asked, why)
            self.processes.advance(10)

    def test_a_failure_is_explained_by_the_first_line_that_it_says(self) -> None:
        for status, output, said, why in (
            (1, b"", b"", "it ends with status 1"),
            (
                2,
                b"",
                b"\n no\x1b[31m net\xff \nmore",
                "it ends with status 2: no\\u001b[31m net\ufffd",
            ),
            (1, b"", b"x" * 9000, f"it ends with status 1: {'x' * 200}"),
            (
                1,
                b"credentials not found in native keychain\n",
                b"",
                "it ends with status 1: it has no login for r.example:5000",
            ),
        ):
            asked = self.ask()
            self.processes.runs[-1].end(output, status, said)
            self.assert_fails(asked, why)
            self.processes.advance(10)

    def test_a_signal_that_ends_it_is_named(self) -> None:
        asked = self.ask()
        self.processes.runs[0].exit(ProcessTerminated(None, 15))
        self.assert_fails(asked, "it is killed by signal 15")

    def test_a_line_that_repeats_the_secret_is_not_logged(self) -> None:
        asked = self.ask()
        self.processes.runs[0].end(printed(), 1, b"+ echo s3cr3t")
        self.assert_fails(asked, "it ends with status 1")

    def test_a_program_that_has_gone_is_a_failure(self) -> None:
        self.source = CommandCredentials("team", command("/nowhere/at all"), self.processes, {})
        self.assert_fails(
            self.ask(),
            "credential_command: /nowhere/at all: there is no such program that can be run",
        )
        self.assertEqual(self.processes.runs, [])

    def test_so_is_one_that_the_system_does_not_start(self) -> None:
        def spawn(*_: object) -> None:
            raise OSError(11, "Resource temporarily unavailable")

        self.patch(self.processes, "spawnProcess", spawn)
        asked = self.ask()
        (line,) = self.lines()
        self.assertRegex(line, "/sh can't be run: Resource temporarily unavailable$")
        self.failureResultOf(asked, LoginRefused)


class BoundTests(CommandCase):
    def assert_killed(self) -> None:
        self.assertEqual(self.processes.runs[-1].steps, ["stdin closed", "KILL", "pipes closed"])
        self.processes.runs[-1].exit(ProcessTerminated(None, 9))
        self.assertEqual(self.lines(), [])
        self.assertEqual(self.processes.getDelayedCalls(), [])

    def test_one_that_does_not_end_is_killed(self) -> None:
        asked = self.ask()
        self.processes.advance(29)
        self.assertNoResult(asked)
        self.processes.advance(1)
        self.assert_fails(asked, "it has not ended within 30 s")
        self.assert_killed()

    def test_one_that_prints_without_end_is_killed(self) -> None:
        asked = self.ask()
        for _ in range(3):
            self.processes.runs[0].protocol.childDataReceived(1, b"x" * (32 << 10))
        self.assert_fails(asked, "it prints more than 65536 bytes")
        self.assert_killed()

    def test_one_that_ends_at_that_moment_is_not_killed_again(self) -> None:
        asked = self.ask()
        self.processes.runs[0].steps.append("ended")
        self.processes.advance(30)
        self.assert_fails(asked, "it has not ended within 30 s")

    def test_when_the_daemon_ends_it_is_killed_and_not_run_again(self) -> None:
        asked = self.ask()
        closed = Deferred.fromCoroutine(self.source.close())
        self.failureResultOf(asked, LoginRefused)
        self.assertNoResult(closed)
        self.processes.runs[0].exit(ProcessTerminated(None, 9))
        self.successResultOf(closed)
        self.failureResultOf(self.ask(), LoginRefused)
        self.assertEqual((len(self.processes.runs), self.lines()), (1, []))

    def test_the_daemons_end_does_not_wait_for_one_that_cannot_be_killed(self) -> None:
        self.failureResultOf(self._closing(), LoginRefused)
        self.processes.advance(1)
        self.successResultOf(self.closed)

    def _closing(self) -> Deferred[Credentials | None]:
        asked = self.ask()
        self.closed = Deferred.fromCoroutine(self.source.close())
        return asked


class KeptTests(CommandCase):
    """How often the command is run."""

    def test_all_that_ask_at_once_wait_for_one_run(self) -> None:
        asked = [self.ask() for _ in range(3)]
        asked[0].addErrback(lambda failure: None)
        asked[0].cancel()
        (run,) = self.processes.runs
        run.end(printed())
        self.assertEqual([self.successResultOf(each) for each in asked], [None, ALICE, ALICE])

    def test_a_login_is_used_for_five_minutes(self) -> None:
        self.had(printed())
        self.processes.advance(299)
        self.assertEqual(self.successResultOf(self.ask()), ALICE)
        self.processes.advance(1)
        bob = Credentials("bob", "other")
        self.assertEqual(self.had(printed(bob)), bob)
        self.assertEqual(len(self.processes.runs), 2)

    def test_one_that_is_refused_is_replaced(self) -> None:
        self.had(printed())
        self.processes.advance(10)
        self.source.refused(ALICE)
        bob = Credentials("bob", "other")
        self.assertEqual(self.had(printed(bob)), bob)

    def test_but_not_if_it_was_printed_just_now(self) -> None:
        self.had(printed())
        self.processes.advance(9)
        self.source.refused(ALICE)
        self.assertEqual(self.successResultOf(self.ask()), ALICE)

    def test_one_that_has_taken_its_place_stays(self) -> None:
        self.had(printed())
        self.processes.advance(10)
        self.source.refused(Credentials("alice", "an older one"))
        self.assertEqual(self.successResultOf(self.ask()), ALICE)

    def test_after_a_failure_it_is_not_run_again_for_ten_seconds(self) -> None:
        asked = self.ask()
        self.processes.runs[0].end(status=1)
        self.assert_fails(asked, "it ends with status 1")
        self.processes.advance(9)
        self.failureResultOf(self.ask(), LoginRefused)
        self.assertEqual((len(self.processes.runs), self.lines()), (1, []))
        self.processes.advance(1)
        self.assertEqual(self.had(printed()), ALICE)

    def test_neither_the_login_nor_a_trace_of_it_shows(self) -> None:
        self.had(printed())
        self.assertNotIn("s3cr3t", repr(self.source) + str(self.source))


HELPER = """
import json, os, sys
server = sys.stdin.read()
json.dump({"ServerURL": server, "Username": "alice", "Secret": json.dumps(
    [server, sys.argv[1:], sorted(os.environ)])}, sys.stdout)
"""


class ProcessTests(TestCase):
    """Real processes."""

    def source(self, script: str, *arguments: str) -> CommandCredentials:
        path = Path(self.mktemp())
        path.write_text(script)
        words = (sys.executable, str(path), *arguments)
        source = CommandCredentials("team", command(*words), reactor, os.environ)
        self.addCleanup(lambda: Deferred.fromCoroutine(source.close()))
        return source

    async def test_a_helper_is_run_without_a_shell(self) -> None:
        self.patch(os, "environ", {**os.environ, "HUB_PASSWORD": "hunter2"})
        login = await self.source(HELPER, "$(id) 'x'").get()
        assert login is not None
        server, arguments, environ = json.loads(login.password)
        self.assertEqual((server, arguments), ("r.example:5000", ["$(id) 'x'", "get"]))
        self.assertIn("PATH", environ)
        self.assertNotIn("HUB_PASSWORD", environ)

    async def test_one_that_reads_nothing_and_fails_is_a_failure(self) -> None:
        with self.assertRaises(LoginRefused):
            await self.source("raise SystemExit('not now')").get()

    async def test_one_that_runs_when_the_daemon_ends_is_killed(self) -> None:
        source = self.source("import signal\nwhile True: signal.pause()")
        asked = Deferred.fromCoroutine(source.get())
        await source.close()
        with self.assertRaises(LoginRefused):
            await asked
