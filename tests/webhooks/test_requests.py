"""The request that tells an event: both formats, the signature, and what the receiver answers."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.server import Request

from artifactd import __version__
from artifactd.catalog.events import Event, RequestTold
from artifactd.catalog.webhooks import Message
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest, ImageName
from artifactd.settings.values import ReceiverUrl, Secret
from artifactd.settings.webhooks import EventKind, WebhookSettings
from artifactd.webhooks.delivery import Problem, Receiver
from artifactd.webhooks.requests import Source, cloudevent, distribution, signed
from tests.programs import reactor
from tests.upstream.wire import ClockedReactor, make_transport
from tests.upstreams.serving import Server

DIGEST = str(Digest.of(b"{}"))
REQUEST = RequestTold("r1", "10.0.0.1", "registry:5000", "PUT", "docker/27")
PUSH = Event(
    kind=EventKind.PUSH,
    repository="local",
    image="team/app",
    tag="v1",
    digest=DIGEST,
    before=str(Digest.of(b"")),
    media_type=OCI_MANIFEST,
    size=2,
    actor="anne",
    request=REQUEST,
)
QUOTA = Event(kind=EventKind.QUOTA, repository="local", reason="1 byte too much")
MESSAGE = "0a7b4be6-2dd4-4c0a-9d4b-0d3c4b1f6f01"
KEY = b"correct horse battery staple"


def listed(image: ImageName) -> str:
    return image.image if image.repository == "local" else str(image)


SOURCE = Source("https://registry.example.com", "machine", "i1", listed)


def message(event: Event = PUSH) -> Message:
    return Message(7, "ci", event.subject, MESSAGE, 1_700_000_000.25, event, None)


class DistributionTests(SynchronousTestCase):
    def test_a_push(self) -> None:
        """Its fields are those of distribution's events.Event; ours stand in one of their own."""
        media_type, body = distribution(message(), SOURCE)
        self.assertEqual("application/vnd.docker.distribution.events.v2+json", media_type)
        expected = {
            "id": MESSAGE,
            "timestamp": "2023-11-14T22:13:20.250000Z",
            "action": "push",
            "target": {
                "mediaType": OCI_MANIFEST,
                "size": 2,
                "digest": DIGEST,
                "length": 2,
                "repository": "team/app",
                "url": f"https://registry.example.com/v2/team/app/manifests/{DIGEST}",
                "tag": "v1",
            },
            "request": {
                "id": "r1",
                "addr": "10.0.0.1",
                "host": "registry:5000",
                "method": "PUT",
                "useragent": "docker/27",
            },
            "actor": {"name": "anne"},
            "source": {"addr": "machine", "instanceID": "i1"},
            "artifactd": {"subject": "local/team/app", "before": PUSH.before},
        }
        self.assertEqual({"events": [expected]}, json.loads(body))

    def test_what_comes_from_no_request_and_is_about_no_image(self) -> None:
        (event,) = json.loads(distribution(message(QUOTA), SOURCE)[1])["events"]
        self.assertEqual({"id": "", "method": "", "useragent": ""}, event["request"])
        self.assertEqual(({}, {}), (event["target"], event["actor"]))
        self.assertEqual({"subject": "local", "reason": "1 byte too much"}, event["artifactd"])

    def test_a_url_is_never_made_of_what_a_client_says(self) -> None:
        source = Source("", "machine", "i1", listed)
        (event,) = json.loads(distribution(message(), source)[1])["events"]
        self.assertEqual(f"/v2/team/app/manifests/{DIGEST}", event["target"]["url"])


