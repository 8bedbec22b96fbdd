"""artifactd as a process of its own, and HTTP to ask it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPMessage, HTTPSConnection
from pathlib import Path
from ssl import SSLContext
from typing import Self

from attrs import frozen
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

import artifactd
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest
from tests.catalog.fixture import empty_data
from tests.programs import PATIENCE, Process
from tests.upstreams.settings import beside_no_upstream

CHECKOUT = Path(artifactd.__file__).parents[1]
"""The folder of the package that the tests run."""

# How many processes serve in a daemon of tests that don't say so.
_WORKERS = os.environ.get("TEST_WORKERS", "1")

_READY = re.compile(r"worker (\d+) is ready")


@frozen
class Answer:
    """An HTTP response read to its end."""

    status: int
    headers: HTTPMessage
    body: bytes

    def header(self, name: str) -> str | None:
        """The last field of that name, or ``None``."""
        values = self.headers.get_all(name)
        return values[-1] if values else None


async def request(
    port: int,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    chunked: bool = False,
    seconds: float = PATIENCE,
    tls: SSLContext | None = None,
) -> Answer:
    """
    Ask what listens on ``port`` of 127.0.0.1, on a connection of its own; nothing is followed.

    Blocking code in a thread: it sends what it is told to, and hides no header.

    :param body: sent with its length, or ``chunked``.
    :param tls: speak TLS so.
    """

    def ask() -> Answer:
        connection = (
            HTTPConnection("127.0.0.1", port, timeout=seconds)
            if tls is None
            else HTTPSConnection("127.0.0.1", port, timeout=seconds, context=tls)
        )
        try:
            sent = iter([body]) if chunked and body is not None else body
            connection.request(
                method,
                path,
                sent,
                {"Connection": "close", **(headers or {})},
                encode_chunked=chunked,
            )
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    return await deferToThread(ask)


@frozen
class Behind:
    """
    The TLS that a daemon speaks.

    :ivar files: the options of its endpoint that name them, e.g. ``:key=key.pem:cert=cert.pem``.
    :ivar trusting: by which the tests ask it.
    """

    files: str
    trusting: SSLContext


class Pushed(ABC):
    """A registry that runs, and what tests push to it."""

    @abstractmethod
    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> Answer:
        """Ask it for ``path``, as :func:`request`."""

    async def push_blob(
        self, name: str, content: bytes, algorithm: Algorithm = Algorithm.SHA256
    ) -> Digest:
        """Let image ``name`` hold ``content``; its digest."""
        digest = Digest.of(content, algorithm)
        answer = await self.request("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", content)
        assert answer.status == 201, answer
        return digest

    async def push_manifest(
        self, name: str, reference: str, content: bytes, media_type: str = OCI_MANIFEST
    ) -> Digest:
        """Put a manifest into image ``name``; its digest."""
        answer = await self.request(
            "PUT", f"/v2/{name}/manifests/{reference}", content, {"Content-Type": media_type}
        )
        assert answer.status == 201, answer
        return Digest.parse(answer.header("Docker-Content-Digest") or "")


def reserved_port(test: TestCase) -> int:
    """
    A free port of 127.0.0.1, and during the test of nobody but those told its number.

    A socket is bound to it that does not listen: the kernel gives the port to no other process, not
    even while a daemon that listened there is dead.
    """
    held = socket.socket()
    test.addCleanup(held.close)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    number: int = held.getsockname()[1]
    return number


class Daemon(Pushed):
    """
    artifactd in a process of its own, on a free port of 127.0.0.1; it ends with the test.

    :ivar data: its data folder.
    :ivar port: where it listens; the same after :meth:`restart`.
    :ivar process: the process that runs now, or ran last.
    """

    process: Process

    def __init__(
        self,
        test: TestCase,
        data: Path,
        toml: str,
        settings: Mapping[str, str],
        behind: Behind | None = None,
    ) -> None:
        self.data = data
        self.port = reserved_port(test)
        self._behind = behind
        self._test = test
        self._folder = Path(test.mktemp()).absolute()
        self._folder.mkdir(parents=True)
        self._config = self._folder / "artifactd.toml"
        self._config.write_text(beside_no_upstream(toml))
        self._settings = settings

    @classmethod
    async def start(
        cls,
        test: TestCase,
        *,
        data: Path | None = None,
        toml: str = "",
        behind: Behind | None = None,
        **settings: str,
    ) -> Self:
        """
        Start one and wait until it listens.

        :param data: its data folder; a fresh one if not given.
        :param toml: its settings file, :func:`beside_no_upstream` unless it says otherwise.
        :param behind: the TLS that it speaks; plain HTTP if not given.
        :param settings: given as ``ARTIFACTD_<NAME>``, e.g. ``idle_timeout="1s"``.
        :raises AssertionError: with its output, if it does not start.
        """
        if data is None:
            data = Path(test.mktemp()).absolute()
            empty_data(data)
        self = cls(test, data, toml, settings, behind)
        await self.restart()
        return self

    @property
    def address(self) -> str:
        """``host:port``, as it stands before the name in an image reference."""
        return f"127.0.0.1:{self.port}"

    async def restart(self) -> None:
        """Start it again on the same data and port, once :meth:`kill` has ended it."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ARTIFACTD_")}
        kind, files = "tcp", ""
        if self._behind is not None:
            kind, files = "artifactd-tls", self._behind.files
        environment["ARTIFACTD_LISTEN"] = f"{kind}:{self.port}:interface=127.0.0.1{files}"
        environment["ARTIFACTD_DATA"] = str(self.data)
        environment["ARTIFACTD_WORKERS"] = _WORKERS
        environment |= {f"ARTIFACTD_{name.upper()}": v for name, v in self._settings.items()}
        self.process = self.run(environment)
        await self.process.matched(rf"listening on .*127\.0\.0\.1:{self.port}\b")
        # It handles signals from a moment later on, when its reactor runs.
        answer = await self.request("GET", "/healthz")
        assert answer.status == 200, answer

    def run(self, environment: Mapping[str, str]) -> Process:
        """Begin its process."""
        return Process.fork(
            self._test,
            "artifactd",
            "--config",
            str(self._config),
            env=environment,
            folder=self._folder,
        )

    def pids(self) -> list[int]:
        """The workers that have become ready since it was started last; none if it is alone."""
        return [int(pid) for pid in _READY.findall(self.process.output)]

    async def kill(self, number: int = signal.SIGKILL) -> int:
        """
        Send it a signal and wait for its end; its exit status, or minus the signal.  SIGKILL is
        sent to its workers too, which would else end what is under way.
        """
        ended = self.process.kill(number)
        if number == signal.SIGKILL:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        return await ended

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> Answer:
        """Ask it for ``path``, as :func:`request`."""
        tls = None if self._behind is None else self._behind.trusting
        return await request(
            self.port, method, path, body=body, headers=headers, chunked=chunked, tls=tls
        )


class Fresh(Daemon):
    """
    A daemon started as an operator does it: by a new interpreter, which finds the plugin.

    :ivar path: where that looks for modules first, as in ``PYTHONPATH``.
    """

    path = str(CHECKOUT)

    def run(self, environment: Mapping[str, str]) -> Process:
        return Process.start(
            self._test,
            *(str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile="),
            *("artifactd", "--config", str(self._config)),
            env={**environment, "PYTHONPATH": self.path},
            folder=self._folder,
        )
