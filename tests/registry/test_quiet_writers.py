"""Sessions whose client says nothing for a while: it may be gone without a word."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.kit.timers import BUCKET
from artifactd.oci.errors import BlobUploadUnknown, ChunkOutOfOrder
from artifactd.oci.names import Digest, ImageName
from artifactd.oci.ranges import ByteRange
from artifactd.registry.upload_id import UploadIds
from artifactd.registry.uploads import QUIET, Uploads
from artifactd.settings.settings import LimitsSettings
from tests.catalog.fixture import REACTOR, new_catalog
from tests.programs import wait_for
from tests.store.fixture import StoreTestCase

IMAGE = ImageName("local", "hello")
HALF = b"a" * 300_000
WHOLE = HALF + HALF
DIGEST = Digest.of(WHOLE)

_T = TypeVar("_T")


@implementer(IPushProducer)
@define(eq=False)
class Body:
    """
    The body of a request, whose bytes the test sends.

    :ivar told: what its consumer told it last.
    """

    length: int | None = len(WHOLE)
    awaits_continue: bool = True
    told: str = field(default="resume", init=False)
    consumer: IConsumer | None = field(default=None, init=False)
    _delivery: Deferred[int] | None = field(default=None, init=False)

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        self._delivery = Deferred()
        self.consumer = consumer
        consumer.registerProducer(self, True)
        return self._delivery

    def send(self, data: bytes) -> None:
        assert self.consumer is not None
        self.consumer.write(data)

    def end(self, outcome: int | Failure = 0) -> None:
        consumer, self.consumer = self.consumer, None
        delivery, self._delivery = self._delivery, None
        assert consumer is not None and delivery is not None
        consumer.unregisterProducer()
        delivery.callback(outcome)

    def pauseProducing(self) -> None:
        self.told = "pause"

    def resumeProducing(self) -> None:
        self.told = "resume"

    def stopProducing(self) -> None:
        self.told = "stop"
        self.end()


class QuietWriterTests(StoreTestCase):
    """A chunk, half of which has come, and its successors in this process and in another one."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        super().setUp()
        self.clock = Clock()
        database = Database(new_catalog(self), REACTOR)
        self.addCleanup(database.close)
        self.catalog = Catalog(database)
        self.here, self.other = self.process(), self.process()
        self.session = await self.here.start(IMAGE)
        self.body = Body()
        self.chunk = self.asked(self.here.append(IMAGE, self.session, None, self.body))
        await wait_for(lambda: self.body.consumer is not None)
        self.body.send(HALF)

    def process(self) -> Uploads:
        stores = self.open_stores()
        limits = LimitsSettings()
        ids = UploadIds(bytes(32), 3600.0)
        return Uploads(self.catalog, stores.uploads, ids, time.time, self.clock, limits, {})

    def asked(self, request: Coroutine[Any, Any, _T]) -> Deferred[_T]:
        answer = Deferred.fromCoroutine(request)
        answer.addErrback(lambda failure: failure)
        return answer

    def successor(self, uploads: Uploads) -> Coroutine[Any, Any, None]:
        """The rest of the blob, by another connection."""
        body = Body(len(HALF))

        async def sent() -> None:
            first = ByteRange(len(HALF), len(WHOLE) - 1)
            closing = Deferred.fromCoroutine(
                uploads.close(IMAGE, self.session, DIGEST, first, body)
            )
            await wait_for(lambda: closing.called or body.consumer is not None)
            if not closing.called:
                body.send(HALF)
                body.end()
            await closing

        return sent()

    def be_quiet(self, seconds: float = QUIET + 2 * BUCKET) -> None:
        self.clock.pump([0.25] * int(seconds / 0.25))

    async def test_it_keeps_the_session_for_some_seconds(self) -> None:
        self.be_quiet(QUIET - 0.5)
        for uploads in (self.here, self.other):
            await self.assert_raises(ChunkOutOfOrder, self.successor(uploads))
        self.body.send(HALF)
        self.body.end()
        self.assertEqual(await self.chunk, len(WHOLE))

    async def assert_another_goes_on(self, uploads: Uploads) -> None:
        self.be_quiet()
        await self.successor(uploads)
        self.body.end(Failure(ConnectionLost()))
        await self.assert_raises(ConnectionLost, self.chunk)
        self.assertEqual(await self.catalog.blob_size(IMAGE, DIGEST), len(WHOLE))

    async def test_then_another_request_goes_on(self) -> None:
        await self.assert_another_goes_on(self.here)

    async def test_so_does_one_of_another_process(self) -> None:
        await self.assert_another_goes_on(self.other)

    async def test_all_that_came_before_is_there_for_it(self) -> None:
        self.be_quiet()
        self.assertEqual(await self.other.offset(IMAGE, self.session), len(HALF))

    async def test_it_goes_on_if_nobody_has_written_meanwhile(self) -> None:
        for data in (HALF[2:], b"a"):
            self.be_quiet()
            self.body.send(data)
        await self.assert_raises(ChunkOutOfOrder, self.successor(self.other))
        self.be_quiet(QUIET - 0.5)
        self.assertEqual(self.body.told, "resume")
        self.body.send(HALF[:1])
        self.body.end()
        self.assertEqual(await self.chunk, len(WHOLE))
        await self.here.close(IMAGE, self.session, DIGEST, None, None)

    async def test_it_may_be_quiet_at_the_very_end(self) -> None:
        self.body.send(HALF)
        self.be_quiet()
        self.body.end()
        self.assertEqual(await self.chunk, len(WHOLE))

    async def test_it_is_told_where_to_go_on_if_another_one_has_written(self) -> None:
        self.be_quiet()
        more = Body(1)
        appending = Deferred.fromCoroutine(self.other.append(IMAGE, self.session, None, more))
        await wait_for(lambda: appending.called or more.consumer is not None)
        self.assertFalse(appending.called)
        more.send(b"b")
        more.end()
        await appending
        self.body.send(HALF)
        self.assertEqual(self.body.told, "stop")
        error = await self.assert_raises(ChunkOutOfOrder, self.chunk)
        self.assertEqual(error.offset, len(HALF) + 1)
        self.assertEqual(await self.here.offset(IMAGE, self.session), len(HALF) + 1)

    async def test_it_is_told_that_the_session_is_over_if_another_one_has_closed_it(self) -> None:
        self.be_quiet()
        await self.successor(self.other)
        self.body.send(HALF)
        await self.assert_raises(BlobUploadUnknown, self.chunk)

    async def test_a_client_that_we_keep_waiting_is_not_quiet(self) -> None:
        assert self.body.consumer is not None
        session_producer = IPushProducer(self.body.consumer)
        session_producer.pauseProducing()
        self.be_quiet()
        await self.assert_raises(ChunkOutOfOrder, self.successor(self.other))
        session_producer.resumeProducing()
        self.be_quiet()
        await self.successor(self.other)
        self.body.end(Failure(ConnectionLost()))
        await self.assert_raises(ConnectionLost, self.chunk)
