"""Tables of the documents that name tests."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

import artifactd

_DOCS = Path(artifactd.__file__).parents[1] / "docs"


@frozen
class Row:
    """A line of a table; ``tests`` are the dotted names in its last cell."""

    cells: tuple[str, ...]

    @property
    def tests(self) -> list[str]:
        return re.findall(r"`(tests\.[\w.]+)`", self.cells[-1])


def tables(document: str) -> dict[str, list[Row]]:
    """The rows of each table of a document, but for its head, by the heading above it."""
    found: dict[str, list[Row]] = {}
    heading = ""
    for line in (_DOCS / document).read_text("utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip("| "))
            found.setdefault(heading, []).append(Row(tuple(cell.strip() for cell in cells)))
    return {heading: rows[2:] for heading, rows in found.items()}


def assert_tests_exist(test: SynchronousTestCase, document: str, least: int) -> None:
    """At least so many different tests are named in ``document``, and all of them exist."""
    named = sorted({n for rows in tables(document).values() for row in rows for n in row.tests})
    test.assertGreater(len(named), least)
    for name in named:
        test.assertRegex(name, r"\.test_\w+$")
        test.assertTrue(callable(namedAny(name)), name)


def assert_names_of_tests_lead_to_tests(test: SynchronousTestCase, document: str) -> None:
    """Every name of a test, a class or a module of tests on the page is that of one."""
    named = set(re.findall(r"`(tests\.[\w.]+)`", (_DOCS / document).read_text("utf-8")))
    test.assertGreater(len(named), 10)
    for name in sorted(named):
        test.assertRegex(name, r"(\.test_\w+|Tests)$")
        namedAny(name)
