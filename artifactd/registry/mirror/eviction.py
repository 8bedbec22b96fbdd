"""Eviction: keeping a remote repository within its size and age limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.remote import Held, RemoteCatalog
from artifactd.oci.names import Digest, ImageName, matches
from artifactd.registry.metrics import RepositoryCounters
from artifactd.settings.remote import RemoteSettings
from artifactd.store.blobs import BlobStore
from artifactd.store.fills import FillStore

_log = Logger()

_PAGE = 100
# Seconds after a pull for which nothing is evicted: access times are written only once a minute.
_GRACE = 180.0
# What has come of blobs in part, and is left, may take what the rest leaves of ``size_cap``, and in
# any case that divided by this number.
_SHARE_IN_PART = 4


@define
class Eviction:
    """
    Evicts the least recently pulled blobs and manifests of one remote repository, and the pages of
    its lists.

    Bytes that another image needs stay: only this repository's rows go.  What has come of blobs in
    part has no rows, and takes what is left of ``size_cap``, or a share of it besides.

    :param settings: ``size_cap``, ``max_age`` and ``pinned``.
    :param now: seconds since the epoch.
    """

    repository: str
    settings: RemoteSettings
    catalog: Catalog
    remote: RemoteCatalog
    blobs: BlobStore
    fills: FillStore
    counters: RepositoryCounters
    now: Callable[[], float] = time.time
    _freed: int = field(default=0, init=False)
    _count: int = field(default=0, init=False)
    _pinned: int = field(default=0, init=False)  # that :meth:`_evict` has passed over

    async def run(self) -> int:
        """Evict everything beyond the limits.  Returns how many went."""
        self._freed = self._count = 0
        settings, now = self.settings, self.now()
        if settings.max_age:
            self._pinned = 0
            while await self._evict(now - max(settings.max_age, _GRACE), None):
                pass
        if settings.size_cap:
            self._pinned = 0
            # Bytes that several images hold count once and are freed with the last of them: only
            # the catalog knows how much a round has freed.
            held = self.remote.held_bytes
            while (excess := await held(self.repository) - settings.size_cap) > 0:
                if not await self._evict(now - _GRACE, excess):
                    break
            most = max(-excess, settings.size_cap // _SHARE_IN_PART)
            await self._trim(most, now - _GRACE)
        if self._count:
            self.counters.evicted.inc(self._count)
            _log.info(
                "evicted {count} blobs, manifests and lists of {repository}, {freed} bytes",
                count=self._count,
                repository=self.repository,
                freed=self._freed,
            )
        return self._count

    async def _evict(self, before: float, excess: int | None) -> int:
        """
        Evict a page of what was last used before ``before``, the longest unused first.

        Returns how many were evicted; 0: none is left that may go.

        :param excess: bytes to free at least; ``None``: the whole page goes.
        """
        while page := await self.remote.least_used(self.repository, before, self._pinned, _PAGE):
            going: list[Held] = []
            freed: set[Hashable] = set()
            for held in page:
                if excess is not None and excess <= 0:
                    break
                if matches(held.image.image, self.settings.pinned):
                    self._pinned += 1
                    continue
                going.append(held)
                item = held.digest or (held.image, held.page)
                if excess is not None and item not in freed:
                    excess -= held.size
                    freed.add(item)
            if going:
                await self._drop(going)
                return len(going)
        return 0

    async def _trim(self, most: int, before: float) -> None:
        """Leave ``most`` bytes of blobs that have come in part and were left before ``before``."""
        try:
            in_part = await self.fills.trim(most, before)
        except OSError as error:
            told = "what has come of blobs of {repository} in part stays until it is swept: {error}"
            _log.error(told, repository=self.repository, error=error)
            return
        self._freed += sum(in_part)
        self._count += len(in_part)

    async def _drop(self, going: Sequence[Held]) -> None:
        for held in going:
            _log.debug("evicted {image}@{item}", image=held.image, item=held.digest or held.page)
        gone = await self.remote.drop(going)
        await forget(gone, self.catalog, self.blobs)
        sizes = {held.digest: held.size for held in going}
        self._freed += sum(sizes[digest] for digest in gone)
        self._freed += sum(held.size for held in going if held.digest is None)
        self._count += len(going)


async def forget(digests: Sequence[Digest], catalog: Catalog, blobs: BlobStore) -> None:
    """Remove the bytes of ``digests``, whose rows are gone and committed, unless they are back."""

    async def each(digest: Digest) -> None:
        try:
            await catalog.forget_blob(digest, partial(blobs.remove, digest))
        except OSError as error:
            _log.error(
                "{digest} stays in the store until it is swept: {error}", digest=digest, error=error
            )

    # At once, so that they share a transaction.
    await gatherResults([Deferred.fromCoroutine(each(digest)) for digest in digests])


_Key = tuple[ImageName, Digest | str]


@define(eq=False)
class LastUsed:
    """
    Collects when blobs and manifests were last pulled and pages of lists (by their keys) were last
    used; :meth:`write` puts them into the catalog, many in one transaction.

    :param now: seconds since the epoch.
    """

    catalog: RemoteCatalog
    now: Callable[[], float] = time.time
    _used: dict[_Key, float] = field(factory=dict, init=False)
    _reading: dict[_Key, int] = field(factory=dict, init=False)

    def touch(self, image: ImageName, item: Digest | str) -> None:
        """Note that a blob or manifest is pulled now, or a page used."""
        self._used[image, item] = self.now()

    def begin(self, image: ImageName, digest: Digest) -> Callable[[], None]:
        """Note the begin of a read; it counts as pulled until the returned function is called."""
        key = image, digest
        self._reading[key] = self._reading.get(key, 0) + 1

        def end() -> None:
            self._reading[key] -= 1
            if not self._reading[key]:
                del self._reading[key]
            self.touch(image, digest)

        return end

    async def write(self) -> None:
        """Write the pulls since the last call to the catalog."""
        now = self.now()
        used, self._used = self._used, {}
        used |= dict.fromkeys(self._reading, now)
        if not used:
            return
        try:
            await self.catalog.touch(used)
        except BaseException:
            self._used = used | self._used
            raise
