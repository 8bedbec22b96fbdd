"""Lists of more than 64 KiB, to clients that read and to clients that don't."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, maybeDeferred

from artifactd.kit.budget import Shares
from artifactd.kit.timers import Timers
from artifactd.oci.errors import TooManyRequests
from artifactd.web.answer import Answer
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.sendfile import FileSender, Patience
from tests.leaf import leaf
from tests.wire.connection import Wire, WireCase, request, statuses
from tests.wire.loopback import CountingBudget

STALL = 30.0
BODY = bytes(range(256)) * 4000


class LargeAnswerTests(WireCase):
    """Each answer is a megabyte, of which an owner may hold two, and all owners three."""

    def setUp(self) -> None:
        super().setUp()
        self.shares = Shares(3 * len(BODY), 2 * len(BODY), 9, 2 * len(BODY))
        self.budget = CountingBudget()
        self.outcomes: list[object] = []
        self.answers: list[Answer] = []
        self.again: Callable[[], Awaitable[Answer]] | None = None
        sender = FileSender(
            Timers(self.clock), maybeDeferred, self.budget, Patience(STALL), answers=self.shares
        )

        @self.app.route("/<owner>", methods=["GET", "HEAD"])
        async def answer(request: RegistryRequest, owner: str) -> None:
            request.address = owner
            try:
                answer = Answer(body=bytes(bytearray(BODY)), again=self.again)
                self.answers.append(answer)
                sending = answer.send(request, sender)
                self.outcomes.append(True if sending is None else await sending)
            except TooManyRequests as error:
                self.outcomes.append(error.status)
                Answer.error(error).send(request)
            except CancelledError:
                self.outcomes.append(None)

        self.site.resource = leaf(self.app)

    def ask(self, owner: str = "192.0.2.1", method: str = "GET") -> Wire:
        """Ask as a client that reads nothing until its connection is resumed."""
        wire = self.connect()
        write = wire.write

        def full(data: bytes) -> None:
            write(data)
            if len(wire.value()) > 64 * 1024:
                wire.channel.pauseProducing()

        wire.write = full  # type: ignore[method-assign]
        wire.send(request(method, f"/{owner}"))
        return wire

    def read(self, wire: Wire) -> bytes:
        """Read all of the answer."""
        received = b""
        while piece := wire.received():
            received += piece
            wire.channel.resumeProducing()
        return received

    def test_one_that_is_read_is_whole(self) -> None:
        wire = self.ask()
        received = self.read(wire)
        self.assertEqual(statuses(received[:500]), [200])
        self.assertIn(b"Content-Length: %d\r\n" % len(BODY), received)
        self.assertTrue(received.endswith(b"\r\n\r\n" + BODY))
        self.assertEqual(self.outcomes, [True])
        self.assertEqual((self.shares.used, self.budget.used), (0, 0))
        wire.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_connection_that_is_not_read_buffers_two_pieces_at_most(self) -> None:
        wire = self.ask()
        self.assertLess(len(wire.value()), 140_000)
        self.assertEqual((self.shares.used, self.budget.used), (len(BODY), 0))

    def test_an_owner_who_does_not_read_has_two_waits_for_two_and_is_refused_more(self) -> None:
        wires = [self.ask() for _ in range(5)]
        self.assertEqual(self.shares.used, 2 * len(BODY))
        self.assertEqual([bool(wire.value()) for wire in wires], [True, True, False, False, True])
        refused = wires[4].received()
        self.assertEqual(statuses(refused), [429])
        self.assertIn(b"Retry-After: 5", refused)
        self.assertIn(b"large answers", refused)
        other = self.ask("192.0.2.2")
        self.assertTrue(other.value(), "another owner is served")
        for wire in (*wires[:4], other):
            self.assertTrue(self.read(wire).endswith(BODY))
        self.assertEqual((self.shares.used, self.outcomes), (0, [429, *[True] * 5]))

    def test_one_that_waits_is_not_kept_but_made_again_when_there_is_room(self) -> None:
        made: list[bytes] = []

        async def again() -> Answer:
            made.append(b"again" * 20_000)
            return Answer(body=made[-1])

        self.again = again
        wires = [self.ask() for _ in range(4)]
        self.assertEqual([len(each.body) for each in self.answers], [len(BODY)] * 2 + [0] * 2)
        self.assertEqual(made, [])
        self.assertTrue(self.read(wires[0]).endswith(BODY))
        self.assertEqual(len(made), 1)
        self.assertTrue(self.read(wires[2]).endswith(made[0]))
        for wire in wires:
            wire.close()
        self.assertEqual(self.shares.used, 0)

    def test_an_error_of_one_that_is_made_again_is_the_answer(self) -> None:
        async def again() -> Answer:
            raise TooManyRequests("now there are too many")

        self.again = again
        wires = [self.ask() for _ in range(3)]
        self.read(wires[0])
        self.assertEqual(statuses(wires[2].received()), [429])
        wires[1].close()
        self.assertEqual(self.shares.used, 0)

    def test_a_client_that_leaves_takes_nothing_with_it(self) -> None:
        sent, *others = [self.ask() for _ in range(4)]
        waiting = others[1]
        waiting.close()
        sent.close()
        self.assertTrue(others[2].value())
        for wire in (others[0], others[2]):
            wire.close()
        self.assertEqual((self.shares.used, self.budget.used, self.site.in_flight), (0, 0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_client_that_takes_nothing_is_cut_off(self) -> None:
        wire = self.ask()
        self.clock.advance(STALL - 1)
        self.assertFalse(wire.disconnected)
        self.clock.advance(3)
        self.assertTrue(wire.disconnected)

    def test_a_head_takes_no_memory(self) -> None:
        wire = self.ask(method="HEAD")
        self.assertTrue(wire.received().endswith(b"\r\n\r\n"))
        self.assertEqual(self.outcomes, [True])
