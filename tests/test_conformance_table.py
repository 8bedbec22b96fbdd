"""docs/conformance.md names tests that exist, and one for all that the spec asks for."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

import artifactd

TABLE = Path(artifactd.__file__).parents[1] / "docs" / "conformance.md"
LEVELS = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY"}
ENDPOINTS = (
    "end-1 end-2 end-3 end-4a end-4b end-4c end-5 end-6 end-7a end-7b end-8a end-8b end-9 end-10"
    " end-11 end-12a end-12b end-13 end-14"
)


@frozen
class Row:
    """A line of a table of the document; ``tests`` are the dotted names it gives."""

    cells: tuple[str, ...]

    @property
    def tests(self) -> list[str]:
        return re.findall(r"`(tests\.[\w.]+)`", self.cells[-1])


def tables() -> dict[str, list[Row]]:
    """The rows of each table, but for its head, by the heading above it."""
    found: dict[str, list[Row]] = {}
    heading = ""
    for line in TABLE.read_text("utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip("| "))
            found.setdefault(heading, []).append(Row(tuple(cell.strip() for cell in cells)))
    return {heading: rows[2:] for heading, rows in found.items()}


class ConformanceTableTests(SynchronousTestCase):
    def test_every_test_that_is_named_exists(self) -> None:
        named = sorted({name for rows in tables().values() for row in rows for name in row.tests})
        self.assertGreater(len(named), 100)
        for name in named:
            self.assertRegex(name, r"\.test_\w+$")
            self.assertTrue(callable(namedAny(name)), name)

    def test_every_statement_has_a_test(self) -> None:
        rows = tables()["Statements"]
        self.assertGreater(len(rows), 80)
        for row in rows:
            _, statement, level, _, _ = row.cells
            self.assertIn(level, LEVELS, statement)
            self.assertTrue(row.tests, statement)

    def test_every_endpoint_has_a_test_of_its_success_and_of_its_failures(self) -> None:
        rows = tables()["Endpoints"]
        listed = list(dict.fromkeys(row.cells[0] for row in rows))
        self.assertEqual(listed, ENDPOINTS.split())
        for row in rows:
            self.assertTrue(row.tests, row.cells)

    def test_every_code_has_a_test_or_a_reason(self) -> None:
        rows = tables()["Error codes"]
        self.assertEqual([row.cells[0] for row in rows], [f"code-{n}" for n in range(1, 15)])
        for row in rows:
            self.assertTrue(row.tests or row.cells[2], row.cells)

    def test_what_does_not_apply_has_a_reason(self) -> None:
        for row in tables()["What does not apply"]:
            self.assertGreater(len(row.cells[-1]), 10, row.cells)
