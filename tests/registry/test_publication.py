"""Publication, over a real store."""

from __future__ import annotations

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.content import publish
from tests.catalog.fixture import REACTOR, new_catalog
from tests.store.fixture import StoreTestCase

IMAGE = ImageName("local", "hello")
DIGEST = Digest.of(b"blob")


class PublicationTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.catalog = Catalog(Database(new_catalog(self), REACTOR))
        self.addCleanup(self.catalog.database.close)

    async def publish(self, failures: int) -> None:
        """Publish a blob; its row can't be written at first, so many times."""
        staged = await self.stores.blobs.stage(DIGEST, b"blob")
        left = failures

        async def insert() -> None:
            nonlocal left
            if left:
                left -= 1
                raise Unavailable("the catalog is locked")
            await self.catalog.add_blob(IMAGE, DIGEST, 4, staged.confirm, staged.release)

        await publish(staged, self.catalog, insert)

    async def test_a_catalog_that_is_locked_for_a_while_costs_no_upload(self) -> None:
        await self.publish(failures=2)
        self.assertEqual(4, await self.catalog.blob_size(IMAGE, DIGEST))
        self.assertEqual(1, len(self.below("blobs")))

    async def test_one_that_stays_locked_leaves_neither_row_nor_bytes(self) -> None:
        await self.assert_raises(Unavailable, self.publish(failures=99))
        self.assertIsNone(await self.catalog.blob_size(IMAGE, DIGEST))
        self.assertEqual([], self.below("blobs") + self.below("staging"))
