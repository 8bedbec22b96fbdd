#!/usr/bin/env python3
"""
Pulls through a cache beside the same pulls straight from the upstream, and through a peer.

usage: pull_through.py [--mebibytes 1024] [--rate 200] [--rounds 3] [--workers 1] [--data FOLDER]

The upstream has one blob, and gives so many MB/s to each connection (0: as fast as it can); in
front of it artifactd, and Debian's docker-registry in its proxy mode (``--without-peer`` leaves
that out).  Each round has fresh caches.

Printed, medians over the rounds:

* cold: one client, nothing cached: throughput, and when the first byte of the body came;
* warm: the same once more;
* the processor time that the cache took for each GiB, cold and warm, until a second after the last
  byte; and its ratio to that of docker-registry;
* cold x20: twenty clients at once, nothing cached: throughput over all of them, and how often the
  upstream sent the blob, as artifactd counts its bytes.

Every client reads all of the body, and another pull after that hashes it.  Stops by itself and
removes what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

from attrs import frozen
from servers import MEGABYTE, Server, artifactd, docker_registry, private_folder

MEBIBYTE = 1 << 20
PIECE = 1 << 20
SENT = 256 * 1024  # at a time by the upstream
SETTLE = 1.0  # seconds after the last byte until the processor time is looked at
CLIENTS = 20
IMAGE = "library/bench"
SETTINGS = """\
[repository.local]
enabled = false

[repository."docker.io"]
kind = "remote"
upstream = "http://127.0.0.1:{upstream}"
"""

# -- the upstream


class Blob(BaseHTTPRequestHandler):
    """
    Answers every GET of a blob with the only one, at ``rate`` bytes a second; 0: no limit.

    :ivar file: a descriptor of its ``size`` bytes, in memory.
    """

    protocol_version = "HTTP/1.1"
    file: int
    size: int
    digest: str
    rate: float

    def do_GET(self) -> None:
        is_blob = "/blobs/" in self.path
        self.send_response(200)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(self.size if is_blob else 0))
        self.send_header("Docker-Content-Digest", self.digest)
        self.end_headers()
        if is_blob and self.command == "GET":
            self._send()

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _send(self) -> None:
        self.wfile.flush()
        begun, sent = time.perf_counter(), 0
        while sent < self.size:
            count = min(SENT, self.size - sent)
            sent += os.sendfile(self.connection.fileno(), self.file, sent, count)
            if self.rate and (early := begun + sent / self.rate - time.perf_counter()) > 0:
                time.sleep(early)

    def handle(self) -> None:
        with suppress(OSError):  # the cache has gone
            super().handle()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def serve(size: int, rate: float, told: Connection) -> None:
    """In a process of its own: be the upstream, and tell its port and the digest of its blob."""
    Blob.file, Blob.size, Blob.rate = os.memfd_create("blob"), size, rate
    piece = os.urandom(MEBIBYTE)
    hasher = hashlib.sha256()
    for number in range(size // MEBIBYTE):
        content = number.to_bytes(8, "big") + piece[8:]
        hasher.update(content)
        os.write(Blob.file, content)
    Blob.digest = f"sha256:{hasher.hexdigest()}"
    with ThreadingHTTPServer(("127.0.0.1", 0), Blob) as server:
        server.daemon_threads = True
        told.send((server.server_port, Blob.digest))
        server.serve_forever()


@contextmanager
def upstream(size: int, rate: float) -> Iterator[tuple[int, str]]:
    """The upstream, until the end of the context: its port, and the digest of its blob."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(size, rate, theirs), daemon=True)
    process.start()
    try:
        port, digest = ours.recv()
        yield port, digest
    finally:
        process.terminate()
        process.join()


# -- measuring


@frozen
class Pull:
    """One pull: seconds to the first byte of the body, and to the last; the digest of it all."""

    first: float
    last: float
    digest: str


def pull(port: int, path: str, digest: str, *, check: bool = True) -> Pull:
    """GET a blob, to its end."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    begun = time.perf_counter()
    connection.request("GET", f"{path}/blobs/{digest}")
    response = connection.getresponse()
    assert response.status == 200, (response.status, response.read())
    buffer = bytearray(PIECE)
    hasher = hashlib.sha256()
    first, spent = 0.0, 0.0
    while count := response.readinto(buffer):
        now = time.perf_counter()
        first = first or now - begun - spent
        if check:
            hasher.update(memoryview(buffer)[:count])
            spent += time.perf_counter() - now
    took = time.perf_counter() - begun - (spent if check else 0)
    connection.close()
    return Pull(first, took, f"sha256:{hasher.hexdigest()}" if check else digest)


def unchecked(port: int, path: str, digest: str) -> Pull:
    """As :func:`pull`, the bytes dropped: for figures."""
    return pull(port, path, digest, check=False)


def received(port: int) -> float:
    """Bytes that artifactd has had from its upstream; 0 if it is not artifactd."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    found = re.search(r"^artifactd_upstream_bytes_total\S* (\S+)$", text, re.MULTILINE)
    return 0.0 if found is None else float(found[1])


@frozen
class Figures:
    """
    What one round has measured of one way to the blob.

    :ivar cold_cost, warm_cost: seconds of processor time of the cache.
    :ivar many: the seconds that twenty clients took together.
    """

    cold: Pull
    warm: Pull
    cold_cost: float
    warm_cost: float
    many: float


