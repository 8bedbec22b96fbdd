"""A daemon of several workers, in processes of their own."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection
from random import Random
from threading import Event

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.process import Daemon, Fresh
from tests.programs import PATIENCE, Process, Result, run_module, wait_for
from tests.upstreams.settings import beside_no_upstream


def running(pid: int) -> bool:
    """Whether a process that is not a child of this one runs; nobody may wait for its end."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([process], [], [], 0)[0]
    finally:
        os.close(process)


class Workers(Daemon):
    """
    A daemon of several workers.

    :cvar worker: the module of its workers; "": that of artifactd.
    """

    worker = ""

    def run(self, environment: Mapping[str, str]) -> Process:
        return super().run({**environment, "TEST_WORKER": self.worker})

    async def all_ready(self, number: int) -> list[int]:
        """Wait until so many workers have become ready."""
        await wait_for(lambda: len(self.pids()) >= number)
        return self.pids()

    def configure(self, toml: str) -> None:
        """Write another settings file, which no process has read yet."""
        self._config.write_text(beside_no_upstream(toml))

    async def reload(self) -> Result:
        """Run ``artifactd reload``."""
        environment = {"ARTIFACTD_DATA": str(self.data)}
        return await run_module(
            self._test, "artifactd.commands.main", "reload", env=environment, check=False
        )

    def connect(self) -> HTTPConnection:
        """Make a connection that is kept open."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.connect()
        return connection


class FreshWorkers(Fresh, Workers):
    """The same, which are new interpreters too."""


class Busy:
    """
    Clients that push and pull small blobs, each on a connection of its own, until :meth:`ended`.

    :param number: of the clients.
    """

    def __init__(self, test: TestCase, daemon: Workers, number: int = 3) -> None:
        self._daemon = daemon
        self._stop = Event()
        test.addCleanup(self._stop.set)
        self._asking = [deferToThread(self._ask, Random(seed)) for seed in range(number)]

    async def ended(self) -> list[int]:
        """
        Let them end.  Returns how many requests of each have been answered.

        :raises AssertionError: if one was not answered well.
        """
        self._stop.set()
        return [await asking for asking in self._asking]

    def _ask(self, random: Random) -> int:
        answered = 0
        with closing(self._daemon.connect()) as connection:
            while not self._stop.is_set():
                blob = random.randbytes(1000)
                digest = Digest.of(blob)
                path = f"/v2/crash/blobs/uploads/?digest={digest}"
                for method, where, body, right in (
                    ("POST", path, blob, 201),
                    ("GET", f"/v2/crash/blobs/{digest}", None, 200),
                ):
                    connection.request(method, where, body)
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status == right, answer.status
                    answered += 1
        return answered


def worker_of(connection: HTTPConnection) -> int:
    """The process that serves a connection."""
    connection.request("GET", "/status")
    return int(json.loads(connection.getresponse().read())["pid"])
