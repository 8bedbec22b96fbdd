"""Events for webhooks: written with what they tell, and kept within bounds."""

from __future__ import annotations

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.events import Event, Outbox, Requester, RequestTold
from artifactd.catalog.records import ManifestPut
from artifactd.catalog.repair import RepairCatalog
from artifactd.catalog.retention import Drop, RetentionCatalog
from artifactd.catalog.webhooks import WebhookCatalog
from artifactd.oci.errors import ManifestUnknown
from artifactd.oci.names import Digest
from artifactd.settings.values import Pattern, ReceiverUrl
from artifactd.settings.webhooks import EventKind, WebhookSettings
from tests.catalog.fixture import (
    ALPINE,
    APP,
    EVER,
    OTHER,
    REACTOR,
    V1,
    ConfirmFailed,
    GarbageCatalogTestCase,
    manifest,
    not_confirmed,
)

URL = ReceiverUrl("http://receiver.example/hook")
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


def webhook(*events: EventKind, images: str = "*") -> WebhookSettings:
    """The settings of a webhook that is told of ``events``; none: of all."""
    return WebhookSettings(url=URL, events=events or tuple(EventKind), images=(Pattern(images),))


class WebhookCatalogTestCase(GarbageCatalogTestCase):
    """:ivar webhooks: of the same catalog, with a webhook ``ci`` for everything."""

    hooks: dict[str, WebhookSettings] = {"ci": webhook()}  # noqa: RUF012 - not changed

    def setUp(self) -> None:
        super().setUp()
        self.webhooks = WebhookCatalog(self.catalog.database)

    def open_catalog(self, busy_timeout: float = 60.0) -> Catalog:
        database = Database(
            self.path,
            REACTOR,
            busy_timeout=busy_timeout,
            now=lambda: self.time,
            outbox=Outbox.of(self.hooks),
        )
        self.addCleanup(database.close)
        return Catalog(database)

    async def told(self, name: str = "ci") -> list[Event]:
        """The events for a webhook, in their order."""
        return [each.event for each in await self.webhooks.messages(name, 0, 1000)]

    async def brief(self, name: str = "ci") -> list[tuple[str, str, str, str]]:
        """Their kinds, tags, digests and digests before."""
        return [(e.kind, e.tag, e.digest, e.before) for e in await self.told(name)]


