#!/usr/bin/env python3
"""
Attacks on a daemon of its own, one after the other and then together, and how prompt it stays.

usage: attacks.py [--seconds 10] [--data FOLDER] [--only NAME …]

Starts artifactd on a free port of 127.0.0.1, and two upstreams: a good one, and one that lies,
drips, redirects and sends wrong bytes.  ``mallory`` may push to images of its own and pull from the
evil upstream; ``alice`` may push to others and pull from the good one.  While mallory attacks,
alice pushes and pulls, and a process of its own asks ``/healthz`` twenty times a second, on a new
connection each time.

Printed of each attack:

* the slowest answer of ``/healthz``, the connecting included, and how slow one in a hundred was;
* the daemon's peak resident memory during the attack (VmHWM);
* how long alice's slowest push and pull of a small image took, five requests one after the other;
* whether the outcome is right: what alice has pushed and pulled is whole, and mallory has got
  nothing that is not its own.  What was wrong is listed below the table.

Fails (status 1) if an outcome is wrong, an answer of ``/healthz`` took 500 ms, or the memory was
300 MB.  Nothing goes beyond 127.0.0.1.  Stops what it has started, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import ClassVar

from attrs import define, field, frozen
from images import MANIFEST, digest_of, manifest_of
from servers import MEGABYTE, Server, artifactd, private_folder

SLOWEST, LARGEST = 0.5, 300 * MEGABYTE  # seconds; bytes
PROBE_PAUSE = 0.05
NICENESS = 10
TIMEOUT = 60.0
SECRET = b"a layer that alice alone may pull " * 100
GOOD = hashlib.shake_256(b"good").digest(4 << 20)  # a blob of the good upstream
DRIPPED = hashlib.shake_256(b"dripped").digest(1 << 20)
LARGE = hashlib.shake_256(b"large").digest(8 << 20)  # a layer of alice's
METADATA = "http://169.254.169.254/latest/meta-data"  # where clouds answer their machines alone
TAGS = json.dumps(
    {"name": "x", "tags": [f"release-{n:08d}-amd64" for n in range(250_000)]}
).encode()

SETTINGS = """\
[repository.local]
kind = "local"

[repository."docker.io"]
enabled = false

[repository.good]
kind = "remote"
upstream = "http://127.0.0.1:{good}"

[repository.evil]
kind = "remote"
upstream = "http://127.0.0.1:{evil}"
freshness = "10m"

[robot.alice]
secret_hash = "{alice}"

[robot.mallory]
secret_hash = "{mallory}"

[[access]]
who = ["robot:alice"]
may = ["pull", "push"]
images = ["local/alice/*", "good/*"]

[[access]]
who = ["robot:mallory"]
may = ["pull", "push"]
images = ["local/mallory/*", "evil/*"]
"""


# -- the upstreams


class Upstream(BaseHTTPRequestHandler):
    """A registry that has all blobs of ``blobs`` under every name."""

    protocol_version = "HTTP/1.1"
    blobs: ClassVar[dict[str, bytes]] = {digest_of(each): each for each in (GOOD, DRIPPED)}
    queries: ClassVar[list[str]]

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[int]:
        """Serve on a free port until the end of the context."""
        cls.queries = []
        with ThreadingHTTPServer(("127.0.0.1", 0), cls) as server:
            server.daemon_threads = True
            serving = threading.Thread(target=server.serve_forever, daemon=True)
            serving.start()
            yield server.server_address[1]
            server.shutdown()

    def do_GET(self) -> None:
        self.queries.append(self.path.partition("?")[2])
        found = re.search(r"/blobs/(sha256:[0-9a-f]{64})$", self.path)
        content = None if found is None else self.blobs.get(found[1])
        if content is None:
            self.answer(404, b"{}")
        else:
            self.answer_part(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer_part(self, content: bytes) -> None:
        """Answer with ``content``, or the range of it that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.answer(200, content)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        where = f"bytes {first}-{last}/{len(content)}"
        self.answer(206, content[first : last + 1], Content_Range=where)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Evil(Upstream):
    """It lies about every blob, drips one, redirects, and lists too many tags."""

    queries: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.queries.append(self.path.partition("?")[2])
        if "/tags/list" in self.path:
            self.answer(200, TAGS, Content_Type="application/json")
        elif "/redirected/" in self.path or "/referrers/" in self.path:
            self.answer(302, b"", Location=METADATA)
        elif digest_of(DRIPPED) in self.path and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(DRIPPED)))
            self.end_headers()
            while True:
                self.wfile.write(b"E")
                time.sleep(1)
        elif "/blobs/" in self.path and self.command == "HEAD":
            size = len(self.blobs.get(self.path.rpartition("/")[2], SECRET))
            self.answer(200, bytes(size))
        elif digest_of(GOOD) in self.path:
            self.answer_part(b"E" * len(GOOD))
        else:
            self.answer(404, b"{}")


