"""The supervisor without processes: when it starts workers, and to which it hands connections."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from errno import EADDRINUSE, EAGAIN
from typing import Any

import msgspec
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent, formatEventAsClassicLogText
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.daemon.link import CONTROL, PROTOCOL, Ready, Told, read_handing
from artifactd.daemon.sockets import Bound, Sockets
from artifactd.daemon.supervisor import Supervisor
from artifactd.kit.shared import SharedMemory
from artifactd.kit.start import StartError
from artifactd.settings.settings import LimitsSettings, Settings
from artifactd.settings.values import Endpoint
from tests.process import reserved_port
from tests.programs import reactor

# What a worker tells that has other words for the rest.
OTHERWISE = msgspec.json.encode({"protocol": PROTOCOL + 1, "version": "9"})


@define
class FakeWorker:
    """A process that is none: the other end of its link, and who is to be told of its end."""

    end: socket.socket
    protocol: Any
    pid: int
    killed: list[str | int] = field(factory=list)

    def tell(self, kind: Told, body: bytes = b"") -> None:
        self.end.send(kind + body)

    def ready(self, settings: Settings, **other: Any) -> None:
        """Tell that it is ready."""
        told: dict[str, Any] = {
            "protocol": PROTOCOL,
            "version": "0",
            "data": str(settings.data.absolute()),
            "listen": [str(each) for each in settings.listen],
            "workers": settings.processes,
            "connections": settings.limits.connections,
            "address_connections": settings.limits.address_connections,
            "trusted_proxies": [],
            "shutdown_timeout": float(settings.shutdown_timeout),
        }
        self.tell(Told.READY, msgspec.json.encode(Ready(**{**told, **other})))

    def received(self) -> list[tuple[Told, int]]:
        """What it was told since the last look, with the number of a connection that it got."""
        told: list[tuple[Told, int]] = []
        while True:
            try:
                message, descriptors, *_ = socket.recv_fds(self.end, 1000, 1)
            except BlockingIOError:
                return told
            for descriptor in descriptors:
                os.close(descriptor)
            kind = Told(message[:1])
            number = read_handing(message[1:])[1] if kind is Told.CONNECTION else 0
            told.append((kind, number))

    def kinds(self) -> list[Told]:
        return [kind for kind, _ in self.received()]

    def die(self) -> None:
        self.end.close()
        self.protocol.processExited(Failure(ProcessTerminated(signal=9)))

    def signalProcess(self, name: str | int) -> None:
        self.killed.append(name)


class FakeReactor(Clock):
    """A reactor that reads when it is told to, and starts nothing."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.workers: list[FakeWorker] = []
        self.readers: list[Any] = []
        self.ports: list[Any] = []
        self.has_processes = True
        self.is_taken = False
        self.ports_then = 0

    def spawnProcess(
        self, protocol: Any, *_: object, childFDs: dict[int, Any], **__: object
    ) -> FakeWorker:
        if not self.has_processes:
            raise BlockingIOError(EAGAIN, "Resource temporarily unavailable")
        end = socket.socket(fileno=os.dup(childFDs[CONTROL]))
        worker = FakeWorker(end, protocol, 1000 + len(self.workers))
        end.setblocking(False)
        self.workers.append(worker)
        if len(self.workers) == 1:
            self.ports_then = len(self.ports)
            worker.ready(self.settings)  # the start waits for it
        return worker

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer: Any) -> None: ...

    def removeWriter(self, writer: Any) -> None: ...

    def listenUNIX(self, path: str, factory: Any, **_: object) -> Any:
        return FakePort()

    def listenTCP(self, port: int, factory: Any, *_: object) -> Any:
        if self.is_taken:
            raise CannotListenError("127.0.0.1", port, OSError(EADDRINUSE, "Address in use"))
        self.ports.append(FakePort())
        return self.ports[-1]

    def turn(self) -> None:
        """Read what the workers tell."""
        for reader in list(self.readers):
            reader.doRead()


class FakePort:
    closed = False

    def getHost(self) -> Any:
        return reactor_address

    def __init__(self) -> None:
        self.closing: Deferred[None] | None = None

    def stopListening(self) -> Deferred[None] | None:
        self.closed = True
        return self.closing


@define
class _Address:
    type: str = "TCP"
    host: str = "192.0.2.1"
    port: int = 5000


reactor_address = _Address()


