"""Remote images: use, eviction and purging."""

from __future__ import annotations

from attrs import evolve

from artifactd.catalog.records import TagMovement
from artifactd.catalog.remote import CachedPage, Held
from artifactd.oci.names import Digest, ImageName, Tag
from tests.catalog.fixture import (
    ALPINE,
    APP,
    BUSYBOX,
    ELSEWHERE,
    EVER,
    V1,
    V2,
    RemoteCatalogTestCase,
    descriptor,
    index,
    manifest,
)


class EvictionTestCase(RemoteCatalogTestCase):
    async def least_used(
        self, repository: str = "docker.io", before: float = EVER, skip: int = 0, limit: int = 100
    ) -> list[Held]:
        return await self.remote.least_used(repository, before, skip, limit)


class UseTests(EvictionTestCase):
    async def test_what_came_from_upstream_is_held_since_then(self) -> None:
        self.time = 1000.25
        blob = await self.fill(b"blob")
        self.time = 2000.5
        digest = await self.cache(manifest(b"{}", blobs=[blob]), "v1")
        self.assertEqual(
            [
                Held(ALPINE, blob.digest, 4, 1000.25, is_manifest=False),
                Held(ALPINE, digest, 2, 2000.5, is_manifest=True),
            ],
            await self.least_used(),
        )

    async def test_pages_of_lists_are_held_too(self) -> None:
        page = CachedPage(b"[]" * 50, {"a": "b"}, None, 1000.0)
        for number in range(3):
            await self.remote.cache_page(ALPINE, f"tags?n={number}", page)
        self.assertEqual(3 * (100 + 8 + 9), await self.remote.held_bytes("docker.io"))
        await self.remote.touch({(ALPINE, "tags?n=0"): 2000.0})
        held = await self.least_used()
        self.assertEqual(["tags?n=1", "tags?n=2", "tags?n=0"], [each.page for each in held])
        await self.remote.touch({(ALPINE, "tags?n=1"): 3000.0})  # meanwhile
        self.assertEqual([], await self.remote.drop(held))
        self.assertEqual(["tags?n=1"], [each.page for each in await self.least_used()])

    async def test_what_was_pulled_is_held_since_then(self) -> None:
        await self.fill(b"1", ALPINE, BUSYBOX)
        await self.fill(b"2")
        await self.cache(b"{}")
        first, second, pulled = Digest.of(b"1"), Digest.of(b"2"), Digest.of(b"{}")
        await self.remote.touch({(ALPINE, first): 3000.0, (ALPINE, pulled): 2000.0})
        self.assertEqual(
            [
                (ALPINE, second, 1000.0),
                (BUSYBOX, first, 1000.0),
                (ALPINE, pulled, 2000.0),
                (ALPINE, first, 3000.0),
            ],
            [(held.image, held.digest, held.used_at) for held in await self.least_used()],
        )

    async def test_what_comes_or_is_linked_again_is_held_since_then(self) -> None:
        blob = await self.fill(b"blob")
        digest = await self.cache(b"{}")
        self.time = 2000.0
        await self.remote.link_blob(ALPINE, blob.digest)
        await self.cache(b"{}")
        self.assertEqual(
            {(blob.digest, 2000.0), (digest, 2000.0)},
            {(held.digest, held.used_at) for held in await self.least_used()},
        )

    async def test_an_older_use_changes_nothing(self) -> None:
        blob, digest = await self.fill(b"blob"), await self.cache(b"{}")
        before = await self.least_used()
        await self.remote.touch({(ALPINE, blob.digest): 999.0, (ALPINE, digest): 999.0})
        self.time = 500.0  # a clock that was set back
        await self.fill(b"blob")
        await self.cache(b"{}")
        self.assertEqual(before, await self.least_used())

    async def test_the_use_of_what_is_not_there_is_nothing(self) -> None:
        await self.fill(b"blob")
        nowhere = ImageName("docker.io", "nowhere")
        await self.remote.touch(
            {(nowhere, Digest.of(b"blob")): 2000.0, (ALPINE, Digest.of(b"x")): 2000.0}
        )
        self.assertEqual([1000.0], [held.used_at for held in await self.least_used()])
        self.assertIsNone(await self.catalog.blob_size(nowhere, Digest.of(b"blob")))

    async def test_thousands_of_uses_are_noted_at_once(self) -> None:
        digests = [(await self.fill(b"%d" % number)).digest for number in range(20)]
        used = {(ALPINE, Digest.of(b"not here %d" % number)): 2000.0 for number in range(5000)}
        await self.remote.touch(used | {(ALPINE, digest): 2000.0 for digest in digests})
        self.assertEqual({2000.0}, {held.used_at for held in await self.least_used()})

    async def test_what_was_pushed_here_is_never_listed(self) -> None:
        blob = await self.blob(b"blob")
        digest = await self.put(manifest(b"{}", blobs=[blob]), "v1")
        await self.remote.touch({(APP, blob.digest): 2000.0, (APP, digest): 2000.0})
        self.assertEqual([], await self.least_used("local"))

    async def test_what_is_pushed_where_it_came_from_upstream_is_listed_no_more(self) -> None:
        await self.fill(b"blob", APP)
        await self.cache(b"{}", image=APP)
        self.assertEqual(2, len(await self.least_used("local")))
        await self.blob(b"blob")
        await self.put(b"{}")
        await self.fill(b"blob", APP)
        await self.cache(b"{}", image=APP)
        self.assertEqual([], await self.least_used("local"))

    async def test_only_what_was_not_used_since_a_time_is_listed(self) -> None:
        for self.time in (1000.0, 2000.0, 3000.0):
            await self.fill(b"%d" % self.time)
        listed = await self.least_used(before=2000.0)
        self.assertEqual([1000.0], [held.used_at for held in listed])

    async def test_only_what_the_images_of_the_repository_hold_is_listed(self) -> None:
        await self.fill(b"blob", ELSEWHERE, ALPINE)
        await self.cache(b"{}", image=ELSEWHERE)
        self.assertEqual({ALPINE}, {held.image for held in await self.least_used()})
        self.assertEqual({ELSEWHERE}, {held.image for held in await self.least_used("ghcr.io")})
        self.assertEqual([], await self.least_used("nowhere"))

    async def test_pages_of_what_was_used_at_one_time_neither_overlap_nor_leave_gaps(self) -> None:
        for number in range(20):
            await self.fill(b"%d" % number, ALPINE, BUSYBOX)
            await self.cache(b"{%d}" % number, image=BUSYBOX if number % 2 else ALPINE)
        pages = [await self.least_used(skip=skip, limit=7) for skip in range(0, 70, 7)]
        self.assertEqual([7] * 8 + [4, 0], [len(page) for page in pages])
        self.assertEqual(60, len({held for page in pages for held in page}))

    async def test_each_digest_counts_once_in_a_repository(self) -> None:
        self.assertEqual(0, await self.remote.held_bytes("docker.io"))
        await self.fill(b"x" * 100, ALPINE, BUSYBOX, ELSEWHERE)
        await self.fill(b"y" * 10)
        for image in (ALPINE, BUSYBOX):
            await self.cache(b"{}", "v1", image)
            await self.fill(b"{}", image)
        self.assertEqual(112, await self.remote.held_bytes("docker.io"))
        self.assertEqual(100, await self.remote.held_bytes("ghcr.io"))
        self.assertEqual(0, await self.remote.held_bytes("nowhere"))


