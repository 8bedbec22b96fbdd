"""What the readers of a blob that is coming may have of it."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.ranges import ByteRange
from artifactd.registry.mirror.follower import HELD, Follower, Progress, SharedFile
from artifactd.store.files import OpenFile

SIZE = 10 * HELD


class FollowerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.progress = Progress()
        self.file = OpenFile(os.open(os.devnull, os.O_RDONLY))
        self.shared = SharedFile(self.file)
        self.addCleanup(self.file.close)

    def follower(self, span: ByteRange | None = None, *, hold: bool = True) -> Follower:
        return Follower(self.progress, self.shared.share(), span, hold)

    def test_the_last_piece_is_held_back_until_the_blob_is_verified(self) -> None:
        follower = self.follower()
        self.progress.answer(SIZE)
        self.progress.grow(SIZE)
        self.assertEqual(follower.available, SIZE - HELD)
        self.progress.verify()
        self.assertEqual(follower.available, SIZE)

    def test_without_a_known_size_the_last_piece_is_that_of_what_is_here(self) -> None:
        follower = self.follower()
        self.progress.answer(None)
        self.progress.grow(3 * HELD)
        self.assertEqual((follower.size, follower.available), (None, 2 * HELD))
        self.progress.verify()
        self.assertEqual((follower.size, follower.available), (3 * HELD, 3 * HELD))

    def test_of_a_range_its_own_last_piece_is_held_back(self) -> None:
        follower = self.follower(ByteRange(0, 4 * HELD - 1))
        self.progress.answer(SIZE)
        self.progress.grow(SIZE)
        self.assertEqual(follower.available, 3 * HELD)

    def test_of_a_bounded_range_nothing_is(self) -> None:
        follower = self.follower(ByteRange(5, 9), hold=False)
        self.progress.grow(7)
        self.assertEqual(follower.available, 7)

    def test_a_wait_fires_when_there_is_more_for_this_reader(self) -> None:
        held, free = self.follower(), self.follower(ByteRange(5, 9), hold=False)
        self.progress.answer(SIZE)
        waiting, at_once = held.wait(0), free.wait(0)
        self.progress.grow(HELD)
        self.successResultOf(at_once)
        self.progress.grow(SIZE)
        self.successResultOf(waiting)
        last = held.wait(SIZE - HELD)
        self.assertNoResult(last)
        self.progress.verify()
        self.successResultOf(last)

    def test_a_wait_behind_the_end_fires_once_the_end_is_known(self) -> None:
        follower = self.follower()
        self.progress.grow(HELD)
        waiting = follower.wait(HELD)
        self.assertNoResult(waiting)
        self.progress.verify()
        self.successResultOf(waiting)
        self.successResultOf(follower.wait(HELD))

    def test_a_wait_fails_with_the_reason_why_no_more_will_come(self) -> None:
        follower = self.follower()
        waiting = follower.wait(0)
        self.progress.fail(RuntimeError("the upstream is gone"))
        self.assertIn("the upstream is gone", str(self.failureResultOf(waiting, OSError).value))
        self.failureResultOf(follower.wait(0), OSError)

    def test_a_wait_may_be_cancelled_and_disturbs_nobody(self) -> None:
        one, other = self.follower(), self.follower(ByteRange(5, 9), hold=False)
        given_up, waiting = one.wait(0), other.wait(0)
        given_up.addErrback(lambda _: None)
        given_up.cancel()
        self.progress.grow(1)
        self.successResultOf(waiting)

    def test_what_has_ended_well_can_not_fail_any_more(self) -> None:
        self.progress.grow(1)
        self.progress.verify()
        self.progress.fail(RuntimeError("too late"))
        self.assertIsNone(self.progress.failure)

    def test_the_file_is_closed_with_its_last_reader(self) -> None:
        one, other = self.follower(), self.follower()
        self.shared.close()
        one.close()
        one.close()
        self.assertGreaterEqual(self.file.fileno(), 0)
        other.close()
        self.assertEqual(self.file.fileno(), -1)
