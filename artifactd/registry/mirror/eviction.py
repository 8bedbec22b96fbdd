"""Eviction: a remote repository is kept to its size and its age."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.remote import Held, RemoteCatalog
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName, matches
from artifactd.registry.metrics import RepositoryCounters
from artifactd.store.interfaces import BlobStore

_log = Logger()

_PAGE = 100


@frozen
class EvictionRules:
    """
    :ivar size_cap: bytes of blobs and manifests at most; 0: no limit.
    :ivar max_age: seconds after the last pull; 0: no limit.
    :ivar pinned: patterns of images that stay.
    :ivar grace: seconds after a pull in which nothing goes, since access times are written down
        only so often, and what is read counts as pulled each time.
    """

    size_cap: int = 0
    max_age: float = 0.0
    pinned: tuple[str, ...] = ()
    grace: float = 180.0


@define
class Eviction:
    """
    Takes out of one remote repository what was longest not pulled.

    Bytes that another image needs stay: only this repository's claim on them goes.

    :param now: seconds since the epoch.
    """

    repository: str
    rules: EvictionRules
    catalog: Catalog
    remote: RemoteCatalog
    blobs: BlobStore
    counters: RepositoryCounters
    now: Callable[[], float] = time.time
    _freed: int = field(default=0, init=False)
    _count: int = field(default=0, init=False)
    _stayed: int = field(default=0, init=False)  # of the least used

    async def run(self) -> int:
        """Evict what has to go now; how many blobs and manifests that was."""
        self._freed = self._count = 0
        rules, now = self.rules, self.now()
        if rules.max_age:
            self._stayed = 0
            while await self._evict(now - max(rules.max_age, rules.grace), None):
                pass
        if rules.size_cap:
            self._stayed = 0
            # What several images hold counts once, and is only gone when all of them let it go: how
            # much a round has brought has to be asked.
            while (excess := await self._held() - rules.size_cap) > 0:
                if not await self._evict(now - rules.grace, excess):
                    break
        if self._count:
            self.counters.evicted.inc(self._count)
            _log.info(
                "evicted {count} blobs and manifests of {repository}, {freed} bytes",
                count=self._count,
                repository=self.repository,
                freed=self._freed,
            )
        return self._count

    async def _held(self) -> int:
        return await self.remote.held_bytes(self.repository)

    async def _evict(self, before: float, excess: int | None) -> int:
        """
        Let go of what was longest not used; how many that were, 0 where nothing is left to go.

        :param excess: bytes that are too many; ``None``: all of them.
        """
        while page := await self.remote.least_used(self.repository, before, self._stayed, _PAGE):
            going: list[Held] = []
            freed: set[Digest] = set()
            for held in page:
                if excess is not None and excess <= 0:
                    break
                if matches(held.image.image, self.rules.pinned):
                    self._stayed += 1
                    continue
                going.append(held)
                if excess is not None and held.digest not in freed:
                    excess -= held.size
                    freed.add(held.digest)
            if going:
                await self._drop(going)
                return len(going)
        return 0

    async def _drop(self, going: Sequence[Held]) -> None:
        for held in going:
            _log.debug("evicted {image}@{digest}", image=held.image, digest=held.digest)
        gone = await self.remote.drop(going)
        await forget(gone, self.catalog, self.blobs)
        sizes = {held.digest: held.size for held in going}
        self._freed += sum(sizes[digest] for digest in gone)
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


# When blobs and manifests of remote repositories were last pulled, written down now and then.

_Key = tuple[ImageName, Digest]


@define(eq=False)
class Accesses:
    """
    Gathers what was pulled; :meth:`write` puts it into the catalog, many in one transaction.

    :param now: seconds since the epoch.
    """

    catalog: RemoteCatalog
    now: Callable[[], float] = time.time
    _used: dict[_Key, float] = field(factory=dict, init=False)
    _reading: dict[_Key, int] = field(factory=dict, init=False)

    def touch(self, image: ImageName, digest: Digest) -> None:
        """It was pulled now."""
        self._used[image, digest] = self.now()

    def begin(self, image: ImageName, digest: Digest) -> Callable[[], None]:
        """It is being read until what is returned is called, and counts as pulled all the time."""
        key = image, digest
        self._reading[key] = self._reading.get(key, 0) + 1

        def end() -> None:
            self._reading[key] -= 1
            if not self._reading[key]:
                del self._reading[key]
            self.touch(image, digest)

        return end

    async def write(self) -> None:
        """Write down what was pulled since the last time."""
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
