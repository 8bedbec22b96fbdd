"""What every catalog knows of remote images: what goes because somebody says so."""

from __future__ import annotations

from artifactd.catalog.records import TagMovement
from artifactd.catalog.remote import CachedPage
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName
from tests.contracts.catalog import APP, descriptor, index, manifest
from tests.contracts.catalog_remote import ALPINE, BUSYBOX, V1, V2, RemoteCatalogTestCase


class PurgeContract(RemoteCatalogTestCase):
    async def cache_page(self) -> None:
        await self.remote.cache_page(ALPINE, "tags", CachedPage(b"{}", None, None, 1.0))

    async def assert_gone(self, purged: list[Digest] | None, *expected: bytes) -> None:
        """Exactly these have gone for good."""
        assert purged is not None
        self.assertEqual(sorted(map(str, map(Digest.of, expected))), sorted(map(str, purged)))
        self.assertEqual(purged, await self.forgotten(*purged))

    async def test_a_tag_goes_with_its_manifest_and_what_only_that_holds(self) -> None:
        shared, own = await self.fill(b"shared"), await self.fill(b"own")
        await self.cache(manifest(b"1", blobs=[shared, own]), "v1")
        await self.cache(manifest(b"2", blobs=[shared]), "v2")
        self.time = 2000.0
        await self.assert_gone(await self.remote.purge(ALPINE, V1), b"1", b"own")
        self.assertIsNone(await self.remote.cached_tag(ALPINE, V1))
        self.assertIsNone(await self.catalog.blob_size(ALPINE, own.digest))
        self.assertEqual(6, await self.catalog.blob_size(ALPINE, shared.digest))
        self.assertIsNotNone(await self.catalog.manifest(ALPINE, V2))
        self.assertEqual(
            TagMovement("v1", "purge", 2000.0, Digest.of(b"1"), None),
            (await self.catalog.tag_movements(ALPINE, V1))[-1],
        )

    async def test_an_index_goes_with_the_children_that_only_it_holds(self) -> None:
        layer, base = await self.fill(b"layer"), await self.fill(b"base")
        await self.cache(manifest(b"child", blobs=[layer, base]))
        await self.cache(manifest(b"sister", blobs=[base]))
        await self.cache(manifest(b"tagged"), "v2")
        await self.cache(manifest(b"shared"))
        names = (b"child", b"sister", b"tagged", b"shared", b"never pulled")
        await self.cache(index(b"[]", [descriptor(name) for name in names]), "v1")
        await self.cache(index(b"[1]", [descriptor(b"shared")]), "v3")
        purged = await self.remote.purge(ALPINE, V1)
        await self.assert_gone(purged, b"[]", b"child", b"sister", b"layer", b"base")
        for kept in (b"tagged", b"shared"):
            self.assertIsNotNone(await self.catalog.manifest(ALPINE, Digest.of(kept)))

    async def test_the_manifest_of_another_tag_stays(self) -> None:
        digest = await self.cache(b"{}", "v1")
        await self.cache(b"{}", "v2")
        self.assertEqual([], await self.remote.purge(ALPINE, V1))
        self.assertEqual(["v2"], await self.catalog.tags(ALPINE, None, None))
        self.assertIsNotNone(await self.catalog.manifest(ALPINE, digest))
        self.assertEqual(2, len(await self.catalog.tag_movements(ALPINE, V1)))

    async def test_a_digest_goes_as_a_manifest_with_its_tags_and_as_a_blob(self) -> None:
        digest = await self.cache(manifest(b"{}", blobs=[await self.fill(b"blob")]), "v1")
        await self.cache(b"{}", "v2", BUSYBOX)
        await self.assert_gone(await self.remote.purge(ALPINE, digest), b"blob")
        self.assertEqual([], await self.catalog.tags(ALPINE, None, None))
        self.assertIsNotNone(await self.catalog.manifest(BUSYBOX, V2))
        blob = await self.fill(b"another")
        await self.assert_gone(await self.remote.purge(ALPINE, blob.digest), b"another")
        self.assertIsNone(await self.catalog.blob_size(ALPINE, blob.digest))

    async def test_a_blob_that_a_manifest_holds_goes_if_it_is_named(self) -> None:
        blob = await self.fill(b"blob")
        await self.cache(manifest(b"{}", blobs=[blob]), "v1")
        await self.assert_gone(await self.remote.purge(ALPINE, blob.digest), b"blob")
        self.assertIsNotNone(await self.catalog.manifest(ALPINE, V1))

    async def test_an_image_goes_with_everything(self) -> None:
        await self.fill(b"held by nothing")
        await self.fill(b"shared", ALPINE, BUSYBOX)
        await self.cache(b"1", "v1")
        await self.cache(b"2", "v2")
        await self.cache_page()
        self.time = 2000.0
        purged = await self.remote.purge(ALPINE, None)
        await self.assert_gone(purged, b"held by nothing", b"1", b"2")
        self.assertFalse(await self.remote.is_known(ALPINE))
        self.assertIsNone(await self.remote.cached_tag(ALPINE, V1))
        self.assertIsNone(await self.catalog.blob_size(ALPINE, Digest.of(b"shared")))
        self.assertEqual(6, await self.catalog.blob_size(BUSYBOX, Digest.of(b"shared")))
        self.assertIsNone(await self.remote.cached_page(ALPINE, "tags"))
        self.assertEqual(
            TagMovement("v2", "purge", 2000.0, Digest.of(b"2"), None),
            (await self.catalog.tag_movements(ALPINE, V2))[-1],
        )

    async def test_lists_go_with_what_they_may_tell_of(self) -> None:
        for reference in (V1, Digest.of(b"{}")):
            await self.cache(b"{}", "v1")
            await self.cache_page()
            await self.remote.purge(ALPINE, reference)
            self.assertIsNone(await self.remote.cached_page(ALPINE, "tags"))

    async def test_lists_are_something_to_purge_too(self) -> None:
        await self.cache_page()
        self.assertEqual([], await self.remote.purge(ALPINE, None))
        self.assertIsNone(await self.remote.cached_page(ALPINE, "tags"))
        self.assertIsNone(await self.remote.purge(ALPINE, None))

    async def test_of_what_is_not_there_nothing_is_purged(self) -> None:
        await self.cache(b"{}", "v1")
        await self.cache_page()
        nowhere = ImageName("docker.io", "nowhere")
        for image, reference in (
            (ALPINE, V2),
            (ALPINE, Digest.of(b"x")),
            (nowhere, V1),
            (nowhere, None),
        ):
            self.assertIsNone(await self.remote.purge(image, reference))
        self.assertIsNotNone(await self.remote.cached_tag(ALPINE, V1))
        self.assertIsNotNone(await self.remote.cached_page(ALPINE, "tags"))

    async def test_what_was_pushed_here_is_not_purged(self) -> None:
        blob = await self.blob(b"blob")
        digest = await self.put(manifest(b"{}", blobs=[blob]), "v1")
        for reference in (V1, digest, blob.digest, None):
            self.assertIsNone(await self.remote.purge(APP, reference))
        self.assertIsNotNone(await self.catalog.manifest(APP, V1))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))
        self.assertTrue(await self.remote.is_known(APP))

    async def test_an_image_that_was_pushed_to_stays_known(self) -> None:
        await self.put(b"{}", "v1")
        await self.fill(b"blob", APP)
        await self.assert_gone(await self.remote.purge(APP, None), b"blob")
        self.assertTrue(await self.remote.is_known(APP))
        self.assertEqual(["v1"], await self.catalog.tags(APP, None, None))

    async def test_what_was_pushed_here_keeps_what_is_purged_upstream(self) -> None:
        blob = await self.fill(b"blob")
        await self.cache(manifest(b"{}", blobs=[blob]), "v1")
        await self.blob(b"blob")
        await self.put(manifest(b"{}", blobs=[blob]), "v1")
        self.assertEqual([], await self.remote.purge(ALPINE, None))
        self.assertEqual([], await self.forgotten(blob.digest, Digest.of(b"{}")))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))
