"""
Proof of access: what is cached of an upstream's private image is for those whom the upstream itself
lets have it.  docs/access.md, "Proof of access".
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from enum import Enum
from functools import partial
from hashlib import sha256
from hmac import digest

from attrs import define, evolve, field, frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.proofs import ProofCatalog
from artifactd.kit.deferreds import SingleFlight
from artifactd.oci.digest import Digest
from artifactd.oci.errors import BadGateway, Denied, RegistryError, Unauthorized
from artifactd.oci.names import ImageName, Reference, Tag
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.model import (
    NOBODY,
    Asker,
    BlobFound,
    BlobWanted,
    ListWanted,
    ManifestFound,
    ReferrersFound,
    TagsFound,
)
from artifactd.settings.remote import RemoteSettings
from artifactd.upstream.access import RegistryAccess
from artifactd.upstream.credentials import Credentials, UpstreamLogin
from artifactd.upstream.errors import LoginRefused, Missing
from artifactd.upstream.http.errors import Unreachable, UpstreamError

# What upstreams have said of who may have what: yes for everybody's processes, no for a moment.

_REMEMBERED = 8192  # of each kind, in memory


class Said(Enum):
    """What an upstream says to a credential."""

    YES = "yes"
    NO = "no"  # it is not for this
    WRONG = "wrong"  # nobody has it
    NOTHING = "nothing"  # it can't be asked


@frozen
class Verdict:
    """A value, so that no two callers are given the same exception."""

    said: Said
    reason: str = ""

    @classmethod
    def of(cls, error: UpstreamError, credentials: Credentials | None) -> Verdict:
        """What ``error`` says to ``credentials``; ``None``: nobody's."""
        if isinstance(error, Missing):
            return cls(Said.NO, error.reason)
        if isinstance(error, LoginRefused) and error.status in (401, 403):
            return cls(Said.NO if credentials is None else Said.WRONG, error.reason)
        return cls(Said.NOTHING, error.reason)


ACCEPTED = Verdict(Said.YES)


@define(eq=False)
class ProofMemory:
    """
    Proofs of one repository, by their ids.

    What the upstream has accepted is in the catalog, so that every process on the data folder
    finds it; what it has refused is in the memory of this one, so that guessing writes nothing.

    :param now: seconds since the epoch.
    """

    catalog: ProofCatalog
    settings: RemoteSettings
    clock: IReactorTime
    now: Callable[[], float] = time.time
    _until: OrderedDict[bytes, float] = field(factory=OrderedDict, init=False)
    _refused: OrderedDict[bytes, tuple[float, Verdict]] = field(factory=OrderedDict, init=False)

    async def any_valid(self, ids: Sequence[bytes]) -> bool:
        """Whether one of these counts; in microseconds, once it is in memory."""
        if any(self._counts(self._until.get(each, 0.0)) for each in ids):
            return True
        until = await self.catalog.proofs(ids)
        for each, end in until.items():
            self._keep(each, end)
        return any(map(self._counts, until.values()))

    async def valid(self, ids: Collection[bytes]) -> set[bytes]:
        """Those of them that count."""
        until = await self.catalog.proofs(list(ids))
        return {each for each, end in until.items() if self._counts(end)}

    async def accept(self, *ids: bytes) -> None:
        """These count from now on."""
        until = self.now() + self.settings.proof_lifetime
        await self.catalog.add_proofs(ids, until)
        for each in ids:
            self._refused.pop(each, None)
            self._keep(each, until)

    def lately(self, proof: bytes) -> Verdict | None:
        """What was said a short while ago, unless it was yes."""
        until, verdict = self._refused.get(proof, (0.0, None))
        return verdict if self.clock.seconds() < until else None

    def refuse(self, proof: bytes, verdict: Verdict) -> None:
        """Remember that shortly."""
        self._refused[proof] = self.clock.seconds() + self.settings.negative_freshness, verdict
        self._refused.move_to_end(proof)
        if len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)

    def _counts(self, until: float) -> bool:
        """A shorter lifetime in the settings holds for what was remembered before, too."""
        return 0 < until - self.now() <= self.settings.proof_lifetime

    def _keep(self, proof: bytes, until: float) -> None:
        self._until[proof] = until
        self._until.move_to_end(proof)
        if len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)


