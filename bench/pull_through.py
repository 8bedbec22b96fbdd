#!/usr/bin/env python3
"""
Pulls through a cache beside the same pulls straight from the upstream, and through a peer.

usage: pull_through.py [--mebibytes 1024] [--rounds 3] [--data FOLDER]

The upstream is Debian's docker-registry with one blob; in front of it artifactd, and another
docker-registry in its proxy mode (``--without-peer`` leaves that out).  Each round has fresh
caches.

Printed, medians over the rounds:

* cold: one client, nothing cached: throughput, and when the first byte of the body came;
* warm: the same once more;
* cold x20: twenty clients at once, nothing cached: throughput over all of them, and how often the
  upstream sent the blob, as artifactd counts its bytes.

Every client reads all of the body and hashes it after the clock has stopped.  Stops by itself and
removes what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

from attrs import frozen

MEBIBYTE = 1 << 20
MEGABYTE = 1e6
PIECE = 1 << 20
CLIENTS = 20
IMAGE = "library/bench"


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


@contextmanager
def running(argv: list[str], port: int, **environment: str) -> Iterator[int]:
    """A server in a process of its own, once it listens on ``port``."""
    with subprocess.Popen(
        argv,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    ) as process:
        try:
            _wait(port, process)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"{process.args} has ended")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{process.args} does not listen")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def docker_registry(folder: Path, name: str, upstream: int | None = None) -> tuple[list[str], int]:
    """How to start Debian's docker-registry, as a proxy of ``upstream`` if given."""
    port = free_port()
    document: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / name)},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if upstream is not None:
        document["proxy"] = {"remoteurl": f"http://127.0.0.1:{upstream}"}
    file = folder / f"{name}.yml"
    file.write_text(json.dumps(document))
    return ["docker-registry", "serve", str(file)], port


def artifactd(folder: Path, name: str, upstream: int) -> tuple[list[str], int, dict[str, str]]:
    """How to start artifactd in front of ``upstream``."""
    port = free_port()
    file = folder / f"{name}.toml"
    file.write_text(
        "[repository.local]\nenabled = false\n"
        f'[repository."docker.io"]\nkind = "remote"\nupstream = "http://127.0.0.1:{upstream}"\n'
    )
    environment = {
        "ARTIFACTD_LISTEN": f"tcp:{port}:interface=127.0.0.1",
        "ARTIFACTD_DATA": str(folder / name),
        "ARTIFACTD_ACCESS_LOG": "off",
    }
    return [sys.executable, "-m", "artifactd", "--config", str(file)], port, environment


