"""Blobs of a remote repository: from the store, from a fill, and between the two."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from artifactd.oci.errors import BadGateway, BlobUnknown, RegistryError, Unavailable
from artifactd.oci.names import ImageName
from artifactd.oci.ranges import ByteRange
from artifactd.registry.content import Contents, Stored, publish
from artifactd.registry.mirror.blobs import RemoteBlobs
from artifactd.registry.mirror.eviction import LastUsed, forget
from artifactd.registry.mirror.range_cache import Parts
from artifactd.registry.model import BlobFound, BlobWanted
from artifactd.upstream.errors import Missing
from artifactd.upstream.http.errors import Unreachable
from tests.registry.fixture import (
    ALPINE,
    BUSYBOX,
    CONTENT,
    DIGEST,
    SIZE,
    Asked,
    Body,
    RemoteTestCase,
    content_of,
    remote_settings,
)
from tests.store.fixture import SlowThreads

PART = ByteRange(1000, 1999)
BOUNDED = BlobWanted(span=lambda _: PART, bounded=True)
HEAD = BlobWanted(head=True)
FRESHNESS = 60.0
LOOK = 0.02  # seconds between two looks
LOOKS = 1500  # at what is verified and not listed


class RemoteBlobsTestCase(RemoteTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.last_used = LastUsed(self.remote, lambda: self.time)
        self.parts = Parts(self.stores.fills, 0, self.clock)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.parts.stop()))
        self.blobs = self.of()

    def of(self, **settings: Any) -> RemoteBlobs:
        blobs = self.stores.blobs
        return RemoteBlobs(
            self.upstream,
            self.catalog,
            self.remote,
            Stored(blobs, Contents(blobs)),
            self.fills,
            self.parts,
            self.last_used,
            self.counters,
            remote_settings(freshness=FRESHNESS, **settings),
            self.clock,
        )

    def get(
        self, image: ImageName = ALPINE, wanted: BlobWanted | None = None
    ) -> Deferred[BlobFound]:
        getting = self.blobs.get(image, DIGEST, wanted or BlobWanted())
        return Deferred.fromCoroutine(getting).addCallback(self._close_at_last)

    def _close_at_last(self, found: BlobFound) -> BlobFound:
        if found.body is not None:
            self.addCleanup(found.body.close)
        return found

    async def asked(self, questions: Any) -> Asked:
        asked: Asked = await questions.get()
        # Once round, so that who asks has come to wait for the answer.
        await self.remote.stored_size("docker.io", DIGEST)
        return asked

    async def cached(self, image: ImageName = ALPINE) -> None:
        """Let ``image`` have the blob."""
        getting = self.get(image)
        (await self.asked(self.upstream.gets)).all()
        close(await getting)
        await self.fills.ended(DIGEST)

    async def evicted(self) -> None:
        held = await self.remote.least_used("docker.io", 1e12, 0, 10)
        await forget(await self.remote.drop(held), self.catalog, self.stores.blobs)


def close(found: BlobFound) -> None:
    assert found.body is not None
    found.body.close()


class StoredTests(RemoteBlobsTestCase):
    async def test_what_is_here_is_a_hit(self) -> None:
        await self.cached()
        found = await self.get()
        self.assertEqual(CONTENT, content_of(found.body))
        self.assertEqual(("cache", "hit"), (found.provenance.source, found.provenance.cache))
        self.assertEqual((1, 1), (self.counted("misses"), self.counted("hits")))
        self.assertEqual(2 * SIZE, self.counted("client_bytes"))

    async def test_offline_nothing_is_asked_for(self) -> None:
        self.blobs = self.of(offline=True)
        await self.assert_raises(BlobUnknown, self.get())
        self.assertEqual([], self.upstream.gets.pending)

    async def test_what_is_evicted_behind_its_row_is_fetched_again(self) -> None:
        await self.cached()
        size = self.catalog.blob_size

        async def just_before(image: ImageName, digest: Any) -> int | None:
            answer = await size(image, digest)
            if answer is not None:
                await self.evicted()
            return answer

        patch = self.patch(self.catalog, "blob_size", just_before)
        getting = self.get()
        (await self.asked(self.upstream.gets)).all()
        patch.restore()
        self.assertEqual(SIZE, (await getting).size)
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE)

    async def test_what_the_store_has_lost_is_fetched_again_for_all(self) -> None:
        await self.cached()
        self.stores.blobs.remove(DIGEST)
        getting = self.get()
        (await self.asked(self.upstream.heads)).size()
        (await self.asked(self.upstream.gets)).all()
        self.assertEqual(SIZE, (await getting).size)
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE)

    async def test_what_is_read_is_in_use_until_it_is_closed(self) -> None:
        await self.cached()
        found = await self.get()
        for self.time in (2000.0, 3000.0):
            await self.last_used.write()
            self.assertEqual([self.time], await self.used())
        self.time = 4000.0
        close(found)
        self.time = 5000.0
        await self.last_used.write()
        self.assertEqual([4000.0], await self.used())
        await self.last_used.write()
        self.assertEqual([4000.0], await self.used())

    async def used(self) -> list[float]:
        return [h.used_at for h in await self.remote.least_used("docker.io", 1e12, 0, 10)]


class SharedTests(RemoteBlobsTestCase):
    """The bytes are here, or on their way, for another image."""

    async def test_they_are_had_once_the_upstream_lets_this_image_have_them(self) -> None:
        await self.cached()
        getting = self.get(BUSYBOX)
        asked = await self.asked(self.upstream.heads)
        self.assertEqual("library/busybox", asked.image)
        self.assertNoResult(getting)
        asked.size()
        self.assertEqual(CONTENT, content_of((await getting).body))
        await self.assert_stored(ALPINE, BUSYBOX)
        self.assertEqual([], self.upstream.gets.pending)

    async def test_otherwise_they_are_not(self) -> None:
        await self.cached()
        for wanted in (BlobWanted(), HEAD, BOUNDED):
            getting = self.get(BUSYBOX, wanted)
            (await self.asked(self.upstream.heads)).fail(Missing("not for you"))
            await self.assert_raises(BlobUnknown, getting)
        self.assertIsNone(await self.catalog.blob_size(BUSYBOX, DIGEST))

    async def test_a_fill_that_is_joined_is_every_images(self) -> None:
        one = self.get()
        asked = await self.asked(self.upstream.gets)
        other = self.get(BUSYBOX)
        (await self.asked(self.upstream.heads)).size()
        asked.all()
        self.assertEqual(SIZE, (await one).size)
        self.assertIn("collapsed", (await other).provenance.cache)
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE, BUSYBOX)
        self.assertEqual(1, self.counted("coalesced"))

    async def test_who_may_not_have_it_does_not_join(self) -> None:
        one = self.get()
        asked = await self.asked(self.upstream.gets)
        other = self.get(BUSYBOX)
        (await self.asked(self.upstream.heads)).fail(Missing("not for you"))
        await self.assert_raises(BlobUnknown, other)
        asked.all()
        await one
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE)
        self.assertIsNone(await self.catalog.blob_size(BUSYBOX, DIGEST))

    async def test_a_fill_that_ends_before_it_can_be_joined_is_not_done_twice(self) -> None:
        one = self.get()
        asked = await self.asked(self.upstream.gets)
        other = self.get(BUSYBOX)
        may_it = await self.asked(self.upstream.heads)
        asked.all()
        await one
        await self.fills.ended(DIGEST)
        may_it.size()
        found = await other
        self.assertEqual(CONTENT, content_of(found.body))
        self.assertIn("detail=shared", found.provenance.cache)
        self.assertEqual([], self.upstream.gets.pending)
        await self.assert_stored(ALPINE, BUSYBOX)

    async def test_nor_is_one_that_ends_while_a_range_of_it_is_asked_for(self) -> None:
        one = self.get()
        asked = await self.asked(self.upstream.gets)
        part = self.get(ALPINE, BOUNDED)
        (await self.asked(self.upstream.heads)).size()
        ranged = await self.asked(self.upstream.gets)
        self.assertEqual((1000, 1999), ranged.span)
        asked.all()
        await one
        await self.fills.ended(DIGEST)
        ranged.body(Body(0))  # it does not serve ranges
        found = await part
        self.assertEqual((PART, CONTENT), (found.span, content_of(found.body)))
        self.assertEqual([], self.upstream.gets.pending)


class PartTests(RemoteBlobsTestCase):
    async def test_a_part_is_a_hit_once_its_last_byte_is_here(self) -> None:
        first = self.get(ALPINE, BOUNDED)
        (await self.asked(self.upstream.heads)).size()
        body = (await self.asked(self.upstream.gets)).body(Body(PART.first))
        reading = (await first).body
        assert reading is not None
        caches = [(await self.get(ALPINE, BOUNDED)).provenance.cache]
        body.send(CONTENT[PART.first : PART.last + 1])
        await reading.wait(PART.last)
        # The upstream has not ended its answer, so the part is still being fetched.
        caches.append((await self.get(ALPINE, BOUNDED)).provenance.cache)
        self.assertEqual(
            ["fwd=partial; collapsed; detail=unverified", "hit; detail=unverified"], caches
        )
        body.end()


class FinishedElsewhereTests(RemoteBlobsTestCase):
    """Another process has verified it, and it has no row yet."""

    async def staged(self) -> Any:
        return await (await self.other_process(CONTENT)).stage()

    async def waiting(self) -> Deferred[BlobFound]:
        """A client, once it has been seen that the blob is staged."""
        getting = self.get()
        self.assertEqual(LOOK, await self.clock.scheduled.get())
        self.clock.advance(LOOK)
        self.assertEqual(LOOK, await self.clock.scheduled.get())
        self.assertNoResult(getting)
        return getting

    async def assert_shared(self, getting: Deferred[BlobFound]) -> None:
        (await self.asked(self.upstream.heads)).size()
        found = await getting
        self.assertEqual(CONTENT, content_of(found.body))
        self.assertIn("detail=shared", found.provenance.cache)
        self.assertEqual([], self.upstream.gets.pending)
        await self.assert_stored(ALPINE, BUSYBOX)

    async def test_what_is_verified_there_is_waited_for(self) -> None:
        staged = await self.staged()
        getting = await self.waiting()
        await publish(
            staged,
            self.catalog,
            lambda: self.remote.add_blobs(
                [BUSYBOX], DIGEST, staged.size, staged.confirm, staged.release
            ),
        )
        self.clock.advance(LOOK)
        await self.assert_shared(getting)

    async def test_what_can_not_be_kept_there_is_fetched(self) -> None:
        staged = await self.staged()
        getting = await self.waiting()
        await staged.withdraw(self.catalog.forget_blob)
        self.clock.advance(LOOK)
        (await self.asked(self.upstream.gets)).all()
        self.assertEqual(CONTENT, content_of((await getting).body))
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE)

    async def test_what_is_never_listed_is_not_waited_for_without_end(self) -> None:
        await self.staged()
        getting = await self.waiting()
        for _ in range(LOOKS - 2):
            self.clock.advance(LOOK)
            await self.clock.scheduled.get()
        self.clock.advance(LOOK)
        (await self.asked(self.upstream.gets)).all()
        self.assertEqual(CONTENT, content_of((await getting).body))

    async def test_the_daemon_stops_while_it_is_waited_for(self) -> None:
        await self.staged()
        getting = await self.waiting()
        await self.fills.stop()
        await self.assert_raises(Unavailable, getting)


class FillTests(RemoteBlobsTestCase):
    async def test_who_comes_while_a_fill_is_being_left_begins_after_it(self) -> None:
        threads = SlowThreads()
        self.fills.store = self.open_stores(run=threads).fills
        self.blobs = self.of(finish_fills=False)
        one = self.get()
        while not self.upstream.gets.pending:  # the row is asked for first
            await self.remote.stored_size("docker.io", DIGEST)
            threads.run_all()
        asked = await self.asked(self.upstream.gets)
        body = asked.body()
        threads.run_all()
        found = await one
        body.send(CONTENT[:1000])
        threads.run_all()
        close(found)
        self.assertEqual(["delivered", "cancelled"], body.told)
        late = self.get()
        await self.remote.stored_size("docker.io", DIGEST)
        self.assertNoResult(late)
        asking = self.upstream.gets.get()
        while not asking.called:
            threads.run_all()
            await self.remote.stored_size("docker.io", DIGEST)
        again = await asking
        self.assertEqual((1000, None), again.span)
        again.body()
        threads.run_all()
        self.assertEqual(SIZE, (await late).size)
        stopping = Deferred.fromCoroutine(self.fills.stop())
        threads.run_all()
        await stopping

    async def test_the_daemon_stops(self) -> None:
        getting = self.get()
        await self.asked(self.upstream.gets)
        await self.fills.stop()
        await self.assert_raises(Unavailable, getting)
        await self.assert_raises(Unavailable, self.get())

    async def test_wrong_bytes_are_a_bad_gateway_where_nothing_was_answered_yet(self) -> None:
        getting = self.get(ALPINE, BlobWanted(patient=True))
        body = (await self.asked(self.upstream.gets)).body(Body(0, None))
        body.send(CONTENT[:-1] + b"!").end()
        error = await self.assert_raises(BadGateway, getting)
        self.assertIn("not kept", error.message)

    async def test_what_the_upstream_says_is_told_to_the_client(self) -> None:
        for problem in (Missing("not here"), Unreachable("broken")):
            getting = self.get()
            (await self.asked(self.upstream.gets)).fail(problem)
            error = await self.assert_raises(RegistryError, getting)
            assert isinstance(error.detail, dict)
            self.assertEqual(str(problem), error.detail["reason"])

    async def test_a_head_asks_the_upstream_once_for_a_while(self) -> None:
        heads = [self.get(ALPINE, HEAD) for _ in range(3)]
        (await self.asked(self.upstream.heads)).size()
        self.assertEqual({SIZE}, {(await head).size for head in heads})
        await self.get(ALPINE, HEAD)
        self.clock.advance(FRESHNESS)
        again = self.get(ALPINE, HEAD)
        (await self.asked(self.upstream.heads)).size()
        await again
        self.assertEqual([], self.upstream.heads.pending + self.below("fills"))


class WholeTests(RemoteBlobsTestCase):
    async def test_it_waits_until_the_image_holds_the_blob(self) -> None:
        for finish in (True, False):
            self.blobs = self.of(finish_fills=finish)
            getting = Deferred.fromCoroutine(self.blobs.whole(ALPINE, DIGEST))
            body = (await self.asked(self.upstream.gets)).body().send(CONTENT[:1000])
            self.assertNoResult(getting)
            body.send(CONTENT[1000:]).end()
            self.assertTrue(await getting)
            await self.assert_stored(ALPINE)
            self.time += 1000.0
            await self.evicted()

    async def test_it_says_if_that_fails(self) -> None:
        getting = Deferred.fromCoroutine(self.blobs.whole(ALPINE, DIGEST))
        body = (await self.asked(self.upstream.gets)).body()
        body.send(CONTENT[:-1] + b"!").end()
        self.assertFalse(await getting)

    async def test_no_descriptor_stays(self) -> None:
        with self.assert_no_descriptor_stays():
            getting = Deferred.fromCoroutine(self.blobs.whole(ALPINE, DIGEST))
            (await self.asked(self.upstream.gets)).all()
            self.assertTrue(await getting)
