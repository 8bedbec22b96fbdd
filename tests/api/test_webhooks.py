"""Webhooks of a whole daemon: what clients do reaches a receiver."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from twisted.web.server import Request

from tests.api.served import Served, image_manifest
from tests.programs import reactor
from tests.upstreams.serving import Server


class Hook:
    """
    A receiver on loopback.

    :ivar bodies: the requests' bodies, in their order.
    :ivar status: what it answers.
    """

    def __init__(self, test: TestCase) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.fields: list[dict[bytes, Any]] = []
        self.status = 200
        self._came: Deferred[None] = Deferred()
        self._server = Server(reactor, "127.0.0.1", self._answer)
        self._server.start()
        test.addCleanup(self._server.stop)
        self.url = f"http://{self._server.host}/hook"

    async def _answer(self, request: Request) -> None:
        assert request.content is not None
        self.bodies.append(json.loads(request.content.read()))
        self.fields.append(dict(request.requestHeaders.getAllRawHeaders()))
        request.setResponseCode(self.status)
        request.finish()
        came, self._came = self._came, Deferred()
        came.callback(None)

    async def wait_for(self, count: int) -> list[dict[str, Any]]:
        """The bodies, once there are so many."""
        while len(self.bodies) < count:
            await self._came
        return self.bodies


class WebhookTests(TestCase):
    def setUp(self) -> None:
        self.hook = Hook(self)
        self.cloud = Hook(self)
        self.registry = Served.start(
            self,
            f"""
            [webhook.ci]
            url = "{self.hook.url}"
            [webhook.cloud]
            url = "{self.cloud.url}"
            format = "cloudevents"
            events = ["tag_moved", "quota"]
            images = ["local/*"]
            [repository.local]
            kind = "local"
            [repository.small]
            kind = "local"
            quota = "1KiB"
            """,
        )

    async def test_a_push_and_a_delete_reach_a_receiver(self) -> None:
        digest = await self.registry.push_image("team/app", "v1", b"layer")
        headers = {"User-Agent": "x" * 1000, "Host": "registry.example:5000"}
        await self.registry.request("DELETE", f"/v2/team/app/manifests/{digest}", headers=headers)
        bodies = await self.hook.wait_for(3)
        push, tag, manifest = (body["events"][0] for body in bodies)
        self.assertEqual("push", push["action"])
        self.assertEqual(
            ("team/app", "v1", str(digest)),
            (push["target"]["repository"], push["target"]["tag"], push["target"]["digest"]),
        )
        self.assertEqual("PUT", push["request"]["method"])
        self.assertEqual("127.0.0.1", push["request"]["addr"])
        self.assertEqual({}, push["actor"])
        self.assertEqual(("delete", "v1"), (tag["action"], tag["target"]["tag"]))
        self.assertNotIn("tag", manifest["target"])
        self.assertEqual("registry.example:5000", manifest["request"]["host"])
        self.assertEqual(255, len(manifest["request"]["useragent"]))

    async def test_what_is_read_or_refused_is_not_told(self) -> None:
        await self.registry.push_image("app", "v1", b"layer")
        await self.registry.request("GET", "/v2/app/manifests/v1")
        await self.registry.request("DELETE", "/v2/app/manifests/v2")
        await self.registry.request("PUT", "/v2/app/manifests/v3", image_manifest(b"absent"))
        await self.registry.push_image("app", "v4", b"layer")
        bodies = await self.hook.wait_for(2)
        self.assertEqual(["v1", "v4"], [body["events"][0]["target"]["tag"] for body in bodies])

    async def test_a_tag_that_moves_is_told_as_a_cloudevent(self) -> None:
        first = await self.registry.push_image("app", "v1", b"one")
        second = await self.registry.push_image("app", "v1", b"two")
        (event,) = await self.cloud.wait_for(1)
        self.assertEqual(("artifactd.tag_moved", "local/app:v1"), (event["type"], event["subject"]))
        data = event["data"]
        self.assertEqual((str(second), str(first)), (data["digest"], data["before"]))
