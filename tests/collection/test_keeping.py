"""No tag that a rule keeps is lost, and nothing immutable moves, over two workers and a reload."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random, randrange
from threading import Event

from twisted.internet.defer import FirstError, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.daemon.assemble import Assembly
from artifactd.oci.names import Tag
from tests.collection.clock import SharedClock
from tests.collection.keeping import (
    CONNECTIONS,
    HOUR,
    NEWEST,
    SHARED,
    TOML,
    Client,
    Connection,
    Model,
    opened,
)
from tests.collection.registry import Client as Opened
from tests.programs import Process, reactor
from tests.workers import Workers

OPERATIONS = 900
MOST_WORK = 20
RARE = ("pull, dropped", "undelete", "push, immutable", "delete, immutable", "create, refused")
SEED = "COLLECTION_SEED"
"""In the environment: the seed of the history, which is printed when it fails."""


class Clocked(Workers):
    """On the clock of the file beside its data."""

    worker = "tests.collection.worker"

    def run(self, environment: Mapping[str, str]) -> Process:
        return super().run({**environment, "TEST_CLOCK": str(clock_of(self.data))})


def clock_of(data: Path) -> Path:
    return data.with_name("clock")


class KeepingTests(TestCase):
    async def test_what_rules_keep_stays_and_what_is_immutable_does_not_move(self) -> None:
        seed = int(os.environ.get(SEED) or randrange(1 << 32))
        try:
            await self.history(seed)
        except BaseException:
            print(f"\nthe history that failed: {SEED}={seed}", file=sys.stderr)
            raise

    async def history(self, seed: int) -> None:
        self.data = Path(self.mktemp()).absolute() / "data"
        self.data.parent.mkdir(parents=True)
        self.clock = SharedClock.set(clock_of(self.data), time.time())
        daemon = await Clocked.start(self, data=self.data, toml=TOML, workers="2", access_log="off")
        connections = [
            Connection(
                Client(daemon.port),
                self.data / "catalog.sqlite3",
                self.clock,
                Random(f"{seed} {number}"),
                number,
                Model(f"local/c{number}"),
            )
            for number in range(CONNECTIONS)
        ]
        for _ in range(2):
            await self.work(connections)
            os.kill(daemon.process.pid, signal.SIGHUP)  # others collect from now on
        done = await self.work_until_all_has_happened(connections)
        self.assertEqual(await daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertNotIn("Traceback", daemon.process.output)
        self.assertEqual(len(daemon.pids()), 6, "two workers and two reloads")
        with opened(self.data, self.clock, reactor) as parts:
            try:
                self.assertGreater(await self.dropped(parts, connections), 0, done)
                await self.check(parts, [each.model for each in connections])
                await self.check_shared(parts, [each.seen for each in connections])
            finally:
                await parts.close()

    async def work_until_all_has_happened(self, connections: Sequence[Connection]) -> Counter[str]:
        """
        Work until each step that would show nothing if it never happened has; how often each did.

        How many tags are dropped in a third of the steps rests on how fast the machine collects.
        """
        for _ in range(MOST_WORK):
            await self.work(connections)
            done = sum((each.done for each in connections), Counter[str]())
            if all(done[rare] for rare in RARE):
                return done
        raise AssertionError(f"something never happened: {done}")

    async def work(self, connections: Sequence[Connection]) -> None:
        """Let all do a third of their steps."""
        stop = Event()
        steps = OPERATIONS // CONNECTIONS // 3
        working = [deferToThread(each.work, steps, stop) for each in connections]
        try:
            await gatherResults(working, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        finally:
            stop.set()

    async def tags(self, parts: Assembly, name: str) -> dict[str, str]:
        """The tags of an image, and their digests."""
        image = Opened(parts, name).target.image
        found = {}
        for tag in await parts.catalog.tags(image, None, None) or ():
            record = await parts.catalog.manifest(image, Tag.parse(tag))
            found[tag] = str(record and record.digest)
        return found

    async def dropped(self, parts: Assembly, connections: Iterable[Connection]) -> int:
        """How many tags retention has dropped."""
        moved = [
            movement
            for each in connections
            for movement in await parts.catalog.tag_movements(
                Opened(parts, each.model.name).target.image, None
            )
        ]
        return sum(each.actor.startswith("retention[") for each in moved)

    async def check(self, parts: Assembly, models: Sequence[Model]) -> None:
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
        for model in models:
            image = Opened(parts, model.name).target.image
            uses = await parts.collector.retention.catalog.tags(image, "", 100)
            counted = [(use.pushed, use.name) for use in uses if use.name[0] in "tv"]
            kept = {tag for _, tag in sorted(counted)[-NEWEST:]}
            kept |= {use.name for use in uses if use.name[0] in "xv" or use.name == "b0"}
            # The last tag of an image stays, too.
            stay[model.name] = kept or {max(uses, key=lambda use: use.age).name}
        await parts.collector.run([])
        self.assertEqual(stay, {name: set(await self.tags(parts, name)) for name in stay})

    async def check_shared(self, parts: Assembly, seen: Sequence[dict[str, str]]) -> None:
        """All have seen the same, and no tag has ever moved."""
        there = await self.tags(parts, SHARED)
        for each in seen:
            self.assertEqual(each, {tag: there[tag] for tag in each})
        image = Opened(parts, SHARED).target.image
        moved = Counter(each.tag for each in await parts.catalog.tag_movements(image, None))
        self.assertEqual(moved, dict.fromkeys(there, 1))
