"""HTTP as a test scripts it, and registries on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from artifactd.kit.shared import SharedMemory
from artifactd.oci.names import Digest
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.values import Host, Url, Within
from artifactd.upstream.client import RegistryUpstream
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from artifactd.upstream.http.url import Origin
from artifactd.upstream.sources import CredentialSource, GivenCredentials

HUB = "https://registry-1.docker.io"
REALM = "https://auth.docker.io/token"
IMAGE = "library/alpine"
DIGEST = Digest.of(b"a manifest")

SOMEBODY = "somebody"
"""Stands for the host that was asked, in answers of which the test names no host."""

BEARER = f'Bearer realm="{REALM}",service="registry.docker.io"'


@frozen
class Asked:
    """
    A request that was made.

    :ivar others: the ``Authorization`` for other origins.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    others: Mapping[Origin, str] = field(factory=dict)
    body: bytes | None = None

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.url).query)

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


@implementer(IPushProducer)
class _Producer:
    def pauseProducing(self) -> None:
        """Nothing more would come."""

    resumeProducing = stopProducing = pauseProducing


@define(eq=False)
class Answer:
    """
    An ``HttpResponse``.

    :ivar fields: a list for a field that comes several times.
    :ivar length: of the body, unless the test says something else.
    :ivar broken: what the body ends with instead of its end.
    :ivar ended: what has become of the body, each time.
    :ivar coding: how the body is coded; :meth:`read` does not undo it.
    :ivar url: where a redirect has led to, if one has.
    """

    status: int = 200
    body: bytes = b""
    fields: Mapping[str, str | list[str]] = field(factory=dict)
    host: str = SOMEBODY
    redirected: bool = False
    length: int | None = -1
    broken: UpstreamError | None = None
    ended: list[str] = field(factory=list)
    coding: str = ""
    url: str = ""

    def __attrs_post_init__(self) -> None:
        if self.length == -1:
            self.length = len(self.body)

    def headers(self, name: str) -> list[str]:
        values = {key.lower(): value for key, value in self.fields.items()}.get(name.lower(), [])
        return [values] if isinstance(values, str) else values

    def header(self, name: str) -> str | None:
        return next(iter(self.headers(name)), None)

    async def read(self, limit: int, seconds: float | None = None) -> bytes:
        self.ended.append("read")
        if self.broken:
            raise self.broken
        if len(self.body) > limit:
            raise Unreachable("more than allowed", self.status)
        return self.body

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        self.ended.append("delivered")
        consumer.registerProducer(_Producer(), True)
        consumer.write(self.body)
        consumer.unregisterProducer()
        return fail(self.broken) if self.broken else succeed(len(self.body))

    def abort(self) -> None:
        self.ended.append("aborted")


def json(value: object, status: int = 200, **fields: str) -> Answer:
    """``value`` as an answer; an underscore in the name of a field is a hyphen there."""
    named = {name.replace("_", "-"): text for name, text in fields.items()}
    return Answer(status, msgspec.json.encode(value), named)


Reply = Answer | UpstreamError | Deferred[Any]
Answering = Callable[[Asked], Reply]


@define(eq=False)
class ScriptedHttp:
    """
    An ``Http`` whose requests ``answering`` answers.

    :ivar asked: all requests.
    :ivar answers: all answers.
    """

    answering: Answering
    asked: list[Asked] = field(factory=list)
    answers: list[Answer] = field(factory=list)

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        others: Mapping[Origin, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        asked = Asked(method, url, dict(headers), others or {}, body)
        self.asked.append(asked)
        reply = self.answering(asked)
        if isinstance(reply, Deferred):
            reply = await reply
        if isinstance(reply, Exception):
            raise reply
        if reply.host == SOMEBODY:
            reply.host = urlsplit(url).netloc
        reply.url = reply.url or url
        reply.redirected = reply.host != urlsplit(url).netloc
        self.answers.append(reply)
        return reply


def in_turn(*replies: Reply) -> Answering:
    """The ``replies``, one after the other."""
    left = list(replies)
    return lambda asked: left.pop(0)


@define(eq=False)
class Watch:
    """An ``UpstreamWatch`` that records its calls."""

    bytes: int = 0
    requests: list[tuple[str, int | None]] = field(factory=list)
    downs: list[str] = field(factory=list)

    def down(self, reason: str) -> None:
        self.downs.append(reason)

    def received(self, count: int) -> None:
        self.bytes += count

    def requested(self, method: str, status: int | None, image: str) -> None:
        self.requests.append((method, status))


@define(eq=False)
class Hub:
    """
    Answers as Docker Hub does: 401 without a token of its token service for that very image.

    :ivar resources: by path.
    :ivar expires_in: what it says of its tokens.
    :ivar fetches: requests for tokens.
    """

    resources: dict[str, Reply] = field(factory=dict)
    expires_in: int | None = 300
    token_reply: Reply | None = None
    fetches: list[Asked] = field(factory=list)
    accepted: set[str] = field(factory=set)

    def __call__(self, asked: Asked) -> Reply:
        if asked.url.startswith(REALM):
            return self._token(asked)
        image = asked.path.removeprefix("/v2/").rsplit("/", 2)[0]
        scope = f"repository:{image}:pull"
        if asked.authorization not in {f"Bearer {t}" for t in self.accepted if t.endswith(scope)}:
            error = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
            return json(error, 401, WWW_Authenticate=f'{BEARER},scope="{scope}"')
        return self.resources.get(asked.path) or json({"errors": []}, 404)

    def _token(self, asked: Asked) -> Reply:
        self.fetches.append(asked)
        if self.token_reply is not None:
            return self.token_reply
        token = f"t{len(self.fetches)}-{asked.query['scope'][0]}"
        self.accepted.add(token)
        return json({"token": token, "expires_in": self.expires_in})


@implementer(IConsumer)
@define(eq=False)
class Sink:
    """A consumer that keeps what it is given."""

    content: bytes = b""
    producer: IProducer | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.content += data


class UpstreamTestCase(SynchronousTestCase):
    """
    An upstream on scripted HTTP.

    :ivar http: what it asks.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.watch = Watch()
        self.memory: SharedMemory | None = None

    def upstream(
        self,
        answering: Answering,
        url: str = HUB,
        *,
        auth_hosts: Iterable[str] = (),
        retries: int = 2,
        prefix: str = "",
        credentials: Callable[[], Credentials | None] | CredentialSource = lambda: None,
        **options: Any,
    ) -> RegistryUpstream:
        """Make one that ``answering`` answers; the test's end checks that each answer was ended."""
        self.http = ScriptedHttp(answering)
        self.addCleanup(self.assert_ended, self.http)
        return RegistryUpstream(
            "docker.io",
            RemoteSettings(
                upstream=Url(url),
                auth_hosts=tuple(map(Host, auth_hosts)),
                retries=retries,
                prefix=Within(prefix),
            ),
            self.http,
            self.clock,
            self.watch,
            self.memory or SharedMemory.create(),
            random=Random(3),
            credentials=(
                GivenCredentials(credentials, HUB) if callable(credentials) else credentials
            ),
            **options,
        )

    def assert_ended(self, http: ScriptedHttp) -> None:
        for answer in http.answers:
            self.assertEqual(1, len(answer.ended), answer)
