"""Deliveries with a clock: at least once, in the order of each image, with patience."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from artifactd.catalog.cache import WEBHOOKS
from artifactd.catalog.webhooks import Head, Message
from artifactd.kit.deferreds import run_here
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import ImageName
from artifactd.registry.metrics import Counters
from artifactd.settings.webhooks import WebhookSettings
from artifactd.store.files import DutyLock
from artifactd.webhooks.delivery import AT_ONCE, LOOK_EVERY, Deliveries, Problem, Receiver
from tests.catalog.fixture import OTHER
from tests.catalog.test_webhooks import URL, WebhookCatalogTestCase

DEAD = Problem("receiver.example can't be reached: connection refused", is_receivers=True)
REFUSED = Problem("receiver.example answers 400", is_receivers=False)
HOUR = 3600.0


class NoTransport:
    async def close(self) -> None:
        """There is nothing to close."""


@define(eq=False)
class FakeReceiver(Receiver):
    """
    :ivar got: the tags of each image that it took, in their order.
    :ivar attempts: how often it was asked.
    :ivar answer: says why it does not take an event; ``None``: it does.
    :ivar held: the requests that have to wait for their answers; ``None``: none has to.
    """

    got: dict[str, list[str]] = field(factory=lambda: defaultdict(list))
    attempts: list[str] = field(factory=list)
    answer: Callable[[Message], Problem | None] = lambda _: None
    held: list[Deferred[None]] | None = None

    async def send(self, message: Message) -> Problem | None:
        self.attempts.append(message.subject)
        if self.held is not None:
            holding: Deferred[None] = Deferred()
            self.held.append(holding)
            await holding
        problem = self.answer(message)
        if problem is None:
            self.got[message.subject].append(message.event.tag)
        return problem


class DeliveryTestCase(WebhookCatalogTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.counters = Counters()
        self.receiver = self.receive("ci")
        self.deliveries = self.deliver(self.receiver)

    def receive(self, name: str) -> FakeReceiver:
        settings = self.hooks[name]
        return FakeReceiver(name, settings, cast(Any, NoTransport()), cast(Any, None), self.now)

    def now(self) -> float:
        return self.time

    def deliver(self, *receivers: FakeReceiver) -> Deliveries:
        """Deliver as another process would."""
        database = self.open_catalog().database
        deliveries = Deliveries(
            type(self.webhooks)(database),
            DutyLock(self.folder, "webhooks.lock"),
            run_here,
            partial(database.versions, WEBHOOKS),
            self.clock,
            self.now,
            self.counters.webhooks,
            receivers,
            Random(1),
        )
        self.addCleanup(deliveries.stop)
        return deliveries

    async def look(self, seconds: float = 0.0) -> None:
        """Let time go by, then look, and wait until what is due has been sent."""
        self.time += seconds
        self.clock.advance(seconds)
        await self.deliveries.look()
        await self.deliveries.idle()

    async def look_for(self, seconds: float, step: float = 5.0) -> None:
        """Look every few seconds."""
        for _ in range(int(seconds / step)):
            await self.look(step)

    def counted(self, name: str) -> float:
        lines = self.exposition().splitlines()
        wanted = f'artifactd_webhook_{name}_total{{webhook="ci"}} '
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))

    def exposition(self) -> str:
        return self.counters.metrics.moment().exposition().decode()

    async def waiting(self) -> int:
        return sum(each.waiting for each in await self.webhooks.seen())


class DeliveryTests(DeliveryTestCase):
    async def test_events_are_delivered_in_the_order_of_each_image(self) -> None:
        for tag in ("v1", "v2", "v3"):
            await self.put(b"one", tag)
            await self.put(b"one", tag, image=OTHER)
        await self.look()
        order = ["v1", "v2", "v3"]
        self.assertEqual({"local/app": order, "local/other": order}, self.receiver.got)
        self.assertEqual(0, await self.waiting())
        self.assertEqual(6, self.counted("delivered"))

    async def test_what_comes_later_is_seen_by_the_next_look(self) -> None:
        await self.look()
        await self.put(b"one", "v1")
        await self.look(LOOK_EVERY)
        self.assertEqual({"local/app": ["v1"]}, self.receiver.got)

    async def test_nothing_is_read_while_nothing_is_committed(self) -> None:
        await self.look()
        reads = []
        self.patch(self.deliveries.catalog, "heads", lambda *a: reads.append(a))
        await self.look(LOOK_EVERY)
        self.assertEqual([], reads)

    async def test_an_hour_of_a_dead_receiver(self) -> None:
        """Each event comes, in the order of its image, and the dead receiver is hardly asked."""
        self.receiver.answer = lambda _: DEAD
        images = [ImageName("local", f"app{number}") for number in range(5)]
        for minute in range(10):
            for image in images:
                await self.put(b"one", f"v{minute}", image=image)
            await self.look_for(60.0)
        await self.look_for(HOUR - 600.0)
        self.assertEqual({}, self.receiver.got)
        self.assertEqual(50, await self.waiting())
        # One request after each pause, of up to five minutes, whatever the number of images.
        self.assertLess(len(self.receiver.attempts), 40)
        self.assertEqual(len(self.receiver.attempts), self.counted("failed"))

        self.receiver.answer = lambda _: None
        await self.look_for(600.0)
        order = [f"v{minute}" for minute in range(10)]
        for image in images:
            self.assertEqual(order, self.receiver.got[str(image)], image)
        self.assertEqual(0, await self.waiting())

    async def test_an_image_whose_event_is_refused_waits_alone(self) -> None:
        self.receiver.answer = lambda told: REFUSED if told.event.tag == "bad" else None
        for tag in ("v1", "bad", "v2"):
            await self.put(b"one", tag)
        await self.look()
        for tag in ("v1", "v2", "v3"):
            await self.put(b"one", tag, image=OTHER)
            await self.look(LOOK_EVERY)
        self.assertEqual(
            {"local/app": ["v1"], "local/other": ["v1", "v2", "v3"]}, self.receiver.got
        )
        await self.look_for(HOUR)
        tries = self.receiver.attempts.count("local/app")
        self.assertTrue(15 < tries < 40, tries)
        self.receiver.answer = lambda _: None
        await self.look_for(300.0)
        self.assertEqual(["v1", "bad", "v2"], self.receiver.got["local/app"])

    async def test_more_images_than_requests_at_once_do_not_keep_others_waiting(self) -> None:
        """All of the first images' events are refused: those behind them come all the same."""
        self.receiver.answer = lambda told: None if told.subject == "local/last" else REFUSED
        for number in range(3 * AT_ONCE):
            await self.put(b"one", "v1", image=ImageName("local", f"app{number}"))
        await self.put(b"one", "v1", image=ImageName("local", "last"))
        await self.look()
        self.assertEqual({"local/last": ["v1"]}, self.receiver.got)

    async def test_a_receiver_that_hangs_for_one_image_is_told_of_others(self) -> None:
        self.receiver.answer = lambda told: DEAD if told.subject == "local/app" else None
        await self.put(b"one", "v1")
        await self.look()
        await self.put(b"one", "v1", image=OTHER)
        await self.look_for(60.0)
        self.assertEqual({"local/other": ["v1"]}, self.receiver.got)

    async def test_a_slow_receiver_gets_a_few_requests_at_once_and_one_for_an_image(self) -> None:
        self.receiver.held = []
        for number in range(2 * AT_ONCE):
            for tag in ("v1", "v2"):
                await self.put(b"one", tag, image=ImageName("local", f"app{number}"))
        for _ in range(3 * AT_ONCE):
            await self.deliveries.look()
            await self.webhooks.seen()  # gives the reads of the look time to come back
            await self.put(b"one", "v3")  # the next look looks
        self.assertEqual(AT_ONCE, len(self.receiver.held))
        self.assertEqual(AT_ONCE, len(set(self.receiver.attempts)))
        held, self.receiver.held = self.receiver.held, None
        for each in held:
            each.callback(None)
        await self.deliveries.idle()
        await self.look_for(5.0)
        self.assertEqual(0, await self.waiting())

    async def test_a_queue_that_was_read_before_a_delivery_ended_sends_nothing_twice(self) -> None:
        self.receiver.held = []
        for tag in ("v1", "v2"):
            await self.put(b"one", tag)
        await self.deliveries.look()
        while not self.receiver.held:
            await self.webhooks.seen()
        read = self.deliveries.catalog.heads
        late: Deferred[None] = Deferred()

        async def read_late(name: str, limit: int) -> Sequence[Head]:
            heads = await read(name, limit)  # v1 is the head
            await late
            return heads

        # Another worker looks while v1 is under way, and gets its answer when v2 has been sent.
        reading = self.patch(self.deliveries.catalog, "heads", read_late)
        await self.put(b"one", "v3", image=OTHER)
        await self.deliveries.look()
        await self.webhooks.seen()
        reading.restore()
        (held,), self.receiver.held = self.receiver.held, None
        held.callback(None)
        while await self.waiting() or self.deliveries._lines[0].subjects:
            pass
        late.callback(None)
        await self.deliveries.idle()
        await self.look(LOOK_EVERY)
        self.assertEqual({"local/app": ["v1", "v2"], "local/other": ["v3"]}, self.receiver.got)

    async def test_a_receiver_that_asks_to_wait_is_left_alone(self) -> None:
        busy = Problem("receiver.example answers 429", is_receivers=True, wait=120.0)
        self.receiver.answer = lambda _: busy
        await self.put(b"one", "v1")
        await self.put(b"one", "v1", image=OTHER)
        await self.look()
        await self.look_for(115.0)
        self.assertEqual(1, len(self.receiver.attempts))
        self.receiver.answer = lambda _: None
        await self.look_for(10.0)
        self.assertEqual({"local/app": ["v1"], "local/other": ["v1"]}, self.receiver.got)

    async def test_an_event_that_could_not_be_marked_is_sent_again(self) -> None:
        async def fail(_: Message) -> None:
            raise Unavailable("the disk is full")

        await self.put(b"one", "v1")
        marking = self.patch(self.deliveries.catalog, "delivered", fail)
        await self.look()
        await self.look_for(60.0)
        self.assertLess(len(self.receiver.attempts), 10)  # not with every look
        marking.restore()
        await self.look_for(300.0)
        self.assertEqual({"v1"}, set(self.receiver.got["local/app"]))
        self.assertEqual(0, await self.waiting())

    async def test_a_clock_that_is_set_back_keeps_nothing_waiting(self) -> None:
        self.receiver.answer = lambda _: REFUSED
        await self.put(b"one", "v1")
        await self.look()
        self.time -= 100_000
        self.receiver.answer = lambda _: None
        await self.put(b"one", "v2")
        await self.look(LOOK_EVERY)
        self.assertEqual(["v1", "v2"], self.receiver.got["local/app"])

    async def test_one_process_delivers_and_another_goes_on_after_it(self) -> None:
        await self.look()
        second = self.receive("ci")
        other = self.deliver(second)
        await other.look()
        await self.put(b"one", "v1")
        await other.look()
        await other.idle()
        self.assertEqual({}, second.got)
        await self.deliveries.stop()
        self.clock.advance(10.0)
        await other.look()
        await other.idle()
        self.assertEqual({"local/app": ["v1"]}, second.got)
        self.assertEqual({}, self.receiver.got)

    async def test_one_that_rests_ends_what_is_under_way_and_leaves_the_rest_to_another(
        self,
    ) -> None:
        self.receiver.held = []
        await self.put(b"one", "v1")
        await self.put(b"one", "v2")
        await self.deliveries.look()
        while not self.receiver.held:
            await self.webhooks.seen()
        resting = Deferred.fromCoroutine(self.deliveries.rest())
        second = self.receive("ci")
        other = self.deliver(second)
        await other.look()
        await other.idle()
        self.assertEqual({}, second.got)
        self.receiver.held[0].callback(None)
        await resting
        await self.look(LOOK_EVERY)
        self.clock.advance(10.0)
        await other.look()
        await other.idle()
        self.assertEqual({"local/app": ["v1"]}, self.receiver.got)
        self.assertEqual({"local/app": ["v2"]}, second.got)

    async def test_a_lock_that_is_taken_just_then_is_given_back(self) -> None:
        claiming: Deferred[bool] = Deferred()
        self.deliveries.run_in_thread = cast(Any, lambda _: claiming)
        looking = Deferred.fromCoroutine(self.deliveries.look())
        await self.deliveries.rest()
        claiming.callback(self.deliveries.lock.claim())
        await looking
        self.assertTrue(DutyLock(self.folder, "webhooks.lock").claim())

    async def test_a_stop_gives_up_what_is_under_way_and_the_next_start_sends_it(self) -> None:
        self.receiver.held = []
        await self.put(b"one", "v1")
        await self.deliveries.look()
        while not self.receiver.held:
            await self.webhooks.seen()
        self.receiver.answer = lambda _: DEAD
        stopping = Deferred.fromCoroutine(self.deliveries.stop())
        self.receiver.held[0].callback(None)
        await stopping
        (head,) = await self.webhooks.heads("ci", 5)
        self.assertEqual(0, head.attempts)
        again = self.receive("ci")
        self.deliveries = self.deliver(again)
        await self.look()
        self.assertEqual({"local/app": ["v1"]}, again.got)


