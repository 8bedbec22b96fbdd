"""A remote repository's parts on a real store and catalog, and an upstream that a test plays."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import define, field
from msgspec import structs
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from zope.interface import implementer

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.names import Digest, ImageName, Reference
from artifactd.registry.metrics import Counters
from artifactd.registry.mirror.fill import Fill, Fills, FillSource
from artifactd.registry.model import BlobFound, BlobWanted, Provenance
from artifactd.settings.remote import RemoteSettings, docker_hub
from artifactd.settings.values import Size
from artifactd.store.blobs import OpenBlob
from artifactd.upstream.http.errors import UpstreamError
from artifactd.upstream.interfaces import (
    UpstreamBlob,
    UpstreamHead,
    UpstreamManifest,
    UpstreamPage,
)
from tests.catalog.fixture import new_catalog
from tests.programs import reactor
from tests.store.fixture import StoreTestCase

ALPINE = ImageName("docker.io", "library/alpine")
BUSYBOX = ImageName("docker.io", "library/busybox")

CONTENT = bytes(range(256)) * 1024
"""Of a blob: more than what is held back."""

SIZE = len(CONTENT)
DIGEST = Digest.of(CONTENT)
VALIDATOR = '"v1"'


@implementer(IPushProducer)
@define(eq=False)
class Body:
    """
    A ``BlobBody`` whose bytes the test sends.

    :ivar told: what was done with it, in order.
    """

    first: int = 0
    size: int | None = SIZE
    validator: str | None = VALIDATOR
    host: str = "cdn.docker.io"
    length: int | None = None
    told: list[str] = field(factory=list)
    consumer: IConsumer | None = field(default=None, init=False)
    _done: Deferred[int] | None = field(default=None, init=False)
    # What the test did before anybody wanted it.
    _early: list[Callable[[], object]] = field(factory=list, init=False)

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        self.told.append("delivered")
        self.consumer = consumer
        done: Deferred[int] = Deferred(lambda _: self._detach("cancelled"))
        self._done = done
        consumer.registerProducer(self, True)
        for each in self._early:
            each()
        return done

    def abort(self) -> None:
        self.told.append("aborted")

    def send(self, content: bytes) -> Body:
        """Some bytes come; they are lost if nobody takes them any more."""
        if self._done is None:
            self._early.append(lambda: self.send(content))
        elif self.consumer is not None:
            self.consumer.write(content)
        return self

    def end(self) -> None:
        """That was all."""
        if self._done is None:
            self._early.append(self.end)
        elif self.consumer is not None:
            self._detach("ended")
            self._done.callback(0)

    def break_off(self, error: UpstreamError) -> None:
        """No more comes."""
        if self._done is None:
            self._early.append(lambda: self.break_off(error))
        else:
            self._detach("broken off")
            self._done.errback(error)

    def pauseProducing(self) -> None:
        """Nothing comes by itself."""

    resumeProducing = pauseProducing

    def stopProducing(self) -> None:
        assert self._done is not None
        self._detach("stopped")
        self._done.callback(0)

    def _detach(self, how: str) -> None:
        self.told.append(how)
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            consumer.unregisterProducer()


@define(eq=False)
class Asked:
    """
    A question to the upstream; the test answers it.

    :ivar span: the first and the last byte that a GET of a blob asks for.
    """

    image: str
    reference: Reference
    span: tuple[int, int | None] = (0, None)
    validator: str | None = None
    answer: Deferred[Any] = field(factory=Deferred)

    def body(self, body: Body | None = None) -> Body:
        """Answer with a body, by default with what was asked for."""
        body = body or Body(self.span[0])
        self.answer.callback(body)
        return body

    def all(self, content: bytes = CONTENT) -> None:
        """Answer with all that was asked for of ``content``."""
        first, last = self.span
        body = self.body(Body(first, len(content)))
        body.send(content[first : None if last is None else last + 1]).end()

    def size(self, size: int | None = SIZE) -> None:
        """Answer a HEAD."""
        self.answer.callback(UpstreamBlob(size))

    def fail(self, error: Exception) -> None:
        self.answer.errback(error)


@define(eq=False)
class PlayedUpstream:
    """
    An ``Upstream`` whose questions wait for the test.

    :ivar gets: GETs of blobs, as they come.
    :ivar heads: HEADs of blobs.
    :ivar manifests: GETs of manifests.
    """

    name: str = "docker.io"
    gets: DeferredQueue[Asked] = field(factory=DeferredQueue)
    heads: DeferredQueue[Asked] = field(factory=DeferredQueue)
    manifests: DeferredQueue[Asked] = field(factory=DeferredQueue)

    async def open_blob(
        self,
        image: str,
        digest: Digest,
        first: int = 0,
        last: int | None = None,
        validator: str | None = None,
    ) -> Body:
        body: Body = await self._ask(self.gets, Asked(image, digest, (first, last), validator))
        return body

    async def blob(self, image: str, digest: Digest, size: int | None = None) -> UpstreamBlob:
        told: UpstreamBlob = await self._ask(self.heads, Asked(image, digest))
        return told

    async def manifest(self, image: str, reference: Reference) -> UpstreamManifest:
        sent: UpstreamManifest = await self._ask(self.manifests, Asked(image, reference))
        return sent

    async def manifest_head(
        self, image: str, reference: Reference, known: Digest | None
    ) -> UpstreamHead | None:
        raise NotImplementedError

    async def tags(self, image: str, query: Mapping[str, str]) -> UpstreamPage:
        raise NotImplementedError

    async def referrers(
        self, image: str, subject: Digest, query: Mapping[str, str]
    ) -> UpstreamPage:
        raise NotImplementedError

    def frugality(self) -> float:
        return 1.0

    def _ask(self, questions: DeferredQueue[Asked], asked: Asked) -> Deferred[Any]:
        questions.put(asked)
        return asked.answer


class WatchedClock(Clock):
    """A clock; ``scheduled`` are the seconds of what begins to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduled: DeferredQueue[float] = DeferredQueue()

    def callLater(self, delay: float, *args: Any, **kwargs: Any) -> Any:
        call = super().callLater(delay, *args, **kwargs)
        self.scheduled.put(delay)
        return call


