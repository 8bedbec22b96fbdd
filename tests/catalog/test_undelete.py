"""Bringing back what was deleted."""

from __future__ import annotations

from artifactd.catalog.garbage import Restored
from artifactd.catalog.records import TagMovement
from artifactd.oci.errors import ManifestUnknown, Unsupported
from artifactd.oci.manifest import Descriptor
from artifactd.oci.names import Digest, ImageName, Reference, Tag
from tests.catalog.fixture import (
    APP,
    EVER,
    OTHER,
    V1,
    V2,
    GarbageCatalogTestCase,
    index,
    manifest,
)

DIGEST = Digest.of(b"{}")


class UndeleteTests(GarbageCatalogTestCase):
    async def undelete(
        self, reference: Reference | None = None, image: ImageName = APP
    ) -> Restored:
        return await self.garbage.undelete(image, reference, "carol")

    async def image(self, *tags: str) -> Descriptor:
        """A manifest with annotations, and the blob that it holds."""
        blob = await self.blob(b"blob")
        pushed = manifest(b"{}", blobs=[blob], annotations={"a": "b"}, artifact_type="text/x")
        await self.put(pushed, *tags)
        return blob

    async def test_a_manifest_comes_back_as_it_was_with_its_tags_and_blobs(self) -> None:
        blob = await self.image("v1", "v2")
        before = await self.catalog.manifest(APP, V1)
        await self.delete(DIGEST)
        await self.links(EVER)
        self.assertEqual([], await self.bytes())
        self.assertEqual(Restored((DIGEST,), ("v1", "v2")), await self.undelete(DIGEST))
        for reference in (V1, V2, DIGEST):
            self.assertEqual(before, await self.catalog.manifest(APP, reference))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))
        self.assertEqual([], await self.links(EVER))

    async def test_what_tags_go_through_is_journalled(self) -> None:
        await self.image("v1")
        await self.delete(DIGEST)
        self.time += 1
        await self.undelete(DIGEST)
        self.assertEqual(
            [
                TagMovement("v1", "anne", 1000.0, None, DIGEST),
                TagMovement("v1", "bob", 1000.0, DIGEST, None),
                TagMovement("v1", "carol", 1001.0, None, DIGEST),
            ],
            await self.catalog.tag_movements(APP, V1),
        )

    async def test_tags_that_were_deleted_by_themselves_stay_so_when_their_manifest_comes_back(
        self,
    ) -> None:
        await self.image("v1", "v2")
        await self.catalog.delete_tag(APP, V2, actor="bob")
        self.time += 1
        await self.delete(DIGEST)
        self.assertEqual(Restored((DIGEST,), ("v1",)), await self.undelete(DIGEST))
        self.assertIsNone(await self.catalog.manifest(APP, V2))
        # Neither does a child bring its own back.
        child = await self.put(manifest(b"child"), "child")
        await self.catalog.delete_tag(APP, Tag.parse("child"), actor="bob")
        holder = await self.put(index(b"[]", [Descriptor("text/x", child, 5)]), "index")
        self.time += 1
        await self.delete(holder)
        await self.delete(child)
        restored = await self.undelete(holder)
        self.assertEqual(({holder, child}, ("index",)), (set(restored.manifests), restored.tags))

    async def test_a_tag_comes_back(self) -> None:
        await self.image("v1", "v2")
        await self.catalog.delete_tag(APP, V1, actor="bob")
        self.assertEqual(Restored(tags=("v1",)), await self.undelete(V1))
        record = await self.catalog.manifest(APP, V1)
        assert record is not None
        self.assertEqual(DIGEST, record.digest)

    async def test_a_tag_comes_back_with_its_manifest_and_without_the_others(self) -> None:
        await self.image("v1", "v2")
        await self.delete(DIGEST)
        self.assertEqual(Restored((DIGEST,), ("v1",)), await self.undelete(V1))
        self.assertIsNone(await self.catalog.manifest(APP, V2))

    async def test_a_tag_comes_back_whose_manifest_was_collected(self) -> None:
        await self.image("v1")
        await self.catalog.delete_tag(APP, V1, actor="bob")
        self.assertEqual([str(DIGEST)], await self.untagged())
        self.assertEqual(Restored((DIGEST,), ("v1",)), await self.undelete(V1))

    async def test_a_tag_that_points_at_something_else_stays(self) -> None:
        await self.image("v1", "v2")
        await self.delete(DIGEST)
        new = await self.put(b"new", "v1")
        await self.assert_raises(Unsupported, self.undelete(V1))
        restored = await self.undelete(DIGEST)
        self.assertEqual(Restored((DIGEST,), ("v2",), occupied=("v1",)), restored)
        record = await self.catalog.manifest(APP, V1)
        assert record is not None
        self.assertEqual(new, record.digest)

    async def test_a_tag_that_was_pushed_again_as_it_was_needs_nothing(self) -> None:
        await self.image("v1")
        await self.catalog.delete_tag(APP, V1, actor="bob")
        await self.put(b"{}", "v1")
        await self.assert_raises(ManifestUnknown, self.undelete(V1))
        await self.assert_raises(ManifestUnknown, self.undelete())

    async def test_an_index_comes_back_with_its_children_and_what_refers_to_them(self) -> None:
        child = await self.put(manifest(b"child"))
        signature = await self.put(manifest(b"signature", subject=child))
        holder = await self.put(index(b"[]", [Descriptor("text/x", child, 5)]), "v1")
        await self.delete(holder)
        self.time += 1
        self.assertEqual([str(child)], await self.untagged())
        self.assertEqual([str(signature)], await self.untagged())
        restored = await self.undelete(V1)
        self.assertEqual({holder, child, signature}, set(restored.manifests))
        self.assertEqual([], await self.untagged())

    async def test_children_that_went_along_come_back_with_their_index(self) -> None:
        child = await self.put(manifest(b"child"))
        inner = await self.put(index(b"[   ]", [Descriptor("text/x", child, 5)]))
        signature = await self.put(manifest(b"signature", subject=inner))
        holder = await self.put(index(b"[]", [Descriptor("text/x", inner, 5)]), "v1")
        for reference in (holder, V1):
            await self.delete(holder)
            self.time += 1
            self.assertEqual([str(inner)], await self.orphaned())
            self.time += 1
            self.assertEqual({str(child), str(signature)}, set(await self.orphaned()))
            restored = await self.undelete(reference)
            self.assertEqual({holder, inner, child, signature}, set(restored.manifests))
            self.assertEqual([], await self.orphaned())

    async def test_children_that_have_not_gone_yet_stay_with_their_index_that_is_back(self) -> None:
        child = await self.put(manifest(b"child"))
        holder = await self.put(index(b"[]", [Descriptor("text/x", child, 5)]), "v1")
        await self.delete(holder)
        self.assertEqual((holder,), (await self.undelete(V1)).manifests)
        self.assertEqual([], await self.orphaned())
        await self.catalog.delete_tag(APP, V1, actor="bob")
        self.assertEqual([], await self.orphaned())

    async def test_a_child_that_was_deleted_before_its_index_stays_so(self) -> None:
        child = await self.put(manifest(b"child"))
        holder = await self.put(index(b"[]", [Descriptor("text/x", child, 5)]))
        await self.catalog.delete_manifest(APP, child, allow_held=True, actor="bob")
        self.time += 1
        await self.delete(holder)
        self.assertEqual(Restored((holder,)), await self.undelete(holder))

    async def test_a_blob_comes_back(self) -> None:
        blob = await self.blob(b"blob")
        await self.catalog.delete_blob(APP, blob.digest, allow_held=False, actor="bob")
        self.assertEqual([], await self.bytes())
        self.assertEqual(Restored(blobs=(blob.digest,)), await self.undelete(blob.digest))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))
        self.assertEqual([(APP, str(blob.digest))], await self.links(self.time))

    async def test_all_of_an_image_comes_back(self) -> None:
        blob = await self.image("v1")
        await self.delete(DIGEST)
        await self.catalog.delete_blob(APP, blob.digest, allow_held=False, actor="bob")
        self.assertEqual(Restored((DIGEST,), ("v1",), (blob.digest,)), await self.undelete())
        await self.assert_raises(ManifestUnknown, self.undelete())

    async def test_a_released_image_is_known_again(self) -> None:
        await self.image("v1")
        await self.delete(DIGEST)
        await self.remote.release_image(APP)
        await self.undelete()
        self.assertTrue(await self.remote.is_known(APP))
        self.assertIsNotNone(await self.catalog.blob_size(APP, Digest.of(b"blob")))

    async def test_a_blob_that_the_image_had_no_more_does_not_come_from_another(self) -> None:
        blob = await self.image("v1")
        await self.catalog.delete_blob(APP, blob.digest, allow_held=True, actor="bob")
        await self.blob(b"blob", OTHER)
        await self.delete(DIGEST)
        await self.undelete(DIGEST)
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))

    async def test_when_its_time_is_over_it_is_gone_with_its_bytes(self) -> None:
        blob = await self.image("v1")
        await self.delete(DIGEST)
        self.assertEqual([], await self.deleted(self.time - 1))
        self.assertEqual({"v1", str(DIGEST)}, set(await self.deleted(self.time)))
        for reference in (V1, DIGEST, None):
            await self.assert_raises(ManifestUnknown, self.undelete(reference))
        await self.links(EVER)
        self.assertEqual({str(DIGEST), str(blob.digest)}, set(await self.bytes()))

    async def test_what_was_pushed_again_is_not_kept_twice(self) -> None:
        blob = await self.image("v1")
        await self.delete(DIGEST)
        await self.image()
        await self.assert_raises(ManifestUnknown, self.undelete(DIGEST))
        await self.delete(DIGEST)
        await self.deleted()
        await self.links(EVER)
        self.assertEqual({str(DIGEST), str(blob.digest)}, set(await self.bytes()))

    async def test_what_was_never_there_does_not_come_back(self) -> None:
        for image in (APP, OTHER):
            await self.assert_raises(ManifestUnknown, self.undelete(V1, image))
        await self.image("v1")
        await self.assert_raises(ManifestUnknown, self.undelete(V1))
