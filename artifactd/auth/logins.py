"""Logging in with a name and a password, whatever kind of account it is."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from hmac import digest

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.auth.failures import network
from artifactd.auth.identity import Identity
from artifactd.auth.interfaces import PasswordCheck
from artifactd.auth.slowing import AS_SET_BY_DEFAULT, Guesses, Slowed, Slowing
from artifactd.auth.turns import Turns, crowded
from artifactd.kit.deferreds import Flights
from artifactd.oci.errors import Unauthorized

_KNOWN = 1024
_NAME_LENGTH = 255


Recall = Callable[[str, str], Identity | None]
"""See :meth:`artifactd.auth.interfaces.Accounts.recall`."""


class PasswordLogins:
    """
    Asks all kinds of accounts in turn.

    Failures are counted by address and name, and by address.  One who may log in here can't wipe
    away the failures that come of guessing others' passwords, and one who uses an old password
    again and again doesn't lock out the others behind the same address.  Of each address few
    logins are checked at a time, so that a flood from one delays no other's.
    """

    _log = Logger()

    def __init__(
        self,
        checks: Sequence[PasswordCheck],
        clock: IReactorTime,
        slowing: Slowing = AS_SET_BY_DEFAULT,
        recall: Sequence[Recall] = (),
    ) -> None:
        """
        :param checks: which are asked in this order.
        :param recall: which are asked before: what they know takes microseconds.
        """
        self._checks = list(checks)
        self._recall = list(recall)
        self._guesses = Guesses(slowing, clock)
        self._key = secrets.token_bytes(32)
        self._flights: Flights[bytes, Identity | None] = Flights()
        self._known: dict[bytes, None] = {}  # what was right last time; what it is now is asked
        self._turns = Turns()

    async def log_in(self, name: str, password: str, address: str) -> Identity:
        """
        :param address: of the client.
        :raises Unauthorized: if no account is of that name and password.
        :raises TooManyRequests: with ``Retry-After``, after too many failures from ``address``, or
            while too many logins are being checked.
        """
        source = network(address)
        # Nobody has a longer name, and what is counted by it takes memory.
        if len(name) > _NAME_LENGTH:
            raise _wrong()
        self._guesses.refuse_early(source, name)
        flight = self._flight_key(name, password, source)
        identity = self._recalled(flight, name, password, source)
        if identity is None:
            # Many layers of one pull come with the same password.
            identity = await self._flights.join(
                flight, partial(self._check, flight, name, password, source)
            )
        if identity is None:
            raise _wrong()
        return identity

    def _is_crowded(self, flight: bytes, source: str) -> bool:
        """
        Whether a login is turned away.

        Wrong ones are turned away uncounted, so right ones have to be, too, or else guessing would
        be fast.  When all addresses together are too many, that does not hold for who has logged
        in from the same address before: a flood from everywhere locks none of these out.
        """
        return self._turns.is_crowded(source, flight in self._known)

    def _recalled(self, flight: bytes, name: str, password: str, source: str) -> Identity | None:
        if self._is_crowded(flight, source):
            return None
        for recall in self._recall:
            identity = recall(name, password)
            if identity is not None:
                self._know(flight, True)
                self._count(name, source, True)
                return identity
        return None

    def _flight_key(self, *parts: str) -> bytes:
        hashed = b"".join(
            hashlib.sha256(part.encode(errors="surrogatepass")).digest() for part in parts
        )
        return digest(self._key, hashed, "sha256")

    async def _check(self, flight: bytes, name: str, password: str, source: str) -> Identity | None:
        if self._is_crowded(flight, source):
            raise crowded()
        async with self._turns.turn(source):
            self._guesses.refuse_early(source, name)
            identity = await self._ask(name, password)
            # Before the next one's turn, whom it may concern.
            self._count(name, source, identity is not None)
        self._know(flight, identity is not None)
        return identity

    async def _ask(self, name: str, password: str) -> Identity | None:
        for check in self._checks:
            identity = await check.check(name, password)
            if identity is not None:
                return identity
        return None

    def _know(self, flight: bytes, succeeded: bool) -> None:
        self._known.pop(flight, None)
        if succeeded:
            if len(self._known) >= _KNOWN:
                del self._known[next(iter(self._known))]
            self._known[flight] = None

    def _count(self, name: str, source: str, succeeded: bool) -> None:
        if succeeded:
            self._guesses.succeeded(source, name)
            return
        slowed = self._guesses.failed(source, name)
        if slowed is Slowed.ADDRESSES:
            self._log.warn(
                "too many failed logins from {source}, the last as {name!r}: they are slowed down",
                source=source,
                name=name,
            )
        elif slowed is Slowed.NAMES:
            self._log.warn(
                "too many failed logins from {source} as {name!r}: they are slowed down",
                source=source,
                name=name,
            )


def _wrong() -> Unauthorized:
    return Unauthorized("wrong name or password: log in again")
