#!/usr/bin/env python3
"""
artifactd beside Debian's docker-registry, row by row: the table of docs/performance.md.

usage: rows.py [--rounds 3] [--rows NAME,…] [--workers N] [--data FOLDER] [--tree CHECKOUT …]

Starts both with their data below ``--data``, which decides whether a disk or memory is measured
(``/dev/shm``), with their defaults, both with an access log.  Each row is measured of one after the
other, so that the ratios mean something on a machine that does other things as well.  ``--tree``
adds another checkout of artifactd, which has a ``.venv`` of its own.

Prints a table in Markdown: the medians over the rounds, and how many times faster artifactd is than
each of the others.  The rows:

* ``manifest_get_tag``, ``manifest_get_digest``, ``manifest_head_tag``, ``blob_get_4k``,
  ``blob_head``: requests a second of the same small thing, on 16 connections that stay open;
* ``manifest_get_busy``: the first of these while two clients push images to other names;
* ``blob_get_256m_x1`` and ``_x4``: one or four clients that read a blob of 256 MiB, in MB/s of all;
* ``push_chunked_x1`` and ``_x4``: one or four clients that push a blob of 256 MiB by POST, PATCH in
  chunks of HTTP, and PUT; ``push_mono_x4``: by POST and one PUT;
* ``image_push_small``: images a second, of three blobs of 4 KiB and less and a manifest, of 8
  clients;
* ``tags_5k``: milliseconds to list the 5,000 tags of an image, over as many pages as there are.

Needs docker-registry, wrk and hey, which Debian has.  Stops by itself; removes what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from attrs import define, field, frozen
from images import MANIFEST, digest_of, manifest_of
from servers import MEGABYTE, Server, artifactd, docker_registry, private_folder

from artifactd.settings.settings import Settings

ACCEPT = f"Accept: {MANIFEST}"
MEBIBYTE = 1 << 20
LARGE = 256 * MEBIBYTE
SMALL = 4096
CHUNK = 32 * 1024  # what Docker sends at a time
SECONDS = 4  # of a row of requests
CONNECTIONS = 16
PUSHED, PUSHING = 160, 8  # images, and clients that push them
TAGS = 5000
REPEATED = 3  # times that the tags are listed


# -- a client that costs little itself


@frozen
class Answer:
    """
    What was answered.

    :ivar location: the path and query of ``Location``, and ``next`` those of ``Link``; "": none.
    """

    status: int
    body: bytes
    location: str
    next: str


@define
class Client:
    """Asks on one connection."""

    port: int
    connection: socket.socket = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connection = socket.create_connection(("127.0.0.1", self.port), 600)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self.connection.close()

    def begin(self, method: str, path: str, *headers: str) -> None:
        """Send the head of a request."""
        lines = (f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *headers, "", "")
        self.connection.sendall("\r\n".join(lines).encode())

    def ask(self, method: str, path: str, wanted: int, body: bytes = b"", kind: str = "") -> Answer:
        """
        Send a request and read its answer.

        :raises SystemExit: if the status is not ``wanted``: then no figure would mean anything.
        """
        typed = (f"Content-Type: {kind}",) if kind else ()
        length = () if method == "GET" else (f"Content-Length: {len(body)}",)
        lines = (f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *typed, *length)
        self.connection.sendall("\r\n".join((*lines, "", "")).encode() + body)
        return self.answer(wanted)

    def answer(self, wanted: int) -> Answer:
        """Read an answer."""
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._receive()
        head = received[:end].decode()
        found = re.search(r"(?i)\ncontent-length: *(\d+)", head)
        if found:
            size = end + 4 + int(found[1])
            while len(received) < size:
                received += self._receive()
            body = received[end + 4 : size]
        elif "chunked" in head:
            while not received.endswith(b"0\r\n\r\n"):
                received += self._receive()
            body = _unchunked(received[end + 4 :])
        else:
            body = b""
        status = int(head[9:12])
        if status != wanted:
            raise SystemExit(f"{status} instead of {wanted}: {head}\n{body[:300]!r}")
        location = re.search(r"(?i)\nlocation: *(\S+)", head)
        link = re.search(r"(?i)\nlink: *<([^>]+)>", head)
        return Answer(status, body, _relative(location), _relative(link))

    def _receive(self) -> bytes:
        piece = self.connection.recv(1 << 18)
        if not piece:
            raise SystemExit("a connection was closed")
        return piece


def _relative(found: re.Match[str] | None) -> str:
    if found is None:
        return ""
    parts = urlsplit(found[1])
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _unchunked(body: bytes) -> bytes:
    content, position = b"", 0
    while True:
        end = body.index(b"\r\n", position)
        size = int(body[position:end].partition(b";")[0], 16)
        if not size:
            return content
        content += body[end + 2 : end + 2 + size]
        position = end + 4 + size


def push_blob(client: Client, image: str, content: bytes) -> None:
    """Push a small blob by POST and PUT."""
    opened = client.ask("POST", f"/v2/{image}/blobs/uploads/", 202)
    path = _closing(opened.location, digest_of(content))
    client.ask("PUT", path, 201, content, "application/octet-stream")


def _closing(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def push_image(client: Client, image: str, tag: str, layers: int = 2) -> tuple[str, str]:
    """Push an image that no other is like; return the digests of its manifest and a layer."""
    unique = os.urandom(16).hex()
    config = json.dumps({"architecture": "amd64", "os": "linux", "unique": unique}).encode()
    held = [os.urandom(SMALL) for _ in range(layers)]
    for blob in (config, *held):
        push_blob(client, image, blob)
    manifest = manifest_of(config, *held)
    client.ask("PUT", f"/v2/{image}/manifests/{tag}", 201, manifest, MANIFEST)
    return digest_of(manifest), digest_of(held[0])


@frozen
class Large:
    """A blob of :data:`LARGE` bytes: one mebibyte again and again."""

    piece: bytes = field(factory=lambda: os.urandom(MEBIBYTE))
    digest: str = field(init=False)

    @digest.default
    def _hashed(self) -> str:
        hasher = hashlib.sha256()
        for _ in range(LARGE // MEBIBYTE):
            hasher.update(self.piece)
        return f"sha256:{hasher.hexdigest()}"

    def push(self, port: int, image: str, *, chunked: bool) -> None:
        """Push it, by PATCH in chunks and PUT, or by PUT alone."""
        with closing(Client(port)) as client:
            location = client.ask("POST", f"/v2/{image}/blobs/uploads/", 202).location
            if chunked:
                size = f"{CHUNK:x}\r\n".encode()
                pieces = (self.piece[at : at + CHUNK] for at in range(0, MEBIBYTE, CHUNK))
                wire = b"".join(size + piece + b"\r\n" for piece in pieces)
                client.begin("PATCH", location, "Transfer-Encoding: chunked")
                self._send(client, wire)
                client.connection.sendall(b"0\r\n\r\n")
                location = client.answer(202).location
                client.ask("PUT", _closing(location, self.digest), 201)
            else:
                path = _closing(location, self.digest)
                client.begin("PUT", path, f"Content-Length: {LARGE}")
                self._send(client, self.piece)
                client.answer(201)

    @staticmethod
    def _send(client: Client, wire: bytes) -> None:
        for _ in range(LARGE // MEBIBYTE):
            client.connection.sendall(wire)


def read(port: int, path: str) -> None:
    """Read a large blob, and drop it."""
    with closing(Client(port)) as client:
        client.begin("GET", path, "Connection: close")
        buffer, size = bytearray(MEBIBYTE), 0
        while received := client.connection.recv_into(buffer):
            if not size and b" 200 " not in buffer[:20]:
                raise SystemExit(f"not a blob: {bytes(buffer[:200])!r}")
            size += received
        if size < LARGE:
            raise SystemExit(f"{size} bytes of a blob of {LARGE}")


def at_once(*works: Callable[[], object]) -> float:
    """The seconds that some work takes, each in a thread."""
    with ThreadPoolExecutor(len(works)) as threads:
        begun = time.perf_counter()
        for each in [threads.submit(work) for work in works]:
            each.result()
        return time.perf_counter() - begun


# -- the rows


@define
class Rows:
    """
    One server in one round: an image of eight layers, and methods that measure a row.

    :ivar large: is pushed when it is first wanted.
    """

    server: Server
    round: int
    manifest: str = field(init=False)
    layer: str = field(init=False)
    large: Large | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        with closing(Client(self.server.port)) as client:
            self.manifest, self.layer = push_image(client, self.image, "latest", 8)

    @property
    def image(self) -> str:
        return f"bench{self.round}/app"

    def manifest_get_tag(self) -> float:
        return self._requests("manifests/latest")

    def manifest_get_digest(self) -> float:
        return self._requests(f"manifests/{self.manifest}")

    def manifest_head_tag(self) -> float:
        return self._heads("manifests/latest")

    def blob_get_4k(self) -> float:
        return self._requests(f"blobs/{self.layer}")

    def blob_head(self) -> float:
        return self._heads(f"blobs/{self.layer}")

    def manifest_get_busy(self) -> float:
        with self._pushing():
            return self.manifest_get_tag()

    def blob_get_256m_x1(self) -> float:
        return self._reads(1)

    def blob_get_256m_x4(self) -> float:
        return self._reads(4)

    def push_chunked_x1(self) -> float:
        return self._pushes(1, chunked=True)

    def push_chunked_x4(self) -> float:
        return self._pushes(4, chunked=True)

    def push_mono_x4(self) -> float:
        return self._pushes(4, chunked=False)

    def image_push_small(self) -> float:
        numbers = count()

        def push() -> None:
            with closing(Client(self.server.port)) as client:
                while (number := next(numbers)) < PUSHED:
                    push_image(client, f"bench{self.round}/small{number % 20}", f"t{number}")

        return PUSHED / at_once(*[push] * PUSHING)

    def tags_5k(self) -> float:
        image = f"bench{self.round}/many"
        numbers = count()
        with closing(Client(self.server.port)) as client:
            config = b"{}"
            push_blob(client, image, config)
            manifest = manifest_of(config)

            def push() -> None:
                with closing(Client(self.server.port)) as other:
                    while (number := next(numbers)) < TAGS:
                        path = f"/v2/{image}/manifests/v{number:05}"
                        other.ask("PUT", path, 201, manifest, MANIFEST)

            at_once(*[push] * 4)
            return statistics.median(self._listing(client, image) for _ in range(REPEATED))

    @staticmethod
    def _listing(client: Client, image: str) -> float:
        begun, found, path = time.perf_counter(), 0, f"/v2/{image}/tags/list?n={TAGS}"
        while path and found < TAGS:
            answer = client.ask("GET", path, 200)
            found += len(json.loads(answer.body)["tags"])
            path = answer.next
        assert found == TAGS, found
        return (time.perf_counter() - begun) * 1000

    def _requests(self, path: str) -> float:
        said = self._run(["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-H", ACCEPT], path)
        if "Non-2xx" in said:
            raise SystemExit(said)
        return _number(r"Requests/sec:\s+([\d.]+)", said)

    def _heads(self, path: str) -> float:
        # wrk would wait for the body that the answer to a HEAD announces.
        said = self._run(
            ["hey", "-m", "HEAD", "-z", f"{SECONDS}s", "-c", f"{CONNECTIONS}", "-H", ACCEPT],
            path,
        )
        codes = re.findall(r"\[(\d+)\]\s+\d+ responses", said)
        if codes != ["200"]:
            raise SystemExit(said)
        return _number(r"Requests/sec:\s+([\d.]+)", said)

    def _run(self, argv: list[str], path: str) -> str:
        url = f"http://127.0.0.1:{self.server.port}/v2/{self.image}/{path}"
        return subprocess.run([*argv, url], stdout=subprocess.PIPE, text=True, check=True).stdout

    def _reads(self, clients: int) -> float:
        if self.large is None:
            self.large = Large()
            self.large.push(self.server.port, self.image, chunked=False)
        work = partial(read, self.server.port, f"/v2/{self.image}/blobs/{self.large.digest}")
        return clients * LARGE / MEGABYTE / at_once(*[work] * clients)

    def _pushes(self, clients: int, *, chunked: bool) -> float:
        port, image = self.server.port, self.image
        works = [partial(Large().push, port, image, chunked=chunked) for _ in range(clients)]
        return clients * LARGE / MEGABYTE / at_once(*works)

    @contextmanager
    def _pushing(self) -> Iterator[None]:
        """Two clients push images until the end of the context."""
        over = threading.Event()

        def push(number: int) -> None:
            with closing(Client(self.server.port)) as client:
                for each in count():
                    if over.is_set():
                        return
                    push_image(client, f"bench{self.round}/busy{number}", f"t{each}")

        with ThreadPoolExecutor(2) as threads:
            pushing = [threads.submit(push, number) for number in range(2)]
            try:
                yield
            finally:
                over.set()
            for each in pushing:
                each.result()


def _number(pattern: str, said: str) -> float:
    found = re.search(pattern, said)
    if found is None:
        raise SystemExit(said)
    return float(found[1])


UNITS: dict[Callable[[Rows], float], str] = {
    Rows.manifest_get_tag: "req/s",
    Rows.manifest_get_digest: "req/s",
    Rows.manifest_head_tag: "req/s",
    Rows.blob_get_4k: "req/s",
    Rows.blob_head: "req/s",
    Rows.manifest_get_busy: "req/s",
    Rows.blob_get_256m_x1: "MB/s",
    Rows.blob_get_256m_x4: "MB/s",
    Rows.push_chunked_x1: "MB/s",
    Rows.push_chunked_x4: "MB/s",
    Rows.push_mono_x4: "MB/s",
    Rows.image_push_small: "images/s",
    Rows.tags_5k: "ms",
}


def measured(
    servers: dict[str, Server], rows: Sequence[Callable[[Rows], float]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Of each row, of each server by its name, the figure of each round."""
    figures: dict[str, dict[str, list[float]]] = {
        row.__name__: {name: [] for name in servers} for row in rows
    }
    for number in range(rounds):
        of_round = {name: Rows(server, number) for name, server in servers.items()}
        for row in rows:
            for name, measuring in of_round.items():
                figure = row(measuring)
                figures[row.__name__][name].append(figure)
                said = f"round {number}, {row.__name__}, {name}: {figure:.1f}"
                print(said, file=sys.stderr, flush=True)
    return figures


