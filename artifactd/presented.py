"""What somebody has shown who logs in here with an upstream's credential: docs/access.md."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

from attrs import field, frozen


def _nothing() -> None:
    """Nobody counts."""


@frozen
class Presented:
    """
    A user name and a password at the upstream of one repository, not necessarily right.

    :ivar repository: whose upstream it is; nobody else is ever shown the password.
    :ivar user: the name there.
    :ivar mark: a keyed hash of all of it, under which proofs are remembered; it tells nothing.
    :ivar password: ``None`` where a token has come in its place, which holds the mark alone.
    :ivar turn: in which the upstream is asked with the password, and ``failed`` called; raises
        ``TooManyRequests`` if it may not be asked.
    :ivar failed: to be called when the upstream says that the password is wrong.
    """

    repository: str
    user: str
    mark: bytes = field(repr=False)
    password: str | None = field(default=None, repr=False)
    turn: Callable[[], AbstractAsyncContextManager[None]] = field(
        default=nullcontext, repr=False, eq=False
    )
    failed: Callable[[], object] = field(default=_nothing, repr=False, eq=False)

    def __str__(self) -> str:
        """As it logs in: ``ghcr.io/alice``."""
        return f"{self.repository}/{self.user}"