def push(port: int, size: int) -> str:
    """Push one blob of ``size`` random bytes; its digest."""
    piece = os.urandom(MEBIBYTE)
    hasher = hashlib.sha256()
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", f"/v2/{IMAGE}/blobs/uploads/")
    answer = connection.getresponse()
    answer.read()
    location = re.sub(r"^http://[^/]+", "", answer.headers["Location"])

    def pieces() -> Iterator[bytes]:
        for number in range(size // MEBIBYTE):
            content = number.to_bytes(8, "big") + piece[8:]
            hasher.update(content)
            yield content

    connection.request("PATCH", location, pieces(), {"Content-Length": str(size)})
    answer = connection.getresponse()
    answer.read()
    location = re.sub(r"^http://[^/]+", "", answer.headers["Location"])
    digest = f"sha256:{hasher.hexdigest()}"
    connection.request("PUT", f"{location}&digest={digest}", headers={"Content-Length": "0"})
    assert connection.getresponse().status == 201
    return digest


def received(port: int) -> float:
    """Bytes that artifactd has had from its upstream."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    found = re.search(r"^artifactd_upstream_bytes_total\S* (\S+)$", text, re.MULTILINE)
    return 0.0 if found is None else float(found[1])


@frozen
class Figures:
    """What one round has measured of one way to the blob."""

    cold: Pull
    warm: Pull
    many: float


def measured(port: int, again: int, path: str, digest: str, pool: ProcessPoolExecutor) -> Figures:
    """Pull cold and warm from ``port``, and with many clients from ``again``, which is cold too."""
    cold = pool.submit(unchecked, port, path, digest).result()
    warm = pool.submit(unchecked, port, path, digest).result()
    assert pull(port, path, digest).digest == digest
    begun = time.perf_counter()
    pulls = list(pool.map(unchecked, [again] * CLIENTS, [path] * CLIENTS, [digest] * CLIENTS))
    took = time.perf_counter() - begun
    assert len(pulls) == CLIENTS
    assert pull(again, path, digest).digest == digest
    return Figures(cold, warm, took)


def report(name: str, size: int, figures: list[Figures], base: list[Figures]) -> None:
    """One line for one way to the blob, and its ratios to the upstream itself."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    cold, warm = ([getattr(f, kind).last for f in figures] for kind in ("cold", "warm"))
    ratio = median([b.cold.last / f.cold.last for f, b in zip(figures, base, strict=True)])
    warmer = median([b.cold.last / f.warm.last for f, b in zip(figures, base, strict=True)])
    later = median([f.cold.first - b.cold.first for f, b in zip(figures, base, strict=True)])
    print(
        f"{name:16} cold {size / median(cold) / MEGABYTE:6.0f} MB/s ({ratio:4.2f} of the upstream)"
        f"  first byte {later * 1000:+7.1f} ms"
        f"  warm {size / median(warm) / MEGABYTE:6.0f} MB/s ({warmer:4.2f})"
        f"  cold x{CLIENTS} {CLIENTS * size / median([f.many for f in figures]) / MEGABYTE:6.0f}"
        " MB/s"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Pulls through a cache, cold and warm.")
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=None, help="a folder to make another one in")
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    size = options.mebibytes * MEBIBYTE
    folder = Path(tempfile.mkdtemp(prefix="pull-through-", dir=options.data))
    try:
        _measure(folder, size, options.rounds, peer=not options.without_peer)
    finally:
        shutil.rmtree(folder)


def _measure(folder: Path, size: int, rounds: int, *, peer: bool) -> None:
    direct: list[Figures] = []
    ours: list[Figures] = []
    theirs: list[Figures] = []
    upstream_bytes: list[float] = []
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(CLIENTS))
        argv, upstream = docker_registry(folder, "upstream")
        stack.enter_context(running(argv, upstream))
        digest = push(upstream, size)
        for number in range(rounds):
            path = f"/v2/{IMAGE}"
            direct.append(measured(upstream, upstream, path, digest, pool))
            with ExitStack() as caches:
                ports = []
                for which in ("one", "many"):
                    argv, port, environment = artifactd(
                        folder, f"artifactd-{number}-{which}", upstream
                    )
                    ports.append(caches.enter_context(running(argv, port, **environment)))
                ours.append(measured(*ports, f"/v2/docker.io/{IMAGE}", digest, pool))
                upstream_bytes.append(received(ports[1]))
            if peer:
                with ExitStack() as caches:
                    ports = []
                    for which in ("one", "many"):
                        argv, port = docker_registry(folder, f"peer-{number}-{which}", upstream)
                        ports.append(caches.enter_context(running(argv, port)))
                    theirs.append(measured(*ports, path, digest, pool))
            for stale in [*folder.glob("artifactd-*-*/"), *folder.glob("peer-*-*/")]:
                if stale.is_dir():
                    shutil.rmtree(stale)
    report("upstream", size, direct, direct)
    report("artifactd", size, ours, direct)
    print(
        f"{'':16} cold x{CLIENTS}: the upstream sent the blob"
        f" {statistics.median(upstream_bytes) / size:.3f} times"
    )
    if peer:
        report("docker-registry", size, theirs, direct)


if __name__ == "__main__":
    main()
