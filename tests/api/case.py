"""What the tests of the API have in common."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPResponse
from socket import create_connection
from typing import Any, Self

from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from tests.api.served import Served
from tests.process import Answer
from tests.programs import PATIENCE


@implementer(ILogObserver)
class LogLines:
    """What has been logged, but for the access log and the audit log."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace") not in ("artifactd.access", "artifactd.audit"):
            self.events.append(event)


class ApiTestCase(TestCase):
    """
    :cvar toml: the settings file of the registry.
    :ivar registry: a fresh one.
    :ivar log: what is logged while the test runs.
    """

    toml = ""
    registry: Served

    def setUp(self) -> None:
        self.registry = self.start()
        self.log = LogLines()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)

    def start(self) -> Served:
        """Start the registry of the test."""
        return Served.start(self, self.toml)

    def state(self) -> tuple[list[str], list[str]]:
        """Every file of the store and every row of the catalog."""
        with closing(sqlite3.connect(self.registry.data / "catalog.sqlite3")) as db:
            return self.registry.files(), list(db.iterdump())

    def assert_error(self, answer: Answer, status: int, code: str) -> Any:
        """``answer`` is the spec's JSON for one error; its ``detail``."""
        self.assertEqual((answer.status, _codes(answer)), (status, [code]))
        self.assertEqual(answer.header("Content-Type"), "application/json")
        self.assertEqual(answer.header("Docker-Distribution-Api-Version"), "registry/2.0")
        (error,) = json.loads(answer.body)["errors"]
        self.assertGreater(len(error["message"]), 10)
        return error.get("detail")

    async def refused(
        self,
        status: int,
        code: str,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> Answer:
        """
        Ask for what is answered with an error, changes nothing, and leaves one line in the log
        besides the access log's; none where something is read that is not there.
        """
        await self.registry.parts.pulls.write()  # or it is written meanwhile
        before = self.state()
        self.log.events.clear()
        answer = await self.registry.request(method, path, body, headers, chunked=chunked)
        self.assert_error(answer, status, code)
        self.assertEqual(self.state(), before)
        lines = 0 if status == 404 and method == "GET" else 1
        self.assertEqual(len(self.log.events), lines, self.log.events)
        return answer

    async def accepted(
        self,
        status: int,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> Answer:
        """Ask for what is answered with ``status``."""
        answer = await self.registry.request(method, path, body, headers, chunked=chunked)
        self.assertEqual(answer.status, status, answer.body)
        return answer

    async def start_upload(self, name: str = "hello", query: str = "") -> str:
        """Open an upload session; its URL without the offset: a body sent there is appended."""
        answer = await self.accepted(202, "POST", f"/v2/{name}/blobs/uploads/{query}")
        return (answer.header("Location") or "").partition("?")[0]

    async def assert_offset(self, location: str, offset: int) -> None:
        """The session at ``location`` has ``offset`` bytes, of at least one."""
        status = await self.accepted(204, "GET", location)
        self.assertEqual(status.header("Range"), f"0-{offset - 1}")


def _codes(answer: Answer) -> list[str] | bytes:
    """The codes of the errors in ``answer``, or its body if it has none."""
    try:
        return [error["code"] for error in json.loads(answer.body)["errors"]]
    except (ValueError, KeyError):
        return answer.body


class Connection:
    """A connection on which any bytes may be sent."""

    def __init__(self, test: TestCase, port: int) -> None:
        self._socket = create_connection(("127.0.0.1", port), timeout=PATIENCE)
        test.addCleanup(self._socket.close)

    @classmethod
    async def begin_body(
        cls, test: TestCase, port: int, method: str, path: str, length: int, *headers: str
    ) -> Self:
        """
        Send the headers of a request, and come back when the registry has taken what it is for
        and asks for the ``length`` bytes of its body.
        """
        self = cls(test, port)
        await self.head(
            f"{method} {path}", f"Content-Length: {length}", "Expect: 100-continue", *headers
        )
        expected = b"HTTP/1.1 100 Continue\r\n\r\n"
        invited = await deferToThread(self._socket.recv, len(expected))
        test.assertEqual(invited, expected)
        return self

    async def head(self, request: str, *headers: str) -> None:
        """Send a request's first line, but for the version, and its headers."""
        await self.send("\r\n".join((f"{request} HTTP/1.1", "Host: localhost", *headers, "", "")))

    async def send(self, text: str | bytes) -> None:
        """Send bytes; text goes as Latin-1."""
        await deferToThread(
            self._socket.sendall, text.encode("latin-1") if isinstance(text, str) else text
        )

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer, to a request of ``method``."""

        def read() -> Answer:
            response = HTTPResponse(self._socket, method=method)
            response.begin()
            return Answer(response.status, response.headers, response.read())

        return await deferToThread(read)

    async def rest(self) -> bytes:
        """All that comes until the registry closes the connection."""

        def read() -> bytes:
            with self._socket.makefile("rb") as stream:
                return stream.read()

        return await deferToThread(read)

    def leave(self) -> None:
        """Close it."""
        self._socket.close()