def remote_settings(**changes: Any) -> RemoteSettings:
    """The settings of a remote repository."""
    return structs.replace(docker_hub(), **changes)


class RemoteTestCase(StoreTestCase):
    """
    :ivar clock: of what is fetched.
    :ivar time: of the catalog, in seconds since the epoch.
    """

    def setUp(self) -> None:
        super().setUp()
        self.time = 1000.0
        self.clock = WatchedClock()
        self.catalog = Catalog(Database(new_catalog(self), reactor, now=lambda: self.time))
        self.addCleanup(self.catalog.database.close)
        self.remote = RemoteCatalog(self.catalog.database)
        self.upstream = PlayedUpstream()
        self.all_counters = Counters()
        self.counters = self.all_counters.of("docker.io")
        self.fills = Fills(self.stores.fills, self.catalog, self.remote, self.clock)
        # Before the catalog and the stores are closed.
        self.addCleanup(lambda: Deferred.fromCoroutine(self.fills.stop()))

    def counted(self, name: str) -> float:
        """What the counter ``name`` says."""
        prefix = f'artifactd_{name}_total{{repository="docker.io"}} '.encode()
        lines = self.all_counters.metrics.moment().exposition().splitlines()
        return next(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))

    # -- fills

    def source(self, image: ImageName = ALPINE, digest: Digest = DIGEST) -> FillSource:
        return FillSource(self.upstream, image, digest)

    def begin(
        self, *, resumes: int = 5, finish: bool = True, digest: Digest = DIGEST, size_cap: int = 0
    ) -> Fill:
        """A fill, begun."""
        settings = remote_settings(resumes=resumes, finish_fills=finish, size_cap=Size(size_cap))
        return self.fills.begin(self.source(digest=digest), self.counters, settings)

    def found(self, fill: Fill, wanted: BlobWanted | None = None) -> Deferred[BlobFound]:
        """What a client that wants a fill's blob gets."""
        wanting = self.fills.found(fill, wanted or BlobWanted(), Provenance())
        found = Deferred.fromCoroutine(wanting)
        return found.addCallback(self._close_later)

    def _close_later(self, found: BlobFound) -> BlobFound:
        assert found.body is not None
        self.addCleanup(found.body.close)
        return found

    async def other_process(self, content: bytes = b"", digest: Digest = DIGEST) -> Any:
        """A fill that another process has claimed, and has got as far as ``content``."""
        session = await self.open_stores().fills.claim(digest)
        assert session is not None
        self.addCleanup(lambda: Deferred.fromCoroutine(session.close()))
        session.write(content[session.written :])
        await session.flush()
        return session

    async def assert_free(self, size: int, digest: Digest = DIGEST) -> None:
        """Another process can go on with a fill, which has so many bytes."""
        session = await self.open_stores().fills.claim(digest)
        assert session is not None, "it is still claimed"
        self.assertEqual(size, session.written)
        await session.close()

    async def assert_stored(self, *images: ImageName, content: bytes = CONTENT) -> None:
        """A blob is here, ``images`` have it, and no trace is left of how it came."""
        await self.assert_blob(content, Digest.of(content))
        for image in images:
            self.assertEqual(len(content), await self.catalog.blob_size(image, Digest.of(content)))
        self.assertEqual([], self.below("fills") + self.below("staging"))

    # -- what is open, and what is logged

    @contextmanager
    def assert_no_descriptor_stays(self) -> Iterator[None]:
        """Of blobs, whole or coming."""
        before = self.descriptors()
        yield
        self.assertEqual(before, self.descriptors())

    def descriptors(self) -> list[str]:
        """The files of blobs that this process has open."""
        opened = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                opened.append(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:
                continue  # that of the listing
        return sorted(path for path in opened if re.search(r"[0-9a-f]{64}", path))

    @contextmanager
    def logged(self, level: str) -> Iterator[Callable[[], list[str]]]:
        """What this process logs, of ``level`` and up."""
        with capturedLogs() as events:
            yield lambda: [formatEvent(event) for event in events if _is(event, level)]


def _is(event: LogEvent, level: str) -> bool:
    levels = ["info", "warn", "error", "critical"]
    name = event["log_level"].name
    return name in levels and levels.index(name) >= levels.index(level)


def content_of(body: OpenBlob | None) -> bytes:
    """What can be read of an answer now."""
    assert body is not None
    if body.content is not None:
        return body.content
    return os.pread(body.fileno(), body.available, 0)
