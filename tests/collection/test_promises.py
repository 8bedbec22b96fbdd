"""What a client was told is there: for how long it can rely on that, by whatever name it asks."""

from __future__ import annotations

import json
import time
from pathlib import Path

from twisted.trial.unittest import TestCase

from artifactd.oci.errors import BlobUnknown, ManifestUnknown, Unsupported
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.registry.local import LocalRepository
from artifactd.registry.model import BlobWanted
from tests.collection.clock import SharedClock
from tests.collection.registry import (
    GRACE,
    KEEPING,
    LEASE,
    SHORT,
    UNTAGGED,
    Client,
    descriptor,
    image,
    index,
    opened,
)
from tests.programs import reactor

# More than is answered from memory.
BLOB = b"blob" * (64 << 10)
DIGEST = Digest.of(BLOB)
TAG = Tag.parse("latest")


class PromiseTests(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.clock = SharedClock.set(Path(self.mktemp()), time.time())
        with opened(Path(self.mktemp()).absolute(), self.clock, reactor) as self.parts:
            self.addCleanup(self.close)
        await self.client(f"{KEEPING}/app").upload(BLOB)

    async def close(self) -> None:
        await self.parts.close()

    def client(self, name: str) -> Client:
        return Client(self.parts, name)

    async def collect(self, after: float) -> None:
        self.clock.advance(after)
        await self.parts.collector.run([])

    async def test_who_is_told_that_a_blob_is_there_finds_it_for_most_of_a_lease(self) -> None:
        for name in ("app", f"{KEEPING}/app"):
            for ask in (Client.has_blob, Client.blob):
                self.clock.advance(0.9 * LEASE)
                await ask(self.client(name), DIGEST)
        await self.collect(0.7 * LEASE)
        client = self.client("app")
        await client.put(image(BLOB, [], 1), Digest.of(image(BLOB, [], 1)))
        await self.collect(10 * LEASE)
        self.assertEqual(await client.blob(DIGEST), BLOB)

    async def test_nobody_is_told_of_what_has_gone(self) -> None:
        await self.collect(LEASE)
        for name in ("app", f"{KEEPING}/app"):
            with self.assertRaises(BlobUnknown):
                await self.client(name).has_blob(DIGEST)

    async def test_who_is_told_of_an_untagged_manifest_finds_it_for_most_of_a_lease(self) -> None:
        client = self.client(f"{SHORT}/app")
        await client.upload(BLOB)
        pushed = image(BLOB, [], 1)
        digest = Digest.of(pushed)
        await client.put(pushed, digest)
        for _ in range(3):
            self.clock.advance(0.9 * UNTAGGED)
            self.assertEqual(await client.manifest(digest), pushed)
            await self.collect(0)
        await self.collect(UNTAGGED)
        with self.assertRaises(ManifestUnknown):
            await client.manifest(digest)

    async def test_who_is_told_of_a_child_of_a_deleted_index_finds_it_for_most_of_a_lease(
        self,
    ) -> None:
        client = self.client(f"{KEEPING}/app")
        child, other = (image(BLOB, [], n) for n in range(2))
        digest = Digest.of(child)
        for each in (child, other):
            await client.put(each, Digest.of(each))
        await client.put(index([child]), TAG)
        await client.delete(Digest.of(index([child])))
        for _ in range(3):
            self.clock.advance(0.9 * LEASE)
            self.assertEqual(await client.manifest(digest), child)
            await self.collect(0)
        await client.put(index([child, other]), TAG)
        await self.collect(10 * LEASE)
        self.assertEqual(await client.manifest(digest), child)
        await client.delete(Digest.of(index([child, other])))
        await self.collect(LEASE)
        for each in (child, other):
            with self.assertRaises(ManifestUnknown):
                await client.manifest(Digest.of(each))
        await self.parts.garbage.undelete(ImageName(KEEPING, "app"), TAG, "test")
        for each in (child, other):
            self.assertEqual(await client.manifest(Digest.of(each)), each)
        self.assertEqual(await client.blob(DIGEST), BLOB)

    async def test_a_blob_that_goes_when_it_is_opened_is_unknown_and_so_is_one_lost(self) -> None:
        local = self.parts.registry.repositories[KEEPING]
        assert isinstance(local, LocalRepository)
        app = ImageName(KEEPING, "app")

        async def assert_unknown() -> None:
            with self.assertRaises(BlobUnknown):
                await local.promised(app, DIGEST, len(BLOB), BlobWanted())

        self.parts.blobs.remove(DIGEST)
        await assert_unknown()  # and nobody is told of it until it is pushed again
        self.assertIsNone(await self.parts.catalog.promise_blob(app, DIGEST))
        await self.collect(LEASE)
        await assert_unknown()

    async def test_all_that_a_document_of_an_unknown_type_describes_stays_with_it(self) -> None:
        client = self.client(f"{SHORT}/app")
        child, later = image(BLOB, [], 1), b"pushed after the document that describes it"
        await client.upload(BLOB)
        await client.put(child, Digest.of(child))
        document = {
            "mediaType": "application/vnd.example.signatures.v1+json",
            "blobs": [descriptor(later), {"never pushed": descriptor(b"never pushed")}],
            "of": {"the": [descriptor(child)]},
        }
        pushed = json.dumps(document).encode()
        await client.put(pushed, TAG)
        await client.upload(later)
        for _ in range(2):
            await self.collect(max(LEASE, UNTAGGED))
            await self.collect(GRACE)
        self.assertEqual(await client.blob(Digest.of(later)), later)
        self.assertEqual(await client.manifest(Digest.of(child)), child)
        self.assertEqual(await client.manifest(TAG), pushed)
        with self.assertRaises(Unsupported):  # it is told that the document holds it
            await client.delete_blob(Digest.of(later))
        await client.delete(Digest.of(pushed))
        await self.collect(LEASE)
        with self.assertRaises(BlobUnknown):
            await client.blob(Digest.of(later))
        await self.parts.garbage.undelete(ImageName(SHORT, "app"), TAG, "test")
        self.assertEqual(await client.blob(Digest.of(later)), later)
        await self.collect(max(LEASE, UNTAGGED))
        self.assertEqual(await client.blob(Digest.of(later)), later)