class SupervisorCase(SynchronousTestCase):
    limits = LimitsSettings()

    def setUp(self) -> None:
        folder = self.mktemp()
        os.mkdir(folder)
        (self.folder,) = [os.path.abspath(folder)]
        self.settings = msgspec.structs.replace(
            Settings.load(None, {"ARTIFACTD_DATA": self.folder, "ARTIFACTD_WORKERS": "2"}),
            limits=self.limits,
        )
        self.reactor = FakeReactor(self.settings)
        self.supervisor = Supervisor(self.settings, self.reactor, SharedMemory.create())
        self.supervisor.start()
        self.addCleanup(self.close)

    def close(self) -> None:
        for worker in self.workers:
            worker.end.close()

    @property
    def workers(self) -> Sequence[FakeWorker]:
        return self.reactor.workers

    def become_ready(self, *workers: FakeWorker) -> None:
        for worker in workers:
            worker.ready(self.settings)
        self.reactor.turn()

    def connect(self, number: int = 1, host: str = "192.0.2.9") -> None:
        """Let connections come."""
        (bound,) = self.bound
        for _ in range(number):
            ours, its = socket.socketpair()
            self.addCleanup(ours.close)
            bound.buildProtocol(_Address(host=host))
            bound.hand(its)

    @property
    def bound(self) -> list[Bound]:
        return self.supervisor._sockets._bound


class StartTests(SupervisorCase):
    def test_nobody_can_connect_before_a_worker_is_ready(self) -> None:
        self.assertEqual(self.reactor.ports_then, 0)
        self.assertEqual(len(self.reactor.ports), 1)

    def test_an_address_that_is_taken_leaves_no_worker(self) -> None:
        reactor = FakeReactor(self.settings)
        reactor.is_taken = True
        supervisor = Supervisor(self.settings, reactor, SharedMemory.create())
        error = self.assertRaises(StartError, supervisor.start)
        self.assertIn("Address in use", str(error))
        (worker,) = reactor.workers
        self.addCleanup(worker.end.close)
        self.assertEqual(worker.killed, ["KILL"])


class RestartTests(SupervisorCase):
    def test_it_starts_one_and_then_the_others(self) -> None:
        self.assertEqual(len(self.workers), 2)

    def test_one_that_ends_is_started_again_at_once_and_then_ever_later(self) -> None:
        self.become_ready(self.workers[1])
        for pause in (0, 1, 2, 4, 8, 16, 30, 30):
            self.workers[-1].die()
            count = len(self.workers)
            if pause:
                self.reactor.advance(pause - 0.5)
                self.assertEqual(len(self.workers), count)
            self.reactor.advance(0.5)
            self.assertEqual(len(self.workers), count + 1, pause)

    def test_one_that_has_served_for_a_minute_is_started_at_once_again(self) -> None:
        self.workers[1].die()
        self.reactor.advance(0)
        self.become_ready(self.workers[-1])
        self.reactor.advance(60)
        self.workers[-1].die()
        self.reactor.advance(0)
        self.assertEqual(len(self.workers), 4)

    def test_while_the_system_gives_no_process_it_is_tried_again(self) -> None:
        self.workers[1].die()
        self.reactor.has_processes = False
        readers = len(self.reactor.readers)
        self.reactor.advance(0)
        self.assertEqual((len(self.workers), len(self.reactor.readers)), (2, readers))
        self.reactor.has_processes = True
        self.reactor.advance(30)
        self.assertEqual(len(self.workers), 3)

    def test_one_of_a_program_that_speaks_otherwise_gets_nothing_and_is_tried_again(self) -> None:
        """The program has been replaced since the others were started."""
        one, other = self.workers
        self.become_ready(other)
        other.die()
        self.reactor.advance(0)
        newer = self.workers[2]
        newer.tell(Told.READY, OTHERWISE)
        self.reactor.turn()
        self.connect(2)
        self.assertEqual((newer.kinds(), len(one.received())), ([], 2))
        self.assertEqual(newer.killed, ["KILL"])
        with capturedLogs() as events:
            newer.die()
        self.assertIn("artifactd 9 needs a restart", formatEvent(events[-1]))
        self.reactor.advance(1)
        self.assertEqual(len(self.workers), 4)

    def test_none_is_started_while_the_daemon_stops(self) -> None:
        self.become_ready(self.workers[1])
        stopped = self.supervisor.stopService()
        self.workers[0].die()
        self.reactor.advance(1)
        self.assertEqual(len(self.workers), 2)
        self.assertNoResult(stopped)
        self.workers[1].die()
        self.successResultOf(stopped)


