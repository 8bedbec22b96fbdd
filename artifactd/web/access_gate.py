"""The gate while authentication is configured: what no rule grants is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn

from attrs import frozen

from artifactd.auth.identity import Caller, Kind
from artifactd.auth.logins import Rules
from artifactd.oci.errors import Denied, NameUnknown, Unauthorized
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import Asker, NoProof, ProofWanted
from artifactd.registry.registry import Registry, Target
from artifactd.settings.access import Action
from artifactd.web.challenge import BASIC, Challenge
from artifactd.web.credentials import Credentials
from artifactd.web.forwarded import is_local
from artifactd.web.gate import Need, refuse_changes
from artifactd.web.request import RegistryRequest

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
