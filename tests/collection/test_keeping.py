"""No tag that a rule keeps is lost, and nothing immutable moves, in two processes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import randrange
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from artifactd.daemon.assemble import Assembly
from artifactd.oci.names import Tag
from tests.collection.clock import SharedClock
from tests.collection.keeping import HOUR, NEWEST, PROCESSES, SHARED, Model, opened
from tests.collection.registry import Client
from tests.programs import Process, reactor

OPERATIONS = 4_000
SEED = "COLLECTION_SEED"
"""In the environment: the seed of the history, which is printed when it fails."""


class KeepingTests(TestCase):
    async def test_what_rules_keep_stays_and_what_is_immutable_does_not_move(self) -> None:
        seed = int(os.environ.get(SEED) or randrange(1 << 32))
        self.data, path = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        self.clock = SharedClock.set(path, time.time())
        try:
            await self.history(seed, path)
        except BaseException:
            print(f"\nthe history that failed: {SEED}={seed}", file=sys.stderr)
            raise

    async def history(self, seed: int, clock: Path) -> None:
        processes = [
            Process.fork(
                self,
                "tests.collection.keeping",
                *(str(each) for each in (self.data, clock, seed, n, OPERATIONS // PROCESSES)),
            )
            for n in range(PROCESSES)
        ]
        statuses = await gatherResults([process.ended(500) for process in processes])
        for status, process in zip(statuses, processes, strict=True):
            self.assertEqual(status, 0, process.output[-10_000:])
        told = [json.loads(process.out.splitlines()[-1]) for process in processes]
        done = sum((Counter(each["done"]) for each in told), Counter[str]())
        # It would show nothing if this never happened.
        for rare in (
            *("dropped", "pull, dropped", "pull, kept after all", "undelete", "collect"),
            *("push, immutable", "delete, immutable", "create, refused"),
        ):
            self.assertGreater(done[rare], 0, done)
        with opened(self.data, self.clock, reactor) as parts:
            try:
                await self.check(parts, {n: i for each in told for n, i in each["images"].items()})
                await self.check_shared(parts, [seen for each in told for seen in each["seen"]])
            finally:
                await parts.close()

    async def tags(self, parts: Assembly, name: str) -> dict[str, str]:
        """The tags of an image, and their digests."""
        image = Client(parts, name).target.image
        found = {}
        for tag in await parts.catalog.tags(image, None, None) or ():
            record = await parts.catalog.manifest(image, Tag.parse(tag))
            found[tag] = str(record and record.digest)
        return found

    async def check(self, parts: Assembly, images: Mapping[str, Any]) -> None:
        models = [Model.of(name, told) for name, told in images.items()]
        await parts.collector.run([])
        for model in models:
            model.look(self.clock())
            there = await self.tags(parts, model.name)
            for tag, known in model.tags.items():
                if tag not in model.doubtful or tag in there:
                    self.assertEqual(known.digest, there.get(tag), f"{model.name}:{tag}")
            self.assertLessEqual(there.keys(), model.tags.keys(), "none comes back by itself")
        # And when nothing is in use any more, the rules keep no more than they say.
        self.clock.advance(1000 * HOUR)
        stay = {}
        for name in images:
            image = Client(parts, name).target.image
            uses = await parts.collector.retention.catalog.tags(image, "", 100)
            counted = [(use.pushed, use.name) for use in uses if use.name[0] in "tv"]
            stay[name] = {tag for _, tag in sorted(counted)[-NEWEST:]}
            stay[name] |= {use.name for use in uses if use.name[0] in "xv" or use.name == "b0"}
            # The last tag of an image stays, too.
            stay[name] = stay[name] or {max(uses, key=lambda use: use.age).name}
        await parts.collector.run([])
        self.assertEqual(stay, {name: set(await self.tags(parts, name)) for name in images})

    async def check_shared(self, parts: Assembly, seen: list[dict[str, str]]) -> None:
        """All have seen the same, and no tag has ever moved."""
        there = await self.tags(parts, SHARED)
        for each in seen:
            self.assertEqual(each, {tag: there[tag] for tag in each})
        image = Client(parts, SHARED).target.image
        moved = Counter(each.tag for each in await parts.catalog.tag_movements(image, None))
        self.assertEqual(moved, dict.fromkeys(there, 1))
