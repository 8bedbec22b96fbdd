"""Downloads of blobs by URLs that stand in manifests."""

from __future__ import annotations

from attrs import field, frozen
from cachetools import LRUCache
from twisted.internet.interfaces import IReactorTime

from artifactd.kit.shared import Notebook, SharedMemory
from artifactd.upstream.client import ResponseBody, ranged
from artifactd.upstream.http.errors import Unreachable
from artifactd.upstream.http.response import Http
from artifactd.upstream.http.url import Target
from artifactd.upstream.interfaces import BlobBody, UpstreamWatch
from artifactd.upstream.patience import Exchanges, Retries, refusal

# Hosts that are kept ready to be asked again.
_HOSTS = 64


@frozen
class Downloads:
    """
    Downloads blobs from anywhere, without a login.  Each host has circuit breakers of its own.

    :param name: the repository's name, for the log.
    :param http: decides which addresses may be connected to.
    :param memory: where all processes of the daemon remember what fails.
    """

    name: str
    http: Http
    clock: IReactorTime
    watch: UpstreamWatch
    retries: Retries
    memory: SharedMemory
    _hosts: LRUCache[str, Exchanges] = field(factory=lambda: LRUCache(_HOSTS), init=False)

    async def open(
        self,
        url: str,
        image: str,
        first: int = 0,
        last: int | None = None,
        validator: str | None = None,
    ) -> BlobBody:
        """
        Get bytes ``first`` to ``last`` of what is at ``url``, as ``Upstream.open_blob`` does.

        :param image: the image whose manifest names the URL.
        :raises UpstreamError: if they don't come.
        """
        headers, expected = ranged(first, last, validator)
        try:
            host = Target.parse(url).authority
        except ValueError as error:
            raise Unreachable(f"a URL in the manifest can't be asked for: {error}", 200) from None
        exchanges = self._hosts.get(host)
        if exchanges is None:
            # Clients bring up the hosts: they take no room of those that the settings name.
            exchanges = Exchanges(
                self.http, self.name, host, self.clock, self.watch, self.memory, Notebook.URLS
            )
            self._hosts[host] = exchanges

        async def attempt() -> BlobBody:
            response = await exchanges.ask("GET", url, headers, image=image)
            if response.status not in expected:
                raise await refusal(response)
            # Whatever coding it names: some servers label a layer with what it is, and the digest
            # is verified.
            return ResponseBody.of(response, self.watch)

        return await self.retries.run(attempt)
