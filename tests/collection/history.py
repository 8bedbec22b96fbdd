"""
One of several processes that push, mount, delete, bring back, pull and collect at random.

usage: python -m tests.collection.history DATA CLOCK SEED NUMBER OPERATIONS

It says as JSON what must be there in the end, and what it has done.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.task import react

from artifactd.catalog.garbage import Garbage, Restored
from artifactd.daemon.assemble import Assembly
from artifactd.oci.errors import (
    BlobUnknown,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
    Unsupported,
)
from artifactd.oci.names import Digest, Tag
from artifactd.registry.upkeep.collector import NotNow
from tests.collection.clock import SharedClock
from tests.collection.model import Image
from tests.collection.registry import (
    GRACE,
    KEEPING,
    LEASE,
    SHORT,
    Client,
    blob,
    blobs_of,
    image,
    index,
    opened,
    tag,
)

PROCESSES, CONNECTIONS, BLOBS, TAGS = 2, 4, 80, 4
KEPT = 3
"""Manifests in an image at most, so that bytes come and go."""
SHARED = f"{SHORT}/shared"


def images() -> list[str]:
    """All that are pushed to."""
    own = [
        f"{repository}/p{process}c{connection}"
        for repository in (KEEPING, SHORT)
        for process in range(PROCESSES)
        for connection in range(CONNECTIONS)
    ]
    return [SHARED, *own]


@define
class Run:
    """One process.  :ivar done: how often each operation was done."""

    parts: Assembly
    clock: SharedClock
    seed: int
    number: int
    operations: int
    done: Counter[str] = field(factory=Counter)

    def did(self, operation: str) -> None:
        self.done[operation] += 1
        if self.number == 0 and not self.done.total() % 50:
            self.advance(0.5)

    def advance(self, seconds: float) -> None:
        """
        Advance the clock while no process writes: a lease that a transaction begins runs from just
        before its commit, also where that takes long.
        """
        path = self.parts.folder.catalog
        with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            self.clock.advance(seconds)

    @property
    def goes_on(self) -> bool:
        return self.done.total() < self.operations


@define
class Connection:
    """One client: one request after the other, in images that nobody else changes but one."""

    run: Run
    number: int
    random: Random = field(init=False)
    models: list[Image] = field(init=False)

    def __attrs_post_init__(self) -> None:
        run = self.run
        self.random = Random(f"{run.seed} {run.number} {self.number}")
        self.models = [
            Image(f"{repository}/p{run.number}c{self.number}") for repository in (KEEPING, SHORT)
        ]

    async def work(self) -> None:
        operations = [
            (self.push, 20),
            (self.push_index, 5),
            (self.push_referrer, 5),
            (self.pull, 20),
            (self.delete_tag, 5),
            (self.delete_manifest, 8),
            (self.delete_blob, 5),
            (self.undelete, 8),
            (self.undelete_tag, 5),
            (self.contend, 10),
        ]
        names, weights = zip(*operations, strict=True)
        while self.run.goes_on:
            [operation] = self.random.choices(names, weights)
            model = self.random.choice(self.models)
            await operation(model)
            if len(model.manifests) > KEPT:
                await self.delete_manifest(model)
            if self.random.random() < 0.08:
                await self.collect()
            if self.run.number == 0 and self.random.random() < 0.03:
                self.run.advance(self.random.uniform(0, 2 * LEASE))

    # -- pushing

    def client(self, name: str) -> Client:
        return Client(self.run.parts, name)

    def some_image(self, subject: bytes | None = None) -> tuple[bytes, list[bytes]]:
        contents = [
            blob(self.run.seed, n)
            for n in self.random.sample(range(BLOBS), k=self.random.choice((2, 3, 4)))
        ]
        return image(contents[0], contents[1:], self.random.randrange(3), subject), contents

    async def push(self, model: Image) -> None:
        content, contents = self.some_image()
        await self.push_manifest(model, content, contents)

    async def push_referrer(self, model: Image) -> None:
        if model.required:
            subject = self.random.choice(list(model.required.values()))
            content, contents = self.some_image(subject)
            await self.push_manifest(model, content, contents, tagged=False)

    async def push_index(self, model: Image) -> None:
        kept = list(model.required.values())
        if kept:
            children = self.random.sample(kept, k=min(2, len(kept)))
            await self.push_manifest(model, index(children), [])

    async def push_manifest(
        self, model: Image, content: bytes, contents: list[bytes], *, tagged: bool = True
    ) -> None:
        client = self.client(model.name)
        name = tag(self.random.randrange(TAGS)) if tagged and self.random.random() < 0.7 else None
        told = {Digest.of(each): await self.provide(client, each) for each in contents}
        try:
            await client.put(content, name or Digest.of(content))
        except ManifestBlobUnknown as error:
            # Right only if a lease has run out since.
            self.check_lease(error, told, model)
            told = {Digest.of(each): self.run.clock() for each in contents}
            for each in contents:
                await client.upload(each)
                self.run.did("upload again")
            try:
                await client.put(content, name or Digest.of(content))
            except ManifestBlobUnknown as again:
                self.check_lease(again, told, model)
                self.run.did("push given up")
                return
        self.run.did("put manifest")
        model.pushed(content, None if name is None else name.text)

    def check_lease(
        self, error: ManifestBlobUnknown, told: dict[Digest, float], model: Image
    ) -> None:
        assert isinstance(error.detail, dict)
        now = self.run.clock()
        for digest in map(Digest.parse, error.detail["digests"]):
            assert digest in told, f"{model.name}: manifest {digest} was not deleted, but is gone"
            left = told[digest] + 0.75 * LEASE - now
            assert left <= 0, f"{model.name}: blob {digest} went {left} s before its lease was over"
        self.run.did("lease run out")

    async def provide(self, client: Client, content: bytes) -> float:
        """Let the image have a blob, one way or the other; since when it was told that it has."""
        digest, told = Digest.of(content), self.run.clock()
        way = self.random.random()
        if way < 0.4:
            with suppress(BlobUnknown):
                await client.has_blob(digest)
                self.run.did("head, was here")
                return told
            self.run.did("head, was not here")
        elif way < 0.7:
            source = self.random.choice([*images(), None])
            mounted = await client.mount(digest, source)
            self.run.did("mount, done" if mounted else "mount, nothing")
            if mounted:
                return told
        told = self.run.clock()
        if self.random.random() < 0.5:
            await client.upload(content)
        else:
            await client.upload_in_session(content)
            self.run.did("upload session")
        self.run.did("upload")
        return told

    # -- pulling

    async def pull(self, model: Image) -> None:
        client = self.client(model.name)
        if model.tags and self.random.random() < 0.5:
            name, digest = self.random.choice(list(model.tags.items()))
            content = await client.manifest(Tag.parse(name))
            assert content == model.manifests[digest], f"{model.name}:{name} is something else"
        elif model.required:
            digest, expected = self.random.choice(list(model.required.items()))
            content = await client.manifest(digest)
            assert content == expected, f"{model.name}@{digest} has other bytes"
        else:
            return
        self.run.did("pull manifest")
        for held in blobs_of(content):
            found = await client.blob(held)
            assert Digest.of(found) == held, f"{model.name}@{held} has other bytes"
            self.run.did("pull blob")

    # -- deleting, and bringing back

    async def delete_tag(self, model: Image) -> None:
        if model.tags:
            name, before = self.random.choice(list(model.tags)), self.run.clock()
            await self.client(model.name).delete(Tag.parse(name))
            self.run.did("delete tag")
            model.tag_gone(name, before)

    async def delete_manifest(self, model: Image) -> None:
        if not model.manifests:
            return
        digest, before = self.random.choice(list(model.manifests)), self.run.clock()
        required = digest in model.required
        try:
            await self.client(model.name).delete(digest)
        except Unsupported:
            self.run.did("delete held manifest")
        except ManifestUnknown:
            assert not required, f"{model.name}@{digest} was not deleted, but is gone"
            self.run.did("delete collected manifest")
            model.collected(digest)
        else:
            self.run.did("delete manifest")
            model.gone(digest, before)

    async def delete_blob(self, model: Image) -> None:
        digest = Digest.of(blob(self.run.seed, self.random.randrange(BLOBS)))
        client, before = self.client(model.name), self.run.clock()
        try:
            await client.delete_blob(digest)
        except (BlobUnknown, Unsupported):
            self.run.did("delete blob, refused")
            return
        self.run.did("delete blob")
        if self.random.random() < 0.5:
            await self.bring_back(model, digest, before)

    async def undelete(self, model: Image) -> None:
        if model.deleted:
            digest, at = self.random.choice(list(model.deleted.items()))
            restored = await self.bring_back(model, digest, at)
            if restored is not None:
                assert digest in restored.manifests

    async def undelete_tag(self, model: Image) -> None:
        candidates = [name for name in model.deleted_tags if name not in model.tags]
        if candidates:
            name = self.random.choice(candidates)
            restored = await self.bring_back(model, Tag.parse(name), model.deleted_tags[name][1])
            if restored is not None:
                assert restored.tags == (name,)

    async def bring_back(
        self, model: Image, reference: Digest | Tag, deleted: float
    ) -> Restored | None:
        """It must be possible until the time is over."""
        name = self.client(model.name).target.image
        try:
            restored = await self.run.parts.garbage.undelete(name, reference, "test")
        except ManifestUnknown:
            assert self.run.clock() - deleted >= GRACE, f"{name} {reference} can't be brought back"
            self.run.did("undelete, too late")
            model.deleted_tags.pop(str(reference), None)
            if isinstance(reference, Digest):
                model.deleted.pop(reference, None)
            return None
        self.run.did("undelete")
        model.restored(restored)
        return restored

    # -- what all do in one image

    async def contend(self, _: Image) -> None:
        client, name = self.client(SHARED), tag(self.random.randrange(TAGS))
        way = self.random.random()
        if way < 0.4:
            content, contents = self.some_image()
            for each in contents:
                await self.provide(client, each)
            with suppress(ManifestBlobUnknown):
                await client.put(content, name)
            self.run.did("shared: put manifest")
        elif way < 0.6:
            with suppress(ManifestUnknown, NameUnknown):
                content = await client.manifest(name)
                await client.delete(self.random.choice((name, Digest.of(content))))
            self.run.did("shared: delete")
        else:
            with suppress(ManifestUnknown, NameUnknown):
                content = await client.manifest(name)
                for held in blobs_of(content):
                    await self.shared_blob(client, Digest.of(content), held)
            self.run.did("shared: pull")

    async def shared_blob(self, client: Client, manifest: Digest, held: Digest) -> None:
        for _ in range(3):
            try:
                assert Digest.of(await client.blob(held)) == held
                return
            except BlobUnknown:
                await client.manifest(manifest)  # is it still there?
        raise AssertionError(f"{client.name}@{manifest} is there without {held}")

    async def collect(self) -> None:
        shelves = self.random.sample(range(256), k=2)
        try:
            await self.run.parts.collector.run(shelves)
            self.run.did("collect")
        except NotNow:
            self.run.did("collect, another does")


async def main(reactor: Any, argv: list[str]) -> None:
    data, clock = Path(argv[0]), SharedClock(Path(argv[1]))
    seed, number, operations = map(int, argv[2:])
    with opened(data, clock, reactor) as parts:
        run = Run(parts, clock, seed, number, operations)
        collected: list[Garbage] = []
        parts.collector.report = lambda each: collected.append(each.why)
        connections = [Connection(run, n) for n in range(CONNECTIONS)]
        working = [Deferred.fromCoroutine(each.work()) for each in connections]
        try:
            await gatherResults(working, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        finally:
            for each in working:
                each.cancel()
            await parts.close()
    told = {model.name: model.told for each in connections for model in each.models}
    run.done.update(f"collected {why}" for why in collected)
    print(json.dumps({"images": told, "done": run.done}))


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, sys.argv[1:])))
