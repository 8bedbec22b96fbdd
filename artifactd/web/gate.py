"""
The gate: decides for every route whether the caller may use it, before anything is looked up.

A decision depends on the caller, on the name as text, and on the settings.  It is the same whether
the image exists or not.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterable
from enum import StrEnum
from typing import ClassVar, NoReturn, Protocol

from attrs import frozen
from twisted.web.server import Request

from artifactd.auth.bearer import BearerTokens
from artifactd.auth.identity import Caller, Kind
from artifactd.auth.logins import Logins
from artifactd.auth.passwords import fits_basic
from artifactd.auth.rules import AccessRules, Allowed
from artifactd.oci.errors import Denied, NameUnknown, RegistryError, Unauthorized, Unsupported
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import NoProof, ProofWanted
from artifactd.registry.model import NOBODY, Asker
from artifactd.registry.registry import Registry, Target
from artifactd.settings.access import Action
from artifactd.web.fields import sent_by_another_page
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.proxies import is_local, names_loopback


class Need(StrEnum):
    """A permission that a route needs which is about no single image."""

    NOTHING = "nothing"  # everybody may use it
    IDENTITY = "login"  # an authenticated caller, where authentication is configured
    CATALOG = "list"  # as IDENTITY; the list shows only images that the caller may pull
    CONTENT = "content"  # as CATALOG; the list also tells what is, or was, in these images
    TOKEN = "token"  # credentials that are right, or none
    METRICS = "metrics"  # a client on this machine, or an administrator of all images
    STATUS = "status"  # as METRICS; a client on this machine also without authentication
    PAGE = "page"  # everybody may use it; what it shows depends on the caller
    SESSION = "session"  # everybody may log in to the page, and out


class Gate(Protocol):
    """
    Decides about each request; the client gets the error that a method raises.

    :ivar read_only: returns whether the read-only mode is on.
    """

    @property
    def read_only(self) -> Callable[[], bool]: ...

    async def identify(
        self,
        request: RegistryRequest,
        needed: Action | Need,
        registry: Registry,
        name: str,
        namespace: str | None,
    ) -> None:
        """
        Authenticate the caller: set ``request.caller`` and ``request.actor``.

        :param needed: the permission that the route needs; a challenge to log in depends on it.
        :raises Unauthorized, TooManyRequests, AmbiguousCredentials: see ``Credentials.caller``.
        """

    def admit(self, request: RegistryRequest, need: Need) -> None:
        """
        Check that the caller has the permission that the route needs.

        :raises Unauthorized, Denied: if not.
        """

    def target(
        self,
        request: RegistryRequest,
        action: Action,
        registry: Registry,
        name: str,
        namespace: str | None,
    ) -> Target:
        """
        Resolve ``name``, limited to the images that the caller may know of.  Nothing is looked up.

        :param namespace: the registry that a mirror's request is meant for.
        :raises Unauthorized, Denied: if the caller may not do ``action``.
        :raises Unsupported: if it changes something and the read-only mode is on.
        :raises NameInvalid, NameUnknown: see ``Registry.target``.
        """

    def may_pull(self, request: RegistryRequest, name: str) -> Callable[[ImageName], bool] | None:
        """
        Return a test for the images that the caller may pull; ``None``: all.

        :param name: the image's name as the client wrote it, which the scopes of a token are
            compared with.
        """

    def may_push(self, request: RegistryRequest, target: Target) -> bool:
        """Whether the caller may push under the name of ``target`` now, at least what is new."""

    def create_only(self, request: RegistryRequest, target: Target) -> str:
        """
        Return what lets the caller push only what is not there, for the message of a refusal; an
        empty text if they may push anything.
        """

    def may(self, request: RegistryRequest, action: Action, image: ImageName) -> bool:
        """Whether the caller may do ``action`` to ``image`` now; a page offers only that."""

    def listed(self, request: RegistryRequest) -> Allowed | None:
        """
        Return a test for the images that a list shows the caller; ``None``: all.

        The scopes of a token don't count: the client has not named the images of a list.
        """

    def sees_all(self, request: RegistryRequest) -> bool:
        """Whether the caller may pull every image there could be."""

    def asker(self, request: RegistryRequest) -> Asker:
        """Return the caller as repositories see it that want a proof of access."""

    def unproved(
        self, request: RegistryRequest, error: NoProof, target: Target, action: Action
    ) -> NoProof:
        """Return ``error`` for a caller without proof of access, with the challenge to log in."""

    def nothing_listed(self, request: RegistryRequest) -> None:
        """
        Decide about a list that would be empty.

        :raises Unauthorized: if the caller is anonymous, and may see more after a login.
        """


def refuse_changes(request: RegistryRequest) -> NoReturn:
    """Refuse a request because of the read-only mode.  :raises Unsupported: always."""
    raise Unsupported(
        "the registry is read-only at present: its operator ends that with"
        " 'artifactd read-only off', or by the setting read_only",
        None,
        {"Allow": "GET, HEAD"},
    )


def refuse_other_pages(request: RegistryRequest) -> None:
    """
    Refuse a change that a browser sends for another page, unless the settings let that page use the
    login that the browser has: it adds passwords and certificates that it knows by itself (CSRF).

    Such a page can only send a POST: a browser asks before any other change (CORS).  It never adds
    a token by itself.

    :raises Denied: if so.
    """
    if request.method != b"POST" or _has_token(request) or not sent_by_another_page(request):
        return
    cors = request.site.cors
    if cors is None or not cors.allows_login(request):
        raise Denied(
            "a browser has sent this for another web page, which cors_origins in the registry's"
            " settings does not name: nothing was changed"
        )


@frozen
class LoopbackGate:
    """
    The gate without authentication: everybody may pull, and clients on this machine may push.

    :ivar is_here: whether a client on this machine asks, and may change something.
    """

    read_only: Callable[[], bool]
    is_here: Callable[[Request], bool] = is_local

    async def identify(
        self,
        request: RegistryRequest,
        needed: Action | Need,
        registry: Registry,
        name: str,
        namespace: str | None,
    ) -> None:
        """Every caller is anonymous."""

    def recall(self, authorization: bytes, address: str) -> Caller:
        """Return the caller of every request: an anonymous one."""
        return Caller()

    def rules_state(self) -> None:
        """Return the same always: its rules don't change."""

    def admit(self, request: RegistryRequest, need: Need) -> None:
        """
        Everybody is admitted, but to the status: it names clients and what they ask for.
        """
        if need is Need.STATUS and not _asks_here(request):
            raise Denied(
                "only clients on the registry's own machine may read this while no authentication"
                " is configured"
            )

    def target(
        self,
        request: RegistryRequest,
        action: Action,
        registry: Registry,
        name: str,
        namespace: str | None,
    ) -> Target:
        if action is not Action.PULL:
            if not self.is_here(request):
                raise Denied(
                    "only clients on the registry's own machine may change anything while no"
                    " authentication is configured: set [auth] and [[access]] in its settings"
                )
            if self.read_only():
                refuse_changes(request)
        return registry.target(name, namespace)

    def may_pull(self, request: RegistryRequest, name: str) -> None:
        """All images."""

    def may_push(self, request: RegistryRequest, target: Target) -> bool:
        return self.is_here(request) and not self.read_only()

    def create_only(self, request: RegistryRequest, target: Target) -> str:
        return ""

    def may(self, request: RegistryRequest, action: Action, image: ImageName) -> bool:
        return action is Action.PULL or (self.is_here(request) and not self.read_only())

    def listed(self, request: RegistryRequest) -> None:
        """All images."""

    def sees_all(self, request: RegistryRequest) -> bool:
        return True

    def asker(self, request: RegistryRequest) -> Asker:
        return NOBODY

    def unproved(
        self, request: RegistryRequest, error: NoProof, target: Target, action: Action
    ) -> NoProof:
        return error  # never called: proofs of access need authentication

    def nothing_listed(self, request: RegistryRequest) -> None:
        """The list is empty for everybody."""


