"""A page of a list as an answer."""

from __future__ import annotations

from collections.abc import Mapping

from artifactd.web.answer import Answer
from artifactd.web.query import link_to_next


def list_answer(
    document: Mapping[str, object],
    path: str,
    following: Mapping[str, str] | None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One page; ``following`` is the query of the next one."""
    answer_headers = dict(headers or {})
    if following is not None:
        answer_headers["Link"] = link_to_next(path, following)
    return Answer.json(document, answer_headers)
