"""Eviction: what goes, in which order, and what stays; on a real catalog and a real store."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from artifactd.catalog.records import nothing
from artifactd.catalog.remote import CachedPage, Held
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.registry.content import publish
from artifactd.registry.mirror import eviction
from artifactd.registry.mirror.eviction import Eviction, LastUsed, forget
from artifactd.registry.upkeep.sweep import Sweep
from artifactd.store.fills import FillInfo, FillStore
from tests.catalog.fixture import APP, manifest
from tests.registry.fixture import ALPINE, BUSYBOX, RemoteTestCase, remote_settings

ELSEWHERE = ImageName("ghcr.io", "team/app")
GRACE = 180.0
LONG_AFTER = 100000.0
PIECE = 64 << 10


class EvictionTestCase(RemoteTestCase):
    async def came(self, content: bytes, *images: ImageName, at: float = 1000.0) -> Digest:
        """A blob came from upstream, with its bytes."""
        self.time = at
        digest = Digest.of(content)
        staged = await self.stores.blobs.stage(digest, content)
        await publish(
            staged,
            self.catalog,
            lambda: self.remote.add_blobs(
                images or (ALPINE,), digest, staged.size, staged.confirm, staged.release
            ),
        )
        return digest

    async def listed(self, key: str, size: int, *, at: float) -> None:
        """A page of a list came from upstream."""
        page = CachedPage(b"x" * size, None, None, at)
        await self.remote.cache_page(ALPINE, key, page)

    async def manifest_came(self, content: bytes, *tags: str, at: float = 1000.0) -> Digest:
        self.time = at
        digest = Digest.of(content)
        for tag in tags:
            staged = await self.stores.blobs.stage(digest, content)
            await publish(
                staged,
                self.catalog,
                lambda tag=tag, staged=staged: self.remote.cache_manifest(  # type: ignore[misc]
                    ALPINE, manifest(content), Tag.parse(tag), staged.confirm, staged.release
                ),
            )
        return digest

    async def evict(
        self,
        size_cap: int = 0,
        max_age: float = 0.0,
        *,
        pinned: Sequence[str] = (),
        at: float = LONG_AFTER,
    ) -> int:
        self.time = at
        return await Eviction(
            "docker.io",
            remote_settings(size_cap=size_cap, max_age=max_age, pinned=tuple(pinned)),
            self.catalog,
            self.remote,
            self.stores.blobs,
            self.stores.fills,
            self.counters,
            lambda: self.time,
        ).run()

    async def assert_here(self, *expected: bytes) -> None:
        """These are the bytes that the store has."""
        names = sorted(path.rpartition("/")[2] for path in self.below("blobs"))
        self.assertEqual(sorted(Digest.of(each).encoded for each in expected), names)

    async def assert_holds(self, *digests: Digest, image: ImageName = ALPINE) -> None:
        held = await self.remote.least_used(image.repository, 1e12, 0, 1000)
        self.assertEqual(set(digests), {each.digest for each in held if each.image == image})


class PageTests(EvictionTestCase):
    """More than a page of what may go, behind more than a page of what stays."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(eviction, "_PAGE", 2)

    async def test_all_that_is_too_old_goes_in_one_run(self) -> None:
        kept = [await self.came(b"kept %d" % n, BUSYBOX, at=1000.0 + n) for n in range(5)]
        for number in range(5):
            await self.came(b"%d" % number, at=2000.0 + number)
        self.assertEqual(5, await self.evict(max_age=1.0, pinned=[BUSYBOX.image]))
        await self.assert_holds(*kept, image=BUSYBOX)
        await self.assert_holds()

    async def test_all_that_is_too_much_goes_in_one_run(self) -> None:
        for number in range(7):
            await self.came(b"%d" % number * 10, at=1000.0 + number)
        self.assertEqual(6, await self.evict(size_cap=15))


