"""Logging in to an upstream as its challenges ask for."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from urllib.parse import urlencode

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.kit.deferreds import SingleFlight
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import LoginRefused, Missing, Throttled
from artifactd.upstream.http.errors import UpstreamError
from artifactd.upstream.http.response import HttpResponse
from artifactd.upstream.http.url import Target
from artifactd.upstream.patience import Exchanges, Retries, Throttle, parse_date, refusal

# Bearer tokens: Docker Registry v2 authentication ("Requesting a Token").

# Bytes of an answer with a token.
_BODY = 64 << 10
# Seconds: "a token should never be returned with less than 60 seconds to live".
_LEAST = 60.0
_MOST = 86400.0
# A token is not used any more when a tenth of its life, or 30 s if that is less, is left.
_SHARE_LEFT = 0.1
_SECONDS_LEFT = 30.0

_PRINTABLE = re.compile(r"[!-~]+")


@frozen
class TokenRequest:
    """What a token is asked for, and where: the parameters of a challenge."""

    realm: Target
    service: str | None
    scope: str

    @property
    def url(self) -> str:
        """The scopes are divided by spaces, and go one by one."""
        service = [] if self.service is None else [("service", self.service)]
        query = urlencode([*service, *(("scope", scope) for scope in self.scope.split())])
        return f"{self.realm.url}{'&' if '?' in self.realm.resource else '?'}{query}"


@frozen
class Token:
    """
    :ivar until: when it is to be used no longer, by the reactor's clock.
    :ivar user: who it was given to; ``None``: to anybody.
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
    The tokens of one upstream, until shortly before they expire.

    :param exchanges: with those who give tokens.
    :param limit: how many are kept; the longest unused goes first.
    """

    exchanges: Exchanges
    retries: Retries
    clock: IReactorTime
    limit: int = 1024
    _kept: OrderedDict[TokenRequest, Token] = field(factory=OrderedDict, init=False)
    _fetches: SingleFlight[TokenRequest, Token] = field(init=False)
    _throttle: Throttle = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._fetches = SingleFlight(cancel_unwanted=True)
        self._throttle = Throttle(self.clock)

    def kept(self, wanted: TokenRequest) -> Token | None:
        """The one that is here, if it is good for a while yet."""
        token = self._kept.get(wanted)
        if token is None:
            return None
        if self.clock.seconds() >= token.until:
            del self._kept[wanted]
            return None
        self._kept.move_to_end(wanted)
        return token

    def drop(self, wanted: TokenRequest, refused: Token) -> None:
        """``refused`` is not accepted; another one that may have taken its place stays."""
        if self._kept.get(wanted) is refused:
            del self._kept[wanted]

    def fetch(self, wanted: TokenRequest, credentials: Credentials | None) -> Deferred[Token]:
        """
        A fresh one.  Asked for once, however many want it; cancelling disturbs no other.

        :raises LoginRefused: if none can be had, or the credentials are refused.
        :raises Missing: if none is given to anybody.
        :raises Throttled: if they who give them want fewer requests.
        """
        return self._fetches.join(wanted, partial(self._fetch, wanted, credentials))

    async def _fetch(self, wanted: TokenRequest, credentials: Credentials | None) -> Token:
        headers = {"Authorization": credentials.basic()} if credentials else {}
        secrets = credentials.secrets if credentials else ()

        async def attempt() -> tuple[HttpResponse, bytes]:
            response = await self.exchanges.ask("GET", wanted.url, headers, *secrets)
            if response.status != 200:
                raise await refusal(response, *secrets)
            return response, await response.read(_BODY)

        self._throttle.check()
        try:
            response, body = await self.retries.run(attempt)
        except Throttled as error:
            self._throttle.tell(error)
            raise
        except UpstreamError as error:
            raise _refused(error, wanted, credentials) from error
        token = self._read(response, body, credentials)
        self._keep(wanted, token)
        return token

    def _read(self, response: HttpResponse, body: bytes, credentials: Credentials | None) -> Token:
        try:
            answer = _decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise LoginRefused(f"{response.host} answers no JSON with a token in it") from None
        text = answer.token or answer.access_token or ""
        if not _PRINTABLE.fullmatch(text):
            raise LoginRefused(f"{response.host} answers without a token")
        lifetime = min(max(_LEAST, answer.expires_in or 0.0), _MOST)  # in this order NaN is least
        left = lifetime - _age(answer.issued_at, response)
        margin = min(lifetime * _SHARE_LEFT, _SECONDS_LEFT)
        user = credentials.username if credentials else None
        return Token(text, self.clock.seconds() + left - margin, user)

    def _keep(self, wanted: TokenRequest, token: Token) -> None:
        self._kept[wanted] = token
        self._kept.move_to_end(wanted)
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)


def _refused(
    error: UpstreamError, wanted: TokenRequest, credentials: Credentials | None
) -> LoginRefused | Missing:
    """What ``error`` of those who give tokens means to who wanted one."""
    if not isinstance(error, Missing) or error.status not in (401, 403):
        return LoginRefused(f"no token for {wanted.scope} can be had: {error.reason}", error.status)
    if credentials is not None:
        return LoginRefused(
            f"login refused to user {credentials.username}: {error.reason}", error.status
        )
    # As ghcr.io answers for what is private or does not exist.
    return Missing(
        f"no token for {wanted.scope} is given anonymously, so it is not there or not for us:"
        f" {error.reason}",
        error.status,
    )


def _age(issued_at: object, response: HttpResponse) -> float:
    """
    The seconds since a token was issued, for the same one may be given to many.

    ``issued_at`` is compared with the answer's ``Date``: their clock is not ours.
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


