"""Remote images: names, manifests, tags, blobs, cached lists, and the cache of reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from threading import Event

from twisted.internet.defer import Deferred, gatherResults

from artifactd.catalog import remote
from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import ManifestRecord, TagMovement
from artifactd.catalog.remote import CachedPage, CachedTag, RemoteCatalog
from artifactd.oci.errors import NameUnknown, Unsupported
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest, ImageName, Tag
from tests.catalog.fixture import (
    ALPINE,
    APP,
    BUSYBOX,
    ELSEWHERE,
    V1,
    V2,
    ConfirmFailed,
    RemoteCatalogTestCase,
    confirmed,
    descriptor,
    index,
    manifest,
    not_confirmed,
)


class KnownNameTests(RemoteCatalogTestCase):
    async def test_an_image_is_known_from_its_first_manifest_on(self) -> None:
        self.assertFalse(await self.remote.is_known(APP))
        await self.blob(b"blob")
        self.assertFalse(await self.remote.is_known(APP))
        await self.put(b"{}")
        self.assertTrue(await self.remote.is_known(APP))
        self.assertFalse(await self.remote.is_known(ImageName("docker.io", APP.image)))

    async def test_an_emptied_image_stays_known_until_it_is_released(self) -> None:
        digest = await self.put(b"{}", "v1")
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        self.assertTrue(await self.remote.is_known(APP))
        await self.remote.release_image(APP)
        self.assertFalse(await self.remote.is_known(APP))
        self.assertIsNone(await self.catalog.tags(APP, None, None))
        self.assertEqual([], await self.images("local", "", 10))

    async def test_a_released_image_answers_for_no_blob(self) -> None:
        blob = await self.blob(b"blob")
        digest = await self.put(manifest(b"{}", blobs=[blob]))
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        await self.remote.release_image(APP)
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))

    async def test_a_released_image_is_known_again_from_its_next_manifest_on(self) -> None:
        digest = await self.put(b"{}")
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        await self.remote.release_image(APP)
        await self.put(b"{}", "v1")
        self.assertTrue(await self.remote.is_known(APP))
        self.assertEqual(["v1"], await self.catalog.tags(APP, None, None))

    async def test_an_image_with_manifests_is_not_released(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(b"{}")
        await self.assert_raises(Unsupported, self.remote.release_image(APP))
        self.assertTrue(await self.remote.is_known(APP))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))

    async def test_an_unknown_image_is_not_released(self) -> None:
        blob = await self.blob(b"blob")
        for image in (APP, ImageName("local", "nowhere")):
            await self.assert_raises(NameUnknown, self.remote.release_image(image))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))


class OriginTests(RemoteCatalogTestCase):
    async def test_a_name_has_no_origin_at_first(self) -> None:
        self.assertIsNone(await self.remote.origin("alpine"))

    async def test_the_first_origin_counts(self) -> None:
        self.assertEqual("docker.io", await self.remote.set_origin("alpine", "docker.io"))
        self.assertEqual("docker.io", await self.remote.set_origin("alpine", "ghcr.io"))
        self.assertEqual("docker.io", await self.remote.origin("alpine"))
        self.assertIsNone(await self.remote.origin("library/alpine"))

    async def test_of_two_processes_that_remember_an_origin_one_wins(self) -> None:
        second = RemoteCatalog(self.open_catalog().database)
        self.assertIsNone(await second.origin("alpine"))
        won = await gatherResults(
            [
                Deferred.fromCoroutine(self.remote.set_origin("alpine", "docker.io")),
                Deferred.fromCoroutine(second.set_origin("alpine", "ghcr.io")),
            ]
        )
        answers = [*won, await self.remote.origin("alpine"), await second.origin("alpine")]
        self.assertEqual(1, len(set(answers)), answers)


class CachedManifestTests(RemoteCatalogTestCase):
    async def test_a_cached_manifest_is_one_of_its_image_as_others_are(self) -> None:
        subject = Digest.of(b"subject")
        fetched = manifest(b"{}", artifact_type="text/x", subject=subject, annotations={"a": "1"})
        digest = await self.cache(fetched, "v1")
        record = ManifestRecord(digest, 2, OCI_MANIFEST, "text/x", subject, {"a": "1"})
        self.assertEqual(record, await self.catalog.manifest(ALPINE, digest))
        self.assertEqual(record, await self.catalog.manifest(ALPINE, V1))
        self.assertIsNone(await self.catalog.manifest(BUSYBOX, digest))
        self.assertEqual(["v1"], await self.catalog.tags(ALPINE, None, None))
        self.assertEqual(["library/alpine"], await self.images("docker.io", "", 10))
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

    async def test_tags_that_were_told_before_point_at_it_as_checked_then(self) -> None:
        old = await self.cache(b"1", "v1")
        other, told = Tag("other"), {V1: 990.0, Tag("v2"): 980.0}
        self.time = 1000.0
        await self.remote.cache_manifest(
            ALPINE, manifest(b"2"), other, confirmed, told={**told, other: 970.0}
        )
        for tag, checked_at in {**told, other: 1000.0}.items():
            cached = await self.remote.cached_tag(ALPINE, tag)
            assert cached is not None
            self.assertEqual(
                (Digest.of(b"2"), checked_at), (cached.record.digest, cached.checked_at)
            )
        self.assertIsNotNone(await self.catalog.manifest(ALPINE, old))

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


class CachedTagTests(RemoteCatalogTestCase):
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
        second = RemoteCatalog(self.open_catalog().database)
        for self.time in (2000.0, 3000.0):
            await self.remote.keep_tag(ALPINE, V1, None)
            found = await second.cached_tag(ALPINE, V1)
            assert found is not None
            self.assertEqual(self.time, found.checked_at)


class RemoteBlobTests(RemoteCatalogTestCase):
    async def test_a_blob_that_no_image_holds_is_not_stored(self) -> None:
        self.assertIsNone(await self.remote.stored_size("docker.io", Digest.of(b"blob")))
        blob = await self.fill(b"blob")
        self.assertEqual(4, await self.remote.stored_size("docker.io", blob.digest))
        await self.remote.drop(await self.remote.least_used("docker.io", 1e12, 0, 10))
        self.assertIsNone(await self.remote.stored_size("docker.io", blob.digest))

    async def test_blobs_of_other_repositories_do_not_count(self) -> None:
        pushed, elsewhere = await self.blob(b"pushed"), await self.fill(b"elsewhere", ELSEWHERE)
        for blob in (pushed, elsewhere):
            self.assertIsNone(await self.remote.stored_size("docker.io", blob.digest))
            self.assertIsNone(await self.remote.link_blob(ALPINE, blob.digest))
            self.assertIsNone(await self.catalog.blob_size(ALPINE, blob.digest))
        self.assertEqual(9, await self.remote.stored_size("ghcr.io", elsewhere.digest))

    async def test_nor_do_those_that_were_pushed_while_the_repository_was_a_local_one(self) -> None:
        blob = await self.blob(b"blob", image=BUSYBOX)
        self.assertIsNone(await self.remote.stored_size("docker.io", blob.digest))
        self.assertIsNone(await self.remote.link_blob(ALPINE, blob.digest))
        self.assertIsNone(await self.catalog.blob_size(ALPINE, blob.digest))

    async def test_a_manifest_is_not_stored_as_a_blob(self) -> None:
        digest = await self.cache(b"{}")
        self.assertIsNone(await self.remote.stored_size("docker.io", digest))
        self.assertIsNone(await self.remote.link_blob(BUSYBOX, digest))
        self.assertIsNone(await self.catalog.blob_size(BUSYBOX, digest))

    async def test_a_stored_blob_is_linked_to_another_image_of_the_repository(self) -> None:
        blob = await self.fill(b"blob")
        self.assertIsNone(await self.catalog.blob_size(BUSYBOX, blob.digest))
        self.assertEqual(4, await self.remote.link_blob(BUSYBOX, blob.digest))
        self.assertEqual(4, await self.remote.link_blob(BUSYBOX, blob.digest))
        self.assertEqual(4, await self.catalog.blob_size(BUSYBOX, blob.digest))

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
        self.assertEqual([], await self.images("docker.io", "", 10))


class CachedPageTests(RemoteCatalogTestCase):
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

    async def test_of_one_repository_so_many_pages_and_bytes_are_kept_the_last_used(self) -> None:
        def images(repository: str) -> list[ImageName]:
            return [ImageName(repository, f"library/{number}") for number in range(5)]

        self.patch(remote, "_ALL_PAGES_KEPT", 3)
        for bytes_kept, size in ((1 << 20, 1), (400, 100)):
            self.patch(remote, "_PAGE_BYTES_KEPT", bytes_kept)
            for number, image in enumerate(images(f"hub{size}")):
                page = self.page(b"x" * size, fetched_at=float(number))
                await self.remote.cache_page(image, "tags", page)
                await self.remote.touch({(images(f"hub{size}")[0], "tags"): number + 0.5})
            found = [await self.remote.cached_page(i, "tags") for i in images(f"hub{size}")]
            kept = [number for number, page in enumerate(found) if page is not None]
            self.assertEqual([0, 3, 4], kept, size)
        await self.remote.cache_page(ALPINE, "tags", self.page(b"x" * 1000), 1000)
        self.assertIsNone(await self.remote.cached_page(ALPINE, "tags"))


class CachedReadTests(RemoteCatalogTestCase):
    async def test_what_every_pull_asks_is_answered_without_a_thread_the_second_time(self) -> None:
        await self.put(b"{}")
        await self.cache(b"{}", "v1")
        await self.remote.set_origin("alpine", "docker.io")
        questions: list[Callable[[], Awaitable[object]]] = [
            lambda: self.remote.is_known(APP),
            lambda: self.remote.is_known(ALPINE),
            lambda: self.remote.origin("alpine"),
            lambda: self.remote.origin("busybox"),
            lambda: self.remote.cached_tag(ALPINE, V1),
            lambda: self.remote.cached_tag(ALPINE, V2),
        ]
        for ask in questions:
            answer = await ask()

            async def again(ask: Callable[[], Awaitable[object]] = ask) -> object:
                return await ask()

            repeated = self.successResultOf(Deferred.fromCoroutine(again()))
            self.assertEqual(answer, repeated)

    async def test_the_answers_are_those_of_the_last_commit(self) -> None:
        for tag, digest in ((V1, Digest.of(b"1")), (V2, Digest.of(b"2"))):
            self.assertIsNone(await self.remote.cached_tag(ALPINE, tag))
            await self.cache(tag.text[1:].encode(), tag.text)
            found = await self.remote.cached_tag(ALPINE, tag)
            assert found is not None
            self.assertEqual(digest, found.record.digest)
        self.assertIsNone(await self.remote.origin("alpine"))
        await self.remote.set_origin("alpine", "docker.io")
        self.assertEqual("docker.io", await self.remote.origin("alpine"))

    async def test_a_tag_whose_manifest_has_large_annotations_is_not_kept_in_memory(self) -> None:
        await self.cache(manifest(b"{}", annotations={"a": "x" * 200_000}), "v1")
        await self.remote.cached_tag(ALPINE, V1)
        again = Deferred.fromCoroutine(self.remote.cached_tag(ALPINE, V1))
        self.assertNoResult(again)
        self.assertIsNotNone(await again)

    async def assert_forgotten_after_the_commit(
        self, remove: Callable[[], Awaitable[Sequence[Digest] | None]]
    ) -> None:
        """Bytes that go in the transaction behind ``remove`` go with their row gone for good."""
        digest = (await self.fill(b"blob")).digest
        rows: list[int] = []

        def unlink() -> None:
            with closing(sqlite3.connect(self.path)) as other:
                rows.extend(n for (n,) in other.execute("SELECT count(*) FROM blob"))

        async def removed() -> Sequence[Digest] | None:
            return await remove()

        assert isinstance(self.catalog, Catalog)
        event = Event()
        self.addCleanup(event.set)
        held = self.catalog.database.write(lambda _: event.wait(60))
        removing = Deferred.fromCoroutine(removed())
        forgetting = Deferred.fromCoroutine(self.catalog.forget_blob(digest, unlink))
        event.set()
        self.assertEqual([digest], await removing)
        self.assertTrue(await forgetting)
        self.assertEqual([0], rows)
        await held

    async def test_bytes_are_not_forgotten_in_the_transaction_that_drops_their_row(self) -> None:
        await self.fill(b"blob")
        held = await self.remote.least_used("docker.io", 2000.0, 0, 10)
        await self.assert_forgotten_after_the_commit(lambda: self.remote.drop(held))

    async def test_bytes_are_not_forgotten_in_the_transaction_that_purges_their_row(self) -> None:
        await self.assert_forgotten_after_the_commit(lambda: self.remote.purge(ALPINE, None))