class BoundTests(DeliveryTestCase):
    hooks = {"ci": WebhookSettings(url=URL, most=10)}  # noqa: RUF012 - not changed

    async def test_what_waits_too_long_or_is_too_much_is_dropped_and_counted(self) -> None:
        self.receiver.answer = lambda _: DEAD
        for number in range(15):
            await self.put(b"one", f"v{number}")
        await self.look(10.0)
        self.assertEqual(10, await self.waiting())
        self.assertEqual(5, self.counted("dropped"))
        self.assertIn('artifactd_webhook_waiting{webhook="ci"} 15', self.exposition())
        await self.look(8 * 24 * HOUR)
        self.assertEqual(0, await self.waiting())
        self.assertEqual(15, self.counted("dropped"))
        self.receiver.answer = lambda _: None
        await self.put(b"one", "v15")
        await self.look(HOUR)
        self.assertEqual({"local/app": ["v15"]}, self.receiver.got)

    async def test_events_of_a_webhook_that_is_no_longer_configured_go_after_a_week(self) -> None:
        await self.put(b"one", "v1")
        other = self.receive("ci")
        other.name = "other"
        self.deliveries = self.deliver(other)
        await self.look()
        self.assertEqual(1, await self.waiting())
        await self.look(8 * 24 * HOUR)
        self.assertEqual(0, await self.waiting())

    async def test_without_any_webhook_left_events_go_after_a_week_and_the_lock_is_free(
        self,
    ) -> None:
        await self.put(b"one", "v1")
        without = self.deliver()
        await without.look()
        self.assertEqual(1, await self.waiting())
        self.time += 8 * 24 * HOUR
        await without.look()
        self.assertEqual(0, await self.waiting())
        self.assertEqual(1, self.counted("dropped"))
        await self.put(b"one", "v2")
        await self.look()
        self.assertEqual({"local/app": ["v2"]}, self.receiver.got)
