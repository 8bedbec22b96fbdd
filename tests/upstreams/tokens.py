"""The token server of a registry: registry-auth-token.md, "Requesting a Token"."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

from attrs import frozen
from twisted.internet.interfaces import IReactorTime


@frozen
class Token:
    """
    A token as it was given out.

    :ivar scopes: what was asked for, e.g. ``repository:library/alpine:pull``.
    :ivar user: whose it is; ``None``: anybody's.
    :ivar expires_at: by the clock of the hub.
    """

    text: str
    scopes: frozenset[str]
    user: str | None
    expires_at: float


class Tokens:
    """
    The tokens that a hub has given out.

    :ivar lifetime: how many seconds one is good for.
    :ivar given: all there ever were, in order.
    :ivar users: who may log in, with which password.
    """

    def __init__(self, clock: IReactorTime, lifetime: float = 300) -> None:
        self.lifetime = lifetime
        self.given: list[Token] = []
        self.users: dict[str, str] = {}
        self._clock = clock
        self._good: dict[str, Token] = {}

    def forget(self) -> None:
        """Let none that was given out be good any more."""
        self._good.clear()

    def user(self, authorization: str | None) -> str | None:
        """
        Who sends this ``Authorization``; ``None`` if nobody says so.

        :raises PermissionError: if it is not a user with his password.
        """
        if authorization is None:
            return None
        scheme, _, encoded = authorization.partition(" ")
        try:
            name, _, password = base64.b64decode(encoded).decode().partition(":")
        except ValueError:
            raise PermissionError(authorization) from None
        if scheme.lower() != "basic" or self.users.get(name) != password:
            raise PermissionError(name)
        return name

    def give(self, scopes: Iterable[str], user: str | None) -> Mapping[str, object]:
        """The answer to a request for a new token."""
        now = self._clock.seconds()
        token = Token(secrets.token_urlsafe(48), frozenset(scopes), user, now + self.lifetime)
        self.given.append(token)
        self._good[token.text] = token
        return {
            "token": token.text,
            "access_token": token.text,
            "expires_in": int(self.lifetime),
            "issued_at": datetime.fromtimestamp(now, UTC).isoformat().replace("+00:00", "Z"),
        }

    def good(self, authorization: str | None) -> Token | None:
        """The token that a request bears, if it is one of ours and has not expired."""
        scheme, _, text = (authorization or "").partition(" ")
        token = self._good.get(text)
        if scheme.lower() != "bearer" or token is None:
            return None
        return token if self._clock.seconds() < token.expires_at else None


def challenge(realm: str, service: str, scope: str | None, error: str | None) -> str:
    """A ``WWW-Authenticate`` for Bearer tokens: RFC 6750, 3; registry-auth-token.md."""
    fields = {"realm": realm, "service": service, "scope": scope, "error": error}
    return "Bearer " + ",".join(f'{key}="{value}"' for key, value in fields.items() if value)


def pull_scope(name: str) -> str:
    """registry-auth-scope.md: what a pull of the image ``name`` needs."""
    return f"repository:{name}:pull"


def error_body(code: str, message: str, detail: object = None) -> bytes:
    """distribution-spec, "Error Codes": the JSON document of an error."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": detail}]}).encode()


def granted(token: Token, name: str, private: Collection[str]) -> bool:
    """Whether ``token`` is good for pulling ``name``."""
    if name in private and token.user is None:
        return False
    return any(_allows(scope, name) for scope in token.scopes)


def _allows(scope: str, name: str) -> bool:
    kind, _, rest = scope.partition(":")
    resource, _, actions = rest.rpartition(":")
    return kind == "repository" and resource == name and "pull" in actions.split(",")
