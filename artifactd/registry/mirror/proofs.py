"""
Proof of access: a cached private image is served only to clients that its upstream would serve.

docs/access.md, "Proof of access", describes it for operators.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from enum import Enum
from functools import partial
from hashlib import sha256
from hmac import digest

from attrs import define, evolve, field, frozen
from cachetools import LRUCache, TTLCache
from twisted.internet.interfaces import IReactorTime

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.proofs import ProofCatalog
from artifactd.kit.deferreds import SingleFlight
from artifactd.oci.errors import BadGateway, Denied, RegistryError, Unauthorized
from artifactd.oci.names import Digest, ImageName, Reference, Tag
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

_REMEMBERED = 8192  # acceptances and refusals in memory, each


class Said(Enum):
    """An upstream's answer to a credential."""

    YES = "yes"
    NO = "no"  # the credential does not give access to this image
    WRONG = "wrong"  # the user name or the password is wrong
    NOTHING = "nothing"  # the upstream can't be asked


@frozen
class Verdict:
    """An upstream's answer and its reason; a value, so that no exception is raised twice."""

    said: Said
    reason: str = ""

    @classmethod
    def of(cls, error: UpstreamError, credentials: Credentials | None) -> Verdict:
        """Turn ``error`` into a verdict on ``credentials``; ``None``: the request was anonymous."""
        if isinstance(error, Missing):
            return cls(Said.NO, error.reason)
        if isinstance(error, LoginRefused) and error.status in (401, 403):
            return cls(Said.NO if credentials is None else Said.WRONG, error.reason)
        return cls(Said.NOTHING, error.reason)


ACCEPTED = Verdict(Said.YES)


@define(eq=False)
class ProofMemory:
    """
    The proofs of one repository, by their ids.

    Acceptances are in the catalog, so that every process on the data folder finds them.  Refusals
    are in the memory of this process only, so that guessing writes nothing.

    :param now: seconds since the epoch.
    """

    catalog: ProofCatalog
    settings: RemoteSettings
    clock: IReactorTime
    now: Callable[[], float] = time.time
    _until: LRUCache[bytes, float] = field(factory=lambda: LRUCache(_REMEMBERED), init=False)
    _refused: TTLCache[bytes, Verdict] = field(init=False)

    @_refused.default
    def _none_refused(self) -> TTLCache[bytes, Verdict]:
        return TTLCache(_REMEMBERED, self.settings.negative_freshness, self.clock.seconds)

    async def any_valid(self, ids: Sequence[bytes]) -> bool:
        """Whether any of these proofs is valid; takes microseconds if one is in memory."""
        if any(self._counts(self._until.get(each, 0.0)) for each in ids):
            return True
        until = await self.catalog.proofs(ids)
        for each, end in until.items():
            self._until[each] = end
        return any(map(self._counts, until.values()))

    async def valid(self, ids: Collection[bytes]) -> set[bytes]:
        """Return those of ``ids`` that are valid proofs."""
        until = await self.catalog.proofs(list(ids))
        return {each for each, end in until.items() if self._counts(end)}

    async def accept(self, *ids: bytes) -> None:
        """Make these proofs valid for ``proof_lifetime``."""
        until = self.now() + self.settings.proof_lifetime
        await self.catalog.add_proofs(ids, until)
        for each in ids:
            self._refused.pop(each, None)
            self._until[each] = until

    def lately(self, proof: bytes) -> Verdict | None:
        """Return the refusal of the last ``negative_freshness`` seconds, or ``None``."""
        return self._refused.get(proof)

    def refuse(self, proof: bytes, verdict: Verdict) -> None:
        """Remember a refusal for ``negative_freshness`` seconds."""
        self._refused[proof] = verdict

    def _counts(self, until: float) -> bool:
        # A lifetime that was shortened in the settings holds for older proofs too.
        return 0 < until - self.now() <= self.settings.proof_lifetime


class NoProof(RegistryError):
    """The client has no proof; it is not told whether the image is here."""


class ProofWanted(NoProof, Unauthorized):
    """
    The client has to log in, or to log in again.

    :ivar token_error: the error code of the client's token (RFC 6750, 3.1); empty if it has none.
    """

    token_error = ""


