"""Whether an upstream lets others have an image: asked with their credential, not with ours."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from urllib.parse import quote

import msgspec
from twisted.internet.interfaces import IReactorTime

from artifactd.oci.names import Reference, Tag
from artifactd.upstream.client import ACCEPT, ApiRequest, Kind, RegistryApi
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import Missing
from artifactd.upstream.http.errors import Unreachable
from artifactd.upstream.http.response import Http, HttpResponse
from artifactd.upstream.http.url import Target
from artifactd.upstream.interfaces import UpstreamWatch
from artifactd.upstream.login import Login, Tokens
from artifactd.upstream.patience import (
    BreakerSettings,
    CircuitBreaker,
    Exchanges,
    RateBudget,
    Retries,
)

_PAGE = 8 << 20  # bytes of a list of tags, where one tag is asked for and all may come
_LATEST = Tag("latest")


class _Tags(msgspec.Struct):
    """distribution-spec, "Listing Tags"."""

    name: str
    tags: list[str] | None = None


_decoder = msgspec.json.Decoder(_Tags)


class RegistryAccess:
    """
    An :class:`artifactd.upstream.interfaces.UpstreamAccess`.

    Nothing of an answer is kept: no token that was given for somebody's credential, and not what
    the upstream wants to see.  It has circuit breakers of its own, so that what others make a token
    service answer keeps nobody from being served with ours.

    :param name: of the repository, for logs.
    :param url: of the upstream, as far as ``/v2/``.
    :param auth_hosts: as of :class:`artifactd.upstream.client.RegistryUpstream`; they hold for
        others' credentials as for ours.
    :raises ValueError: if ``url`` is none of http or https.
    """

    def __init__(
        self,
        name: str,
        url: str,
        transport: Http,
        clock: IReactorTime,
        watch: UpstreamWatch,
        *,
        auth_hosts: Iterable[str] = (),
        retries: int = 2,
        random: Random | None = None,
    ) -> None:
        upstream = Target.parse(url)
        self._url = upstream.url.rstrip("/")
        self._clock = clock
        self._disclosure = Disclosure(upstream, frozenset(host.lower() for host in auth_hosts))
        self._retries = Retries(clock, random or Random(), retries)

        def exchanges(subject: str) -> Exchanges:
            broken = CircuitBreaker(name, subject, clock, BreakerSettings())
            return Exchanges(transport, broken, watch)

        asked = f"{upstream.authority}, for others,"
        self._exchanges = exchanges(asked)
        self._token_exchanges = exchanges(f"the token service of {asked}")

    async def may_pull(
        self, image: str, credentials: Credentials | None, known: Reference | None
    ) -> bool:
        """As in :class:`artifactd.upstream.interfaces.UpstreamAccess`."""
        api = self._api(credentials)
        try:
            if known is not None:
                return await self._has_manifest(api, image, known)
            return await self._has_tags(api, image)
        except Missing as error:
            if known is not None and error.status in (404, 410):
                return await self._has_tags(api, image)
            if known is None and credentials is not None and error.status in (401, 403):
                # Some let pull, and not list.
                try:
                    return await self._has_manifest(api, image, _LATEST)
                except Missing:
                    pass
            raise

    async def logs_in(self, credentials: Credentials) -> bool:
        """As in :class:`artifactd.upstream.interfaces.UpstreamAccess`."""
        request = ApiRequest(Kind.LIST, "GET", f"{self._url}/v2/", "")

        async def take(response: HttpResponse) -> None:
            await self._check_host(response)
            await response.read(_PAGE)

        _, sent = await self._api(credentials).ask_as(request, take)
        return sent is not None and sent.user is not None

    def _api(self, credentials: Credentials | None) -> RegistryApi:
        tokens = Tokens(self._token_exchanges, self._retries, self._clock)
        login = Login(self._disclosure, lambda: credentials, tokens)
        return RegistryApi(
            self._exchanges, login, self._retries, RateBudget(self._clock), self._clock
        )

    async def _has_manifest(self, api: RegistryApi, image: str, reference: Reference) -> bool:
        url = f"{self._url}/v2/{quote(image)}/manifests/{quote(str(reference), safe=':')}"
        # Not counted as a manifest: HEAD is no pull, and the budget is not ours.
        request = ApiRequest(Kind.LIST, "HEAD", url, image, {"Accept": ACCEPT})

        async def take(response: HttpResponse) -> None:
            await self._check_host(response)
            await response.read(0)

        _, sent = await api.ask_as(request, take)
        return sent is not None and sent.user is not None

    async def _has_tags(self, api: RegistryApi, image: str) -> bool:
        url = f"{self._url}/v2/{quote(image)}/tags/list?n=1"
        request = ApiRequest(Kind.LIST, "GET", url, image, {"Accept": "application/json"})

        async def take(response: HttpResponse) -> None:
            await self._check_host(response)
            try:
                _decoder.decode(await response.read(_PAGE))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                # Such as a page for people to log in, which anybody gets.
                raise Unreachable(f"{response.host} answers no list of tags") from None

        _, sent = await api.ask_as(request, take)
        return sent is not None and sent.user is not None

    async def _check_host(self, response: HttpResponse) -> None:
        """:raises Missing: if another host answers: what it lets pass says nothing."""
        if response.host != self._disclosure.upstream.authority:
            response.abort()
            raise Missing(
                f"{self._disclosure.upstream.authority} leads to {response.host}, whose word does"
                " not count",
                403,
            )
