"""The page of messages quotes those that the program has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parents[1]


def texts(node: ast.AST) -> str:
    """The constant parts of all strings in ``node``, each f-string's joined."""
    parts = []
    inner: set[ast.AST] = set()
    for each in ast.walk(node):
        if isinstance(each, ast.JoinedStr):
            inner.update(each.values)
            parts.append(
                "".join(
                    str(value.value) if isinstance(value, ast.Constant) else "…"
                    for value in each.values
                )
            )
        elif isinstance(each, ast.Constant) and isinstance(each.value, str) and each not in inner:
            parts.append(each.value)
    return "\n".join(parts)


class TroubleshootingTests(SynchronousTestCase):
    def test_each_message_is_one_of_the_programs(self) -> None:
        page = (ROOT / "docs/troubleshooting.md").read_text()
        quoted = re.findall(r"(?m)^\| `([^`]+)` \|", page)
        self.assertGreater(len(quoted), 20)
        program = "\n".join(
            texts(ast.parse(path.read_text())) for path in (ROOT / "artifactd").rglob("*.py")
        )
        # "may not push here" is made of "may not … here" and the action.
        self.assertEqual([text for text in quoted if text not in program], ["may not push here"])
        self.assertIn("may not … here", program)
