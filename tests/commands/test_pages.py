"""What README.md and the pages in docs/ print works: settings, commands, clients' files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from io import BytesIO, TextIOWrapper
from itertools import product
from pathlib import Path

from attrs import frozen
from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

import artifactd as package
from artifactd.auth import passwords
from artifactd.commands import accounts
from artifactd.daemon.listen import listen
from artifactd.oci.names import Digest
from artifactd.registry.metrics import Counters
from artifactd.settings.settings import Settings
from tests.api.served import image_manifest
from tests.commands.test_main import artifactd
from tests.process import Daemon, request
from tests.programs import Process, Result, reactor, run
from tests.tls.authority import ROOT
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

CHECKOUT = Path(package.__file__).parents[1]
# Those that name images which have to be there.
TASKS = (
    "docs/install.md",
    "docs/kubernetes.md",
    "docs/outage.md",
    "docs/tasks.md",
    "docs/troubleshooting.md",
)
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md")))

# Files of clients: the commands that print them, by the pages and the first lines.
FILES_OF_CLIENTS = {
    ("README.md", "{"): "docker",
    ("README.md", 'server = "https://registry-1.docker.io"'): "containerd",
    ("README.md", "[[registry]]"): "podman",
    ("docs/kubernetes.md", "mirrors:"): "k3s",
}

# What has to stand beside accounts; a page may show these alone.
RULE = '[[access]]\nwho = ["anonymous"]\nmay = ["pull"]\nimages = ["*"]'

# What has to be done before a command has something to do.
BEFORE = {"artifactd undelete local/app:v1": "artifactd rm local/app:v1"}

# How README and docs/install.md make an image: tests.clients.test_docker does it.
FIRST_IMAGE = "tar -c README.md | docker import - 127.0.0.1:5000/hello:1"

# Commands that no test here runs, and why.
NOT_RUN = {
    "README.md": {
        # Commands of Docker: tests.clients.test_docker.
        FIRST_IMAGE,
        "docker push 127.0.0.1:5000/hello:1",
        "docker image rm 127.0.0.1:5000/hello:1",
        "docker pull 127.0.0.1:5000/hello:1",
        # They ask a package index, or systemd.
        "pip install .",
        "systemctl reload docker",
        # As tests.daemon.test_daemon starts it, and ScriptTests below.
        "twistd -n artifactd",
        "./script/server",
        "./script/server --config FILE",
        "./script/test",
    },
    "docs/access.md": {
        # Files of root's.
        "chown root:artifactd /etc/artifactd/htpasswd",
        "chmod 640 /etc/artifactd/htpasswd",
        # Commands of Docker: tests.clients.test_secured_docker, tests.clients.test_proof.
        'echo "$ROBOT_SECRET" | docker login registry.example.com -u robot+ci --password-stdin',
        "docker login registry.example.com -u ghcr.io/alice",
        "docker pull registry.example.com/ghcr.io/mycorp/app",
        # The forms that tests.api.test_token asks with.
        "curl -u alice 'https://registry.example.com/token?service=artifactd&scope="
        "repository:hello:pull'",
        "curl -d grant_type=password -d service=artifactd -d client_id=me -d access_type=offline"
        " -d username=alice -d password=… https://registry.example.com/token",
    },
    "docs/conformance.md": {
        # The tests that stand beside them run them.
        "artifactd read-only on --config FILE",
        "artifactd warm IMAGE --platform linux/arm64",
        "artifactd rm --now",
        "twistd artifactd",
    },
    "docs/install.md": {
        "./script/server",  # ScriptTests below
        # They change the machine, as root.
        "apt-get install -y python3-venv",
        "python3 -m venv /opt/artifactd",
        "/opt/artifactd/bin/pip install .",
        "useradd --system --home-dir /var/lib/artifactd artifactd",
        "install -D -m 644 etc/artifactd.toml /etc/artifactd/artifactd.toml",
        "install -m 644 etc/artifactd.service /etc/systemd/system/artifactd.service",
        "systemctl daemon-reload",
        "systemctl enable --now artifactd",
        "systemctl restart artifactd",
        "systemctl reload artifactd",
        "curl -fsS http://127.0.0.1:5000/readyz",
        "sudo -u artifactd ARTIFACTD_DATA=/var/lib/artifactd/data /opt/artifactd/bin/artifactd ls",
        # Commands of Docker: tests.clients.test_docker.
        FIRST_IMAGE,
        "docker push 127.0.0.1:5000/hello:1",
        "docker pull 127.0.0.1:5000/hello:1",
    },
    "docs/kubernetes.md": {
        "systemctl restart k3s",
        "systemctl reload crio",
        # There is no cluster here.
        "kubectl create secret docker-registry artifactd --docker-server=registry.example.com"
        ' --docker-username=robot+cluster --docker-password="$SECRET"',
    },
    "docs/operating.md": {
        "artifactd reload",  # tests.crash.test_workers
        "systemctl reload artifactd",
        # As tests.daemon.test_daemon starts it.
        "twistd -n artifactd --config FILE",
        # It gives a file to a group that the unit has made.
        "install -m 640 -g artifactd …",
        # The command line of SQLite, which not every machine has.
        'sqlite3 catalog.sqlite3 ".backup …"',
        # Of the shell.
        "ulimit -n",
    },
    "docs/performance.md": {
        # They measure, for minutes.
        "python bench/rows.py --data /dev/shm",
        "python bench/rows.py --data /dev/shm --workers 1",
        "python bench/rows.py --data /var/tmp",
        "python bench/load.py --data /dev/shm",
        "python bench/load.py --data /dev/shm --workers 2",
        "python bench/connections.py",
        "python bench/growth.py",
        "python bench/growth.py --manifests 10000000 --without-bytes",
        "python bench/pull_through.py --data /dev/shm",
        "python bench/pull_through.py --rate 0 --data /dev/shm",
        "python bench/catalog.py",
        "python bench/attacks.py",
        "python bench/soak.py",
    },
    "docs/troubleshooting.md": {
        "artifactd webhooks ls",  # as those of docs/webhooks.md
    },
    "docs/webhooks.md": {
        # They need a receiver, and events: tests.commands.test_webhooks.
        "artifactd webhooks test ci",
        "artifactd webhooks ls",
        "artifactd webhooks ls ci",
        "artifactd webhooks show 1",
        "artifactd webhooks replay 1",
        "artifactd webhooks replay --since 2026-11-05T14:00:00Z",
    },
}

# What a command in the text begins with; in a block every line is a command.
PROGRAM = re.compile(
    r"(artifactd|twistd|curl|pip|python|systemctl|install|sqlite3|ulimit|kubectl) |./script/"
)

# Commands that leave what is in the images as it was: it need not be made again.
READING = re.compile(r"artifactd (access|backup|check-config|du|history|ls|show|tags|top)\b")

# Commands that the text calls by their names alone, though they need to be told more.
NAMES = re.compile(r"artifactd (backup|purge|release|restore|robot|robot add|undelete|user|warm)")


@frozen
class Block:
    """
    What a page prints between fences.

    :ivar place: the page and the line.
    :ivar kind: what stands behind the first fence, such as ``toml``.
    """

    page: str
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first(self) -> tuple[str, str]:
        """The page and the first line, by which it is known here."""
        return self.page, self.text.partition("\n")[0]


def read(page: str) -> str:
    return (CHECKOUT / page).read_text("utf-8")


def blocks(page: str) -> Iterator[Block]:
    """All that stands between fences on a page."""
    text = read(page)
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])


def defaults(page: str, section: str) -> Iterator[tuple[str, str]]:
    """
    Settings with the defaults that the tables of a page say they have, as a file would have them.

    :param section: the settings that are in it; ``""``: those in none.
    """
    wanted = f"setting in `[{section}]`" if section else ("setting", "setting elsewhere")
    is_wanted = False
    for line in read(page).splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if not line.startswith("|"):
            is_wanted = False
        elif cells[0].lower().startswith("setting"):
            is_wanted = cells[1].lower() == "default" and cells[0].lower() in wanted
        elif is_wanted and re.fullmatch(r"`\w+`(, `\w+`)*", cells[0]):
            for name, value in zip(cells[0].split(", "), cells[1].split(", "), strict=True):
                text = value.strip("`")
                yield name.strip("`"), text if re.fullmatch(r'\d+|".*"', text) else f'"{text}"'


def commands(page: str) -> list[list[str]]:
    """
    The commands of a page in its order: the lines of each ``sh`` block together, and each of those
    in the text and in tables by itself.
    """
    text = read(page)
    found: list[list[str]] = []
    pattern = r"^```(?P<kind>\w*)\n(?P<block>.*?)^```$|`(?P<code>(?:[^`\n]|\n(?!\n))+)`"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        there: list[str] = []
        if match["kind"] == "sh":
            for line in match["block"].replace("\\\n", " ").splitlines():
                command = re.sub(r"\s#.*", "", line)
                there += [" ".join(e.split()) for e in re.split(r";\s", command) if e.strip()]
        elif match["code"] and PROGRAM.match(match["code"]):
            there.append(" ".join(match["code"].split()))  # it may go on in the next line
        if there and there not in found:
            found.append(there)
    return found


class SettingsTests(TestCase):
    """Settings that a page prints are those of a daemon that starts."""

    def setUp(self) -> None:
        # Not mktemp(): the path of a socket has room for 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="pages-"))
        self.addCleanup(shutil.rmtree, self.folder)
        server = ROOT.sign("registry.example.com")
        (self.folder / "key.pem").write_bytes(server.key_pem)
        for name in ("fullchain.pem", "ca.pem"):
            (self.folder / name).write_bytes(server.pem + ROOT.pem)
        bcrypt = "$2y$05$" + "." * 53
        (self.folder / "htpasswd").write_text(f"alice:{bcrypt}\nbob:{bcrypt}\n")
        (self.folder / "robots.toml").touch(0o600)

    def here(self, text: str) -> str:
        """Settings with the files, ports and secrets of a page replaced by the test's own."""
        text = re.sub(r"/(etc|run)/artifactd/", f"{self.folder}/", text)
        text = re.sub(r"\b(key|cert|client_ca)=(?=\w)", rf"\1={self.folder}/", text)
        text = re.sub(r"\b(tcp|artifactd-tls):\d+", r"\1:0", text)
        return text.replace("sha256:…", str(Digest.of(b"secret")))

    def accounts(self, text: str) -> str:
        """The accounts that the rules of ``text`` name and the page makes elsewhere."""
        tables = {
            r"robot:(\w+)": '[robot.{0}]\nsecret_hash = "sha256:…"\nmay = ["pull"]\nimages = ["*"]',
            r"claim:(\w+):": '[issuer.{0}]\nissuer = "https://{0}.example"\naudience = ["me"]\n'
            'claims = ["project=mine"]',
            r"group:(\w+)": '[auth]\nhtpasswd = "/etc/artifactd/htpasswd"\n'
            '[auth.groups]\n{0} = ["alice"]',
        }
        made = []
        if "[auth]" in text or "[robot." in text or "[issuer." in text:
            made += [] if "[[access]]" in text else RULE.splitlines()
        for pattern, table in tables.items():
            for name in dict.fromkeys(re.findall(rf'"{pattern}', text)):
                lines = table.format(name).splitlines()
                made += [] if lines[0] in text.splitlines() else lines
        return "\n".join(made)

    async def load(self, block: Block) -> Settings:
        """What ``artifactd check-config`` says is right, as the daemon has it then."""
        config = self.folder / "artifactd.toml"
        config.write_text(self.here(f"{block.text}\n{self.accounts(block.text)}"))
        result = await artifactd(self, "check-config", "--config", str(config), GHCR_TOKEN="x")
        self.assertEqual((result.status, result.err), (0, ""), f"{block.place}\n{block.text}")
        return Settings.load(config, {"GHCR_TOKEN": "x"})

    async def test_every_snippet_is_right_and_can_be_listened_on(self) -> None:
        snippets = [each for page in PAGES for each in blocks(page) if each.kind == "toml"]
        ours = [each for each in snippets if each.first not in FILES_OF_CLIENTS]
        self.assertGreater(len(ours), 12)
        for block in ours:
            settings = await self.load(block)
            if "listen" in block.text:
                await self.assert_listens(settings)

    async def assert_listens(self, settings: Settings) -> None:
        ports = listen(settings.listen, Factory(), reactor, Counters(), ExitStack())
        self.assertEqual(len(ports), len(settings.listen))
        for port in ports:
            await maybeDeferred(port.stopListening)

    async def test_defaults_in_tables_are_those_in_force(self) -> None:
        lines = [f"{name} = {default}" for name, default in defaults("docs/operating.md", "limits")]
        self.assertGreater(len(lines), 12)
        lines.insert(0, "[limits]")
        top = [*defaults("docs/operating.md", ""), *defaults("docs/garbage-collection.md", "")]
        self.assertGreater(len(top), 7)
        lines[:0] = [f"{name} = {default}" for name, default in top]
        settings = await self.load(Block("the tables", 0, "toml", "\n".join(lines)))
        self.assertEqual(settings, Settings.load(None, {}))

    async def test_a_wrong_one_would_be_noticed(self) -> None:
        wrong = Block("", 0, "toml", 'trusted_proxy = ["10.1.2.3"]\n')
        with self.assertRaisesRegex(self.failureException, "trusted_proxy"):
            await self.load(wrong)

    async def test_files_of_clients_are_those_that_mirror_config_prints(self) -> None:
        printed = {}
        for page in PAGES:
            for block in blocks(page):
                client = FILES_OF_CLIENTS.get(block.first)
                if client is not None:
                    elsewhere = re.search(r"http://cache.example:5000", block.text)
                    url = elsewhere[0] if elsewhere else "http://127.0.0.1:5000"
                    result = await artifactd(
                        self, "mirror-config", "--config=/dev/null", f"--url={url}", client
                    )
                    if block.kind == "json":
                        self.assertEqual(json.loads(block.text), json.loads(result.out))
                    else:
                        self.assertIn(block.text, result.out, block.place)
                    printed[block.first] = client
        self.assertEqual(printed, FILES_OF_CLIENTS)


