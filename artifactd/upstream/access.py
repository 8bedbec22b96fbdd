"""Asks an upstream, with a client's own credential, whether the client may have an image."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from secrets import token_hex

import msgspec
from attrs import evolve
from twisted.internet.interfaces import IReactorTime

from artifactd.kit.deferreds import RunInThread, run_here
from artifactd.kit.shared import SharedMemory
from artifactd.oci.errors import DigestInvalid, ManifestInvalid
from artifactd.oci.foreign import decode_foreign
from artifactd.oci.manifest import is_manifest_type, read_manifest
from artifactd.oci.names import Digest, Reference, Tag
from artifactd.settings.remote import RemoteSettings
from artifactd.upstream.client import ACCEPT, ApiRequest, Kind, RegistryApi, Root, named_digest
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import ChallengeRefused, LoginRefused, Missing
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from artifactd.upstream.http.response import Http, HttpResponse, media_type_of
from artifactd.upstream.interfaces import UpstreamWatch
from artifactd.upstream.login import Login, Tokens
from artifactd.upstream.patience import Exchanges, Retries
from artifactd.upstream.sources import GivenCredentials

_PAGE = 8 << 20  # bytes of a list of tags, where one tag is asked for and all may come
_VALUES = 500_000
_LATEST = Tag("latest")


class _Tags(msgspec.Struct):  # distribution-spec, "Listing Tags"
    name: str
    tags: list[str] | None = None


_decoder = msgspec.json.Decoder(_Tags)


class RegistryAccess:
    """
    Asks an upstream what it lets a client have.

    Everything raises as :class:`artifactd.upstream.interfaces.Upstream` does: ``LoginRefused`` with
    the status 401 or 403 where the credentials are wrong, ``Missing`` where they don't suffice.

    It caches nothing: no token that was given for a client's credential, nor the upstream's
    challenges.  It has circuit breakers of its own, so that errors that clients provoke at a token
    service don't stop requests with the daemon's credentials.

    :param name: the repository's name, for logs.
    :param settings: ``auth_hosts`` holds for clients' credentials as well as for the daemon's.
    :param memory: where all processes of the daemon remember what fails.
    :param max_manifest: bytes that a manifest may have.
    :param run: decodes in a thread.
    :raises ValueError: if the URL of the settings is none of http or https.
    """

    def __init__(
        self,
        name: str,
        settings: RemoteSettings,
        http: Http,
        clock: IReactorTime,
        watch: UpstreamWatch,
        memory: SharedMemory,
        *,
        random: Random | None = None,
        run: RunInThread = run_here,
        max_manifest: int = 4 << 20,
    ) -> None:
        self._run = run
        self._max_manifest = max_manifest
        self._disclosure = Disclosure.of(settings)
        self._root = Root.of(settings)
        self._clock = clock
        self._retries = Retries(clock, random or Random(), settings.retries)
        host = f"{self._disclosure.upstream.authority}, for others,"
        service = f"the token service of {host}"
        self._exchanges = Exchanges(http, name, host, clock, watch, memory)
        self._token_exchanges = Exchanges(http, name, service, clock, watch, memory)

    async def may_pull(
        self, image: str, credentials: Credentials | None, known: Reference | None
    ) -> bool:
        """
        Request ``image`` with ``credentials`` (``None``: anonymously).

        Only a manifest of the image, or a list of its tags, says that they may have it: some
        servers answer 200 and a page for people to whatever is asked for.

        :param known: a manifest that the image is known to have, or that the client asks for.
        :returns: whether the credentials were needed; ``False``: everybody may have the image.
        :raises Missing: if the upstream does not let the client have the image.
        :raises Unreachable: if it answers neither, or another manifest than the one asked for.
        """
        api = self._api(credentials)
        try:
            if known is not None:
                return await self._has_manifest(api, image, known)
            return await self._has_tags(api, image)
        except Missing as error:
            if known is not None and error.status in (404, 410):
                return await self._has_tags(api, image)
            if known is None and credentials is not None and error.status in (401, 403):
                # Some registries let a user pull, and not list.
                try:
                    return await self._has_manifest(api, image, _LATEST)
                except Missing:
                    pass
            raise

    async def logs_in(self, credentials: Credentials) -> bool:
        """
        Log in with ``credentials``, without asking for an image.

        :returns: whether the upstream asked for the credentials; ``False``: it has not checked
            them.
        """

        async def take(response: HttpResponse) -> None:
            await response.read(_PAGE)

        request = ApiRequest(Kind.LIST, "GET", f"{self._root.url}/v2/", "")
        return await self._ask(self._api(credentials), request, take)

    def _api(self, credentials: Credentials | None) -> RegistryApi:
        whose = token_hex(8)  # each request is one client's: it alone waits
        tokens = Tokens(self._token_exchanges, self._retries, self._clock, whose=whose)
        given = GivenCredentials(lambda: credentials, self._disclosure.upstream.authority)
        login = Login(self._disclosure, given, tokens)
        return RegistryApi(self._exchanges, login, self._retries, self._clock, whose)

    async def _has_manifest(self, api: RegistryApi, image: str, reference: Reference) -> bool:
        wanted = reference if isinstance(reference, Digest) else None
        sufficed = False

        async def look(response: HttpResponse) -> None:
            nonlocal sufficed
            await response.read(0)
            # A type that is not known is believed to be a manifest's only where the digest says so.
            is_type = is_manifest_type(media_type_of(response), other_types=wanted is not None)
            named = named_digest(response)
            sufficed = is_type and named is not None and wanted in (None, named)

        async def take(response: HttpResponse) -> None:
            content = await response.read(self._max_manifest)
            media_type = response.header("Content-Type")
            try:
                found = await self._run(partial(read_manifest, content, media_type, wanted))
            except (ManifestInvalid, DigestInvalid) as error:
                raise _no_manifest(response, reference, error.message) from None
            if wanted is None and not is_manifest_type(found.media_type, other_types=False):
                raise _no_manifest(response, reference, found.media_type)

        # Not of the kind MANIFEST: HEAD is no pull, and the rate limit is the client's.
        request = self._root.request(
            Kind.LIST, "HEAD", image, "manifests", str(reference), headers={"Accept": ACCEPT}
        )
        needed = await self._ask(api, request, look)
        if sufficed:
            return needed
        # Where HEAD is refused, or names no manifest or another one, the bytes have to tell.
        return await self._ask(api, evolve(request, method="GET"), take)

    async def _has_tags(self, api: RegistryApi, image: str) -> bool:
        async def take(response: HttpResponse) -> None:
            body = await response.read(_PAGE)
            try:
                await self._run(decode_foreign, _decoder, body, values=_VALUES)
            except ValueError:
                # For example a login page for people, which every client gets.
                raise Unreachable(f"{response.host} answers no list of tags") from None

        accept = {"Accept": "application/json"}
        request = self._root.request(
            Kind.LIST, "GET", image, "tags", "list", query={"n": "1"}, headers=accept
        )
        return await self._ask(api, request, take)

    async def _ask(
        self,
        api: RegistryApi,
        request: ApiRequest,
        take: Callable[[HttpResponse], Awaitable[None]],
    ) -> bool:
        """
        Make a request.  Returns whether it was answered with the client's credentials; ``False`` if
        it was a HEAD that the upstream refuses.

        :raises LoginRefused: also of a HEAD, since GET would only present the credentials again.
        :raises Missing: if another host answers: its answer says nothing about access to the
            upstream.
        """

        async def attempt() -> bool:
            ask = api.head if request.method == "HEAD" else api.answer
            answer = await ask(request)
            if isinstance(answer, UpstreamError):
                if isinstance(answer, LoginRefused) and not isinstance(answer, ChallengeRefused):
                    raise answer
                return False
            response, sent = answer
            upstream = self._disclosure.upstream.authority
            if response.host != upstream:
                response.abort()
                raise Missing(
                    f"{upstream} leads to {response.host}, whose word does not count", 403
                )
            await take(response)
            return sent is not None and sent.user is not None

        return await self._retries.run(attempt)


def _no_manifest(response: HttpResponse, reference: Reference, instead: str) -> Unreachable:
    # With the status: what the server answered once, it answers again.
    return Unreachable(
        f"{response.host} answers something else than the manifest {reference}: {instead[:200]}",
        response.status,
    )
