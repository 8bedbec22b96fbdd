"""
Names that begin with no repository: pushes go to the local repository, pulls to the first that has
the image.

A registry and a mirror share these names, and the rules here keep them apart: once a manifest has
been pushed under a name, the name is local, and no upstream is asked for it any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from attrs import define, evolve, field, frozen
from cachetools import TTLCache
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import Adoption, ManifestPut
from artifactd.catalog.remote import RemoteCatalog
from artifactd.kit.deferreds import uncancelled
from artifactd.oci.errors import (
    BadGateway,
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    TooManyRequests,
)
from artifactd.oci.manifest import Descriptor, Manifest
from artifactd.oci.names import Digest, ImageName, Reference, RepositoryName
from artifactd.registry.local import LocalRepository, index_of
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.model import (
    Asker,
    BlobFound,
    BlobWanted,
    ListWanted,
    ManifestFound,
    ReferrersFound,
    Repository,
    TagsFound,
)
from artifactd.store.blobs import OpenBlob

# Seconds within which a client pushes the manifests that refer to what it has asked for.
_HOLDS = 3600.0
_REMEMBERED = 8192


@define(eq=False)
class Promises:
    """
    The blobs and manifests that clients have found upstream under a name without a prefix.

    A client that pushes several manifests first asks which of their blobs are here, and does not
    push those.  Its first manifest makes the name local, and the next ones would lack their blobs.

    :param now: seconds since the epoch.
    """

    now: Callable[[], float] = time.time
    _given: TTLCache[tuple[ImageName, Digest], bool] = field(init=False)

    @_given.default
    def _empty(self) -> TTLCache[tuple[ImageName, Digest], bool]:
        return TTLCache(_REMEMBERED, _HOLDS, self._time)

    def _time(self) -> float:
        return self.now()

    def give(self, image: ImageName, digest: Digest) -> None:
        """Remember that a client was told that ``image`` has ``digest``."""
        self._given[image, digest] = True

    def holds(self, image: ImageName, digest: Digest) -> bool:
        """Whether a client was told within the last hour that ``image`` has ``digest``."""
        return (image, digest) in self._given


@define(eq=False)
class Adopting:
    """
    Finds the blobs and manifests that a pushed manifest refers to in the upstream's image of the
    same name, and fetches those into the cache of that image.  The local image is not touched.

    :ivar source: the image of the remote ``repository``.
    :ivar image: the local image of that name.
    """

    source: ImageName
    image: ImageName
    repository: RemoteRepository
    local: LocalRepository
    catalog: Catalog
    promises: Promises
    _manifests: dict[Digest, Manifest] = field(factory=dict, init=False)
    _blobs: dict[Digest, None] = field(factory=dict, init=False)
    _promised: set[Digest] = field(factory=set, init=False)

    async def find(self, put: ManifestPut, *, promised_only: bool) -> Adoption | None:
        """
        Find what ``put`` refers to and the local image lacks, as far as it can be had; ``None`` if
        there is nothing to adopt, or ``put`` is refused anyway since a child can't be had.

        What was promised is named in any case, so that ``put`` is refused where that can't be had.

        :param promised_only: leave out what no client was told is here.
        """
        manifest = put.manifest
        children = _split(manifest.children, self._is_promised)
        held = _split([each for each in manifest.blobs if not each.optional], self._is_promised)
        found: list[list[Manifest]] = []
        # First what was promised, with all that belongs to it.  The rest may belong to it as well.
        for is_promised in (True,) if promised_only else (True, False):
            before = len(self._manifests)
            for child in children[is_promised]:
                if not await self._manifest(child) and put.sparse == "no":
                    return None
            found.append(list(self._manifests.values())[before:])
        promised: set[Digest] = set()
        for is_promised, manifests in zip((True, False), found, strict=False):
            below = (blob for each in manifests for blob in each.blobs if not blob.optional)
            for descriptor in (*below, *held[is_promised]):
                await self._blob(descriptor.digest)
            if is_promised:
                for digest in filter(self._is_promised, manifest.others):
                    await self._blob(digest)
                promised.update((each.digest for each in manifests), self._blobs)
                promised.update(each.digest for each in (*children[True], *held[True]))
        adoption = Adoption(
            self.source, tuple(self._manifests.values()), tuple(self._blobs), frozenset(promised)
        )
        return adoption if promised or adoption.manifests or adoption.blobs else None

    def _is_promised(self, digest: Digest) -> bool:
        return self.promises.holds(self.image, digest)

    async def _manifest(self, listed: Descriptor) -> bool:
        """Find a manifest with all manifests below it.  Returns whether those are here."""
        if (
            listed.digest in self._manifests
            or await self.catalog.manifest(self.image, listed.digest) is not None
        ):
            return True
        found = await self._child(listed)
        if found is None:
            return False
        for child in found.children:
            if not await self._manifest(child):
                return False
        self._manifests[listed.digest] = found
        return True

    async def _child(self, listed: Descriptor) -> Manifest | None:
        """A manifest from the upstream; ``None`` if it can't be fetched or is not as described."""
        try:
            record = (await self.repository.manifest(self.source, listed.digest)).record
            content = await self.local.stored.contents.of(listed.digest)
            child = await self.local.parse(content, record.media_type, listed.digest)
        except (RegistryError, RuntimeError, OSError):
            return None
        fits = (child.media_type, len(child.content)) == (listed.media_type, listed.size)
        return child if fits else None

    async def _blob(self, digest: Digest) -> None:
        """Find a blob, if it can be had.  The push is refused for one that can't."""
        if digest in self._blobs or await self.catalog.blob_size(self.image, digest) is not None:
            return
        with suppress(RegistryError):
            if await self.repository.blobs.whole(self.source, digest):
                self._blobs[digest] = None