class CommandsTests(TestCase):
    """
    Commands of a page in its order, beside a daemon that runs; each ends with status 0.

    What they name is there before each block or single command: images pushed and deleted, and
    images of an upstream.
    """

    daemon: Daemon

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        hub = Hub.start(self)
        hub.images.add_image("library/alpine", "3", b"alpine")
        self.upstreams_digest = hub.images.add_image("org/app", "1", b"upstream's")
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.config = self.folder / "artifactd.toml"
        other = f'[repository."ghcr.io"]\nkind = "remote"\nupstream = "{hub.url}"\n'
        other += 'hosts = ["ghcr.io"]\n'
        self.config.write_text(f"{settings_for(hub)}\n{other}\n{self.accounts()}")
        self.daemon = await Daemon.start(self, toml=self.config.read_text())

    def accounts(self) -> str:
        """Settings by which everybody may do everything, with files of users and robots."""
        users, robots = self.folder / "htpasswd", self.folder / "robots.toml"
        users.touch(0o600)
        robots.touch(0o600)
        self.patch(passwords, "_USUAL_COST", 4)  # what a hash costs
        rule = RULE.replace('"pull"', '"pull", "push", "delete"')
        return f'{rule}\n[auth]\nhtpasswd = "{users}"\nrobots_file = "{robots}"\n'

    def top(self) -> str:
        """What takes the place of ``artifactd top``: it ends, and asks the daemon of the test."""
        return f"artifactd top --once --url http://{self.daemon.address}"

    async def push(self, name: str, *tags: str, of: str | None = None) -> Digest:
        """Push an image of its own, or that of the name ``of``, to several tags; its digest."""
        layer = f"{of or name} {tags}".encode()
        for blob in (b"{}", layer):
            await self.daemon.push_blob(name, blob)
        digests = [
            await self.daemon.push_manifest(name, tag, image_manifest(b"{}", layer)) for tag in tags
        ]
        return digests[0]

    async def delete(self, name: str, reference: object) -> None:
        answer = await self.daemon.request("DELETE", f"/v2/{name}/manifests/{reference}")
        self.assertEqual(answer.status, 202)

    async def run_page(
        self,
        page: str,
        prepare: Callable[[], Awaitable[object]] | None = None,
        instead: Mapping[str, object] | None = None,
    ) -> dict[str, Result]:
        """
        Run all commands of ``page`` but those in :data:`NOT_RUN`.

        :param prepare: called before each block or single command, unless all since the last time
            were :data:`READING`.
        :param instead: what takes the place of what words, such as ``FILE``.
        """
        skipped = NOT_RUN.get(page, set())
        results = {}
        groups = commands(page)
        gone = skipped - {command for each in groups for command in each}
        self.assertEqual(gone, set(), f"{page} has no such command any more")
        is_as_prepared = prepare is None
        for group in groups:
            ours = [c for c in group if c not in skipped and not NAMES.fullmatch(c)]
            if ours and prepare is not None and not is_as_prepared:
                await prepare()
                is_as_prepared = True
            is_as_prepared &= all(map(READING.match, ours))
            for command in (each for printed in ours for each in variants(printed)):
                text = command.partition(" >> ")[0]
                for word, value in (instead or {}).items():
                    text = text.replace(word, str(value))
                if command in BEFORE:
                    await self.run_one(BEFORE[command])
                results[command] = await self.run_one(text)
        return results

    async def run_one(self, command: str) -> Result:
        """Run a command, with the output of ``echo`` before it, or a terminal to ask at."""
        typed, piped, rest = command.rpartition(" | ")
        terminal = TextIOWrapper(BytesIO(typed.encode()))
        self.patch(sys, "stdin", terminal)
        self.patch(terminal, "isatty", lambda: not piped)
        self.patch(accounts, "getpass", lambda prompt: "secret")
        program, name, *argv = shlex.split(rest)
        self.assertEqual(program, "artifactd", command)
        options = [] if "--config" in argv else ["--config", str(self.config)]
        result = await artifactd(self, name, *options, *argv, ARTIFACTD_DATA=str(self.daemon.data))
        self.assertEqual(result.status, 0, f"{command}\n{result.out}{result.err}")
        self.assertNotIn("Traceback", result.err, command)
        return result

    async def prepare(self) -> None:
        """Push, delete and pull what the pages name."""
        await self.push("app", "v1")
        await self.push("app", "test-1", "test-2")
        await self.push("team/app", "v1")
        await self.push("app", "old")
        await self.delete("app", "old")
        await self.push("old", "v1", of="app")
        await self.push("old", "v2")
        await self.daemon.request("GET", "/v2/docker.io/library/alpine/manifests/3")

    async def test_operating(self) -> None:
        digest = await self.push("app", "v1")
        await self.run_one("artifactd user add alice")
        results = await self.run_page(
            "docs/operating.md",
            self.prepare,
            {
                "FILE": self.config,
                "artifactd top": self.top(),
                "sha256:…": digest,
                "2026-11-05T14:00:00Z": datetime.now(UTC).isoformat(),
                "/srv/backup/artifactd": self.folder / "backup",
            },
        )
        self.assertGreater(len(results), 20)
        self.assertTrue(results["artifactd check-config --config FILE"].out.startswith("ok\n"))
        self.assertIn("old", results["artifactd undelete --list local/app"].out)
        for command in ("rm local/app@sha256:…", "restore local/app:v1 --to sha256:…"):
            self.assertIn(str(digest), results[f"artifactd {command}"].out)
        self.assertTrue((self.folder / "backup/catalog.sqlite3").exists())

    async def test_health_and_the_audit_log(self) -> None:
        for path in re.findall(r"`GET (/\w+)`", read("docs/operating.md")):
            self.assertEqual((await self.daemon.request("GET", path)).status, 200, path)
        (printed,) = (each for each in blocks("docs/operating.md") if each.kind == "json")
        await self.push("app", "v1")
        match = await self.daemon.process.matched(r'\{"time":.*"tag":"v1".*\}')
        shown, logged = json.loads(printed.text), json.loads(match[0])
        # The tag is new, and this client does not say what it is.
        del shown["before"], shown["agent"]
        self.assertEqual(list(shown), list(logged))
        for name in ("action", "method", "outcome", "status", "image", "tag", "digest", "bytes"):
            self.assertIs(type(shown[name]), type(logged[name]), name)

    async def test_garbage_collection(self) -> None:
        digest = await self.push("app", "2.0")

        async def prepare() -> None:
            await self.push("app", "2.0")
            await self.delete("app", digest)
            for tag in ("1.0", "other"):
                await self.push("app", tag)
                await self.delete("app", tag)

        results = await self.run_page("docs/garbage-collection.md", prepare, {"sha256:…": digest})
        for told in ("app:1.0", "app@sha256:…", "app"):
            self.assertIn("local/app", results[f"artifactd undelete {told}"].out)

    async def test_retention(self) -> None:
        async def prepare() -> None:
            await self.push("app", "v1")
            await self.push("app", "1.0")
            await self.delete("app", "1.0")

        results = await self.run_page("docs/retention.md", prepare, {"IMAGE": "app"})
        self.assertIn("v1", results["artifactd tags IMAGE"].out)

    async def test_pull_through(self) -> None:
        for name in ("hello", "emptied"):
            await self.delete(name, await self.push(name, "latest"))
        instead = {"sha256:…": self.upstreams_digest, "NAME": "emptied"}
        await self.run_page("docs/pull-through.md", instead=instead)

    async def test_pages_by_task(self) -> None:
        await self.run_one("artifactd user add alice")
        await self.run_one("artifactd robot add ci")
        for page in TASKS:
            await self.run_page(
                page,
                self.prepare,
                {
                    "2026-11-05T14:00:00Z": datetime.now(UTC).isoformat(),
                    "artifactd top": self.top(),
                    "/var/backups/": self.folder / f"backups-{Path(page).stem}-",
                    "--write /etc/": f"--write {self.folder}/",
                },
            )
        for name in (
            "containerd/certs.d/docker.io/hosts.toml",
            "rancher/k3s/registries.yaml",
            "containers/registries.conf.d/artifactd.conf",
        ):
            self.assertIn("cache.example:5000", (self.folder / name).read_text())

    async def test_the_other_pages(self) -> None:
        others = {"docs/operating.md", "docs/garbage-collection.md", "docs/pull-through.md"}
        others |= {"docs/retention.md", *TASKS}
        others.add("docs/api.md")  # of curl alone: tests.api.test_json_api.PageTests
        results: dict[str, Result] = {}
        for page in sorted({*PAGES, *NOT_RUN} - others):
            results |= await self.run_page(page, instead={"artifactd top": self.top()})
        self.assertIn("artifactd rotate-keys --forget", results)


