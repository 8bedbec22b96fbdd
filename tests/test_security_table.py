"""docs/security.md names tests that exist, and at least one for each threat."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.tables import assert_tests_exist, tables

DOCUMENT = "security.md"
SUBJECTS = [
    "Credentials",
    "Rights",
    "Names",
    "Content",
    "Transport",
    "Exhaustion",
    "Shared bytes",
    "What comes from upstream",
    "Operators' mistakes",
    "Crash and loss of power",
]


class SecurityTableTests(SynchronousTestCase):
    def test_every_test_that_is_named_exists(self) -> None:
        assert_tests_exist(self, DOCUMENT, 150)

    def test_there_are_threats_of_all_kinds(self) -> None:
        self.assertEqual(list(tables(DOCUMENT)), SUBJECTS)

    def test_every_threat_is_answered_and_has_a_test(self) -> None:
        for rows in tables(DOCUMENT).values():
            for row in rows:
                self.assertEqual(len(row.cells), 3, row.cells)
                threat, done, _ = row.cells
                self.assertTrue(done, threat)
                self.assertTrue(row.tests, threat)
