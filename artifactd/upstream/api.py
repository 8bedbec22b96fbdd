"""The requests of the distribution spec to one upstream, with all that stands round them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import TypeVar

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.upstream.budget import RateBudget
from artifactd.upstream.errors import LoginRefused, Missing, Throttled, Unreachable, UpstreamError
from artifactd.upstream.exchange import Exchanges
from artifactd.upstream.http import HttpResponse
from artifactd.upstream.login import Authorization, Login
from artifactd.upstream.refusal import refusal
from artifactd.upstream.retries import Retries
from artifactd.upstream.throttle import Throttle

_T = TypeVar("_T")


class Kind(Enum):
    """What is asked for, as far as upstreams count it apart."""

    MANIFEST = "manifest"  # what Docker Hub's limit of pulls counts
    BLOB = "blob"
    LIST = "list"


@frozen
class ApiRequest:
    """
    :ivar kind: what it asks for.
    :ivar method: ``GET`` or ``HEAD``.
    :ivar url: without anything secret.
    :ivar image: the name that a token is needed for.
    :ivar expected: the statuses that are an answer; any other is an error.
    """

    kind: Kind
    method: str
    url: str
    image: str
    headers: Mapping[str, str] = field(factory=dict)
    expected: frozenset[int] = frozenset({200})


@define(eq=False)
class RegistryApi:
    """
    Asks an upstream: logs in where it wants that, asks again what may be asked again, and does not
    ask while it is down or wants to be left alone.
    """

    exchanges: Exchanges
    login: Login
    retries: Retries
    budget: RateBudget
    clock: IReactorTime
    _throttles: dict[Kind, Throttle] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._throttles = {kind: Throttle(self.clock) for kind in Kind}

    async def ask(self, request: ApiRequest, take: Callable[[HttpResponse], Awaitable[_T]]) -> _T:
        """
        What ``take`` makes of the answer.

        :param take: ends the response; is called again with the next one when it breaks off.
        :raises UpstreamError: if there is no answer of those expected.
        """

        outcome, _ = await self.ask_as(request, take)
        return outcome

    async def ask_as(
        self, request: ApiRequest, take: Callable[[HttpResponse], Awaitable[_T]]
    ) -> tuple[_T, Authorization | None]:
        """As :meth:`ask`, with what was shown for it."""

        async def attempt() -> tuple[_T, Authorization | None]:
            sent, response = await self._answer(request)
            return await take(response), sent

        return await self.retries.run(attempt)

    async def _answer(self, request: ApiRequest) -> tuple[Authorization | None, HttpResponse]:
        throttle = self._throttles[request.kind]
        throttle.check()
        sent, response = await self._logged_in(request)
        if response.status in request.expected:
            return sent, response
        error = await refusal(response, *_secrets(sent))
        if isinstance(error, Throttled):
            throttle.tell(error)
        if response.status in (401, 403):
            if self._is_ours(response):
                raise self._rejected(request, sent, error)
            # Of where it is stored: the upstream itself has said that it is there.
            raise Unreachable(error.reason, error.status)
        raise error

    async def _logged_in(self, request: ApiRequest) -> tuple[Authorization | None, HttpResponse]:
        """What was sent at last, and the answer to that."""
        sent = self.login.known(request.image)
        response = await self._exchange(request, sent)
        # With a token that is not fresh, 403 may mean that it is one of other rights.
        refused = response.status == 401 or (response.status == 403 and sent and sent.token)
        if not refused or not self._is_ours(response):
            return sent, response
        await refusal(response)
        fields = response.headers("WWW-Authenticate")
        sent = await self.login.answer(request.image, fields, sent)
        return sent, await self._exchange(request, sent)

    async def _exchange(
        self, request: ApiRequest, authorization: Authorization | None
    ) -> HttpResponse:
        headers = dict(request.headers)
        if authorization is not None:
            headers["Authorization"] = authorization.value
        response = await self.exchanges.ask(
            request.method, request.url, headers, *_secrets(authorization)
        )
        if request.kind is Kind.MANIFEST:
            self.budget.read(response)
        return response

    def _is_ours(self, response: HttpResponse) -> bool:
        """Whether the upstream itself answers: where a redirect led, nobody was shown anything."""
        return response.host == self.login.disclosure.upstream.authority

    def _rejected(
        self, request: ApiRequest, sent: Authorization | None, error: UpstreamError
    ) -> UpstreamError:
        """401 or 403 in spite of a fresh token, or without that one was asked for."""
        if sent is None:
            return Missing(
                f"{error.reason} (anonymously: it is not there, or not for us)", error.status
            )
        withheld = self.login.withheld(request.image)
        self.login.reject(request.image, sent)
        if sent.token is None and error.status == 401:
            return LoginRefused(f"{error.reason} (login refused {sent.who})", error.status)
        why = f"{sent.who}: it is not there, or not for us"
        why = f"{why}; {withheld}" if withheld else why
        return Missing(f"{error.reason} ({why})", error.status)


def _secrets(authorization: Authorization | None) -> tuple[str, ...]:
    return authorization.secrets if authorization else ()
