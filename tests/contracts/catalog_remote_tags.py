"""What every catalog knows of remote images: manifests and tags."""

from __future__ import annotations

from artifactd.catalog.records import ManifestRecord, TagMovement
from artifactd.catalog.remote import CachedTag
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Tag
from tests.contracts.catalog import (
    APP,
    ConfirmFailed,
    descriptor,
    index,
    manifest,
    not_confirmed,
)
from tests.contracts.catalog_remote import (
    ALPINE,
    BUSYBOX,
    ELSEWHERE,
    V1,
    V2,
    RemoteCatalogTestCase,
)


class CachedManifestContract(RemoteCatalogTestCase):
    async def test_a_cached_manifest_is_one_of_its_image_as_others_are(self) -> None:
        subject = Digest.of(b"subject")
        fetched = manifest(b"{}", artifact_type="text/x", subject=subject, annotations={"a": "1"})
        digest = await self.cache(fetched, "v1")
        record = ManifestRecord(digest, 2, OCI_MANIFEST, "text/x", subject, {"a": "1"})
        self.assertEqual(record, await self.catalog.manifest(ALPINE, digest))
        self.assertEqual(record, await self.catalog.manifest(ALPINE, V1))
        self.assertIsNone(await self.catalog.manifest(BUSYBOX, digest))
        self.assertEqual(["v1"], await self.catalog.tags(ALPINE, None, None))
        self.assertEqual(["library/alpine"], await self.catalog.images("docker.io", "", 10))
        self.assertEqual(
            [record], await self.catalog.referrers(ALPINE, subject, "text/x", None, 10)
        )

    async def test_what_it_holds_need_not_be_here(self) -> None:
        await self.cache(manifest(b"{}", blobs=[descriptor(b"layer")]))
        listed = await self.cache(index(b"[]", [descriptor(b"child")]), "v1")
        found = await self.catalog.manifest(ALPINE, V1)
        assert found is not None
        self.assertEqual((listed, OCI_INDEX), (found.digest, found.media_type))
        self.assertIsNone(await self.catalog.blob_size(ALPINE, Digest.of(b"layer")))

    async def test_without_a_tag_none_moves(self) -> None:
        await self.cache(b"1", "v1")
        digest = await self.cache(b"2")
        self.assertIsNotNone(await self.catalog.manifest(ALPINE, digest))
        self.assertEqual(["v1"], await self.catalog.tags(ALPINE, None, None))

    async def test_one_whose_bytes_are_not_confirmed_changes_nothing(self) -> None:
        released: list[str] = []
        await self.assert_raises(
            ConfirmFailed,
            self.remote.cache_manifest(
                ALPINE, manifest(b"{}"), V1, not_confirmed, lambda: released.append("too early")
            ),
        )
        self.assertEqual([], released)
        self.assertIsNone(await self.catalog.manifest(ALPINE, Digest.of(b"{}")))
        self.assertIsNone(await self.remote.cached_tag(ALPINE, V1))
        self.assertFalse(await self.remote.is_known(ALPINE))

    async def test_its_staged_copy_is_released_once_the_row_is_written(self) -> None:
        calls: list[str] = []
        await self.remote.cache_manifest(
            ALPINE,
            manifest(b"{}"),
            None,
            lambda: calls.append("confirm"),
            lambda: calls.append("release"),
        )
        self.assertEqual(["confirm", "release"], calls)