PATIENCE = 1.5
"""
Seconds that the HEADs of a name wait for silent upstreams, all together, if the client may push it.
"""

_PATIENT_AGAIN = 60.0  # seconds


@define(eq=False)
class Patience:
    """
    How long HEADs of a name that no repository is known to have still wait for silent upstreams.

    A client that pushes asks for each of its manifests first, and may do so again and again.  While
    upstreams answer anything, a challenge or a token, HEADs wait: a client that pulls takes 404 for
    final.
    """

    clock: IReactorTime
    _spent: TTLCache[ImageName, float] = field(init=False)

    @_spent.default
    def _none_spent(self) -> TTLCache[ImageName, float]:
        return TTLCache(_REMEMBERED, _PATIENT_AGAIN, self.clock.seconds)

    def left(self, image: ImageName) -> float:
        """Seconds that may still be waited in silence; 0 or less: none."""
        return PATIENCE - float(self._spent.get(image, 0.0))

    def spend(self, image: ImageName, seconds: float) -> None:
        """A HEAD has waited so long in silence, and for nothing; ``seconds`` are 0 or more."""
        if self.left(image) > 0:
            self._spent[image] = self._spent.get(image, 0.0) + seconds

    def restore(self, image: ImageName) -> None:
        """Wait again from now on: the upstreams have said whether they have the image."""
        self._spent.pop(image, None)


def _split(
    descriptors: Iterable[Descriptor], promised: Callable[[Digest], bool]
) -> Mapping[bool, Sequence[Descriptor]]:
    """Those that were promised, under ``True``, and the others."""
    split: dict[bool, list[Descriptor]] = {True: [], False: []}
    for descriptor in descriptors:
        split[promised(descriptor.digest)].append(descriptor)
    return split