class CloudEventTests(SynchronousTestCase):
    def test_a_push(self) -> None:
        media_type, body = cloudevent(message(), SOURCE)
        self.assertEqual("application/cloudevents+json", media_type)
        expected = {
            "specversion": "1.0",
            "id": MESSAGE,
            "source": "https://registry.example.com",
            "type": "artifactd.push",
            "subject": "local/team/app:v1",
            "time": "2023-11-14T22:13:20.250000Z",
            "datacontenttype": "application/json",
            "data": {
                "subject": "local/team/app",
                "repository": "team/app",
                "tag": "v1",
                "digest": DIGEST,
                "before": PUSH.before,
                "mediaType": OCI_MANIFEST,
                "size": 2,
                "url": f"https://registry.example.com/v2/team/app/manifests/{DIGEST}",
                "actor": "anne",
                "request": {
                    "id": "r1",
                    "addr": "10.0.0.1",
                    "host": "registry:5000",
                    "method": "PUT",
                    "useragent": "docker/27",
                },
            },
        }
        self.assertEqual(expected, json.loads(body))

    def test_required_attributes_are_never_empty(self) -> None:
        source = Source("", "machine", "i1", listed)
        for event in (PUSH, QUOTA, Event(kind="ping"), replace(PUSH, tag="")):
            told = json.loads(cloudevent(message(event), source)[1])
            for attribute in ("specversion", "id", "source", "type"):
                self.assertTrue(told[attribute], attribute)
            # An attribute that is there has a value: CloudEvents, "Context Attributes".
            self.assertNotIn("", told.values())
            self.assertEqual("//machine", told["source"])

    def test_one_by_digest_has_it_in_its_subject(self) -> None:
        told = json.loads(cloudevent(message(replace(PUSH, tag="")), SOURCE)[1])
        self.assertEqual(f"local/team/app@{DIGEST}", told["subject"])


PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"


