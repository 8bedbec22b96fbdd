"""What is told of each request: a line of the access log, and the numbers of the metrics."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

import msgspec
from attrs import define, field

from artifactd.kit.lines import LineFile, OwnLog, moment, own_log
from artifactd.kit.printable import printable
from artifactd.kit.shared import SharedMemory
from artifactd.kit.tallies import Metrics, Tallies

if TYPE_CHECKING:
    from artifactd.web.server.protocol import RegistryRequest


Style = Literal["text", "json", "off"]

ACCESS = "artifactd.access"
"""The namespace of the access log's lines in the daemon's own log."""


_own = own_log(ACCESS)


class Access(msgspec.Struct, frozen=True):
    """
    One request, answered or cut off.

    ``client``, ``user``, ``method``, ``path`` (with the query) and ``agent`` may hold any text that
    a client sends.  ``status`` is 0 where no answer was begun; ``sent`` counts the bytes of the
    body handed to the connection; ``seconds`` run from the end of the request's headers to the end
    of the answer.
    """

    client: str
    user: str
    method: str
    path: str
    status: int
    sent: int
    seconds: float
    agent: str
    request: str


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", "surrogateescape"))


# Makes any text printable ASCII without quotes and backslashes.
_safe = partial(re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]").sub, _escaped)


_SHORT = 1024  # characters: what is remembered of clients has a bound


@lru_cache(512)
def _quoted(client: str, user: str, method: str, path: str, agent: str) -> tuple[str, str]:
    """The beginning of a line behind its time, and the program, both with nothing of theirs."""
    name = _safe(user).replace(" ", "\\x20") or "-"
    return f'{_safe(client)} {name} "{_safe(method)} {_safe(path)}"', f'"{_safe(agent)}"'


@define
class AccessLog:
    """
    Writes a line per request.

    :param style: ``text``, ``json`` (an object per line) or ``off``.
    :param path: the file to append to, or ``""`` for the daemon's own log, where the lines have the
        namespace ``artifactd.access``.
    :param now: seconds since the epoch.
    :param own: writes to the daemon's own log.
    :param omitted: paths, and beginnings of names of programs: their requests get no line if they
        are answered well.
    :ivar wanted: whether a line would be written anywhere.
    """

    style: Style = "text"
    path: str = ""
    now: Callable[[], float] = time.time
    own: OwnLog = _own
    omitted: Sequence[str] = ()
    wanted: bool = field(init=False)
    _file: LineFile = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._file = LineFile(self.path, "access log")
        self.wanted = self.style != "off" and not self.path

    def open(self) -> None:
        """
        Open the file, or open it again after it has been renamed.

        :raises OSError: if it can't be opened.
        """
        self.close()
        if self.style != "off" and self.path:
            self._file.open()
            self.wanted = True

    def close(self) -> None:
        """Close the file; lines are dropped until it is opened again."""
        self._file.close()
        self.wanted = self.style != "off" and not self.path

    def write(self, access: Access) -> None:
        """Write the line of ``access``.  Never raises: a full disk must not stop the serving."""
        if self.omitted and self._is_omitted(access):
            return
        at = moment(self.now())
        if self.style == "json":
            document = {"time": at, **msgspec.structs.asdict(access)}
            line = printable(msgspec.json.encode(document).decode())
        else:
            short = len(access.path) + len(access.agent) < _SHORT
            who, agent = (_quoted if short else _quoted.__wrapped__)(
                access.client, access.user, access.method, access.path, access.agent
            )
            line = (
                f"{at} {who} {access.status} {access.sent} {access.seconds:.3f} {agent}"
                f" {access.request}"
            )
        if self.path:
            self._file.write(line)
        else:
            message = f"{access.method} {access.path} {access.status}"
            self.own(line, message, is_error=access.status >= 500)

    def _is_omitted(self, access: Access) -> bool:
        if not 200 <= access.status < 400:
            return False
        path = access.path.partition("?")[0]
        return any(
            path == each if each.startswith("/") else access.agent.startswith(each)
            for each in self.omitted
        )


OTHER = "other"
"""The route of requests that no route is for."""

SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""The upper bounds of the classes of the histogram, in seconds."""

