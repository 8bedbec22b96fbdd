"""What upstreams have said of who may have what: yes for everybody's processes, no for a moment."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from enum import Enum

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.catalog.proofs import ProofCatalog
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.errors import LoginRefused, Missing, UpstreamError

_REMEMBERED = 8192  # of each kind, in memory


@frozen
class ProofRules:
    """
    :ivar lifetime: seconds for which a proof counts.
    :ivar negative: seconds for which the upstream is not asked again what it has refused.
    :ivar offline: whether it is never asked.
    """

    lifetime: float = 3600.0
    negative: float = 10.0
    offline: bool = False


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
    rules: ProofRules
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
        until = self.now() + self.rules.lifetime
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
        self._refused[proof] = self.clock.seconds() + self.rules.negative, verdict
        self._refused.move_to_end(proof)
        if len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)

    def _counts(self, until: float) -> bool:
        """A shorter lifetime in the settings holds for what was remembered before, too."""
        return 0 < until - self.now() <= self.rules.lifetime

    def _keep(self, proof: bytes, until: float) -> None:
        self._until[proof] = until
        self._until.move_to_end(proof)
        if len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)
