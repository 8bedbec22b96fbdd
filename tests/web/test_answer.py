"""Answers as values."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from artifactd.web.answer import list_answer


class ListTests(SynchronousTestCase):
    def test_a_list_that_many_ask_for_is_not_copied_for_each(self) -> None:
        tags = json.dumps([f"v{number}" for number in range(1000)]).encode()
        answers = [list_answer({"name": name}, "/", None, tags=tags) for name in ("a", "b")]
        for answer, name in zip(answers, ("a", "b"), strict=True):
            self.assertIs(answer.body, tags)
            whole = answer.body.join(answer.around or ())
            self.assertEqual(json.loads(whole), {"name": name, "tags": json.loads(tags)})