class EventTests(WebhookCatalogTestCase):
    async def test_a_push_by_tag_is_told(self) -> None:
        pushed = manifest(b"one")
        request = RequestTold("r1", "10.0.0.1", "registry:5000", "PUT", "docker/27")
        actor = Requester.of("anne@10.0.0.1", "anne", request)
        await self.put(pushed, "v1", actor=actor)
        (event,) = await self.told()
        self.assertEqual(
            event,
            Event(
                kind="push",
                repository="local",
                image="app",
                tag="v1",
                digest=str(ONE),
                media_type=pushed.media_type,
                size=3,
                actor="anne",
                request=request,
            ),
        )

    async def test_one_by_digest_has_no_tag(self) -> None:
        await self.put(b"one")
        self.assertEqual([("push", "", str(ONE), "")], await self.brief())

    async def test_a_tag_that_the_retention_drops_is_told_and_one_that_stays_is_not(self) -> None:
        await self.put(b"one", "v1", "v2")
        retention = RetentionCatalog(self.catalog.database)
        v1, v2 = await retention.tags(APP, "", 10)
        drops = [Drop(v1, "retention[0]"), Drop(v2, "retention[0]")]
        self.assertEqual([v1], await retention.drop(APP, drops))
        told = (await self.told())[-1]
        self.assertEqual(
            ("retention", "v1", str(ONE), "retention[0]"),
            (told.kind, told.tag, told.digest, told.actor),
        )
        self.assertEqual(3, len(await self.told()))

    async def test_each_tag_of_a_push_is_told(self) -> None:
        await self.put(b"one", "v1", "v2")
        self.assertEqual(["v1", "v2"], [each.tag for each in await self.told()])

    async def test_the_same_push_again_is_told_again(self) -> None:
        await self.put(b"one", "v1")
        await self.put(b"one", "v1")
        self.assertEqual([("push", "v1", str(ONE), "")] * 2, await self.brief())

    async def test_a_tag_that_a_push_moves_is_told_with_the_digest_before(self) -> None:
        await self.put(b"one", "v1")
        await self.put(b"two", "v1")
        self.assertEqual(
            [
                ("push", "v1", str(ONE), ""),
                ("push", "v1", str(TWO), str(ONE)),
                ("tag_moved", "v1", str(TWO), str(ONE)),
            ],
            await self.brief(),
        )

    async def test_a_push_that_fails_is_not_told(self) -> None:
        put = ManifestPut(APP, manifest(b"one"), (V1,))
        await self.assert_raises(ConfirmFailed, self.catalog.put_manifest(put, not_confirmed))
        self.assertEqual([], await self.told())

    async def test_deleted_tags_and_manifests_are_told(self) -> None:
        await self.put(b"one", "v1", "v2")
        await self.catalog.delete_tag(APP, V1, actor="bob")
        await self.delete(ONE)
        self.assertEqual(
            [
                ("delete", "v1", str(ONE), ""),
                ("delete", "v2", str(ONE), ""),
                ("delete", "", str(ONE), ""),
            ],
            (await self.brief())[2:],
        )
        self.assertEqual("bob", (await self.told())[-1].actor)

    async def test_what_is_not_there_is_not_told(self) -> None:
        await self.put(b"one")
        await self.assert_raises(ManifestUnknown, self.catalog.delete_tag(APP, V1, actor="bob"))
        self.assertEqual(1, len(await self.told()))

    async def test_a_tag_that_is_restored_or_undeleted_has_moved(self) -> None:
        await self.put(b"one", "v1")
        await self.put(b"two", "v1")
        await self.catalog.point_tag(APP, V1, ONE, actor="restore")
        await self.catalog.delete_tag(APP, V1, actor="bob")
        await self.garbage.undelete(APP, V1, "undelete")
        self.assertEqual(
            [
                ("tag_moved", "v1", str(ONE), str(TWO)),
                ("delete", "v1", str(ONE), ""),
                ("tag_moved", "v1", str(ONE), ""),
            ],
            (await self.brief())[3:],
        )

    async def test_what_the_collection_removes_is_deleted(self) -> None:
        await self.put(b"one")
        await self.untagged(EVER)
        event = (await self.told())[-1]
        self.assertEqual(
            ("delete", str(ONE), "collection"), (event.kind, event.digest, event.actor)
        )

    async def test_a_tag_that_moved_at_an_upstream_is_told_and_a_new_one_is_not(self) -> None:
        await self.cache(b"one", "v1")
        self.assertEqual([], await self.told())
        await self.cache(b"two", "v1")
        await self.remote.point_tag(ALPINE, V1, ONE)
        self.assertEqual(
            [("tag_moved", "v1", str(TWO), str(ONE)), ("tag_moved", "v1", str(ONE), str(TWO))],
            await self.brief(),
        )

    async def test_damage_is_told_for_each_image(self) -> None:
        for image in (APP, OTHER):
            await self.put(b"one", image=image)
        repairs = RepairCatalog(self.catalog.database)
        await repairs.lose_blob(ONE, lambda: False, "not so")
        await repairs.lose_blob(ONE, lambda: True, "its file is gone")
        damaged = (await self.told())[2:]
        self.assertEqual({"local/app", "local/other"}, {each.subject for each in damaged})
        self.assertEqual({("damage", "its file is gone")}, {(e.kind, e.reason) for e in damaged})


class ManyWebhooksTests(WebhookCatalogTestCase):
    hooks = {  # noqa: RUF012 - not changed
        "deletes": webhook(EventKind.DELETE),
        "others": webhook(images="local/oth*"),
    }

    async def test_each_is_told_what_it_wants(self) -> None:
        await self.put(b"one", "v1")
        await self.put(b"one", "v1", image=OTHER)
        await self.catalog.delete_tag(APP, V1, actor="bob")
        self.assertEqual([("delete", "v1", str(ONE), "")], await self.brief("deletes"))
        self.assertEqual([("push", "v1", str(ONE), "")], await self.brief("others"))

    async def test_one_event_has_one_id_for_all(self) -> None:
        await self.put(b"one", "v1", image=OTHER)
        await self.catalog.delete_tag(OTHER, V1, actor="bob")
        (deletes,) = await self.webhooks.messages("deletes", 0, 10)
        others = await self.webhooks.messages("others", 0, 10)
        self.assertEqual(deletes.message, others[1].message)
        self.assertNotEqual(deletes.message, others[0].message)

    async def test_an_event_about_a_repository_is_for_those_that_have_images_of_it(self) -> None:
        event = Event(kind="quota", repository="local")
        elsewhere = Event(kind="quota", repository="ghcr.io")
        database = self.catalog.database
        await database.write(lambda db: database.outbox.write(db, 1.0, [event, elsewhere]))
        self.assertEqual([event], await self.told("others"))


class NoWebhookTests(WebhookCatalogTestCase):
    hooks = {"ci": webhook(EventKind.QUOTA)}  # noqa: RUF012 - not changed

    async def test_what_nobody_wants_is_not_written(self) -> None:
        await self.put(b"one", "v1")
        await self.put(b"two", "v1")
        await self.delete(TWO)
        self.assertEqual([], await self.told())
        self.assertEqual([], list(await self.webhooks.seen()))


