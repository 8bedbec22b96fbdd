"""Which bytes of a blob an answer has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactd.upstream.client import ResponseBody
from artifactd.upstream.http.errors import TimedOut, Unreachable
from tests.upstream.fake import Answer, Sink, Watch


class BodyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.watch = Watch()

    def body(self, answer: Answer) -> ResponseBody:
        return ResponseBody.of(answer, self.watch)

    def part(self, content_range: str, body: bytes = b"01234", length: int | None = -1) -> Answer:
        return Answer(206, body, {"Content-Range": content_range}, length=length)

    def assert_span(self, answer: Answer, first: int, length: int | None, size: int | None) -> None:
        body = self.body(answer)
        self.assertEqual((first, length, size), (body.first, body.length, body.size))

    def test_a_whole_blob_begins_at_its_first_byte(self) -> None:
        self.assert_span(Answer(200, b"01234"), 0, 5, 5)
        self.assert_span(Answer(200, b"01234", length=None), 0, None, None)

    def test_a_part_says_where_it_begins_and_of_how_much_it_is(self) -> None:
        self.assert_span(self.part("bytes 10-14/100"), 10, 5, 100)
        self.assert_span(self.part("Bytes 10-14/*"), 10, 5, None)
        self.assert_span(self.part("bytes 95-99/100", length=None), 95, 5, 100)

    def test_a_part_that_does_not_say_clearly_which_is_refused(self) -> None:
        for value in ("", "bytes", "bytes 10-14", "bytes */100", "bytes 14-10/100", "lines 0-4/9",
                      "bytes 96-100/100", "bytes -5/100", "bytes 10-14/x", "bytes 0-4/5, 0-4/5",
                      "bytes 10-15/100", "bytes ١-٥/9", f"bytes 0-4/{'9' * 5000}"):  # fmt: skip
            answer = self.part(value)
            error = self.assertRaises(Unreachable, self.body, answer)
            self.assertEqual((206, ["aborted"]), (error.status, answer.ended), value)
        self.assertRaises(Unreachable, self.body, self.part("bytes 14-10/100", length=None))

    def test_a_strong_entity_tag_is_a_validator(self) -> None:
        for tag, validator in (('"abc"', '"abc"'), ('W/"abc"', None), ("abc", None), ("", None),
                               ('"a"b"', None), ('"a b"', None)):  # fmt: skip
            body = self.body(Answer(200, fields={"ETag": tag}))
            self.assertEqual(validator, body.validator, tag)
        self.assertIsNone(self.body(Answer(200)).validator)

    def test_its_bytes_are_delivered_and_counted(self) -> None:
        sink = Sink()
        self.assertEqual(5, self.successResultOf(self.body(Answer(200, b"01234")).deliver_to(sink)))
        self.assertEqual((b"01234", 5, None), (sink.content, self.watch.bytes, sink.producer))

    def test_those_of_a_body_that_breaks_off_are_counted(self) -> None:
        body = self.body(Answer(200, b"01234", broken=TimedOut("stalled")))
        self.failureResultOf(body.deliver_to(Sink()), TimedOut)
        self.assertEqual(5, self.watch.bytes)

    def test_a_part_without_a_length_is_held_to_its_range(self) -> None:
        for content in (b"0123", b"012345"):
            body = self.body(self.part("bytes 10-14/100", content, length=None))
            error = self.failureResultOf(body.deliver_to(Sink()), Unreachable).value
            self.assertIn(f"sent {len(content)} bytes where it said 5", error.reason)

    def test_nobody_wants_it(self) -> None:
        answer = Answer(200, b"01234")
        self.body(answer).abort()
        self.assertEqual((["aborted"], 0), (answer.ended, self.watch.bytes))

    @given(st.text(alphabet="bytes 0123456789-/*", max_size=30) | st.text(), st.integers(0, 10))
    def test_any_range_is_one_that_can_be_or_refused(self, value: str, length: int) -> None:
        try:
            body = self.body(self.part(value, b"x" * length))
        except Unreachable:
            return
        assert body.length is not None
        self.assertTrue(body.length >= 1 and body.length == length)
        self.assertTrue(body.size is None or body.first + body.length <= body.size)
