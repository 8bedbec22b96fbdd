#!/usr/bin/env python3
"""
Everything at once for some minutes, while daemons are killed; then whether anything was lost.

usage: soak.py [--seconds 180] [--clients 6] [--processes 2] [--seed N] [--data FOLDER]

Starts so many artifactd on one data folder, behind them an upstream of its own that now and then
breaks off in the middle of a blob, evil ones that lie, drip and redirect, and clients that push
images (whole and in chunks, by upload and by mount), move tags, pull, delete, and pull through the
cache, while garbage is collected with a short lease and no grace period, and the cache is kept
small.  All the while one of the daemons is killed (SIGKILL) at a random moment and started again.

A loss is an image that was pushed and not deleted, each answered as done, and of which anything is
not there.  Corrupt is any byte that is not as it was pushed, or as the upstream has it.  A byte of
anybody else's is one that the repository of an evil upstream answers, and that upstream has not
sent.  In the end every image is pulled once more, every file of the store is hashed, and the
catalog is checked.

Prints the seed, operations, kills, losses, corrupt and the peak memory of a daemon (VmHWM).  Fails
(status 1) unless there are no losses, nothing is corrupt and nothing else was amiss.  Nothing goes
beyond 127.0.0.1.  Stops what it has started, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from attrs import define, field, frozen
from images import MANIFEST, digest_of, manifest_of
from servers import CHECKOUT, MEGABYTE, free_port, private_folder, stop

LARGEST = 1 << 20  # bytes of a layer
LAYERS = 60  # that images are made of, here as upstream
UPSTREAM_IMAGES = 40
BREAKS = 0.03  # of the upstream's blobs break off
_COLLECTED = r'^artifactd_gc_collected_total{why="(\w+)"} (\S+)$'
SETTINGS = """\
lease = "4s"
grace = "0"
gc_interval = "250ms"
gc_rate = 0
sweep_interval = "2s"
upload_timeout = "30s"
access_log = "off"

[repository.local]
kind = "local"

[repository."docker.io"]
enabled = false

[repository.up]
kind = "remote"
upstream = "http://127.0.0.1:{upstream}"
freshness = "1s"
size_cap = "4MiB"

[repository.lying]
kind = "remote"
upstream = "http://127.0.0.1:{lying}"
freshness = "1s"
size_cap = "4MiB"

[repository.dripping]
kind = "remote"
upstream = "http://127.0.0.1:{dripping}"
freshness = "1s"

