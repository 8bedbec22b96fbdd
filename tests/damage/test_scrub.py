"""When the store is scrubbed, and by whom."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import count
from pathlib import Path

from msgspec.structs import replace
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock

from artifactd.catalog import repair
from artifactd.catalog.repair import RepairCatalog
from artifactd.kit.deferreds import Stopped
from artifactd.kit.janitor import Pace
from artifactd.oci.names import Digest
from artifactd.registry.upkeep.collector import NotNow
from artifactd.settings.values import Duration, Size
from artifactd.store.blobs import SHELVES
from artifactd.store.examine import ScrubLock, ScrubPosition
from tests.damage.case import FAST, SMALL, DamageCase
from tests.damage.rot import file_of
from tests.durability.recording import CATALOG


class CatalogTests(DamageCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        super().setUp()
        await self.registry.push_image("app", "v1", SMALL)

    async def start_on(self, change: Callable[[bytes], bytes]) -> bytes:
        """Restart the daemon on a changed catalog; the one before."""
        await self.registry.service.stopService()
        path = self.registry.data / CATALOG
        before = path.read_bytes()
        path.write_bytes(change(before))
        self.registry.service.startService()
        self.parts.scrubber.settings = FAST
        return before

    def without_row(self, catalog: bytes) -> bytes:
        """A catalog with one bit flipped, so that the row of a blob is not found by its digest."""
        path = Path(self.mktemp())
        for match in re.finditer(re.escape(str(Digest.of(SMALL)).encode()), catalog):
            damaged = bytearray(catalog)
            damaged[match.end() - 1] ^= 1
            path.write_bytes(damaged)
            with closing(sqlite3.connect(path)) as db:
                select = "SELECT count(*) FROM blob WHERE digest = ?"
                if db.execute(select, (str(Digest.of(SMALL)),)).fetchone() == (0,):
                    return bytes(damaged)
        raise AssertionError("each bit is met by reads")

    def without_page(self, catalog: bytes) -> bytes:
        """A catalog with a page of zeros, which reads seldom meet."""
        path = Path(self.mktemp())
        path.write_bytes(catalog)
        with closing(sqlite3.connect(path)) as db:
            (root,) = db.execute(
                "SELECT rootpage FROM sqlite_schema WHERE name = 'image_count'"
            ).fetchone()
            (size,) = db.execute("PRAGMA page_size").fetchone()
        return catalog[: (root - 1) * size] + bytes(size) + catalog[root * size :]

    async def assert_not_collected(self, shelves: Iterable[int] = range(SHELVES)) -> None:
        collector = self.parts.collector
        collector.now = lambda: time.time() + 1e7
        with self.assertRaises(NotNow) as refused:
            await self.registry.once_free(lambda: collector.run(shelves))
        self.assertRegex(
            str(refused.exception), r"\Athe catalog is damaged \(.+\): restore a backup\Z"
        )
        self.assertTrue(file_of(self.registry.data, Digest.of(SMALL)).exists())

    async def test_a_file_whose_row_is_not_found_is_no_stray(self) -> None:
        await self.start_on(self.without_row)
        await self.assert_not_collected()
        await self.assert_not_collected([])
        self.assertEqual(len(self.logged("the catalog is damaged: ")), 1)

    async def assert_told_once(self, damage: Callable[[bytes], bytes]) -> None:
        """It holds off the collection until it is gone."""
        whole = await self.start_on(damage)
        for _ in range(2):
            await self.scrub()
        self.assertEqual(len(self.logged("the catalog is damaged: ")), 1)
        # What is in the store is scrubbed all the same.
        self.assertEqual(await self.damaged("scrub_rounds_total"), 2)
        await self.restart()
        await self.assert_not_collected()

        await self.start_on(lambda _: whole)
        self.parts.scrubber.settings = replace(FAST, scrub_pause=Duration(3600))
        await self.scrub()
        await self.registry.once_free(self.parts.collector.run)
        self.assertEqual(len(self.logged("the catalog is damaged: ")), 1)

    async def test_an_index_without_a_row_is_told(self) -> None:
        await self.assert_told_once(self.without_row)

    async def test_a_page_that_can_not_be_read_is_told(self) -> None:
        await self.assert_told_once(self.without_page)

    async def test_where_nothing_is_scrubbed_what_was_found_once_does_not_count(self) -> None:
        whole = await self.start_on(self.without_row)
        await self.scrub()
        await self.start_on(lambda _: whole)
        collector = self.parts.collector
        await self.assert_not_collected()
        collector.settings = replace(collector.settings, scrub_rate=Size(0))
        await self.registry.once_free(collector.run)

    async def test_of_many_findings_the_first_is_told(self) -> None:
        def damage(catalog: bytes) -> bytes:
            page = catalog.rindex(str(Digest.of(SMALL)).encode()) // 4096 * 4096
            return catalog[: page + 8] + b"\xff" * 200 + catalog[page + 208 :]

        await self.start_on(damage)
        await self.scrub()
        told = self.parts.collector.scrub.look().wrong
        self.assertRegex(told, r"\A[^*\n]+\Z")

    async def test_it_is_not_waited_for_where_the_daemon_stops(self) -> None:
        self.patch(repair, "_STEPS", 1)
        repairs = RepairCatalog(self.parts.catalog.database)
        self.assertEqual(await repairs.integrity_of("blob"), "")
        repairs.stop()
        await self.assertFailure(ensureDeferred(repairs.integrity_of("blob")), Stopped)
        # The connections that it used are as before.
        self.assertEqual(await RepairCatalog(self.parts.catalog.database).integrity_of("blob"), "")


class RoundTests(DamageCase):
    def position(self) -> ScrubPosition:
        """What a scrubber that comes now would read."""
        lock = ScrubLock(self.registry.data)
        self.assertTrue(lock.claim())
        try:
            return lock.read()
        finally:
            lock.release()

    async def test_nothing_is_read_again_before_the_pause_is_over(self) -> None:
        digest = await self.registry.push_blob("app", SMALL)
        await self.scrub()
        self.parts.scrubber.settings = replace(FAST, scrub_pause=Duration(3600))
        self.rot(digest, "a bit flips")
        await self.scrub()
        self.assertEqual(self.quarantined(), [])
        self.parts.scrubber.settings = FAST
        await self.scrub()
        self.assertEqual(self.quarantined(), [str(digest)])
        self.assertEqual(await self.damaged("scrub_rounds_total"), 2)
        self.assertEqual(await self.damaged("scrubbed_bytes_total"), 2 * len(SMALL))

    async def test_a_round_that_was_begun_goes_on_where_it_was(self) -> None:
        before, behind = sorted(
            [await self.registry.push_blob("app", bytes([n])) for n in range(2)],
            key=lambda digest: digest.encoded,
        )
        lock = ScrubLock(self.registry.data)
        self.assertTrue(lock.claim())
        lock.write(ScrubPosition(int(before.encoded[:2], 16), str(before), 0.0))
        lock.release()
        for digest in (before, behind):
            self.rot(digest, "a bit flips")
        self.parts.scrubber.settings = replace(FAST, scrub_pause=Duration(3600))
        await self.scrub()
        self.assertEqual(self.quarantined(), [str(behind)])
        self.assertEqual(self.position().shelf, 0)

    async def test_a_scrubber_that_is_stopped_says_where(self) -> None:
        await self.registry.push_blob("app", SMALL)
        self.parts.scrubber.settings = replace(FAST, scrub_rate=Size(1))
        running = self.parts.scrubber.run()
        waiting = Deferred.fromCoroutine(running)
        while self.parts.scrubber._pace._pausing._waiting is None:
            await self.registry.request("GET", "/healthz")
        self.parts.scrubber.stop()
        await waiting
        self.assertEqual(self.position().shelf, int(Digest.of(SMALL).encoded[:2], 16))
        self.assertLess(self.position().shelf, SHELVES)

    async def test_a_scrubber_that_is_stopped_on_a_shelf_says_after_which_blob(self) -> None:
        first, _ = await self.two_on_one_shelf()
        scrubber = self.parts.scrubber
        scrubber.settings = replace(FAST, scrub_rate=Size(1))
        scrubber._pace = Pace(clock := Clock())
        stopped = Deferred.fromCoroutine(scrubber.run())
        while scrubber._position.after == "" or not clock.getDelayedCalls():
            if scrubber._position.after == "":
                clock.advance(len(b"000"))
            await self.registry.request("GET", "/healthz")
        scrubber.stop()
        await stopped
        self.assertEqual(self.position(), ScrubPosition(int(first.encoded[:2], 16), str(first)))

    async def two_on_one_shelf(self) -> list[Digest]:
        """Push two blobs of three bytes that lie on one shelf; their digests, in order."""
        by_shelf: dict[str, bytes] = {}
        for number in count():
            content = b"%03d" % number
            shelf = Digest.of(content).encoded[:2]
            if shelf in by_shelf:
                pushed = [
                    await self.registry.push_blob("app", each)
                    for each in (by_shelf[shelf], content)
                ]
                return sorted(pushed, key=lambda digest: digest.encoded)
            by_shelf[shelf] = content
        raise AssertionError("unreachable")

    async def test_a_shelf_that_can_not_be_listed_keeps_no_others_from_being_read(self) -> None:
        first, *_, last = sorted(
            [await self.registry.push_blob("app", b"%d" % number) for number in range(20)],
            key=lambda digest: digest.encoded[:2],
        )
        shelf = self.registry.data / "blobs/sha256" / first.encoded[:2]
        shelf.rename(self.mktemp())
        shelf.touch()
        self.rot(last, "a bit flips")
        await self.scrub()
        self.assertEqual(self.quarantined(), [str(last)])
        self.assertGreater(self.position().ended, 0)

    async def test_one_process_scrubs_at_a_time(self) -> None:
        digest = await self.registry.push_blob("app", SMALL)
        self.rot(digest, "a bit flips")
        other = ScrubLock(self.registry.data)
        self.assertTrue(other.claim())
        await self.scrub()
        self.assertEqual(self.quarantined(), [])
        other.release()
        await self.scrub()
        self.assertEqual(self.quarantined(), [str(digest)])

    async def test_what_was_quarantined_long_ago_goes(self) -> None:
        digest = await self.registry.push_blob("app", SMALL)
        self.rot(digest, "a bit flips")
        await self.scrub()
        self.parts.scrubber.settings = replace(FAST, quarantine_keep=Duration(60))
        await self.scrub()
        self.assertEqual(self.quarantined(), [str(digest)])
        self.parts.scrubber.now = lambda: 1e12
        await self.scrub()
        self.assertEqual(list((self.registry.data / "quarantine").iterdir()), [])

    async def test_what_was_quarantined_and_is_right_after_all_is_had_again(self) -> None:
        digest = await self.registry.push_blob("app", SMALL)
        self.rot(digest, "a bit flips")
        await self.scrub()
        self.right_again()
        self.assertEqual(await self.statuses(f"/v2/app/blobs/{digest}"), (404, 404))
        await self.expire()
        answer = await self.registry.request("GET", f"/v2/app/blobs/{digest}")
        self.assertEqual((answer.status, answer.body), (200, SMALL))
        self.assertEqual(file_of(self.registry.data, digest).stat().st_mode, 0o100444)
        self.assertEqual(list((self.registry.data / "staging").iterdir()), [])
        self.assertEqual(self.quarantined(), [])
        self.assertTrue(self.logged(str(digest), "whole again, from quarantine"))

    async def test_what_is_right_after_all_goes_where_it_was_pushed_again_since(self) -> None:
        digest = await self.registry.push_blob("app", SMALL)
        self.rot(digest, "a bit flips")
        await self.scrub()
        self.right_again()
        await self.registry.push_blob("app", SMALL)
        pushed = file_of(self.registry.data, digest).stat().st_ino
        await self.expire()
        self.assertEqual(self.quarantined(), [])
        self.assertEqual(file_of(self.registry.data, digest).stat().st_ino, pushed)

    async def test_what_can_not_be_read_at_present_stays_in_quarantine(self) -> None:
        digest = await self.registry.push_blob("app", SMALL)
        self.rot(digest, "a bit flips")
        await self.scrub()
        store = self.parts.scrubber.blobs
        ((name, _),) = await store.expired(1e12)
        examination = await store.examine_expired(name, digest)
        self.addCleanup(examination.close)
        examination.flaw, examination.is_unreadable = "it can't be read", True
        await self.parts.damage.expire(name, examination)
        self.assertEqual(self.quarantined(), [str(digest)])

    def right_again(self) -> None:
        """The disk is back, and what is in quarantine with it."""
        for file in (self.registry.data / "quarantine").iterdir():
            if not file.name.endswith(".json"):
                file.chmod(0o600)
                file.write_bytes(SMALL)
                file.chmod(0o000)

    async def expire(self) -> None:
        self.parts.scrubber.settings = replace(FAST, quarantine_keep=Duration(60))
        self.parts.scrubber.now = lambda: 1e12
        await self.scrub()
