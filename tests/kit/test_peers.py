"""The processes of one daemon ask each other."""

from __future__ import annotations

import os
import socket
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase

from artifactd.kit import peers
from artifactd.kit.peers import Peers, Reply
from artifactd.kit.shared import SharedMemory
from artifactd.kit.tallies import Tallies


class PeersTests(TestCase):
    def setUp(self) -> None:
        self.memory = SharedMemory.create()
        self.first, self.second, self.third = (self.start(n) for n in range(3))

    def start(self, number: int) -> Peers:
        """Start a process of the daemon."""
        started = Peers(reactor, self.memory.id, Tallies(SharedMemory(self.memory.descriptor)))

        async def answer() -> bytes:
            return b"%d\n" % number

        started.answer("number", answer)
        started.listen()
        self.addCleanup(lambda: Deferred.fromCoroutine(started.close()))
        return started

    async def asked(self, question: str = "number") -> list[bytes | None]:
        """What the first is told by the others."""
        return [reply.body for reply in await self.first.ask(question)]

    async def test_all_others_answer(self) -> None:
        pid = os.getpid()
        self.assertEqual(await self.first.ask("number"), [Reply(pid, b"1\n"), Reply(pid, b"2\n")])
        self.assertEqual([each.body for each in await self.third.ask("number")], [b"0\n", b"1\n"])

    async def test_one_that_has_ended_or_only_starts_is_not_waited_for(self) -> None:
        await self.second.close()
        self.assertEqual(await self.asked(), [b"2\n"])
        self.third.tallies.close()
        self.assertEqual(await self.asked(), [])

    async def test_one_that_ends_while_it_is_asked_is_left_out(self) -> None:
        async def end() -> bytes:
            await self.second.close()
            return b"the catalog is closed"

        self.second.answer("number", end)
        self.assertEqual(await self.asked(), [b"2\n"])

    async def test_one_that_does_not_answer_is_named(self) -> None:
        self.patch(peers, "SECONDS", 0.1)
        self.third.tallies.close()  # no other has to answer in that time

        async def never() -> bytes:
            await Deferred()
            raise AssertionError("it was answered")

        self.second.answer("number", never)
        self.assertEqual(await self.asked(), [None])

    async def test_one_that_answers_without_end_is_given_up(self) -> None:
        self.patch(peers, "_LARGEST", 1000)

        async def long() -> bytes:
            return b"a" * 1001

        self.second.answer("number", long)
        self.assertEqual(await self.asked(), [None, b"2\n"])

    async def test_one_that_fails_is_named_and_the_failure_is_logged(self) -> None:
        async def fail() -> bytes:
            raise ZeroDivisionError

        self.second.answer("number", fail)
        self.assertEqual(await self.asked(), [None, b"2\n"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)  # it is asked again

    async def test_a_question_that_another_version_asks_gets_no_answer(self) -> None:
        self.assertEqual(await self.asked("what"), [None, None])

    async def test_one_whose_name_another_process_has_taken_goes_on_and_is_left_out(self) -> None:
        taken = socket.socket(socket.AF_UNIX)
        self.addCleanup(taken.close)
        taken.bind(f"\0artifactd-{self.memory.id}-3")
        started = self.start(3)
        self.assertEqual(3, started.tallies.page)
        self.assertEqual(await self.asked(), [b"1\n", b"2\n"])
        self.assertEqual([b"0\n", b"1\n", b"2\n"], [r.body for r in await started.ask("number")])

    async def test_no_other_daemon_answers(self) -> None:
        memory = SharedMemory.create()
        other = Peers(reactor, memory.id, Tallies(memory))
        self.assertEqual(await other.ask("number"), [])

    async def test_another_users_process_is_told_nothing_and_believed_nothing(self) -> None:
        with patch.object(os, "geteuid", return_value=os.geteuid() + 1):
            self.assertEqual(await self.first.ask("number"), [])

            class Told(Protocol):
                transport: Any
                received, ended = b"", Deferred[None]()

                def connectionMade(self) -> None:
                    self.transport.write(b"number\n")

                def dataReceived(self, data: bytes) -> None:
                    self.received += data

                def connectionLost(self, reason: object = None) -> None:
                    self.ended.callback(None)

            told = Told()
            await connectProtocol(UNIXClientEndpoint(reactor, self.second._address(1)), told)
            await told.ended
            self.assertEqual(told.received, b"")
