"""Logging in to an upstream: challenges, tokens, and what is sent with a request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from urllib.parse import unquote, urlencode

import msgspec
from attrs import define, field, frozen
from cachetools import LRUCache, TLRUCache
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.kit.deferreds import SingleFlight
from artifactd.oci.foreign import decode_foreign
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import ChallengeRefused, LoginRefused, Missing, Throttled
from artifactd.upstream.http.errors import UpstreamError
from artifactd.upstream.http.response import HttpResponse
from artifactd.upstream.http.url import Origin, Target
from artifactd.upstream.patience import Exchanges, Retries, Throttle, parse_date, refusal
from artifactd.upstream.sources import CredentialSource

# Docker Registry v2 authentication, "Requesting a Token" and, for identity tokens, "using OAuth2".

# Bytes of an answer with a token.
_BODY = 64 << 10
# Seconds: "a token should never be returned with less than 60 seconds to live".
_LEAST = 60.0
_MOST = 86400.0
# A token is not used any more when a tenth of its life, or 30 s if that is less, is left.
_SHARE_LEFT = 0.1
_SECONDS_LEFT = 30.0

_PRINTABLE = re.compile(r"[!-~]+")

_IMAGE_IN_PATH = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/[^/]+\Z")


@frozen
class TokenRequest:
    """
    A request to a token service.

    :ivar realm, service: from the challenge.
    :ivar scope: ``repository:<image>:pull``; ``""``: none.
    """

    realm: Target
    service: str | None
    scope: str

    @property
    def image(self) -> str:
        """The image that the token is for; ``""``: none."""
        _, _, name = self.scope.partition(":")
        return name.rpartition(":")[0]

    @property
    def url(self) -> str:
        """The URL to request."""
        given = {"service": self.service, "scope": self.scope}
        query = urlencode([(name, value) for name, value in given.items() if value])
        return f"{self.realm.url}{'&' if '?' in self.realm.resource else '?'}{query}"

    def form(self, identity_token: str) -> bytes:
        """The body of a POST to the realm that asks for the token with an identity token."""
        given = {
            "grant_type": "refresh_token",
            "service": self.service,
            "client_id": "artifactd",
            "scope": self.scope,
            "refresh_token": identity_token,
        }
        return urlencode([(name, value) for name, value in given.items() if value]).encode()


@frozen
class Token:
    """
    A bearer token.

    :ivar until: the time of the reactor's clock from which the token is not used any more.
    :ivar user: the user that it was given to; ``None``: it was given anonymously.
    """

    text: str = field(repr=False)
    until: float
    user: str | None


class _Answer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None
    issued_at: object = None


_decoder = msgspec.json.Decoder(_Answer, strict=False)


@define(eq=False)
class Tokens:
    """
    An LRU cache of the tokens of one upstream, each until shortly before it expires.

    :param exchanges: the requests to the token services.
    :param limit: the most tokens kept.
    :param whose: whose tokens they are, if not the daemon's: one that has to wait after a 429 holds
        up no other.
    """

    exchanges: Exchanges
    retries: Retries
    clock: IReactorTime
    limit: int = 1024
    whose: str = ""
    _kept: TLRUCache[TokenRequest, Token] = field(init=False)
    _fetches: SingleFlight[tuple[TokenRequest, Credentials | None], Token] = field(init=False)
    _throttle: Throttle = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._kept = TLRUCache(
            self.limit, ttu=lambda wanted, token, now: token.until, timer=self.clock.seconds
        )
        self._fetches = SingleFlight(cancel_unwanted=True)
        self._throttle = self.exchanges.throttle(self.whose)

    def kept(self, wanted: TokenRequest) -> Token | None:
        """Return the cached token, if there is one that can still be used."""
        return self._kept.get(wanted)

    def drop(self, wanted: TokenRequest, refused: Token) -> None:
        """Drop ``refused``, unless another token has taken its place."""
        if self._kept.get(wanted) is refused:
            del self._kept[wanted]

    def fetch(self, wanted: TokenRequest, credentials: Credentials | None) -> Deferred[Token]:
        """
        Fetch a fresh token; all callers at the same time with the same credentials share one
        request (single flight).

        Cancelling disturbs no other caller.

        :raises LoginRefused: if the token service gives none, or refuses the credentials.
        :raises Missing: if the token service gives none to an anonymous request.
        :raises Throttled: if the token service answers 429.
        """
        # What an anonymous request is refused says nothing of one with credentials.
        key = wanted, credentials
        return self._fetches.join(key, partial(self._fetch, wanted, credentials))

    async def _fetch(self, wanted: TokenRequest, credentials: Credentials | None) -> Token:
        secrets = credentials.secrets if credentials else ()
        method, url, headers, form = "GET", wanted.url, {}, None
        if credentials and credentials.identity_token:
            method, url, form = "POST", wanted.realm.url, wanted.form(credentials.password)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif credentials:
            headers["Authorization"] = credentials.basic()

        async def attempt() -> tuple[HttpResponse, bytes]:
            response = await self.exchanges.ask(
                method, url, headers, *secrets, image=wanted.image, body=form
            )
            if response.status != 429:
                self._throttle.answered()
            if response.status != 200:
                raise await refusal(response, *secrets)
            return response, await response.read(_BODY)

        self._throttle.check(wanted.scope)
        try:
            response, body = await self.retries.run(attempt)
        except Throttled as error:
            self._throttle.tell(error, wanted.scope)
            raise
        except UpstreamError as error:
            raise _refused(error, wanted, credentials) from error
        try:
            answer = decode_foreign(_decoder, body)
        except ValueError:
            raise LoginRefused(f"{response.host} answers no JSON with a token in it") from None
        text = answer.token or answer.access_token or ""
        if not _PRINTABLE.fullmatch(text):
            raise LoginRefused(f"{response.host} answers without a token")
        lifetime = min(max(_LEAST, answer.expires_in or 0.0), _MOST)  # in this order NaN is least
        left = lifetime - _age(answer.issued_at, response)
        margin = min(lifetime * _SHARE_LEFT, _SECONDS_LEFT)
        user = credentials.username if credentials else None
        token = self._kept[wanted] = Token(text, self.clock.seconds() + left - margin, user)
        return token


def _refused(
    error: UpstreamError, wanted: TokenRequest, credentials: Credentials | None
) -> LoginRefused | Missing:
    """Explain an error of a token service."""
    is_refused = isinstance(error, Missing) and error.status in (401, 403)
    whose = "" if credentials is None else f"user {credentials.username}"
    if credentials and credentials.identity_token:
        is_refused, whose = is_refused or error.status == 400, "the identity token"  # RFC 6749, 5.2
    if not is_refused:
        return LoginRefused(f"no token for {wanted.scope} can be had: {error.reason}", error.status)
    if credentials is not None:
        return LoginRefused(f"login refused to {whose}: {error.reason}", error.status, credentials)
    # ghcr.io answers so for images that are private or do not exist.
    return Missing(
        f"no token for {wanted.scope} is given anonymously, so it is not there or not for us:"
        f" {error.reason}",
        error.status,
    )


def _age(issued_at: object, response: HttpResponse) -> float:
    """
    Return the seconds since a token was issued; a token service may cache tokens.

    ``issued_at`` is compared with the answer's ``Date``, since the service's clock may be wrong.
    """
    now = parse_date(response.header("Date"))
    if now is None or not isinstance(issued_at, str):
        return 0.0
    try:
        issued = datetime.fromisoformat(issued_at)
        age = now - (issued if issued.tzinfo else issued.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return 0.0
    return max(age.total_seconds(), 0.0)


# Challenges: RFC 9110, 11.6.1.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Characters of a field that are read.
_FIELD = 8192
_SCHEME = re.compile(_TOKEN)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
# By the grammar a value without quotes is a token; some registries leave out a URL's quotes.
_PARAMETER = re.compile(
    rf'({_TOKEN})[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))[ \t]*+(?=,|$)', re.DOTALL
)
_SEPARATORS = re.compile(r"[ \t,]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@frozen
class Challenge:
    """
    One way to log in that a 401 offers.

    :ivar scheme: in lower case: ``bearer``, ``basic``.
    :ivar parameters: by their names in lower case; empty if there is a token68 instead.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """
    Parse the ``WWW-Authenticate`` fields ``values``, each of which may hold several challenges.

    The rest of a field after something malformed is ignored.
    """
    return [challenge for value in values for challenge in _parse(value[:_FIELD])]