[repository.redirecting]
kind = "remote"
upstream = "http://127.0.0.1:{redirecting}"
freshness = "1s"
"""
FALSE = b"E"  # all bytes that an evil upstream sends
GLANCE = 2.0  # seconds for which an answer by an evil upstream is read
METADATA = "http://169.254.169.254/latest/meta-data"  # where clouds answer their machines alone
READY, TIMEOUT = 120.0, 120.0  # seconds for a start, and for any answer


class Lost(Exception):
    """What must be there is not."""


class Corrupt(Exception):
    """Bytes that are not those pushed."""


class Leaked(Exception):
    """Bytes that the upstream of the repository has not sent."""


class Amiss(Exception):
    """An answer that no client should get."""


@cache
def layer(number: int) -> bytes:
    """One of a few that all images are made of; of any size up to :data:`LARGEST`."""
    random = Random(number)
    return random.randbytes(int(LARGEST ** random.uniform(0.3, 1)))


class Upstream(BaseHTTPRequestHandler):
    """Some images, ``app/<n>:1``, and blobs that break off now and then."""

    protocol_version = "HTTP/1.1"
    breaks = Random(0)

    @classmethod
    @contextmanager
    def running(cls, seed: int) -> Iterator[int]:
        """One on a free port."""
        cls.breaks = Random(seed)
        with ThreadingHTTPServer(("127.0.0.1", 0), cls) as server:
            serving = threading.Thread(target=server.serve_forever, daemon=True)
            serving.start()
            yield server.server_address[1]
            server.shutdown()
            serving.join()

    @staticmethod
    @cache
    def manifest(name: str) -> bytes:
        """That of an image."""
        random = Random(name)
        config = json.dumps({"name": name}).encode()
        return manifest_of(config, *(layer(random.randrange(LAYERS)) for _ in range(3)))

    @staticmethod
    @cache
    def blobs() -> dict[str, bytes]:
        """All there are, by digests."""
        configs = [json.dumps({"name": f"app/{n}"}).encode() for n in range(UPSTREAM_IMAGES)]
        return {digest_of(each): each for each in [*configs, *map(layer, range(LAYERS))]}

    def do_GET(self) -> None:
        found = re.fullmatch(r"/v2/(?:(app/\d+)/(manifests|blobs)/(\S+))?", self.path)
        if found is None:
            self._answer(404, b"{}", "application/json")
        elif not found[1]:
            self._answer(200, b"{}", "application/json")
        elif found[2] == "manifests":
            self._answer(200, self.manifest(found[1]), MANIFEST)
        else:
            self._answer(200, self.blobs()[found[3]], "application/octet-stream")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        begin = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and status == 200 and int(asked[1]) < len(body):
            status, begin = 206, int(asked[1])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) - begin))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        if kind == MANIFEST:
            self.send_header("Docker-Content-Digest", digest_of(body))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body[begin:]
        if len(sent) > 1000 and self.breaks.random() < BREAKS:
            sent, self.close_connection = sent[: len(sent) // 2], True
        self.wfile.write(sent)

    def handle(self) -> None:
        with suppress(OSError):  # a daemon was killed
            super().handle()

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Lying(Upstream):
    """It has every blob, and sends other bytes."""

    def do_GET(self) -> None:
        found = re.fullmatch(r"/v2/app/\d+/(manifests|blobs)/(\S+)", self.path)
        kind = MANIFEST if found and found[1] == "manifests" else "application/octet-stream"
        content = self.blobs().get(found[2], b"x" * 1000) if found else b""
        self.answer_falsely(FALSE * len(content), kind)

    def answer_falsely(self, content: bytes, kind: str) -> None:
        """Answer with ``content``."""
        self._answer(200, content, kind)


class Dripping(Lying):
    """It sends a byte now and then."""

    def answer_falsely(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for each in content:
            self.wfile.write(bytes([each]))
            time.sleep(0.5)


class Redirecting(Lying):
    """It redirects to where only the daemon may ask."""

    def answer_falsely(self, content: bytes, kind: str) -> None:
        self.send_response(302)
        self.send_header("Location", METADATA)
        self.send_header("Content-Length", "0")
        self.end_headers()


@define
class Daemon:
    """
    artifactd on a port of its own, again and again.

    :ivar lives: how often it was started; odd while nobody may count on it.
    :ivar peak: the most that was resident in any of its lives, in bytes.
    """

    port: int
    config: Path
    data: Path
    lives: int = 1
    peak: int = 0
    collected: Counter[str] = field(factory=Counter)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Once it answers."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ARTIFACTD_")}
        environment |= {
            "ARTIFACTD_LISTEN": f"tcp:{self.port}:interface=127.0.0.1",
            "ARTIFACTD_DATA": str(self.data),
            "ARTIFACTD_WORKERS": "1",  # it is killed, and its memory is looked at
        }
        with self.config.with_suffix(f".{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "artifactd", "--config", str(self.config)],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=CHECKOUT,
            )
        deadline = time.monotonic() + READY
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(
                    f"a daemon does not start again; the last of its log:\n{self.log()}"
                )
            try:
                if ask(self.port, "GET", "/readyz").status == 200:
                    break
            except (OSError, HTTPException):
                time.sleep(0.05)
        self.lives += 1

    def kill(self) -> None:
        """At once, whatever it does."""
        assert self.process is not None
        self.measure()
        self.lives += 1
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As an operator does it; whatever state it is in, it is gone afterwards."""
        if self.process is None or self.process.poll() is not None:
            return
        stop(self.process)

    def measure(self) -> None:
        """What this life has taken and collected."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        self.peak = max(self.peak, int(found[1]) * 1024 if found else 0)
        try:
            text = ask(self.port, "GET", "/metrics").body.decode()
        except (OSError, HTTPException):
            return
        for why, count in re.findall(
            r'^artifactd_gc_collected_total{why="(\w+)"} (\S+)$', text, re.M
        ):
            self.collected[why] += int(float(count))

    def log(self) -> str:
        """The end of what it has written."""
        return self.config.with_suffix(f".{self.port}.log").read_text("utf-8", "replace")[-4000:]


@frozen
class Answer:
    """A response read to its end."""

    status: int
    headers: HTTPMessage
    body: bytes


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """On a connection of its own."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


