"""Manifests: checked, put, deleted."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from artifactd.catalog.manifests import MANY
from artifactd.catalog.records import Adoption, ManifestPut, ManifestRecord, TagMovement
from artifactd.oci.errors import (
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    Unsupported,
)
from artifactd.oci.manifest import OCI_MANIFEST, Descriptor, Manifest
from artifactd.oci.names import Digest
from tests.catalog.fixture import (
    APP,
    OTHER,
    V1,
    V2,
    CatalogTestCase,
    ConfirmFailed,
    confirmed,
    descriptor,
    index,
    manifest,
    not_confirmed,
)


class ManifestTests(CatalogTestCase):
    async def refused(self, error: type[RegistryError], put: ManifestPut) -> object:
        """
        Check and put are refused alike, and nothing has changed; the detail of the refusal.
        """
        checked = await self.assert_raises(error, self.catalog.check_manifest(put))
        raised = await self.assert_raises(error, self.catalog.put_manifest(put, confirmed))
        self.assertEqual(checked.detail, raised.detail)
        self.assertIsNone(await self.catalog.manifest(put.image, put.manifest.digest))
        return raised.detail

    async def accepted(self, put: ManifestPut) -> None:
        await self.catalog.check_manifest(put)
        self.assertIsNone(await self.catalog.manifest(put.image, put.manifest.digest))
        await self.catalog.put_manifest(put, confirmed)
        self.assertIsNotNone(await self.catalog.manifest(put.image, put.manifest.digest))

    async def test_a_manifest_is_found_by_digest_and_by_tag_as_it_was_put(self) -> None:
        subject = Digest.of(b"subject")
        annotations = {"org.example": "Grüße\x00", "": ""}
        put = manifest(b"{}", artifact_type="text/plain", subject=subject, annotations=annotations)
        digest = await self.put(put, "v1")
        record = ManifestRecord(digest, 2, OCI_MANIFEST, "text/plain", subject, annotations)
        self.assertEqual(record, await self.catalog.manifest(APP, digest))
        self.assertEqual(record, await self.catalog.manifest(APP, V1))

    async def test_a_manifest_is_in_its_image_alone(self) -> None:
        digest = await self.put(b"{}", "v1")
        self.assertIsNone(await self.catalog.manifest(OTHER, digest))
        self.assertIsNone(await self.catalog.manifest(OTHER, V1))
        self.assertIsNone(await self.catalog.manifest(APP, V2))

    async def test_a_blob_is_not_found_as_a_manifest(self) -> None:
        blob = await self.blob(b"blob")
        self.assertIsNone(await self.catalog.manifest(APP, blob.digest))

    async def test_a_manifest_pushed_again_has_the_newer_type_and_meaning(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(manifest(b"{}", blobs=[blob], annotations={"a": "1"}), "v1")
        digest = await self.put(manifest(b"{}", media_type="application/x+json"))
        self.assertEqual(
            ManifestRecord(digest, 2, "application/x+json"), await self.catalog.manifest(APP, V1)
        )
        # and no longer holds what it held under its older type
        await self.catalog.delete_blob(APP, blob.digest, allow_held=False)

    async def test_a_manifest_whose_bytes_are_not_confirmed_changes_nothing(self) -> None:
        put = ManifestPut(APP, manifest(b"{}"), (V1,))
        await self.assert_raises(ConfirmFailed, self.catalog.put_manifest(put, not_confirmed))
        self.assertIsNone(await self.catalog.manifest(APP, put.manifest.digest))
        self.assertIsNone(await self.catalog.tags(APP, None, None))
        self.assertEqual([], await self.catalog.tag_movements(APP, V1))

    async def test_absent_blobs_and_children_are_named(self) -> None:
        there = await self.blob(b"there")
        elsewhere = await self.blob(b"elsewhere", OTHER)
        missing = descriptor(b"missing")
        put = ManifestPut(APP, manifest(b"{}", blobs=[missing, there, elsewhere, missing]))
        self.assertEqual(
            {"digests": [str(missing.digest), str(elsewhere.digest)]},
            await self.refused(ManifestBlobUnknown, put),
        )
        child = descriptor(b"child")
        self.assertEqual(
            {"digests": [str(child.digest)]},
            await self.refused(ManifestBlobUnknown, ManifestPut(APP, index(b"[]", [child]))),
        )

    async def test_a_child_must_be_a_manifest_of_the_same_image(self) -> None:
        await self.put(b"child", image=OTHER)
        await self.blob(b"child")
        put = ManifestPut(APP, index(b"[]", [descriptor(b"child")]))
        await self.refused(ManifestBlobUnknown, put)
        await self.put(b"child")
        await self.accepted(put)

    async def test_a_blob_must_not_be_a_manifest(self) -> None:
        await self.put(b"child")
        put = ManifestPut(APP, manifest(b"{}", blobs=[descriptor(b"child")]))
        await self.refused(ManifestBlobUnknown, put)

    async def test_a_sparse_index_may_lack_what_it_lists(self) -> None:
        sparse = evolve(index(b"[]", [descriptor(b"child")]), blobs=(descriptor(b"blob"),))
        await self.refused(ManifestBlobUnknown, ManifestPut(APP, sparse))
        await self.catalog.check_manifest(ManifestPut(APP, sparse, sparse="images"))
        await self.accepted(ManifestPut(APP, sparse, sparse="indexes"))

    async def test_a_sparse_image_may_lack_its_blobs(self) -> None:
        sparse = manifest(b"{}", blobs=[descriptor(b"blob")])
        for setting in ("no", "indexes"):
            await self.refused(ManifestBlobUnknown, ManifestPut(APP, sparse, sparse=setting))
        await self.accepted(ManifestPut(APP, sparse, sparse="images"))

    async def test_a_sparse_image_may_not_lack_what_a_client_was_told_is_here(self) -> None:
        told, other = descriptor(b"told"), descriptor(b"other")
        adoption = Adoption(OTHER, promised=frozenset([told.digest]))
        put = ManifestPut(
            APP, manifest(b"{}", blobs=[told, other]), sparse="images", adoption=adoption
        )
        detail = await self.refused(ManifestBlobUnknown, put)
        self.assertEqual({"digests": [str(told.digest)]}, detail)

    async def test_optional_content_and_subjects_may_be_absent(self) -> None:
        foreign = descriptor(b"foreign", optional=True)
        put = manifest(b"{}", blobs=[foreign], subject=Digest.of(b"subject"))
        await self.accepted(ManifestPut(APP, put))

    async def test_a_size_that_is_not_that_of_the_content_is_refused(self) -> None:
        await self.blob(b"blob")
        await self.put(b"child")
        lies = [
            manifest(b"1", blobs=[descriptor(b"blob", 5)]),
            manifest(b"2", blobs=[descriptor(b"blob", 5, optional=True)]),
            manifest(b"3", blobs=[descriptor(b"blob"), descriptor(b"blob", 5)]),
            index(b"4", [descriptor(b"child", 6)]),
        ]
        for lie in lies:
            await self.refused(ManifestInvalid, ManifestPut(APP, lie, sparse="indexes"))

    async def test_two_sizes_for_one_absent_digest_are_refused(self) -> None:
        twice = [descriptor(b"absent", 1, optional=True), descriptor(b"absent", 2, optional=True)]
        await self.refused(ManifestInvalid, ManifestPut(APP, manifest(b"{}", blobs=twice)))
        await self.refused(ManifestInvalid, ManifestPut(APP, index(b"[]", twice), sparse="indexes"))

    async def test_a_blob_may_be_listed_twice(self) -> None:
        blob = await self.blob(b"blob")
        await self.accepted(ManifestPut(APP, manifest(b"{}", blobs=[blob, blob])))

    async def test_an_index_may_list_40000_children(self) -> None:
        children = [descriptor(b"%d" % number) for number in range(40_000)]
        absent = ManifestPut(APP, index(b"[]", children))
        error = await self.assert_raises(ManifestBlobUnknown, self.catalog.check_manifest(absent))
        self.assertEqual({"digests": [str(child.digest) for child in children]}, error.detail)
        await self.accepted(ManifestPut(APP, index(b"[]", children), sparse="indexes"))


class ManifestDeletionTests(CatalogTestCase):
    async def delete(self, digest: Digest, *, allow_held: bool = False) -> None:
        await self.catalog.delete_manifest(APP, digest, allow_held=allow_held, actor="bob")

    async def test_a_deleted_manifest_takes_all_its_tags_along(self) -> None:
        digest = await self.put(b"1", "v1", "v2")
        await self.put(b"2", "v3")
        await self.put(b"1", "v1", image=OTHER)
        self.time = 2000.0
        await self.delete(digest)
        self.assertIsNone(await self.catalog.manifest(APP, digest))
        self.assertEqual(["v3"], await self.catalog.tags(APP, None, None))
        self.assertIsNotNone(await self.catalog.manifest(OTHER, V1))
        for tag in (V1, V2):
            journal = await self.catalog.tag_movements(APP, tag)
            self.assertEqual(TagMovement(tag.text, "bob", 2000.0, digest, None), journal[-1])

    async def test_a_manifest_that_is_not_there_cannot_be_deleted(self) -> None:
        await self.blob(b"blob")
        await self.assert_raises(NameUnknown, self.delete(Digest.of(b"1")))
        await self.put(b"2")
        await self.put(b"1", image=OTHER)
        await self.assert_raises(ManifestUnknown, self.delete(Digest.of(b"1")))

    async def test_a_child_of_an_index_is_not_deleted_and_the_index_is_named(self) -> None:
        child = await self.put(b"child", "v1")
        holder = await self.put(index(b"[]", [descriptor(b"child")]))
        error = await self.assert_raises(Unsupported, self.delete(child))
        self.assertEqual({"digest": str(child), "heldBy": [str(holder)]}, error.full_detail)
        self.assertIsNotNone(await self.catalog.manifest(APP, V1))

    async def test_a_child_goes_after_its_index_or_where_that_is_allowed(self) -> None:
        children: list[Descriptor] = [descriptor(b"1"), descriptor(b"2")]
        await self.put(b"1")
        await self.put(b"2")
        holder = await self.put(index(b"[]", children))
        await self.delete(children[0].digest, allow_held=True)
        await self.delete(holder)
        await self.delete(children[1].digest)
        for child in children:
            self.assertIsNone(await self.catalog.manifest(APP, child.digest))

    async def test_a_referrer_does_not_hold_its_subject(self) -> None:
        subject = await self.put(b"subject")
        await self.put(manifest(b"referrer", subject=subject))
        await self.delete(subject)
        self.assertIsNone(await self.catalog.manifest(APP, subject))

    async def test_the_blobs_of_a_deleted_manifest_stay_and_are_held_no_more(self) -> None:
        blob = await self.blob(b"blob")
        digest = await self.put(manifest(b"{}", blobs=[blob]))
        await self.delete(digest)
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))
        await self.catalog.delete_blob(APP, blob.digest, allow_held=False)

    async def test_a_deleted_manifest_can_be_put_again(self) -> None:
        digest = await self.put(b"1", "v1")
        await self.delete(digest)
        await self.put(b"1", "v1")
        self.assertEqual(["v1"], await self.catalog.tags(APP, None, None))
        self.assertEqual(3, len(await self.catalog.tag_movements(APP, V1)))


class LongWriteTests(CatalogTestCase):
    """Manifests of many entries."""

    def long_writes(self) -> list[str | None]:
        """The owners of long writes from now on, ``None`` for short ones."""
        told: list[str | None] = []
        write = self.catalog.database.write

        def noted(*args: Any, long: str | None = None, **how: Any) -> Any:
            told.append(long)
            return write(*args, long=long, **how)

        self.patch(self.catalog.database, "write", noted)
        return told

    def large(self, entries: int) -> Manifest:
        """An index of ``entries`` manifests that are not here."""
        children = [descriptor(b"%d" % number) for number in range(entries)]
        return index(b"index of %d" % entries, children)

    async def test_of_many_entries_put_and_delete_are_long_writes_of_the_owner(self) -> None:
        await self.put(b"known", "v1")
        told = self.long_writes()
        for content in (self.large(MANY + 1), self.large(MANY)):
            put = ManifestPut(APP, content, sparse="indexes", actor="mallory")
            await self.catalog.put_manifest(put, confirmed)
            await self.catalog.delete_manifest(
                APP, content.digest, allow_held=False, actor="mallory"
            )
        self.assertEqual(["mallory", "mallory", None, None], told)

    async def test_one_that_is_there_already_is_not_written_again(self) -> None:
        put = ManifestPut(APP, self.large(100), sparse="indexes", actor="ann")
        await self.catalog.put_manifest(put, confirmed)
        database = self.catalog.database
        before = await database.write(lambda db: db.total_changes)
        await self.catalog.put_manifest(put, confirmed)
        self.assertLess(await database.write(lambda db: db.total_changes) - before, 10)