# Challenges: what a 401 says about how to log in (RFC 9110, 11.6.1).

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Characters of a field that are read.
_FIELD = 8192
_SCHEME = re.compile(_TOKEN)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
# A value without quotes is a token by the grammar; some registries leave a URL's quotes away.
_PARAMETER = re.compile(
    rf'({_TOKEN})[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^\s",]+))[ \t]*+(?=,|$)', re.DOTALL
)
_SEPARATORS = re.compile(r"[ \t,]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@frozen
class Challenge:
    """
    One way to log in.

    :ivar scheme: in lower case: ``bearer``, ``basic``.
    :ivar parameters: by their names in lower case; empty where a token68 stands instead.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """
    The challenges of the ``WWW-Authenticate`` fields ``values``, each of which may hold several.

    What comes after something malformed in a field is left out.
    """
    return [challenge for value in values for challenge in _parse(value[:_FIELD])]


def _parse(value: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while True:
        at = _end(_SEPARATORS, value, at)
        if parameter := _PARAMETER.match(value, at):
            at = parameter.end()
            if found:
                name, quoted, plain = parameter.groups()
                text = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
                found[-1][1].setdefault(name.lower(), text)
        elif scheme := _SCHEME.match(value, at):
            found.append((scheme[0].lower(), {}))
            at = _end(_TOKEN68, value, scheme.end())
        else:
            return [Challenge(name, parameters) for name, parameters in found]


def _end(pattern: re.Pattern[str], value: str, at: int) -> int:
    """Where what ``pattern`` matches at ``at`` ends; ``at`` if it doesn't match."""
    match = pattern.match(value, at)
    return match.end() if match else at


@frozen
class Authorization:
    """
    What is sent with a request.

    :ivar value: of the header field.
    :ivar secrets: the parts of it that nobody else may read.
    :ivar who: as whom that asks, for reasons: ``as user alice``, ``anonymously``.
    :ivar token: the token that it is, if it is one.
    :ivar user: whose credentials it is, or was given for; ``None``: nobody's.
    """

    value: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    who: str
    token: Token | None = None
    user: str | None = None

    @classmethod
    def of_token(cls, token: Token) -> Authorization:
        """RFC 6750, 2.1."""
        who = f"as user {token.user}" if token.user else "anonymously"
        return cls(f"Bearer {token.text}", (token.text,), who, token, token.user)

    @classmethod
    def of_credentials(cls, credentials: Credentials) -> Authorization:
        """RFC 7617."""
        user = credentials.username
        return cls(credentials.basic(), credentials.secrets, f"as user {user}", user=user)


@define(eq=False)
class Login:
    """
    What one upstream wants to see, as far as it has told.

    :param credentials: ours, read anew each time that they are needed; may raise
        OSError and ValueError, whose text must hold nothing of them.
    :param limit: of how many images it is remembered which token they need.
    """

    disclosure: Disclosure
    credentials: Callable[[], Credentials | None]
    tokens: Tokens
    limit: int = 4096
    _wanted: OrderedDict[str, TokenRequest] = field(factory=OrderedDict, init=False)
    _basic: bool = field(default=False, init=False)

    _log = Logger()

    def known(self, image: str) -> Authorization | None:
        """
        What may be sent without having been asked for: a token that is here, or the credentials to
        an upstream that has wanted them before.

        :raises LoginRefused: if the credentials can't be read.
        """
        if wanted := self._wanted.get(image):
            token = self.tokens.kept(wanted)
            return Authorization.of_token(token) if token else None
        credentials = self._credentials() if self._basic else None
        return Authorization.of_credentials(credentials) if credentials else None

    async def answer(
        self, image: str, fields: Sequence[str], refused: Authorization | None
    ) -> Authorization:
        """
        What a 401 is answered with.

        :param fields: the ``WWW-Authenticate`` fields of the 401.
        :param refused: what was sent and did not do.
        :raises LoginRefused: if it is not to be had, or there is no other than ``refused``.
        :raises Missing, Throttled: as :meth:`Tokens.fetch`.
        """
        challenges = parse_challenges(fields)
        if wanted := self._token_request(image, challenges):
            return await self._token(image, wanted, refused)
        if any(challenge.scheme == "basic" for challenge in challenges):
            return self._from_credentials(refused)
        schemes = ", ".join(challenge.scheme for challenge in challenges)[:100]
        raise LoginRefused(
            f"{self._host} wants a login by {schemes or 'no scheme that it names'},"
            " of which none is supported",
            401,
        )

    def withheld(self, image: str) -> str:
        """
        Where the token for ``image`` was asked for without the credentials that there are: a
        sentence's end that says so, else nothing.
        """
        wanted = self._wanted.get(image)
        if wanted is None or self.disclosure.shows(wanted.realm):
            return ""
        try:
            return _withheld_from(wanted.realm) if self._credentials() else ""
        except LoginRefused:
            return ""

    def reject(self, image: str, refused: Authorization) -> None:
        """``refused`` does not do, fresh as it is: don't send it again."""
        wanted = self._wanted.pop(image, None)
        if wanted and refused.token:
            self.tokens.drop(wanted, refused.token)

    @property
    def _host(self) -> str:
        return self.disclosure.upstream.authority

    def _token_request(self, image: str, challenges: Sequence[Challenge]) -> TokenRequest | None:
        for challenge in challenges:
            realm = challenge.parameters.get("realm")
            if challenge.scheme == "bearer" and realm:
                pull = f"repository:{image}:pull" if image else ""
                scope = challenge.parameters.get("scope") or pull
                return TokenRequest(self._realm(realm), challenge.parameters.get("service"), scope)
        # Some say 401 without a challenge when a token has expired.
        return None if challenges else self._wanted.get(image)

    def _realm(self, text: str) -> Target:
        try:
            realm = Target.parse(text)
        except ValueError as error:
            raise LoginRefused(
                f"{self._host} names a realm that can't be asked: {error}", 401
            ) from None
        if not self.disclosure.asks(realm):
            raise LoginRefused(
                f"{self._host} wants a token of {realm.authority}, which is not asked without TLS",
                401,
            )
        return realm

    async def _token(
        self, image: str, wanted: TokenRequest, refused: Authorization | None
    ) -> Authorization:
        if refused and refused.token:
            self.tokens.drop(wanted, refused.token)
        token = self.tokens.kept(wanted) or await self._fetch(wanted)
        self._wanted[image] = wanted
        self._wanted.move_to_end(image)
        while len(self._wanted) > self.limit:
            self._wanted.popitem(last=False)
        return Authorization.of_token(token)

    async def _fetch(self, wanted: TokenRequest) -> Token:
        credentials = self._credentials()
        if credentials is None or self.disclosure.shows(wanted.realm):
            return await self.tokens.fetch(wanted, credentials)
        try:
            return await self.tokens.fetch(wanted, None)
        except Missing as error:
            raise LoginRefused(
                f"{error.reason} ({_withheld_from(wanted.realm)})", error.status
            ) from error

    def _from_credentials(self, refused: Authorization | None) -> Authorization:
        credentials = self._credentials()
        if credentials is None:
            raise LoginRefused(
                f"{self._host} wants a user name and a password, and none are set", 401
            )
        authorization = Authorization.of_credentials(credentials)
        if refused is not None and refused.value == authorization.value:
            raise LoginRefused(
                f"{self._host} refuses the login of user {credentials.username}", 401
            )
        self._basic = True
        return authorization

    def _credentials(self) -> Credentials | None:
        try:
            return self.credentials()
        except (OSError, ValueError) as error:
            # The reason goes to clients, whom our paths do not concern.
            self._log.error(
                "the credentials for {host} can't be read: {error}", host=self._host, error=error
            )
            raise LoginRefused(
                f"the credentials for {self._host} can't be read (the log says why)"
            ) from None


def _withheld_from(realm: Target) -> str:
    return (
        f"the credentials are not shown to {realm.authority}:"
        " list it in auth_hosts if it may have them"
    )
