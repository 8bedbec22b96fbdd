"""Failed logins are counted, and forgotten bit by bit."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.guessing import Failures, network
from artifactd.kit.shared import Moments, SharedMemory, Table


class FailuresTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.moments = Moments(SharedMemory.create(), Table.NAME_FAILURES)
        self.failures = Failures(5, 300, self.moments, self.clock.seconds)

    def fail_times(self, key: str, times: int) -> None:
        for _ in range(times):
            self.failures.add(key)

    def test_some_are_free(self) -> None:
        self.fail_times("a", 4)
        self.assertEqual(self.failures.wait("a"), 0)

    def test_then_one_is_forgotten_at_a_time(self) -> None:
        self.fail_times("a", 5)
        self.assertEqual(self.failures.wait("a"), 60)
        self.clock.advance(59)
        self.assertAlmostEqual(self.failures.wait("a"), 1)
        self.clock.advance(1.001)
        self.assertEqual(self.failures.wait("a"), 0)
        self.failures.add("a")
        self.assertAlmostEqual(self.failures.wait("a"), 60, places=1)

    def test_after_the_period_all_are_forgotten(self) -> None:
        self.fail_times("a", 5)
        self.clock.advance(300)
        self.fail_times("a", 4)
        self.assertEqual(self.failures.wait("a"), 0)

    def test_no_key_has_to_do_with_another(self) -> None:
        self.fail_times("a", 5)
        self.assertEqual(self.failures.wait("b"), 0)

    def test_they_can_be_forgotten_at_once(self) -> None:
        self.fail_times("a", 5)
        self.assertEqual(self.failures.forget("a"), 5)
        self.assertEqual((self.failures.wait("a"), self.failures.forget("a")), (0, 0))

    def test_some_can_be_taken_away(self) -> None:
        self.fail_times("a", 5)
        self.failures.subtract("a", 1)
        self.assertEqual(self.failures.wait("a"), 0)
        self.failures.subtract("a", 4)
        self.failures.subtract("a", 4)
        self.assertEqual(self.failures.forget("a"), 0)

    def test_one_guess_each_with_many_names_resets_none_that_has_to_wait(self) -> None:
        self.fail_times("a", 5)
        for number in range(40_000):
            self.failures.add(str(number))
        self.assertEqual(self.failures.wait("a"), 60)


class NetworkTests(SynchronousTestCase):
    def test_what_counts_as_one_address(self) -> None:
        for address, counted in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("::1", "::/64"),
            ("", ""),
            ("/run/artifactd.sock", "/run/artifactd.sock"),
        ):
            self.assertEqual(network(address), counted)