class AmbiguousCredentials(Unsupported):
    """A request has more than one ``Authorization``; the spec has no code for that."""

    status = 400


class Authenticator(Protocol):
    """
    Finds out who asks: :class:`Credentials`, or the cookies of the page at ``/``.

    :ivar vary: the header field that it looks at.
    """

    vary: ClassVar[bytes]

    async def caller(self, request: RegistryRequest) -> Caller:
        """Return the caller; see :meth:`Credentials.caller` for the errors."""


@frozen
class Credentials:
    """
    Authenticates requests.

    :ivar logins: checks names and passwords.
    :ivar tokens: checks Bearer tokens.
    """

    logins: Logins
    tokens: BearerTokens

    vary: ClassVar = b"Authorization"

    async def caller(self, request: RegistryRequest) -> Caller:
        """
        Return the caller that ``Authorization`` names, or else the client's certificate, or else an
        anonymous one.

        :raises AmbiguousCredentials: if there is more than one ``Authorization``.
        :raises Unauthorized: if the credentials are malformed or wrong.
        :raises TooManyRequests: see ``Logins.log_in``.
        :raises BadGateway: see ``Logins.log_in``.
        """
        values = request.requestHeaders.getRawHeaders(b"Authorization")
        if not values:
            return request.channel.certified or Caller()
        if len(values) > 1:
            raise AmbiguousCredentials("more than one Authorization header: send one")
        scheme, _, rest = values[0].strip().partition(b" ")
        given = rest.strip()
        if scheme.lower() == b"basic":
            name, password = _name_and_password(given)
            if not (name or password):
                # podman and skopeo send this when they are asked for Basic and have no login.
                return request.channel.certified or Caller()
            request.claimed = name
            caller = await self.logins.log_in(name, password, request.address)
            request.claimed = ""
            return caller
        if scheme.lower() == b"bearer":
            try:
                token = given.decode("ascii")
            except UnicodeDecodeError:
                raise Unauthorized("malformed Bearer token: expected ASCII") from None
            return await self.tokens.verify(token)
        raise Unauthorized("unknown kind of credentials: see WWW-Authenticate for those that count")

    def recall(self, authorization: bytes, address: str) -> Caller | None:
        """
        Return the caller that a request with that one ``Authorization`` has, in microseconds, with
        all that :meth:`caller` does about one that has logged in before.

        :param authorization: the value of the field.
        :param address: the client's.
        :return: ``None`` if that takes longer, if the login is wrong, and if it is for an upstream.
        """
        scheme, _, rest = authorization.strip().partition(b" ")
        caller = None
        try:
            if scheme.lower() == b"bearer":
                caller = self.tokens.recall(rest.strip().decode("ascii"))
            elif scheme.lower() == b"basic":
                caller = self.logins.recall(*_name_and_password(rest.strip()), address)
        except (Unauthorized, UnicodeDecodeError):
            return None
        return None if caller is None or caller.presented is not None else caller