class SizeTests(EvictionTestCase):
    async def test_what_was_longest_not_pulled_goes_until_the_rest_fits(self) -> None:
        for number in (3, 1, 2, 4):
            await self.came(b"%d" % number * 10, at=1000.0 * number)
        self.assertEqual(2, await self.evict(size_cap=25))
        await self.assert_here(b"3" * 10, b"4" * 10)
        self.assertEqual(20, await self.remote.held_bytes("docker.io"))

    async def test_pages_of_lists_count_and_go_by_their_use_like_the_rest(self) -> None:
        await self.listed("tags?n=1", 20, at=1000.0)
        await self.came(b"1" * 20, at=2000.0)
        await self.listed("tags?n=2", 20, at=3000.0)
        await self.came(b"2" * 20, at=4000.0)
        self.assertEqual(96, await self.remote.held_bytes("docker.io"))
        last_used = LastUsed(self.remote, lambda: 5000.0)
        last_used.touch(ALPINE, "tags?n=1")
        await last_used.write()
        self.assertEqual(2, await self.evict(size_cap=50))
        self.assertIsNone(await self.remote.cached_page(ALPINE, "tags?n=2"))
        self.assertIsNotNone(await self.remote.cached_page(ALPINE, "tags?n=1"))
        await self.assert_here(b"2" * 20)
        self.assertEqual(1, await self.evict(max_age=95_500.0))
        self.assertIsNotNone(await self.remote.cached_page(ALPINE, "tags?n=1"))
        self.assertEqual(1, await self.evict(max_age=90_000.0))
        self.assertEqual(0, await self.remote.held_bytes("docker.io"))

    async def test_what_just_fits_stays(self) -> None:
        for number in (1, 2, 3):
            await self.came(b"%d" % number * 10, at=1000.0 * number)
        self.assertEqual(0, await self.evict(size_cap=30))
        self.assertEqual(1, await self.evict(size_cap=29))
        await self.assert_here(b"2" * 10, b"3" * 10)

    async def test_a_blob_of_many_images_counts_once_and_the_rest_fits_after_one_run(self) -> None:
        images = [ImageName("docker.io", f"library/image-{number}") for number in range(5)]
        await self.came(b"s" * 50, *images, at=1000.0)
        for number in range(5):
            await self.came(b"%d" % number * 10, at=2000.0 + number)
        await self.evict(size_cap=30)
        self.assertEqual(30, await self.remote.held_bytes("docker.io"))
        await self.assert_here(b"2" * 10, b"3" * 10, b"4" * 10)

    async def test_one_that_another_image_pulled_lately_stays_and_the_rest_fits(self) -> None:
        shared = await self.came(b"s" * 50, ALPINE, BUSYBOX, at=1000.0)
        await self.remote.touch({(BUSYBOX, shared): 9000.0})
        for number in range(5):
            await self.came(b"%d" % number * 10, at=2000.0 + number)
        await self.evict(size_cap=60)
        self.assertEqual(60, await self.remote.held_bytes("docker.io"))
        await self.assert_here(b"s" * 50, b"4" * 10)
        self.assertIsNone(await self.catalog.blob_size(ALPINE, shared))

    async def test_many_pages_go_in_one_run(self) -> None:
        for number in range(230):
            await self.came(b"%03d" % number, at=1000.0 + number)
        self.assertEqual(228, await self.evict(size_cap=6))
        await self.assert_here(b"228", b"229")

    async def test_manifests_go_with_their_tags(self) -> None:
        digest = await self.manifest_came(b"{old}", "1", "2", at=1000.0)
        await self.manifest_came(b"{new}", "3", at=2000.0)
        self.assertEqual(1, await self.evict(size_cap=5))
        self.assertIsNone(await self.catalog.manifest(ALPINE, digest))
        self.assertEqual(["3"], await self.catalog.tags(ALPINE, None, None))
        await self.assert_here(b"{new}")

    async def test_it_says_what_went_in_the_log_and_the_counter(self) -> None:
        await self.came(b"x" * 70, at=1000.0)
        await self.came(b"of a local image too", at=1001.0)
        await self.catalog.add_blob(APP, Digest.of(b"of a local image too"), 20, nothing)
        lines: list[str] = []
        with self.logged("info") as logged:
            await self.evict(size_cap=1)
            lines = logged()
        self.assertEqual(2, self.counted("evicted"))
        self.assertEqual(["evicted 2 blobs, manifests and lists of docker.io, 70 bytes"], lines)

    async def test_if_nothing_goes_nothing_is_said(self) -> None:
        await self.came(b"x" * 70)
        with self.logged("info") as logged:
            await self.evict(size_cap=70)
        self.assertEqual(([], 0), (logged(), self.counted("evicted")))


