"""The bytes of manifests and small blobs, kept in memory; over a real store."""

from __future__ import annotations

from artifactd.oci.names import Algorithm, Digest
from artifactd.registry.content import Contents
from tests.store.fixture import StoreTestCase

LIMIT = 8 * (512 + 100)  # an entry takes 512 bytes: a manifest of more than 100 is not kept


class ContentsTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.contents = Contents(self.stores.blobs, LIMIT)

    async def stored(self, content: bytes, algorithm: Algorithm = Algorithm.SHA256) -> Digest:
        """The digest of bytes that are in the store."""
        digest = Digest.of(content, algorithm)
        staged = await self.stores.blobs.stage(digest, content)
        await staged.publish()
        staged.release()
        return digest

    def lose(self, digest: Digest) -> None:
        """Take the bytes out of the store."""
        encoded = digest.encoded
        (self.path / "blobs" / digest.algorithm / encoded[:2] / encoded).unlink()

    async def assert_lost(self, digest: Digest) -> None:
        error = await self.assert_raises(RuntimeError, self.contents.of(digest))
        self.assertIn(str(digest), str(error))

    async def test_the_bytes_are_those_of_the_store(self) -> None:
        for algorithm in Algorithm:
            digest = await self.stored(b"manifest", algorithm)
            self.assertEqual(await self.contents.of(digest), b"manifest")

    async def test_what_was_read_once_is_not_read_again(self) -> None:
        digest = await self.stored(b"manifest")
        await self.contents.of(digest)
        self.lose(digest)
        self.assertEqual(await self.contents.of(digest), b"manifest")

    async def test_bytes_that_are_lost_are_not_made_up(self) -> None:
        digest = await self.stored(b"manifest")
        self.lose(digest)
        await self.assert_lost(digest)

    async def test_bytes_that_have_changed_are_not_served(self) -> None:
        digest = await self.stored(b"manifest")
        (name,) = self.below("blobs")
        path = self.path / "blobs" / name
        path.chmod(0o600)
        path.write_bytes(b"MANIFEST")
        await self.assert_raises(OSError, self.contents.of(digest))

    async def test_what_was_not_asked_for_longest_makes_room(self) -> None:
        digests = [await self.stored(b"%d" % number * 100) for number in range(9)]
        for digest in digests[:8]:
            await self.contents.of(digest)
        await self.contents.of(digests[0])
        await self.contents.of(digests[8])
        for digest in digests:
            self.lose(digest)
        for digest in (*digests[2:], digests[0]):
            self.assertEqual(len(await self.contents.of(digest)), 100)
        await self.assert_lost(digests[1])

    async def test_one_large_manifest_does_not_push_out_the_others(self) -> None:
        large, small = await self.stored(b"x" * 101), await self.stored(b"manifest")
        await self.contents.of(small)
        await self.contents.of(large)
        self.lose(large)
        self.lose(small)
        self.assertEqual(await self.contents.of(small), b"manifest")
        await self.assert_lost(large)
