"""
Who may do what: asked for every route, before anything is looked up.

An answer of the gate is the same whether what was asked for exists or not: it depends on the
caller, on the name as text, and on the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NoReturn, Protocol

from attrs import frozen

from artifactd.oci.errors import Denied, Unsupported
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import NOBODY, Asker, NoProof
from artifactd.registry.registry import Registry, Target
from artifactd.settings.access import Action
from artifactd.web.forwarded import is_local
from artifactd.web.request import RegistryRequest


class Need(StrEnum):
    """What a route that is about no single image needs."""

    NOTHING = "nothing"  # anybody may ask
    IDENTITY = "login"  # somebody who is known, where anybody is
    CATALOG = "list"  # the list of images; it shows each caller his
    TOKEN = "token"  # nothing but credentials that are right, if there are any
    METRICS = "metrics"  # somebody on this machine, or an administrator of everything


class Gate(Protocol):
    """
    Decides.  What it raises is what the client is told.

    :ivar read_only: whether nothing may be changed now.
    """

    @property
    def read_only(self) -> Callable[[], bool]: ...

    async def identify(self, request: RegistryRequest, needed: Action | Need) -> None:
        """
        Set ``request.caller`` and ``request.actor``.

        :param needed: where no one but Basic leads to it, only that is asked for.
        :raises Unauthorized, TooManyRequests, AmbiguousCredentials: as ``Credentials.caller``.
        """

    def admit(self, request: RegistryRequest, need: Need) -> None:
        """:raises Unauthorized, Denied: if the caller does not have what the route needs."""

    def target(
        self,
        request: RegistryRequest,
        action: Action,
        registry: Registry,
        name: str,
        namespace: str | None,
    ) -> Target:
        """
        What ``name`` stands for, as far as the caller may know; with nothing looked up.

        :param namespace: the registry that a mirror's request is meant for.
        :raises Unauthorized, Denied: if ``action`` is not for him.
        :raises Unsupported: if it changes something while nothing may be changed.
        :raises NameInvalid, NameUnknown: as ``Registry.target``.
        """

    def may_pull(
        self, request: RegistryRequest, name: str | None = None
    ) -> Callable[[ImageName], bool] | None:
        """
        Which images the caller may pull; ``None``: all.

        :param name: of the image as the client has it, where that counts for the scopes of a
            token; ``None``: the scopes don't count, since a list is of images nobody has named.
        """

    def may_pull_any(self, request: RegistryRequest) -> bool:
        """Whether it is worth looking for an image that :meth:`may_pull` lets the caller pull."""

    def asker(self, request: RegistryRequest) -> Asker:
        """Whom the proofs of access that some images want are asked of."""

    def unproved(
        self, request: RegistryRequest, error: NoProof, target: Target, action: Action
    ) -> NoProof:
        """``error`` as the caller reads it who has no proof of access, with the challenge."""

    def nothing_listed(self, request: RegistryRequest) -> None:
        """
        An empty list is due.

        :raises Unauthorized: to somebody nobody knows: he may want to say who he is.
        """


def refuse_changes(request: RegistryRequest) -> NoReturn:
    """:raises Unsupported: saying what the read-only mode is."""
    raise Unsupported(
        "the registry is read-only at present: its operator ends that with"
        " 'artifactd read-only off', or by the setting read_only",
        None,
        {"Allow": "GET, HEAD"},
    )


@frozen
class LoopbackGate:
    """
    No authentication is configured: everybody reads, and who is on this machine writes.
    """

    read_only: Callable[[], bool]

    async def identify(self, request: RegistryRequest, needed: Action | Need) -> None:
        """Nobody is known."""

    def admit(self, request: RegistryRequest, need: Need) -> None:
        """Anybody."""

    def target(
        self,
        request: RegistryRequest,
        action: Action,
        registry: Registry,
        name: str,
        namespace: str | None,
    ) -> Target:
        """As in :class:`Gate`."""
        if action is not Action.PULL:
            if not is_local(request):
                raise Denied(
                    "only clients on the registry's own machine may change anything while no"
                    " authentication is configured: set [auth] and [[access]] in its settings"
                )
            if self.read_only():
                refuse_changes(request)
        return registry.target(name, namespace)

    def may_pull(self, request: RegistryRequest, name: str | None = None) -> None:
        """Everything."""

    def may_pull_any(self, request: RegistryRequest) -> bool:
        """As in :class:`Gate`."""
        return True

    def asker(self, request: RegistryRequest) -> Asker:
        """Nobody is known."""
        return NOBODY

    def unproved(
        self, request: RegistryRequest, error: NoProof, target: Target, action: Action
    ) -> NoProof:
        """Not where there is no authentication: proofs are some."""
        return error

    def nothing_listed(self, request: RegistryRequest) -> None:
        """There is nobody to become."""