class HungTests(SupervisorCase):
    def setUp(self) -> None:
        super().setUp()
        self.become_ready(self.workers[1])

    def beats(self, number: int, *alive: FakeWorker) -> None:
        """Let seconds pass, in each of which ``alive`` tell that they are."""
        for _ in range(number):
            for worker in alive:
                worker.tell(Told.ALIVE)
            self.reactor.turn()
            self.reactor.advance(1)

    def shares(self, number: int) -> list[int]:
        """How many of so many connections each gets."""
        self.connect(number)
        return [len(each.received()) for each in self.workers]

    def test_one_that_is_silent_gets_no_connections_until_it_speaks(self) -> None:
        hung, other = self.workers
        with capturedLogs() as events:
            self.beats(4, other)
            self.assertEqual(self.shares(4), [2, 2])
            self.beats(1, other)
            self.assertEqual(self.shares(4), [0, 4])
            self.beats(1, hung, other)
            self.assertEqual(self.shares(4), [4, 0])
        self.assertEqual(
            [formatEvent(each) for each in events],
            [
                "worker 1000 does not answer: others get the connections",
                "worker 1000 answers again",
            ],
        )

    def test_if_all_are_silent_they_get_them_all_the_same(self) -> None:
        self.beats(10)
        self.assertEqual(self.shares(4), [2, 2])

    def test_one_that_is_silent_for_a_minute_is_ended_and_another_one_starts(self) -> None:
        hung, other = self.workers
        self.beats(59, other)
        self.assertEqual(hung.killed, [])
        self.beats(1, other)
        self.assertEqual(hung.killed, [signal.SIGABRT])
        self.beats(5, other)
        self.assertEqual((hung.killed, other.killed), ([signal.SIGABRT, "KILL"], []))
        hung.die()
        self.reactor.advance(0)
        self.assertEqual(len(self.workers), 3)

    def test_one_that_is_not_ready_has_longer(self) -> None:
        outcome = self.supervisor.reload()
        (new,) = self.workers[2:]
        self.beats(79, *self.workers[:2])
        self.assertEqual(new.killed, [])
        self.beats(1, *self.workers[:2])
        self.assertEqual(new.killed, [signal.SIGABRT])
        new.die()
        self.assertEqual(self.successResultOf(outcome), "a worker has not answered for 80 s")

    def test_a_machine_that_stood_still_is_no_fault_of_a_worker(self) -> None:
        self.reactor.advance(3600)
        self.assertEqual(self.shares(2), [1, 1])

    def test_one_that_was_replaced_and_hangs_is_ended_too(self) -> None:
        hung, other = self.workers
        self.supervisor.reload()
        self.become_ready(self.workers[2])
        self.become_ready(self.workers[3])
        self.assertIn(Told.RETIRE, hung.kinds())
        self.beats(60, other)
        self.assertEqual((hung.killed, other.killed), ([signal.SIGABRT], []))


class LogTests(SupervisorCase):
    def test_what_workers_print_is_logged_as_they_would(self) -> None:
        printed = (
            b"2026-01-01T00:00:00+0000 [artifactd.access#info] GET /v2/ {} 200\n"
            b"2026-01-01T00:00:00+0000 [-] Main loop\n"
            b"2026-01-01T00:00:00+0000 [artifactd.web#error] something\n\ta line of a tra"
        )
        with capturedLogs() as events:
            self.workers[0].protocol.childDataReceived(1, printed)
            self.workers[0].protocol.childDataReceived(2, b"ceback\n")
        self.assertEqual(
            [(each["log_namespace"], each["log_level"].name, formatEvent(each)) for each in events],
            [
                ("artifactd.access", "info", "GET /v2/ {} 200"),
                ("artifactd.daemon.supervisor", "info", "Main loop"),
                ("artifactd.web", "error", "something"),
                ("artifactd.daemon.supervisor", "info", "\ta line of a traceback"),
            ],
        )
        self.assertRegex(formatEventAsClassicLogText(events[1]) or "", r" \[-\] Main loop\n$")

    def test_so_is_the_line_that_one_had_begun_when_it_was_killed(self) -> None:
        with capturedLogs() as events:
            self.workers[0].protocol.childDataReceived(2, b"Fatal Python error")
            self.workers[0].protocol.processEnded(Failure(ProcessTerminated(signal=9)))
        self.assertEqual([formatEvent(each) for each in events], ["Fatal Python error"])


