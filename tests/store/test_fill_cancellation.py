"""Fills and extents when nobody waits any more for what a thread is doing."""

from __future__ import annotations

import os

from twisted.internet.defer import CancelledError, ensureDeferred

from artifactd.oci.ranges import ByteRange
from artifactd.store.fills import FillInfo, FillState
from tests.store.filling import DIGEST, SlowFillTestCase


class FillCancellationTests(SlowFillTestCase):
    def test_a_claim_that_nobody_waits_for_is_given_up(self) -> None:
        self.ended(self.session.close())
        claiming = ensureDeferred(self.slow.fills.claim(DIGEST))
        claiming.cancel()
        self.failureResultOf(claiming, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual(0, self.claimed().written)

    def test_closing_goes_on_when_nobody_waits_for_it(self) -> None:
        self.session.write(b"bytes")
        closing = ensureDeferred(self.session.close())
        closing.cancel()
        self.failureResultOf(closing, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual(5, self.claimed().written)

    def test_extents_that_nobody_waits_for_are_taken_all_the_same(self) -> None:
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 0, FillInfo(11)))
        extent.write(b"hello")
        self.ended(extent.record())
        self.ended(extent.close())
        taking = ensureDeferred(self.session.take_extents(None))
        taking.cancel()
        self.failureResultOf(taking, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual((5, 5), (self.session.offset, self.session.written))

    def test_a_staged_fill_that_nobody_waits_for_is_swept(self) -> None:
        self.session.write(b"hello world")
        self.slow_threads.run_all()
        staging = ensureDeferred(self.session.stage())
        staging.cancel()
        self.failureResultOf(staging, CancelledError)
        self.ended(self.session.close())
        self.assertEqual(1, self.ended(self.slow.blobs.sweep(self.rows.forget)))
        self.assertEqual([], self.below("staging") + self.below("fills"))

    def test_views_and_extents_that_nobody_waits_for_are_closed(self) -> None:
        self.session.write(b"hello")
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 0, FillInfo(11)))
        extent.write(b"hello")
        self.ended(extent.record())
        before = len(os.listdir("/proc/self/fd"))
        for opening in (
            ensureDeferred(self.slow.fills.view(DIGEST)),
            ensureDeferred(self.slow.fills.find_extent(DIGEST, ByteRange(0, 4))),
            ensureDeferred(self.slow.fills.add_extent(DIGEST, 0, FillInfo(11))),
        ):
            opening.cancel()
            self.failureResultOf(opening, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual(before, len(os.listdir("/proc/self/fd")))
        self.ended(extent.close())

    def test_nothing_is_taken_after_the_close(self) -> None:
        self.ended(self.session.close())
        self.session.write(b"late")
        self.slow_threads.run_all()
        self.assertEqual((0, 0), (self.size, self.budget.used))

    def test_who_looks_sees_what_a_thread_has_written(self) -> None:
        view = self.ended(self.slow.fills.view(DIGEST))
        assert view is not None
        self.addCleanup(view[0].close)
        self.session.write(b"hello")
        self.assertEqual((FillState.GROWING, 0), view[0].look())
        self.slow_threads.run_all()
        self.assertEqual((FillState.GROWING, 5), view[0].look())
