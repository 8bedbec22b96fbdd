"""A fill that another process does: what one that only looks at it makes of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from attrs import frozen

from artifactd.kit.deferreds import Stopped
from artifactd.oci.errors import BadGateway
from artifactd.oci.names import Digest
from artifactd.registry.content import publish
from artifactd.registry.mirror.fill import Fill
from artifactd.registry.model import BlobFound
from artifactd.store.fills import FillInfo, FillView
from artifactd.upstream.errors import Missing
from artifactd.upstream.http.errors import Unreachable
from tests.registry.fixture import (
    ALPINE,
    BUSYBOX,
    CONTENT,
    DIGEST,
    SIZE,
    VALIDATOR,
    RemoteTestCase,
    content_of,
)

LOOK = 0.02  # seconds between two looks
LOOKS = 10  # and how many of them between two attempts to claim it
HALF = SIZE // 2


@frozen
class FailingView:
    """The view of a fill, for which ``look`` stands in."""

    view: FillView
    look: Callable[[], Any]

    def fileno(self) -> int:
        return self.view.fileno()

    def close(self) -> None:
        self.view.close()


class FollowingTestCase(RemoteTestCase):
    async def following(
        self, content: bytes = b"", size: int | None = SIZE, *, finish: bool = True
    ) -> tuple[Fill, Any]:
        """A fill that looks at that of another process, and the other's session."""
        other = await self.other_process(content)
        if size is not None:
            await other.describe(FillInfo(size, VALIDATOR))
        fill = self.begin(finish=finish)
        (await self.upstream.heads.get()).size()
        self.assertEqual(LOOK, await self.clock.scheduled.get())
        return fill, other

    def look(self, times: int = 1) -> None:
        self.clock.pump([LOOK] * times)

    async def grown(self, other: Any, content: bytes) -> None:
        other.write(content)
        await other.flush()

    async def listed(self, staged: Any) -> None:
        """The other process commits its row, for an image of its own."""
        await publish(
            staged,
            self.catalog,
            lambda: self.remote.add_blobs(
                [BUSYBOX], DIGEST, staged.size, staged.confirm, staged.release
            ),
        )

    async def found_now(self, fill: Fill) -> BlobFound:
        return self.successResultOf(self.found(fill))


class FollowingTests(FollowingTestCase):
    async def test_what_is_there_can_be_had_and_what_comes_too(self) -> None:
        fill, other = await self.following(CONTENT[:1000])
        found = await self.found_now(fill)
        self.assertEqual((SIZE, CONTENT[:1000]), (found.size, content_of(found.body)))
        await self.grown(other, CONTENT[1000:2000])
        self.look()
        self.assertEqual(CONTENT[:2000], content_of(found.body))
        self.assertEqual([], self.upstream.gets.pending, "nothing was fetched here")

    async def test_it_is_had_once_the_other_process_has_been_answered(self) -> None:
        fill, other = await self.following(size=None)
        waiting = self.found(fill)
        self.look()
        self.assertNoResult(waiting)
        await other.describe(FillInfo(SIZE))
        self.look()
        self.assertEqual(SIZE, (await waiting).size)

    async def test_the_last_piece_is_had_once_the_other_process_has_verified_it(self) -> None:
        fill, other = await self.following(CONTENT)
        found = await self.found_now(fill)
        self.assertLess(len(content_of(found.body)), SIZE)
        staged = await other.stage()
        self.look()
        self.assertEqual(CONTENT, content_of(found.body))
        await self.listed(staged)

    async def test_the_image_holds_it_once_the_other_process_has_listed_it(self) -> None:
        with self.assert_no_descriptor_stays():
            fill, other = await self.following(CONTENT)
            staged = await other.stage()
            self.look()
            # It has asked whether the row is there, and waits to ask again.
            self.assertEqual(LOOK, await self.clock.scheduled.get())
            self.assertIsNone(await self.catalog.blob_size(ALPINE, DIGEST))
            await self.listed(staged)
            self.look()
            await self.fills.ended(DIGEST)
            await other.close()
        self.assertIsNone(fill.progress.failure)
        await self.assert_stored(ALPINE, BUSYBOX)

    async def test_it_does_so_too_if_all_have_left_once_it_was_verified(self) -> None:
        fill, other = await self.following(CONTENT, finish=False)
        found = await self.found_now(fill)
        staged = await other.stage()
        self.look()
        await self.clock.scheduled.get()
        assert found.body is not None
        found.body.close()
        self.assertFalse(fill.stopped)
        await self.listed(staged)
        self.look()
        await self.fills.ended(DIGEST)
        await self.assert_stored(ALPINE, BUSYBOX)

    async def test_what_is_verified_and_never_listed_is_not_waited_for_without_end(self) -> None:
        fill, other = await self.following(CONTENT)
        staged = await other.stage()
        self.look()
        self.assertTrue(fill.progress.verified)
        await self.clock.scheduled.get()
        await staged.withdraw(self.catalog.forget_blob)
        self.look()
        await self.fills.ended(DIGEST)
        self.assertIsNone(await self.catalog.blob_size(ALPINE, DIGEST))

    async def test_what_failed_there_fails_here(self) -> None:
        with self.assert_no_descriptor_stays():
            fill, other = await self.following(CONTENT[:1000])
            found = await self.found_now(fill)
            await other.discard()
            self.look()
            await self.fills.ended(DIGEST)
            assert found.body is not None
            await self.assert_raises(OSError, found.body.wait(1000))
            found.body.close()
            await other.close()
        self.assertIsInstance(fill.progress.failure, BadGateway)

    async def test_what_was_refused_there_is_asked_for_here(self) -> None:
        fill, other = await self.following(size=None)
        await other.discard()
        await other.close()
        self.look()
        (await self.upstream.gets.get()).all()
        await self.fills.ended(DIGEST)
        self.assertIsNone(fill.progress.failure)
        await self.assert_stored(ALPINE)

    async def test_nothing_is_followed_that_this_image_may_not_have(self) -> None:
        await self.other_process(CONTENT[:1000])
        with self.assert_no_descriptor_stays():
            fill = self.begin()
            waiting = self.found(fill)
            missing = Missing("not for you")
            (await self.upstream.heads.get()).fail(missing)
            self.assertIs(missing, await self.assert_raises(Missing, waiting))
            await self.fills.ended(DIGEST)

    async def test_nor_where_the_upstream_says_that_it_has_another_size_for_this_image(
        self,
    ) -> None:
        other = await self.other_process(CONTENT[:1000])
        await other.describe(FillInfo(SIZE))
        with self.assert_no_descriptor_stays():
            waiting = self.found(self.begin())
            (await self.upstream.heads.get()).size(SIZE - 1)
            await self.assert_raises(Unreachable, waiting)
            await self.fills.ended(DIGEST)

    async def test_it_is_left_at_once(self) -> None:
        with self.assert_no_descriptor_stays():
            fill, other = await self.following(CONTENT[:1000])
            await self.fills.stop()
            await other.close()
        self.assertIsInstance(fill.progress.failure, Stopped)
        self.assertEqual([], self.clock.getDelayedCalls())

    async def test_it_is_left_at_once_while_the_upstream_is_asked(self) -> None:
        other = await self.other_process(CONTENT[:1000])
        with self.assert_no_descriptor_stays():
            self.begin()
            asked = await self.upstream.heads.get()
            await self.fills.stop()
        asked.fail(Unreachable("too late"))
        self.assertEqual(1000, other.written)