class HandTests(SupervisorCase):
    limits = LimitsSettings(connections=5, address_connections=3)

    def test_each_connection_goes_to_the_worker_with_the_fewest(self) -> None:
        one, other = self.workers
        self.connect(2)
        self.assertEqual(len(one.received()), 2)  # the other one is not ready yet
        self.become_ready(other)
        self.connect(1)
        self.assertEqual((len(one.received()), len(other.received())), (0, 1))

    def test_one_that_is_closed_counts_no_more(self) -> None:
        one, other = self.workers
        self.become_ready(other)
        self.connect(2)
        ((_, number),) = other.received()
        one.received()
        other.tell(Told.CLOSED, number.to_bytes(8))
        self.reactor.turn()
        self.connect(1)
        self.assertEqual((len(one.received()), len(other.received())), (0, 1))

    def test_the_limit_of_an_address_holds_over_all_and_ends_with_a_worker(self) -> None:
        one, other = self.workers
        self.become_ready(other)
        self.connect(5)
        self.assertEqual(len(one.received()) + len(other.received()), 3)
        self.connect(3, host="198.51.100.1")
        self.assertEqual(len(one.received()) + len(other.received()), 2)
        other.die()
        self.connect(5)
        self.assertEqual(len(one.received()), 1)

    def test_one_whose_link_is_closed_gets_none_although_its_end_is_not_told_yet(self) -> None:
        one, other = self.workers
        self.become_ready(other)
        one.end.close()
        for reader in list(self.reactor.readers):
            reason = reader.doRead()
            if reason is not None:  # as the reactor does
                reader.connectionLost(reason)
        self.connect(2)
        self.assertEqual(len(other.received()), 2)

    def test_without_a_worker_a_connection_is_answered_503(self) -> None:
        for worker in self.workers:
            worker.die()
        (bound,) = self.bound
        ours, its = socket.socketpair()
        self.addCleanup(ours.close)
        bound.buildProtocol(_Address())
        bound.hand(its)
        answer = ours.recv(1000)
        self.assertRegex(answer, rb"^HTTP/1.1 503 ")
        self.assertIn(b"\r\nRetry-After: 5\r\n", answer)