def straight(port: int, digest: str, pool: ProcessPoolExecutor) -> Figures:
    """Pull straight from the upstream."""
    path = f"/v2/{IMAGE}"
    cold, warm = (pool.submit(unchecked, port, path, digest).result() for _ in range(2))
    return Figures(cold, warm, 0.0, 0.0, _many(port, path, digest, pool))


def cached(
    start: Callable[[Path], AbstractContextManager[Server]],
    folder: Path,
    path: str,
    digest: str,
    pool: ProcessPoolExecutor,
) -> tuple[Figures, float]:
    """Pull through fresh caches; return also the bytes that the upstream sent to twenty clients."""
    caches = [Path(tempfile.mkdtemp(dir=folder)) for _ in range(2)]
    try:
        with start(caches[0]) as server:
            cold, cold_cost = _costly(server, path, digest, pool)
            warm, warm_cost = _costly(server, path, digest, pool)
            assert pull(server.port, path, digest).digest == digest
        with start(caches[1]) as server:
            many = _many(server.port, path, digest, pool)
            assert pull(server.port, path, digest).digest == digest
            sent = received(server.port)
    finally:
        for cache in caches:
            shutil.rmtree(cache)
    return Figures(cold, warm, cold_cost, warm_cost, many), sent


def _costly(
    server: Server, path: str, digest: str, pool: ProcessPoolExecutor
) -> tuple[Pull, float]:
    """One pull, and the processor time that the cache took for it."""
    before = server.processor_time
    pulled = pool.submit(unchecked, server.port, path, digest).result()
    time.sleep(SETTLE)
    return pulled, server.processor_time - before


def _many(port: int, path: str, digest: str, pool: ProcessPoolExecutor) -> float:
    begun = time.perf_counter()
    list(pool.map(unchecked, [port] * CLIENTS, [path] * CLIENTS, [digest] * CLIENTS))
    return time.perf_counter() - begun


def report(
    name: str, size: int, figures: list[Figures], base: list[Figures], peer: list[Figures]
) -> None:
    """One line for one way to the blob, with its ratios to the upstream itself and to the peer."""
    median = statistics.median
    cold, warm = ([getattr(f, kind).last for f in figures] for kind in ("cold", "warm"))
    ratio = median([b.cold.last / f.cold.last for f, b in zip(figures, base, strict=True)])
    warmer = median([b.cold.last / f.warm.last for f, b in zip(figures, base, strict=True)])
    later = median([f.cold.first - b.cold.first for f, b in zip(figures, base, strict=True)])
    print(
        f"{name:16} cold {size / median(cold) / MEGABYTE:6.0f} MB/s ({ratio:4.3f} of the upstream)"
        f"  first byte {later * 1000:+7.1f} ms"
        f"  warm {size / median(warm) / MEGABYTE:6.0f} MB/s ({warmer:4.2f})"
        f"  cold x{CLIENTS} {CLIENTS * size / median([f.many for f in figures]) / MEGABYTE:6.0f}"
        " MB/s"
    )
    if figures is not base:
        costs = []
        for kind in ("cold", "warm"):
            cost = median([getattr(f, f"{kind}_cost") for f in figures])
            other = median([getattr(f, f"{kind}_cost") for f in peer]) if peer else 0.0
            beside = f" ({cost / other:.2f} of docker-registry's)" if other else ""
            costs.append(f"{kind} {cost * (1 << 30) / size:5.2f}{beside}")
        print(f"{'':16} seconds of processor time a GiB: {', '.join(costs)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Pulls through a cache, cold and warm.")
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=200, help="MB/s of the upstream; 0: no limit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="of artifactd (%(default)s)")
    parser.add_argument("--data", type=Path, default=None, help="a folder to make another one in")
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    with private_folder(options.data) as folder:
        _measure(folder, options)


def _measure(folder: Path, options: argparse.Namespace) -> None:
    direct: list[Figures] = []
    ours: list[Figures] = []
    theirs: list[Figures] = []
    upstream_bytes: list[float] = []
    size = options.mebibytes * MEBIBYTE
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(CLIENTS))
        port, digest = stack.enter_context(upstream(size, options.rate * MEGABYTE))
        cache = partial(artifactd, settings=SETTINGS.format(upstream=port), workers=options.workers)
        peer = partial(docker_registry, upstream=port)
        for _ in range(options.rounds):
            direct.append(straight(port, digest, pool))
            figures, sent = cached(cache, folder, f"/v2/docker.io/{IMAGE}", digest, pool)
            ours.append(figures)
            upstream_bytes.append(sent)
            if not options.without_peer:
                figures, _ = cached(peer, folder, f"/v2/{IMAGE}", digest, pool)
                theirs.append(figures)
    report("upstream", size, direct, direct, theirs)
    report("artifactd", size, ours, direct, theirs)
    print(
        f"{'':16} cold x{CLIENTS}: the upstream sent the blob"
        f" {statistics.median(upstream_bytes) / size:.3f} times"
    )
    if theirs:
        report("docker-registry", size, theirs, direct, [])


if __name__ == "__main__":
    main()
