"""The errors of ``/token``."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from artifactd.oci.errors import TooManyRequests
from artifactd.web.token import FormInvalid, _marked


class ErrorTests(TestCase):
    def test_an_error_that_others_are_told_too_stays_as_it_is(self) -> None:
        shared = TooManyRequests("too many", {"a": 1}, {"Retry-After": "1"})
        before = shared.body()
        marked = _marked(shared)
        marked.beside["error"] = "slow_down"
        self.assertEqual((shared.headers, shared.body()), ({"Retry-After": "1"}, before))
        self.assertEqual(marked.headers["Retry-After"], "1")
        self.assertEqual(marked.headers["Cache-Control"], "no-store")
        self.assertIn(b"slow_down", marked.body())
        self.assertIsInstance(marked, TooManyRequests)

    def test_one_of_a_form_keeps_what_it_is_called(self) -> None:
        marked = _marked(FormInvalid("bad", "unsupported_grant_type"))
        assert isinstance(marked, FormInvalid)
        self.assertEqual(marked.error, "unsupported_grant_type")
