"""Logging in with an upstream's credential: docs/access.md, "Proof of access"."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

from attrs import evolve
from twisted.internet.interfaces import IReactorTime

from artifactd.auth.basic import fits_basic
from artifactd.auth.failures import network
from artifactd.auth.identity import Caller, Identity, Kind
from artifactd.auth.interfaces import Logins
from artifactd.auth.slowing import Guesses, Slowing
from artifactd.auth.turns import Turns, crowded
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import Presented

_NAME_LENGTH = 255


class AccessProver(Protocol):
    """One upstream, asked with others' credentials."""

    def present(self, user: str, password: str) -> Presented:
        """What is shown by who says that he is ``user`` there."""

    async def log_in(self, presented: Presented) -> bool:
        """
        Whether the upstream knows it; ``False``: it doesn't say.

        :raises Unauthorized: if it is wrong.
        :raises BadGateway: if it can't be asked.
        """

    async def prove(self, image: ImageName, presented: Presented) -> bool:
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

    def present(self, name: str, password: str, address: str) -> Presented | None:
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

    async def log_in(self, presented: Presented, address: str) -> Caller:
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