class InPartTests(EvictionTestCase):
    """What has come of blobs in part, by ranges or since a fetch was left."""

    async def begun(self, content: bytes, *, at: float, fills: FillStore | None = None) -> str:
        """A fetch that was left; the name of its file."""
        digest = Digest.of(content)
        session = await (fills or self.stores.fills).claim(digest)
        assert session is not None
        session.write(content)
        await session.close()
        return self.written(digest, at=at)

    async def ranged(self, first: int, content: bytes, *, at: float) -> str:
        """A part of a blob that is far larger; the name of its file."""
        digest = Digest.of(content)
        session = await self.stores.fills.add_extent(digest, first, FillInfo(first * 2))
        session.write(content)
        await session.record()
        await session.close()
        return self.written(digest, at=at)

    def written(self, digest: Digest, *, at: float) -> str:
        """Let all files of ``digest`` have been written to then; the name of the largest."""
        folder = self.path / "fills"
        names = [name for name in self.below("fills") if digest.encoded in name]
        for name in names:
            os.utime(folder / name, (at, at))
        return max(names, key=lambda name: (folder / name).stat().st_size)

    async def test_beyond_the_cap_they_take_a_quarter_of_it_and_the_longest_left_goes(self) -> None:
        old = await self.begun(b"1" * PIECE, at=1000.0)
        older = await self.ranged(1 << 30, b"2" * PIECE, at=900.0)
        young = await self.ranged(1 << 30, b"3" * PIECE, at=2000.0)
        elsewhere = await self.begun(
            b"4" * PIECE, at=1.0, fills=self.stores.all_fills.of("ghcr.io")
        )
        kept = await self.came(b"5" * 6 * PIECE, at=500.0)
        self.assertEqual((0, 0), (await self.evict(), await self.evict(size_cap=10 * PIECE)))
        self.assertEqual(2, await self.evict(size_cap=7 * PIECE))
        left = self.below("fills")
        self.assertEqual((True, True), (young in left, elsewhere in left))
        self.assertEqual((False, False), (old in left, older in left))
        await self.assert_holds(kept)

    async def test_what_is_coming_or_just_came_stays(self) -> None:
        claimed = await self.stores.fills.claim(Digest.of(b"claimed"))
        assert claimed is not None
        claimed.write(b"claimed" * PIECE)
        await claimed.flush()
        coming = self.written(Digest.of(b"claimed"), at=1000.0)
        came = await self.begun(b"1" * PIECE, at=LONG_AFTER - GRACE + 1)
        self.assertEqual(0, await self.evict(size_cap=1))
        self.assertEqual({coming, came}, {*self.below("fills")} & {coming, came})
        await claimed.close()
        self.assertEqual(2, await self.evict(size_cap=1, at=LONG_AFTER + 1))
        self.assertEqual([], self.below("fills"))


class AgeTests(EvictionTestCase):
    async def test_what_was_not_pulled_for_so_long_goes(self) -> None:
        old = await self.came(b"old", at=1000.0)
        await self.came(b"young", at=2000.0)
        await self.evict(max_age=500.0, at=2400.0)
        await self.assert_here(b"young")
        self.assertIsNone(await self.catalog.blob_size(ALPINE, old))

    async def test_what_was_pulled_again_stays(self) -> None:
        digest = await self.came(b"old", at=1000.0)
        await self.remote.touch({(ALPINE, digest): 2000.0})
        self.assertEqual(0, await self.evict(max_age=500.0, at=2400.0))

    async def test_whatever_the_rules_nothing_goes_within_the_grace(self) -> None:
        await self.came(b"blob", at=1000.0)
        for rules in ({"max_age": 1.0}, {"size_cap": 1}):
            self.assertEqual(0, await self.evict(**rules, at=1000.0 + GRACE))
        self.assertEqual(1, await self.evict(size_cap=1, at=1000.1 + GRACE))

    async def test_both_rules_hold_together(self) -> None:
        await self.came(b"1" * 10, at=1000.0)
        await self.came(b"2" * 10, at=5000.0)
        await self.came(b"3" * 10, at=5001.0)
        self.assertEqual(2, await self.evict(size_cap=10, max_age=1000.0, at=5500.0))
        await self.assert_here(b"3" * 10)


