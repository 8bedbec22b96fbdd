"""The operator's command line, as a process of its own."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tomllib
from contextlib import closing, nullcontext, redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from errno import EACCES, EIO, ENOSPC
from io import BufferedReader, FileIO, StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.python.usage import UsageError
from twisted.trial.unittest import TestCase

from artifactd import __version__
from artifactd.auth.keys import thumbprint
from artifactd.auth.passwords import hash_secret
from artifactd.catalog.migrations import migrate
from artifactd.commands.backup import Backup
from artifactd.commands.main import parse
from artifactd.commands.offline import DataCommand, Warm
from artifactd.commands.options import ERRORS
from artifactd.daemon import options, tap
from artifactd.oci.names import Digest
from artifactd.settings.settings import Settings
from artifactd.store.folder import DataFolder
from tests.process import Daemon
from tests.programs import Result, reactor, run_module

HELLO = b"hello"
HELLO_DIGEST = Digest.of(HELLO)
AGAIN = b"hello again"


class Terminal(StringIO):
    """Standard output or error of a command on a terminal."""

    def isatty(self) -> bool:
        return True


async def artifactd(test: TestCase, *argv: str, **environ: str) -> Result:
    """Run a command in this process: a process of its own takes a second to start."""
    out, err = StringIO(), StringIO()
    with (
        patch.dict(os.environ, environ),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            command = parse(argv)
            if isinstance(command, DataCommand):
                status = await command.carry_out(reactor, command.load())
            else:
                status = command.run()
        except ERRORS as error:
            print(f"artifactd: {error}", file=sys.stderr)
            status = 1
    return Result(status, out.getvalue(), err.getvalue())


async def process(test: TestCase, *argv: str, **environ: str) -> Result:
    """Run the command line as a process of its own."""
    return await run_module(test, "artifactd.commands.main", *argv, env=environ, check=False)


class CheckConfigTests(TestCase):
    async def test_right_settings_are_printed_as_they_are_in_force(self) -> None:
        result = await process(self, "check-config", ARTIFACTD_THREADS="3")
        self.assertEqual((result.status, result.err), (0, ""))
        self.assertEqual(result.out.splitlines()[0], "ok")
        self.assertIn("threads = 3", result.out.splitlines())

    async def test_what_is_wrong_is_one_line(self) -> None:
        path = Path(self.mktemp())
        path.write_text("threads = 65")
        result = await artifactd(self, "check-config", "--config", str(path))
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertEqual(
            result.err,
            f"artifactd: {path}: threads: expected a whole number from 1 to 64, got 65\n",
        )

    async def test_a_wrong_file_of_users_is_told_too(self) -> None:
        users, path = Path(self.mktemp()), Path(self.mktemp())
        users.write_text("bob:{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=\n")
        path.write_text(
            f'[auth]\nhtpasswd = "{users}"\n'
            '[[access]]\nwho = ["user:bob"]\nmay = ["pull"]\nimages = ["*"]\n'
        )
        result = await artifactd(self, "check-config", "--config", str(path))
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertEqual(
            result.err,
            f"artifactd: auth.htpasswd: {users}: line 1: bob: expected a bcrypt hash ($2a$, $2b$"
            " or $2y$) of a cost from 4 to 17, as htpasswd -B makes it\n",
        )

    async def test_an_endpoint_that_is_none_is_told_as_at_the_start(self) -> None:
        for wrong in "foo:5000", "tcp:5o00", "artifactd-tls:5443":
            result = await artifactd(self, "check-config", ARTIFACTD_LISTEN=wrong)
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertRegex(result.err, rf"\Aartifactd: listen: {wrong}: [^\n]+\n\Z")
        right = "artifactd-tls:5443:cert=both.pem"
        result = await artifactd(self, "check-config", ARTIFACTD_LISTEN=f"{right} unix:/a :5000")
        self.assertEqual((result.status, result.err), (0, ""))

    async def test_an_authority_that_can_not_be_read_is_named_as_at_the_start(self) -> None:
        path = Path(self.mktemp())
        path.write_text(
            '[repository."ghcr.io"]\nkind = "remote"\nupstream = "https://ghcr.io"\n'
            'ca_file = "/absent.pem"\n'
        )
        result = await artifactd(self, "check-config", "--config", str(path))
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertEqual(
            result.err,
            'artifactd: repository."ghcr.io".ca_file: the CA file /absent.pem can\'t be read:'
            " No such file or directory\n",
        )


class RobotTests(TestCase):
    async def test_the_table_is_printed_apart_from_the_secret_that_fits_it(self) -> None:
        options = ["--expires", "never", "--may", "push", "--images", "docker.io/*"]
        result = await artifactd(self, "robot", "ci", *options)
        self.assertEqual(result.status, 0)
        user, secret = (line.partition(":")[2].strip() for line in result.err.splitlines())
        path = Path(self.mktemp())
        rule = '[[access]]\nwho = ["robot:ci"]\nmay = ["pull"]\nimages = ["*"]\n'
        path.write_text(rule + result.out)
        robot = Settings.load(path, {}).robot["ci"]
        self.assertEqual(user, "robot+ci")
        self.assertEqual(robot.secret_hash, hash_secret(secret))
        self.assertEqual(
            (robot.may, robot.images, robot.expires), (("push",), ("docker.io/*",), "")
        )

    async def test_without_options_it_may_little_and_not_for_ever(self) -> None:
        before = datetime.now(UTC)
        result = await artifactd(self, "robot", "ci")
        robot = tomllib.loads(result.out)["robot"]["ci"]
        self.assertEqual((robot["may"], robot["images"]), (["pull"], ["local/*"]))
        left = datetime.fromisoformat(robot["expires"]) - before
        self.assertLess(abs(left - timedelta(days=90)), timedelta(hours=1))

    async def test_each_time_there_is_another_secret(self) -> None:
        results = [await artifactd(self, "robot", "ci") for _ in range(2)]
        self.assertNotEqual(results[0].err, results[1].err)
        self.assertNotEqual(results[0].out, results[1].out)

    async def test_it_may_expire(self) -> None:
        before = datetime.now(UTC)
        result = await artifactd(self, "robot", "--expires", "30d", "ci")
        moment = datetime.fromisoformat(tomllib.loads(result.out)["robot"]["ci"]["expires"])
        self.assertLess(abs(moment - before - timedelta(days=30)), timedelta(hours=1))

    async def test_what_it_cannot_be_is_told(self) -> None:
        for argv, problem in (
            (["a b"], "robot: expected a name of letters, digits, '.', '_' and '-', got \"a b\""),
            (["--expires", "soon", "ci"], "--expires: expected a time such as 90d, got soon"),
            (
                ["--may", "fly", "ci"],
                "--may: expected pull, create, push, delete, administer, got fly",
            ),
            (["--images", "a b", "ci"], "--images: expected a pattern, got 'a b'"),
        ):
            result = await artifactd(self, "robot", *argv)
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertEqual(result.err, f"artifactd: {problem}\n")


class CommandTests(TestCase):
    async def test_without_a_command_it_says_which_there_are(self) -> None:
        result = await process(self)
        self.assertEqual(result.status, 1)
        self.assertEqual(
            result.err,
            "artifactd: say what to do: check-config, reload, backup, read-only, mirror-config,"
            " robot, user, access, ls, tags, show, history, du, top, rm, restore, warm, purge, gc,"
            " retention, fsck, undelete, webhooks, rotate-keys, release; --help tells more\n",
        )

    async def test_a_command_that_there_is_not_is_told_with_those_that_there_are(self) -> None:
        result = await artifactd(self, "garbage")
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertRegex(
            result.err, r"\Aartifactd: no such command: garbage; there are check-config, [^\n]+\n\Z"
        )
        result = await artifactd(self, "undelet")
        self.assertIn("no such command: undelet (did you mean undelete?); there are", result.err)

    async def test_a_wrong_number_of_arguments_is_told_with_those_that_there_are(self) -> None:
        for argv, problem in (
            (
                ["gc", "a", "b"],
                "gc: wrong number of arguments: a b; usage: artifactd gc [options] [IMAGE]",
            ),
            (
                ["purge"],
                "purge: wrong number of arguments: nothing; usage: artifactd purge [options] IMAGE",
            ),
            (
                ["robot", "a", "--expires", "1d", "b"],
                "robot: wrong number of arguments: a b; usage: artifactd robot [options]"
                " ls | add NAME | rm NAME | NAME",
            ),
            (
                ["purge", "a", "--platform", "x"],
                "purge: option --platform not recognized; usage: artifactd purge [options] IMAGE",
            ),
        ):
            result = await artifactd(self, *argv)
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertEqual(result.err, f"artifactd: {problem}; --help tells more\n")

    async def test_options_stand_anywhere_among_the_arguments(self) -> None:
        data, config = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        DataFolder.open(data).close()
        config.write_text(f'data = "{data}"\n')
        for argv in (
            ["read-only", "--config", str(config), "on"],
            ["read-only", "on", "--config", str(config)],
            ["read-only", "on", f"-c{config}"],
            ["read-only", f"--config={config}", "--", "on"],
            ["--config", str(config), "read-only", "on"],
        ):
            result = await artifactd(self, *argv)
            self.assertEqual((result.status, result.out), (0, "read-only is on\n"), argv)
        warm = parse(["warm", "a", "--platform", "linux/amd64", "b", "-p", "linux/arm64", "-fx"])
        assert isinstance(warm, Warm)
        self.assertEqual(
            (warm.images, warm.platforms, warm["file"]),
            (["a", "b"], ["linux/amd64", "linux/arm64"], "x"),
        )
        with self.assertRaisesRegex(UsageError, "linux/arm/v7, got amd64"):
            parse(["warm", "a", "--platform", "amd64"])

    async def test_without_config_the_installed_settings_file_is_read(self) -> None:
        installed, named = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        self.patch(options, "INSTALLED", installed)
        for command in ("check-config",), ("--config", str(named), "check-config"):
            installed.unlink(missing_ok=True)
            named.write_text("threads = 5\n")
            without = await artifactd(self, *command)
            installed.write_text("threads = 3\n")
            result = await artifactd(self, *command)
            told = [line for line in result.out.splitlines() if line.startswith("threads")]
            self.assertEqual((result.status, result.err), (0, ""))
            self.assertEqual(told, ["threads = 5" if "--config" in command else "threads = 3"])
            self.assertEqual(without.status, 0)
        daemon = tap.Options()
        daemon.parseOptions([])
        self.assertEqual(daemon.load().threads, 3)

    async def test_the_version_is_that_of_artifactd(self) -> None:
        for argv in ["--version"], ["gc", "--version"], ["purge", "a", "--version"]:
            out = StringIO()
            with redirect_stdout(out), self.assertRaises(SystemExit):
                parse(argv)
            self.assertEqual(out.getvalue(), f"artifactd {__version__}\n")
        out = StringIO()
        with redirect_stdout(out), self.assertRaises(SystemExit):
            tap.Options().parseOptions(["--version"])
        self.assertEqual(out.getvalue(), f"artifactd {__version__}\n")

    async def test_a_list_that_can_not_be_read_is_one_line(self) -> None:
        data = Path(self.mktemp()).absolute()
        result = await process(self, "warm", "--file", "/absent/list", ARTIFACTD_DATA=str(data))
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertRegex(result.err, r"\Aartifactd: [^\n]*/absent/list[^\n]*\n\Z")

    async def test_a_command_on_the_data_ends_when_its_work_is_done(self) -> None:
        data = Path(self.mktemp()).absolute()
        DataFolder.open(data).close()
        result = await process(self, "fsck", ARTIFACTD_DATA=str(data))
        self.assertEqual((result.status, result.err), (0, ""))
        self.assertRegex(result.out, r"\Achecked 0 blobs and 0 manifests: [^\n]+\n\Z")


class ReadOnlyTests(TestCase):
    async def test_a_running_daemon_obeys(self) -> None:
        daemon = await Daemon.start(self)
        push = f"/v2/hello/blobs/uploads/?digest={HELLO_DIGEST}"
        for argument, says, status in (
            (["on"], "on", 405),
            ([], "on", 405),
            (["off"], "off", 201),
            ([], "off", 201),
        ):
            result = await artifactd(self, "read-only", *argument, ARTIFACTD_DATA=str(daemon.data))
            self.assertEqual(
                (result.status, result.out, result.err), (0, f"read-only is {says}\n", "")
            )
            answer = await daemon.request("POST", push, body=HELLO)
            self.assertEqual(answer.status, status)

    async def test_where_there_is_no_data_folder_it_makes_none(self) -> None:
        folder = Path(self.mktemp()).absolute()
        result = await artifactd(self, "read-only", "on", ARTIFACTD_DATA=str(folder))
        self.assertEqual(
            (result.status, result.err), (1, f"artifactd: {folder}: there is no data folder\n")
        )
        self.assertFalse(folder.exists())

    async def test_a_setting_that_keeps_it_on_is_told(self) -> None:
        daemon = await Daemon.start(self)
        environ = {"ARTIFACTD_DATA": str(daemon.data), "ARTIFACTD_READ_ONLY": "true"}
        result = await artifactd(self, "read-only", "off", **environ)
        self.assertEqual((result.status, result.out), (1, "read-only is off\n"))
        self.assertIn("the setting read_only keeps it on", result.err)

    async def test_it_is_on_or_off(self) -> None:
        result = await artifactd(self, "read-only", "maybe")
        self.assertEqual(
            (result.status, result.err),
            (1, "artifactd: read-only: expected on or off, got maybe\n"),
        )


class RotateKeysTests(TestCase):
    async def rotate(self, data: Path, *argv: str) -> Result:
        return await artifactd(self, "rotate-keys", *argv, ARTIFACTD_DATA=str(data))

    def kids(self, data: Path) -> list[str]:
        keys = json.loads((data / "keys" / "tokens.json").read_bytes())["keys"]
        return [thumbprint(key["x"], key["y"]) for key in keys]

    async def test_a_new_key_signs_and_the_old_ones_stay_unless_they_are_to_be_forgotten(
        self,
    ) -> None:
        data = Path(self.mktemp())
        DataFolder.open(data).close()
        first = await self.rotate(data)
        self.assertEqual((first.status, first.err), (0, ""))
        (kid,) = self.kids(data)
        self.assertEqual(first.out, f"tokens are signed with the key {kid} from now on\n")
        await self.rotate(data)
        self.assertEqual(self.kids(data)[1], kid)
        await self.rotate(data, "--forget")
        self.assertEqual(len(self.kids(data)), 1)
        self.assertNotIn(kid, self.kids(data))

    async def test_without_a_data_folder_none_is_made(self) -> None:
        data = Path(self.mktemp())
        result = await self.rotate(data)
        self.assertEqual(result.status, 1)
        self.assertIn("there is no data folder", result.err)
        self.assertFalse(data.exists())

    async def test_a_damaged_file_is_told_and_stays(self) -> None:
        data = Path(self.mktemp())
        DataFolder.open(data).close()
        await self.rotate(data)
        (data / "keys" / "tokens.json").write_text("{")
        result = await self.rotate(data)
        self.assertEqual(result.status, 1)
        self.assertIn("the file is damaged", result.err)
        self.assertEqual((data / "keys" / "tokens.json").read_text(), "{")


class MirrorConfigTests(TestCase):
    async def test_it_is_printed_for_the_address_that_is_given(self) -> None:
        result = await artifactd(self, "mirror-config", "--url", "http://[::1]:5000/", "podman")
        self.assertEqual((result.status, result.err), (0, ""))
        self.assertIn('location = "[::1]:5000/docker.io"', result.out.splitlines())

    async def test_an_address_that_is_none_is_one_line(self) -> None:
        for wrong in ("cache.example:5000", "http://cache.example/v2/", "http://me@cache", ""):
            result = await artifactd(self, "mirror-config", "--url", wrong, "docker")
            self.assertEqual((result.status, result.out), (1, ""), wrong)
            self.assertRegex(result.err, r"\Aartifactd: --url: expected [^\n]+\n\Z")

    async def test_the_files_are_written_where_the_client_looks(self) -> None:
        for client, name in (
            ("docker", "daemon.json"),
            ("containerd", "docker.io/hosts.toml"),
            ("k3s", "registries.yaml"),
            ("podman", "artifactd.conf"),
            ("crio", "artifactd.conf"),
        ):
            folder = Path(self.mktemp())
            printed = (await artifactd(self, "mirror-config", client)).out
            for _ in range(2):  # the same again is no fault
                result = await artifactd(self, "mirror-config", "--write", str(folder), client)
                self.assertEqual((result.status, result.out), (0, f"{folder / name}\n"), result.err)
            self.assertIn((folder / name).read_text(), printed)

    async def test_other_settings_that_are_there_are_left_as_they_are(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        file = folder / "daemon.json"
        file.write_text('{"log-driver": "journald"}')
        result = await artifactd(self, "mirror-config", "--write", str(folder), "docker")
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertRegex(
            result.err, r"\Aartifactd: \S+daemon.json: it is there with other [^\n]+\n\Z"
        )
        self.assertEqual(file.read_text(), '{"log-driver": "journald"}')

    async def test_a_folder_that_cannot_be_written_is_one_line(self) -> None:
        file = Path(self.mktemp())
        file.touch()
        result = await artifactd(self, "mirror-config", "--write", str(file), "containerd")
        self.assertRegex(result.err, r"\Aartifactd: [^\n]+hosts.toml: Not a directory\n\Z")


class BackUpTests(TestCase):
    async def back_up(self, daemon: Daemon, target: Path) -> Result:
        return await artifactd(self, "backup", str(target), ARTIFACTD_DATA=str(daemon.data))

    async def pull(self, daemon: Daemon, content: bytes) -> None:
        answer = await daemon.request("GET", f"/v2/image/blobs/{Digest.of(content)}")
        self.assertEqual((answer.status, answer.body), (200, content))

    async def test_a_daemon_starts_from_a_backup_made_while_another_ran(self) -> None:
        daemon = await Daemon.start(self)
        await daemon.push_blob("image", HELLO)
        target = Path(self.mktemp()).absolute()
        result = await self.back_up(daemon, target)
        self.assertEqual((result.status, result.err), (0, ""))
        await self.pull(await Daemon.start(self, data=target), HELLO)

    async def test_a_second_backup_copies_only_what_is_new(self) -> None:
        daemon = await Daemon.start(self)
        target = Path(self.mktemp()).absolute()
        await daemon.push_blob("image", HELLO)
        await self.back_up(daemon, target)
        await daemon.push_blob("image", AGAIN)
        result = await self.back_up(daemon, target)
        self.assertEqual(result.out, f"done: blobs copied: 1, their bytes: {len(AGAIN)}\n")
        restored = await Daemon.start(self, data=target)
        await self.pull(restored, HELLO)
        await self.pull(restored, AGAIN)

    async def test_a_backup_that_breaks_off_leaves_the_one_before_it(self) -> None:
        daemon = await Daemon.start(self)
        target = Path(self.mktemp()).absolute()
        await daemon.push_blob("image", HELLO)
        await self.back_up(daemon, target)
        await daemon.push_blob("image", AGAIN)

        def break_off(size: int) -> None:
            raise OSError(ENOSPC, "disk full")

        with (
            closing(DataFolder.open(daemon.data)) as source,
            closing(DataFolder.open(target)) as copy,
            self.assertRaisesRegex(OSError, "disk full"),
        ):
            Backup(source, copy, break_off).run()
        restored = await Daemon.start(self, data=target)
        await self.pull(restored, HELLO)
        answer = await restored.request("GET", f"/v2/image/blobs/{Digest.of(AGAIN)}")
        self.assertEqual(answer.status, 404)

    async def test_on_a_terminal_there_is_a_bar_to_its_end(self) -> None:
        daemon = await Daemon.start(self)
        target = Path(self.mktemp()).absolute()
        await daemon.push_blob("image", HELLO)
        self.assertEqual((await self.back_up(daemon, target)).err, "")
        self.patch(sys.modules[__name__], "StringIO", Terminal)
        for command in (("backup", str(target)), ("fsck",)):  # also where all is copied already
            result = await artifactd(self, *command, ARTIFACTD_DATA=str(daemon.data))
            self.assertEqual(result.status, 0, result.err)
            self.assertIn("blobs: 100%", result.err)

    async def test_a_folder_in_use_is_not_written_to(self) -> None:
        daemon = await Daemon.start(self)
        other = await Daemon.start(self)
        await other.push_blob("image", HELLO)
        result = await self.back_up(daemon, other.data)
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertIn(str(other.process.pid), result.err)
        await self.pull(other, HELLO)

    async def test_a_damaged_blob_is_named_and_left_out(self) -> None:
        daemon = await Daemon.start(self)
        await daemon.push_blob("image", HELLO)
        stored = next(path for path in daemon.data.rglob(HELLO_DIGEST.encoded))
        stored.chmod(0o600)
        stored.write_bytes(b"jello")
        target = Path(self.mktemp()).absolute()
        result = await self.back_up(daemon, target)
        self.assertEqual(result.status, 1)
        self.assertIn(f"{HELLO_DIGEST} is damaged", result.err)
        self.assertEqual(list(target.rglob(HELLO_DIGEST.encoded)), [])

    async def test_a_blob_that_can_not_be_read_is_named_and_the_others_are_copied(self) -> None:
        class BadSector(BufferedReader):
            def read(self, size: int | None = -1, /) -> bytes:
                raise OSError(errors.pop(), "it can't be read")

        def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if path.name == HELLO_DIGEST.encoded:
                if errors == [EACCES]:
                    raise PermissionError(errors.pop(), "it can't be read")
                return BadSector(FileIO(path))
            return usual(path, mode, *args, **options)

        daemon = await Daemon.start(self)
        for content in (HELLO, AGAIN):
            await daemon.push_blob("image", content)
        usual = Path.open
        self.patch(Path, "open", opened)
        for error in (EIO, EACCES):
            target, errors = Path(self.mktemp()).absolute(), [error]
            result = await self.back_up(daemon, target)
            self.assertEqual((result.status, errors), (1, []))
            self.assertIn(f"{HELLO_DIGEST} is damaged", result.err)
            self.assertIn("blobs copied: 1,", result.out)

    async def test_a_damaged_file_that_nothing_lists_is_not_missed(self) -> None:
        daemon = await Daemon.start(self)
        await daemon.push_blob("image", HELLO)
        stored = next(path for path in daemon.data.rglob(HELLO_DIGEST.encoded))
        stored.with_name(HELLO_DIGEST.encoded[:2] + "0" * 62).write_bytes(b"rotten")
        target = Path(self.mktemp()).absolute()
        result = await self.back_up(daemon, target)
        self.assertEqual((result.status, result.err), (0, ""))

    async def test_the_data_folder_is_no_place_for_its_own_backup(self) -> None:
        daemon = await Daemon.start(self)
        result = await self.back_up(daemon, daemon.data)
        self.assertEqual(
            (result.status, result.err),
            (1, f"artifactd: {daemon.data}: expected a folder outside {daemon.data}\n"),
        )

    async def test_a_catalog_of_an_older_release_is_told_before_anything_is_copied(self) -> None:
        data, target = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        DataFolder.open(data).close()
        migrate(data / "catalog.sqlite3", nullcontext)
        with closing(sqlite3.connect(data / "catalog.sqlite3")) as db:
            db.execute("PRAGMA user_version = 0")
        stray = Digest.of(b"pushed")
        blob = data / "blobs" / stray.algorithm / stray.encoded[:2] / stray.encoded
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"pushed")
        result = await artifactd(self, "backup", str(target), ARTIFACTD_DATA=str(data))
        self.assertEqual((result.status, result.out), (1, ""), result.err)
        self.assertRegex(result.err, r"\Aartifactd: [^\n]+ start the daemon of this [^\n]+\n\Z")
        self.assertIn(f"{data}/catalog.sqlite3 has schema 0", result.err)
        self.assertEqual(list(target.rglob(stray.encoded)), [])
        self.assertFalse((target / "catalog.sqlite3").exists())

    async def test_without_a_data_folder_nothing_is_made(self) -> None:
        absent, target = Path(self.mktemp()), Path(self.mktemp())
        result = await artifactd(self, "backup", str(target), ARTIFACTD_DATA=str(absent))
        self.assertEqual(
            (result.status, result.err),
            (1, f"artifactd: {absent}: there is no data folder to back up\n"),
        )
        self.assertFalse(absent.exists() or target.exists())
