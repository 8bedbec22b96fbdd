"""
Who may do what: asked for every route, before anything is looked up.

An answer of the gate is the same whether what was asked for exists or not: it depends on the
caller, on the name as text, and on the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NoReturn, Protocol

from attrs import frozen
from twisted.web.server import Request

from artifactd.auth.identity import Caller, Kind
from artifactd.auth.logins import Rules
from artifactd.oci.errors import Denied, NameUnknown, Unauthorized, Unsupported
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import NoProof, ProofWanted
from artifactd.registry.model import NOBODY, Asker
from artifactd.registry.registry import Registry, Target
from artifactd.settings.access import Action
from artifactd.web.credentials import Credentials
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.proxies import TrustedProxies, is_local


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


# ``WWW-Authenticate``: how a client may say who it is.

BASIC = 'Basic realm="artifactd", charset="UTF-8"'


@frozen
class Challenge:
    """
    RFC 7617 (Basic), or registry-auth-token, "How to authenticate" (Bearer).

    Never both: clients choose the first scheme that they know, or the last.

    :ivar proxies: whose word tells by what URL a client has come.
    :ivar external_url: the URL of the daemon as clients know it; ``""``: as each has come.
    :ivar service: the name of the token service; ``""``: there is none, and Basic is asked for.
    """

    proxies: TrustedProxies
    external_url: str = ""
    service: str = ""

    def value(self, request: Request, scopes: Iterable[str] = (), error: str = "") -> str:
        """
        :param scopes: what a token has to be for.
        :param error: what is wrong with the one that came: RFC 6750, 3.1.
        """
        if not self.service:
            return BASIC
        parameters = {
            "realm": f"{self.external_url or self.proxies.origin(request)}/token",
            "service": self.service,
            "scope": " ".join(scopes),
            "error": error,
        }
        return "Bearer " + ",".join(f'{name}="{v}"' for name, v in parameters.items() if v)


# The gate while authentication is configured: what no rule grants is refused.

# How registry-auth-scope calls the list of all images, and a token's scopes here.
_CATALOG_SCOPE, _CATALOG = "registry:catalog:*", "*"

# What a token is asked to be for.  Who pushes pulls too: clients look what is there first.
_SCOPES = {
    Action.PULL: "pull",
    Action.PUSH: "pull,push",
    Action.DELETE: "delete",
    Action.ADMINISTER: "administer",
}


@frozen
class AccessGate:
    """As :class:`artifactd.web.gate.Gate` says."""

    credentials: Credentials
    rules: Rules
    challenge: Challenge
    read_only: Callable[[], bool]

    async def identify(self, request: RegistryRequest, needed: Action | Need) -> None:
        """As in :class:`Gate`."""
        try:
            request.caller = await self.credentials.caller(request)
        except Unauthorized as error:
            problem = "invalid_token" if _bears(request) else ""
            error.headers["WWW-Authenticate"] = (
                BASIC if needed is Need.TOKEN else self.challenge.value(request, error=problem)
            )
            raise
        request.actor = str(request.caller.identity)

    def admit(self, request: RegistryRequest, need: Need) -> None:
        """As in :class:`Gate`."""
        caller = request.caller
        if need is Need.IDENTITY:
            # Docker chooses its scheme here, even where it may pull without.  A token of nobody
            # is one.
            if _nobody(caller) and caller.scopes is None and caller.presented is None:
                self._unauthorized(request)
        elif need is Need.CATALOG:
            if caller.scopes is not None and not caller.scopes.get(_CATALOG):
                self._unauthorized(request, _CATALOG_SCOPE, "insufficient_scope")
        elif need is Need.METRICS and not is_local(request):
            if _nobody(caller):
                self._unauthorized(request)
            # A token of ours is for images, and no other has scopes.
            if caller.scopes is not None or (
                Action.ADMINISTER not in self.rules.granted_everywhere(caller.identity)
            ):
                raise Denied(
                    "only an administrator of all images, logged in by Basic, may read this from"
                    " afar"
                )

    def target(
        self,
        request: RegistryRequest,
        action: Action,
        registry: Registry,
        name: str,
        namespace: str | None,
    ) -> Target:
        """As in :class:`Gate`."""
        try:
            target = registry.target(name, namespace)
        except NameUnknown:
            # Of no repository there is: only a rule about every name is about it.
            nowhere = ImageName(namespace or "", name)
            self._permitted(request, action, [nowhere], name, str(nowhere))
            raise
        scope = name if namespace is None else str(target.image)
        if action is Action.PULL:
            permitted = self._permitted(request, action, target.candidates, name, scope)
            request.sees_cache = True
            return target.limited_to(permitted).asked_by(self.asker(request))
        self._permitted(request, action, [target.image], name, scope)
        if self.read_only():
            refuse_changes(request)
        pulled = list(filter(self.may_pull(request, scope), target.candidates))
        request.sees_cache = bool(pulled)
        return target.limited_to(pulled).asked_by(self.asker(request))

    def may_pull(
        self, request: RegistryRequest, name: str | None = None
    ) -> Callable[[ImageName], bool]:
        """As in :class:`Gate`."""
        caller = request.caller

        def may(image: ImageName) -> bool:
            granted = Action.PULL in self.rules.granted(caller.identity, image)
            return granted and (name is None or _in_scope(caller, Action.PULL, image, name))

        return may

    def may_pull_any(self, request: RegistryRequest) -> bool:
        """As in :class:`Gate`."""
        return self.rules.grants_any(request.caller.identity, Action.PULL)

    def asker(self, request: RegistryRequest) -> Asker:
        """As in :class:`Gate`."""
        return Asker(not _nobody(request.caller), request.caller.presented)

    def unproved(
        self, request: RegistryRequest, error: NoProof, target: Target, action: Action
    ) -> NoProof:
        """As in :class:`Gate`."""
        request.sees_cache = False
        if isinstance(error, ProofWanted):
            scope = str(target.name) if target.namespace is None else str(target.image)
            error.headers["WWW-Authenticate"] = self.challenge.value(
                request, (f"repository:{scope}:{_SCOPES[action]}",), error.token_error
            )
        return error

    def nothing_listed(self, request: RegistryRequest) -> None:
        """As in :class:`Gate`."""
        if _nobody(request.caller) and request.caller.scopes is None:
            self._unauthorized(request, _CATALOG_SCOPE)

    def _permitted(
        self,
        request: RegistryRequest,
        action: Action,
        images: Iterable[ImageName],
        name: str,
        scope: str,
    ) -> list[ImageName]:
        """
        Those of ``images`` that the caller may do ``action`` to; at least one.

        :param name: as the client has it.
        :param scope: the name that a token is for.
        """
        caller = request.caller
        granted = [i for i in images if action in self.rules.granted(caller.identity, i)]
        permitted = [image for image in granted if _in_scope(caller, action, image, scope)]
        if permitted:
            return permitted
        wanted = f"repository:{scope}:{_SCOPES[action]}"
        if granted:
            self._unauthorized(request, wanted, "insufficient_scope")
        if _nobody(caller):
            self._unauthorized(request, wanted)
        raise Denied(
            f"{caller.identity} may not {action} here: no access rule of the registry grants it",
            {"name": name, "action": str(action)},
        )

    def _unauthorized(
        self, request: RegistryRequest, scope: str | None = None, error: str = ""
    ) -> NoReturn:
        scopes = () if scope is None else (scope,)
        raise Unauthorized(
            "the token is for something else: get one with the scope in WWW-Authenticate"
            if error
            else "authentication required: log in first",
            None,
            {"WWW-Authenticate": self.challenge.value(request, scopes, error)},
        )


def _nobody(caller: Caller) -> bool:
    return caller.identity.kind is Kind.ANONYMOUS


def _in_scope(caller: Caller, action: Action, image: ImageName, name: str) -> bool:
    """Whether the caller's token is for it, by the name it was asked for or the canonical one."""
    scopes = caller.scopes
    if scopes is None:
        return True
    return action in scopes.get(name, ()) or action in scopes.get(str(image), ())


def _bears(request: RegistryRequest) -> bool:
    values = request.requestHeaders.getRawHeaders(b"Authorization", [b""])
    return values[0].strip().lower().startswith(b"bearer")