class ProofRefused(NoProof, Denied):
    """The upstream refuses the image to the client, or the client has no login of that upstream."""


class ProofUnavailable(NoProof, BadGateway):
    """The upstream can't be asked, and all its earlier answers have expired."""


def login_wanted() -> ProofWanted:
    """The error for an anonymous client; the same for all names."""
    return ProofWanted("authentication required: log in with your own credentials of the upstream")


def login_refused(presented: UpstreamLogin, reason: str) -> ProofWanted:
    """The error for a wrong password."""
    return ProofWanted(
        f"the upstream refuses the login as {presented.user}: log in with your own credentials"
        " of the upstream",
        {"reason": reason},
    )


def token_outlived() -> ProofWanted:
    """The error for a token whose proof has expired; the client can get another by logging in."""
    error = ProofWanted(
        "nothing shows any more that the upstream lets you have this image: get another token by"
        " logging in with your own credentials of the upstream"
    )
    error.token_error = "invalid_token"
    return error


def image_refused(presented: UpstreamLogin, name: str, reason: str) -> ProofRefused:
    """The error where the upstream refuses the image to the client's login."""
    return ProofRefused(
        f"the upstream does not let {presented.user} have this image, or there is none",
        {"name": name, "reason": reason},
    )


def own_login_wanted(repository: str, name: str) -> ProofRefused:
    """The error for a client that has logged in, but not with a login of that upstream."""
    return ProofRefused(
        "nobody may have this image without a login of its own at the upstream: log in here as"
        f" {repository}/<user> with the user and password that the upstream knows",
        {"name": name},
    )


def unavailable(reason: str, name: str | None = None) -> ProofUnavailable:
    """The error where the upstream can't be asked."""
    detail = {"reason": reason} if name is None else {"name": name, "reason": reason}
    return ProofUnavailable(
        "the upstream can't be asked whether you may have this: try again later", detail
    )


@frozen
class ProofIds:
    """
    Makes the ids of one repository's proofs: keyed hashes, which reveal nothing without the key.

    :param key: the secret key of the data folder.
    :param upstream: the URL of the upstream; with another one, all ids are different.
    """

    key: bytes = field(repr=False)
    repository: str
    upstream: str

    def present(self, user: str, password: str) -> UpstreamLogin:
        """Make the login that a client presents as ``user`` of the upstream."""
        mark = self._hash("credential", user, password)
        return UpstreamLogin(self.repository, user, mark, password)

    def login(self, presented: UpstreamLogin) -> bytes:
        """The id of the proof that the upstream knows the login."""
        return self._hash("login", presented.mark.hex())

    def image(self, image: str, presented: UpstreamLogin | None) -> bytes:
        """The id of the proof that the login, or (``None``) everybody, may pull ``image``."""
        if presented is None:
            return self._hash("anybody", image)
        return self._hash("image", presented.mark.hex(), image)

    def _hash(self, *parts: str) -> bytes:
        # HMAC-SHA256; each part is hashed first, so that different lists of parts differ.
        whole = (self.repository, self.upstream, *parts)
        hashed = (sha256(part.encode(errors="surrogatepass")).digest() for part in whole)
        return digest(self.key, b"".join(hashed), "sha256")


