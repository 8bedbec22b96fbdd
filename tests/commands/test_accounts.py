"""``artifactd user`` and ``artifactd robot``."""

from __future__ import annotations

import json
import stat
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import bcrypt
from twisted.trial.unittest import TestCase

from artifactd.auth import passwords
from artifactd.auth.passwords import hash_secret, parse
from artifactd.commands import accounts
from artifactd.oci.names import Digest
from artifactd.settings.accounts import parse_robots
from tests.api.guarded import basic
from tests.commands.test_main import artifactd
from tests.process import Daemon
from tests.programs import Result, wait_for

RULE = """
[[access]]
who = ["authenticated"]
may = ["pull", "push"]
images = ["*"]
"""


class AccountsTestCase(TestCase):
    """A file of settings; the files of accounts that they name are not there yet."""

    def setUp(self) -> None:
        self.patch(passwords, "_USUAL_COST", 4)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.users = self.folder / "htpasswd"
        self.settings = self.folder / "artifactd.toml"
        self.toml = f'[auth]\nhtpasswd = "{self.users}"\ngroups.dev = ["bob"]\n{RULE}'
        self.settings.write_text(self.toml)

    def type(self, text: bytes) -> None:
        """Standard input of the next command."""
        self.patch(sys, "stdin", TextIOWrapper(BytesIO(text)))

    async def run_command(self, *argv: str) -> Result:
        return await artifactd(self, "--config", str(self.settings), *argv)

    async def do(self, *argv: str) -> str:
        """What a command says that does what it is told."""
        result = await self.run_command(*argv)
        self.assertEqual(result.status, 0, result.err)
        return result.out

    async def assert_refused(self, *argv: str) -> str:
        """What a command says that can't do it: one line."""
        result = await self.run_command(*argv)
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertRegex(result.err, r"\Aartifactd: [^\n]+\n\Z")
        return result.err


