#!/usr/bin/env python3
"""
Many transfers at once against a daemon of its own: how fast, how much memory, how prompt meanwhile.

usage: load.py [--transfers 100] [--mebibytes 50] [--data FOLDER]

Starts artifactd on a free port of 127.0.0.1 with its defaults, pushes so many different blobs at
once (POST, PATCH, PUT, as Docker does), then pulls them at once; each on a connection of its own.
All the while it asks ``/healthz``, twenty times a second, on a new connection each time.

Printed of each phase:

* the throughput over all transfers, from before the first connection to after the last answer;
* the daemon's peak resident memory so far (VmHWM), file mappings included;
* the slowest answer of ``/healthz``, the connecting included, and how slow one in a hundred was.

The load is in a process of its own at lower priority, and hardly needs the processor: it sends out
of the page cache by sendfile(2), reads and drops, and hashes nothing while the clock runs.  That
all digests are right is seen afterwards.  Stops by itself; removes what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

from attrs import define, field, frozen

MEBIBYTE = 1 << 20
MEGABYTE = 1e6
NICENESS = 10
PIECE = 256 * 1024  # read at a time by one client
PROBE_PAUSE = 0.05
IDLE_PROBES = 40
UPLOADS = "/v2/load/blobs/uploads/"


@frozen
class Daemon:
    """artifactd, running."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    @contextmanager
    def running(cls, data: Path) -> Iterator[Daemon]:
        """One that keeps its data in ``data``."""
        environment = {
            **os.environ,
            "ARTIFACTD_LISTEN": "tcp:0:interface=127.0.0.1",
            "ARTIFACTD_DATA": str(data),
            "ARTIFACTD_ACCESS_LOG": "off",
        }
        with subprocess.Popen(
            [sys.executable, "-m", "artifactd"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        ) as process:
            try:
                yield cls(process, _port(process))
            finally:
                process.send_signal(signal.SIGTERM)

    @property
    def peak_memory(self) -> float:
        """The most that was resident so far, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None, status
        return int(found[1]) * 1024


def _port(process: subprocess.Popen[str]) -> int:
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        found = re.search(r"listening on .*127\.0\.0\.1:(\d+)", line)
        if found:
            return int(found[1])
    raise SystemExit("the daemon did not start:\n" + "".join(said))


@define
class Probes:
    """How long ``/healthz`` took each time, in seconds."""

    port: int
    times: list[float] = field(factory=list)

    def ask(self) -> None:
        """Once, and a pause."""
        begun = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        self.times.append(time.perf_counter() - begun)
        connection.close()
        time.sleep(PROBE_PAUSE)

    def __str__(self) -> str:
        times = sorted(self.times)
        hundredth = times[-1 - len(times) // 100]
        return (
            f"slowest /healthz {times[-1] * 1000:.0f} ms, 1 in 100 over {hundredth * 1000:.0f} ms"
        )


@frozen
class Blobs:
    """
    What is transferred: blobs of ``size`` bytes that differ in their last eight.

    :ivar shared: a file in memory, of what they have in common.
    """

    size: int
    shared: int
    digests: tuple[str, ...]

    @classmethod
    @cache
    def make(cls, number: int, mebibytes: int) -> Blobs:
        """So many, of so many MiB each."""
        shared = os.memfd_create("blobs")
        block, hasher = os.urandom(MEBIBYTE), hashlib.sha256()
        for _ in range(mebibytes):
            os.write(shared, block)
            hasher.update(block)
        digests = []
        for index in range(number):
            whole = hasher.copy()
            whole.update(_tail(index))
            digests.append(f"sha256:{whole.hexdigest()}")
        return cls(mebibytes * MEBIBYTE + len(_tail(0)), shared, tuple(digests))

    def push(self, port: int, index: int) -> None:
        """One of them, as Docker does it."""
        connection = HTTPConnection("127.0.0.1", port)
        session = _location(_expect(202, _answer(connection, "POST", UPLOADS)))
        connection.putrequest("PATCH", session)
        connection.putheader("Content-Length", str(self.size))
        connection.endheaders()
        tail = _tail(index)
        sent, end = 0, self.size - len(tail)
        while sent < end:
            sent += os.sendfile(connection.sock.fileno(), self.shared, sent, end - sent)
        connection.send(tail)
        session = _location(_expect(202, connection.getresponse()))
        _expect(201, _answer(connection, "PUT", f"{session}?digest={self.digests[index]}"))
        connection.close()

    def pull(self, port: int, index: int) -> None:
        """One of them, seeing only that all of it comes."""
        connection = HTTPConnection("127.0.0.1", port)
        response = _expect(200, _answer(connection, "GET", self._path(index)))
        piece = bytearray(PIECE)
        received = 0
        while size := response.readinto(piece):
            received += size
        assert received == self.size, f"{received} bytes instead of {self.size}"
        connection.close()

    def check(self, port: int, index: int) -> None:
        """Pull one of them and compare the digest."""
        connection = HTTPConnection("127.0.0.1", port)
        response = _expect(200, _answer(connection, "GET", self._path(index)))
        hasher = hashlib.sha256()
        while piece := response.read(MEBIBYTE):
            hasher.update(piece)
        assert f"sha256:{hasher.hexdigest()}" == self.digests[index], "not the bytes pushed"
        connection.close()

    def _path(self, index: int) -> str:
        return f"/v2/load/blobs/{self.digests[index]}"


def _tail(index: int) -> bytes:
    return index.to_bytes(8, "big")


def _answer(connection: HTTPConnection, method: str, path: str) -> HTTPResponse:
    connection.request(method, path)
    return connection.getresponse()


def _expect(status: int, response: HTTPResponse) -> HTTPResponse:
    assert response.status == status, (response.status, response.read())
    return response


def _location(response: HTTPResponse) -> str:
    response.read()
    return response.headers["Location"]


def transfer(phase: str, port: int, number: int, mebibytes: int) -> float:
    """
    In the process of the load: all blobs at once, or to be checked one after the other.

    The seconds it took.
    """
    blobs = Blobs.make(number, mebibytes)
    work = {"push": blobs.push, "pull": blobs.pull, "check": blobs.check}[phase]
    with ThreadPoolExecutor(1 if phase == "check" else number) as threads:
        begun = time.perf_counter()
        # Each result is asked for, so that what failed is raised here.
        list(threads.map(partial(work, port), range(number)))
        return time.perf_counter() - begun


def measure(daemon: Daemon, number: int, mebibytes: int) -> None:
    """Run every phase against ``daemon`` and print what was measured."""
    idle = Probes(daemon.port)
    for _ in range(IDLE_PROBES):
        idle.ask()
    print(f"idle: {_memory(daemon)}, {idle}", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, os.nice, (NICENESS,)) as load:
        for phase in ("push", "pull"):
            probes = Probes(daemon.port)
            transferring = load.submit(transfer, phase, daemon.port, number, mebibytes)
            while not transferring.done():
                probes.ask()
            speed = number * mebibytes * MEBIBYTE / MEGABYTE / transferring.result()
            print(
                f"{number} x {phase} of {mebibytes} MiB at once: {speed:.0f} MB/s,"
                f" {_memory(daemon)}, {probes}",
                flush=True,
            )
        load.submit(transfer, "check", daemon.port, number, mebibytes).result()
    print("all digests are right")


def _memory(daemon: Daemon) -> str:
    return f"peak {daemon.peak_memory / MEGABYTE:.0f} MB resident"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--transfers", type=int, default=100, help="so many at once (%(default)s)")
    parser.add_argument("--mebibytes", type=int, default=50, help="of so many MiB (%(default)s)")
    parser.add_argument("--data", type=Path, help="where to keep the data (a temporary folder)")
    options = parser.parse_args()
    data = Path(tempfile.mkdtemp(prefix="artifactd-load-", dir=options.data))
    try:
        with Daemon.running(data) as daemon:
            measure(daemon, options.transfers, options.mebibytes)
    finally:
        shutil.rmtree(data)


if __name__ == "__main__":
    main()