@define
class Client:
    """
    Somebody with an image name of his own, who knows what must be there.

    :ivar there: manifests whose push was answered, and whose deletion was not begun.
    :ivar tags: the digests that they point at, as far as that is certain.
    :ivar over: set when it is to end.
    """

    number: int
    random: Random
    daemons: list[Daemon]
    peers: int
    over: threading.Event
    there: dict[str, bytes] = field(factory=dict)
    tags: dict[str, str] = field(factory=dict)
    done: Counter[str] = field(factory=Counter)
    wrong: list[str] = field(factory=list)
    port: int = 0

    @property
    def name(self) -> str:
        return f"client/{self.number}"

    def work(self) -> None:
        """Until it is over."""
        steps = (self.push, self.pull, self.pull_through, self.delete, self.move)
        while not self.over.is_set():
            (step,) = self.random.choices(steps, (30, 25, 25, 15, 10))
            self.attempt(step)

    def attempt(self, step: Any, *arguments: Any) -> None:
        """Do it once; what a kill has cut off is no fault."""
        daemon = self.random.choice(self.daemons)
        self.port, life = daemon.port, daemon.lives
        try:
            step(*arguments)
            self.done[step.__name__] += 1
        except (OSError, HTTPException) as error:
            if life % 2 == 0 and daemon.lives == life:
                self.wrong.append(f"amiss: {self.name}: {step.__name__}: {error!r}")
            self.done["cut off by a kill"] += 1
            while daemon.lives % 2 and not self.over.wait(0.05):
                pass  # it is being started
        except (Lost, Corrupt, Amiss, Leaked) as error:
            self.wrong.append(f"{type(error).__name__.lower()}: {self.name}: {error}")

    def push(self) -> None:
        """An image with a new tag."""
        self._push(f"t{self.random.getrandbits(48):x}")

    def move(self) -> None:
        """Let a tag point at a new image."""
        if self.tags:
            tag = self.random.choice(list(self.tags))
            del self.tags[tag]  # whether it has moved, nobody knows until the answer
            self._push(tag)

    def _push(self, tag: str) -> None:
        config = json.dumps({"n": self.random.getrandbits(64)}).encode()
        layers = [layer(self.random.randrange(LAYERS)) for _ in range(self.random.randint(1, 4))]
        manifest = manifest_of(config, *layers)
        for _ in range(20):
            for blob in (config, *layers):
                self._push_blob(blob)
            put = ask(
                self.port,
                "PUT",
                f"/v2/{self.name}/manifests/{tag}",
                manifest,
                Content_Type=MANIFEST,
            )
            if put.status == 201:
                self.there[digest_of(manifest)] = manifest
                self.tags[tag] = digest_of(manifest)
                return
            # The lease is so short here that a blob may have gone again meanwhile.
            if b"MANIFEST_BLOB_UNKNOWN" not in put.body:
                raise Amiss(f"PUT of a manifest: {put.status} {put.body!r}")
            self.done["blobs pushed again, their lease was over"] += 1
        raise Amiss("the blobs of an image were not there twenty times")

    def _push_blob(self, blob: bytes) -> None:
        digest = digest_of(blob)
        head = ask(self.port, "HEAD", f"/v2/{self.name}/blobs/{digest}")
        if head.status == 200:
            return
        self._expect(head, 404)
        uploads = f"/v2/{self.name}/blobs/uploads/"
        how = self.random.randrange(3)
        if how == 0:
            peer = f"client/{self.random.randrange(self.peers)}"
            opened = ask(self.port, "POST", f"{uploads}?mount={digest}&from={peer}")
            if opened.status == 201:
                self.done["mounts"] += 1
                return
        elif how == 1:
            self._expect(ask(self.port, "POST", f"{uploads}?digest={digest}", blob), 201)
            return
        else:
            opened = ask(self.port, "POST", uploads)
        self._expect(opened, 202)
        location = opened.headers["Location"]
        middle = self.random.randrange(len(blob))
        for piece in (blob[:middle], blob[middle:]):
            answer = ask(self.port, "PATCH", location, piece)
            self._expect(answer, 202)
            location = answer.headers["Location"]
        closed = ask(
            self.port, "PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}"
        )
        self._expect(closed, 201)

    def pull(self) -> None:
        """An image that must be there, by its tag or its digest, with all of it."""
        if self.there:
            digest = self.random.choice(list(self.there))
            tags = [tag for tag, pointed in self.tags.items() if pointed == digest]
            self.look_at(digest, self.random.choice([digest, *tags]))

    def look_at(self, digest: str, reference: str) -> None:
        """All of one image."""
        self._same(digest, f"/v2/{self.name}/manifests/{reference}")
        document = json.loads(self.there[digest])
        for held in (document["config"], *document["layers"]):
            self._same(held["digest"], f"/v2/{self.name}/blobs/{held['digest']}")

    def _same(self, digest: str, path: str) -> None:
        answer = ask(self.port, "GET", path, Accept=MANIFEST)
        if answer.status != 200:
            kind = Lost if answer.status == 404 else Amiss
            raise kind(f"GET {path}: {answer.status} {answer.body[:200]!r}")
        if digest_of(answer.body) != digest:
            raise Corrupt(f"GET {path}: {len(answer.body)} other bytes")

    def delete(self) -> None:
        """An image, with its tags."""
        if self.there:
            digest = self.random.choice(list(self.there))
            del self.there[digest]  # before: whether it is done, nobody knows until the answer
            self.tags = {tag: pointed for tag, pointed in self.tags.items() if pointed != digest}
            self._expect(ask(self.port, "DELETE", f"/v2/{self.name}/manifests/{digest}"), 202)

    def pull_through(self) -> None:
        """An image of the upstream."""
        name = f"app/{self.random.randrange(UPSTREAM_IMAGES)}"
        manifest = Upstream.manifest(name)
        self._same(digest_of(manifest), f"/v2/up/{name}/manifests/1")
        for held in json.loads(manifest)["layers"]:
            self._same(held["digest"], f"/v2/up/{name}/blobs/{held['digest']}")

    def _expect(self, answer: Answer, status: int) -> None:
        if answer.status != status:
            raise Amiss(f"{answer.status} {answer.body[:300]!r} instead of {status}")