class UserTests(AccountsTestCase):
    async def add(self, name: str, password: bytes = b"secret\n") -> str:
        self.type(password)
        return await self.do("user", "add", name, "--password-stdin")

    def assert_password(self, name: str, password: bytes) -> None:
        hashed = parse(self.users.read_text())[name]
        self.assertTrue(hashed.startswith(b"$2y$"), "as Apache's htpasswd writes it")
        self.assertTrue(bcrypt.checkpw(password, hashed))

    async def test_the_first_user_makes_the_file(self) -> None:
        self.type(b"secret\n")
        result = await self.run_command("user", "add", "alice", "--password-stdin")
        self.assertEqual((0, "added alice\n"), (result.status, result.out))
        self.assertIn(f"made {self.users}", result.err)
        self.assertEqual(0o600, stat.S_IMODE(self.users.stat().st_mode))
        self.assert_password("alice", b"secret")

    async def test_all_other_lines_stay_as_they_are(self) -> None:
        await self.add("alice")
        hashed = parse(self.users.read_text())["alice"].decode()
        before = f"# people\n\n bob:{hashed}:Bob of sales\nalice:{hashed}\n# the end"
        self.users.write_text(before)
        self.users.chmod(0o640)
        self.assertEqual("added carol\n", await self.add("carol"))
        lines = self.users.read_text().splitlines()
        self.assertEqual(before.splitlines(), lines[:-1])
        self.type(b"another\r\n")
        await self.do("user", "passwd", "bob", "--password-stdin")
        self.assert_password("bob", b"another")
        self.assertIn(":Bob of sales\n", self.users.read_text())
        self.assertEqual("removed bob\n", await self.do("user", "rm", "bob"))
        self.assertEqual(["alice", "carol"], list(parse(self.users.read_text())))
        self.assertIn("# people\n\nalice:", self.users.read_text())
        self.assertEqual(0o640, stat.S_IMODE(self.users.stat().st_mode))

    async def test_users_are_listed_with_their_groups(self) -> None:
        self.assertEqual(1, (await self.run_command("user", "ls")).status)
        for name in "bob", "alice":
            await self.add(name)
        self.assertEqual("alice\t-\nbob\tdev\n", await self.do("user", "ls"))
        listed = [json.loads(line) for line in (await self.do("user", "ls", "-j")).splitlines()]
        self.assertEqual(
            [{"user": "alice", "groups": []}, {"user": "bob", "groups": ["dev"]}], listed
        )

    async def test_a_password_is_asked_for_twice(self) -> None:
        typed = iter(["secret", "secret", "secret", "secert"])
        self.patch(accounts, "getpass", lambda prompt: next(typed))
        self.type(b"")
        self.assertIn("use --password-stdin", await self.assert_refused("user", "add", "alice"))
        self.patch(sys.stdin, "isatty", lambda: True)
        await self.do("user", "add", "alice")
        self.assert_password("alice", b"secret")
        self.assertIn("differ", await self.assert_refused("user", "add", "bob"))

    async def test_passwords_and_names_that_no_login_could_have(self) -> None:
        for name, password, said in (
            ("alice", b"", "1 to 72 bytes, got 0"),
            ("alice", b"x" * 73, "1 to 72 bytes, got 73"),
            ("alice", b"two\nlines\n", "without control characters"),
            ("alice", b"\xff", "in UTF-8"),
            ("a:b", b"secret", "a name without colons"),
            ("a b", b"secret", "a name without colons"),
            ("#a", b"secret", "a name without colons"),
            ("robot+ci", b"secret", "a name without colons"),
        ):
            self.type(password)
            told = await self.assert_refused("user", "add", name, "--password-stdin")
            self.assertIn(said, told)
        self.assertEqual(["artifactd.toml"], [each.name for each in self.folder.iterdir()])

    async def test_what_was_done_is_told_in_json_too(self) -> None:
        self.type(b"secret")
        said = await self.do("user", "add", "alice", "--password-stdin", "--json")
        self.assertEqual({"user": "alice", "done": "add"}, json.loads(said))

    async def test_what_is_there_and_what_is_not(self) -> None:
        await self.add("alice")
        before = self.users.read_bytes()
        self.type(b"secret")
        for argv, said in (
            (("add", "alice"), "alice is in "),
            (("passwd", "bob"), "bob: no such user in "),
            (("rm", "bob"), "bob: no such user in "),
            (("show", "bob"), "expected ls, add, passwd or rm, got show"),
        ):
            self.assertIn(said, await self.assert_refused("user", *argv, "--password-stdin"))
        self.assertEqual(before, self.users.read_bytes())

    async def test_a_password_is_no_argument_and_not_shown(self) -> None:
        told = await self.assert_refused("user", "add", "alice", "secret")
        self.assertIn("wrong number of arguments; usage: artifactd user", told)
        self.assertNotIn("secret", told)

    async def test_a_file_that_is_wrong_is_told_and_stays(self) -> None:
        self.users.write_text("bob:{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=\n")
        for argv in ("rm", "bob"), ("ls",):
            told = await self.assert_refused("user", *argv)
            self.assertIn("line 1: bob: expected a bcrypt hash", told)
        self.users.write_text("")
        self.users.chmod(0o666)
        self.assertIn("others may write it", await self.assert_refused("user", "ls"))

    async def test_without_the_setting_it_says_which(self) -> None:
        self.settings.write_text("")
        told = await self.assert_refused("user", "ls")
        self.assertEqual(
            "artifactd: the settings name no file of users: set htpasswd in [auth]\n", told
        )

    async def test_a_running_daemon_notices(self) -> None:
        await self.add("alice")
        daemon = await Daemon.start(self, toml=self.toml)

        async def status(name: str) -> int:
            answer = await daemon.request("GET", "/v2/", headers=basic(name, "secret"))
            return answer.status

        async def is_gone() -> bool:
            return await status("alice") == 401

        self.assertEqual(200, await status("alice"))
        await self.add("bob")
        await self.do("user", "rm", "alice")
        await wait_for(is_gone)
        self.assertEqual(200, await status("bob"))


