"""A fill and those who want it: who waits, joins and leaves, and what goes wrong at the end."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from artifactd.kit.deferreds import Stopped
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.mirror.fill import (
    UNATTENDED_FILLS,
    UNATTENDED_SECONDS,
    UNATTENDED_SHARE,
    Corrupt,
    Fill,
)
from artifactd.registry.mirror.follower import HELD
from artifactd.registry.model import BlobFound, BlobWanted
from artifactd.upstream.errors import Missing
from artifactd.upstream.http.errors import Unreachable
from tests.registry.fixture import (
    ALPINE,
    BUSYBOX,
    CONTENT,
    DIGEST,
    SIZE,
    Body,
    RemoteTestCase,
    content_of,
)
from tests.store.fixture import FullDisk

PATIENT = BlobWanted(patient=True)


def close(found: BlobFound) -> None:
    """The client has read enough, or is gone."""
    assert found.body is not None
    found.body.close()


class WaiterTests(RemoteTestCase):
    async def test_all_who_wait_begin_when_the_upstream_answers(self) -> None:
        fill = self.begin()
        waiting = [self.found(fill) for _ in range(3)]
        asked = await self.upstream.gets.get()
        for one in waiting:
            self.assertNoResult(one)
        body = asked.body()
        found = [self.successResultOf(one) for one in waiting]
        self.assertEqual({SIZE}, {one.size for one in found})
        body.send(CONTENT).end()
        await self.fills.ended(DIGEST)
        self.assertEqual([CONTENT] * 3, [content_of(one.body) for one in found])

    async def test_an_error_before_the_answer_is_everybodys_and_not_logged(self) -> None:
        with self.logged("warn") as logged, self.assert_no_descriptor_stays():
            fill = self.begin()
            waiting = [self.found(fill) for _ in range(3)] + [self.found(fill, PATIENT)]
            missing = Missing("not here")
            (await self.upstream.gets.get()).fail(missing)
            for one in waiting:
                self.assertIs(missing, await self.assert_raises(Missing, one))
            await self.fills.ended(DIGEST)
        self.assertEqual([], logged(), "each client's answer tells")

    async def test_an_error_after_the_answer_is_everybodys_and_logged_once(self) -> None:
        fill = self.begin(resumes=0)
        body = (await self.upstream.gets.get()).body()
        followers = [await self.found(fill) for _ in range(3)]
        with self.logged("warn") as logged:
            body.break_off(Unreachable("it broke off"))
            await self.fills.ended(DIGEST)
        self.assertEqual(1, len(logged()), logged())
        self.assertIn(f"the fill of {ALPINE}@{DIGEST} failed: it broke off", logged()[0])
        for found in followers:
            assert found.body is not None
            error = await self.assert_raises(OSError, found.body.wait(0))
            self.assertIn("it broke off", str(error))

    async def test_what_nobody_has_thought_of_is_logged_once_with_its_traceback(self) -> None:
        fill = self.begin()
        waiting = [self.found(fill) for _ in range(3)]
        (await self.upstream.gets.get()).fail(ZeroDivisionError())
        for one in waiting:
            await self.assert_raises(ZeroDivisionError, one)
        await self.fills.ended(DIGEST)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        await self.assert_free(0)

    async def test_a_small_blob_is_verified_before_anybody_gets_it(self) -> None:
        fill = self.begin(digest=Digest.of(b"small"))
        waiting = self.found(fill)
        asked = await self.upstream.gets.get()
        body = asked.body(Body(0, 5)).send(b"wrong")
        self.assertNoResult(waiting)
        body.end()
        await self.assert_raises(Corrupt, waiting)

    async def test_so_is_one_of_which_nobody_says_that_it_is_small(self) -> None:
        fill = self.begin(digest=Digest.of(b"small"))
        waiting = self.found(fill)
        asked = await self.upstream.gets.get()
        body = asked.body(Body(0, None)).send(b"wrong")
        self.assertNoResult(waiting)
        body.end()
        await self.assert_raises(Corrupt, waiting)

    async def test_once_it_can_not_be_small_any_more_it_begins(self) -> None:
        fill = self.begin()
        waiting = self.found(fill)
        body = (await self.upstream.gets.get()).body(Body(0, None)).send(CONTENT[:HELD])
        self.assertNoResult(waiting)
        body.send(CONTENT[HELD : HELD + 1])
        found = self.successResultOf(waiting)
        self.assertEqual((None, CONTENT[:1]), (found.size, content_of(found.body)))
        body.send(CONTENT[HELD + 1 :]).end()
        self.assertEqual(CONTENT, content_of(found.body))

    async def test_a_client_that_takes_no_length_waits_for_the_end(self) -> None:
        fill = self.begin()
        waiting = self.found(fill, PATIENT)
        body = (await self.upstream.gets.get()).body(Body(0, None)).send(CONTENT)
        self.assertNoResult(waiting)
        body.end()
        self.assertEqual(SIZE, (await waiting).size)

    async def test_no_descriptor_stays_when_all_have_read(self) -> None:
        with self.assert_no_descriptor_stays():
            fill = self.begin()
            (await self.upstream.gets.get()).all()
            followers = [await self.found(fill) for _ in range(3)]
            await self.fills.ended(DIGEST)
            for found in followers:
                close(found)
                close(found)


class LeavingTests(RemoteTestCase):
    """``finish = False``: a fill ends with the last who wants it."""

    async def test_the_last_who_leaves_ends_it(self) -> None:
        fill = self.begin(finish=False)
        one, other = self.found(fill), self.found(fill)
        body = (await self.upstream.gets.get()).body().send(CONTENT[:1000])
        close(await one)
        self.assertFalse(fill.stopped)
        close(await other)
        self.assertEqual(["delivered", "cancelled"], body.told)
        await self.fills.ended(DIGEST)
        self.assertIsInstance(fill.progress.failure, Stopped)
        await self.assert_free(1000)

    async def test_who_still_waits_for_its_answer_counts(self) -> None:
        fill = self.begin(finish=False)
        patient, follower = self.found(fill, PATIENT), self.found(fill)
        body = (await self.upstream.gets.get()).body(Body(0, None)).send(CONTENT[: SIZE - 1])
        close(await follower)
        self.assertNoResult(patient)
        body.send(CONTENT[SIZE - 1 :]).end()
        self.assertEqual(CONTENT, content_of((await patient).body))
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE)

    async def test_once_it_is_verified_it_is_kept_whoever_leaves(self) -> None:
        fill = self.begin(finish=False)
        patient = self.found(fill, PATIENT)
        patient.addCallback(close)
        (await self.upstream.gets.get()).body(Body(0, None)).send(CONTENT).end()
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE)

    async def test_otherwise_it_goes_on_when_all_have_left(self) -> None:
        fill = self.begin()
        body = (await self.upstream.gets.get()).body().send(CONTENT[:1000])
        close(await self.found(fill))
        body.send(CONTENT[1000:]).end()
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE)


class LinkTests(RemoteTestCase):
    async def test_all_images_that_joined_hold_the_blob(self) -> None:
        fill = self.begin()
        body = (await self.upstream.gets.get()).body()
        fill.images.add(BUSYBOX)
        body.send(CONTENT).end()
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE, BUSYBOX)

    async def test_one_that_joins_while_the_row_is_written_holds_it_too(self) -> None:
        fill = self.begin()
        write = self.remote.add_blobs

        async def written_late(images: Sequence[ImageName], *args: Any) -> None:
            await write(images, *args)
            fill.images.add(BUSYBOX)

        self.patch(self.remote, "add_blobs", written_late)
        (await self.upstream.gets.get()).all()
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE, BUSYBOX)


class PublicationTests(RemoteTestCase):
    """The bytes are verified, and then they can't be kept."""

    async def assert_had_and_not_kept(self, reason: str) -> None:
        with self.logged("error") as logged:
            fill = self.begin()
            (await self.upstream.gets.get()).all()
            found = await self.found(fill)
            await self.fills.ended(DIGEST)
        self.assertEqual(CONTENT, content_of(found.body), "who followed may have it")
        self.assertEqual(1, len(logged()), logged())
        self.assertIn(reason, logged()[0])
        self.assertIsNone(await self.catalog.blob_size(ALPINE, DIGEST))
        self.assertEqual([], self.below("fills") + self.below("blobs") + self.below("staging"))

    async def assert_next_one_has_it(self) -> None:
        fill = self.begin()
        asked = await self.upstream.gets.get()
        self.assertEqual((0, None), asked.span)
        asked.all()
        await self.found(fill)
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE)

    async def test_the_catalog_stays_locked(self) -> None:
        async def locked(*args: object) -> None:
            raise Unavailable("the catalog is locked")

        patch = self.patch(self.remote, "add_blobs", locked)
        await self.assert_had_and_not_kept("locked")
        patch.restore()
        await self.assert_next_one_has_it()

    async def test_the_row_can_not_be_written(self) -> None:
        async def fail(*args: object) -> None:
            raise OSError(errno.EIO, "the disk is broken")

        patch = self.patch(self.remote, "add_blobs", fail)
        await self.assert_had_and_not_kept("the disk is broken")
        patch.restore()
        await self.assert_next_one_has_it()


