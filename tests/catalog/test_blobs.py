"""Blobs of images: pushed, mounted, deleted."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

from artifactd.catalog.records import UploadEnded, UploadRecord
from artifactd.catalog.repair import RepairCatalog
from artifactd.oci.errors import BlobUnknown, Unsupported
from artifactd.oci.names import Algorithm, Digest, ImageName
from tests.catalog.fixture import (
    APP,
    OTHER,
    CatalogTestCase,
    ConfirmFailed,
    add_upload,
    confirmed,
    manifest,
    not_confirmed,
)


class BlobTests(CatalogTestCase):
    async def test_an_image_holds_no_blob_at_first(self) -> None:
        self.assertIsNone(await self.catalog.blob_size(APP, Digest.of(b"blob")))

    async def test_an_added_blob_has_its_size_in_its_image_alone(self) -> None:
        blob = await self.blob(b"blob")
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))
        self.assertIsNone(await self.catalog.blob_size(OTHER, blob.digest))

    async def test_an_empty_blob_has_size_0(self) -> None:
        blob = await self.blob(b"")
        self.assertEqual(0, await self.catalog.blob_size(APP, blob.digest))

    async def test_a_blob_may_be_larger_than_4_gib(self) -> None:
        digest = Digest.of(b"imagine")
        await self.catalog.add_blob(APP, digest, 2**40, confirmed)
        self.assertEqual(2**40, await self.catalog.blob_size(APP, digest))

    async def test_sha512_digests_are_addresses_too(self) -> None:
        digest = Digest.of(b"blob", Algorithm.SHA512)
        await self.catalog.add_blob(APP, digest, 4, confirmed)
        self.assertEqual(4, await self.catalog.blob_size(APP, digest))
        self.assertIsNone(await self.catalog.blob_size(APP, Digest.of(b"blob")))

    async def test_adding_a_blob_again_changes_nothing(self) -> None:
        blob = await self.blob(b"blob")
        await self.blob(b"blob")
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))

    async def test_adding_a_blob_ends_its_upload_session(self) -> None:
        upload = f"{uuid4()}.seal"
        await self.catalog.add_blob(APP, Digest.of(b"blob"), 4, confirmed, upload=upload)
        self.assertTrue(await self.catalog.is_upload_ended(upload))
        self.assertFalse(await self.catalog.end_upload(upload))

    async def test_a_blob_of_a_session_that_has_ended_is_not_added(self) -> None:
        record = UploadRecord(str(uuid4()), APP, Algorithm.SHA256, 1.0)
        await self.catalog.database.write(partial(add_upload, record=record))
        released: list[str] = []
        for upload in (f"{uuid4()}.seal", record.id):
            await self.catalog.end_upload(upload)
            adding = self.catalog.add_blob(
                APP, Digest.of(b"blob"), 4, confirmed, lambda: released.append("it"), upload
            )
            await self.assert_raises(UploadEnded, adding)
        self.assertIsNone(await self.catalog.blob_size(APP, Digest.of(b"blob")))
        self.assertEqual([], released)

    async def test_a_blob_whose_bytes_are_not_confirmed_is_not_added(self) -> None:
        digest, upload = Digest.of(b"blob"), f"{uuid4()}.seal"
        await self.assert_raises(
            ConfirmFailed, self.catalog.add_blob(APP, digest, 4, not_confirmed, upload=upload)
        )
        self.assertIsNone(await self.catalog.blob_size(APP, digest))
        self.assertFalse(await self.catalog.is_upload_ended(upload))

    async def test_the_staged_copy_is_released_when_the_row_is_written_and_only_then(self) -> None:
        calls: list[str] = []

        def release() -> None:
            calls.append("release")

        digest = Digest.of(b"blob")
        await self.assert_raises(
            ConfirmFailed, self.catalog.add_blob(APP, digest, 4, not_confirmed, release)
        )
        self.assertEqual([], calls)
        await self.catalog.add_blob(APP, digest, 4, lambda: calls.append("confirm"), release)
        self.assertEqual(["confirm", "release"], calls)

    async def test_a_copy_that_cannot_be_released_changes_nothing(self) -> None:
        digest = Digest.of(b"blob")
        await self.catalog.add_blob(APP, digest, 4, confirmed, not_confirmed)
        self.assertEqual(1, len(self.flushLoggedErrors(ConfirmFailed)))
        self.assertEqual(4, await self.catalog.blob_size(APP, digest))

    async def test_a_mounted_blob_is_held_by_both_images(self) -> None:
        blob = await self.blob(b"blob", OTHER)
        self.assertEqual(4, await self.catalog.mount_blob(APP, blob.digest, OTHER))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))
        self.assertEqual(4, await self.catalog.blob_size(OTHER, blob.digest))

    async def test_a_blob_that_the_source_does_not_hold_is_not_mounted(self) -> None:
        blob = await self.blob(b"blob", OTHER)
        source = ImageName("local", "third")
        self.assertIsNone(await self.catalog.mount_blob(APP, blob.digest, source))
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))

    async def test_without_a_source_a_blob_is_mounted_from_any_image_of_the_repository(
        self,
    ) -> None:
        blob = await self.blob(b"blob", OTHER)
        self.assertEqual(4, await self.catalog.mount_blob(APP, blob.digest, None))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))

    async def test_without_a_source_a_blob_of_another_repository_is_not_mounted(self) -> None:
        elsewhere = ImageName("elsewhere", "app")
        blob = await self.blob(b"blob", elsewhere)
        self.assertIsNone(await self.catalog.mount_blob(APP, blob.digest, None))
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))
        self.assertEqual(4, await self.catalog.mount_blob(APP, blob.digest, elsewhere))

    async def test_a_blob_that_no_image_holds_any_more_is_not_mounted(self) -> None:
        blob = await self.blob(b"blob", OTHER)
        await self.catalog.delete_blob(OTHER, blob.digest, allow_held=False)
        self.assertIsNone(await self.catalog.mount_blob(APP, blob.digest, None))

    async def test_a_blob_whose_bytes_are_lost_is_not_mounted(self) -> None:
        blob = await self.blob(b"blob")
        await RepairCatalog(self.catalog.database).lose_blob(blob.digest, lambda: True)
        for source in (None, APP):
            self.assertIsNone(await self.catalog.mount_blob(OTHER, blob.digest, source))
        self.assertIsNone(await self.catalog.promise_blob(APP, blob.digest))
        await self.blob(b"blob")  # pushed again
        self.assertEqual(4, await self.catalog.mount_blob(OTHER, blob.digest, None))

    async def test_a_manifest_is_not_held_as_a_blob(self) -> None:
        digest = await self.put(b"{}")
        self.assertIsNone(await self.catalog.blob_size(APP, digest))
        self.assertIsNone(await self.catalog.mount_blob(OTHER, digest, None))

    async def test_a_deleted_blob_goes_from_its_image_alone(self) -> None:
        blob = await self.blob(b"blob")
        await self.blob(b"blob", OTHER)
        await self.catalog.delete_blob(APP, blob.digest, allow_held=False)
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))
        self.assertEqual(4, await self.catalog.blob_size(OTHER, blob.digest))

    async def test_a_blob_that_is_not_there_cannot_be_deleted(self) -> None:
        blob = await self.blob(b"blob", OTHER)
        for image in (APP, ImageName("local", "nowhere")):
            await self.assert_raises(
                BlobUnknown, self.catalog.delete_blob(image, blob.digest, allow_held=True)
            )

    async def test_a_held_blob_is_not_deleted_and_its_holders_are_named(self) -> None:
        blob = await self.blob(b"blob")
        holders = [await self.put(manifest(b"%d" % n, blobs=[blob])) for n in range(12)]
        error = await self.assert_raises(
            Unsupported, self.catalog.delete_blob(APP, blob.digest, allow_held=False)
        )
        self.assertEqual({"digest": str(blob.digest)}, error.detail)
        detail = error.full_detail
        assert isinstance(detail, dict)
        self.assertEqual(10, len(set(detail["heldBy"])))
        self.assertLessEqual(set(detail["heldBy"]), {str(holder) for holder in holders})
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))

    async def test_a_held_blob_is_deleted_where_that_is_allowed(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(manifest(b"{}", blobs=[blob]))
        await self.catalog.delete_blob(APP, blob.digest, allow_held=True)
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))

    async def test_a_manifest_of_another_image_does_not_hold_a_blob(self) -> None:
        blob = await self.blob(b"blob", OTHER)
        await self.put(manifest(b"{}", blobs=[blob]), image=OTHER)
        await self.blob(b"blob")
        await self.catalog.delete_blob(APP, blob.digest, allow_held=False)
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))

    async def test_only_bytes_that_no_row_needs_are_forgotten(self) -> None:
        unlinked: list[Digest] = []

        async def forget(digest: Digest) -> bool:
            return await self.catalog.forget_blob(digest, lambda: unlinked.append(digest))

        stray, blob, pushed = Digest.of(b"x"), await self.blob(b"blob"), await self.put(b"{}")
        await self.catalog.delete_blob(APP, blob.digest, allow_held=False)
        self.assertEqual(
            [True, False, False], [await forget(d) for d in (stray, blob.digest, pushed)]
        )
        self.assertEqual([stray], unlinked)