class TakeOverTests(FollowingTestCase):
    async def test_what_is_left_is_taken_over_where_it_ends(self) -> None:
        fill, other = await self.following(CONTENT[:HALF])
        found = await self.found_now(fill)
        await other.close()
        self.look(LOOKS - 2)  # the first was at once
        self.assertEqual([], self.upstream.gets.pending)
        self.look()
        asked = await self.upstream.gets.get()
        self.assertEqual(((HALF, None), VALIDATOR), (asked.span, asked.validator))
        asked.all()
        await self.fills.ended(DIGEST)
        self.assertEqual(CONTENT, content_of(found.body), "who followed notices nothing")
        await self.assert_stored(ALPINE)

    async def test_as_long_as_somebody_has_it_it_is_not(self) -> None:
        fill, _ = await self.following(CONTENT[:HALF])
        self.look(3 * LOOKS)
        self.assertEqual(([], False), (self.upstream.gets.pending, fill.progress.ended))

    async def test_what_was_taken_over_goes_on_after_a_failure(self) -> None:
        fill, other = await self.following(CONTENT[:HALF])
        await other.close()
        self.look(LOOKS)
        (await self.upstream.gets.get()).fail(Unreachable("it broke off"))
        while self.clock.getDelayedCalls():
            self.clock.advance(0.1)
        (await self.upstream.gets.get()).all()
        await self.fills.ended(DIGEST)
        self.assertIsNone(fill.progress.failure)
        await self.assert_stored(ALPINE)

    async def test_no_descriptor_stays(self) -> None:
        with self.assert_no_descriptor_stays():
            _, other = await self.following(CONTENT[:HALF])
            await other.close()
            self.look(LOOKS)
            (await self.upstream.gets.get()).all()
            await self.fills.ended(DIGEST)

    async def test_the_claim_does_not_stay_if_the_disk_fails_in_that_moment(self) -> None:
        view = self.fills.store.view
        looks = [None] * LOOKS + [OSError(errno.EIO, "the disk is broken")]

        async def viewed(digest: Digest) -> Any:
            found = await view(digest)
            assert found is not None
            look = found[0].look

            def looked() -> Any:
                problem = looks.pop(0) if looks else None
                if problem is not None:
                    raise problem
                return look()

            return FailingView(found[0], looked), found[1]

        self.patch(self.fills.store, "view", viewed)
        with self.assert_no_descriptor_stays():
            other = await self.other_process(CONTENT[:HALF])
            self.begin()
            (await self.upstream.heads.get()).size()
            await self.clock.scheduled.get()
            await other.close()
            self.look(LOOKS)
            await self.fills.ended(DIGEST)
            self.assertEqual([], looks)
            await self.assert_free(HALF)

    async def test_another_blob_is_none_of_its_business(self) -> None:
        fill, _ = await self.following(CONTENT[:HALF])
        another = self.begin(digest=Digest.of(b"another"))
        (await self.upstream.gets.get()).all(b"another")
        await self.fills.ended(another.source.digest)
        self.assertEqual((True, False), (another.progress.verified, fill.progress.ended))
