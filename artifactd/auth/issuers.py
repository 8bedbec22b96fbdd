"""Tokens of other issuers, such as GitHub Actions and GitLab CI: OpenID Connect Core 1.0, 2."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from artifactd.auth.bearer import Opened
from artifactd.auth.identity import Identity, Kind
from artifactd.auth.jwt import (
    KEY_SET_LIMIT,
    Header,
    VerificationKey,
    check_times,
    invalid,
    parse_key_set,
    read_header,
    verify,
)
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.followed import Followed, stamp_of
from artifactd.oci.errors import Unauthorized, Unavailable
from artifactd.oci.names import Patterns
from artifactd.settings.values import is_trustworthy

# The keys of another issuer: in a file, or fetched from where it has them.

Fetch = Callable[[str], Awaitable[bytes]]
"""What is at a URL.  :raises KeysUnavailable: if it can't be had."""

# Seconds between two fetches that tokens with unknown keys ask for; without any keys yet.
_PATIENCE = 60.0
_IMPATIENCE = 5.0
_LOOK_EVERY = 1.0


class KeysUnavailable(Exception):
    """The keys can't be had; the message says why."""


class KeySource(Protocol):
    """Where the keys of an issuer are."""

    async def keys(self, wanted: Callable[[VerificationKey], bool]) -> Sequence[VerificationKey]:
        """
        Those that are ``wanted``, perhaps after a look whether there are new ones.

        :raises Unavailable: if there are none at all yet, and none can be had.
        """

    def holds(self, kid: str) -> bool:
        """Whether there is a key of that id, as far as is known.  Takes microseconds."""


class _Discovery(msgspec.Struct, frozen=True):
    """OpenID Connect Discovery 1.0, 3."""

    issuer: str
    jwks_uri: str


