#!/usr/bin/env python3
"""
Many connections that stay open: what one costs in memory and, idle and asking, in processor time.

usage: connections.py [--connections 2000,20000] [--seconds 15] [--workers 1] [--tree CHECKOUT …]
       [--data FOLDER]

Starts artifactd for each number of connections and opens them, from several addresses of
127.0.0.0/8; each asks once for a manifest by its tag.  Then nothing is asked for a while, and then
each connection asks once a second, evenly spread.  ``--tree`` does the same with another checkout,
which has a ``.venv`` of its own, after this one: to compare with an older version, which is always
one process if it has no workers.

Printed of each:

* the memory of a connection: what all processes of the daemon have when each connection has asked
  once, less what they had before the first, pages that they share counted once; and the same when
  the asking is over.  What the kernel has for the sockets is not in it;
* the processor time that the daemon takes while no connection is open, while all are and nothing
  is asked, and while each asks once a second, in hundredths of one core;
* how long an answer took, from the sending of its request to its last byte: the median, and how
  long one in a hundred took; how late one request in a hundred was sent, which says whether the
  clients have kept up, which are processes of their own and need about a core at 20,000 requests a
  second; and the requests that could not be sent because the one before was not answered yet.

Each connection is an open file of the worker that has it: where fewer may be open (``ulimit -Hn``)
there are fewer connections, as the second column tells.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from attrs import define, field
from images import MANIFEST, digest_of, manifest_of
from servers import CHECKOUT, Server, artifactd, has_workers, private_folder

SETTINGS = """\
idle_timeout = "1h"

