"""Logging in with a name and a password, whatever kind of account it is."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hmac import digest
from typing import Protocol

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.auth.guessing import (
    AS_SET_BY_DEFAULT,
    Guesses,
    Slowed,
    Slowing,
    Turns,
    crowded,
    network,
)
from artifactd.auth.identity import Caller, Identity, Kind
from artifactd.auth.passwords import fits_basic
from artifactd.kit.deferreds import SingleFlight
from artifactd.oci.errors import Unauthorized
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action
from artifactd.upstream.credentials import UpstreamLogin

# What the ways of telling who is asking have in common.


class PasswordCheck(Protocol):
    """One kind of accounts: users of an htpasswd file, robots, tokens given as passwords."""

    async def check(self, name: str, password: str) -> Identity | None:
        """
        Who logs in as ``name`` with ``password``; ``None`` where these are not known here, which
        may take as long as if they were.
        """


class Accounts(PasswordCheck, Protocol):
    """Accounts that are listed here, each with a password that may change."""

    def recall(self, name: str, password: str) -> Identity | None:
        """
        As :meth:`check`, but at once: ``None`` too where that takes a thread or a look at a file.
        """

    async def mark(self, identity: Identity) -> str | None:
        """
        What stays the same as long as the password of ``identity`` does, in every process that
        has the same settings; it tells nothing about the password.  ``None`` if there is no such
        account any more.

        A refresh token holds it, and so dies with the password.
        """


class Logins(Protocol):
    """All kinds of accounts together, and what slows guessing down."""

    async def log_in(self, name: str, password: str, address: str) -> Identity:
        """
        :param address: of the client.
        :raises Unauthorized: if no account is of that name and password.
        :raises TooManyRequests: with ``Retry-After``, after too many failures from ``address``.
        """


class TokenCheck(Protocol):
    """Bearer tokens: of artifactd's own token service, or of another issuer."""

    async def verify(self, token: str) -> Caller:
        """
        Who carries ``token``, and what it is for.

        :raises Unauthorized: if it isn't valid here and now; the message says why.
        """


class Rules(Protocol):
    """The access rules of the settings."""

    def granted(self, identity: Identity, image: ImageName) -> frozenset[Action]:
        """What ``identity`` may do to ``image``; nothing is looked up, so it needn't exist."""

    def granted_everywhere(self, identity: Identity) -> frozenset[Action]:
        """What ``identity`` may do to every image there could be, and to the registry itself."""

    def grants_any(self, identity: Identity, action: Action) -> bool:
        """
        Whether ``identity`` may do ``action`` to any image there could be; ``True`` too where it
        can't be told without the name of one.
        """


_KNOWN = 1024
_NAME_LENGTH = 255


Recall = Callable[[str, str], Identity | None]
"""See :meth:`artifactd.auth.logins.Accounts.recall`."""


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
        self._single_flight: SingleFlight[bytes, Identity | None] = SingleFlight()
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
            identity = await self._single_flight.join(
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


# Logging in with an upstream's credential: docs/access.md, "Proof of access".


class AccessProver(Protocol):
    """One upstream, asked with others' credentials."""

    def present(self, user: str, password: str) -> UpstreamLogin:
        """What is shown by who says that he is ``user`` there."""

    async def log_in(self, presented: UpstreamLogin) -> bool:
        """
        Whether the upstream knows it; ``False``: it doesn't say.

        :raises Unauthorized: if it is wrong.
        :raises BadGateway: if it can't be asked.
        """

    async def prove(self, image: ImageName, presented: UpstreamLogin) -> bool:
        """
        Whether ``image`` may be had with it; that is remembered.

        :raises Unauthorized, BadGateway: as :meth:`log_in`.
        """


class Visitors:
    """
    Those who are no account here, but one of an upstream.

    They log in as ``<repository>/<user>``, so that no password of another upstream, or of an
    account here, is ever shown to the upstream of ``<repository>``.

    :param upstreams: by the names of their repositories.
    :param alone: the one that a name without a repository is of; empty: none, since there are
        several, or other accounts that the name could be of.
    """

    def __init__(
        self,
        upstreams: Mapping[str, AccessProver],
        alone: str,
        clock: IReactorTime,
        slowing: Slowing,
    ) -> None:
        self.upstreams = upstreams
        self._alone = alone
        self._guesses = Guesses(slowing, clock)
        self._turns = Turns()

    def present(self, name: str, password: str, address: str) -> UpstreamLogin | None:
        """
        What a login shows; ``None`` if it is not one of an upstream's, or none that could be shown
        to it by Basic.

        :param address: of the client.
        """
        repository, slash, user = name.partition("/")
        if not slash or repository not in self.upstreams:
            repository, user = self._alone, name
        if not repository or not user or not password or len(name) > _NAME_LENGTH:
            return None
        if not fits_basic(user, password):
            return None
        presented = self.upstreams[repository].present(user, password)
        source, counted = network(address), str(presented)
        return evolve(
            presented,
            turn=partial(self._turn, source, counted),
            failed=partial(self._guesses.failed, source, counted),
        )

    async def log_in(self, presented: UpstreamLogin, address: str) -> Caller:
        """
        Who shows that.  Where the upstream doesn't say whether it is right, nobody, who shows it.

        :raises Unauthorized: if it is wrong.
        :raises BadGateway: if the upstream can't be asked.
        :raises TooManyRequests: with ``Retry-After``, after too many failures from ``address``, or
            while too many logins are being checked.
        """
        source, name = network(address), str(presented)
        self._guesses.refuse_early(source, name)
        if not await self.upstreams[presented.repository].log_in(presented):
            return Caller(presented=presented)
        self._guesses.succeeded(source, name)
        return Caller(Identity(Kind.UPSTREAM, name), presented=presented)

    @asynccontextmanager
    async def _turn(self, source: str, name: str) -> AsyncIterator[None]:
        """What the upstream is asked in; guesses made at once count as if made one by one."""
        if self._turns.is_crowded(source):
            raise crowded()
        async with self._turns.turn(source):
            self._guesses.refuse_early(source, name)
            yield


async def caller_of(
    logins: Logins, visitors: Visitors | None, name: str, password: str, address: str
) -> Caller:
    """
    Who logs in: an account here, or somebody of an upstream.

    :param address: of the client.
    :raises Unauthorized, TooManyRequests, BadGateway: as :class:`Logins` and :class:`Visitors`.
    """
    presented = None if visitors is None else visitors.present(name, password, address)
    if visitors is None or presented is None:
        return Caller(await logins.log_in(name, password, address))
    return await visitors.log_in(presented, address)
