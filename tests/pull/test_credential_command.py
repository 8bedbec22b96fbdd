"""A command prints the login at the upstream."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import (
    ILogObserver,
    LogEvent,
    eventAsText,
    formatEvent,
    globalLogPublisher,
)
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from artifactd.upstream import sources
from artifactd.upstream.errors import LoginRefused
from tests.api.case import LogLines
from tests.api.served import Served
from tests.process import Answer
from tests.pull.mirrors import CONFIRMED, STORED, MirrorCase, digest_of
from tests.pull.proving import APP, PASSWORDS, ProofCase, as_user

NAME = "library/private"
PATH = "/v2/docker.io/private/manifests/latest"
HELPER = """
import sys
sys.stdin.read()
try:
    print(open(sys.argv[1]).read())
except FileNotFoundError:
    sys.exit("no login\\x1b[1m today")
"""


def helper(test: TestCase, user: str, password: str) -> tuple[Path, Sequence[str]]:
    """The file of a login, and the command that prints it."""
    folder = Path(test.mktemp()).absolute()
    folder.mkdir(parents=True)
    (folder / "helper.py").write_text(HELPER)
    login = folder / "login"
    write(login, user, password)
    return login, (sys.executable, str(folder / "helper.py"), str(login))


def write(login: Path, user: str, password: str) -> None:
    login.write_text(json.dumps({"ServerURL": "", "Username": user, "Secret": password}))


class CommandTests(MirrorCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(sources, "PAUSE_SECONDS", 0.0)
        self.digest = self.hub.images.add_image(NAME, "latest", b"layer")
        self.hub.private.add(NAME)
        self.hub.tokens.users["alice"] = "first"
        self.login, self.command = helper(self, "alice", "first")
        self.log = LogLines()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)

    def lines(self) -> list[str]:
        """What the log says of the command."""
        lines = [formatEvent(event) for event in self.log.events]
        return [line for line in lines if "credential_command" in line]

    def registry(self, **settings: Any) -> Served:
        return self.mirror(credential_command=self.command, freshness="0s", **settings)

    async def get(self, registry: Served) -> Answer:
        return await registry.request("GET", PATH)

    async def test_a_private_image_is_fetched_with_what_it_prints(self) -> None:
        registry = self.registry()
        answer = await self.get(registry)
        self.assert_from(answer, "remote", STORED)
        self.assertEqual(digest_of(answer), self.digest)
        self.assertEqual([token.user for token in self.hub.tokens.given], ["alice"])

    async def test_a_login_that_has_expired_is_replaced_without_a_failure(self) -> None:
        registry = self.registry()
        await self.get(registry)
        self.hub.tokens.users["alice"] = "second"
        self.hub.tokens.forget()
        write(self.login, "alice", "second")
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_while_it_fails_what_is_cached_is_served(self) -> None:
        registry = self.registry()
        body = (await self.get(registry)).body
        self.patch(sources, "PAUSE_SECONDS", 3600.0)
        self.patch(sources, "KEPT_SECONDS", 0.0)
        self.hub.tokens.forget()
        self.login.unlink()
        for _ in range(2):
            self.assert_stale(await self.get(registry), body, "there is no login for docker.io")
        answer = await registry.request("GET", "/v2/docker.io/other/manifests/latest")
        self.assert_refused(answer, 502, "UNKNOWN", "there is no login for docker.io")
        self.assertNotIn(b"today", answer.body)
        said = "it ends with status 1: no login\\u001b[1m today"
        self.assertEqual(self.lines(), [f"docker.io: credential_command gives no login: {said}"])

    async def test_the_daemons_end_kills_it(self) -> None:
        Path(self.command[1]).write_text("import signal\nwhile True: signal.pause()")
        registry = self.registry()
        (command,) = registry.parts.remotes._commands
        asked = Deferred.fromCoroutine(command.get())
        await registry.service.stopService()
        with self.assertRaises(LoginRefused):
            await asked
        self.assertEqual(self.lines(), [])
        registry.service.startService()


class SecretTests(ProofCase):
    """The login with which images are fetched that clients have shown that they may have."""

    async def test_it_is_nowhere_but_in_memory(self) -> None:
        everything: list[str] = []

        @implementer(ILogObserver)
        def observer(event: LogEvent) -> None:
            everything.append(eventAsText(event) + repr(event))

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        secret = PASSWORDS["builder"]
        login, command = helper(self, "builder", secret)
        audit = Path(self.mktemp()).absolute()
        toml = self.settings(username="", password="", credential_command=command)
        registry = Served.start(self, toml, audit_log=str(audit))
        self.hub.private.add("corp/other")
        answers = [await self.manifest(registry, as_user("docker.io/alice"))]
        self.assertEqual(answers[0].status, 200, answers[0].body)
        self.assertIn("builder", {token.user for token in self.hub.tokens.given})
        # It fails now, and prints the login none the less.
        Path(command[1]).write_text(f"{HELPER}\nsys.exit('+ echo ' + open(sys.argv[1]).read())")
        self.patch(sources, "KEPT_SECONDS", 0.0)
        self.hub.tokens.forget()
        for who in (as_user("docker.io/alice"), as_user("docker.io/bob"), {}):
            for name in (f"docker.io/{APP}:1", f"docker.io/{APP}:2", "docker.io/corp/other:1"):
                answers.append(await self.manifest(registry, who, name))
        answers.append(await registry.request("GET", "/metrics"))
        self.assertTrue(any("gives no login" in line for line in everything))
        everything += [f"{answer.headers} {answer.body!r}" for answer in answers]
        everything.append(audit.read_text())
        everything.append(str(registry.parts.remotes.settings))
        everything += [
            path.read_bytes().decode("latin-1")
            for path in registry.data.rglob("*")
            if path.is_file()
        ]
        login.unlink()
        self.assertEqual([text for text in everything if secret in text], [])