[limits]
connections = 0
"""
PATH = "/v2/bench/app/manifests/v1"
PER_CLIENT = 10_000  # connections, all from one address
AT_ONCE = 50  # connections that are opened before their answers are awaited
SPARE = 200  # open files beside the connections
TIMEOUT = 600.0  # seconds for an answer
SETTLE = 3.0  # seconds before something is measured that ends by itself


@define
class Answers:
    """
    What clients have measured, in seconds.

    :ivar skipped: requests that were not sent, because the answer before was awaited still.
    """

    took: list[float] = field(factory=list)
    late: list[float] = field(factory=list)
    skipped: int = 0

    def add(self, other: Answers) -> None:
        self.took += other.took
        self.late += other.late
        self.skipped += other.skipped

    def __str__(self) -> str:
        median, hundredth, late = (
            1000 * sorted(values)[-1 - len(values) // part]
            for values, part in ((self.took, 2), (self.took, 100), (self.late, 100))
        )
        return f"{median:9.2f} {hundredth:9.1f} {late:9.1f} {self.skipped:9}"


@define
class Crowd:
    """
    A client: its connections, in one thread.

    :ivar address: the one that it connects from.
    :ivar tail: the last bytes of each answer.
    """

    port: int
    address: str
    tail: bytes
    poll: select.epoll = field(factory=select.epoll)
    sockets: list[socket.socket] = field(factory=list)
    request: bytes = (
        f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {MANIFEST}\r\n\r\n".encode()
    )

    def open(self, count: int) -> None:
        """Open so many connections, and ask once on each."""
        for first in range(0, count, AT_ONCE):
            some = [self._connect() for _ in range(min(AT_ONCE, count - first))]
            for connection in some:
                connection.sendall(self.request)
            for connection in some:
                self._await(connection)
                connection.setblocking(False)
                self.poll.register(connection, select.EPOLLIN)
            self.sockets += some

    def _connect(self) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.bind((self.address, 0))
        connection.settimeout(TIMEOUT)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def _await(self, connection: socket.socket) -> None:
        answer = b""
        while not answer.endswith(self.tail):
            piece = connection.recv(65536)
            answer += piece
            if not piece or not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"not the answer that was expected: {answer[:200]!r}")

    def ask(self, seconds: float) -> Answers:
        """Ask on each connection once a second."""
        count, request, tail = len(self.sockets), self.request, self.tail
        by_descriptor = {each.fileno(): index for index, each in enumerate(self.sockets)}
        sent = [0.0] * count  # when; 0: nothing is awaited
        answers = Answers()
        parts: dict[int, bytes] = {}
        number = awaited = 0
        begun = time.perf_counter()
        total = int(count * seconds)
        while number < total or awaited:
            now = time.perf_counter()
            while number < total and (due := begun + number / count) <= now:
                index = number % count
                number += 1
                if sent[index]:
                    answers.skipped += 1
                    continue
                sent[index] = moment = time.perf_counter()
                answers.late.append(moment - due)
                self.sockets[index].send(request)
                awaited += 1
                if not number % 64:
                    break  # so that answers are not read late because of many requests
            pause = max(0.0, begun + number / count - time.perf_counter()) if number < total else 1
            for descriptor, _ in self.poll.poll(pause, 512):
                index = by_descriptor[descriptor]
                piece = self.sockets[index].recv(65536)
                whole = parts.pop(index, b"") + piece
                if not piece or not whole.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(f"not the answer that was expected: {whole[:200]!r}")
                if whole.endswith(tail):
                    answers.took.append(time.perf_counter() - sent[index])
                    sent[index] = 0.0
                    awaited -= 1
                else:
                    parts[index] = whole
            if time.perf_counter() - begun > seconds + TIMEOUT:
                raise SystemExit(f"{awaited} answers did not come")
        return answers


def crowd(port: int, address: str, tail: bytes, orders: Connection) -> None:
    """In a process of its own: do what is ordered, and answer when it is done."""
    client = Crowd(port, address, tail)
    while True:
        match orders.recv():
            case "open", count:
                client.open(count)
                orders.send(None)
            case "ask", seconds:
                orders.send(client.ask(seconds))
            case _:
                return


def push(port: int) -> bytes:
    """Push an image of a few bytes; return its manifest."""
    config = b"{}"
    manifest = manifest_of(config)
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        for method, path, body in (
            ("POST", f"/v2/bench/app/blobs/uploads/?digest={digest_of(config)}", config),
            ("PUT", PATH, manifest),
        ):
            connection.request(method, path, body, {"Content-Type": MANIFEST})
            answer = connection.getresponse()
            assert answer.status == 201, (answer.status, answer.read())
            answer.read()
    return manifest


def load_of(server: Server, seconds: float) -> float:
    """The share of one core that the daemon takes from now on."""
    begun, before = time.perf_counter(), server.processor_time
    time.sleep(seconds)
    return (server.processor_time - before) / (time.perf_counter() - begun)


@define
class Clients:
    """
    Several clients, each in a process of its own.

    :ivar shares: how many connections each has.
    """

    shares: list[int]
    orders: list[Connection] = field(factory=list)
    processes: list[SpawnProcess] = field(factory=list)

    @classmethod
    @contextmanager
    def running(cls, port: int, tail: bytes, count: int) -> Iterator[Clients]:
        """Clients for ``count`` connections, until the end of the context."""
        number = -(-count // PER_CLIENT)
        clients = cls([count // number + (each < count % number) for each in range(number)])
        context = multiprocessing.get_context("spawn")
        try:
            for index in range(number):
                ours, its = context.Pipe()
                arguments = (port, f"127.0.0.{2 + index}", tail, its)
                process = context.Process(target=crowd, args=arguments, daemon=True)
                process.start()
                its.close()
                clients.orders.append(ours)
                clients.processes.append(process)
            yield clients
        finally:
            for process in clients.processes:
                process.terminate()
                process.join()

    def open(self) -> None:
        """Open all connections."""
        for share, orders in zip(self.shares, self.orders, strict=True):
            orders.send(("open", share))
            orders.recv()

    def ask(self, seconds: float) -> Answers:
        """Ask on each connection once a second."""
        answers = Answers()
        for orders in self.orders:
            orders.send(("ask", seconds))
        for orders in self.orders:
            answers.add(orders.recv())
        return answers


def measure(server: Server, count: int, seconds: float) -> str:
    """Measure with so many connections; return the columns."""
    tail = push(server.port)[-32:]
    with Clients.running(server.port, tail, count) as clients:
        time.sleep(SETTLE)
        alone = load_of(server, seconds)
        before = server.memory
        clients.open()
        time.sleep(SETTLE)
        opened = (server.memory - before) / count
        idle = load_of(server, seconds)
        begun, spent = time.perf_counter(), server.processor_time
        answers = clients.ask(seconds)
        busy = (server.processor_time - spent) / (time.perf_counter() - begun)
        asked = (server.memory - before) / count
    return (
        f"{opened / 1024:9.1f} {asked / 1024:9.1f} {alone * 100:9.2f} {idle * 100:9.2f}"
        f" {busy * 100:9.1f} {answers}"
    )


def open_files() -> int:
    """How many files a process may open, after raising that as far as it may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", default="2000,20000", help="%(default)s")
    parser.add_argument("--seconds", type=float, default=15, help="of each part (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="of the daemon (%(default)s)")
    parser.add_argument("--tree", type=Path, action="append", help="another checkout to compare")
    parser.add_argument("--data", type=Path, help="where to keep the data (a temporary folder)")
    options = parser.parse_args()
    counts = [int(count) for count in options.connections.split(",")]
    most = open_files() - SPARE
    print(
        f"{'':30} {'KiB each':>19} {'% of a core':>29} {'ms of an answer':>19}\n"
        f"{'checkout':20}{'number':>10}"
        + "".join(
            f" {name:>9}"
            for name in (
                "open",
                "asked",
                "without",
                "idle",
                "asking",
                "median",
                "p99",
                "late p99",
                "skipped",
            )
        ),
        flush=True,
    )
    for wanted in counts:
        for tree in [CHECKOUT, *(each.resolve() for each in options.tree or ())]:
            workers = options.workers if has_workers(tree) else 1
            count = min(wanted, most * workers)
            with (
                private_folder(options.data) as folder,
                artifactd(folder, SETTINGS, workers=workers, tree=tree) as server,
            ):
                columns = measure(server, count, options.seconds)
            print(f"{tree.name[:12] + f', {workers} w.':20}{count:10}{columns}", flush=True)


if __name__ == "__main__":
    main()