class CachedTagContract(RemoteCatalogTestCase):
    async def cached(self, tag: Tag = V1) -> CachedTag:
        found = await self.remote.cached_tag(ALPINE, tag)
        assert found is not None
        return found

    async def test_a_tag_that_was_never_seen_is_none(self) -> None:
        self.assertIsNone(await self.remote.cached_tag(ALPINE, V1))
        await self.cache(b"1", "v1", BUSYBOX)
        await self.cache(b"1", "v2")
        self.assertIsNone(await self.remote.cached_tag(ALPINE, V1))

    async def test_a_tag_that_was_pushed_here_was_not_seen_upstream(self) -> None:
        await self.put(b"1", "v1")
        self.assertIsNone(await self.remote.cached_tag(APP, V1))

    async def test_a_tag_is_as_it_was_last_seen(self) -> None:
        for self.time, content in ((1000.5, b"1"), (2000.25, b"2")):
            digest = await self.cache(content, "v1")
            record = ManifestRecord(digest, 1, OCI_MANIFEST)
            self.assertEqual(CachedTag(record, self.time), await self.cached())

    async def test_its_movements_are_journalled(self) -> None:
        first = await self.cache(b"1", "v1")
        self.time = 2000.0
        second = await self.cache(b"2", "v1")
        await self.cache(b"2", "v1")
        self.time = 3000.0
        self.assertTrue(await self.remote.point_tag(ALPINE, V1, first))
        self.assertEqual(
            [
                TagMovement("v1", "upstream", 1000.0, None, first),
                TagMovement("v1", "upstream", 2000.0, first, second),
                TagMovement("v1", "upstream", 3000.0, second, first),
            ],
            await self.catalog.tag_movements(ALPINE, V1),
        )

    async def test_a_tag_points_at_a_manifest_that_is_here_already(self) -> None:
        first = await self.cache(b"1", "v1")
        await self.cache(b"2", "v1")
        await self.remote.keep_tag(ALPINE, V1, first)
        self.time = 2000.0
        self.assertTrue(await self.remote.point_tag(ALPINE, V1, first))
        self.assertTrue(await self.remote.point_tag(ALPINE, V2, first))
        for tag in (V1, V2):
            self.assertEqual(
                CachedTag(ManifestRecord(first, 1, OCI_MANIFEST), 2000.0), await self.cached(tag)
            )

    async def test_a_tag_does_not_point_at_what_the_image_does_not_have(self) -> None:
        await self.cache(b"1", "v1")
        before = await self.cached()
        other = await self.cache(b"2", image=BUSYBOX)
        self.time = 2000.0
        self.assertFalse(await self.remote.point_tag(ALPINE, V1, other))
        self.assertFalse(await self.remote.point_tag(ELSEWHERE, V1, other))
        self.assertEqual(before, await self.cached())
        self.assertIsNone(await self.remote.cached_tag(ELSEWHERE, V1))

    async def test_a_tag_that_stays_was_checked_all_the_same(self) -> None:
        digest = await self.cache(b"1", "v1")
        await self.cache(b"1", "v2")
        self.time = 2000.0
        await self.remote.keep_tag(ALPINE, V1, None)
        self.assertEqual(
            CachedTag(ManifestRecord(digest, 1, OCI_MANIFEST), 2000.0), await self.cached()
        )
        self.assertEqual(1000.0, (await self.cached(V2)).checked_at)
        self.assertEqual(1, len(await self.catalog.tag_movements(ALPINE, V1)))

    async def test_a_candidate_keeps_the_time_since_when_it_is_one(self) -> None:
        await self.cache(b"1", "v1")
        first, second = Digest.of(b"2"), Digest.of(b"3")
        seen = []
        for self.time, candidate in (
            (2000.0, first),
            (3000.0, first),
            (4000.0, second),
            (5000.0, None),
            (6000.0, second),
        ):
            await self.remote.keep_tag(ALPINE, V1, candidate)
            tag = await self.cached()
            self.assertEqual(self.time, tag.checked_at)
            self.assertEqual(Digest.of(b"1"), tag.record.digest)
            seen.append((tag.candidate, tag.candidate_at))
        self.assertEqual(
            [(first, 2000.0), (first, 2000.0), (second, 4000.0), (None, None), (second, 6000.0)],
            seen,
        )

    async def test_a_tag_that_moves_has_no_candidate_any_more(self) -> None:
        await self.cache(b"1", "v1")
        await self.remote.keep_tag(ALPINE, V1, Digest.of(b"2"))
        await self.cache(b"3", "v1")
        tag = await self.cached()
        self.assertEqual((None, None), (tag.candidate, tag.candidate_at))

    async def test_a_tag_that_is_not_there_cannot_stay(self) -> None:
        await self.remote.keep_tag(ALPINE, V1, Digest.of(b"1"))
        self.assertIsNone(await self.remote.cached_tag(ALPINE, V1))

    async def test_what_one_process_sees_of_a_tag_the_other_sees_at_once(self) -> None:
        await self.cache(b"1", "v1")
        second = self.open_remote(self.open_catalog())
        for self.time in (2000.0, 3000.0):
            await self.remote.keep_tag(ALPINE, V1, None)
            found = await second.cached_tag(ALPINE, V1)
            assert found is not None
            self.assertEqual(self.time, found.checked_at)
