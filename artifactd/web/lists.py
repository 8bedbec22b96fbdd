"""A page of a list as an answer."""

from __future__ import annotations

from collections.abc import Mapping

from artifactd.web.answer import Answer
from artifactd.web.query import Page, link_to_next


def list_answer(
    document: Mapping[str, object], path: str, entries: list[str], page: Page
) -> Answer:
    """One page of ``entries``, of which one more than fits was asked for."""
    answer_headers = {}
    if len(entries) > page.limit > 0:
        answer_headers["Link"] = link_to_next(path, n=page.limit, last=entries[page.limit - 1])
    return Answer.json(document, answer_headers)