class DropTests(EvictionTestCase):
    async def drop_all(self, repository: str = "docker.io") -> list[Digest]:
        self.time = 5000.0
        return await self.remote.drop(await self.least_used(repository))

    async def test_what_is_dropped_is_needed_no_more(self) -> None:
        blob = await self.fill(b"blob", ALPINE, BUSYBOX)
        digest = await self.cache(manifest(b"{}", blobs=[blob]), "v1")
        dropped = await self.drop_all()
        self.assertEqual({blob.digest, digest}, set(dropped))
        self.assertEqual(2, len(dropped))
        for image in (ALPINE, BUSYBOX):
            self.assertIsNone(await self.catalog.blob_size(image, blob.digest))
        self.assertIsNone(await self.catalog.manifest(ALPINE, digest))
        self.assertIsNone(await self.remote.stored_size("docker.io", blob.digest))
        self.assertEqual(0, await self.remote.held_bytes("docker.io"))
        self.assertEqual(dropped, await self.forgotten(*dropped))

    async def test_what_was_dropped_can_come_again(self) -> None:
        blob, digest = await self.fill(b"blob"), await self.cache(b"{}", "v1")
        await self.drop_all()
        await self.fill(b"blob")
        await self.cache(b"{}", "v1")
        self.assertEqual(4, await self.catalog.blob_size(ALPINE, blob.digest))
        self.assertEqual([], await self.forgotten(blob.digest, digest))

    async def test_what_another_image_holds_is_needed_still(self) -> None:
        pulled = await self.fill(b"in another image", ALPINE, BUSYBOX)
        pushed = await self.fill(b"pushed here too")
        await self.blob(b"pushed here too")
        elsewhere = await self.fill(b"of another upstream", ALPINE, ELSEWHERE)
        digest = await self.cache(b"{}")
        await self.put(b"{}", "v1")
        of_alpine = [held for held in await self.least_used() if held.image == ALPINE]
        self.assertEqual([], await self.remote.drop(of_alpine))
        for blob in (pulled, pushed, elsewhere):
            self.assertIsNone(await self.catalog.blob_size(ALPINE, blob.digest))
        for image, blob in ((BUSYBOX, pulled), (APP, pushed), (ELSEWHERE, elsewhere)):
            self.assertEqual(blob.size, await self.catalog.blob_size(image, blob.digest))
        self.assertIsNone(await self.catalog.manifest(ALPINE, digest))
        self.assertIsNotNone(await self.catalog.manifest(APP, V1))
        needed = (pulled.digest, pushed.digest, elsewhere.digest, digest)
        self.assertEqual([], await self.forgotten(*needed))

    async def test_bytes_of_a_blob_that_are_a_manifests_too_stay_for_it(self) -> None:
        await self.fill(b"{}")
        digest = await self.cache(b"{}", "v1")
        held = await self.least_used()
        self.assertEqual([], await self.remote.drop([h for h in held if not h.is_manifest]))
        self.assertIsNone(await self.catalog.blob_size(ALPINE, digest))
        self.assertIsNotNone(await self.catalog.manifest(ALPINE, V1))
        self.assertEqual([digest], await self.remote.drop([h for h in held if h.is_manifest]))
        self.assertIsNone(await self.catalog.manifest(ALPINE, V1))

    async def test_what_was_used_since_it_was_listed_stays(self) -> None:
        blob, digest = await self.fill(b"blob"), await self.cache(b"{}", "v1")
        held = await self.least_used()
        await self.remote.touch({(ALPINE, blob.digest): 1000.1, (ALPINE, digest): 1000.1})
        self.assertEqual([], await self.remote.drop(held))
        self.assertEqual(4, await self.catalog.blob_size(ALPINE, blob.digest))
        self.assertIsNotNone(await self.remote.cached_tag(ALPINE, V1))

    async def test_a_manifest_goes_with_its_tags_which_are_journalled(self) -> None:
        digest = await self.cache(b"1", "v1")
        await self.cache(b"1", "v2")
        await self.cache(b"2", "v3")
        self.time = 2000.0
        held = [h for h in await self.least_used() if h.digest == digest]
        self.assertEqual([digest], await self.remote.drop(held))
        self.assertEqual(["v3"], await self.catalog.tags(ALPINE, None, None))
        for tag in (V1, Tag.parse("v2")):
            self.assertIsNone(await self.remote.cached_tag(ALPINE, tag))
            journal = await self.catalog.tag_movements(ALPINE, tag)
            self.assertEqual(TagMovement(tag.text, "eviction", 2000.0, digest, None), journal[-1])

    async def test_a_child_goes_and_its_index_stays(self) -> None:
        child = await self.cache(b"child")
        self.time = 2000.0
        await self.cache(index(b"[]", [descriptor(b"child")]), "v1")
        await self.remote.drop(await self.least_used(before=2000.0))
        self.assertIsNone(await self.catalog.manifest(ALPINE, child))
        self.assertIsNotNone(await self.catalog.manifest(ALPINE, V1))

    async def test_an_image_that_has_lost_everything_has_an_empty_list(self) -> None:
        await self.cache(b"{}", "v1")
        await self.drop_all()
        self.assertEqual([], await self.catalog.tags(ALPINE, None, None))

    async def test_what_was_pushed_here_is_not_dropped_whoever_says_so(self) -> None:
        blob = await self.blob(b"blob")
        digest = await self.put(manifest(b"{}", blobs=[blob]), "v1")
        held = [
            Held(APP, blob.digest, 4, EVER, is_manifest=False),
            Held(APP, digest, 2, EVER, is_manifest=True),
        ]
        self.assertEqual([], await self.remote.drop(held))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))
        self.assertIsNotNone(await self.catalog.manifest(APP, V1))

    async def test_what_has_gone_already_is_not_dropped_again(self) -> None:
        await self.fill(b"blob")
        await self.cache(b"{}")
        held = await self.least_used()
        self.assertEqual(2, len(await self.remote.drop(held)))
        nowhere = [evolve(each, image=ImageName("docker.io", "nowhere")) for each in held]
        self.assertEqual([], await self.remote.drop(held + nowhere))

    async def test_what_was_dropped_is_remembered_until_it_is_forgotten(self) -> None:
        """By any process: the one that dropped it may have died."""
        blobs = [(await self.fill(b"%d" % number)).digest for number in range(3)]
        shared = (await self.fill(b"shared", ALPINE, ELSEWHERE)).digest
        self.assertEqual([], await self.catalog.dropped_blobs("", 10))
        await self.drop_all()
        self.assertNotIn(shared, blobs)
        expected = sorted(blobs, key=str)
        other = self.open_catalog()
        self.assertEqual(expected, await other.dropped_blobs("", 10))
        self.assertEqual(expected[:2], await other.dropped_blobs("", 2))
        self.assertEqual(expected[1:], await other.dropped_blobs(str(expected[0]), 10))
        self.assertEqual(expected[:1], await self.forgotten(expected[0]))
        self.assertEqual(expected[1:], await self.catalog.dropped_blobs("", 10))

    async def test_what_came_again_is_forgotten_with_its_bytes_kept(self) -> None:
        digest = (await self.fill(b"blob")).digest
        await self.drop_all()
        await self.fill(b"blob", BUSYBOX)
        self.assertEqual([], await self.forgotten(digest))
        self.assertEqual([], await self.catalog.dropped_blobs("", 10))

    async def test_what_can_not_be_removed_stays_remembered(self) -> None:
        digest = (await self.fill(b"blob")).digest
        await self.drop_all()

        def fail() -> None:
            raise PermissionError

        await self.assert_raises(PermissionError, self.catalog.forget_blob(digest, fail))
        self.assertEqual([digest], await self.catalog.dropped_blobs("", 10))

    async def test_what_was_purged_is_remembered_too(self) -> None:
        digest = (await self.fill(b"blob")).digest
        await self.remote.purge(ALPINE, None)
        self.assertEqual([digest], await self.catalog.dropped_blobs("", 10))


class PurgeTests(RemoteCatalogTestCase):
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

    async def test_what_the_image_lacks_of_what_is_purged_may_have_begun_to_come(self) -> None:
        here, absent = await self.fill(b"here"), descriptor(b"absent")
        await self.cache(manifest(b"child", blobs=[here, absent]))
        child = descriptor(b"child")
        gone = descriptor(b"no such child")
        await self.cache(index(b"[]", [child, gone]), "v1")
        await self.fill(b"absent", BUSYBOX)
        for reference in (V1, Digest.of(b"[]"), None):
            lacking = await self.remote.lacking(ALPINE, reference)
            self.assertEqual({absent.digest, gone.digest}, set(lacking), reference)
        self.assertEqual([], await self.remote.lacking(ALPINE, here.digest))
        for image in (ALPINE, ImageName("docker.io", "never/heard")):
            self.assertEqual([absent.digest], await self.remote.lacking(image, absent.digest))
            self.assertEqual([], await self.remote.lacking(image, V2))

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
