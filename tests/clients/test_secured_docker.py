"""Docker Engine over TLS, with accounts."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

from twisted.trial.unittest import TestCase

from tests.clients.images import image
from tests.clients.observed import answered
from tests.clients.secured import PRIVATE, PUBLIC, SAYS, TEAM, Login, Secured, trusted
from tests.programs import DockerEngine, Result, wait_for


class SecuredDockerTestCase(TestCase):
    """
    :cvar tokens: whether there is a token service.
    """

    tokens = True

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.engine = await DockerEngine.start(self, trusted=trusted(Path(self.mktemp())))
        self.secured = await Secured.start(self, tokens=self.tokens)
        # By this address Docker verifies the certificate; by 127.0.0.1 it would not.
        self.registry = f"0.0.0.0:{self.secured.port}"

    async def login(self, login: Login, *, check: bool = True) -> Result:
        return await self.engine.docker(
            *("login", "--username", login.name, "--password-stdin", self.registry),
            stdin=login.password.encode(),
            check=check,
        )

    async def make(self, *names: str) -> None:
        """Make an image with all these names; none of it is in the registry."""
        _, layer = image(SAYS)
        first, *others = map(self.name, names)
        command = ("import", "--change", 'CMD ["/hello"]', "-", first)
        await self.engine.docker(*command, stdin=layer)
        for other in others:
            await self.engine.docker("tag", first, other)

    def name(self, image: str) -> str:
        return f"{self.registry}/{image}:1"

    async def push(self, image: str, *, check: bool = True) -> Result:
        return await self.engine.docker("push", self.name(image), check=check)

    async def pull(self, image: str, *, check: bool = True) -> Result:
        return await self.engine.docker("pull", self.name(image), check=check)

    async def forget(self) -> None:
        """Remove all images with their layers from the engine."""
        named = await self.engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
        await self.engine.docker("image", "rm", *named.out.split())
        left = await self.engine.docker("image", "ls", "--all", "--quiet")
        self.assertEqual(left.out, "", "the engine still has images")

    async def assert_absent(self, image: str) -> None:
        """Nothing of ``image`` has come to the registry."""
        asked = [
            each
            for each in answered(self.secured.daemon)
            if each.status == 201 and each.path.startswith(f"/v2/{image}/")
        ]
        self.assertEqual(asked, [])

    def assert_not_logged(self, *logins: Login) -> None:
        """No password of theirs is in the log."""
        output = self.secured.daemon.process.output
        for login in logins:
            self.assertNotIn(login.password, output)
            self.assertNotIn(quote(login.password), output)

    def kept(self) -> object:
        """Where Docker has logins for."""
        if not self.engine.config.exists():
            return {}
        return json.loads(self.engine.config.read_text()).get("auths", {})


class LoginTests(SecuredDockerTestCase):
    """What rests on how Docker shows a login; with tokens."""

    async def test_who_logs_in_pushes_and_pulls_an_image_that_runs(self) -> None:
        await self.login(self.secured.alice)
        await self.make(TEAM)
        await self.push(TEAM)
        await self.forget()
        await self.login(self.secured.bob)
        await self.pull(TEAM)
        said = await self.engine.docker("run", "--rm", "--network", "none", self.name(TEAM))
        self.assertEqual(said.out, f"{SAYS}\n")
        self.assert_not_logged(self.secured.alice, self.secured.bob)

    async def test_who_may_only_pull_is_refused_a_push(self) -> None:
        await self.make(TEAM)
        await self.login(self.secured.bob)
        pushed = await self.push(TEAM, check=False)
        self.assertEqual(pushed.status, 1)
        self.assertRegex(pushed.err, "denied|unauthorized")
        await self.assert_absent(TEAM)

    async def test_a_wrong_password_is_refused_and_not_kept(self) -> None:
        refused = await self.login(Login("alice", "wrong"), check=False)
        self.assertEqual(refused.status, 1)
        self.assertRegex(refused.err, "(?i)unauthorized|incorrect username or password")
        self.assertNotIn(self.registry, self.kept())


class BasicLoginTests(LoginTests):
    """The same by Basic alone."""

    tokens = False


class TokenTests(SecuredDockerTestCase):
    async def test_a_pull_of_what_is_not_for_him_is_refused_as_of_what_is_not_there(self) -> None:
        await self.secured.publish(PRIVATE)
        await self.login(self.secured.bob)
        refused = await self.pull(PRIVATE, check=False)
        self.assertEqual(refused.status, 1)
        self.assertRegex(refused.err, "denied|unauthorized")
        absent = await self.pull("absent/hello", check=False)
        self.assertEqual(refused.err.replace(PRIVATE, "absent/hello"), absent.err)

    async def test_a_robot_pushes_where_it_may_and_nowhere_else(self) -> None:
        await self.login(self.secured.robot)
        await self.make(TEAM, PRIVATE)
        await self.push(TEAM)
        refused = await self.push(PRIVATE, check=False)
        self.assertEqual(refused.status, 1)
        self.assertRegex(refused.err, "denied|unauthorized")
        await self.assert_absent(PRIVATE)
        self.assert_not_logged(self.secured.robot)

    async def test_after_logout_nothing_goes_any_more(self) -> None:
        await self.secured.publish(TEAM)
        await self.login(self.secured.alice)
        await self.engine.docker("logout", self.registry)
        self.assertNotIn(self.registry, self.kept())
        pulled = await self.pull(TEAM, check=False)
        self.assertEqual(pulled.status, 1)
        await self.make(TEAM)
        self.assertEqual((await self.push(TEAM, check=False)).status, 1)

    async def test_docker_keeps_a_refresh_token_and_not_the_password(self) -> None:
        await self.login(self.secured.alice)
        kept = json.loads(self.engine.config.read_text())["auths"][self.registry]
        self.assertIn("identitytoken", kept)
        self.assertNotIn(self.secured.alice.password, str(kept))
        await self.make(TEAM)
        await self.push(TEAM)
        await wait_for(
            lambda: any(
                each.path.startswith("/token") and each.method == "POST" and each.status == 200
                for each in answered(self.secured.daemon)
            )
        )

    async def test_nobody_has_to_log_in_for_a_public_image_beside_a_private_one(self) -> None:
        await self.secured.publish(PUBLIC, PRIVATE)
        await self.pull(PUBLIC)
        refused = await self.pull(PRIVATE, check=False)
        self.assertEqual(refused.status, 1)
        self.assertRegex(refused.err, "denied|unauthorized")

    async def test_a_layer_of_another_image_is_mounted(self) -> None:
        await self.login(self.secured.alice)
        await self.make(TEAM, PRIVATE)
        await self.push(TEAM)
        pushed = await self.push(PRIVATE)
        self.assertIn("Mounted from team/hello", pushed.out)


class UntrustedTests(TestCase):
    async def test_docker_tells_an_authority_that_it_does_not_trust(self) -> None:
        engine = await DockerEngine.start(self)
        secured = await Secured.start(self, tokens=True)
        registry = f"0.0.0.0:{secured.port}"
        refused = await engine.docker(
            *("login", "--username", "alice", "--password-stdin", registry),
            stdin=secured.alice.password.encode(),
            check=False,
        )
        self.assertEqual(refused.status, 1)
        self.assertIn("certificate", refused.err)
        self.assertEqual(answered(secured.daemon)[1:], [])  # the first are the tests' own
