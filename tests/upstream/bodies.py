"""Tests with the body of one answer."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from artifactd.upstream.http.errors import Unreachable
from artifactd.upstream.http.response import Response
from tests.upstream.wire import Peer, TransportCase, head


class BodyCase(TransportCase):
    async def opened(self, *fields: str, body: bytes = b"") -> tuple[Peer, Response]:
        """An answer whose headers have come, and maybe some of ``body``."""
        answer = self.get("/blob?signature=secret")
        peer, _ = await self.server.asked.get()
        peer.send(head("200 OK", *fields), body)
        response: Response = await answer
        return peer, response

    async def round_trip(self) -> None:
        """A request on another connection: all that could be read by now has been."""
        for _ in range(3):
            answer = self.get("/round-trip")
            peer, _ = await self.server.asked.get()
            peer.answer()
            await (await answer).read(0)

    async def reason(self, failing: Deferred[Any], kind: type[Unreachable] = Unreachable) -> str:
        error = await self.error(failing, kind)
        host = f"127.0.0.1:{self.server.port} "
        self.assertTrue(error.reason.startswith(host), error.reason)
        return error.reason.removeprefix(host)