# -- clients


def login(user: str) -> str:
    """The ``Authorization`` of a robot whose secret is its name."""
    return "Basic " + b64encode(f"robot+{user}:{user}".encode()).decode()


@frozen
class Client:
    """One of the two accounts."""

    port: int
    user: str

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Send a request on a connection of its own; return the status and the body."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {"Authorization": login(self.user), **named})
            response = connection.getresponse()
            return response.status, response.read()

    def begin(self, method: str, path: str, *headers: str, receive: int = 0) -> socket.socket:
        """Open a connection and send the head of a request."""
        connection = socket.socket()
        if receive:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connection.settimeout(TIMEOUT)
        connection.connect(("127.0.0.1", self.port))
        lines = (f"{method} {path} HTTP/1.1", "Host: localhost", *headers)
        head = "\r\n".join((*lines, f"Authorization: {login(self.user)}", "", ""))
        connection.sendall(head.encode())
        return connection

    def push_blob(self, image: str, content: bytes) -> None:
        """Push a blob in one request."""
        path = f"/v2/{image}/blobs/uploads/?digest={digest_of(content)}"
        status, answer = self.ask("POST", path, content)
        if status != 201:
            raise Wrong(f"{self.user} pushes a blob: {status} {answer[:200]!r}")

    def put(self, image: str, tag: str, content: bytes) -> tuple[int, bytes]:
        """Push a manifest; return the status and the body."""
        return self.ask("PUT", f"/v2/{image}/manifests/{tag}", content, Content_Type=MANIFEST)

    def push(self, image: str, tag: str, *layers: bytes) -> bytes:
        """Push an image; return its manifest."""
        config = json.dumps({"tag": tag}).encode()
        for content in (config, *layers):
            self.push_blob(image, content)
        content = manifest_of(config, *layers)
        status, answer = self.put(image, tag, content)
        if status != 201:
            raise Wrong(f"{self.user} pushes a manifest: {status} {answer[:200]!r}")
        return content


class Wrong(Exception):
    """An outcome that is not right."""


def expect(what: str, answer: tuple[int, bytes], *statuses: int) -> None:
    """:raises Wrong: if the status is not one of ``statuses``, or another's bytes have come."""
    status, body = answer
    if SECRET[:34] in body or b"EEEEEEEE" in body:
        raise Wrong(f"{what}: bytes of somebody else")
    if status not in statuses:
        raise Wrong(f"{what}: {status} {body[:200]!r}")


