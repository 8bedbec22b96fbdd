"""
Metrics for Prometheus that count over all worker processes of a daemon.

Each process counts in a page of shared memory of its own, and the one that is asked adds the pages
up.  What a process has counted stays when it ends, however it ends, and the next one goes on from
there: no counter falls while the daemon runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import accumulate
from typing import TypeVar

from attrs import define, frozen
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from twisted.logger import Logger

from artifactd.kit.shared import PAGE, PAGES, SharedMemory, page_at

_log = Logger()

# A page: how many bytes of it are in use, and records.  A record: what it is, as below, the size of
# its name, how many numbers it has, the name, filled up to a multiple of 8, and the numbers.
_WORD = 8  # bytes
_RECORD = 3 * _WORD
_SEPARATOR = "\0"


class Merge(IntEnum):
    """What numbers of several processes make together."""

    SUM = 0
    """Their sum, those of processes that have ended too."""

    SUM_NOW = 1
    """The sum over the processes that run."""

    MOST_NOW = 2
    """The largest of the processes that run."""

    MOST = 3
    """The largest of all processes, also of those that have ended."""

    @property
    def of_all(self) -> bool:
        """Whether the numbers of processes that have ended count."""
        return self in (Merge.SUM, Merge.MOST)


@frozen
class _Record:
    merge: Merge
    first: int  # of the numbers, counted in words of the memory
    count: int


Sums = Mapping[tuple[str, int], Sequence[float]]
"""By the names of records, and how many numbers they have: these, of all processes together."""


class Tallies:
    """
    The numbers of all processes of a daemon.

    A page belongs to the process that has locked its first byte.

    :ivar page: the number of this process's page; ``None``: all were taken, and its numbers stand
        in its own memory alone.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        free = (number for number in range(PAGES) if memory.try_lock(page_at(number)))
        self.page: int | None = next(free, None)
        # What was read of each page so far, and the bytes that were.
        self._records: list[dict[tuple[str, int], _Record]] = [{} for _ in range(PAGES)]
        self._read: list[int] = [0] * PAGES
        self._apart: dict[tuple[str, int], memoryview[float]] = {}
        if self.page is None:
            _log.warn("metrics of more than {pages} processes are not added up", pages=PAGES)
        else:
            for record in self._of(self.page).values():
                if not record.merge.of_all:
                    self._clear(record)  # of a process that has ended

    def close(self) -> None:
        """Give the page to the next process; what was counted stays in it."""
        if self.page is not None:
            self._memory.unlock(page_at(self.page))

    def running(self) -> list[int]:
        """Return the numbers of the pages of all processes that run, this one included."""
        return [number for number in range(PAGES) if self._runs(number)]

    def numbers(
        self, name: str, count: int = 1, merge: Merge = Merge.SUM
    ) -> tuple[memoryview[float], int]:
        """
        Return where this process's numbers of that name stand: a view of floating-point numbers,
        and the index of the first in it.

        Adding to one takes a tenth of a microsecond.
        """
        memory, key = self._memory, (name, count)
        if self.page is None:
            return self._set_apart(key)
        found = self._of(self.page).get(key)
        if found is not None:
            return memory.doubles, found.first
        text = name.encode()
        space = len(text) + -len(text) % _WORD
        read, start = self._read[self.page], page_at(self.page)
        size = _RECORD + space + count * _WORD
        if _WORD + read + size > PAGE:
            return self._set_apart(key)
        at = start + _WORD + read
        memory.words[at // _WORD] = merge
        memory.words[at // _WORD + 1] = len(text)
        memory.words[at // _WORD + 2] = count
        memory.bytes[at + _RECORD : at + _RECORD + len(text)] = text
        self._clear(_Record(merge, (at + _RECORD + space) // _WORD, count))
        # Last: up to here others read, and a process that was killed before has written nothing.
        memory.words[start // _WORD] = read + size
        return memory.doubles, self._of(self.page)[key].first

    def sums(self) -> Sums:
        """Return the numbers of all processes together."""
        sums: dict[tuple[str, int], list[float]] = {
            key: list(view) for key, view in self._apart.items()
        }
        for page in range(PAGES):
            records = self._of(page)
            runs = bool(records) and self._runs(page)
            for key, record in records.items():
                if runs or record.merge.of_all:
                    last = record.first + record.count
                    numbers = list(self._memory.doubles[record.first : last])
                    known = sums.get(key)
                    is_sum = record.merge in (Merge.SUM, Merge.SUM_NOW)
                    together = float.__add__ if is_sum else max
                    sums[key] = numbers if known is None else list(map(together, known, numbers))
        return sums

    def _runs(self, page: int) -> bool:
        return page == self.page or self._memory.is_locked(page_at(page))

    def _of(self, page: int) -> dict[tuple[str, int], _Record]:
        """Return the records of a page; reads those that are new."""
        memory, records, start = self._memory, self._records[page], page_at(page)
        used = memory.words[start // _WORD]
        while self._read[page] < used:
            at = start + _WORD + self._read[page]
            merge, length, count = memory.words[at // _WORD : at // _WORD + 3].tolist()
            name = memory.bytes[at + _RECORD : at + _RECORD + length].decode()
            size = _RECORD + length + -length % _WORD
            records[name, count] = _Record(Merge(merge), (at + size) // _WORD, count)
            self._read[page] += size + count * _WORD
        return records

    def _clear(self, record: _Record) -> None:
        for index in range(record.first, record.first + record.count):
            self._memory.doubles[index] = 0.0

    def _set_apart(self, key: tuple[str, int]) -> tuple[memoryview[float], int]:
        if not self._apart:
            _log.warn("there are too many metrics: some are of this process alone")
        return self._apart.setdefault(key, memoryview(bytearray(key[1] * _WORD)).cast("d")), 0


@frozen
class Number:
    """A number of this process, which counts together with those of the others."""

    name: str
    _numbers: memoryview[float]
    _index: int

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``."""
        self._numbers[self._index] += amount

    def dec(self, amount: float = 1) -> None:
        """Subtract ``amount``; of a gauge."""
        self._numbers[self._index] -= amount

    def set(self, value: float) -> None:
        """Set the number; of a gauge."""
        self._numbers[self._index] = value

    @property
    def place(self) -> tuple[memoryview[float], int]:
        """Where the number stands, for those who can't afford a call."""
        return self._numbers, self._index

    def of(self, sums: Sums) -> float:
        """Return what it is over all processes."""
        return sums[self.name, 1][0]


@frozen
class Distribution:
    """How values are distributed, in a histogram."""

    _bounds: Sequence[float]
    _numbers: memoryview[float]
    _index: int

    @property
    def place(self) -> tuple[memoryview[float], int]:
        """Where the sum of the values stands, and behind it the number of values of each class."""
        return self._numbers, self._index

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self._numbers[self._index] += value
        self._numbers[self._index + 1 + bisect_left(self._bounds, value)] += 1


@define(eq=False)
class _Family(ABC):
    """A metric: its numbers, by the values of its labels."""

    tallies: Tallies
    name: str
    text: str
    label_names: tuple[str, ...]

    def key(self, labels: Sequence[str]) -> str:
        return _SEPARATOR.join((self.name, *labels))

    @property
    def count(self) -> int:
        """How many numbers there are for the same values of the labels."""
        return 1

    @abstractmethod
    def metric(self, found: Sequence[tuple[Sequence[str], Sequence[float]]]) -> Metric:
        """Return what Prometheus is told of the numbers, by the values of their labels."""


@define(eq=False)
class Counter(_Family):
    """A number that only grows, for all values of the labels."""

    def labels(self, *values: str) -> Number:
        """Return the number of these values of the labels; keep it rather than ask again."""
        name = self.key(values)
        return Number(name, *self.tallies.numbers(name))

    def metric(self, found: Sequence[tuple[Sequence[str], Sequence[float]]]) -> Metric:
        family = CounterMetricFamily(self.name, self.text, labels=self.label_names)
        for labels, numbers in found:
            family.add_metric(labels, numbers[0])
        return family


@define(eq=False)
class Gauge(_Family):
    """A number that rises and falls, for all values of the labels; it begins at 0."""

    merge: Merge

    def labels(self, *values: str) -> Number:
        """Return the number of these values of the labels; keep it rather than ask again."""
        name = self.key(values)
        return Number(name, *self.tallies.numbers(name, merge=self.merge))

    def metric(self, found: Sequence[tuple[Sequence[str], Sequence[float]]]) -> Metric:
        family = GaugeMetricFamily(self.name, self.text, labels=self.label_names)
        for labels, numbers in found:
            family.add_metric(labels, numbers[0])
        return family


@define(eq=False)
class Histogram(_Family):
    """How values are distributed, for all values of the labels."""

    bounds: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many numbers it takes: the sum, and how many values lie below each bound."""
        return len(self.bounds) + 2

    def labels(self, *values: str) -> Distribution:
        """Return the distribution of these values of the labels; keep it rather than ask again."""
        return Distribution(self.bounds, *self.tallies.numbers(self.key(values), self.count))

    def metric(self, found: Sequence[tuple[Sequence[str], Sequence[float]]]) -> Metric:
        family = HistogramMetricFamily(self.name, self.text, labels=self.label_names)
        bounds = [*map(floatToGoString, self.bounds), "+Inf"]
        for labels, (total, *counts) in found:
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return family


@frozen
class _Measure:
    """A gauge whose values are read when Prometheus asks."""

    name: str
    text: str
    label: str
    read: Callable[[], Mapping[str, float]]

    def metric(self) -> Metric:
        """Read the values."""
        family = GaugeMetricFamily(self.name, self.text, labels=[self.label])
        for label, value in self.read().items():
            family.add_metric([label], value)
        return family


@frozen(eq=False)
class Moment(Collector):
    """The numbers of one moment."""

    _sums: Sums
    _families: Sequence[_Family]
    _measured: Sequence[Metric]

    def exposition(self) -> bytes:
        """
        Return all metrics in Prometheus' text format.  Takes some milliseconds, and may be called
        in a thread.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        found: dict[tuple[str, int], list[tuple[Sequence[str], Sequence[float]]]] = {}
        for (name, count), numbers in sorted(self._sums.items()):
            metric, *labels = name.split(_SEPARATOR)
            found.setdefault((metric, count), []).append((labels, numbers))
        for family in self._families:
            yield family.metric(found.get((family.name, family.count), ()))
        yield from self._measured


_F = TypeVar("_F", bound=_Family)


def _whole(name: str) -> str:
    return name if name.startswith("process_") else f"artifactd_{name}"


class Metrics:
    """
    All metrics of a daemon.

    Names begin with ``artifactd_``, which is added here, except those that begin with ``process_``,
    which Prometheus defines for all programs.

    :param tallies: has the numbers.
    :ivar families: by their names, those that are counted.
    """

    def __init__(self, tallies: Tallies) -> None:
        self.tallies = tallies
        self.families: dict[str, _Family] = {}
        self._measures: list[_Measure] = []

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Make a counter; ``_total`` is added to its name."""
        return self._added(Counter(self.tallies, _whole(name), text, labels))

    def gauge(self, name: str, text: str, *labels: str, merge: Merge = Merge.SUM_NOW) -> Gauge:
        """Make a gauge that each process sets for itself."""
        return self._added(Gauge(self.tallies, _whole(name), text, labels, merge))

    def histogram(self, name: str, text: str, *labels: str, bounds: Sequence[float]) -> Histogram:
        """
        Make a histogram.

        :param bounds: the upper bounds of its classes, in rising order; +Inf is added.
        """
        return self._added(Histogram(self.tallies, _whole(name), text, labels, tuple(bounds)))

    def measure(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """
        Expose a gauge whose values ``read`` returns whenever Prometheus asks, in the process that
        is asked: for what is the same in all.

        :param name: its name, with the unit.
        :param label: the name of the label whose values are the keys that ``read`` returns.
        """
        self._measures.append(_Measure(_whole(name), text, label, read))

    def moment(self) -> Moment:
        """Return the numbers of this moment."""
        measured = [each.metric() for each in self._measures]
        return Moment(self.tallies.sums(), list(self.families.values()), measured)

    def _added(self, family: _F) -> _F:
        self.families[family.name] = family
        return family
