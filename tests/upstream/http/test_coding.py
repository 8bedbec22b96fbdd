"""Codings of bodies: undone piece by piece."""

from __future__ import annotations

import gzip

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from artifactd.upstream.http import coding
from artifactd.upstream.http.coding import PIECE, Decoding, coding_of, format_of
from artifactd.upstream.http.errors import Unreachable
from tests.upstream.wire import Sink

CONTENT = bytes(range(256)) * 2000


class NameTests(SynchronousTestCase):
    def test_names_are_read_in_any_case_and_those_that_change_nothing_are_left_out(self) -> None:
        for fields, name in (
            ([], ""),
            ([""], ""),
            (["identity"], ""),
            (["GZIP"], "gzip"),
            (["x-gzip"], "gzip"),
            (["aws-chunked"], ""),
            (["aws-chunked, gzip"], "gzip"),
            (["deflate", "gzip"], "deflate,gzip"),
            ([" Br "], "br"),
        ):
            self.assertEqual(coding_of(fields), name, fields)

    def test_no_more_of_them_is_kept_than_anybody_would_send(self) -> None:
        for fields in (["x" * 100_000], ["x" * 200] * 1000, ["x," * 1000] * 100):
            self.assertLessEqual(len(coding_of(fields)), 256)

    def test_a_body_that_does_not_begin_as_its_coding_would_is_not_coded(self) -> None:
        for name, head, coded in (
            ("gzip", b"\x1f\x8b", True),
            ("gzip", b"{}", False),
            ("deflate", b"\x78\x9c", True),
            ("deflate", b"\xab\x56", True),  # without the header of RFC 1950
            ("deflate", b'{"', False),
            ("br", b"\x1f\x8b", False),
            ("gzip,gzip", b"\x1f\x8b", False),
        ):
            self.assertEqual(format_of(name, head) is not None, coded, (name, head))


