"""What a check of the data has to say."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen


class State(StrEnum):
    """What is to be said of a finding."""

    LEFT = "problem"
    MENDED = "repaired"
    NOTE = "note"


@frozen
class Finding:
    """
    :ivar kind: a word, for who filters the output.
    :ivar name: the digest, image or row concerned.
    :ivar text: what is the matter, and what to do about it.
    """

    state: State
    kind: str
    name: str
    text: str