@define(eq=False)
class AccessProofs:
    """Asks one upstream with the logins of clients, and remembers its answers."""

    proof_ids: ProofIds
    access: RegistryAccess
    memory: ProofMemory
    catalog: Catalog
    _asked: SingleFlight[bytes, Verdict] = field(factory=SingleFlight, init=False)

    def present(self, user: str, password: str) -> UpstreamLogin:
        """Make the login that a client presents as ``user`` of the upstream."""
        return self.proof_ids.present(user, password)

    async def log_in(self, presented: UpstreamLogin) -> bool:
        """
        Whether the upstream has confirmed a login, before or just now.  The login must have its
        password.

        ``False`` if the upstream answers without any login, so that this one can't be checked.

        :raises ProofWanted: if the login is wrong.
        :raises ProofUnavailable: if the upstream can't be asked.
        """
        proof = self.proof_ids.login(presented)
        if await self.memory.any_valid([proof]):
            return True
        verdict = await self._asked.join(proof, partial(self._judge_login, presented, proof))
        _check(verdict, presented)
        return verdict.said is Said.YES

    async def prove(self, image: ImageName, presented: UpstreamLogin) -> bool:
        """
        Whether a login, which must have its password, may pull ``image``, by a proof or by the
        upstream's answer now.

        :raises ProofWanted: if the login is wrong.
        :raises ProofUnavailable: if the upstream can't be asked.
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
        Check that the upstream lets ``asker``, or everybody, pull ``image``.

        :param reference: the manifest that is asked for, if it is one.
        :raises ProofWanted: if the client has to log in.
        :raises ProofRefused: if the upstream refuses the image to the client.
        :raises ProofUnavailable: if the upstream can't be asked.
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
        """Whether :meth:`require` raises nothing."""
        try:
            await self.require(image, asker)
        except NoProof:
            return False
        return True

    async def proved(self, images: Collection[ImageName], asker: Asker) -> set[ImageName]:
        """
        Return those of ``images`` that ``asker`` has a valid proof for; the upstream is not asked.
        """
        presented = self._ours(asker)
        by_proof = {proof: image for image in images for proof in self._ids(image.image, presented)}
        return {by_proof[proof] for proof in await self.memory.valid(by_proof)}

    def _ours(self, asker: Asker) -> UpstreamLogin | None:
        # A login for another repository must not go to this upstream.
        presented = asker.presented
        if presented is None or presented.repository != self.proof_ids.repository:
            return None
        return presented

    def _ids(self, image: str, presented: UpstreamLogin | None) -> list[bytes]:
        ids = [self.proof_ids.image(image, None)]
        return ids if presented is None else [*ids, self.proof_ids.image(image, presented)]

    async def _require_of_anybody(
        self,
        image: ImageName,
        asker: Asker,
        presented: UpstreamLogin | None,
        reference: Reference | None,
    ) -> None:
        """Check that the upstream lets everybody pull ``image``; the client sent no password."""
        verdict = await self._ask(image, None, reference)
        if verdict.said is Said.YES:
            return
        if presented is None and not asker.known:
            # Whatever the upstream answers: the client may have a proof once it has logged in.
            raise login_wanted()
        if presented is not None:
            told = self.memory.lately(self.proof_ids.image(image.image, presented))
            if told is not None and told.said is Said.NO:
                raise image_refused(presented, str(image), told.reason)
            if verdict.said is Said.NO:
                raise token_outlived()
        if verdict.said is Said.NOTHING:
            raise unavailable(verdict.reason, str(image))
        raise own_login_wanted(self.proof_ids.repository, str(image))

    # -- the upstream is asked

    async def _ask(
        self, image: ImageName, presented: UpstreamLogin | None, reference: Reference | None
    ) -> Verdict:
        proof = self.proof_ids.image(image.image, presented)
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
            # One failed request to the upstream must not shut out a login that is right.
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
            await self.memory.accept(self.proof_ids.image(image.image, None))
        else:
            await self.memory.accept(proof, self.proof_ids.login(presented))
        return ACCEPTED

    async def _some_tag(self, image: ImageName) -> Reference | None:
        """A tag of the image, to ask the upstream for; clients are not told."""
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
    """Count a wrong login, and return ``verdict``.  Called before the next login has its turn."""
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
    A remote repository that serves an image only to clients that its upstream would serve.

    Every read raises NoProof if ``asker`` has not proved that.

    :ivar asker: the client that is served.
    """

    proofs: AccessProofs
    asker: Asker = NOBODY

    wants_proof = True

    async def require_proof(self, image: ImageName) -> None:
        await self.proofs.require(image, self.asker)

    async def manifest(
        self, image: ImageName, reference: Reference, *, head: bool = False
    ) -> ManifestFound:
        self.check(image)
        await self.proofs.require(image, self.asker, reference)
        return await self.manifests.get(image, reference, head=head)

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