# Why somebody is not served who has not shown that the upstream lets him have an image.


class NoProof(RegistryError):
    """What all of them are: the caller may not know whether the image is here."""


class ProofWanted(NoProof, Unauthorized):
    """
    He has to log in, or again.

    :ivar token_error: what is wrong with the token that came: RFC 6750, 3.1; empty: nothing.
    """

    token_error = ""


class ProofRefused(NoProof, Denied):
    """The upstream does not let him have it, or he has not logged in with a credential of it."""


class ProofUnavailable(NoProof, BadGateway):
    """The upstream can't be asked, and nothing that it has said before counts any more."""


def login_wanted() -> ProofWanted:
    """To somebody nobody knows; the same for all names."""
    return ProofWanted("authentication required: log in with your own credentials of the upstream")


def login_refused(presented: UpstreamLogin, reason: str) -> ProofWanted:
    """The password is wrong."""
    return ProofWanted(
        f"the upstream refuses the login as {presented.user}: log in with your own credentials"
        " of the upstream",
        {"reason": reason},
    )


def token_outlived() -> ProofWanted:
    """A token that came is not enough; another one can be had by logging in."""
    error = ProofWanted(
        "nothing shows any more that the upstream lets you have this image: get another token by"
        " logging in with your own credentials of the upstream"
    )
    error.token_error = "invalid_token"
    return error


def image_refused(presented: UpstreamLogin, name: str, reason: str) -> ProofRefused:
    """The upstream says so to that credential."""
    return ProofRefused(
        f"the upstream does not let {presented.user} have this image, or there is none",
        {"name": name, "reason": reason},
    )


def own_login_wanted(repository: str, name: str) -> ProofRefused:
    """To somebody who is known here, but not by a credential of that upstream."""
    return ProofRefused(
        "nobody may have this image without a login of its own at the upstream: log in here as"
        f" {repository}/<user> with the user and password that the upstream knows",
        {"name": name},
    )


def unavailable(reason: str, name: str | None = None) -> ProofUnavailable:
    """It can't be asked."""
    detail = {"reason": reason} if name is None else {"name": name, "reason": reason}
    return ProofUnavailable(
        "the upstream can't be asked whether you may have this: try again later", detail
    )


# Keyed hashes under which proofs of access are remembered.


@frozen
class Marks:
    """
    Those of one repository.  They change with its upstream, and tell nothing without the key.

    :param key: of the data folder, secret.
    :param upstream: its URL.
    """

    key: bytes = field(repr=False)
    repository: str
    upstream: str

    def present(self, user: str, password: str) -> UpstreamLogin:
        """What somebody shows."""
        mark = self._hash("credential", user, password)
        return UpstreamLogin(self.repository, user, mark, password)

    def login(self, presented: UpstreamLogin) -> bytes:
        """That the credential is right."""
        return self._hash("login", presented.mark.hex())

    def image(self, image: str, presented: UpstreamLogin | None) -> bytes:
        """That the credential, or (``None``) nobody's, is good for ``image``."""
        if presented is None:
            return self._hash("anybody", image)
        return self._hash("image", presented.mark.hex(), image)

    def _hash(self, *parts: str) -> bytes:
        """HMAC-SHA256; each part hashed first, so that no two lists of parts are one text."""
        whole = (self.repository, self.upstream, *parts)
        hashed = (sha256(part.encode(errors="surrogatepass")).digest() for part in whole)
        return digest(self.key, b"".join(hashed), "sha256")