@frozen
class Unprefixed(Repository):
    """
    The repositories that ``[default]`` of the settings lists, searched in turn.

    ``image`` is always the image of the local repository, whether it exists or not.  The first
    upstream that answers for a name becomes its origin: from then on only that one is asked.

    :ivar patience: for the HEADs of clients that may push.
    :ivar local: the repository that takes pushes, if there is one.
    :ivar remotes: the upstreams' repositories, in the order in which they are asked.
    :ivar hidden: whether the client may not pull the local image.  If that image exists, the client
        gets 404, and no upstream is asked either.
    :ivar first: how many of ``remotes`` may be asked for a name without an origin: those before the
        first that the client may not pull.  A later one must not become the origin, since other
        clients are to get the image of the earlier one.
    """

    local: LocalRepository | None
    remotes: Sequence[RemoteRepository]
    catalog: Catalog
    remote: RemoteCatalog
    patience: Patience
    promises: Promises = field(factory=Promises)
    hidden: bool = False
    first: int | None = None
    wants_proof: bool = field(init=False)

    @wants_proof.default
    def _any_wants_proof(self) -> bool:
        return any(upstream.wants_proof for upstream in self.remotes)

    def candidates(self, image: ImageName) -> list[ImageName]:
        local = [] if self.local is None else [image]
        names = ((u, u.unprefixed(image.image)) for u in self.remotes)
        return local + [name for upstream, name in names if upstream.permits(name)] or [image]

    def limited_to(self, image: ImageName, permitted: Collection[ImageName]) -> Unprefixed:
        may = [u.unprefixed(image.image) in permitted for u in self._permitting(image.image)]
        if all(may) and (self.local is None or image in permitted):
            return self
        return evolve(
            self,
            remotes=[u for u in self.remotes if u.unprefixed(image.image) in permitted],
            hidden=self.local is not None and image not in permitted,
            first=None if all(may) else may.index(False),
        )

    def asked_by(self, asker: Asker) -> Unprefixed:
        if not self.wants_proof:
            return self
        return evolve(self, remotes=[each.asked_by(asker) for each in self.remotes])

    def for_operator(self) -> Unprefixed:
        return evolve(self, remotes=[each.for_operator() for each in self.remotes])

    def pushable(self, name: RepositoryName) -> LocalRepository:
        return super().pushable(name) if self.local is None else self.local

    async def manifest(
        self, image: ImageName, reference: Reference, *, head: bool = False
    ) -> ManifestFound:
        """
        Find a manifest: of the local image if the name is local, else of the upstream that is the
        name's origin, else of each upstream in turn until one has it.

        Only an upstream's definite "not found" leads on to the next one.
        """
        if self.local is not None and not self.hidden:
            record = await self.local.find(image, reference)
            if record is not None:
                return ManifestFound(record, image)
        return await self._manifest_of_others(image, reference, head=head)

    async def _manifest_of_others(
        self, image: ImageName, reference: Reference, *, head: bool
    ) -> ManifestFound:
        """
        Find a manifest that the local image, if it is not hidden, does not have.

        An upstream becomes the origin of a name by a manifest that it has sent, not by HEAD alone.
        """
        if self.local is not None and await self.remote.is_known(image):
            if self.hidden:
                await self._require_proofs(image)
                raise _nowhere(image, reference)
            return await self.local.manifest(image, reference)  # raises ManifestUnknown
        unknown: RegistryError = ManifestUnknown(
            "no image of that name is here, and no upstream is asked for it",
            {"name": image.image, "reference": str(reference)},
        )
        head = head and await self.remote.origin(image.image) is not None
        for upstream in await self._candidates(image.image):
            try:
                source = upstream.unprefixed(image.image)
                found = await upstream.manifest(source, reference, head=head)
            except (ManifestUnknown, NameUnknown) as error:
                if not upstream.lacks(error):
                    if self.hidden:
                        break
                    raise
                unknown = error
                continue
            if await self._remember(image.image, upstream):
                self.promises.give(image, found.record.digest)
                return found
            # Another request has made another upstream the origin meanwhile.
            return await self.manifest(image, reference, head=head)
        await self._require_proofs(image)
        raise _nowhere(image, reference) if self.hidden else unknown

    async def manifest_for(
        self, image: ImageName, reference: Reference, may_push: Callable[[], bool], *, head: bool
    ) -> ManifestFound:
        """
        As :meth:`manifest`; but where upstreams can't be asked for a name that is not known here, a
        client that may push it gets ManifestUnknown, since it pushes nothing before it is told.

        A HEAD waits for them only as long as :class:`Patience` allows.
        """
        if self.local is None or self.hidden:
            return await self.manifest(image, reference, head=head)
        record = await self.local.find(image, reference)
        if record is not None:
            return ManifestFound(record, image)
        asking = Deferred.fromCoroutine(self._manifest_of_others(image, reference, head=head))
        try:
            if head and not asking.called and may_push():
                return await self._soon(image, asking)
            return await asking
        except (BadGateway, TooManyRequests, TimeoutError) as error:
            if not may_push():
                raise
            if await self._is_settled(image):
                if isinstance(error, TimeoutError):
                    return await self.manifest(image, reference, head=head)
                raise
            reason = error.message if isinstance(error, RegistryError) else "no answer yet"
            raise ManifestUnknown(
                "no image of that name is here, and the upstreams can't be asked now: it may be"
                " pushed, or pulled later",
                {"name": image.image, "reference": str(reference), "reason": reason},
            ) from error

    async def _is_settled(self, image: ImageName) -> bool:
        """Whether it is known which repository answers for the name."""
        origin = await self.remote.origin(image.image)
        return origin is not None or await self.remote.is_known(image)

    async def _soon(self, image: ImageName, asking: Deferred[ManifestFound]) -> ManifestFound:
        """
        Wait for ``asking``, which goes on, while :attr:`patience` lasts.

        :raises TimeoutError: after that.
        """

        def ended(outcome: ManifestFound | Failure) -> ManifestFound | Failure:
            if not isinstance(outcome, Failure) or outcome.check(ManifestUnknown):
                self.patience.restore(image)
            return outcome

        began = self.patience.clock.seconds()

        def silence() -> float:
            answers = [each.answered(each.unprefixed(image.image)) for each in self.remotes]
            return self.patience.clock.seconds() - max([began, *answers])

        waiting = uncancelled(asking.addBoth(ended))
        timer: IDelayedCall | None = None

        def look() -> None:
            nonlocal timer
            left = self.patience.left(image) - silence()
            if left > 0:
                timer = self.patience.clock.callLater(left, look)
            else:
                waiting.cancel()

        if not waiting.called:
            look()
        try:
            return await waiting
        except CancelledError:
            self.patience.spend(image, silence())
            raise TimeoutError from None
        except (BadGateway, TooManyRequests):
            self.patience.spend(image, silence())
            raise
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    async def body(self, found: ManifestFound) -> OpenBlob:
        for upstream in self.remotes:
            if upstream.name == found.image.repository:
                return await upstream.body(found)
        assert self.local is not None
        return await self.local.body(found)

    async def blob(self, image: ImageName, digest: Digest, wanted: BlobWanted) -> BlobFound:
        """Open a blob; an upstream is asked only if it is the origin of the name."""
        if self.local is not None and not self.hidden:
            size = await self.catalog.promise_blob(image, digest)
            if size is not None:
                return await self.local.promised(image, digest, size, wanted)
        upstream = await self._opened(image)
        if upstream is None:
            await self._require_proofs(image)
            raise BlobUnknown("this image has no such blob", {"digest": str(digest)})
        found = await upstream.blob(upstream.unprefixed(image.image), digest, wanted)
        if wanted.head:
            self.promises.give(image, digest)
        return found

    async def tags(self, image: ImageName, wanted: ListWanted) -> TagsFound:
        """List tags; an upstream is asked only if it is the origin of the name."""
        upstream = await self._opened(image)
        if upstream is not None:
            return await upstream.tags(upstream.unprefixed(image.image), wanted)
        await self._require_proofs(image)
        if self.local is None or self.hidden:
            raise NameUnknown("no image of that name has been pulled", {"name": image.image})
        return await self.local.tags(image, wanted)

    async def referrers(
        self, image: ImageName, subject: Digest, artifact_type: str | None, wanted: ListWanted
    ) -> ReferrersFound:
        """List referrers; an upstream is asked only if it is the origin of the name."""
        upstream = await self._opened(image)
        if upstream is not None:
            return await upstream.referrers(
                upstream.unprefixed(image.image), subject, artifact_type, wanted
            )
        await self._require_proofs(image)
        if self.local is None or self.hidden:
            return ReferrersFound(index_of([]))
        return await self.local.referrers(image, subject, artifact_type, wanted)

    async def adopt(self, put: ManifestPut) -> ManifestPut:
        """
        Return ``put`` with the blobs and manifests that it refers to, the local image lacks, and
        the upstream's image of the name has.

        A client does not push a blob that it was told is here while the name was still the
        upstream's.  Once a manifest has been pushed under the name, only that is adopted which a
        client was told is here.
        """
        upstream = await self._origin(put.image.image)
        if upstream is None or self.local is None:
            return put
        source = upstream.unprefixed(put.image.image)
        if not await upstream.lends(source):
            return put
        adopting = Adopting(source, put.image, upstream, self.local, self.catalog, self.promises)
        is_known = await self.remote.is_known(put.image)
        adoption = await adopting.find(put, promised_only=is_known)
        return evolve(put, adoption=adoption)

    async def _require_proofs(self, image: ImageName) -> None:
        """
        Check proofs of access before a client is told that nothing of that name is here.

        A client without a proof gets the same answer whether the image exists or not.  A name that
        is local needs no proof.

        :raises NoProof: if a remote repository wants a proof and the client has none.
        """
        wanting = [u for u in self._permitting(image.image) if u.wants_proof]
        if not wanting:
            return
        visible = self.local is not None and not self.hidden
        if visible and await self.remote.is_known(image):
            return
        for upstream in wanting:
            await upstream.require_proof(upstream.unprefixed(image.image))

    async def _opened(self, image: ImageName) -> RemoteRepository | None:
        """The upstream that is the origin of the name, unless the name is local."""
        if self.local is not None and await self.remote.is_known(image):
            return None
        return await self._origin(image.image)

    async def _origin(self, name: str) -> RemoteRepository | None:
        """The upstream that is the origin of ``name``, if it may still be asked."""
        permitting = self._permitting(name)
        origin = await self.remote.origin(name) if permitting else None
        return next((u for u in permitting if u.name == origin), None)

    async def _candidates(self, name: str) -> Sequence[RemoteRepository]:
        permitting = self._permitting(name)
        if not permitting:
            return []
        origin = await self.remote.origin(name)
        return [u for u in permitting if u.name == origin] or (
            permitting[: self.first] if origin is None else []
        )

    def _permitting(self, name: str) -> list[RemoteRepository]:
        return [u for u in self.remotes if u.permits(u.unprefixed(name))]

    async def _remember(self, name: str, upstream: RemoteRepository) -> bool:
        """
        Make ``upstream`` the origin of ``name``, unless there is one.

        Returns whether ``upstream`` is the origin now.
        """
        origin = await self.remote.origin(name)
        if origin is None:
            origin = await self.remote.set_origin(name, upstream.name)
        return origin == upstream.name


def _nowhere(image: ImageName, reference: Reference) -> ManifestUnknown:
    """
    The error where the client may not pull the local image of a name.

    It is the same whether that image exists or no upstream has one, so it can't quote an upstream:
    if the image exists, none was asked.
    """
    return ManifestUnknown(
        "the upstream does not have it, or not for us",
        {"name": image.image, "reference": str(reference)},
    )
