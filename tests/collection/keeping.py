"""
One of several processes that push, pull, delete, bring back and collect at random, where rules of a
retention drop tags and some tags are immutable.

usage: python -m tests.collection.keeping DATA CLOCK SEED NUMBER OPERATIONS

It says as JSON which tags must be there in the end, and what it has done.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Self

from attrs import astuple, define, field
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.task import react

from artifactd.catalog.garbage import Garbage
from artifactd.catalog.records import Precondition
from artifactd.daemon.assemble import Assembly, assemble
from artifactd.oci.errors import ManifestUnknown, TagExists, TagImmutable
from artifactd.oci.names import Digest, Reference, Tag
from artifactd.registry.upkeep.collector import NotNow
from artifactd.settings.settings import (
    DefaultSettings,
    LocalSettings,
    RetentionRule,
    Settings,
)
from artifactd.settings.values import Duration, Pattern, Untagged
from tests.collection.clock import SharedClock
from tests.collection.registry import Client, image, media_type, read

PROCESSES, CONNECTIONS = 2, 3
HOUR = 3600.0
NEWEST, PULLED, PUSHED = 2, 1.5 * HOUR, 1.5 * HOUR
TAGS = [f"{kind}{number}" for kind in "tbxv" for number in range(3)]
SHARED = "local/shared"


def settings(data: Path) -> Settings:
    """
    Of the tags t…, the newest stay and those that are used; of b…, those that were just pushed, and
    b0; no rule is for x…; and v… are immutable.
    """
    rules = (
        RetentionRule(tags=(Pattern("[tv]*"),), newest=NEWEST),
        RetentionRule(tags=(Pattern("t*"),), pulled=Duration(PULLED)),
        RetentionRule(tags=(Pattern("b*"),), pushed=Duration(PUSHED), keep=(Pattern("b0"),)),
    )
    local = LocalSettings(
        retention=rules,
        immutable_tags=(Pattern("v*"),),
        untagged=Untagged("30h"),
    )
    return Settings(
        data=data,
        threads=4,
        lease=Duration(24 * HOUR),
        grace=Duration(10_000 * HOUR),
        gc_rate=0,
        repository={"local": local},
        default=DefaultSettings(push="local", pull=("local",)),
    )


@contextmanager
def opened(data: Path, clock: SharedClock, reactor: Any) -> Iterator[Assembly]:
    """To be closed by whoever asks."""
    with ExitStack() as stack:
        parts = assemble(settings(data), reactor, stack, clock)
        parts.threads.start()
        stack.pop_all()
    yield parts


@define
class Known:
    """
    What a client knows of a tag that nobody else pushes.

    :ivar pushed: the clock before and after its last push.
    :ivar used: the clock before its last pull or push.
    """

    digest: str
    pushed: tuple[float, float]
    used: float


@define
class Model:
    """
    :ivar doubtful: tags that the rules may have let go at some time since they were last seen.
    """

    name: str
    tags: dict[str, Known] = field(factory=dict)
    doubtful: set[str] = field(factory=set)

    def is_kept(self, tag: str, now: float) -> bool:
        """Whether a rule certainly keeps it, or none is for it."""
        known = self.tags[tag]
        if tag[0] in "vx" or tag == "b0":
            return True
        if tag[0] == "b":
            return now < known.pushed[0] + PUSHED
        newer = [
            other
            for other, each in self.tags.items()
            # The first rule is for tags of two kinds.
            if other[0] in "tv" and other != tag and each.pushed[1] >= known.pushed[0]
        ]
        return len(newer) < NEWEST or now < known.used + PULLED

    def look(self, now: float) -> None:
        """Time has passed, or a tag has come: others may have to go."""
        self.doubtful |= {tag for tag in self.tags if not self.is_kept(tag, now)}

    def forget(self, tag: str) -> None:
        del self.tags[tag]
        self.doubtful.discard(tag)

    @property
    def told(self) -> dict[str, Any]:
        """As JSON has it, for :meth:`of`."""
        return {"tags": {t: astuple(k) for t, k in self.tags.items()}, "doubtful": [*self.doubtful]}

    @classmethod
    def of(cls, name: str, told: Mapping[str, Any]) -> Self:
        tags = {
            tag: Known(digest, (before, after), used)
            for tag, (digest, (before, after), used) in told["tags"].items()
        }
        return cls(name, tags, set(told["doubtful"]))


@define
class Connection:
    """One client, in an image that nobody else changes but the collection, and in a shared one."""

    parts: Assembly
    clock: SharedClock
    random: Random
    number: int
    model: Model
    done: Counter[str] = field(factory=Counter)
    seen: dict[str, str] = field(factory=dict)  # immutable and created tags of the shared image

    async def work(self, operations: int) -> None:
        steps = [
            (self.push, 30),
            (self.pull, 30),
            (self.pull_digest, 8),
            (self.delete, 6),
            (self.move_immutable, 8),
            (self.shared, 10),
            (self.collect, 8),
        ]
        names, weights = zip(*steps, strict=True)
        for _ in range(operations):
            [step] = self.random.choices(names, weights)
            self.model.look(self.clock())
            await step()
            self.model.look(self.clock())
            if self.number == 0 and self.random.random() < 0.04:
                self.advance(self.random.uniform(0, 0.5 * HOUR))

    def advance(self, seconds: float) -> None:
        """Advance the clock while no process writes, as each transaction takes one time."""
        path = self.parts.folder.catalog
        with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            self.clock.advance(seconds)

    # -- requests

    async def put(self, name: str, tag: str, content: bytes, create_only: str = "") -> str:
        client = Client(self.parts, name)
        await client.upload(b"{}")
        await self.parts.registry.put_manifest(
            client.target,
            Tag.parse(tag),
            [],
            content,
            media_type(content),
            Precondition(),
            "test",
            create_only,
        )
        return str(Digest.of(content))

    async def get(self, name: str, reference: Reference) -> str:
        """GET a manifest, as the API does; its digest."""
        target = Client(self.parts, name).target
        found = await target.readable.manifest(target.image, reference)
        pulls, pulled = self.parts.pulls, (found.image, reference)
        if pulled not in pulls.noted and not await pulls.note(*pulled):
            raise ManifestUnknown("it has gone since")
        return str(Digest.of(read(await target.readable.body(found))))

    def content(self) -> bytes:
        return image(b"{}", [], self.random.randrange(6))

    # -- steps

    async def push(self) -> None:
        tag, content, before = self.random.choice(TAGS), self.content(), self.clock()
        known = self.model.tags.get(tag)
        digest = str(Digest.of(content))
        try:
            await self.put(self.model.name, tag, content)
        except TagImmutable:
            assert tag[0] == "v", tag
            assert known is not None, tag
            assert known.digest != digest, f"{tag} may be pushed again as it is"
            self.done["push, immutable"] += 1
            return
        assert tag[0] != "v" or known is None or known.digest == digest, f"{tag} has moved"
        self.model.tags[tag] = Known(digest, (before, self.clock()), before)
        self.model.doubtful.discard(tag)
        self.done["push"] += 1

    async def pull(self) -> None:
        if not self.model.tags:
            return
        tag, before = self.random.choice(list(self.model.tags)), self.clock()
        known = self.model.tags[tag]
        try:
            digest = await self.get(self.model.name, Tag.parse(tag))
        except ManifestUnknown:
            self.model.look(self.clock())
            assert tag in self.model.doubtful, f"{self.model.name}:{tag} was kept by a rule"
            self.done["pull, dropped"] += 1
            await self.bring_back(tag)
            return
        assert digest == known.digest, f"{self.model.name}:{tag} is something else"
        self.used(tag, before)

    def used(self, tag: str, before: float) -> None:
        """It was there, and pulled, at ``before`` or later."""
        self.done["pull"] += 1
        if tag in self.model.doubtful:
            self.done["pull, kept after all"] += 1
        self.model.tags[tag].used = before
        self.model.doubtful.discard(tag)

    async def pull_digest(self) -> None:
        """A pull by digest counts for every tag of the manifest."""
        certain = [tag for tag in self.model.tags if tag not in self.model.doubtful]
        if not certain:
            return
        digest, before = self.model.tags[self.random.choice(certain)].digest, self.clock()
        self.model.look(before)
        try:
            await self.get(self.model.name, Digest.parse(digest))
        except ManifestUnknown:
            raise AssertionError(f"{self.model.name}@{digest} was kept by a tag") from None
        for tag, known in self.model.tags.items():
            if known.digest == digest and tag not in self.model.doubtful:
                known.used = before
        self.done["pull by digest"] += 1

    async def bring_back(self, tag: str) -> None:
        known, before = self.model.tags[tag], self.clock()
        name = Client(self.parts, self.model.name).target.image
        self.model.forget(tag)
        moved = await self.parts.catalog.tag_movements(name, Tag.parse(tag))
        assert moved[-1].actor.startswith("retention["), moved[-1]
        if self.random.random() < 0.5:
            restored = await self.parts.garbage.undelete(name, Tag.parse(tag), "test")
            assert restored.tags == (tag,), restored
            self.model.tags[tag] = Known(known.digest, (before, self.clock()), before)
            self.done["undelete"] += 1

    async def delete(self) -> None:
        if not self.model.tags:
            return
        tag = self.random.choice(list(self.model.tags))
        known = self.model.tags[tag]
        by_digest = self.random.random() < 0.3
        reference = Digest.parse(known.digest) if by_digest else Tag.parse(tag)
        try:
            await Client(self.parts, self.model.name).delete(reference)
        except TagImmutable:
            its = [t for t, each in self.model.tags.items() if each.digest == known.digest]
            assert any(t[0] == "v" for t in its), f"{tag} is not immutable"
            self.done["delete, immutable"] += 1
        except ManifestUnknown:
            self.model.look(self.clock())
            assert tag in self.model.doubtful, f"{self.model.name}:{tag} was kept by a rule"
            self.model.forget(tag)
        else:
            assert tag[0] != "v", f"{tag} was deleted"
            for other in list(self.model.tags) if by_digest else [tag]:
                if self.model.tags[other].digest == known.digest:
                    self.model.forget(other)
            self.done["delete"] += 1

    async def move_immutable(self) -> None:
        tag = self.random.choice([tag for tag in TAGS if tag[0] == "v"])
        known = self.model.tags.get(tag)
        if known is not None:
            digest = await self.get(self.model.name, Tag.parse(tag))
            assert digest == known.digest, f"{self.model.name}:{tag} has moved"
            self.model.tags[tag].used = self.clock()

    async def shared(self) -> None:
        """Several create a tag at the same time: an immutable one, or with the right to create."""
        tag = self.random.choice(("v0", "v1", "x0", "x1", "x2"))
        content = self.content()
        try:
            digest = await self.put(SHARED, tag, content, "access[0]" if tag[0] == "x" else "")
        except (TagExists, TagImmutable):
            digest = await self.get(SHARED, Tag.parse(tag))
            self.done["create, refused"] += 1
        assert self.seen.setdefault(tag, digest) == digest, f"{SHARED}:{tag} has moved"

    async def collect(self) -> None:
        try:
            await self.parts.collector.run([])
            self.done["collect"] += 1
        except NotNow:
            self.done["collect, another does"] += 1


async def main(reactor: Any, argv: list[str]) -> None:
    data, clock = Path(argv[0]), SharedClock(Path(argv[1]))
    seed, number, operations = map(int, argv[2:])
    with opened(data, clock, reactor) as parts:
        dropped: list[str] = []

        def report(each: Any) -> None:
            if each.why is Garbage.RETENTION:
                dropped.append(each.name)

        parts.collector.report = report
        connections = [
            Connection(
                parts,
                clock,
                Random(f"{seed} {number} {n}"),
                number,
                Model(f"local/p{number}c{n}"),
            )
            for n in range(CONNECTIONS)
        ]
        working = [Deferred.fromCoroutine(c.work(operations // CONNECTIONS)) for c in connections]
        try:
            await gatherResults(working, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        finally:
            for each in working:
                each.cancel()
            await parts.close()
    done = sum((each.done for each in connections), Counter[str]())
    done["dropped"] = len(dropped)
    images = {each.model.name: each.model.told for each in connections}
    seen = [each.seen for each in connections]
    print(json.dumps({"images": images, "done": done, "seen": seen}))


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, sys.argv[1:])))