class RobotTests(AccountsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.robots = self.folder / "robots.toml"
        hashed = f"sha256:{'0' * 64}"
        self.toml = (
            f'[auth]\nrobots_file = "{self.robots}"\n{RULE}'
            f'[robot.listed]\nsecret_hash = "{hashed}"\n'
        )
        self.settings.write_text(self.toml)

    async def add(self, name: str, *argv: str) -> str:
        """Add a robot; its secret."""
        out = await self.do("robot", "add", name, "--json", *argv)
        told = json.loads(out)
        self.assertEqual(f"robot+{name}", told["user"])
        return str(told["secret"])

    async def listed(self) -> list[dict[str, object]]:
        out = await self.do("robot", "ls", "--json")
        return [json.loads(line) for line in out.splitlines()]

    async def test_the_first_robot_makes_the_file(self) -> None:
        result = await self.run_command("robot", "add", "ci", "--may", "push", "-i", "docker.io/*")
        self.assertEqual(0, result.status)
        self.assertIn(f"made {self.robots}", result.err)
        self.assertEqual(0o600, stat.S_IMODE(self.robots.stat().st_mode))
        user, secret = (line.partition(":")[2].strip() for line in result.out.splitlines())
        robot = parse_robots(self.robots.read_bytes(), "", {}, ["docker.io"])["ci"]
        self.assertEqual("robot+ci", user)
        self.assertEqual(hash_secret(secret), robot.secret_hash)
        self.assertEqual((("push",), ("docker.io/*",)), (robot.may, robot.images))
        self.assertNotIn(secret, self.robots.read_text())

    async def test_robots_are_listed_added_and_removed(self) -> None:
        self.robots.write_text("")
        self.robots.chmod(0o640)
        await self.add("b.c", "--expires", "never")
        await self.add("a")
        listed = await self.listed()
        self.assertEqual(
            [("a", str(self.robots)), ("b.c", str(self.robots)), ("listed", "settings")],
            [(each["robot"], each["in"]) for each in listed],
        )
        self.assertEqual((None, ["pull"], ["local/*"]), tuple(listed[1].values())[1:4])
        self.assertEqual("removed a\n", await self.do("robot", "rm", "a"))
        row = (await self.do("robot", "ls")).splitlines()[0].split("\t")
        self.assertEqual(["b.c", "never", "pull", "local/*", str(self.robots)], row)
        self.assertEqual(0o640, stat.S_IMODE(self.robots.stat().st_mode))

    async def test_what_can_not_be_leaves_the_file_as_it_was(self) -> None:
        await self.add("ci")
        before = self.robots.read_bytes()
        for argv, said in (
            (("add", "ci"), "ci is in "),
            (("rm", "no"), "no: no such robot in "),
            (("add", "listed"), "listed is a robot of the settings"),
            (("rm", "listed"), "listed is a robot of the settings"),
            (("add", "a b"), "expected a name of letters"),
            (("add", "x", "--images", "nowhere/*"), "expected patterns of canonical names"),
            (("add",), "wrong number of arguments: add"),
            (("add", "a", "b"), "wrong number of arguments: add a b"),
        ):
            self.assertIn(said, await self.assert_refused("robot", *argv))
        self.assertEqual(before, self.robots.read_bytes())

    async def test_a_file_that_is_wrong_is_told_and_stays(self) -> None:
        hashed = f'secret_hash = "sha256:{"0" * 64}"'
        for content, said in (
            ("[robot", "not TOML"),
            ("threads = 3", "threads: expected tables [robot.<name>] alone"),
            ("[robot.ci]\nmay = ['pull']", "robot.ci.secret_hash: expected"),
            (f"[robot.listed]\n{hashed}", "the settings have a robot of that name too"),
            (f"[robot.ci]\n{hashed}\nimages = ['nowhere/*']", "patterns of canonical names"),
        ):
            self.robots.write_text(content)
            for command in ("robot", "ls"), ("robot", "add", "new"), ("check-config",):
                told = await self.assert_refused(*command)
                self.assertIn(said, told)
                self.assertIn(f"auth.robots_file: {self.robots}: ", told)
            self.assertEqual(content, self.robots.read_text())

    async def test_without_the_setting_it_says_which(self) -> None:
        self.settings.write_text("")
        told = await self.assert_refused("robot", "add", "ci")
        self.assertIn("set robots_file in [auth]", told)
        self.assertEqual(1, (await self.run_command("robot", "ls")).status)

    async def test_a_running_daemon_notices(self) -> None:
        secret = await self.add("ci", "--may", "pull", "--may", "push")
        daemon = await Daemon.start(self, toml=self.toml)
        push = f"/v2/app/blobs/uploads/?digest={Digest.of(b'layer')}"

        async def status(name: str, secret: str) -> int:
            login = basic(f"robot+{name}", secret)
            return (await daemon.request("POST", push, b"layer", login)).status

        async def is_gone() -> bool:
            return await status("ci", secret) == 401

        self.assertEqual(201, await status("ci", secret))
        other = await self.add("other", "--may", "push")
        await self.do("robot", "rm", "ci")
        await wait_for(is_gone)
        self.assertEqual(201, await status("other", other))
