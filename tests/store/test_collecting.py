"""Who collects, of several processes on one folder; and who holds that off."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.store.folder import CollectionLock, FolderCollectionLock, collection_held
from tests.programs import Process


class CollectionLockTests(TestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.mkdir()
        self.one, self.other = self.lock(), self.lock()

    def lock(self) -> CollectionLock:
        lock = FolderCollectionLock(self.path)
        self.addCleanup(lock.release)
        return lock

    def free(self, lock: CollectionLock) -> bool:
        with lock.step() as free:
            return free

    def test_one_collects_at_a_time(self) -> None:
        self.assertTrue(self.one.claim())
        self.assertFalse(self.other.claim())
        self.one.release()
        self.assertTrue(self.other.claim())

    def test_nobody_collects_twice(self) -> None:
        self.assertTrue(self.one.claim())
        self.assertFalse(self.one.claim())
        self.assertTrue(self.free(self.one))

    def test_while_it_is_held_off_no_step_is_made(self) -> None:
        self.one.claim()
        self.assertTrue(self.free(self.one))
        with collection_held(self.path), collection_held(self.path):
            self.assertFalse(self.free(self.one))
        self.assertTrue(self.free(self.one))

    async def test_who_holds_it_off_waits_for_the_step_that_is_under_way(self) -> None:
        held, end = threading.Event(), threading.Event()
        self.addCleanup(end.set)

        def hold() -> None:
            with collection_held(self.path):
                held.set()
                end.wait(60)

        self.one.claim()
        with self.one.step() as free:
            self.assertTrue(free)
            holding = deferToThread(hold)
            self.assertFalse(held.is_set())
        await deferToThread(held.wait, 60)
        self.assertFalse(self.free(self.one))
        end.set()
        await holding
        self.assertTrue(self.free(self.one))

    async def test_a_killed_process_neither_collects_nor_holds(self) -> None:
        script = (
            "import sys; from pathlib import Path; from artifactd.store import folder as c;"
            "p = Path(sys.argv[1]); l = c.FolderCollectionLock(p); assert l.claim();"
            "h = c.collection_held(p); h.__enter__(); print('held', flush=True);"
            "import signal; signal.pause()"
        )
        process = Process.start(self, sys.executable, "-c", script, str(self.path.absolute()))
        await process.matched("held")
        self.assertFalse(self.one.claim())
        await process.kill(9)
        self.assertTrue(self.one.claim())
        self.assertTrue(self.free(self.one))