@define
class Eve(Client):
    """
    Asks for what others have by the repositories of the evil upstreams.

    :ivar others: those who push.
    :ivar got: bytes that are not those that the repository's upstream sends.
    """

    others: list[Client] = field(factory=list)
    got: int = 0

    def work(self) -> None:
        while not self.over.is_set():
            self.attempt(self.ask_evil)

    def ask_evil(self) -> None:
        """A blob or a manifest of somebody else, or a part of it; or mount it."""
        image = f"{self.random.choice(('lying', 'dripping', 'redirecting'))}/app/1"
        digest = self.random.choice(list(Upstream.blobs()))
        path = f"/v2/{image}/blobs/{digest}"
        headers = {}
        pushed = [each for other in self.others for each in tuple(other.there)]
        how = self.random.randrange(4)
        if how == 0:
            mount = f"/v2/{self.name}/blobs/uploads/?mount={digest}&from={image}"
            if ask(self.port, "POST", mount).status == 201:
                self._leaked(len(Upstream.blobs()[digest]), mount)
            return
        if how == 1 and pushed:
            path = f"/v2/{image}/manifests/{self.random.choice(pushed)}"
        elif how == 2:
            first = self.random.randrange(1000)
            headers["Range"] = f"bytes={first}-{first + self.random.randrange(100_000)}"
        status, body = self._glance(path, headers)
        if status in (200, 206):
            foreign = len(body) - body.count(FALSE)
            if foreign:
                self._leaked(foreign, path)

    def _leaked(self, count: int, what: str) -> None:
        self.got += count
        raise Leaked(f"{count} bytes by {what}")

    def _glance(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """The status, and what comes of the body within :data:`GLANCE`."""
        deadline, body = time.monotonic() + GLANCE, b""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=GLANCE)) as connection:
            connection.request("GET", path, headers=headers)
            try:
                response = connection.getresponse()
            except TimeoutError:
                return 0, b""  # small blobs are answered once they are verified, so these never
            with suppress(OSError, HTTPException):  # wrong bytes are cut off
                while time.monotonic() < deadline and (piece := response.read1(1 << 16)):
                    body += piece
        return response.status, body


def kill_until(end: float, random: Random, daemons: list[Daemon]) -> int:
    """Kill one after the other until the time is ``end``; how many."""
    kills = 0
    while (pause := random.uniform(0.2, 6)) < end - time.monotonic():
        time.sleep(pause)
        daemon = random.choice(daemons)
        daemon.kill()
        kills += 1
        daemon.start()
    time.sleep(max(0.0, end - time.monotonic()))
    return kills


