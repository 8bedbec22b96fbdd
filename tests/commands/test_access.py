"""``artifactd access``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bcrypt
from twisted.trial.unittest import TestCase

from artifactd.store.folder import DataFolder
from tests.commands.test_main import artifactd
from tests.programs import Result

RULES = """
[[access]]
who = ["anonymous"]
may = ["pull"]
images = ["docker.io/*"]

[[access]]
who = ["group:dev", "robot:*"]
may = ["pull", "push"]
images = ["local/team/*"]

[[access]]
who = ["certificate:node-*"]
may = ["administer"]
images = ["*"]

[robot.ci]
secret_hash = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
may = ["pull"]

[robot.old]
secret_hash = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
expires = 2001-01-01T00:00:00Z
"""


HASHED = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()


class AccountsTestCase(TestCase):
    """A data folder, a file of users and settings; no daemon."""

    toml = RULES

    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        DataFolder.open(folder / "data").close()
        self.users = folder / "htpasswd"
        self.users.write_text(f"alice:{HASHED}\nbob:{HASHED}\n")
        self.settings = folder / "artifactd.toml"
        self.settings.write_text(
            f'data = "{folder}/data"\n[auth]\nhtpasswd = "{self.users}"\n'
            f'groups.dev = ["alice"]\n{self.toml}'
        )

    async def run_command(self, *argv: str) -> Result:
        return await artifactd(self, "--config", str(self.settings), *argv)

    async def assert_refused(self, *argv: str) -> str:
        """What a command says that can't do it: one line."""
        result = await self.run_command(*argv)
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertRegex(result.err, r"\Aartifactd: [^\n]+\n\Z")
        return result.err


class AccessTests(AccountsTestCase):
    async def decided(self, *argv: str) -> list[Any]:
        result = await self.run_command("access", "--json", *argv)
        found = [json.loads(line) for line in result.out.splitlines()]
        granted = any(each["granted"] for each in found)
        self.assertEqual((result.status, result.err), (0 if granted else 1, ""))
        return found

    async def test_push_includes_create_and_not_the_other_way_round(self) -> None:
        (decision,) = await self.decided("alice", "create", "local/team/app")
        self.assertTrue(decision["granted"])
        self.settings.write_text(self.settings.read_text().replace('"push"]', '"create"]'))
        for action, granted in (("create", True), ("push", False)):
            (decision,) = await self.decided("alice", action, "local/team/app")
            self.assertEqual(granted, decision["granted"])
        result = await self.run_command("access", "alice", "push", "local/team/app")
        self.assertIn("does not allow push", result.out)

    async def test_the_rule_that_grants_is_told(self) -> None:
        (decision,) = await self.decided("alice", "push", "local/team/app")
        self.assertTrue(decision["granted"])
        fits = [each["rule"] for each in decision["rules"] if each["who"] and each["may"]]
        self.assertEqual([1], fits)
        result = await self.run_command("access", "alice", "push", "local/team/app")
        self.assertEqual(
            "granted: alice push local/team/app: access[1] (who group:dev, robot:*; may pull, push;"
            " images local/team/*)\n",
            result.out,
        )

    async def test_what_the_rules_lack_is_told(self) -> None:
        for argv, lacking in (
            (("bob", "push", "team/app"), "is not for bob"),
            (("alice", "delete", "team/app"), "does not allow delete"),
            (("alice", "push", "other"), "is not for local/other"),
        ):
            result = await self.run_command("access", *argv)
            verdict, near = result.out.splitlines()
            self.assertIn("denied: ", verdict)
            self.assertIn("no rule grants it", verdict)
            self.assertIn("  access[1] (who group:dev, robot:*; ", near)
            self.assertTrue(near.endswith(f") {lacking}"), near)
            self.assertEqual(1, result.status)

    async def test_a_name_without_prefix_is_judged_as_each_image_that_may_answer(self) -> None:
        found = await self.decided("alice", "pull", "team/app")
        self.assertEqual(
            [("local/team/app", True), ("docker.io/team/app", True)],
            [(each["image"], each["granted"]) for each in found],
        )
        found = await self.decided("anonymous", "pull", "alpine")
        self.assertEqual(
            [("local/alpine", False), ("docker.io/library/alpine", True)],
            [(each["image"], each["granted"]) for each in found],
        )

    async def test_robots_and_their_limits(self) -> None:
        for robot in "robot:ci", "robot+ci":
            (decision,) = await self.decided(robot, "pull", "local/team/app")
            self.assertEqual(("robot:ci", True), (decision["who"], decision["granted"]))
        (decision,) = await self.decided("robot:ci", "push", "local/team/app")
        self.assertFalse(decision["granted"])
        self.assertEqual("the robot's own limits exclude it (may pull; images *)", decision["why"])
        (decision,) = await self.decided("robot:old", "pull", "local/team/app")
        self.assertIn("the robot has expired, on 2001-01-01", decision["why"])

    async def test_every_image(self) -> None:
        (decision,) = await self.decided("certificate:node-1", "administer", "*")
        self.assertTrue(decision["granted"])
        (decision,) = await self.decided("alice", "pull", "*")
        self.assertFalse(decision["granted"])

    async def test_accounts_and_words_that_there_are_not(self) -> None:
        for argv, said in (
            (("carol", "pull", "a"), "carol: no such user in"),
            (("robot:no", "pull", "a"), "no: no such robot"),
            (("group:dev", "pull", "a"), "expected a user, robot:NAME"),
            (("alice", "read", "a"), "expected pull, create, push, delete, administer, got read"),
            (("alice", "pull", "A"), "name"),
        ):
            self.assertIn(said, await self.assert_refused("access", *argv))


class OpenAccessTests(AccountsTestCase):
    async def test_without_accounts_and_rules_everybody_may_pull(self) -> None:
        self.settings.write_text(self.settings.read_text().partition("[auth]")[0])
        result = await self.run_command("access", "anonymous", "pull", "local/app")
        self.assertEqual(0, result.status)
        self.assertIn("everybody may pull", result.out)
        result = await self.run_command("access", "anonymous", "push", "local/app")
        self.assertIn("clients on this machine may do everything", result.out)
