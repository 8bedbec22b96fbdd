"""The last pulls of tags and manifests, as the catalog has them."""

from __future__ import annotations

from artifactd.catalog.overview import Overview
from artifactd.catalog.retention import HOUR, RetentionCatalog
from artifactd.oci.names import Digest, ImageName, Tag
from tests.catalog.fixture import ALPINE, APP, V1, V2, RemoteCatalogTestCase


class KeepingTestCase(RemoteCatalogTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.retention = RetentionCatalog(self.catalog.database)
        self.overview = Overview(self.catalog.database)

    async def pull(self, reference: Tag | Digest, image: ImageName = APP) -> bool:
        """Note a pull now; whether what was pulled is there."""
        pulled = image, reference
        return pulled not in await self.retention.note_pulls({pulled: self.time})

    async def pulled(self, image: ImageName = APP) -> dict[str, float | None]:
        """When each tag was last pulled."""
        return {each.tag: each.pulled for each in await self.overview.tags(image, None, 100)}


class PullTests(KeepingTestCase):
    async def test_a_pull_by_tag_counts_for_that_tag(self) -> None:
        digest = await self.put(b"1", "v1", "v2")
        self.assertTrue(await self.pull(V1))
        self.assertEqual({"v1": 1000.0, "v2": None}, await self.pulled())
        self.assertEqual(1000.0, (await self.overview.manifest(APP, digest)).pulled)
        (image,) = await self.overview.images([APP])
        self.assertEqual(1000.0, image.pulled)

    async def test_a_pull_by_digest_counts_for_every_tag_and_for_no_other_manifest(self) -> None:
        await self.put(b"other", "other")
        digest = await self.put(b"1", "v1", "v2")
        await self.pull(digest)
        self.assertEqual({"other": None, "v1": 1000.0, "v2": 1000.0}, await self.pulled())
        self.time += 2 * HOUR
        await self.pull(V1)
        self.assertEqual({"other": None, "v1": self.time, "v2": 1000.0}, await self.pulled())
        (image,) = await self.overview.images([APP])
        self.assertEqual(self.time, image.pulled)

    async def test_a_row_is_written_once_an_hour(self) -> None:
        digest = await self.put(b"1", "v1")
        for reference in V1, digest:
            await self.pull(reference)
        self.time += HOUR - 1
        self.assertTrue(await self.pull(V1))
        self.assertTrue(await self.pull(digest))
        self.assertEqual({"v1": 1000.0}, await self.pulled())
        self.time += 1
        await self.pull(V1)
        self.assertEqual({"v1": self.time}, await self.pulled())

    async def test_what_has_gone_is_told(self) -> None:
        digest = await self.put(b"1", "v1")
        self.assertFalse(await self.pull(V2))
        self.assertFalse(await self.pull(V1, ImageName("local", "absent")))
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="test")
        self.assertFalse(await self.pull(V1))
        self.assertFalse(await self.pull(digest))

    async def test_pulls_cool_no_cached_read(self) -> None:
        await self.put(b"1", "v1")
        versions = self.catalog.database.versions
        before = versions(str(APP))
        self.assertIsNotNone(before)
        await self.pull(V1)
        self.assertEqual({"v1": 1000.0}, await self.pulled())
        self.assertEqual(before, versions(str(APP)))

    async def test_images_of_an_upstream_have_times_of_their_own(self) -> None:
        digest = await self.cache(b"1", "3")
        self.time += 2 * HOUR
        await self.pull(digest, ALPINE)
        self.assertEqual({"3": 1000.0}, await self.pulled(ALPINE))
