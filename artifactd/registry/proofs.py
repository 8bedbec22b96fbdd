"""
Proof of access: what is cached of an upstream's private image is for those whom the upstream itself
lets have it.  docs/access.md, "Proof of access".
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial

from attrs import define, field, frozen

from artifactd.catalog.records import Catalog
from artifactd.kit.deferreds import Flights
from artifactd.oci.names import ImageName, Reference, Tag
from artifactd.presented import Presented
from artifactd.registry.marks import Marks
from artifactd.registry.proof_errors import (
    NoProof,
    image_refused,
    login_refused,
    login_wanted,
    own_login_wanted,
    token_outlived,
    unavailable,
)
from artifactd.registry.proof_memory import ACCEPTED, ProofMemory, Said, Verdict
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.errors import Unreachable, UpstreamError
from artifactd.upstream.interfaces import UpstreamAccess


@frozen
class Asker:
    """
    Who wants an image.

    :ivar known: whether he has logged in, in whatever way.
    """

    known: bool = False
    presented: Presented | None = None


NOBODY = Asker()


@define(eq=False)
class AccessProofs:
    """Asks one upstream with others' credentials, and remembers what it says."""

    marks: Marks
    access: UpstreamAccess
    memory: ProofMemory
    catalog: Catalog
    _asked: Flights[bytes, Verdict] = field(factory=Flights, init=False)

    def present(self, user: str, password: str) -> Presented:
        """What somebody shows who says that he is ``user`` there."""
        return self.marks.present(user, password)

    async def log_in(self, presented: Presented) -> bool:
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

    async def prove(self, image: ImageName, presented: Presented) -> bool:
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

    async def proved(self, images: Iterable[ImageName], asker: Asker) -> set[ImageName]:
        """Those of ``images`` that ``asker`` has shown to have; the upstream is not asked."""
        presented = self._ours(asker)
        by_proof = {proof: image for image in images for proof in self._ids(image.image, presented)}
        return {by_proof[proof] for proof in await self.memory.valid(by_proof)}

    def _ours(self, asker: Asker) -> Presented | None:
        """What he shows for this repository: nothing else goes to its upstream."""
        presented = asker.presented
        if presented is None or presented.repository != self.marks.repository:
            return None
        return presented

    def _ids(self, image: str, presented: Presented | None) -> list[bytes]:
        ids = [self.marks.image(image, None)]
        return ids if presented is None else [*ids, self.marks.image(image, presented)]

    async def _require_of_anybody(
        self,
        image: ImageName,
        asker: Asker,
        presented: Presented | None,
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
        self, image: ImageName, presented: Presented | None, reference: Reference | None
    ) -> Verdict:
        proof = self.marks.image(image.image, presented)
        return await self._asked.join(
            proof, partial(self._judge, image, presented, reference, proof)
        )

    async def _judge(
        self,
        image: ImageName,
        presented: Presented | None,
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
        presented: Presented | None,
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

    async def _judge_login(self, presented: Presented, proof: bytes) -> Verdict:
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
        if self.memory.rules.offline:
            raise Unreachable("the upstream is not asked (offline)")


def _counted(verdict: Verdict, presented: Presented | None) -> Verdict:
    """``verdict``; whoever counts failures is told before the next one's turn."""
    if presented is not None and verdict.said is Said.WRONG:
        presented.failed()
    return verdict


def _credentials(presented: Presented) -> Credentials:
    assert presented.password is not None
    return Credentials(presented.user, presented.password)


def _check(verdict: Verdict, presented: Presented, name: str | None = None) -> None:
    if verdict.said is Said.NOTHING:
        raise unavailable(verdict.reason, name)
    if verdict.said is Said.WRONG:
        raise login_refused(presented, verdict.reason)
