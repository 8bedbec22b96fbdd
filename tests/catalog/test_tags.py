"""Tags: when they move, and the journal of their movements."""

from __future__ import annotations

from artifactd.catalog.records import ManifestPut, Precondition, TagMovement
from artifactd.oci.errors import (
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
    PreconditionFailed,
    TagExists,
)
from artifactd.oci.names import Digest
from tests.catalog.fixture import (
    APP,
    OTHER,
    V1,
    V2,
    CatalogTestCase,
    confirmed,
    descriptor,
    manifest,
)


class CreateOnlyTests(CatalogTestCase):
    async def test_what_came_since_it_was_asked_for_is_not_moved(self) -> None:
        put = ManifestPut(APP, manifest(b"2"), (V1, V2), create_only="access[0]")
        await self.catalog.check_manifest(put)
        first = await self.put(b"1", "v2")
        error = await self.assert_raises(TagExists, self.catalog.put_manifest(put, confirmed))
        self.assertEqual(
            {"reference": "v2", "rule": "access[0]", "current": str(first)}, error.full_detail
        )
        self.assertEqual(["v2"], await self.catalog.tags(APP, None, None))


class PreconditionTests(CatalogTestCase):
    def precondition(self, content: bytes) -> Precondition:
        return Precondition(if_match=(f'"{Digest.of(content)}"',))

    async def test_a_tag_moves_only_from_where_it_was_expected(self) -> None:
        await self.put(b"1", "v1")
        put = ManifestPut(APP, manifest(b"2"), (V1,), self.precondition(b"1"))
        await self.catalog.check_manifest(put)
        await self.catalog.put_manifest(put, confirmed)
        error = await self.assert_raises(
            PreconditionFailed, self.catalog.put_manifest(put, confirmed)
        )
        self.assertEqual({"reference": "v1", "current": str(Digest.of(b"2"))}, error.full_detail)

    async def test_an_absent_tag_matches_nothing(self) -> None:
        for condition in (Precondition(if_match=("*",)), self.precondition(b"1")):
            put = ManifestPut(APP, manifest(b"1"), (V1,), condition)
            await self.assert_raises(PreconditionFailed, self.catalog.check_manifest(put))
            await self.assert_raises(PreconditionFailed, self.catalog.put_manifest(put, confirmed))
        self.assertIsNone(await self.catalog.tags(APP, None, None))

    async def test_a_tag_is_created_only_once(self) -> None:
        put = ManifestPut(APP, manifest(b"1"), (V1,), Precondition(if_none_match=("*",)))
        await self.catalog.put_manifest(put, confirmed)
        await self.assert_raises(PreconditionFailed, self.catalog.put_manifest(put, confirmed))

    async def test_of_several_tags_all_move_or_none(self) -> None:
        old, new = await self.put(b"1", "v1"), manifest(b"2")
        await self.put(b"other", "v2")
        put = ManifestPut(APP, new, (V1, V2), self.precondition(b"1"))
        await self.assert_raises(PreconditionFailed, self.catalog.put_manifest(put, confirmed))
        found = await self.catalog.manifest(APP, V1)
        assert found is not None
        self.assertEqual(old, found.digest)
        self.assertIsNone(await self.catalog.manifest(APP, new.digest))
        self.assertEqual(1, len(await self.catalog.tag_movements(APP, V1)))

    async def test_without_tags_it_is_the_manifest_that_must_match(self) -> None:
        absent = Precondition(if_none_match=("*",))
        await self.catalog.put_manifest(
            ManifestPut(APP, manifest(b"1"), precondition=absent), confirmed
        )
        await self.assert_raises(
            PreconditionFailed,
            self.catalog.check_manifest(ManifestPut(APP, manifest(b"1"), precondition=absent)),
        )
        present = ManifestPut(APP, manifest(b"1"), precondition=Precondition(if_match=("*",)))
        await self.catalog.check_manifest(present)

    async def test_content_is_looked_at_before_the_precondition(self) -> None:
        lacking = manifest(b"1", blobs=[descriptor(b"missing")])
        put = ManifestPut(APP, lacking, (V1,), Precondition(if_match=("*",)))
        await self.assert_raises(ManifestBlobUnknown, self.catalog.check_manifest(put))


class TagTests(CatalogTestCase):
    async def test_every_movement_is_journalled_with_who_and_when(self) -> None:
        first = await self.put(b"1", "v1", actor="anne")
        self.time = 2000.0
        second = await self.put(b"2", "v1", actor="bob")
        self.time = 3000.0
        await self.catalog.delete_tag(APP, V1, actor="carol")
        self.assertEqual(
            [
                TagMovement("v1", "anne", 1000.0, None, first),
                TagMovement("v1", "bob", 2000.0, first, second),
                TagMovement("v1", "carol", 3000.0, second, None),
            ],
            await self.catalog.tag_movements(APP, V1),
        )

    async def test_a_tag_put_where_it_is_does_not_move(self) -> None:
        await self.put(b"1", "v1")
        await self.put(b"1", "v1", "v1", actor="bob")
        self.assertEqual(1, len(await self.catalog.tag_movements(APP, V1)))

    async def test_a_tag_has_a_journal_of_its_own(self) -> None:
        await self.put(b"1", "v1")
        await self.put(b"1", "v1", image=OTHER)
        self.assertEqual([], await self.catalog.tag_movements(APP, V2))
        self.assertEqual(1, len(await self.catalog.tag_movements(APP, V1)))

    async def test_a_deleted_tag_leaves_its_manifest(self) -> None:
        digest = await self.put(b"1", "v1", "v2")
        await self.catalog.delete_tag(APP, V1, actor="anne")
        self.assertIsNone(await self.catalog.manifest(APP, V1))
        self.assertIsNotNone(await self.catalog.manifest(APP, V2))
        self.assertIsNotNone(await self.catalog.manifest(APP, digest))

    async def test_a_tag_that_is_not_there_cannot_be_deleted(self) -> None:
        await self.blob(b"blob")  # which makes no image known
        await self.assert_raises(NameUnknown, self.catalog.delete_tag(APP, V1, actor="anne"))
        await self.put(b"1")
        await self.assert_raises(ManifestUnknown, self.catalog.delete_tag(APP, V1, actor="anne"))