@implementer(IPushProducer)
@define(eq=False)
class Body:
    """A body that a test sends piece by piece."""

    flowing: bool = True
    stopped: bool = False
    cancelled: bool = False
    consumer: IConsumer | None = None
    done: Deferred[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.done = Deferred(self._cancel)

    def _cancel(self, _: Deferred[int]) -> None:
        self.cancelled = True

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        self.consumer = consumer
        consumer.registerProducer(self, True)
        return self.done

    def send(self, *pieces: bytes) -> None:
        assert self.consumer is not None
        for piece in pieces:
            self.consumer.write(piece)

    def end(self, failure: Exception | None = None) -> None:
        assert self.consumer is not None
        self.consumer.unregisterProducer()
        if failure is None:
            self.done.callback(0)
        else:
            self.done.errback(failure)

    def pauseProducing(self) -> None:
        self.flowing = False

    def resumeProducing(self) -> None:
        self.flowing = True

    def stopProducing(self) -> None:
        self.stopped = True
        self.end()


class DecodingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.body = Body()
        self.sink = Sink()
        decoding = Decoding(self.sink, "gzip", self.clock, "host.example")
        self.done = decoding.start(self.body.deliver_to)

    def turns(self) -> None:
        """Give the reactor turns until none is asked for."""
        while self.clock.getDelayedCalls():
            self.clock.advance(0)

    def assert_over(self) -> None:
        self.assertIsNone(self.sink.producer)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_turn_undoes_one_piece_and_meanwhile_nothing_more_is_read(self) -> None:
        self.body.send(gzip.compress(CONTENT))
        self.assertEqual(len(self.sink.content), PIECE)
        self.assertFalse(self.body.flowing)
        turns: list[int] = []
        self.sink.on_write = lambda: turns.append(len(self.clock.getDelayedCalls()))
        self.turns()
        self.assertEqual(turns, [0] * (len(CONTENT) // PIECE))
        self.assertTrue(self.body.flowing)
        self.body.end()
        self.assertEqual(self.successResultOf(self.done), len(CONTENT))
        self.assertTrue(self.sink.content == CONTENT)
        self.assert_over()

    def test_it_may_come_byte_by_byte_and_in_several_members(self) -> None:
        coded = gzip.compress(CONTENT[:100]) + gzip.compress(b"") + gzip.compress(CONTENT[100:300])
        self.body.send(*(bytes([byte]) for byte in coded), bytes(20), b"\x1f")
        self.body.end()
        self.assertEqual(self.successResultOf(self.done), 300)
        self.assertEqual(self.sink.content, CONTENT[:300])

    def test_what_was_not_coded_passes_as_it_is(self) -> None:
        for pieces in ((), (b"x",), (b"\x1f", b"x", b"yz")):
            self.setUp()
            self.body.send(*pieces)
            self.body.end()
            self.assertEqual(self.successResultOf(self.done), len(b"".join(pieces)))
            self.assertEqual(self.sink.content, b"".join(pieces))

    def test_a_consumer_that_pauses_gets_nothing_until_it_resumes(self) -> None:
        self.sink.on_write = self.sink.pause
        self.body.send(gzip.compress(CONTENT))
        self.turns()
        self.assertEqual(len(self.sink.content), PIECE)
        self.assertFalse(self.body.flowing)
        self.body.end()
        self.assertNoResult(self.done)
        self.sink.resume()
        self.turns()
        self.assertEqual(len(self.sink.content), 2 * PIECE)
        self.sink.on_write = lambda: None
        self.sink.resume()
        self.turns()
        self.assertEqual(self.successResultOf(self.done), len(CONTENT))
        self.assertTrue(self.sink.content == CONTENT)

    def test_a_consumer_that_stops_ends_the_body(self) -> None:
        self.body.send(gzip.compress(CONTENT))
        self.sink.stop()
        self.assertTrue(self.body.stopped)
        self.assertEqual(self.successResultOf(self.done), PIECE)
        self.assert_over()

    def test_cancelling_ends_the_body(self) -> None:
        self.body.send(gzip.compress(CONTENT))
        self.done.cancel()
        self.failureResultOf(self.done, CancelledError)
        self.assertTrue(self.body.cancelled)
        self.assert_over()

    def test_a_body_that_breaks_off_fails(self) -> None:
        self.body.send(gzip.compress(CONTENT)[:100])
        self.body.end(Unreachable("broke off"))
        self.assertEqual(self.failureResultOf(self.done, Unreachable).value.reason, "broke off")
        self.assert_over()

    def test_a_body_that_ends_before_its_coding_does_fails(self) -> None:
        self.body.send(gzip.compress(CONTENT)[:-1])
        self.turns()
        self.body.end()
        failure = self.failureResultOf(self.done, Unreachable)
        self.assertIn("broke off in the middle of gzip", failure.value.reason)
        self.assert_over()

    def test_damage_ends_it(self) -> None:
        self.body.send(b"\x1f\x8b" + bytes(100))
        failure = self.failureResultOf(self.done, Unreachable)
        self.assertIn("damaged gzip", failure.value.reason)
        self.assertTrue(self.body.stopped)
        self.assert_over()

    def test_a_body_that_grows_without_end_is_given_up(self) -> None:
        self.patch(coding, "FREE", 4 * PIECE)
        self.body.send(gzip.compress(bytes(40_000_000)))
        self.turns()
        failure = self.failureResultOf(self.done, Unreachable)
        self.assertIn("too large", failure.value.reason)
        self.assertLess(len(self.sink.content), 10_000_000)
        self.assertTrue(self.body.stopped)

    def test_what_the_consumer_raises_is_the_error(self) -> None:
        def full() -> None:
            raise OSError("disk full")

        self.body.send(gzip.compress(CONTENT))
        self.sink.on_write = full
        self.turns()
        self.failureResultOf(self.done, OSError)
        self.assertTrue(self.body.stopped)
        self.assert_over()
