"""Answers that are no success, as errors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactd.upstream.errors import Missing, RangeRefused, Throttled
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from artifactd.upstream.patience import refusal
from tests.upstream.fake import Answer, json


class RefusalTests(SynchronousTestCase):
    def of(self, answer: Answer, *secrets: str) -> UpstreamError:
        error: UpstreamError = self.successResultOf(refusal(answer, *secrets))
        self.assertEqual(["read"], answer.ended)
        return error

    def test_every_status_is_the_error_that_it_means(self) -> None:
        for status, kind in (
            (404, Missing), (410, Missing), (401, Missing), (403, Missing), (416, RangeRefused),
            (429, Throttled), (500, Unreachable), (503, Unreachable), (400, Unreachable),
            (204, Unreachable), (304, Unreachable), (302, Unreachable), (600, Unreachable),
        ):  # fmt: skip
            error = self.of(Answer(status))
            self.assertIs(kind, type(error), status)
            self.assertEqual(status, error.status)

    def test_a_throttled_one_tells_for_how_long(self) -> None:
        error = self.of(Answer(429, fields={"Retry-After": "17"}))
        assert isinstance(error, Throttled)
        self.assertEqual(17, error.retry_after)

    def test_an_unexpected_one_is_called_so(self) -> None:
        self.assertEqual("somebody answers 418 (unexpected status)", self.of(Answer(418)).reason)

    def test_the_reason_has_the_host_and_the_message(self) -> None:
        error = self.of(json({"errors": [{"code": "X", "message": "no such thing"}]}, 404))
        self.assertEqual("somebody answers 404: no such thing", error.reason)

    def test_a_bare_message_is_found_too(self) -> None:
        error = self.of(json({"message": "toomanyrequests: slow down"}, 429))
        self.assertEqual("somebody answers 429: toomanyrequests: slow down", error.reason)

    def test_the_message_is_cut_to_200_printable_characters(self) -> None:
        error = self.of(json({"errors": [{"message": "\x1b[31m\r\n" + "é" * 1000}]}, 500))
        self.assertEqual("somebody answers 500: [31m" + "é" * 196, error.reason)

    def test_a_message_that_repeats_a_secret_is_left_out(self) -> None:
        said = json({"errors": [{"message": f"{'x' * 190} you sent hunter2"}]}, 500)
        self.assertEqual("somebody answers 500", self.of(said, "hunter2").reason)

    def test_a_body_that_is_no_error_of_the_spec_says_nothing(self) -> None:
        for body in (b"", b"<html>", b"[]", b'{"errors":7}', b'{"errors":[7]}', b'{"errors":null}',
                     b'{"errors":[]}', b'{"errors":[{"message":7}]}', b'{"message":null}', b"\xff",
                     b"[" * 60_000, b'{"a":' + b"[" * 60_000,
                     b'{"message":"' + b"x" * (64 << 10) + b'"}'):  # fmt: skip
            self.assertEqual("somebody answers 500", self.of(Answer(500, body)).reason)

    def test_a_body_that_breaks_off_says_nothing(self) -> None:
        error = self.of(Answer(404, broken=Unreachable("broke off")))
        self.assertEqual((Missing, 404), (type(error), error.status))

    @given(st.binary(), st.integers(100, 999))
    def test_any_answer_is_an_error(self, body: bytes, status: int) -> None:
        self.assertEqual(status, self.of(Answer(status, body)).status)