class ReloadTests(SupervisorCase):
    def setUp(self) -> None:
        super().setUp()
        self.become_ready(self.workers[1])
        self.old = list(self.workers)
        self.outcome = self.supervisor.reload()
        (self.first,) = self.workers[2:]

    def assert_unchanged(self, why: str) -> None:
        self.assertIn(why, self.successResultOf(self.outcome))
        self.connect(2)
        self.assertEqual([each.kinds() for each in self.old], [[Told.CONNECTION]] * 2)

    def test_new_workers_take_over_when_all_are_ready(self) -> None:
        self.first.ready(self.settings)
        self.reactor.turn()
        (second,) = self.workers[3:]
        self.connect(2)
        self.assertEqual([each.kinds() for each in self.old], [[Told.CONNECTION]] * 2)
        self.assertEqual(self.first.received(), [])
        self.become_ready(second)
        self.assertEqual(self.successResultOf(self.outcome), "")
        self.connect(2)
        self.assertEqual([each.kinds() for each in self.old], [[Told.RETIRE, Told.LAST]] * 2)
        self.assertEqual(self.first.kinds(), [Told.CONNECTION])
        self.assertEqual(second.kinds(), [Told.CONNECTION])
        self.old[0].die()
        self.reactor.advance(60)
        self.assertEqual(len(self.workers), 4)  # nothing takes its place

    def test_settings_that_are_refused_change_nothing(self) -> None:
        self.first.tell(Told.REFUSED, b"listen: nonsense")
        self.reactor.turn()
        self.first.die()
        self.assert_unchanged("listen: nonsense")

    def test_a_refusal_is_told_although_the_end_of_its_worker_is_seen_first(self) -> None:
        self.first.tell(Told.REFUSED, b"listen: nonsense")
        self.first.die()
        self.assert_unchanged("listen: nonsense")

    def test_without_processes_for_all_of_them_nothing_changes(self) -> None:
        self.reactor.has_processes = False
        self.first.ready(self.settings)
        self.reactor.turn()
        self.assert_unchanged("a worker can't be started")
        self.assertEqual(self.first.kinds(), [Told.STOP, Told.LAST])

    def test_without_a_process_for_the_first_nothing_changes(self) -> None:
        self.first.die()
        self.successResultOf(self.outcome)
        self.reactor.has_processes = False
        self.outcome = self.supervisor.reload()
        self.assert_unchanged("a worker can't be started")

    def test_a_worker_that_dies_before_it_is_ready_changes_nothing(self) -> None:
        self.first.die()
        self.assert_unchanged("a worker has ended before it was ready (signal 9)")

    def test_another_data_folder_needs_a_restart(self) -> None:
        self.first.ready(self.settings, data="/elsewhere")
        self.reactor.turn()
        self.assert_unchanged("another data folder needs a restart")
        self.assertEqual(self.first.kinds(), [Told.STOP, Told.LAST])

    def test_so_does_a_program_that_speaks_otherwise(self) -> None:
        self.first.tell(Told.READY, OTHERWISE)
        self.reactor.turn()
        self.assertEqual(self.first.killed, ["KILL"])
        self.first.die()
        self.assert_unchanged("artifactd 9 needs a restart")

    def test_what_can_not_be_listened_on_is_refused(self) -> None:
        self.first.ready(self.settings, workers=1, listen=["tcp:nonsense"])
        self.reactor.turn()
        self.assert_unchanged("listen: tcp:nonsense")

    def test_limits_are_those_of_the_new_settings(self) -> None:
        self.first.ready(self.settings, workers=1, connections=1)
        self.reactor.turn()
        self.assertEqual(self.successResultOf(self.outcome), "")
        self.connect(3)
        self.assertEqual(self.first.kinds(), [Told.CONNECTION])

    def test_none_is_made_while_the_daemon_stops(self) -> None:
        stopped = self.supervisor.stopService()
        self.first.ready(self.settings)
        self.reactor.turn()
        self.assertIn("is being stopped", self.successResultOf(self.outcome))
        self.assertIn("is being stopped", self.successResultOf(self.supervisor.reload()))
        self.assertEqual(self.workers[2:], [self.first])
        for worker in self.workers:
            worker.die()
        self.successResultOf(stopped)

    def test_all_who_ask_for_one_while_another_is_made_share_the_next(self) -> None:
        others = [self.supervisor.reload() for _ in range(3)]
        self.first.ready(self.settings, workers=1)
        self.reactor.turn()
        self.assertEqual(self.successResultOf(self.outcome), "")
        (second,) = self.workers[3:]
        second.ready(self.settings, workers=1)
        self.reactor.turn()
        self.assertEqual([self.successResultOf(each) for each in others], [""] * 3)
        self.assertEqual(self.workers[4:], [])


