"""What every catalog knows of remote images: blobs, and pages of lists."""

from __future__ import annotations

from artifactd.catalog.remote import CachedPage
from artifactd.oci.digest import Digest
from tests.contracts.catalog import APP, ConfirmFailed, not_confirmed
from tests.contracts.catalog_remote import ALPINE, BUSYBOX, ELSEWHERE, RemoteCatalogTestCase


class RemoteBlobContract(RemoteCatalogTestCase):
    async def test_a_blob_that_no_image_holds_is_not_stored(self) -> None:
        self.assertIsNone(await self.remote.stored_size(Digest.of(b"blob")))
        blob = await self.blob(b"blob")
        self.assertEqual(4, await self.remote.stored_size(blob.digest))
        await self.catalog.delete_blob(APP, blob.digest, allow_held=False)
        self.assertIsNone(await self.remote.stored_size(blob.digest))

    async def test_a_blob_of_any_image_of_any_repository_is_stored(self) -> None:
        for image in (APP, ALPINE):
            content = str(image).encode()
            blob = await self.fill(content, image)
            self.assertEqual(len(content), await self.remote.stored_size(blob.digest))

    async def test_a_manifest_is_not_stored_as_a_blob(self) -> None:
        digest = await self.cache(b"{}")
        self.assertIsNone(await self.remote.stored_size(digest))
        self.assertIsNone(await self.remote.link_blob(BUSYBOX, digest))
        self.assertIsNone(await self.catalog.blob_size(BUSYBOX, digest))

    async def test_a_stored_blob_is_linked_to_another_image(self) -> None:
        blob = await self.blob(b"blob")
        self.assertEqual(4, await self.remote.link_blob(ALPINE, blob.digest))
        self.assertEqual(4, await self.remote.link_blob(ALPINE, blob.digest))
        self.assertEqual(4, await self.catalog.blob_size(ALPINE, blob.digest))
        self.assertIsNone(await self.catalog.blob_size(BUSYBOX, blob.digest))

    async def test_a_blob_that_is_not_stored_is_not_linked(self) -> None:
        self.assertIsNone(await self.remote.link_blob(ALPINE, Digest.of(b"blob")))
        self.assertIsNone(await self.catalog.blob_size(ALPINE, Digest.of(b"blob")))

    async def test_a_blob_is_added_to_several_images_at_once(self) -> None:
        blob = await self.fill(b"blob", ALPINE, ELSEWHERE, ALPINE)
        for image, size in ((ALPINE, 4), (ELSEWHERE, 4), (BUSYBOX, None)):
            self.assertEqual(size, await self.catalog.blob_size(image, blob.digest))

    async def test_a_blob_whose_bytes_are_not_confirmed_is_added_to_none(self) -> None:
        digest, released = Digest.of(b"blob"), list[str]()
        await self.assert_raises(
            ConfirmFailed,
            self.remote.add_blobs(
                [ALPINE, BUSYBOX], digest, 4, not_confirmed, lambda: released.append("too early")
            ),
        )
        self.assertEqual([], released)
        self.assertIsNone(await self.catalog.blob_size(ALPINE, digest))
        self.assertEqual([digest], await self.forgotten(digest))

    async def test_its_staged_copy_is_confirmed_and_released_once(self) -> None:
        calls: list[str] = []
        await self.remote.add_blobs(
            [ALPINE, BUSYBOX],
            Digest.of(b"blob"),
            4,
            lambda: calls.append("confirm"),
            lambda: calls.append("release"),
        )
        self.assertEqual(["confirm", "release"], calls)

    async def test_a_blob_from_upstream_alone_makes_no_image_known(self) -> None:
        await self.fill(b"blob")
        self.assertFalse(await self.remote.is_known(ALPINE))
        self.assertEqual([], await self.catalog.images("docker.io", "", 10))


class CachedPageContract(RemoteCatalogTestCase):
    def page(self, body: bytes = b'{"tags":[]}', fetched_at: float = 1000.5) -> CachedPage:
        return CachedPage(body, {"last": "ä", "n": "2"}, "artifactType", fetched_at)

    async def test_a_page_is_found_as_it_was_fetched(self) -> None:
        for page in (self.page(), CachedPage(b"\x00\xff", None, None, 1.0)):
            await self.remote.cache_page(ALPINE, "tags?n=2", page)
            self.assertEqual(page, await self.remote.cached_page(ALPINE, "tags?n=2"))

    async def test_a_page_is_that_of_its_image_and_its_key(self) -> None:
        await self.remote.cache_page(ALPINE, "tags", self.page())
        self.assertIsNone(await self.remote.cached_page(ALPINE, "tags?n=2"))
        self.assertIsNone(await self.remote.cached_page(BUSYBOX, "tags"))

    async def test_a_page_alone_makes_no_image_known(self) -> None:
        await self.remote.cache_page(ALPINE, "tags", self.page())
        self.assertFalse(await self.remote.is_known(ALPINE))

    async def test_of_one_image_50_pages_are_kept_the_latest_ones(self) -> None:
        for image in (BUSYBOX, ALPINE, ELSEWHERE):
            await self.remote.cache_page(image, "0", self.page(fetched_at=0.0))
        for number in range(52):
            page = self.page(b"%d" % number, fetched_at=float(number))
            await self.remote.cache_page(ALPINE, str(number), page)
        for number in (0, 1):
            self.assertIsNone(await self.remote.cached_page(ALPINE, str(number)))
        for number in (2, 51):
            found = await self.remote.cached_page(ALPINE, str(number))
            assert found is not None
            self.assertEqual(b"%d" % number, found.body)
        for image in (BUSYBOX, ELSEWHERE):
            self.assertIsNotNone(await self.remote.cached_page(image, "0"))
