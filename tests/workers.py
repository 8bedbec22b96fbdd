"""A daemon of several workers, in processes of their own."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Mapping
from http.client import HTTPConnection

from tests.process import Daemon
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


def worker_of(connection: HTTPConnection) -> int:
    """The process that serves a connection."""
    connection.request("GET", "/status")
    return int(json.loads(connection.getresponse().read())["pid"])
