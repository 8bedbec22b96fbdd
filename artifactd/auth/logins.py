"""Logging in with a name and a password, for all kinds of accounts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from hmac import digest

from attrs import evolve
from cachetools import LRUCache
from twisted.logger import Logger

from artifactd.auth.bearer import BearerTokens
from artifactd.auth.guessing import Blocked, Guard, network
from artifactd.auth.identity import Caller, Identity, Kind
from artifactd.auth.passwords import Accounts, fits_basic
from artifactd.kit.deferreds import SingleFlight
from artifactd.kit.shared import SharedMemory
from artifactd.oci.errors import TooManyRequests, Unauthorized
from artifactd.registry.mirror.proofs import AccessProofs
from artifactd.settings.accounts import AuthSettings
from artifactd.upstream.credentials import UpstreamLogin

_REMEMBERED = 1024  # logins that were right
_NAME_LENGTH = 255  # characters


class Visitors:
    """
    Logs in clients that have no account here, but one at an upstream.

    Such clients log in as ``<repository>/<user>``, so that a password for another upstream, or for
    an account here, is never sent to the upstream of ``<repository>``. docs/access.md, "Proof of
    access", describes it for operators.

    :param upstreams: the proofs of each upstream, by the names of their repositories.
    :param alone: the repository whose upstream gets logins with names without ``<repository>/``;
        empty: no upstream gets them, since such a name may belong to an account here or at another
        upstream.
    :param memory: where failures are counted, by all processes of the daemon.
    :param seconds: see :class:`~artifactd.auth.guessing.Guard`.
    """

    def __init__(
        self,
        upstreams: Mapping[str, AccessProofs],
        alone: str,
        settings: AuthSettings,
        memory: SharedMemory,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upstreams = upstreams
        self._alone = alone
        self._guard = Guard(settings, "upstreams", memory, seconds)

    def present(self, name: str, password: str, address: str) -> UpstreamLogin | None:
        """
        Make the credential for an upstream from a client's login; ``None`` if the login is for no
        upstream, or if HTTP Basic can't carry it there.

        :param address: the client's address.
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
            turn=partial(self._guard.turn, source, counted),
            failed=partial(self._guard.failed, source, counted),
        )

    async def log_in(self, presented: UpstreamLogin, address: str) -> Caller:
        """
        Ask the upstream whether the credential is right, and return the caller.

        If the upstream answers without any login, so that it does not check this one, the caller is
        anonymous and keeps the credential.

        :raises Unauthorized: if the credential is wrong.
        :raises BadGateway: if the upstream can't be asked.
        :raises TooManyRequests: with ``Retry-After``, after too many failures from ``address``, or
            while too many logins are being checked.
        """
        source, name = network(address), str(presented)
        self._guard.refuse_early(source, name)
        if not await self.upstreams[presented.repository].log_in(presented):
            return Caller(presented=presented)
        self._guard.succeeded(source, name)
        return Caller(Identity(Kind.UPSTREAM, name), presented=presented)