class FullDiskTests(RemoteTestCase):
    async def test_nothing_is_kept_of_what_does_not_fit(self) -> None:
        disk = FullDisk(1000, OSError(errno.ENOSPC, "no space left"))
        self.fills.store = self.open_stores(disk).fills
        with self.assert_no_descriptor_stays(), self.logged("error") as logged:
            fill = self.begin()
            body = (await self.upstream.gets.get()).body().send(CONTENT)
            self.assertEqual(["delivered", "stopped"], body.told)
            await self.fills.ended(DIGEST)
        self.assertEqual(errno.ENOSPC, getattr(fill.progress.failure, "errno", None))
        self.assertEqual(1, len(logged()), logged())
        self.assertEqual([], self.below("fills"))

    async def test_bytes_that_can_not_be_synced_are_not_kept(self) -> None:
        disk = FullDisk(10 * SIZE, OSError(errno.EIO, "lost"))
        self.fills.store = self.open_stores(disk).fills
        disk.failing.add("sync")
        with self.assert_no_descriptor_stays():
            self.begin()
            (await self.upstream.gets.get()).all()
            await self.fills.ended(DIGEST)
        self.assertEqual([], self.below("fills") + self.below("blobs"))
        self.assertIsNone(await self.catalog.blob_size(ALPINE, DIGEST))


