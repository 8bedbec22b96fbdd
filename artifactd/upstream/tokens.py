"""Bearer tokens: Docker Registry v2 authentication ("Requesting a Token")."""

from __future__ import annotations

import re
from collections import OrderedDict
from datetime import UTC, datetime
from functools import partial
from urllib.parse import urlencode

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from artifactd.kit.deferreds import Shared
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.dates import parse_date
from artifactd.upstream.errors import LoginRefused, Missing, Throttled, UpstreamError
from artifactd.upstream.exchange import Exchanges
from artifactd.upstream.http import HttpResponse
from artifactd.upstream.refusal import refusal
from artifactd.upstream.retries import Retries
from artifactd.upstream.target import Target
from artifactd.upstream.throttle import Throttle

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
    _fetches: Shared[TokenRequest, Token] = field(factory=Shared, init=False)
    _throttle: Throttle = field(init=False)

    def __attrs_post_init__(self) -> None:
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
        return self._fetches.run(wanted, partial(self._fetch, wanted, credentials))

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