class StayingTests(EvictionTestCase):
    async def test_pinned_images_stay_wherever_they_stand_among_the_others(self) -> None:
        pinned = []
        for number in range(210):
            image = BUSYBOX if number % 3 else ALPINE
            digest = await self.came(b"%03d" % number, image, at=1000.0 + number)
            pinned += [digest] if image == BUSYBOX else []
        for size_cap, max_age in ((500, 0.0), (100, 0.0), (0, 10.0)):
            await self.evict(size_cap, max_age, pinned=["library/busy*"])
            await self.assert_holds(*pinned, image=BUSYBOX)
        await self.assert_holds(image=ALPINE)

    async def test_bytes_that_another_image_needs_stay(self) -> None:
        local = await self.came(b"pushed here too")
        await self.catalog.add_blob(APP, local, 15, nothing)
        remote = await self.came(b"of another upstream", ALPINE, ELSEWHERE)
        await self.came(b"of nobody else")
        await self.evict(size_cap=1)
        await self.assert_here(b"pushed here too", b"of another upstream")
        await self.assert_holds()
        self.assertEqual(15, await self.catalog.blob_size(APP, local))
        self.assertEqual(19, await self.catalog.blob_size(ELSEWHERE, remote))

    async def test_what_is_being_read_stays(self) -> None:
        digest = await self.came(b"blob")
        last_used = LastUsed(self.remote, lambda: self.time)
        end = last_used.begin(ALPINE, digest)
        self.time = LONG_AFTER
        await last_used.write()
        self.assertEqual(0, await self.evict(size_cap=1))
        end()
        self.time = 2 * LONG_AFTER
        await last_used.write()
        self.assertEqual(1, await self.evict(size_cap=1, at=3 * LONG_AFTER))

    async def test_what_is_pulled_after_it_was_listed_stays(self) -> None:
        pulled, gone = await self.came(b"pulled"), await self.came(b"gone")
        drop = self.remote.drop

        async def dropped(held: Sequence[Held]) -> list[Digest]:
            await self.remote.touch({(ALPINE, pulled): LONG_AFTER})
            return await drop(held)

        self.patch(self.remote, "drop", dropped)
        await self.evict(max_age=10.0)
        await self.assert_here(b"pulled")
        self.assertEqual(6, await self.catalog.blob_size(ALPINE, pulled))
        self.assertIsNone(await self.catalog.blob_size(ALPINE, gone))

    async def test_what_comes_again_before_its_bytes_go_stays(self) -> None:
        await self.came(b"blob")
        drop = self.remote.drop

        async def dropped(held: Sequence[Held]) -> list[Digest]:
            gone = await drop(held)
            await self.came(b"blob", BUSYBOX, at=LONG_AFTER)
            return gone

        self.patch(self.remote, "drop", dropped)
        await self.evict(max_age=10.0)
        await self.assert_here(b"blob")
        await self.assert_holds(Digest.of(b"blob"), image=BUSYBOX)


class LeftOverTests(EvictionTestCase):
    """The rows have gone, and then the bytes do not."""

    async def sweep(self) -> int:
        stores = self.open_stores()
        return await Sweep(
            self.catalog, stores.blobs, stores.uploads, stores.all_fills, 3600.0
        ).run()

    async def dropped(self) -> list[Digest]:
        """A process dies between the two."""
        return await self.remote.drop(await self.remote.least_used("docker.io", 1e12, 0, 100))

    async def test_what_a_dead_process_has_dropped_is_swept(self) -> None:
        await self.came(b"1")
        await self.came(b"2")
        await self.dropped()
        await self.assert_here(b"1", b"2")
        self.assertEqual(2, await self.sweep())
        await self.assert_here()
        self.assertEqual(0, await self.sweep())

    async def test_what_it_has_purged_too(self) -> None:
        await self.came(b"blob")
        await self.remote.purge(ALPINE, None)
        self.assertEqual(1, await self.sweep())
        await self.assert_here()

    async def test_what_has_come_again_stays(self) -> None:
        await self.came(b"blob")
        await self.dropped()
        await self.came(b"blob", BUSYBOX)
        self.assertEqual(0, await self.sweep())
        await self.assert_here(b"blob")
        self.assertEqual([], await self.catalog.dropped_blobs("", 10))

    async def test_bytes_that_can_not_be_removed_now_do_not_keep_the_others(self) -> None:
        digests = [await self.came(b"%d" % number) for number in range(3)]
        remove, stuck = self.stores.blobs.remove, digests[1]

        def fail(digest: Digest) -> None:
            if digest == stuck:
                raise OSError(errno.EIO, "the disk is broken")
            remove(digest)

        patch = self.patch(self.stores.blobs, "remove", fail)
        with self.logged("error") as logged:
            self.assertEqual(3, await self.evict(max_age=10.0))
        await self.assert_here(b"1")
        self.assertIn(str(stuck), logged()[0])
        patch.restore()
        self.assertEqual([stuck], await self.catalog.dropped_blobs("", 10))
        self.assertEqual(1, await self.sweep())
        await self.assert_here()

    async def test_what_is_forgotten_is_not_left_over(self) -> None:
        await self.came(b"blob")
        await forget(await self.dropped(), self.catalog, self.stores.blobs)
        self.assertEqual([], await self.catalog.dropped_blobs("", 10))
        await self.assert_here()
