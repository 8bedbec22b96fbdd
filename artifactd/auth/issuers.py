"""Tokens of other issuers, such as GitHub Actions and GitLab CI (OpenID Connect Core 1.0, 2)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from attrs import define, field
from twisted.internet.defer import Deferred, DeferredLock, TimeoutError
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
from artifactd.kit.trusted import read_trusted
from artifactd.oci.errors import Unauthorized, Unavailable
from artifactd.oci.foreign import decode_foreign
from artifactd.oci.names import Patterns
from artifactd.settings.accounts import IssuerSettings
from artifactd.settings.values import is_trustworthy
from artifactd.upstream.http.errors import UpstreamError
from artifactd.upstream.http.transport import Transport

Fetch = Callable[[str], Awaitable[bytes]]
"""Returns the content at a URL.  :raises KeysUnavailable: if it can't be had."""

# Seconds between two fetches because of tokens with unknown keys: with keys at hand, without any.
_PATIENCE = 60.0
_IMPATIENCE = 5.0
# Seconds between two looks at a file.
_LOOK_EVERY = 1.0
# Fetching keys may take this many times the timeout of one step, in all.
_STEPS = 3
# Keys that are tried if a token doesn't tell its key.
_TRIED = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class KeysUnavailable(Exception):
    """The keys of an issuer can't be fetched; the message says why."""


class KeySource(Protocol):
    """The keys of an issuer: :class:`FetchedKeys`, or :class:`KeysInFile`."""

    async def keys(self, wanted: Callable[[VerificationKey], bool]) -> Sequence[VerificationKey]:
        """
        Return the keys for which ``wanted`` is true; may look for new keys first.

        :raises Unavailable: if there are no keys at all yet, and none can be fetched.
        """

    def holds(self, mark: str) -> bool:
        """Whether the keys at hand include the one of that mark.  Takes microseconds."""


class _Discovery(msgspec.Struct, frozen=True):
    """The fields of a discovery document that are read here."""  # OpenID Connect Discovery 1.0, 3

    issuer: str
    jwks_uri: str


_discovery = msgspec.json.Decoder(_Discovery)