async def discover(issuer: str, fetch: Fetch) -> str:
    """
    The URL of an issuer's keys: OpenID Connect Discovery 1.0, 4.

    :raises KeysUnavailable: if it can't be had, or can't be trusted.
    """
    content = await fetch(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    try:
        found = msgspec.json.decode(content, type=_Discovery)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise KeysUnavailable(f"no discovery document of OpenID Connect: {error}") from None
    if found.issuer != issuer:
        raise KeysUnavailable(f"the discovery document is of another issuer: {found.issuer[:200]}")
    if not is_trustworthy(found.jwks_uri):
        raise KeysUnavailable(f"the keys are not at an https URL: {found.jwks_uri[:200]}")
    return found.jwks_uri


@define(eq=False)
class FetchedKeys:
    """
    Keys that are fetched, and kept for a while; longer when they can't be fetched again.

    :param name: of the issuer in the settings.
    :param fetch: gets the key set.
    :param now: seconds since 1970.
    :param refresh: seconds after which they are fetched again.
    """

    name: str
    fetch: Callable[[], Awaitable[bytes]]
    now: Callable[[], float]
    refresh: float
    _keys: Sequence[VerificationKey] = field(default=(), init=False)
    _tried: float = field(default=float("-inf"), init=False)
    _fetched: float = field(default=float("-inf"), init=False)
    _problem: str = field(default="", init=False)
    _lock: DeferredLock = field(factory=DeferredLock, init=False)
    _log = Logger()

    async def keys(self, wanted: Callable[[VerificationKey], bool]) -> Sequence[VerificationKey]:
        """As in :class:`KeySource`."""
        found = list(filter(wanted, self._keys))
        if not found:
            await self._fetch(self.now() - (_PATIENCE if self._keys else _IMPATIENCE))
            found = list(filter(wanted, self._keys))
        elif self._is_old():
            Deferred.fromCoroutine(self._fetch(self.now() - _PATIENCE))  # nobody waits for that
        if not self._keys:
            raise Unavailable(
                f"the keys of the issuer {self.name} can't be had now: {self._problem};"
                " try again later"
            )
        return found

    def holds(self, kid: str) -> bool:
        """As in :class:`KeySource`."""
        if self._is_old():
            Deferred.fromCoroutine(self._fetch(self.now() - _PATIENCE))
        return any(key.kid == kid for key in self._keys)

    def _is_old(self) -> bool:
        now = self.now()
        return now - self._fetched >= self.refresh and now - self._tried >= _PATIENCE

    async def _fetch(self, unless_since: float) -> None:
        """Fetch them, unless it was tried since then; never fails."""
        await self._lock.acquire()
        try:
            if self._tried > unless_since:
                return
            self._tried = self.now()
            self._keys = parse_key_set(await self.fetch())
            self._fetched = self._tried
            self._log.info(
                "{count} keys of the issuer {name}", count=len(self._keys), name=self.name
            )
        except (KeysUnavailable, ValueError) as error:
            self._problem = str(error)
            self._log.error(
                "the keys of the issuer {name} stay as they were: {error}",
                name=self.name,
                error=error,
            )
        finally:
            self._lock.release()


@define(eq=False)
class KeysInFile:
    """
    Keys in a file, which is read again when it has changed.

    :param run: calls what blocks in a thread.
    :param now: seconds since 1970.
    """

    path: Path
    run: RunInThread
    now: Callable[[], float]
    _followed: Followed[Sequence[VerificationKey]] = field(init=False)
    _log = Logger()

    @_followed.default
    def _follow(self) -> Followed[Sequence[VerificationKey]]:
        return Followed(
            partial(stamp_of, self.path),
            self._read,
            self.run,
            self.now,
            _LOOK_EVERY,
            refused=self._refused,
        )

    def start(self) -> None:
        """Read them.  Blocks.  :raises OSError, ValueError: if that can't be done."""
        self._followed.load()

    async def keys(self, wanted: Callable[[VerificationKey], bool]) -> Sequence[VerificationKey]:
        """As in :class:`KeySource`."""
        await self._followed.look()
        return list(filter(wanted, self._followed.content))

    def holds(self, kid: str) -> bool:
        """As in :class:`KeySource`."""
        if self._followed.is_due():
            Deferred.fromCoroutine(self._followed.look())  # nobody waits for that
        return any(key.kid == kid for key in self._followed.content)

    def _refused(self, problem: str) -> None:
        self._log.error(
            "the keys in {path} stay as they were: {error}", path=self.path, error=problem
        )

    def _read(self) -> Sequence[VerificationKey]:
        with self.path.open("rb") as file:
            return parse_key_set(file.read(KEY_SET_LIMIT))


# Keys that are tried where a token doesn't say which it is signed with.
_TRIED = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Registered(msgspec.Struct, frozen=True):
    """RFC 7519, 4.1: the claims that are checked here."""

    iss: str
    sub: str
    aud: str | list[str]
    exp: float
    nbf: float = 0.0
    iat: float = 0.0


@frozen
class Issuer:
    """
    One of the settings; an :class:`artifactd.auth.bearer.TokenSource`.

    :param name: in the settings.
    :param issuer: the ``iss`` of its tokens.
    :param audience: of which their ``aud`` has to have one.
    :param required: claims without which no token of it is accepted, with what they have to match.
    :param algorithms: of the signatures that are accepted.
    :param leeway: seconds by which its clock may differ.
    :param now: seconds since 1970.
    """

    name: str
    issuer: str
    audience: Collection[str]
    required: Sequence[tuple[str, Patterns]]
    algorithms: Collection[str]
    leeway: float
    keys: KeySource
    now: Callable[[], float]

    async def open(self, token: str) -> Opened:
        """As in :class:`artifactd.auth.bearer.TokenSource`."""
        header = read_header(token)
        if header.alg not in self.algorithms:
            raise invalid(f"signatures by {header.alg[:16]!r} are not accepted from its issuer")
        claims, kid = await self._verified(token, header)
        try:
            registered = msgspec.convert(claims, _Registered)
        except msgspec.ValidationError as error:
            raise invalid(f"its claims are not those of a token ({error})") from None
        if registered.iss != self.issuer:
            raise invalid("its issuer is none that this registry trusts")
        audience = registered.aud if isinstance(registered.aud, list) else [registered.aud]
        if not any(each in self.audience for each in audience):
            raise invalid(
                f"it is for another audience than {', '.join(self.audience)}: ask"
                f" {self.name} for one that is for this"
            )
        check_times(self.now(), self.leeway, registered.exp, registered.nbf, registered.iat)
        if not registered.sub or _CONTROL.search(registered.sub):
            raise invalid("it says of nobody that it is theirs")
        texts = as_text(claims)
        if not self.accepts(texts):
            names = ", ".join(name for name, _ in self.required)
            raise invalid(f"nobody is accepted whose {names} are like that")
        identity = Identity(Kind.ISSUER, f"{self.name}/{registered.sub}", claims=texts)
        return Opened(identity, None, "", registered.exp + self.leeway, kid)

    async def stands(self, opened: Opened) -> bool:
        """As in :class:`artifactd.auth.bearer.TokenSource`."""
        return self.keys.holds(opened.kid)

    def accepts(self, claims: Mapping[str, str]) -> bool:
        """Whether somebody with ``claims`` has those that are required."""
        return all(
            name in claims and patterns.match(claims[name]) for name, patterns in self.required
        )

    async def _verified(self, token: str, header: Header) -> tuple[Mapping[str, Any], str]:
        """The claims of ``token``, and the id of the key that it is signed with."""

        def fits(key: VerificationKey) -> bool:
            return header.alg in key.algorithms and header.kid in ("", key.kid)

        keys = await self.keys.keys(fits)
        for key in keys[:_TRIED]:
            try:
                return verify(token, key.public, header.alg, dict[str, Any]), key.kid
            except Unauthorized:
                continue
        raise invalid(
            "its signature is wrong"
            if keys
            else f"it is signed with a key that is not one of {self.name}'s"
        )


def as_text(claims: Mapping[str, Any]) -> Mapping[str, str]:
    """
    Claims as rules compare them: texts as they are, all else as JSON without spaces: ``true``,
    ``42``, ``["a","b"]``.  What is ``null`` is left out.
    """
    return {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in claims.items()
        if value is not None
    }