class Logins:
    """
    Logs clients in with a name and a password.

    Failed logins are counted by address and name, and by address: see
    :class:`~artifactd.auth.guessing.Guard`.  A client that repeats an old password doesn't lock
    out others behind the same address.  Few logins of one address are checked at a time, so that a
    flood from one address delays no other.

    :param accounts: all kinds of accounts, asked in this order.
    :param memory: where failures are counted, by all processes of the daemon.
    :param tokens: checks first whether the password is a token of another issuer.
    :param visitors: logs in accounts of upstreams; ``None``: accounts of upstreams are refused.
    :param seconds: see :class:`~artifactd.auth.guessing.Guard`.
    """

    _log = Logger()

    def __init__(
        self,
        accounts: Sequence[Accounts],
        settings: AuthSettings,
        memory: SharedMemory,
        tokens: BearerTokens | None = None,
        visitors: Visitors | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.visitors = visitors
        self._accounts = accounts
        self._tokens = tokens
        self._guard = Guard(settings, "accounts", memory, seconds)
        self._key = secrets.token_bytes(32)
        # Logins that were right the last time, by a keyed hash: they still have to be checked, but
        # a flood from everywhere does not lock them out.
        self._known: LRUCache[bytes, bool] = LRUCache(_REMEMBERED)
        self._single_flight: SingleFlight[bytes, Identity | None] = SingleFlight()

    async def log_in(self, name: str, password: str, address: str) -> Caller:
        """
        Check a name and a password, and return the caller.

        :param address: the client's address.
        :raises Unauthorized: if no account has that name and password.
        :raises TooManyRequests: with ``Retry-After``, after too many failures from ``address``, or
            while too many logins are being checked.
        :raises BadGateway: if it is a login for an upstream, which can't be asked.
        """
        if self.visitors is not None:
            presented = self.visitors.present(name, password, address)
            if presented is not None:
                return await self.visitors.log_in(presented, address)
        if len(name) > _NAME_LENGTH:
            # No account has such a name, and the counts of failures hold names in memory.
            raise _wrong()
        source = network(address)
        self._guard.refuse_early(source, name)
        login = self._login(name, password, source)
        recalled = self._recall(login, name, password, source)
        if recalled is not None:
            return Caller(recalled)
        # The many requests of one pull come with the same login, at the same time.
        check = partial(self._check, login, name, password, source)
        identity = await self._single_flight.join(login, check)
        if identity is None:
            raise _wrong()
        return Caller(identity)

    def recall(self, name: str, password: str, address: str) -> Caller | None:
        """
        Do the same as :meth:`log_in` in microseconds; ``None`` if the login has to be checked, is
        refused, or is for an upstream.
        """
        visitors = self.visitors
        if visitors is not None and visitors.present(name, password, address) is not None:
            return None
        source = network(address)
        try:
            self._guard.refuse_early(source, name)
        except TooManyRequests:
            return None
        login = self._login(name, password, source)
        identity = self._recall(login, name, password, source)
        return None if identity is None else Caller(identity)

    def _login(self, name: str, password: str, source: str) -> bytes:
        parts = [
            sha256(part.encode(errors="surrogatepass")).digest()
            for part in (name, password, source)
        ]
        return digest(self._key, b"".join(parts), "sha256")

    def _recall(self, login: bytes, name: str, password: str, source: str) -> Identity | None:
        # When an address has too many logins waiting, all further ones get 429, right or wrong:
        # answering only the right ones would tell a guesser which those are.
        if self._guard.is_crowded(source, login in self._known):
            return None
        for accounts in self._accounts:
            identity = accounts.recall(name, password)
            if identity is not None:
                self._known[login] = True
                self._guard.succeeded(source, name)
                return identity
        return None

    async def _check(self, login: bytes, name: str, password: str, source: str) -> Identity | None:
        async with self._guard.turn(source, name, login in self._known):
            identity = None if self._tokens is None else await self._tokens.check(name, password)
            for accounts in self._accounts:
                if identity is None:
                    identity = await accounts.check(name, password)
            if identity is None:
                self._failed(source, name)
            elif identity.kind is not Kind.ISSUER:  # a token goes with any name
                self._guard.succeeded(source, name)
        if identity is None:
            self._known.pop(login, None)
        else:
            self._known[login] = True
        return identity

    def _failed(self, source: str, name: str) -> None:
        blocked = self._guard.failed(source, name)
        if blocked is Blocked.ADDRESS:
            self._log.warn(
                "too many failed logins from {source}, the last as {name!r}: they are slowed down",
                source=source,
                name=name,
            )
        elif blocked is Blocked.NAME:
            self._log.warn(
                "too many failed logins from {source} as {name!r}: they are slowed down",
                source=source,
                name=name,
            )


def _wrong() -> Unauthorized:
    return Unauthorized("wrong name or password: log in again")