@define(eq=False)
class AccessProofs:
    """Asks one upstream with others' credentials, and remembers what it says."""

    marks: Marks
    access: RegistryAccess
    memory: ProofMemory
    catalog: Catalog
    _asked: SingleFlight[bytes, Verdict] = field(factory=SingleFlight, init=False)

    def present(self, user: str, password: str) -> UpstreamLogin:
        """What somebody shows who says that he is ``user`` there."""
        return self.marks.present(user, password)

    async def log_in(self, presented: UpstreamLogin) -> bool:
        """
        Whether the upstream knows the credential, which must have its password; ``False``: it does
        not want any to be asked at all, so that nothing is known of it.

        :raises ProofWanted: if it is wrong.
        :raises ProofUnavailable: if that can't be told.
        """
        proof = self.marks.login(presented)
        if await self.memory.any_valid([proof]):
            return True
        verdict = await self._asked.join(proof, partial(self._judge_login, presented, proof))
        _check(verdict, presented)
        return verdict.said is Said.YES

    async def prove(self, image: ImageName, presented: UpstreamLogin) -> bool:
        """
        Whether ``image`` may be had with a credential, which must have its password.

        :raises ProofWanted, ProofUnavailable: as :meth:`log_in`.
        """
        if await self.memory.any_valid(self._ids(image.image, presented)):
            return True
        verdict = await self._ask(image, presented, None)
        _check(verdict, presented, str(image))
        return verdict.said is Said.YES

    async def require(
        self, image: ImageName, asker: Asker, reference: Reference | None = None
    ) -> None:
        """
        Nothing, if the upstream lets ``asker`` have ``image``, or anybody.

        :param reference: what of it is asked for, if that is a manifest.
        :raises ProofWanted: if he has to log in.
        :raises ProofRefused: if the upstream refuses it to him.
        :raises ProofUnavailable: if that can't be told.
        """
        presented = self._ours(asker)
        if await self.memory.any_valid(self._ids(image.image, presented)):
            return
        if presented is None or presented.password is None:
            await self._require_of_anybody(image, asker, presented, reference)
            return
        verdict = await self._ask(image, presented, reference)
        _check(verdict, presented, str(image))
        if verdict.said is Said.NO:
            raise image_refused(presented, str(image), verdict.reason)

    async def allows(self, image: ImageName, asker: Asker) -> bool:
        """Whether :meth:`require` does."""
        try:
            await self.require(image, asker)
        except NoProof:
            return False
        return True

    async def proved(self, images: Collection[ImageName], asker: Asker) -> set[ImageName]:
        """Those of ``images`` that ``asker`` has shown to have; the upstream is not asked."""
        presented = self._ours(asker)
        by_proof = {proof: image for image in images for proof in self._ids(image.image, presented)}
        return {by_proof[proof] for proof in await self.memory.valid(by_proof)}

    def _ours(self, asker: Asker) -> UpstreamLogin | None:
        """What he shows for this repository: nothing else goes to its upstream."""
        presented = asker.presented
        if presented is None or presented.repository != self.marks.repository:
            return None
        return presented

    def _ids(self, image: str, presented: UpstreamLogin | None) -> list[bytes]:
        ids = [self.marks.image(image, None)]
        return ids if presented is None else [*ids, self.marks.image(image, presented)]

    async def _require_of_anybody(
        self,
        image: ImageName,
        asker: Asker,
        presented: UpstreamLogin | None,
        reference: Reference | None,
    ) -> None:
        """For somebody who brings no password that could be shown to the upstream."""
        verdict = await self._ask(image, None, reference)
        if verdict.said is Said.YES:
            return
        if presented is None and not asker.known:
            # Whatever the upstream says, and whether it says anything: he may have shown before
            # that he may, and has not said yet who he is.
            raise login_wanted()
        if presented is not None:
            told = self.memory.lately(self.marks.image(image.image, presented))
            if told is not None and told.said is Said.NO:
                raise image_refused(presented, str(image), told.reason)
            if verdict.said is Said.NO:
                raise token_outlived()
        if verdict.said is Said.NOTHING:
            raise unavailable(verdict.reason, str(image))
        raise own_login_wanted(self.marks.repository, str(image))

    # -- the upstream is asked

    async def _ask(
        self, image: ImageName, presented: UpstreamLogin | None, reference: Reference | None
    ) -> Verdict:
        proof = self.marks.image(image.image, presented)
        return await self._asked.join(
            proof, partial(self._judge, image, presented, reference, proof)
        )

    async def _judge(
        self,
        image: ImageName,
        presented: UpstreamLogin | None,
        reference: Reference | None,
        proof: bytes,
    ) -> Verdict:
        verdict = self.memory.lately(proof)
        if verdict is not None:
            return _counted(verdict, presented)
        async with nullcontext() if presented is None else presented.turn():
            verdict = await self._judge_anew(image, presented, reference, proof)
            # A credential that is right should not have to wait because of one hiccup.
            hiccup = verdict.said is Said.NOTHING and presented is not None
            if verdict.said is not Said.YES and not hiccup:
                self.memory.refuse(proof, verdict)
            return _counted(verdict, presented)

    async def _judge_anew(
        self,
        image: ImageName,
        presented: UpstreamLogin | None,
        reference: Reference | None,
        proof: bytes,
    ) -> Verdict:
        credentials = None if presented is None else _credentials(presented)
        known = reference or await self._some_tag(image)
        try:
            self._check_online()
            needed = await self.access.may_pull(image.image, credentials, known)
        except UpstreamError as error:
            return Verdict.of(error, credentials)
        if presented is None or not needed:
            await self.memory.accept(self.marks.image(image.image, None))
        else:
            await self.memory.accept(proof, self.marks.login(presented))
        return ACCEPTED

    async def _some_tag(self, image: ImageName) -> Reference | None:
        """What is known of the image; nobody is told."""
        tags = await self.catalog.tags(image, None, 1)
        return Tag(tags[0]) if tags else None

    async def _judge_login(self, presented: UpstreamLogin, proof: bytes) -> Verdict:
        verdict = self.memory.lately(proof)
        if verdict is not None:
            return _counted(verdict, presented)
        async with presented.turn():
            credentials = _credentials(presented)
            try:
                self._check_online()
                if await self.access.logs_in(credentials):
                    await self.memory.accept(proof)
                    return ACCEPTED
                verdict = Verdict(Said.NO)
            except UpstreamError as error:
                verdict = Verdict.of(error, credentials)
            if verdict.said is Said.WRONG:
                self.memory.refuse(proof, verdict)
            return _counted(verdict, presented)

    def _check_online(self) -> None:
        if self.memory.settings.offline:
            raise Unreachable("the upstream is not asked (offline)")