async def discover(issuer: str, fetch: Fetch) -> str:
    """
    Fetch the discovery document of an issuer, and return the URL of the issuer's key set.

    :raises KeysUnavailable: if the document can't be fetched, or can't be trusted.
    """  # OpenID Connect Discovery 1.0, 4
    content = await fetch(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    try:
        found = decode_foreign(_discovery, content)
    except ValueError as error:
        raise KeysUnavailable(f"no discovery document of OpenID Connect: {error}") from None
    if found.issuer != issuer:
        raise KeysUnavailable(f"the discovery document is of another issuer: {found.issuer[:200]}")
    if not is_trustworthy(found.jwks_uri):
        raise KeysUnavailable(f"the keys are not at an https URL: {found.jwks_uri[:200]}")
    return found.jwks_uri


def key_set_of(
    settings: IssuerSettings, transport: Transport, reactor: Any
) -> Callable[[], Awaitable[bytes]]:
    """
    Returns a function that fetches the key set of an issuer, as :class:`FetchedKeys` takes it: from
    ``jwks_url``, or else from the URL in its discovery document.
    """
    seconds = settings.timeout * _STEPS

    async def ask(url: str) -> bytes:
        response = await transport.request("GET", url, {"Accept": "application/json"})
        if response.status != 200:
            response.drop()
            raise KeysUnavailable(f"{url} answers {response.status}")
        return await response.read(KEY_SET_LIMIT)

    async def fetch(url: str) -> bytes:
        try:
            return await Deferred.fromCoroutine(ask(url)).addTimeout(seconds, reactor)
        except TimeoutError:
            raise KeysUnavailable(f"{url} takes longer than {seconds:g} s") from None
        except UpstreamError as error:
            raise KeysUnavailable(f"{url}: {error.reason}") from None

    async def key_set() -> bytes:
        return await fetch(settings.jwks_url or await discover(settings.issuer, fetch))

    return key_set


@define(eq=False)
class FetchedKeys:
    """
    Fetches an issuer's keys when they are first needed, and again when they get old or a token has
    an unknown key.

    If a fetch fails, the keys at hand stay.

    :param name: the name of the issuer in the settings.
    :param fetch: returns the key set.  :raises KeysUnavailable: if it can't be had.
    :param now: seconds since 1970.
    :param refresh: seconds after which the keys are fetched again.
    """

    name: str
    fetch: Callable[[], Awaitable[bytes]]
    now: Callable[[], float]
    refresh: float
    _keys: Sequence[VerificationKey] = field(default=(), init=False)
    _tried: float = field(default=float("-inf"), init=False)
    _fetched: float = field(default=float("-inf"), init=False)
    _lock: DeferredLock = field(factory=DeferredLock, init=False)
    _log = Logger()

    async def keys(self, wanted: Callable[[VerificationKey], bool]) -> Sequence[VerificationKey]:
        found = list(filter(wanted, self._keys))
        if not found:
            await self._fetch(self.now() - (_PATIENCE if self._keys else _IMPATIENCE))
            found = list(filter(wanted, self._keys))
        else:
            self._refresh()
        if not self._keys:
            raise Unavailable(
                f"the keys of the issuer {self.name} can't be had now, and the registry's log"
                " says why: try again later"
            )
        return found

    def holds(self, mark: str) -> bool:
        self._refresh()
        return any(key.mark == mark for key in self._keys)

    def _refresh(self) -> None:
        """Begin to fetch the keys in the background if they are old."""
        now = self.now()
        # A clock that was set back must not keep them from being fetched.
        is_fresh = 0 <= now - self._fetched < self.refresh
        if not (is_fresh or 0 <= now - self._tried < _PATIENCE):
            Deferred.fromCoroutine(self._fetch(now - _PATIENCE))

    async def _fetch(self, unless_since: float) -> None:
        """Fetch the keys, unless that was tried after ``unless_since``; never fails."""
        await self._lock.acquire()
        try:
            if unless_since < self._tried <= self.now():
                return
            self._tried = self.now()
            self._keys = parse_key_set(await self.fetch())
            self._fetched = self._tried
            self._log.info(
                "{count} keys of the issuer {name}", count=len(self._keys), name=self.name
            )
        except (KeysUnavailable, ValueError) as error:
            self._log.error(
                "the old keys of the issuer {name} stay in use: {error}",
                name=self.name,
                error=error,
            )
        finally:
            self._lock.release()


class KeysInFile:
    """
    Reads keys from a file, and again when it has changed.

    :param run: runs in a thread.
    :param now: seconds since 1970.
    """

    _log = Logger()

    def __init__(self, path: Path, run: RunInThread, now: Callable[[], float]) -> None:
        """
        Read the file.  Blocks.  :raises OSError, ValueError: if it can't be read, or has no keys.
        """
        self._path = path
        self._followed = Followed(
            partial(stamp_of, path), self._read, run, now, _LOOK_EVERY, refused=self._refused
        )
        self._followed.load()

    async def keys(self, wanted: Callable[[VerificationKey], bool]) -> Sequence[VerificationKey]:
        await self._followed.look()
        return list(filter(wanted, self._followed.content))

    def holds(self, mark: str) -> bool:
        if self._followed.is_due():
            Deferred.fromCoroutine(self._followed.look())  # in the background
        return any(key.mark == mark for key in self._followed.content)

    def _read(self) -> Sequence[VerificationKey]:
        return parse_key_set(read_trusted(self._path, KEY_SET_LIMIT))

    def _refused(self, problem: str) -> None:
        self._log.error(
            "the keys read before from {path} stay in use: {error}", path=self._path, error=problem
        )


class _Registered(msgspec.Struct, frozen=True):
    """The registered claims that are checked here."""  # RFC 7519, 4.1

    iss: str
    sub: str
    aud: str | list[str]
    exp: float
    nbf: float = 0.0
    iat: float = 0.0


@define(eq=False)
class Issuer:
    """
    Verifies the tokens of another issuer.

    :param name: the name of the issuer in the settings.
    :param now: seconds since 1970.
    """

    name: str
    settings: IssuerSettings
    source: KeySource
    now: Callable[[], float]
    _required: Sequence[tuple[str, Patterns]] = field(init=False)

    @_required.default
    def _compile(self) -> Sequence[tuple[str, Patterns]]:
        claims = [claim.partition("=") for claim in self.settings.claims]
        return [(name, Patterns((pattern,))) for name, _, pattern in claims]

    async def open(self, token: str) -> Opened:
        """Verify a token; see :class:`artifactd.auth.bearer.TokenSource`."""
        header = read_header(token)
        if header.alg not in self.settings.algorithms:
            raise invalid(f"signatures by {header.alg[:16]!r} are not accepted from its issuer")
        claims, mark = await self._verified(token, header)
        try:
            registered = msgspec.convert(claims, _Registered)
        except msgspec.ValidationError as error:
            raise invalid(f"its claims are not those of a token ({error})") from None
        if registered.iss != self.settings.issuer:
            raise invalid("its issuer is none that this registry trusts")
        audience = registered.aud if isinstance(registered.aud, list) else [registered.aud]
        if not any(each in self.settings.audience for each in audience):
            raise invalid(
                f"it is for another audience than {', '.join(self.settings.audience)}: ask"
                f" {self.name} for one that is for this"
            )
        leeway = self.settings.leeway
        check_times(self.now(), leeway, registered.exp, registered.nbf, registered.iat)
        if not registered.sub or _CONTROL.search(registered.sub):
            raise invalid("its subject is empty, or has control characters")
        texts = as_text(claims)
        if not self.accepts(texts):
            raise invalid(
                "its claims are not accepted: the settings of this registry limit"
                f" {', '.join(name for name, _ in self._required)}"
            )
        identity = Identity(Kind.ISSUER, f"{self.name}/{registered.sub}", claims=texts)
        return Opened(identity, None, "", registered.exp + leeway, mark)

    async def stands(self, opened: Opened) -> bool:
        """Whether the key of a token is still one of the issuer's."""
        return self.recalls(opened)

    def recalls(self, opened: Opened) -> bool:
        """The same, at once."""
        return self.source.holds(opened.kid)

    def accepts(self, claims: Mapping[str, str]) -> bool:
        """Whether ``claims`` match all those that the settings require."""
        return all(
            name in claims and patterns.match(claims[name]) for name, patterns in self._required
        )

    async def _verified(self, token: str, header: Header) -> tuple[Mapping[str, Any], str]:
        """The claims of ``token``, and the mark of the key that it is signed with."""

        def fits(key: VerificationKey) -> bool:
            return header.alg in key.algorithms and header.kid in ("", key.kid)

        keys = await self.source.keys(fits)
        for key in keys[:_TRIED]:
            try:
                return verify(token, key.public, header.alg, dict[str, Any]), key.mark
            except Unauthorized:
                continue
        raise invalid(
            "its signature is wrong"
            if keys
            else f"it is signed with a key that is not one of {self.name}'s"
        )


def as_text(claims: Mapping[str, Any]) -> Mapping[str, str]:
    """
    Claims as text, to compare them with rules: strings as they are, all else as JSON without
    spaces (``true``, ``42``, ``["a","b"]``).  ``null`` is left out.
    """
    return {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in claims.items()
        if value is not None
    }
