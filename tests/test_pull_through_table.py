"""docs/pull-through.md names tests that exist, and some for each thing that upstreams do."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.tables import assert_names_of_tests_lead_to_tests, tables

DOCUMENT = "pull-through.md"


class PullThroughTableTests(SynchronousTestCase):
    def test_every_test_that_is_named_exists(self) -> None:
        assert_names_of_tests_lead_to_tests(self, DOCUMENT)

    def test_whatever_upstreams_do_has_a_test(self) -> None:
        rows = tables(DOCUMENT)["What upstreams do"]
        self.assertGreater(len(rows), 12)
        for row in rows:
            self.assertEqual(len(row.cells), 3, row.cells)
            self.assertTrue(row.tests, row.cells)