@define
class Attack:
    """
    One attack under way.

    :ivar over: set when it is to end.
    :ivar held: connections that are closed at its end.
    :ivar slowest: seconds of alice's slowest push and pull.
    """

    port: int
    slowest: float = 0.0
    over: threading.Event = field(factory=threading.Event)
    held: ExitStack = field(factory=ExitStack)

    @property
    def mallory(self) -> Client:
        return Client(self.port, "mallory")

    @property
    def alice(self) -> Client:
        return Client(self.port, "alice")

    def hold(self, connection: socket.socket) -> socket.socket:
        """Keep a connection open until the end of the attack."""
        return self.held.enter_context(connection)

    def pause(self, seconds: float) -> bool:
        """Wait; return whether the attack goes on."""
        return not self.over.wait(seconds)

    # -- whose outcome is what alice notices, that is nothing

    def one_byte_chunks(self) -> None:
        """Bodies in chunks of one byte."""
        path = f"/v2/mallory/x/blobs/uploads/?digest={digest_of(b'')}"
        while self.pause(0.01):
            connection = self.mallory.begin("POST", path, "Transfer-Encoding: chunked")
            with connection, suppress(OSError):
                while not self.over.is_set():
                    connection.sendall(b"1\r\na\r\n" * 20_000)

    def unread_lists(self) -> None:
        """Long lists that are asked for and not read."""
        for _ in range(60):
            self.hold(self.mallory.begin("GET", "/v2/evil/x/tags/list", receive=4096))
        self.over.wait()

    def announced_manifests(self) -> None:
        """Manifests that are announced and not sent."""
        for number in range(60):
            path = f"/v2/mallory/x/manifests/t{number}"
            headers = ("Content-Length: 4194304", f"Content-Type: {MANIFEST}")
            connection = self.hold(self.mallory.begin("PUT", path, *headers))
            with suppress(OSError):
                connection.sendall(b"{" + b" " * (100_000 if number % 2 else 0))
        self.over.wait()

    def slow_readers(self) -> None:
        """A large blob of mallory's own, read by many, slowly."""
        self.mallory.push_blob("mallory/x", LARGE)
        path = f"/v2/mallory/x/blobs/{digest_of(LARGE)}"
        reading = [self.mallory.begin("GET", path, receive=4096) for _ in range(60)]
        for connection in reading:
            self.hold(connection)
        while self.pause(1):
            for connection in reading:
                with suppress(OSError):
                    connection.recv(1024)

    def many_entries(self) -> None:
        """Manifests of thousands of layers that a registry need not hold."""
        self.mallory.push_blob("mallory/x", b"{}")
        kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
        layers = [
            {
                "mediaType": kind,
                "digest": digest_of(b"%d" % number),
                "size": 1,
                "urls": ["https://x"],
            }
            for number in range(9900)
        ]
        number = 0
        while self.pause(0.01):
            number += 1
            head = manifest_of(b"{}", annotations={"number": str(number // 2)}, layers=layers)
            answer = self.mallory.put("mallory/x", f"t{number % 3}", head)
            expect("a push of a manifest of many entries", answer, 201, 429)

    # -- refused

    def nested_lists(self) -> None:
        """Manifests of 4 MiB of nested lists."""
        unit = b"[" * 90 + b"]" * 90
        head = manifest_of(b"{}")[:-1]
        body = head + b',"x":[' + b",".join([unit] * ((4 << 20) // 182 - 100)) + b"]}"
        while self.pause(0.01):
            answer = self.mallory.put("mallory/x", "t", body)
            expect("a push of nested lists", answer, 400, 413, 429)

    def artifact_types(self) -> None:
        """Manifests whose artifactType has megabytes."""
        self.mallory.push_blob("mallory/x", b"{}")
        number = 0
        while self.pause(0.01):
            number += 1
            body = manifest_of(b"{}", artifactType=f"application/{number}{'y' * 3_900_000}")
            answer = self.mallory.put("mallory/x", "t", body)
            expect("a push of a long artifactType", answer, 400, 413, 429)

    def lying_head(self) -> None:
        """The evil upstream says that it has a blob of alice's."""
        digest = digest_of(SECRET)
        while self.pause(0.05):
            for span in ("bytes=0-", "bytes=0-99", "bytes=100-199"):
                answer = self.mallory.ask("GET", f"/v2/evil/x/blobs/{digest}", Range=span)
                expect("a blob of alice's by the evil upstream", answer, 404, 416, 429, 502, 503)
            mount = f"/v2/mallory/x/blobs/uploads/?mount={digest}&from=evil/x"
            expect("a mount of a blob of alice's", self.mallory.ask("POST", mount), 202)

    def poisoning(self) -> None:
        """The evil upstream sends other bytes of the good one's blob, or drips them."""
        good, dripped = digest_of(GOOD), digest_of(DRIPPED)
        self.hold(self.mallory.begin("GET", f"/v2/evil/x/blobs/{dripped}"))
        while self.pause(0.05):
            span = "bytes=1000000-1999999"
            self.mallory.ask("GET", f"/v2/evil/x/blobs/{good}", Range=span)
            part = self.alice.ask("GET", f"/v2/good/app/blobs/{good}", Range=span)
            if part != (206, GOOD[1000000:2000000]):
                raise Wrong(f"alice's range of the good upstream's blob: {part[0]}")
            for content in (GOOD, DRIPPED):
                whole = self.alice.ask("GET", f"/v2/good/app/blobs/{digest_of(content)}")
                if whole != (200, content):
                    raise Wrong(f"alice's pull of the good upstream's blob: {whole[0]}")

    def redirects(self) -> None:
        """The evil upstream redirects to where only this machine may ask."""
        digest = digest_of(b"redirected")
        while self.pause(0.05):
            for path in (f"blobs/{digest}", "manifests/v1"):
                answer = self.mallory.ask("GET", f"/v2/evil/redirected/x/{path}")
                expect("what the evil upstream redirects", answer, 404, 429, 502, 503)
            answer = self.mallory.ask("GET", f"/v2/evil/x/referrers/{digest}")
            if b"ami-id" in answer[1]:
                raise Wrong("metadata of the machine were fetched")

    def forged_continuation(self) -> None:
        """Continuations that mallory has made up go upstream in no form."""
        forged = "account%3Droot%26service%3Dz"
        while self.pause(0.05):
            for name in ("next", "continue", "last"):
                self.mallory.ask("GET", f"/v2/evil/y/tags/list?n=10&{name}={forged}")
            sent = [query for query in Evil.queries if "account=root" in query]
            if sent:
                raise Wrong(f"a forged continuation went upstream: {sent[0]!r}")

    # -- meanwhile

    def bystander(self) -> None:
        """Alice pushes and pulls; all has to be whole."""
        number = 0
        while not self.over.is_set():
            number += 1
            begun = time.monotonic()
            tag, layer = f"t{number}", os.urandom(100_000)
            pushed = self.alice.push("alice/app", tag, layer)
            if self.alice.ask("GET", f"/v2/alice/app/manifests/{tag}") != (200, pushed):
                raise Wrong("alice's manifest is not what was pushed")
            if self.alice.ask("GET", f"/v2/alice/app/blobs/{digest_of(layer)}") != (200, layer):
                raise Wrong("alice's layer is not what was pushed")
            self.slowest = max(self.slowest, time.monotonic() - begun)
            self.over.wait(0.1)


ATTACKS: dict[str, Callable[[Attack], None]] = {
    "chunks of one byte": Attack.one_byte_chunks,
    "nested lists": Attack.nested_lists,
    "artifactType of megabytes": Attack.artifact_types,
    "lists not read": Attack.unread_lists,
    "manifests not sent": Attack.announced_manifests,
    "manifests of 9,900 layers": Attack.many_entries,
    "lying HEAD": Attack.lying_head,
    "poisoned ranges and fills": Attack.poisoning,
    "redirects inside": Attack.redirects,
    "forged continuation": Attack.forged_continuation,
    "slow readers": Attack.slow_readers,
}


# -- measuring

HEAD = f"{'attack':27}| healthz worst ms  |  p99   | peak RSS MB | alice's push, s | outcome right?"


def probe(port: int, answered: multiprocessing.Queue[float], over: Synchronized[int]) -> None:
    """In a process of its own: ask ``/healthz`` until it is over."""
    while not over.value:
        begun = time.perf_counter()
        try:
            with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
                connection.request("GET", "/healthz")
                right = connection.getresponse().status == 200
        except (OSError, HTTPException):
            right = False
        answered.put(time.perf_counter() - begun if right else TIMEOUT)
        time.sleep(PROBE_PAUSE)


@contextmanager
def probing(port: int) -> Iterator[multiprocessing.Queue[float]]:
    """Ask ``/healthz`` until the end of the context; yield the seconds that each answer took."""
    context = multiprocessing.get_context("spawn")
    answered: multiprocessing.Queue[float] = context.Queue()
    over = context.Value("i", 0)
    process = context.Process(target=probe, args=(port, answered, over), daemon=True)
    process.start()
    answered.get()  # it has begun
    try:
        yield answered
    finally:
        over.value = 1
        answered.cancel_join_thread()
        process.terminate()
        process.join()


def drained(answered: multiprocessing.Queue[float]) -> list[float]:
    """What has been answered, and the answer that is awaited now."""
    times = []
    while not answered.empty():
        times.append(answered.get())
    return [*times, answered.get()]


def attempt(wrong: list[str], name: str, work: Callable[[], None], over: threading.Event) -> None:
    """Do ``work``, and note what was wrong with it."""
    try:
        work()
    except Wrong as error:
        wrong.append(f"{name}: {error}")
    except (OSError, HTTPException) as error:
        if not over.is_set():
            wrong.append(f"{name}: {error!r}")


def run(
    daemon: Server,
    answered: multiprocessing.Queue[float],
    name: str,
    attacks: list[str],
    seconds: float,
) -> tuple[bool, list[str]]:
    """Run attacks at once, and print their line; return whether all was right, and what was not."""
    wrong: list[str] = []
    attack = Attack(daemon.port)
    daemon.forget_peaks()
    drained(answered)
    with ThreadPoolExecutor(20) as pool, attack.held:
        pool.submit(attempt, wrong, "bystander", attack.bystander, attack.over)
        for each in attacks:
            work = ATTACKS[each].__get__(attack)
            pool.submit(attempt, wrong, each, work, attack.over)
        time.sleep(seconds)
        attack.over.set()
    times = sorted(drained(answered))
    slowest, hundredth = times[-1], times[-1 - len(times) // 100]
    peak = max(daemon.peaks)
    right = not wrong and slowest < SLOWEST and peak < LARGEST
    print(
        f"{name:27}| {slowest * 1000:17.0f} | {hundredth * 1000:6.0f} | {peak / MEGABYTE:11.0f} |"
        f" {attack.slowest:15.1f} | {'no' if wrong else 'yes'}",
        flush=True,
    )
    return right, wrong


def _settings(good: int, evil: int) -> str:
    hashes = {name: digest_of(name.encode()) for name in ("alice", "mallory")}
    return SETTINGS.format(good=good, evil=evil, **hashes)


def main() -> None:
    """Run it all, and print the table."""
    parser = argparse.ArgumentParser(description="Attacks on a daemon of its own.")
    parser.add_argument("--seconds", type=float, default=10, help="of each attack")
    parser.add_argument("--data", type=Path, help="where a private folder is made")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, help="these attacks alone")
    arguments = parser.parse_args()
    with (
        private_folder(arguments.data) as folder,
        Upstream.running() as good,
        Evil.running() as evil,
        artifactd(folder, _settings(good, evil)) as daemon,
        probing(daemon.port) as answered,
    ):
        os.nice(NICENESS)  # the attackers have computers of their own
        Client(daemon.port, "alice").push("alice/secret", "v1", SECRET)
        print(HEAD)
        names = arguments.only or list(ATTACKS)
        outcomes = [run(daemon, answered, "none, to compare with", [], arguments.seconds)]
        outcomes += [run(daemon, answered, name, [name], arguments.seconds) for name in names]
        outcomes.append(run(daemon, answered, "all together", names, arguments.seconds))
    for _, wrong in outcomes:
        for line in wrong:
            print(line)
    if not all(right for right, _ in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