def _parse(value: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while True:
        if separators := _SEPARATORS.match(value, at):
            at = separators.end()
        if parameter := _PARAMETER.match(value, at):
            at = parameter.end()
            if found:
                name, quoted, plain = parameter.groups()
                text = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
                found[-1][1].setdefault(name.lower(), text)
        elif scheme := _SCHEME.match(value, at):
            found.append((scheme[0].lower(), {}))
            token68 = _TOKEN68.match(value, scheme.end())
            at = token68.end() if token68 else scheme.end()
        else:
            return [Challenge(name, parameters) for name, parameters in found]


@frozen
class Authorization:
    """
    The ``Authorization`` of a request.

    :ivar value: the value of the header field.
    :ivar secrets: the parts of the value that no message may repeat.
    :ivar who: the identity of the request, in words for messages: ``as user alice``,
        ``anonymously``.
    :ivar token: the token in it, or ``None``.
    :ivar user: the user whose credentials were sent, here or for the token; ``None``: anonymous.
    :ivar credentials: the credentials in it, or ``None``.
    """

    value: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    who: str
    token: Token | None = None
    user: str | None = None
    credentials: Credentials | None = None

    @classmethod
    def of_token(cls, token: Token) -> Authorization:
        """Make the header of a bearer token."""  # RFC 6750, 2.1
        who = f"as user {token.user}" if token.user else "anonymously"
        return cls(f"Bearer {token.text}", (token.text,), who, token, token.user)

    @classmethod
    def of_credentials(cls, credentials: Credentials) -> Authorization:
        """Make the header of a user name and a password."""  # RFC 7617
        user = credentials.username
        return cls(
            credentials.basic(),
            credentials.secrets,
            f"as user {user}",
            user=user,
            credentials=credentials,
        )


@define(eq=False)
class Login:
    """
    Decides which credentials are sent to one upstream, and answers its challenges.

    :param credentials: gives the daemon's credentials, or a client's.
    :param others: anonymous tokens for registries that the upstream redirects to; they are never
        mixed up with ``tokens``, which may have been given to the credentials.  ``None``: such a
        registry gets none.
    :param anonymous_too: whether a token service that refuses the credentials is asked without
        them; not where the question is whether they are right.
    :param limit: the size of the LRU caches of token requests, by image.
    """

    disclosure: Disclosure
    credentials: CredentialSource
    tokens: Tokens
    others: Tokens | None = None
    anonymous_too: bool = False
    limit: int = 4096
    _wanted: LRUCache[str, TokenRequest] = field(init=False)
    # What a registry that an image's URL was redirected to wants: one at a time.
    _wanted_there: LRUCache[str, tuple[Origin, TokenRequest]] = field(init=False)
    _basic: bool = field(default=False, init=False)
    # Why the credentials were refused where a token was given without them.
    _refused: LRUCache[TokenRequest, LoginRefused] = field(init=False)
    _told: Credentials | None = field(default=None, init=False)  # of which the log says that

    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._wanted = LRUCache(self.limit)
        self._wanted_there = LRUCache(self.limit)
        self._refused = LRUCache(self.limit)

    async def known(self, image: str) -> Authorization | None:
        """
        Return the header to send before any challenge: a cached token, or the credentials for an
        upstream that has asked for Basic before.

        :raises LoginRefused: if the credentials can't be had.
        """
        if wanted := self._wanted.get(image):
            token = self.tokens.kept(wanted)
            return Authorization.of_token(token) if token else None
        credentials = await self.credentials.get() if self._basic else None
        return Authorization.of_credentials(credentials) if credentials else None

    async def answer(
        self, image: str, fields: Sequence[str], refused: Authorization | None
    ) -> Authorization:
        """
        Answer the challenges of a 401, or the refusal of a token.

        :param fields: its ``WWW-Authenticate`` fields.
        :param refused: the header that was sent with the request.
        :raises ChallengeRefused: if there is nothing to send but ``refused``.
        :raises LoginRefused, Missing, Throttled: as :meth:`Tokens.fetch`.
        """
        challenges = parse_challenges(fields)
        wanted = self._challenged(self._host, image, challenges)
        if wanted is None and (not challenges or (refused is not None and refused.token)):
            # To a token that has expired some registries answer 400, 401 without a challenge, or
            # with another one than they gave before.
            wanted = self._wanted.get(image)
        if wanted is not None:
            if refused and refused.token:
                self.tokens.drop(wanted, refused.token)
            token = self.tokens.kept(wanted) or await self._fetch(wanted)
            self._wanted[image] = wanted
            return Authorization.of_token(token)
        if not any(challenge.scheme == "basic" for challenge in challenges):
            schemes = ", ".join(challenge.scheme for challenge in challenges)[:100]
            raise ChallengeRefused(
                f"{self._host} wants a login by {schemes or 'no scheme that it names'},"
                " of which none is supported",
                401,
            )
        credentials = await self.credentials.get()
        if credentials is None or credentials.identity_token:
            there = "none are set" if credentials is None else "there is an identity token instead"
            raise ChallengeRefused(
                f"{self._host} wants a user name and a password, and {there}", 401
            )
        authorization = Authorization.of_credentials(credentials)
        if refused is not None and refused.value == authorization.value:
            raise ChallengeRefused(
                f"{self._host} refuses the login of user {credentials.username}", 401, credentials
            )
        self._basic = True
        return authorization

    def known_there(self, image: str) -> Mapping[Origin, Token]:
        """Return the cached token for the registry that the image was redirected to, if any."""
        if self.others is None or image not in self._wanted_there:
            return {}
        origin, wanted = self._wanted_there[image]
        token = self.others.kept(wanted)
        return {origin: token} if token else {}

    async def answer_there(
        self, image: str, url: str, fields: Sequence[str], refused: Token | None
    ) -> bool:
        """
        Get an anonymous token for a registry that the upstream has redirected to, and that has
        refused a request.

        :param url: the URL there.
        :param fields: the ``WWW-Authenticate`` fields.
        :param refused: the token that was sent there.
        :returns: whether :meth:`known_there` has another token now; not if the registry asks for
            none, or for one that may not be asked for.
        :raises LoginRefused, Missing, Throttled: as :meth:`Tokens.fetch`.
        """
        target = Target.parse(url)
        if self.others is None or target.origin == self.disclosure.upstream.origin:
            return False
        name = _IMAGE_IN_PATH.search(target.path)
        there = unquote(name[1]) if name else image
        try:
            wanted = self._challenged(target.authority, there, parse_challenges(fields))
        except ChallengeRefused:
            return False
        if wanted is None and refused is not None:
            wanted = self._wanted_there[image][1]
        if wanted is None:
            return False
        if refused is not None:
            self.others.drop(wanted, refused)
        if self.others.kept(wanted) is None:
            await self.others.fetch(wanted, None)
        self._wanted_there[image] = target.origin, wanted
        return True

    async def withheld(self, image: str) -> str:
        """
        Return words that end a sentence, if the daemon's credentials were withheld from the token
        service of ``image``; otherwise an empty text.
        """
        wanted = self._wanted.get(image)
        if wanted is None or self.disclosure.shows(wanted.realm):
            return ""
        try:
            return _withheld_from(wanted.realm) if await self.credentials.get() else ""
        except LoginRefused:
            return ""

    def refused(self, image: str) -> LoginRefused | None:
        """
        Return why the daemon's credentials were refused, if the token for ``image`` was given
        without them for that reason.
        """
        wanted = self._wanted.get(image)
        return None if wanted is None else self._refused.get(wanted)

    def reject(self, image: str, refused: Authorization) -> None:
        """Don't send ``refused`` again: the upstream has refused it although it was fresh."""
        wanted = self._wanted.pop(image, None)
        if wanted and refused.token:
            self.tokens.drop(wanted, refused.token)

    async def renewed(self, refused: Credentials) -> bool:
        """
        Tell the source that ``refused`` were refused.  Returns whether it has others now.

        :raises LoginRefused: if it has none.
        """
        self.credentials.refused(refused)
        return await self.credentials.get() not in (None, refused)

    @property
    def _host(self) -> str:
        return self.disclosure.upstream.authority

    def _challenged(
        self, host: str, image: str, challenges: Sequence[Challenge]
    ) -> TokenRequest | None:
        """
        Return the request that the first bearer challenge of ``host`` asks for.

        :raises ChallengeRefused: if its token service may not be asked.
        """
        for challenge in challenges:
            address = challenge.parameters.get("realm")
            if challenge.scheme != "bearer" or not address:
                continue
            try:
                realm = Target.parse(address)
            except ValueError as error:
                raise ChallengeRefused(
                    f"{host} names a realm that can't be asked: {error}", 401
                ) from None
            if not self.disclosure.asks(realm):
                raise ChallengeRefused(
                    f"{host} wants a token of {realm.authority}, which is not asked without TLS",
                    401,
                )
            # Whatever scope the challenge names: a token for more than this pull is not asked for.
            scope = f"repository:{image}:pull" if image else ""
            return TokenRequest(realm, challenge.parameters.get("service"), scope)
        return None

    async def _fetch(self, wanted: TokenRequest, *, again: bool = True) -> Token:
        """
        Fetch a token with the credentials if the token service may have them.

        :param again: whether other credentials are tried where these are refused.
        """
        credentials = await self.credentials.get()
        if credentials is not None and not self.disclosure.shows(wanted.realm):
            try:
                return await self.tokens.fetch(wanted, None)
            except Missing as error:
                raise LoginRefused(
                    f"{error.reason} ({_withheld_from(wanted.realm)})", error.status
                ) from error
        try:
            token = await self.tokens.fetch(wanted, credentials)
        except LoginRefused as error:
            if error.credentials is None:
                raise
            if again and await self.renewed(error.credentials):
                return await self._fetch(wanted, again=False)
            if not self.anonymous_too:
                raise
            return await self._fetch_anonymously(wanted, credentials, error)
        self._refused.pop(wanted, None)
        return token

    async def _fetch_anonymously(
        self, wanted: TokenRequest, credentials: Credentials | None, refused: LoginRefused
    ) -> Token:
        """
        Fetch a token without the credentials, which were refused: for what everybody may have, some
        services give one to nobody in particular alone.

        :raises LoginRefused: ``refused``, if there is none either.
        """
        try:
            token = await self.tokens.fetch(wanted, None)
        except (LoginRefused, Missing):
            raise refused from None
        self._refused[wanted] = refused
        if self._told != credentials:
            self._told = credentials
            self._log.warn(
                "{host}: {reason}; images are asked for anonymously",
                host=self._host,
                reason=refused.reason,
            )
        return token


def _withheld_from(realm: Target) -> str:
    return (
        f"the credentials are not shown to {realm.authority}:"
        " list it in auth_hosts if it may have them"
    )