def check_data(data: Path) -> Iterator[str]:
    """What is wrong with the files; no daemon runs any more."""
    for path in (data / "blobs/sha256").glob("*/*"):
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                yield f"corrupt: {path.name} in the store"
    with closing(sqlite3.connect(data / "catalog.sqlite3")) as db:
        (said,) = db.execute("PRAGMA integrity_check").fetchone()
        if said != "ok":
            yield f"corrupt: the catalog: {said}"


def soak(options: argparse.Namespace, folder: Path, stack: ExitStack) -> list[str]:
    """All of it; what was wrong."""
    upstream = stack.enter_context(Upstream.running(options.seed))
    evil = {
        each.__name__.lower(): stack.enter_context(each.running(options.seed))
        for each in (Lying, Dripping, Redirecting)
    }
    config = folder / "artifactd.toml"
    config.write_text(SETTINGS.format(upstream=upstream, **evil))
    daemons = [Daemon(free_port(), config, folder / "data") for _ in range(options.processes)]
    for daemon in daemons:
        stack.callback(daemon.stop)
        daemon.start()
    over = threading.Event()
    clients = [
        Client(number, Random(f"{options.seed} {number}"), daemons, options.clients, over)
        for number in range(options.clients)
    ]
    eve = Eve(
        options.clients,
        Random(f"{options.seed} eve"),
        daemons,
        options.clients,
        over,
        others=clients[:],
    )
    end = time.monotonic() + options.seconds
    with ThreadPoolExecutor(options.clients + 1) as threads:
        working = [threads.submit(client.work) for client in (*clients, eve)]
        try:
            kills = kill_until(end, Random(options.seed), daemons)
        finally:
            over.set()
        for each in working:
            each.result()
    images = sum(len(client.there) for client in clients)
    for client in clients:  # once more, now that nobody is killed
        for digest in client.there:
            client.attempt(client.look_at, digest, digest)
        for tag, digest in client.tags.items():
            client.attempt(client.look_at, digest, tag)
    for daemon in daemons:
        daemon.measure()
        daemon.stop()
    said = [said for client in (*clients, eve) for said in client.wrong]
    wrong = [*said, *check_data(folder / "data")]
    report(options, [*clients, eve], daemons, kills, images, wrong)
    print(f"bytes of anybody else's: {eve.got}")
    return wrong


def report(
    options: argparse.Namespace,
    clients: list[Client],
    daemons: list[Daemon],
    kills: int,
    images: int,
    wrong: list[str],
) -> None:
    """Print the figures."""
    done = sum((client.done for client in clients), Counter[str]())
    collected = sum((daemon.collected for daemon in daemons), Counter[str]())
    kinds = Counter(said.partition(":")[0] for said in wrong)
    for said in wrong[:20]:
        print(said)
    steps = ("push", "pull", "pull_through", "delete", "move", "ask_evil")
    print(f"{options.seconds:.0f} s, {options.clients} clients, {options.processes} daemons")
    print(f"operations: {sum(done[step] for step in steps)}")
    for step, count in done.most_common():
        print(f"  {step.replace('_', ' ')}: {count}")
    # Of what a life collected after it was last asked nobody knows.
    print(f"collected: {dict(collected)}, at least")
    print(f"kills: {kills}")
    print(f"images that had to be there in the end: {images}")
    print(f"losses: {kinds['lost']}")
    print(f"corrupt: {kinds['corrupt']}")
    print(f"amiss: {kinds['amiss']}")
    print(f"peak memory of a daemon: {max(d.peak for d in daemons) / MEGABYTE:.0f} MB resident")


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=180, help="%(default)s")
    parser.add_argument("--clients", type=int, default=6, help="%(default)s")
    parser.add_argument("--processes", type=int, default=2, help="on one data folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=SystemRandom().getrandbits(32), help="any")
    parser.add_argument("--data", type=Path, help="where to keep the data (a temporary folder)")
    options = parser.parse_args()
    print(f"seed: {options.seed}", flush=True)
    with private_folder(options.data) as folder, ExitStack() as stack:
        return 1 if soak(options, folder, stack) else 0


if __name__ == "__main__":
    sys.exit(main())
