"""Metrics count over all processes of a daemon, also over those that have ended."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit import tallies
from artifactd.kit.shared import PAGE, PAGES, SharedMemory, page_at
from artifactd.kit.tallies import Merge, Metrics, Tallies
from tests.kit.sharing import Helper


class Worker:
    """What one process counts."""

    def __init__(self, memory: SharedMemory) -> None:
        self.tallies = Tallies(SharedMemory(memory.descriptor))
        self.metrics = Metrics(self.tallies)
        self.pulls = self.metrics.counter("pulls", "Pulls", "repository")
        self.open = self.metrics.gauge("open", "Open now").labels()
        self.lag = self.metrics.gauge("lag", "Longest lag", merge=Merge.MOST_NOW).labels()
        self.ran = self.metrics.gauge("ran", "Last run", "job", merge=Merge.MOST)
        self.times = self.metrics.histogram("seconds", "Times", "route", bounds=(0.1, 1))

    def exposed(self) -> Sequence[str]:
        """What Prometheus is told, without the comments."""
        lines = self.metrics.moment().exposition().decode().splitlines()
        return [line for line in lines if not line.startswith("#")]

    def end(self) -> None:
        """End as a process does that is killed."""
        self.tallies.close()  # the kernel would unlock the page


class MetricsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.memory = SharedMemory.create()
        self.first, self.second = Worker(self.memory), Worker(self.memory)

    def test_each_process_has_a_page(self) -> None:
        self.assertEqual((self.first.tallies.page, self.second.tallies.page), (0, 1))
        self.assertEqual(self.first.tallies.running(), [0, 1])

    def test_counters_are_added_up(self) -> None:
        self.first.pulls.labels("hub").inc()
        self.second.pulls.labels("hub").inc(2)
        self.second.pulls.labels("quay").inc()
        expected = [
            'artifactd_pulls_total{repository="hub"} 3.0',
            'artifactd_pulls_total{repository="quay"} 1.0',
        ]
        for worker in (self.first, self.second):
            self.assertEqual([e for e in worker.exposed() if "pulls" in e], expected)

    def test_a_number_can_be_had_over_all_processes(self) -> None:
        hub = self.first.pulls.labels("hub")
        self.second.pulls.labels("hub").inc(2)
        self.assertEqual(hub.of(self.first.tallies.sums()), 2)

    def test_histograms_are_added_up(self) -> None:
        self.first.times.labels("blob").observe(0.1)
        self.first.times.labels("blob").observe(0.5)
        self.second.times.labels("blob").observe(4)
        self.assertEqual(
            [e for e in self.second.exposed() if "seconds" in e],
            [
                'artifactd_seconds_bucket{le="0.1",route="blob"} 1.0',
                'artifactd_seconds_bucket{le="1.0",route="blob"} 2.0',
                'artifactd_seconds_bucket{le="+Inf",route="blob"} 3.0',
                'artifactd_seconds_count{route="blob"} 3.0',
                'artifactd_seconds_sum{route="blob"} 4.6',
            ],
        )

    def test_a_gauge_is_the_sum_or_the_most_of_the_running_processes(self) -> None:
        self.first.open.inc(3)
        self.second.open.inc()
        self.second.open.dec()
        self.second.open.inc()
        self.first.lag.set(0.5)
        self.second.lag.set(0.25)
        for expected in ("artifactd_open 4.0", "artifactd_lag 0.5"):
            self.assertIn(expected, self.second.exposed())
        self.first.end()
        for expected in ("artifactd_open 1.0", "artifactd_lag 0.25"):
            self.assertIn(expected, self.second.exposed())

    def test_one_may_be_the_most_of_the_processes_that_have_ended_too(self) -> None:
        self.assertEqual([], [each for each in self.first.exposed() if "ran" in each])
        self.first.ran.labels("gc").set(7)
        self.second.ran.labels("gc").set(5)
        self.first.end()
        self.assertIn('artifactd_ran{job="gc"} 7.0', self.second.exposed())
        third = Worker(self.memory)
        self.assertEqual(third.tallies.page, 0)
        self.assertIn('artifactd_ran{job="gc"} 7.0', third.exposed())
        third.ran.labels("gc").set(9)
        third.end()
        self.assertIn('artifactd_ran{job="gc"} 9.0', self.second.exposed())

    def test_the_next_process_counts_on_from_there(self) -> None:
        self.first.pulls.labels("hub").inc(5)
        self.first.times.labels("blob").observe(2)
        self.first.open.inc(3)
        self.first.end()
        third = Worker(self.memory)
        self.assertEqual(third.tallies.page, 0)
        third.pulls.labels("hub").inc()
        for expected in (
            'artifactd_pulls_total{repository="hub"} 6.0',
            'artifactd_seconds_count{route="blob"} 1.0',
            "artifactd_open 0.0",
        ):
            for worker in (self.second, third):
                self.assertIn(expected, worker.exposed())

    def test_what_is_measured_is_read_when_it_is_asked_for(self) -> None:
        self.first.metrics.measure("expiry", "When it expires", "listener", lambda: {"a": 7})
        self.assertIn('artifactd_expiry{listener="a"} 7.0', self.first.exposed())

    def test_a_metric_that_only_another_version_knows_is_left_out(self) -> None:
        self.second.metrics.counter("news", "New").labels().inc()
        self.assertNotIn("artifactd_news_total 1.0", self.first.exposed())

    def test_a_record_that_was_not_finished_is_written_over(self) -> None:
        start = page_at(0)
        used = self.memory.words[start // 8]
        at = start + 8 + used
        self.memory.bytes[at : at + 100] = b"\xff" * 100  # killed before it has said so
        self.first.pulls.labels("hub").inc()
        self.assertIn('artifactd_pulls_total{repository="hub"} 1.0', self.second.exposed())

    def test_too_many_metrics_are_of_their_process_alone(self) -> None:
        self.first.pulls.labels("hub").inc()
        for number in range(PAGE // 2000 + 1):
            self.first.pulls.labels(f"{number} {'x' * 2000}").inc()
        last = f'artifactd_pulls_total{{repository="{PAGE // 2000} {"x" * 2000}"}} 1.0'
        self.assertIn(last, self.first.exposed())
        self.assertNotIn(last, self.second.exposed())
        self.assertIn('artifactd_pulls_total{repository="hub"} 1.0', self.second.exposed())

    def test_so_are_those_of_a_process_for_which_there_is_no_page(self) -> None:
        held = [Tallies(SharedMemory(self.memory.descriptor)) for _ in range(PAGES - 2)]
        late = Worker(self.memory)
        late.pulls.labels("hub").inc()
        self.second.pulls.labels("hub").inc()
        self.assertIsNone(late.tallies.page)
        self.assertIn('artifactd_pulls_total{repository="hub"} 2.0', late.exposed())
        self.assertIn('artifactd_pulls_total{repository="hub"} 1.0', self.first.exposed())
        self.assertEqual(len(held), PAGES - 2)


class KilledTests(SynchronousTestCase):
    """Real processes, one of which is killed and started again."""

    def test_the_sum_of_a_killed_process_stays_and_the_next_one_adds_to_it(self) -> None:
        memory = SharedMemory.create()
        own = Worker(memory)
        own.pulls.labels("hub").inc()
        counting = f"""
            from {tallies.__name__} import Metrics, Tallies
            tallies = Tallies(memory)
            pulls = Metrics(tallies).counter("pulls", "Pulls", "repository").labels("hub")
            open = Metrics(tallies).gauge("open", "Open now").labels()
            pulls.inc(10)
            open.inc(5)
        """
        for pulls in (11.0, 21.0):
            with Helper(memory, counting) as process:
                self.assertIn("artifactd_open 5.0", own.exposed())
                process.kill()
            self.assertIn(f'artifactd_pulls_total{{repository="hub"}} {pulls}', own.exposed())
            self.assertIn("artifactd_open 0.0", own.exposed())
            self.assertEqual(own.tallies.running(), [0])
