"""A receiver of webhooks on loopback."""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from twisted.web.server import Request

from tests.programs import reactor
from tests.upstreams.serving import Server


@frozen
class Told:
    """
    A request that it got.

    :ivar id: the message's.
    """

    id: str
    body: dict[str, Any]

    @property
    def event(self) -> dict[str, Any]:
        """The one event in an envelope of distribution's."""
        (event,) = self.body["events"]
        return dict(event)

    @property
    def tag(self) -> tuple[str, str]:
        """The image and the tag."""
        return self.event["target"]["repository"], self.event["target"].get("tag", "")


class Hook:
    """
    :ivar told: the requests that it got, in their order.
    :ivar status: what it answers; 0: nothing.
    """

    def __init__(self, test: TestCase) -> None:
        self.told: list[Told] = []
        self.status = 200
        self._came: Deferred[None] = Deferred()
        self._server = Server(reactor, "127.0.0.1", self._answer)
        self._server.start()
        test.addCleanup(self._server.stop)
        self.url = f"http://{self._server.host}/hook?token=t0ken"

    async def _answer(self, request: Request) -> None:
        assert request.content is not None
        body = json.loads(request.content.read())
        self.told.append(Told(request.getHeader("webhook-id") or "", body))
        came, self._came = self._came, Deferred()
        came.callback(None)
        if not self.status:
            await Deferred()
        request.setResponseCode(self.status)
        request.finish()

    async def wait_for(self, count: int) -> list[Told]:
        """The requests, once there are so many."""
        while len(self.told) < count:
            await self._came
        return self.told
