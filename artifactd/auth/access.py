"""What may be done to an image."""

from __future__ import annotations

from enum import StrEnum


class Action(StrEnum):
    """As a token's scope has them: registry-auth-scope, "Resource Actions"."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    ADMINISTER = "administer"
