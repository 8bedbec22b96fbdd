"""The Python client of ORAS over TLS, with accounts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oras.provider import Registry  # type: ignore[import-untyped] # oras has no types
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.clients.secured import PUBLIC, TEAM, Login, Secured, trusted

CONTENT = b"a report"


class SecuredOrasTestCase(TestCase):
    """
    The client answers any challenge by Basic.

    Its own way of asking for tokens sticks to the first one it gets, which is for pulls.

    :cvar tokens: whether there is a token service.
    """

    tokens = True

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.secured = await Secured.start(self, tokens=self.tokens)
        self.authority = str(trusted(Path(self.mktemp())))

    def client(self, login: Login | None, backend: str) -> Any:
        """One that has logged in, if ``login`` is given; it writes that nowhere."""
        client = Registry(
            self.secured.daemon.address, tls_verify=self.authority, auth_backend=backend
        )
        if login is not None:
            client.auth.set_basic_auth(login.name, login.password)
        return client

    async def push(self, login: Login, image: str) -> None:
        """Push a file as an artifact."""
        path = Path(self.mktemp()).absolute() / "report.txt"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)
        client = self.client(login, "basic")
        target = f"{self.secured.daemon.address}/{image}:1"
        answer = await deferToThread(
            lambda: client.push(target, files=[str(path)], disable_path_validation=True, quiet=True)
        )
        self.assertEqual(answer.status_code, 201, answer.text)

    async def pull(self, login: Login | None, image: str, backend: str = "basic") -> bytes:
        """What was pushed."""
        target = f"{self.secured.daemon.address}/{image}:1"
        client = self.client(login, backend)
        (pulled,) = await deferToThread(client.pull, target, outdir=self.mktemp())
        return Path(pulled).read_bytes()


class LoginTests(SecuredOrasTestCase):
    """With a token service."""

    async def test_who_logs_in_pushes_and_pulls(self) -> None:
        await self.push(self.secured.alice, TEAM)
        self.assertEqual(await self.pull(self.secured.bob, TEAM), CONTENT)

    async def test_a_robot_pushes(self) -> None:
        await self.push(self.secured.robot, TEAM)
        self.assertEqual(await self.pull(self.secured.robot, TEAM), CONTENT)


class BasicLoginTests(LoginTests):
    """The same by Basic alone."""

    tokens = False


class TokenTests(SecuredOrasTestCase):
    async def test_a_token_is_got_for_a_pull(self) -> None:
        await self.push(self.secured.alice, TEAM)
        self.assertEqual(await self.pull(self.secured.bob, TEAM, "token"), CONTENT)

    async def test_nobody_has_to_log_in_for_a_public_artifact(self) -> None:
        await self.push(self.secured.alice, PUBLIC)
        self.assertEqual(await self.pull(None, PUBLIC, "token"), CONTENT)