# Any other method is counted as "other": clients must not make time series.
_METHODS = {each.encode(): each for each in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")}
_METHODS[b"OPTIONS"] = "OPTIONS"


class Tally:
    """Counts the requests of one route, method and status."""

    __slots__ = ("_numbers", "_received", "_requests", "_seconds", "_sent")

    def __init__(self, traffic: Traffic, route: str, method: str, code: str) -> None:
        key = (route, method)
        # The numbers themselves: a call for each of them would take longer than all the rest.
        self._requests = traffic.requests.labels(route, method, code).place
        self._seconds = traffic.seconds.labels(*key).place
        self._received = traffic.received.labels(*key).place
        self._sent = traffic.sent.labels(*key).place

    def count(self, seconds: float, received: int, sent: int) -> None:
        """Count a request that has ended; the bytes of bodies, as far as they are not counted."""
        numbers, at = self._requests
        numbers[at] += 1
        numbers, at = self._seconds
        numbers[at] += seconds
        numbers[at + 1 + bisect_left(SECONDS, seconds)] += 1
        if received:
            numbers, at = self._received
            numbers[at] += received
        if sent:
            numbers, at = self._sent
            numbers[at] += sent


class Traffic:
    """
    Counts requests, by routes: the paths have no bound, and the routes have.

    :ivar tallies: by route, method and status; made by :meth:`tally`.
    :ivar running: the requests that are being handled.
    :ivar connections: the open connections of clients.
    :ivar hits, misses: hot answers that were given, and requests for which there was none yet,
        since the last look.
    """

    def __init__(self, metrics: Metrics) -> None:
        each = ("route", "method")
        self.requests = metrics.counter(
            "http_requests",
            "Requests that have ended; code 0: the client left before it was answered",
            *each,
            "code",
        )
        self.seconds = metrics.histogram(
            "http_request_seconds",
            "Seconds from the end of a request's headers to the end of its answer",
            *each,
            bounds=SECONDS,
        )
        self.received = metrics.counter(
            "http_received_bytes", "Bytes of the bodies of requests, counted every second", *each
        )
        self.sent = metrics.counter(
            "http_sent_bytes", "Bytes of the bodies of answers, counted every second", *each
        )
        self._in_flight = metrics.gauge(
            "http_requests_in_flight", "Requests that are being handled", *each
        )
        transfers = metrics.gauge(
            "transfers_in_flight", "Requests whose body is coming, and answers on their way", "way"
        )
        self._coming, self._going = transfers.labels("in"), transfers.labels("out")
        self.hits = self.misses = 0
        self._hits = metrics.counter(
            "hot_answers_hits", "Requests answered by the bytes of an answer before"
        ).labels()
        self._misses = metrics.counter(
            "hot_answers_misses", "Requests that had come before, and had no answer to repeat"
        ).labels()
        self.connections = metrics.gauge("connections", "Open connections of clients").labels()
        self.running: set[RegistryRequest] = set()
        self.tallies: dict[tuple[str, bytes, int], Tally] = {}
        self._shown: set[tuple[str, str]] = set()

    @classmethod
    def apart(cls) -> Traffic:
        """Make one whose numbers nobody reads."""
        return cls(Metrics(Tallies(SharedMemory.create())))

    def tally(self, route: str, method: bytes, status: int) -> Tally:
        """Return what counts the requests of a route, method and status; keep it."""
        key = (route, method if method in _METHODS else b"", status)
        tally = self.tallies.get(key)
        if tally is None:
            tally = Tally(self, route, _METHODS.get(method, OTHER), str(status))
            self.tallies[key] = tally
        return tally

    def look(self) -> None:
        """Count the bytes that have passed since the last time, and the requests in flight."""
        self._hits.inc(self.hits)
        self._misses.inc(self.misses)
        self.hits = self.misses = 0
        counted: Counter[tuple[str, str]] = Counter()
        coming = going = 0
        for request in self.running:
            key = (request.route, _METHODS.get(request.method, OTHER))
            counted[key] += 1
            received, sent = request.counted
            request.counted = request.received, request.sentLength
            if request.received > received:
                self.received.labels(*key).inc(request.received - received)
            if request.sentLength > sent:
                self.sent.labels(*key).inc(request.sentLength - sent)
            body = request.body
            coming += body is not None and not body.complete
            going += bool(request.startedWriting)
        for key in self._shown - counted.keys():
            self._in_flight.labels(*key).set(0)
        for key, count in counted.items():
            self._in_flight.labels(*key).set(count)
        self._shown |= counted.keys()
        self._coming.set(coming)
        self._going.set(going)