def _name_and_password(given: bytes) -> tuple[str, str]:
    """
    Return what Basic credentials hold; both may be empty.  :raises Unauthorized: if malformed.
    """
    try:
        text = base64.b64decode(given, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthorized("malformed Basic credentials: expected Base64 of UTF-8") from None
    name, colon, password = text.partition(":")  # RFC 7617, 2
    if not colon or not fits_basic(name, password):
        raise Unauthorized("malformed Basic credentials: expected <user>:<password>")
    return name, password


BASIC = 'Basic realm="artifactd", charset="UTF-8"'


@frozen
class Challenge:
    """
    Makes ``WWW-Authenticate``: RFC 7617 (Basic), or registry-auth-token, "How to authenticate".

    Never both: some clients choose the first scheme that they know, others the last.

    :ivar origin: returns the URL under which the client of a request reaches the daemon.
    :ivar service: the name of the token service; ``""``: there is none, and the scheme is Basic.
    """

    origin: Callable[[Request], str]
    service: str = ""

    def value(self, request: Request, scopes: Iterable[str] = (), error: str = "") -> str:
        """
        Return the value of the header.

        :param scopes: the scopes that a token needs.
        :param error: the code for the token that came: RFC 6750, 3.1.
        """
        if not self.service:
            return BASIC
        parameters = {
            "realm": f"{self.origin(request)}/token",
            "service": self.service,
            "scope": " ".join(scopes),
            "error": error,
        }
        return "Bearer " + ",".join(f'{name}="{v}"' for name, v in parameters.items() if v)


# The list of all images, as registry-auth-scope calls it, and among the scopes of a caller.
_CATALOG_SCOPE, _CATALOG = "registry:catalog:*", "*"

# The actions that a challenge asks for.  A client that pushes also pulls, to see what is there.
_SCOPES = {
    Action.PULL: "pull",
    Action.CREATE: "pull,push",
    Action.PUSH: "pull,push",
    Action.DELETE: "delete",
    Action.ADMINISTER: "administer",
}


@frozen
class AccessGate:
    """The gate with authentication: everything is refused that no access rule grants."""

    credentials: Authenticator
    rules: AccessRules
    challenge: Challenge
    read_only: Callable[[], bool]

    async def identify(
        self,
        request: RegistryRequest,
        needed: Action | Need,
        registry: Registry,
        name: str,
        namespace: str | None,
    ) -> None:
        if request.method in (b"GET", b"HEAD"):
            # What anonymous gets may be cached for all; another login may be answered differently.
            request.responseHeaders.setRawHeaders(b"Vary", [self.credentials.vary])
        request.is_personal = True
        try:
            request.caller = await self.credentials.caller(request)
        except Unauthorized as error:
            problem = "invalid_token" if _has_token(request) else ""
            # Some clients get their next token for the scope of this challenge alone.
            scopes = _needed_scopes(needed, registry, name, namespace)
            error.headers["WWW-Authenticate"] = (
                BASIC if needed is Need.TOKEN else self.challenge.value(request, scopes, problem)
            )
            raise
        caller = request.caller
        anonymous = caller.identity.kind is Kind.ANONYMOUS
        request.is_personal = not anonymous or caller.presented is not None
        request.actor = caller.identity.label

    def admit(self, request: RegistryRequest, need: Need) -> None:
        caller = request.caller
        if need is Need.IDENTITY:
            # Docker chooses its scheme by this answer, even where it may pull without a login.  An
            # anonymous caller may have a token.
            if _nobody(caller) and caller.scopes is None and caller.presented is None:
                self._unauthorized(request)
        elif need is Need.CATALOG:
            if caller.scopes is not None and not caller.scopes.get(_CATALOG):
                self._unauthorized(request, _CATALOG_SCOPE, "insufficient_scope")
        elif need is Need.CONTENT:
            if caller.scopes is not None:
                raise Denied(
                    "this tells of all images, and a token is for those that it names: log in by"
                    " Basic"
                )
        elif need in (Need.METRICS, Need.STATUS) and not _asks_here(request):
            if _nobody(caller):
                self._unauthorized(request)
            # Tokens with scopes are for images only.
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
        try:
            target = registry.target(name, namespace)
        except NameUnknown:
            # There is no such repository: only a rule about every name can grant anything there.
            nowhere = ImageName(namespace or "", name)
            self._permitted(request, action, [nowhere], name, str(nowhere))
            raise
        scope = name if namespace is None else str(target.image)
        candidates = target.readable.candidates(target.image)
        if action is Action.PULL:
            permitted = self._permitted(request, action, candidates, name, scope)
            request.sees_cache = True
            all_of_them = len(permitted) == len(candidates)
            if all_of_them and not target.readable.wants_proof:
                return target
            return target.pulled_by(self.asker(request), None if all_of_them else permitted)
        self._permitted(request, action, [target.image], name, scope)
        refuse_other_pages(request)
        if self.read_only():
            refuse_changes(request)
        pulled = list(filter(self.may_pull(request, scope), candidates))
        request.sees_cache = bool(pulled)
        request.sees_stored = target.image in pulled
        return target.pulled_by(self.asker(request), pulled)

    def may_pull(self, request: RegistryRequest, name: str) -> Callable[[ImageName], bool]:
        return lambda image: self._may(request, Action.PULL, image, name)

    def may_push(self, request: RegistryRequest, target: Target) -> bool:
        return self._may(request, Action.CREATE, target.image, str(target.name))

    def create_only(self, request: RegistryRequest, target: Target) -> str:
        caller, image = request.caller, target.image
        if Action.PUSH in self.rules.granted(caller.identity, image):
            is_wide = _in_scope(caller, Action.PUSH, image, str(target.name))
            return "" if is_wide else "the scope of the token"
        if self.rules.limited(caller.identity, Action.PUSH, image):
            return f"[robot.{caller.identity.name}] of the settings"
        judged = self.rules.judge(caller.identity, Action.CREATE, image)
        rules = ", ".join(f"access[{each.rule}]" for each in judged if each.grants)
        return f"{rules} of the settings"

    def may(self, request: RegistryRequest, action: Action, image: ImageName) -> bool:
        return self._may(request, action, image, str(image))

    def _may(self, request: RegistryRequest, action: Action, image: ImageName, name: str) -> bool:
        """
        Whether the caller may do ``action`` to ``image`` now.

        :param name: the name that the scopes of a token are compared with, as the canonical one is.
        """
        caller = request.caller
        granted = action in self.rules.granted(caller.identity, image)
        return (
            granted
            and (action is Action.PULL or not self.read_only())
            and _in_scope(caller, action, image, name)
        )

    def listed(self, request: RegistryRequest) -> Allowed:
        return self.rules.allowed(request.caller.identity, Action.PULL)

    def sees_all(self, request: RegistryRequest) -> bool:
        # A token with scopes is for the images that these name.
        caller = request.caller
        return caller.scopes is None and (
            Action.PULL in self.rules.granted_everywhere(caller.identity)
        )

    def asker(self, request: RegistryRequest) -> Asker:
        return Asker(not _nobody(request.caller), request.caller.presented)

    def unproved(
        self, request: RegistryRequest, error: NoProof, target: Target, action: Action
    ) -> NoProof:
        request.sees_cache = False
        if isinstance(error, ProofWanted):
            scope = str(target.name) if target.namespace is None else str(target.image)
            error.headers["WWW-Authenticate"] = self.challenge.value(
                request, (f"repository:{scope}:{_SCOPES[action]}",), error.token_error
            )
        return error

    def nothing_listed(self, request: RegistryRequest) -> None:
        if _nobody(request.caller) and request.caller.scopes is None:
            self._unauthorized(request, _CATALOG_SCOPE)

    def _permitted(
        self,
        request: RegistryRequest,
        action: Action,
        images: Collection[ImageName],
        name: str,
        scope: str,
    ) -> list[ImageName]:
        """
        Return those of ``images`` that the caller may do ``action`` to; at least one.

        :param name: the name as the client wrote it.
        :param scope: the name that the scopes of a token are compared with.
        :raises Unauthorized, Denied: if there is none.
        """
        caller = request.caller
        granted = [i for i in images if action in self.rules.granted(caller.identity, i)]
        permitted = granted
        if caller.scopes is not None:
            permitted = [image for image in granted if _in_scope(caller, action, image, scope)]
        if permitted:
            return permitted
        wanted = f"repository:{scope}:{_SCOPES[action]}"
        if granted:
            self._unauthorized(request, wanted, "insufficient_scope")
        if _nobody(caller):
            self._unauthorized(request, wanted)
        told = Action.PUSH if action is Action.CREATE else action
        if any(self.rules.limited(caller.identity, action, image) for image in images):
            table = f"[robot.{caller.identity.name}]"
            why = f"the robot's own limits, may and images in {table}, exclude it"
        else:
            why = "no access rule of the registry grants it"
        raise Denied(
            f"{caller.identity} may not {told} here: {why}",
            {"name": name, "action": str(told)},
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


def _needed_scopes(
    needed: Action | Need, registry: Registry, name: str, namespace: str | None
) -> tuple[str, ...]:
    """The scope that a token for a request needs; none if it is not about images that can be."""
    if needed is Need.CATALOG:
        return (_CATALOG_SCOPE,)
    if not isinstance(needed, Action):
        return ()
    try:
        target = registry.target(name, namespace)
    except RegistryError:
        return ()
    scope = name if namespace is None else str(target.image)
    return (f"repository:{scope}:{_SCOPES[needed]}",)


def _asks_here(request: RegistryRequest) -> bool:
    """Whether a program on this machine reads, and not a page that a browser here shows."""
    return is_local(request) and names_loopback(request)


def _has_token(request: Request) -> bool:
    values = request.requestHeaders.getRawHeaders(b"Authorization", [b""])
    return values[0].strip().lower().startswith(b"bearer")


def _nobody(caller: Caller) -> bool:
    return caller.identity.kind is Kind.ANONYMOUS


def _in_scope(caller: Caller, action: Action, image: ImageName, name: str) -> bool:
    """Whether the caller's token, if it has scopes, is for the image by either of its names."""
    scopes = caller.scopes
    if scopes is None:
        return True
    return action in scopes.get(name, ()) or action in scopes.get(str(image), ())