class ScriptTests(TestCase):
    """README's two commands in a checkout whose .venv is there, so that nothing is downloaded."""

    def setUp(self) -> None:
        self.checkout = Path(self.mktemp()).absolute()
        (self.checkout / ".venv").mkdir(parents=True)
        for name in (
            "artifactd",
            "tests",
            "twisted",
            "script",
            "etc",
            "setup.py",
            "pyproject.toml",
        ):
            (self.checkout / name).symlink_to(CHECKOUT / name)
        for path in Path(sys.prefix).iterdir():
            if not path.name.startswith("installed"):
                (self.checkout / ".venv" / path.name).symlink_to(path)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ARTIFACTD_")}

    async def start(self, extra: str, *argv: str, **environment: str) -> Process:
        """Run a script, to which the requirements of ``extra`` seem to be installed."""
        sums = await run(
            self, "cksum", str(CHECKOUT / "setup.py"), str(CHECKOUT / "pyproject.toml")
        )
        wanted = sums.out.replace(f"{CHECKOUT}/", "").strip()
        (self.checkout / f".venv/installed{extra}").write_text(f"{wanted}\n")
        environment = self.environment | environment
        return Process.start(self, *argv, env=environment, folder=self.checkout)

    def test_these_are_the_two(self) -> None:
        block = next(each for each in blocks("README.md") if each.kind == "sh")
        programs = [line.split()[0] for line in block.text.splitlines()]
        self.assertEqual(programs, ["./script/server", "./script/test"])
        self.assertIn("serves 127.0.0.1:5000, data under ./var", block.text)
        self.assertEqual(Settings().listen, ("tcp:5000:interface=127.0.0.1",))

    async def test_the_server_serves(self) -> None:
        process = await self.start(
            "", f"{self.checkout}/script/server", ARTIFACTD_LISTEN="tcp:0:interface=127.0.0.1"
        )
        found = await process.matched(r"clients reach it at http://127\.0\.0\.1:(\d+)")
        answer = await request(int(found[1]), "GET", "/v2/")
        self.assertEqual(answer.status, 200)
        self.assertTrue((self.checkout / "var/catalog.sqlite3").exists())
        await process.kill(signal.SIGTERM)

    async def test_the_tests_run(self) -> None:
        process = await self.start("-test", f"{self.checkout}/script/test", "tests.oci.test_errors")
        self.assertEqual(await process.ended(), 0, process.output)
        self.assertRegex(process.output, r"\nPASSED \(successes=\d+\)\n")


def variants(command: str) -> list[str]:
    """``command`` with and without each of its ``[options]``; of a mode that is turned on, all."""
    if command == "artifactd read-only on":
        return [command, "artifactd read-only", "artifactd read-only off"]
    parts = re.split(r" \[([^]]+)\]", command)
    choices = [("", f" {part}") if odd % 2 else (part,) for odd, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]
