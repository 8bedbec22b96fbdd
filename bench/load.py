#!/usr/bin/env python3
"""
Many transfers at once against a daemon of its own: how fast, how much memory, how prompt meanwhile.

usage: load.py [--transfers 100] [--mebibytes 50] [--workers 1] [--data FOLDER]

Starts artifactd on a free port of 127.0.0.1 with its defaults, pushes so many different blobs at
once (POST, PATCH, PUT, as Docker does), then pulls them at once, and then pushes as many others
while the first are pulled; each on a connection of its own.  All the while it asks ``/healthz``,
fifty times a second, on a new connection each time.

Printed of each phase:

* the throughput over all transfers, from before the first connection to after the last answer;
* the peak resident memory of each process in the phase (VmHWM), file mappings included: with
  several workers that of the supervisor first;
* the slowest answer of ``/healthz``, the connecting included, and how slow one in a hundred was.

Fails (status 1) if a process had 200 MB, or one in a hundred answers of ``/healthz`` took 50 ms.

The load is in a process of its own at lower priority, and hardly needs the processor: it sends out
of the page cache by sendfile(2), reads and drops, and hashes nothing while the clock runs.  That
all digests are right is seen afterwards.  Stops by itself; removes what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

from attrs import define, field, frozen
from servers import MEGABYTE, Server, artifactd, private_folder

MEBIBYTE = 1 << 20
MOST_MEMORY, MOST_DELAY = 200 * MEGABYTE, 0.05  # of a process; seconds of 99 in 100 answers
NICENESS = 10
PIECE = 256 * 1024  # read at a time by one client
PROBE_PAUSE = 0.02
IDLE_PROBES = 100
UPLOADS = "/v2/load/blobs/uploads/"


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

    @property
    def hundredth(self) -> float:
        """The seconds that one in a hundred took, or more."""
        return sorted(self.times)[-1 - len(self.times) // 100]

    def __str__(self) -> str:
        return (
            f"slowest /healthz {max(self.times) * 1000:.0f} ms,"
            f" 1 in 100 over {self.hundredth * 1000:.0f} ms"
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
    blobs = Blobs.make(2 * number, mebibytes)
    first, second, both = range(number), range(number, 2 * number), range(2 * number)
    work = {
        "push": [(blobs.push, first)],
        "pull": [(blobs.pull, first)],
        "push and pull": [(blobs.push, second), (blobs.pull, first)],
        "check": [(blobs.check, both)],
    }[phase]
    with ThreadPoolExecutor(1 if phase == "check" else 2 * number) as threads:
        begun = time.perf_counter()
        under_way = [threads.submit(do, port, each) for do, which in work for each in which]
        for each in under_way:
            each.result()  # so that what failed is raised here
        return time.perf_counter() - begun


def measure(server: Server, number: int, mebibytes: int) -> bool:
    """Run every phase, and print what was measured; return whether the goals were reached."""
    idle = Probes(server.port)
    for _ in range(IDLE_PROBES):
        idle.ask()
    print(f"idle: {_shown(server.peaks)}, {idle}", flush=True)
    is_good = True
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, os.nice, (NICENESS,)) as load:
        for phase in ("push", "pull", "push and pull"):
            server.forget_peaks()
            probes = Probes(server.port)
            transferring = load.submit(transfer, phase, server.port, number, mebibytes)
            while not transferring.done():
                probes.ask()
            transfers = number * (2 if "and" in phase else 1)
            speed = transfers * mebibytes * MEBIBYTE / MEGABYTE / transferring.result()
            peaks = server.peaks
            is_good &= max(peaks) < MOST_MEMORY and probes.hundredth < MOST_DELAY
            print(
                f"{number} x {phase} of {mebibytes} MiB at once: {speed:.0f} MB/s,"
                f" {_shown(peaks)}, {probes}",
                flush=True,
            )
        load.submit(transfer, "check", server.port, number, mebibytes).result()
    print("all digests are right")
    return is_good


def _shown(peaks: list[float]) -> str:
    return f"peak {' + '.join(f'{peak / MEGABYTE:.0f}' for peak in peaks)} MB resident"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--transfers", type=int, default=100, help="so many at once (%(default)s)")
    parser.add_argument("--mebibytes", type=int, default=50, help="of so many MiB (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="of the daemon (%(default)s)")
    parser.add_argument("--data", type=Path, help="where to keep the data (a temporary folder)")
    options = parser.parse_args()
    with (
        private_folder(options.data) as folder,
        artifactd(folder, workers=options.workers) as server,
    ):
        is_good = measure(server, options.transfers, options.mebibytes)
    if not is_good:
        raise SystemExit("a goal was missed: 200 MB a process, 50 ms for 99 in 100 of /healthz")


if __name__ == "__main__":
    main()