class StopTests(SupervisorCase):
    def test_connections_go_to_a_worker_until_it_has_nothing_under_way(self) -> None:
        one, other = self.workers
        self.become_ready(other)
        stopped = self.supervisor.stopService()
        self.assertEqual((one.kinds(), other.kinds()), ([Told.STOP], [Told.STOP]))
        one.tell(Told.DRAINED)
        self.reactor.turn()
        self.assertEqual(one.kinds(), [Told.LAST])
        self.connect(2)
        self.assertEqual((one.kinds(), len(other.received())), ([], 2))
        self.assertFalse(self.reactor.ports[0].closed)
        other.tell(Told.DRAINED)
        self.reactor.turn()
        self.assertTrue(self.reactor.ports[0].closed)
        one.die()
        self.assertNoResult(stopped)
        other.die()
        self.successResultOf(stopped)

    def old_and_kept(self) -> tuple[FakeWorker, FakeWorker]:
        """A worker that was replaced and has not ended, and the one that stays to answer."""
        self.supervisor.reload()
        self.workers[2].ready(self.settings)
        self.reactor.turn()
        old, one, other = self.workers[0], *self.workers[2:]
        self.become_ready(other)
        self.workers[1].die()
        self.supervisor.stopService()
        for worker in (one, other):
            worker.kinds()
            worker.tell(Told.DRAINED)
        self.reactor.turn()
        self.assertEqual((one.kinds(), other.kinds()), ([Told.LAST], []))
        self.connect()
        self.assertEqual(other.kinds(), [Told.CONNECTION])
        self.assertFalse(self.reactor.ports[0].closed)
        return old, other

    def test_one_stays_while_only_workers_that_were_replaced_have_requests_under_way(self) -> None:
        old, kept = self.old_and_kept()
        old.die()
        self.assertEqual(kept.kinds(), [Told.LAST])
        self.assertTrue(self.reactor.ports[0].closed)

    def test_it_stays_no_longer_than_requests_are_waited_for(self) -> None:
        _, kept = self.old_and_kept()
        self.reactor.advance(float(self.settings.shutdown_timeout))
        self.assertEqual(kept.kinds(), [Told.LAST])
        self.assertTrue(self.reactor.ports[0].closed)

    def test_one_that_is_ready_only_then_ends_too(self) -> None:
        one, other = self.workers
        self.supervisor.stopService()
        other.ready(self.settings)
        for worker in (one, other):
            worker.tell(Told.DRAINED)
        self.reactor.turn()
        self.assertEqual([one.kinds()[-1], other.kinds()[-1]], [Told.LAST] * 2)

    def test_the_end_waits_until_the_sockets_are_closed(self) -> None:
        closing: Deferred[None] = Deferred()
        self.reactor.ports[0].closing = closing
        stopped = self.supervisor.stopService()
        for worker in self.workers:
            worker.die()
        self.assertNoResult(stopped)
        closing.callback(None)
        self.successResultOf(stopped)

    def test_workers_that_do_not_end_are_killed(self) -> None:
        self.supervisor.stopService()
        self.reactor.advance(float(self.settings.shutdown_timeout) + 14)
        self.assertEqual(self.workers[0].killed, [])
        self.reactor.advance(1)
        self.assertEqual([worker.killed for worker in self.workers], [["KILL"], ["KILL"]])


class SocketsTests(TestCase):
    def setUp(self) -> None:
        self.sockets = Sockets(reactor, self.accepted)
        self.addCleanup(self.sockets.close)
        self.seen: list[tuple[int, bool]] = []

    def accepted(self, bound: Bound, connection: socket.socket, peer: object) -> None:
        connection.close()

    def listen(self, *endpoints: str) -> None:
        self.sockets.bind([Endpoint(each) for each in endpoints])

    def test_a_socket_that_stays_is_not_closed(self) -> None:
        self.listen("tcp:0:interface=127.0.0.1")
        (before,) = self.sockets.ports
        self.listen("tcp:0:interface=127.0.0.2", "tcp:0:interface=127.0.0.1")
        other, after = self.sockets.ports
        self.assertIs(after, before)
        self.assertIsNot(other, before)

    def test_nor_is_one_whose_endpoint_is_another_at_the_same_place(self) -> None:
        self.listen("tcp:0:interface=127.0.0.1")
        (before,) = self.sockets.ports
        self.listen("tcp:0:interface=127.0.0.1:backlog=10")
        self.assertEqual(self.sockets.ports, [before])

    def test_a_wrong_endpoint_changes_nothing(self) -> None:
        self.listen("tcp:0:interface=127.0.0.1")
        before = self.sockets.ports
        wrong = ["tcp:0:interface=127.0.0.2", "tcp:many"]
        self.assertRaises(StartError, self.listen, *wrong)
        self.assertEqual(self.sockets.ports, before)

    def test_one_that_stands_there_twice_is_refused_as_at_the_start(self) -> None:
        port = reserved_port(self)
        first, second = f"tcp:{port}:interface=127.0.0.1", f"tcp:port={port}:interface=127.0.0.1"
        self.listen(first)
        before = self.sockets.ports
        for wrong in (first, second), (second, first), (first, first):
            self.assertRaises(StartError, self.listen, *wrong)
            self.assertEqual(self.sockets.ports, before)

    def test_so_is_another_mode_of_a_unix_socket(self) -> None:
        path = os.path.relpath(self.mktemp())
        self.listen(f"unix:{path}:mode=660")
        before = self.sockets.ports
        self.listen(f"unix:{path}:mode=660:lockfile=1")
        self.assertEqual(self.sockets.ports, before)
        self.assertRaises(StartError, self.listen, f"unix:{path}:mode=600")
        self.assertEqual(self.sockets.ports, before)
