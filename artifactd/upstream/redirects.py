"""Where a redirect leads, and what may go along."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

from artifactd.upstream.errors import Unreachable
from artifactd.upstream.target import Target

STATUSES = frozenset({301, 302, 303, 307, 308})
"""Redirects that are followed; a GET or HEAD stays what it is on all of them (RFC 9110, 15.4)."""

LIMIT = 5
"""Redirects that one request follows at most."""


@define
class Trail:
    """
    The way of one request over its redirects.

    :ivar target: who is to be asked next.
    :ivar headers: what is to be sent there.
    """

    target: Target
    headers: Mapping[str, str]
    _seen: set[Target] = field(factory=set, init=False)

    def follow(self, location: str | None) -> None:
        """
        Go where ``target`` has redirected to.

        ``Authorization`` goes along to the very same origin only (RFC 9110, 15.4), and does not
        come back when a later redirect leads back.

        :raises Unreachable: if it leads in a circle, too far, from https to http, or nowhere.
        """
        before = self.target
        self._seen.add(before)
        try:
            after = before.join(location or "")
        except ValueError as error:
            raise Unreachable(f"{before.authority} redirects wrongly: {error}") from None
        if not location:
            raise Unreachable(f"{before.authority} redirects to nowhere")
        if before.scheme == "https" and after.scheme != "https":
            raise Unreachable(f"{before.authority} redirects from https to http")
        if after in self._seen:
            raise Unreachable(f"{before.authority} redirects in a circle")
        if len(self._seen) > LIMIT:
            raise Unreachable(f"{before.authority} redirects for more than {LIMIT} times")
        self.target = after
        if after.origin != before.origin:
            self.headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() != "authorization"
            }