def show(figures: dict[str, dict[str, list[float]]], names: Sequence[str]) -> None:
    """Print the table."""
    first, *others = names
    print(f"| row | unit | {' | '.join(names)} | {' | '.join(f'of {each}' for each in others)} |")
    print("|---" * (2 + len(names) + len(others)) + "|")
    for row, unit in UNITS.items():
        if row.__name__ not in figures:
            continue
        of_row = figures[row.__name__]
        medians = {name: statistics.median(of_row[name]) for name in names}
        ratios = [medians[first] / medians[other] for other in others]
        if unit == "ms":
            ratios = [1 / ratio for ratio in ratios]
        cells = [f"{medians[name]:,.{1 if unit == 'ms' else 0}f}" for name in names]
        cells += [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {row.__name__} | {unit} | {' | '.join(cells)} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="%(default)s")
    parser.add_argument("--rows", help="these alone, with commas between them")
    parser.add_argument(
        "--workers", type=int, default=Settings().processes, help="of artifactd (%(default)s)"
    )
    parser.add_argument("--data", type=Path, help="where the data is kept (a temporary folder)")
    parser.add_argument("--tree", type=Path, action="append", help="another checkout to compare")
    options = parser.parse_args()
    if missing := [name for name in ("docker-registry", "wrk", "hey") if not shutil.which(name)]:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    rows = [row for row in UNITS if not options.rows or row.__name__ in options.rows.split(",")]
    ours = partial(artifactd, workers=options.workers, access_log="text")
    starts: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
        "artifactd": ours,
        "docker-registry": partial(docker_registry, access_log=True),
    }
    for tree in options.tree or ():
        starts[tree.name] = partial(ours, tree=tree.resolve())
    with private_folder(options.data) as folder, ExitStack() as stack:
        servers = {}
        for name, start in starts.items():
            own = folder / name
            own.mkdir()
            servers[name] = stack.enter_context(start(own))
        figures = measured(servers, rows, options.rounds)
    show(figures, list(starts))


if __name__ == "__main__":
    main()
