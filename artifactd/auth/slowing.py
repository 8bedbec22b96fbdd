"""How guessing at logins is slowed down, whoever checks them."""

from __future__ import annotations

import math
from enum import Enum

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.auth.failures import Failures
from artifactd.oci.errors import TooManyRequests


@frozen
class Slowing:
    """
    ``[auth]`` in the settings tells what each means.

    :ivar failure_period: in seconds.
    """

    name_failures: int = 5
    address_failures: int = 20
    failure_period: float = 300.0


AS_SET_BY_DEFAULT = Slowing()


class Slowed(Enum):
    """Whose further logins have to wait."""

    NOBODYS = "nobody's"
    NAMES = "those of the name from that address"
    ADDRESSES = "all from that address"


class Guesses:
    """
    Failed logins by address and name, and by address.  One who may log in here can't wipe away the
    failures that come of guessing others' passwords.
    """

    def __init__(self, slowing: Slowing, clock: IReactorTime) -> None:
        self._by_name = Failures(slowing.name_failures, slowing.failure_period, clock)
        self._by_address = Failures(slowing.address_failures, slowing.failure_period, clock)

    def refuse_early(self, source: str, name: str) -> None:
        """:raises TooManyRequests: while nothing is checked for them, not even the password."""
        wait = max(self._by_name.wait((source, name)), self._by_address.wait(source))
        if wait > 0:
            seconds = math.ceil(wait)
            raise TooManyRequests(
                f"too many failed logins from {source}: try again in {seconds} s",
                None,
                {"Retry-After": str(seconds)},
            )

    def succeeded(self, source: str, name: str) -> None:
        """A login was right."""
        self._by_address.subtract(source, self._by_name.forget((source, name)))

    def failed(self, source: str, name: str) -> Slowed:
        """A login was wrong; who has to wait now."""
        self._by_name.add((source, name))
        self._by_address.add(source)
        if self._by_address.wait(source):
            return Slowed.ADDRESSES
        return Slowed.NAMES if self._by_name.wait((source, name)) else Slowed.NOBODYS
