"""The link between supervisor and worker, and the connections that come over it."""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from artifactd.daemon.handed import Handed
from artifactd.daemon.link import Link, Told, handing, read_handing


class FakeReactor(Clock):
    """A reactor that reads and writes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: object) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: object) -> None: ...

    def addWriter(self, writer: object) -> None: ...

    def removeWriter(self, writer: object) -> None: ...


class Full:
    """An end whose messages with a descriptor are refused at first."""

    def __init__(self, end: socket.socket, number: int) -> None:
        self._end, self.refusals, self._number = end, 0, number

    def sendmsg(self, *message: Any) -> int:
        if self.refusals < self._number:
            self.refusals += 1
            raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")
        return self._end.sendmsg(*message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._end, name)


class LinkCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.ours, self.its = Link.pair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.its.close)
        self.received: list[tuple[Told, bytes, int]] = []
        self.lost: list[bool] = []

    def link(self, end: Any) -> Link:
        return Link(
            end,
            self.reactor,
            lambda *told: self.received.append(told),
            lambda: self.lost.append(True),
        )


class LinkTests(LinkCase):
    def test_a_connection_waits_while_the_system_has_too_many_on_their_way(self) -> None:
        full: Any = Full(self.ours, 2)
        link, other = self.link(full), self.link(self.its)
        client, handed = socket.socketpair()
        self.addCleanup(client.close)
        link.tell(handing(0, 7), handed)
        link.tell(Told.LAST)
        for _ in range(9):
            self.reactor.advance(1)
        other.doRead()
        self.assertEqual(full.refusals, 2)
        (kind, body, descriptor), last = self.received
        os.close(descriptor)
        self.assertEqual((kind, read_handing(body)), (Told.CONNECTION, (0, 7)))
        self.assertEqual(last, (Told.LAST, b"", -1))

    def test_a_connection_for_which_there_is_no_descriptor_left_comes_without(self) -> None:
        link, other = self.link(self.ours), self.link(self.its)
        client, handed = socket.socketpair()
        self.addCleanup(client.close)
        link.tell(handing(0, 7), handed)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            other.doRead()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertEqual(self.received, [(Told.CONNECTION, handing(0, 7)[1:], -1)])


class _Fails(Protocol):
    def connectionLost(self, reason: object = None) -> None:
        raise ZeroDivisionError


class HandedTests(LinkCase):
    def setUp(self) -> None:
        super().setUp()
        self.closed: list[int] = []
        self.handed = Handed(self.reactor, self.closed.append, lambda: None)

    def test_a_connection_without_its_descriptor_is_told_to_be_closed(self) -> None:
        self.handed._listens(Factory.forProtocol(Protocol))
        with capturedLogs() as events:
            self.handed.take(0, 7, -1)
        self.assertEqual(self.closed, [7])
        self.assertIn("open files", formatEvent(events[-1]))

    def test_a_connection_whose_end_fails_is_told_to_be_closed(self) -> None:
        self.handed._listens(Factory.forProtocol(_Fails))
        client, its = socket.socketpair()
        self.addCleanup(client.close)
        self.handed.take(0, 7, its.detach())
        with self.assertRaises(ZeroDivisionError):
            self.reactor.readers[-1].connectionLost()
        self.assertEqual(self.closed, [7])