class QueueTests(WebhookCatalogTestCase):
    async def heads(self) -> list[tuple[str, str]]:
        heads = await self.webhooks.heads("ci", 10)
        return [(each.message.subject, each.message.event.tag) for each in heads]

    async def deliver(self) -> None:
        await self.webhooks.delivered((await self.webhooks.heads("ci", 1))[0].message)

    async def test_the_first_of_each_image_is_its_head(self) -> None:
        await self.put(b"one", "v1")
        self.time += 1
        await self.put(b"one", "v2")
        await self.put(b"one", "v1", image=OTHER)
        self.assertEqual([("local/app", "v1"), ("local/other", "v1")], await self.heads())
        self.time += 1
        await self.deliver()
        self.assertEqual([("local/other", "v1"), ("local/app", "v2")], await self.heads())
        await self.deliver()
        await self.deliver()
        self.assertEqual([], await self.heads())

    async def test_an_image_whose_head_failed_comes_later(self) -> None:
        await self.put(b"one", "v1")
        await self.put(b"one", "v1", image=OTHER)
        app = (await self.webhooks.heads("ci", 10))[0]
        await self.webhooks.failed(app.message, "it answers 500", self.time + 5)
        self.assertEqual([("local/other", "v1"), ("local/app", "v1")], await self.heads())
        later = (await self.webhooks.heads("ci", 10))[1]
        self.assertEqual((1, self.time + 5), (later.attempts, later.due_at))
        (seen,) = await self.webhooks.seen()
        self.assertEqual(("it answers 500", 2, 1000.0), (seen.error, seen.waiting, seen.oldest_at))

    async def test_a_replay_comes_before_what_waits_and_keeps_its_id(self) -> None:
        await self.put(b"one", "v1")
        await self.put(b"one", "v2")
        before = await self.webhooks.messages("ci", 0, 10)
        await self.deliver()
        self.assertEqual(1, await self.webhooks.replay("ci", 0.0))
        self.assertEqual([("local/app", "v1")], await self.heads())
        self.assertEqual(before, await self.webhooks.messages("ci", 0, 10))

    async def test_events_are_replayed_by_id_and_by_time(self) -> None:
        for tag in ("v1", "v2", "v3"):
            await self.put(b"one", tag)
            self.time += 10
        for _ in range(3):
            await self.deliver()
        last = (await self.webhooks.messages("ci", 0, 10))[-1]
        self.assertEqual(1, await self.webhooks.replay("ci", 0.0, only=last.id))
        self.assertEqual([("local/app", "v3")], await self.heads())
        self.assertEqual(1, await self.webhooks.replay("ci", 1010.0))
        self.assertEqual([("local/app", "v2")], await self.heads())
        self.assertEqual(0, await self.webhooks.replay("other", 0.0))

    async def test_delivered_ones_are_dropped_first(self) -> None:
        for tag in ("v1", "v2", "v3"):
            await self.put(b"one", tag)
        await self.put(b"one", "v4", image=OTHER)
        await self.deliver()
        await self.deliver()
        self.assertEqual(0, await self.webhooks.drop("ci", 0.0, 3))
        self.assertEqual(3, len(await self.told()))
        self.assertEqual(0, await self.webhooks.drop("ci", 0.0, 2))
        self.assertEqual(1, await self.webhooks.drop("ci", 0.0, 1))
        self.assertEqual(1, len(await self.told()))
        (seen,) = await self.webhooks.seen()
        self.assertEqual((1, 1, 2), (seen.dropped, seen.waiting, seen.delivered))

    async def test_an_image_that_has_very_many_loses_its_own(self) -> None:
        await self.put(b"one", "v1", image=OTHER)
        await self.put(b"one", "v2", image=OTHER)
        for number in range(5):
            await self.put(b"one", f"v{number}")
        self.assertEqual(3, await self.webhooks.drop("ci", 0.0, 4))
        left = [(each.subject, each.event.tag) for each in await self.webhooks.messages("ci", 0, 9)]
        expected = [("local/other", "v1"), ("local/other", "v2"), ("local/app", "v3")]
        self.assertEqual([*expected, ("local/app", "v4")], left)
        self.assertEqual(2, await self.webhooks.drop("ci", 0.0, 2))
        self.assertEqual([("local/app", "v4"), ("local/other", "v2")], sorted(await self.heads()))

    async def test_old_ones_are_dropped_and_leave_no_queue(self) -> None:
        await self.put(b"one", "v1")
        self.time += 100
        await self.put(b"one", "v1", image=OTHER)
        self.assertEqual(1, await self.webhooks.drop("ci", self.time, 10))
        self.assertEqual([("local/other", "v1")], await self.heads())
        (seen,) = await self.webhooks.seen()
        self.assertEqual((1, self.time), (seen.dropped, seen.dropped_at))