def _counted(verdict: Verdict, presented: UpstreamLogin | None) -> Verdict:
    """``verdict``; whoever counts failures is told before the next one's turn."""
    if presented is not None and verdict.said is Said.WRONG:
        presented.failed()
    return verdict


def _credentials(presented: UpstreamLogin) -> Credentials:
    assert presented.password is not None
    return Credentials(presented.user, presented.password)


def _check(verdict: Verdict, presented: UpstreamLogin, name: str | None = None) -> None:
    if verdict.said is Said.NOTHING:
        raise unavailable(verdict.reason, name)
    if verdict.said is Said.WRONG:
        raise login_refused(presented, verdict.reason)


@frozen
class GuardedRepository(RemoteRepository):
    """
    A remote repository that serves an image only to clients whom its upstream would serve.

    Every read raises NoProof if ``asker`` has not proved that.

    :ivar asker: the client who is served.
    """

    proofs: AccessProofs
    asker: Asker = NOBODY

    @property
    def wants_proof(self) -> bool:
        return True

    async def require_proof(self, image: ImageName) -> None:
        await self.proofs.require(image, self.asker)

    async def manifest(self, image: ImageName, reference: Reference) -> ManifestFound:
        self.check(image)
        await self.proofs.require(image, self.asker, reference)
        return await self.manifests.get(image, reference)

    async def blob(self, image: ImageName, digest: Digest, wanted: BlobWanted) -> BlobFound:
        self.check(image)
        await self.proofs.require(image, self.asker)
        return await self.blobs.get(image, digest, wanted)

    async def tags(self, image: ImageName, wanted: ListWanted) -> TagsFound:
        self.check(image)
        await self.proofs.require(image, self.asker)
        return await self.lists.tags(image, wanted)

    async def referrers(
        self, image: ImageName, subject: Digest, artifact_type: str | None, wanted: ListWanted
    ) -> ReferrersFound:
        self.check(image)
        await self.proofs.require(image, self.asker)
        return await self.lists.referrers(image, subject, artifact_type, wanted)

    def asked_by(self, asker: Asker) -> GuardedRepository:
        return evolve(self, asker=asker)

    def for_operator(self) -> RemoteRepository:
        return RemoteRepository(
            self.name,
            self.settings,
            self.local_only,
            self.stored,
            self.blobs,
            self.manifests,
            self.lists,
        )

    async def lends(self, image: ImageName) -> bool:
        return self.permits(image) and await self.proofs.allows(image, self.asker)

    async def listable(self, images: Collection[ImageName]) -> set[ImageName]:
        return await self.proofs.proved(images, self.asker)