def verified(fields: dict[str, str], body: bytes, key: bytes, now: float) -> bool:
    """What a receiver that does as docs/webhooks.md tells thinks of a request."""
    code = re.search("^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert code is not None
    receiver: dict[str, Any] = {}
    exec(code[1], receiver)
    receiver["time"] = SimpleNamespace(time=lambda: now)
    secret = f"whsec_{base64.b64encode(key).decode()}"
    return bool(receiver["verify"](fields, body, secret))


class SignatureTests(SynchronousTestCase):
    def test_the_example_of_standard_webhooks(self) -> None:
        key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        body = b'{"test": 2432232314}'
        fields = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330.7, body, [key])
        self.assertEqual(
            {
                "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "webhook-timestamp": "1614265330",
                "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            },
            fields,
        )

    def test_a_receiver_can_verify_it(self) -> None:
        fields = signed(MESSAGE, 1000.0, b"body", [KEY])
        self.assertTrue(verified(fields, b"body", KEY, 1010.0))
        self.assertFalse(verified(fields, b"other", KEY, 1010.0))
        self.assertFalse(verified(fields, b"body", KEY + b".", 1010.0))
        self.assertFalse(verified(fields, b"body", KEY, 2000.0))
        self.assertFalse(verified({**fields, "webhook-id": "x"}, b"body", KEY, 1000.0))

    def test_two_secrets_sign_while_one_is_changed_for_the_other(self) -> None:
        fields = signed(MESSAGE, 1000.0, b"body", [KEY, b"other"])
        self.assertTrue(verified(fields, b"body", KEY, 1000.0))
        self.assertTrue(verified(fields, b"body", b"other", 1000.0))

    def test_without_a_secret_there_is_none(self) -> None:
        self.assertNotIn("webhook-signature", signed(MESSAGE, 1000.0, b"body", []))


class ReceiverTests(TestCase):
    """A real receiver on loopback; timeouts go by a clock."""

    def setUp(self) -> None:
        self.status, self.fields = 200, dict[str, str]()
        self.requests: list[tuple[Request, bytes]] = []
        self.server = Server(reactor, "127.0.0.1", self.answer)
        self.server.start()
        self.addCleanup(self.server.stop)
        self.reactor = ClockedReactor()
        self.transport = make_transport(self.reactor, first_byte_timeout=10)
        self.addCleanup(self.transport.close)

    async def answer(self, request: Request) -> None:
        assert request.content is not None
        self.requests.append((request, request.content.read()))
        if self.status == 0:
            await Deferred()  # never
        request.setResponseCode(self.status)
        for name, value in self.fields.items():
            request.setHeader(name, value)
        request.write(b"<script>")
        request.finish()

    def receiver(self, **settings: Any) -> Receiver:
        url = ReceiverUrl(f"http://{self.server.host}/hook?token=t0p")
        webhook = WebhookSettings(url=url, **settings)
        return Receiver("ci", webhook, self.transport, SOURCE, lambda: 1000.0)

    async def problem(self, **settings: Any) -> Problem:
        problem = await self.receiver(**settings).send(message())
        assert problem is not None
        # Neither the token in the URL nor what the receiver sends comes into a log.
        self.assertNotIn("t0p", problem.text)
        self.assertNotIn("<", problem.text)
        return problem

    async def test_it_gets_the_event(self) -> None:
        receiver = self.receiver(secret=Secret(KEY.decode()), format="cloudevents")
        self.assertIsNone(await receiver.send(message()))
        ((request, body),) = self.requests
        self.assertEqual((b"POST", b"/hook?token=t0p"), (request.method, request.uri))
        fields = {
            name: request.getHeader(name) or ""
            for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
        }
        self.assertEqual(UUID(MESSAGE), UUID(fields["webhook-id"]))
        self.assertTrue(verified(fields, body, KEY, 1000.0))
        self.assertEqual("application/cloudevents+json", request.getHeader("content-type"))
        self.assertEqual(f"artifactd/{__version__}", request.getHeader("user-agent"))
        self.assertEqual((media := cloudevent(message(), SOURCE))[1], body, media[0])

    async def test_every_2xx_is_a_delivery(self) -> None:
        for self.status in (200, 201, 202, 299):
            self.assertIsNone(await self.receiver().send(message()))
        self.status = 204
        self.assertIsNone(await self.receiver().send(message()))

    async def test_other_statuses_are_failures(self) -> None:
        host = self.server.host
        for status, is_receivers in (
            (400, False),
            (401, False),
            (404, False),
            (500, False),
            (410, True),
            (429, True),
            (503, True),
        ):
            self.status = status
            problem = await self.problem()
            self.assertEqual(
                (f"{host} answers {status}", is_receivers), (problem.text, problem.is_receivers)
            )

    async def test_a_receiver_that_is_gone_for_good_is_asked_least(self) -> None:
        self.status = 410
        self.assertEqual(300.0, (await self.problem()).wait)

    async def test_it_may_ask_to_wait_but_not_for_ever(self) -> None:
        self.status, self.fields = 503, {"Retry-After": "120"}
        self.assertEqual(120.0, (await self.problem()).wait)
        self.fields = {"Retry-After": "999999"}
        self.assertEqual(300.0, (await self.problem()).wait)

    async def test_a_redirect_is_not_followed(self) -> None:
        self.status, self.fields = 307, {"Location": f"http://{self.server.host}/elsewhere"}
        problem = await self.problem()
        self.assertIn("redirects a POST", problem.text)
        self.assertEqual(1, len(self.requests))

    async def test_one_that_is_not_there(self) -> None:
        await self.server.stop()
        asking = Deferred.fromCoroutine(self.problem())
        self.reactor.clock.advance(1)  # there is no other address to try
        problem = await asking
        self.assertTrue(problem.is_receivers)
        self.assertIn("connection refused", problem.text)

    async def test_one_that_does_not_answer(self) -> None:
        self.status = 0
        asking = Deferred.fromCoroutine(self.problem())
        while not self.requests:
            await _turn()
        self.reactor.clock.advance(11)
        problem = await asking
        self.assertTrue(problem.is_receivers)
        self.assertIn("did not answer within 10 seconds", problem.text)

    async def test_a_secret_that_can_no_longer_be_read(self) -> None:
        problem = await self.problem(secret_file="/no/secret")
        self.assertIn("secret_file: /no/secret: can't be read", problem.text)
        self.assertEqual([], self.requests)  # nothing goes out without its signature


async def _turn() -> None:
    turned: Deferred[None] = Deferred()
    reactor.callLater(0, turned.callback, None)
    await turned