class ManyTests(RemoteTestCase):
    async def test_all_fills_are_stopped_and_none_begins_afterwards(self) -> None:
        with self.assert_no_descriptor_stays():
            contents = [b"%d" % n * 1000 for n in range(5)]
            fills = [self.begin(digest=Digest.of(content)) for content in contents]
            for content in contents[:3]:
                (await self.upstream.gets.get()).body(Body(0, 1000)).send(content[:500])
            await self.fills.stop()
        self.assertEqual({Stopped}, {type(fill.progress.failure) for fill in fills})
        self.assertRaises(Stopped, self.begin)
        for content, size in zip(contents, (500, 500, 500, 0, 0), strict=True):
            self.assertIsNone(self.fills.find(Digest.of(content)))
            await self.assert_free(size, Digest.of(content))

    async def test_who_waits_for_the_end_is_told_of_every_end(self) -> None:
        await self.fills.ended(DIGEST)
        for error in (None, Missing("not here")):
            fill = self.begin()
            asked = await self.upstream.gets.get()
            if error is None:
                asked.all()
            else:
                asked.fail(error)
            await self.fills.ended(DIGEST)
            self.assertTrue(fill.progress.ended)
            self.assertIsNone(self.fills.find(DIGEST))


class UnattendedTests(RemoteTestCase):
    """Fills whose clients have all left."""

    begun = 0

    async def leave(self, *, come: int = 0, size_cap: int = 0, size: int | None = SIZE) -> Fill:
        """A fill of another blob; its client leaves when ``come`` bytes of it have come."""
        self.begun += 1
        fill = self.begin(digest=Digest.of(b"%d" % self.begun), size_cap=size_cap)
        asking = self.found(fill)
        body = (await self.upstream.gets.get()).body(Body(0, size))
        if size is None:
            come = HELD + 1
        body.send(CONTENT[:come])
        await fill.larger(come - 1)
        close(await asking)
        return fill

    async def test_few_go_on_at_the_same_time(self) -> None:
        going_on = [await self.leave() for _ in range(UNATTENDED_FILLS)]
        beyond = await self.leave(come=1000)
        self.assertEqual([False] * UNATTENDED_FILLS, [fill.stopped for fill in going_on])
        self.assertTrue(beyond.stopped)
        digest = beyond.source.digest
        await self.fills.ended(digest)
        await self.assert_free(1000, digest)

    async def test_one_that_a_client_follows_again_makes_room(self) -> None:
        going_on = [await self.leave() for _ in range(UNATTENDED_FILLS)]
        await self.found(going_on[0])
        self.assertFalse((await self.leave()).stopped)
        self.assertTrue((await self.leave()).stopped)

    async def test_one_that_ends_makes_room(self) -> None:
        going_on = [await self.leave() for _ in range(UNATTENDED_FILLS)]
        going_on[0].stop()
        await self.fills.ended(going_on[0].source.digest)
        self.assertFalse((await self.leave()).stopped)

    async def test_they_fetch_no_more_than_a_share_of_the_cache_in_a_while(self) -> None:
        cap = UNATTENDED_SHARE * 2 * SIZE
        self.assertFalse((await self.leave(size_cap=cap)).stopped)
        self.assertFalse((await self.leave(size_cap=cap, come=1000)).stopped)
        self.assertTrue((await self.leave(size_cap=cap)).stopped)
        self.assertFalse((await self.leave(size_cap=cap, come=SIZE - 500)).stopped)
        self.clock.advance(UNATTENDED_SECONDS)
        self.assertFalse((await self.leave(size_cap=cap)).stopped)

    async def test_one_that_is_left_again_counts_once(self) -> None:
        cap = UNATTENDED_SHARE * 2 * SIZE
        fill = await self.leave(size_cap=cap, come=1000)
        self.assertFalse((await self.leave(size_cap=cap)).stopped)
        for _ in range(3):
            close(await self.found(fill))
        self.assertFalse(fill.stopped)

    async def test_one_of_unknown_size_does_not_fit_a_share(self) -> None:
        self.assertTrue((await self.leave(size=None, size_cap=1 << 40)).stopped)
        self.assertFalse((await self.leave(size=None)).stopped)
