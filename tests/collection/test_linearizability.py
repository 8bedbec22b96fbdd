"""What is pushed is there, whatever is deleted and collected meanwhile, in two processes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import randrange
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from artifactd.catalog.garbage import Collected
from artifactd.daemon.assemble import Assembly
from artifactd.oci.errors import ManifestUnknown, NameUnknown
from artifactd.oci.names import Digest, Tag
from tests.collection.clock import SharedClock
from tests.collection.history import PROCESSES, SHARED, TAGS
from tests.collection.registry import Client, blobs_of, opened, tag
from tests.crash.test_sweep import listed, stored
from tests.programs import Process, reactor

Told = Mapping[str, Mapping[str, Any]]
"""What a process says of an image: ``tests.collection.model.Image.told``."""

OPERATIONS = int(os.environ.get("COLLECTION_OPERATIONS") or 10_000)
"""How many the history has."""

SEED = "COLLECTION_SEED"
"""In the environment: the seed of the history, which is printed when it fails."""


class LinearizabilityTests(TestCase):
    async def test_what_is_acknowledged_and_not_deleted_is_whole(self) -> None:
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
                "tests.collection.history",
                *(str(each) for each in (self.data, clock, seed, n, OPERATIONS // PROCESSES)),
            )
            for n in range(PROCESSES)
        ]
        for status, process in zip(
            await gatherResults([process.ended(500) for process in processes]),
            processes,
            strict=True,
        ):
            self.assertEqual(status, 0, process.output[-10_000:])
        told = [json.loads(process.out.splitlines()[-1]) for process in processes]
        done = sum((Counter(each["done"]) for each in told), Counter[str]())
        operations = sum(n for what, n in done.items() if not what.startswith("collected "))
        self.assertGreaterEqual(operations, OPERATIONS)
        # It would show nothing if this never happened.
        for rare in (
            "lease run out",
            "undelete",
            "undelete, too late",
            "collect",
            "mount, done",
            "collected orphaned",
        ):
            self.assertGreater(done[rare], 0, done)
        self.assertGreater(done["collected bytes"], 100, done)
        with opened(self.data, self.clock, reactor) as parts:
            try:
                await self.check(parts, {n: i for each in told for n, i in each["images"].items()})
            finally:
                await parts.close()
        print(f"\n{operations} operations, seed {seed}: {dict(done.most_common())}")

    async def check(self, parts: Assembly, images: Mapping[str, Told]) -> None:
        await self.assert_whole(parts, images)
        # And when everything has gone that can go: a round for each index or subject above it.
        collected: list[Collected] = []
        parts.collector.report = collected.append
        rounds = 0
        while collected or not rounds:
            collected.clear()
            rounds += 1
            self.clock.advance(1e6)
            await parts.collector.run()
        await self.assert_whole(parts, images)
        self.assertEqual(stored(self.data), listed(self.data))
        for name, image in images.items():
            self.assertEqual(await self.there(parts, name, image["gone"]), {}, name)
        self.assertEqual(set(stored(self.data)), await self.needed(parts, images))

    async def assert_whole(self, parts: Assembly, images: Mapping[str, Told]) -> None:
        """Every image that was told to be there is there byte for byte."""
        for name, image in images.items():
            client = Client(parts, name)
            for reference, digest in image["tags"].items():
                self.assertEqual(
                    str(Digest.of(await client.manifest(Tag.parse(reference)))), digest
                )
            for digest, expected in image["manifests"].items():
                content = await client.manifest(Digest.parse(digest))
                self.assertEqual(content.decode(), expected, name)
                for held in blobs_of(content):
                    self.assertEqual(Digest.of(await client.blob(held)), held, name)
        client = Client(parts, SHARED)
        for number in range(TAGS):
            try:
                content = await client.manifest(tag(number))
            except (ManifestUnknown, NameUnknown):
                continue
            for held in blobs_of(content):
                self.assertEqual(Digest.of(await client.blob(held)), held)

    async def needed(self, parts: Assembly, images: Mapping[str, Told]) -> set[str]:
        """The digests of all that is in an image in the end."""
        # Everybody pushes to this one, untagged manifests too.
        manifests = await self.there(parts, SHARED, stored(self.data))
        for name, image in images.items():
            manifests |= {d: text.encode() for d, text in image["manifests"].items()}
            manifests |= await self.there(parts, name, image["perhaps"])
        held = {str(blob) for content in manifests.values() for blob in blobs_of(content)}
        return manifests.keys() | held

    async def there(self, parts: Assembly, name: str, digests: Iterable[str]) -> dict[str, bytes]:
        """Those of the digests that an image has as manifests, with their bytes."""
        client, found = Client(parts, name), {}
        for digest in digests:
            with contextlib.suppress(ManifestUnknown, NameUnknown):
                found[digest] = await client.manifest(Digest.parse(digest))
        return found
