"""podman, buildah and skopeo over TLS, with accounts and with client certificates."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.clients.containers import Containers
from tests.clients.images import image
from tests.clients.observed import answered
from tests.clients.secured import (
    PRIVATE,
    PUBLIC,
    SAYS,
    TEAM,
    Login,
    Secured,
    client_certificate,
)
from tests.programs import Result
from tests.tls.authority import ROOT

REFUSED = r"denied|DENIED|unauthorized|authentication required|403 \(Forbidden\)"


class SecuredContainersTestCase(TestCase):
    """
    :cvar tokens: whether there is a token service.
    """

    tokens = True

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.secured = await Secured.start(self, tokens=self.tokens)
        self.registry = self.secured.daemon.address
        self.forget()

    def forget(self) -> None:
        """Begin with an empty storage, and without a login."""
        self.tools = Containers.make(self, self.registry, ROOT.pem)

    async def login(self, program: str, login: Login, *, check: bool = True) -> Result:
        return await self.tools.run(
            *(program, "login", "--username", login.name, "--password-stdin", self.registry),
            stdin=login.password.encode(),
            check=check,
        )

    async def make(self, *names: str) -> None:
        """Let the storage have images of these names; none of them is in the registry."""
        for name in names:
            await self.tools.load(self.name(name), *image(SAYS))

    def name(self, image: str) -> str:
        return f"{self.registry}/{image}:1"

    async def refused(self, *argv: str) -> Result:
        """Run a program that the registry refuses what it wants."""
        result = await self.tools.run(*argv, check=False)
        self.assertNotEqual(result.status, 0, result.out)
        self.assertRegex(result.err, REFUSED)
        return result

    def assert_absent(self, image: str) -> None:
        """Nothing of ``image`` has come to the registry."""
        asked = [
            each
            for each in answered(self.secured.daemon)
            if each.status == 201 and each.path.startswith(f"/v2/{image}/")
        ]
        self.assertEqual(asked, [])

    async def copy_away(self, image: str, *options: str) -> tuple[str, ...]:
        """The command by which skopeo copies an image out of the registry."""
        folder = Path(self.mktemp()).absolute()
        return ("skopeo", "copy", *options, f"docker://{self.name(image)}", f"dir:{folder}")

    def kept(self) -> object:
        """Where they have logins for."""
        if not self.tools.logins.exists():
            return {}
        return json.loads(self.tools.logins.read_text()).get("auths", {})


class LoginTests(SecuredContainersTestCase):
    """What rests on how the programs show a login; with tokens."""

    async def assert_round_trip(self, program: str) -> None:
        """Log in, push an image by ``program``, remove it, pull it as Bob, and run it."""
        await self.login(program, self.secured.alice)
        await self.make(TEAM)
        await self.tools.run(program, "push", self.name(TEAM))
        self.forget()
        await self.login(program, self.secured.bob)
        await self.tools.run(program, "pull", self.name(TEAM))
        self.assertEqual(await self.tools.say(self.name(TEAM)), SAYS)

    async def test_by_podman_who_logs_in_pushes_and_pulls_an_image_that_runs(self) -> None:
        await self.assert_round_trip("podman")

    async def test_by_buildah_who_logs_in_pushes_and_pulls_an_image_that_runs(self) -> None:
        await self.assert_round_trip("buildah")

    async def test_by_skopeo_who_logs_in_copies_in_and_out(self) -> None:
        await self.login("skopeo", self.secured.alice)
        await self.make(TEAM)
        source, target = f"containers-storage:{self.name(TEAM)}", f"docker://{self.name(TEAM)}"
        await self.tools.run("skopeo", "copy", source, target)
        await self.login("skopeo", self.secured.bob)
        await self.tools.run(*await self.copy_away(TEAM))

    async def test_who_may_only_pull_is_refused_a_push(self) -> None:
        await self.make(TEAM)
        await self.login("podman", self.secured.bob)
        await self.refused("podman", "push", self.name(TEAM))
        source, target = f"containers-storage:{self.name(TEAM)}", f"docker://{self.name(TEAM)}"
        await self.refused("skopeo", "copy", source, target)
        self.assert_absent(TEAM)

    async def test_a_wrong_password_is_refused_and_not_kept(self) -> None:
        for program in ("podman", "skopeo"):
            refused = await self.login(program, Login("alice", "wrong"), check=False)
            self.assertNotEqual(refused.status, 0)
            self.assertIn("invalid username/password", refused.err)
        self.assertNotIn(self.registry, self.kept())


class BasicLoginTests(LoginTests):
    """The same by Basic alone."""

    tokens = False


class TokenTests(SecuredContainersTestCase):
    async def test_a_pull_of_what_is_not_for_him_is_refused_as_of_what_is_not_there(self) -> None:
        await self.secured.publish(PRIVATE)
        await self.login("podman", self.secured.bob)
        await self.refused("podman", "pull", self.name(PRIVATE))
        shown = [
            (await self.refused("skopeo", "inspect", f"docker://{self.name(image)}")).err
            for image in (PRIVATE, "absent/hello")
        ]
        said = [text.partition("msg=")[2].replace(PRIVATE, "absent/hello") for text in shown]
        self.assertEqual(said[0], said[1])

    async def test_a_robot_pushes_where_it_may_and_nowhere_else(self) -> None:
        await self.login("podman", self.secured.robot)
        await self.make(TEAM, PRIVATE)
        await self.tools.run("podman", "push", self.name(TEAM))
        await self.refused("podman", "push", self.name(PRIVATE))
        self.assert_absent(PRIVATE)

    async def test_after_logout_nothing_goes_any_more(self) -> None:
        await self.secured.publish(TEAM)
        await self.login("podman", self.secured.alice)
        await self.tools.run("podman", "logout", self.registry)
        self.assertNotIn(self.registry, self.kept())
        await self.refused("podman", "pull", self.name(TEAM))
        await self.refused(*await self.copy_away(TEAM))

    async def test_nobody_has_to_log_in_for_a_public_image_beside_a_private_one(self) -> None:
        await self.secured.publish(PUBLIC, PRIVATE)
        await self.tools.run("podman", "pull", self.name(PUBLIC))
        await self.tools.run(*await self.copy_away(PUBLIC))
        await self.refused("podman", "pull", self.name(PRIVATE))
        await self.refused(*await self.copy_away(PRIVATE))

    async def test_tags_are_listed_to_who_may_pull(self) -> None:
        await self.secured.publish(TEAM)
        target = f"docker://{self.registry}/{TEAM}"
        await self.refused("skopeo", "list-tags", target)
        await self.login("skopeo", self.secured.bob)
        listed = json.loads((await self.tools.run("skopeo", "list-tags", target)).out)
        self.assertEqual(listed["Tags"], ["1"])

    async def test_an_image_is_deleted_by_who_may_and_nobody_else(self) -> None:
        await self.secured.publish(TEAM)
        target = f"docker://{self.name(TEAM)}"
        await self.login("skopeo", self.secured.bob)
        await self.refused("skopeo", "delete", target)
        await self.login("skopeo", self.secured.alice)
        await self.tools.run("skopeo", "delete", target)


class CertificateTestCase(SecuredContainersTestCase):
    """Nobody logs in: a certificate says who it is."""

    def shown(self, name: str) -> str:
        return f"--cert-dir={client_certificate(Path(self.mktemp()), name)}"


class CertificateTests(CertificateTestCase):
    async def test_a_certificate_pushes_and_another_one_pulls(self) -> None:
        await self.make(TEAM)
        await self.tools.run("podman", "push", self.shown("alices-machine"), self.name(TEAM))
        self.forget()
        await self.tools.run("podman", "pull", self.shown("node-1"), self.name(TEAM))
        self.assertEqual(await self.tools.say(self.name(TEAM)), SAYS)

    async def test_a_certificate_may_no_more_than_its_rules_say(self) -> None:
        await self.make(TEAM)
        await self.refused("podman", "push", self.shown("node-1"), self.name(TEAM))
        self.assert_absent(TEAM)


class BasicCertificateTests(CertificateTests):
    """The same where there are no tokens."""

    tokens = False


class OtherCertificateTests(CertificateTestCase):
    async def test_skopeo_copies_by_a_certificate(self) -> None:
        await self.make(TEAM)
        source, target = f"containers-storage:{self.name(TEAM)}", f"docker://{self.name(TEAM)}"
        option = f"--dest{self.shown('alices-machine').removeprefix('-')}"
        await self.tools.run("skopeo", "copy", option, source, target)
        option = f"--src{self.shown('node-1').removeprefix('-')}"
        await self.tools.run(*await self.copy_away(TEAM, option))

    async def test_a_name_that_no_rule_has_is_refused(self) -> None:
        await self.secured.publish(TEAM)
        await self.refused("podman", "pull", self.shown("stranger"), self.name(TEAM))


class UntrustedTests(SecuredContainersTestCase):
    async def test_an_authority_that_is_not_trusted_is_told(self) -> None:
        tools = Containers.make(self, self.registry, Path("/dev/null").read_bytes())
        refused = await tools.run(
            *("podman", "login", "--username", "alice", "--password-stdin", self.registry),
            stdin=self.secured.alice.password.encode(),
            check=False,
        )
        self.assertNotEqual(refused.status, 0)
        self.assertIn("certificate signed by unknown authority", refused.err)
