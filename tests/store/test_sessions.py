"""An upload session between a fast sender and a slow disk, and its hash state."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from uuid import uuid4

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from artifactd.kit.shared import Notebook, Notes, SharedMemory
from artifactd.oci.names import Algorithm, Digest
from artifactd.store.intake import BATCH, HIGH_WATER, RunningDigest, RunningDigests
from artifactd.store.uploads import UploadBusy, UploadMissing, UploadSession, UploadStore
from tests.store.fixture import (
    MEBIBYTE,
    RecordedFiles,
    RecordedProducer,
    SlowThreads,
    StoreTestCase,
)

_T = TypeVar("_T")


CHUNK = b"x" * (64 * 1024)
STAMP = (1, 2)


class SessionTestCase(StoreTestCase):
    """
    :ivar threads: those of ``slow``, stores whose threads begin when told to.
    """

    def setUp(self) -> None:
        super().setUp()
        self.slow_threads = SlowThreads()
        self.files = RecordedFiles()
        self.slow = self.open_stores(self.files, self.slow_threads)
        self.upload_id = str(uuid4())
        self.new_upload(self.upload_id)
        self.session = self.claimed()

    def ended(self, coroutine: Coroutine[Deferred[Any], Any, _T]) -> _T:
        """What comes of ``coroutine`` when all threads have run."""
        running = ensureDeferred(coroutine)
        self.slow_threads.run_all()
        return self.successResultOf(running)

    def claimed(self) -> UploadSession:
        session = self.ended(self.slow.uploads.claim(self.upload_id, Algorithm.SHA256))
        assert isinstance(session, UploadSession)
        return session

    def write(self, size: int) -> None:
        for _ in range(size // len(CHUNK)):
            self.session.write(CHUNK)

    def staged(self) -> int:
        """Bytes in the file."""
        return (self.path / "uploads" / self.upload_id).stat().st_size


class BatchTests(SessionTestCase):
    def test_it_is_a_consumer(self) -> None:
        self.assertTrue(verifyObject(IConsumer, self.session))

    def test_a_thread_gets_a_batch_at_a_time(self) -> None:
        self.write(BATCH - len(CHUNK))
        self.assertEqual([], self.slow_threads.waiting)
        self.write(len(CHUNK))
        self.assertEqual(1, len(self.slow_threads.waiting))

    def test_the_next_batch_gathers_while_one_is_written(self) -> None:
        self.write(2 * BATCH)
        self.assertEqual(1, len(self.slow_threads.waiting))
        self.slow_threads.run_one()
        self.assertEqual((BATCH, 1), (self.staged(), len(self.slow_threads.waiting)))
        self.slow_threads.run_one()
        self.assertEqual((2 * BATCH, 0), (self.staged(), len(self.slow_threads.waiting)))

    def test_a_flush_does_not_wait_for_a_full_batch(self) -> None:
        self.session.write(b"little")
        self.assertEqual(6, self.ended(self.session.flush()))
        self.assertEqual(6, self.staged())

    def test_a_flush_waits_for_all_batches(self) -> None:
        self.write(BATCH)
        self.session.write(b"more")
        flushed = ensureDeferred(self.session.flush())
        self.slow_threads.run_one()
        self.assertNoResult(flushed)
        self.slow_threads.run_one()
        self.assertEqual(BATCH + 4, self.successResultOf(flushed))

    def test_a_great_many_pieces_are_written_at_once(self) -> None:
        for _ in range(5000):
            self.session.write(b"crumb")
        self.ended(self.session.flush())
        self.assertEqual(25000, self.staged())
        self.assertEqual(1, self.files.calls.count("write uploads/…"))


class FlowTests(SessionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.producer = RecordedProducer()
        self.session.registerProducer(self.producer, True)

    def test_the_sender_is_paused_while_the_disk_is_behind(self) -> None:
        self.write(HIGH_WATER - len(CHUNK))
        self.assertEqual([], self.producer.told)
        self.write(len(CHUNK))
        self.assertEqual(["pause"], self.producer.told)
        self.slow_threads.run_one()
        self.assertEqual(["pause", "resume"], self.producer.told)

    def test_what_arrives_after_the_pause_is_kept(self) -> None:
        self.write(HIGH_WATER + len(CHUNK))
        self.assertEqual(["pause"], self.producer.told)
        self.ended(self.session.flush())
        self.assertEqual(HIGH_WATER + len(CHUNK), self.staged())

    def test_a_sender_that_came_too_late_waits_at_once(self) -> None:
        self.session.unregisterProducer()
        self.write(HIGH_WATER)
        late = RecordedProducer()
        self.session.registerProducer(late, True)
        self.assertEqual(["pause"], late.told)

    def test_a_sender_that_has_left_is_told_nothing(self) -> None:
        self.write(HIGH_WATER)
        self.session.unregisterProducer()
        self.slow_threads.run_all()
        self.assertEqual(["pause"], self.producer.told)

    def test_there_is_one_sender_at_a_time(self) -> None:
        with self.assertRaises(RuntimeError):
            self.session.registerProducer(RecordedProducer(), True)

    def test_a_pull_producer_is_refused(self) -> None:
        self.session.unregisterProducer()
        with self.assertRaises(ValueError):
            self.session.registerProducer(RecordedProducer(), False)

    def test_an_exhausted_budget_pauses_and_writes_out_what_little_there_is(self) -> None:
        self.session.write(b"little")
        self.budget.acquire(self.budget.threshold - self.budget.used)
        waiting = self.budget.acquire(1)
        self.assertEqual(["pause"], self.producer.told)
        self.slow_threads.run_all()
        self.assertEqual(6, self.staged())
        self.successResultOf(waiting)
        self.assertEqual(["pause", "resume"], self.producer.told)

    def test_all_that_was_taken_is_given_back(self) -> None:
        self.write(HIGH_WATER)
        self.assertEqual(HIGH_WATER, self.budget.used)
        self.ended(self.session.close())
        self.assertEqual(0, self.budget.used)


class ToldTests(SessionTestCase):
    """
    Two processes of one daemon, of which one tells the other what it has hashed.

    :ivar first, second: their uploads.
    """

    def setUp(self) -> None:
        super().setUp()
        self.ended(self.session.close())
        memory = SharedMemory.create()
        self.first, self.second = (
            self.open_stores(
                self.files,
                self.slow_threads,
                notes=Notes(SharedMemory(memory.descriptor), Notebook.UPLOADS, Clock()),
            ).uploads
            for _ in range(2)
        )

    def append(self, uploads: UploadStore, content: bytes) -> None:
        session = self.ended(uploads.claim(self.upload_id, Algorithm.SHA256))
        session.write(content)
        self.ended(session.close())

    def digest(self, uploads: UploadStore, algorithm: Algorithm = Algorithm.SHA256) -> Digest:
        session = self.ended(uploads.claim(self.upload_id, algorithm))
        digest = self.ended(session.digest(algorithm))
        self.ended(session.close())
        return digest

    def test_what_one_has_hashed_the_other_does_not_read(self) -> None:
        content = b"xy" * MEBIBYTE
        self.append(self.first, content)
        for _ in range(2):
            self.assertEqual(Digest.of(content), self.digest(self.second))
        self.assertEqual(0, self.files.read_back)

    def test_all_is_read_where_more_has_come_since_and_that_is_told_too(self) -> None:
        content = b"xy" * MEBIBYTE
        self.append(self.first, content)
        self.append(self.second, b"more")
        for uploads in (self.second, self.first):
            self.assertEqual(Digest.of(content + b"more"), self.digest(uploads))
        self.assertEqual(len(content + b"more"), self.files.read_back)

    def test_all_is_read_for_another_algorithm(self) -> None:
        content = b"xy" * MEBIBYTE
        self.append(self.first, content)
        digest = self.digest(self.second, Algorithm.SHA512)
        self.assertEqual(Digest.of(content, Algorithm.SHA512), digest)

    def test_of_a_small_upload_nothing_is_told(self) -> None:
        self.append(self.first, b"little")
        self.assertEqual(Digest.of(b"little"), self.digest(self.second))
        self.assertEqual(6, self.files.read_back)

    def test_all_is_read_of_another_file_of_the_same_name_and_size(self) -> None:
        self.append(self.first, b"xy" * MEBIBYTE)
        os.rename(self.path / "uploads" / self.upload_id, self.path / "other")
        self.new_upload(self.upload_id)
        content = b"yx" * MEBIBYTE
        self.append(self.slow.uploads, content)
        for uploads in (self.first, self.second):
            self.assertEqual(Digest.of(content), self.digest(uploads))


class HashingTests(SessionTestCase):
    def test_bytes_hashed_as_they_came_are_not_read_again(self) -> None:
        for _ in range(3):
            self.write(BATCH)
            self.ended(self.session.close())
            self.session = self.claimed()
        digest = self.ended(self.session.digest(Algorithm.SHA256))
        self.assertEqual(Digest.of(b"x" * 3 * BATCH), digest)
        self.assertEqual(0, self.files.read_back)

    def test_a_batch_is_offered_to_another_thread_which_may_hash_it_or_not(self) -> None:
        for takes in (False, True):
            offered: list[Callable[[], object]] = []

            def offer(
                begin: Callable[[], object],
                takes: bool = takes,
                offered: list[Callable[[], object]] = offered,
            ) -> None:
                offered.append(begin)
                if takes:
                    begin()

            self.slow = self.open_stores(self.files, self.slow_threads, offer)
            self.upload_id = str(uuid4())
            self.new_upload(self.upload_id)
            self.session = self.claimed()
            self.write(BATCH)
            self.session.write(b"little")
            digest = self.ended(self.session.digest(Algorithm.SHA256))
            self.assertEqual(Digest.of(b"x" * BATCH + b"little"), digest)
            self.assertEqual((len(offered), self.files.read_back), (1, 0))
            offered[0]()  # a thread that comes too late
            self.assertEqual(digest, self.ended(self.session.digest(Algorithm.SHA256)))
            self.ended(self.session.close())

    def test_all_is_read_where_another_process_has_brought_some(self) -> None:
        self.session.write(b"here ")
        self.ended(self.session.close())
        self.elsewhere(b"there ")
        os.utime(self.path / "uploads" / self.upload_id, (0, 0))  # another time than the first
        self.session = self.claimed()
        self.session.write(b"here")
        digest = self.ended(self.session.digest(Algorithm.SHA256))
        self.assertEqual(Digest.of(b"here there here"), digest)
        self.assertEqual(len(b"here there here"), self.files.read_back)

    def test_all_is_read_of_an_upload_that_is_shorter_than_what_was_hashed(self) -> None:
        self.session.write(b"bytes")
        self.ended(self.session.close())
        os.truncate(self.path / "uploads" / self.upload_id, 4)
        self.session = self.claimed()
        digest = self.ended(self.session.digest(Algorithm.SHA256))
        self.assertEqual(Digest.of(b"byte"), digest)

    def test_all_is_read_for_another_algorithm(self) -> None:
        self.session.write(b"bytes")
        digest = self.ended(self.session.digest(Algorithm.SHA512))
        self.assertEqual(Digest.of(b"bytes", Algorithm.SHA512), digest)
        self.assertEqual(5, self.files.read_back)

    def test_what_was_caught_up_on_is_not_read_twice(self) -> None:
        self.elsewhere(b"there")
        self.session = self.claimed()
        for _ in range(2):
            self.ended(self.session.digest(Algorithm.SHA256))
        self.assertEqual(5, self.files.read_back)

    def test_after_a_rollback_only_the_rest_is_read(self) -> None:
        self.session.write(b"hashed")
        self.ended(self.session.close())
        self.session = self.claimed()
        self.session.write(b" kept and not")
        self.ended(self.session.rollback(len(b"hashed kept")))
        digest = self.ended(self.session.digest(Algorithm.SHA256))
        self.assertEqual(Digest.of(b"hashed kept"), digest)
        self.assertEqual(len(b" kept"), self.files.read_back)

    def test_a_long_reading_lets_others_have_the_thread(self) -> None:
        self.elsewhere(b"x" * (40 * MEBIBYTE))
        self.session = self.claimed()
        digesting = ensureDeferred(self.session.digest(Algorithm.SHA256))
        turns = 0
        while self.slow_threads.waiting:
            self.slow_threads.run_one()
            turns += 1
        self.assertEqual(Digest.of(b"x" * (40 * MEBIBYTE)), self.successResultOf(digesting))
        self.assertEqual(3, turns)

    def elsewhere(self, content: bytes) -> None:
        """Let another process append ``content``."""
        self.ended(self.session.close())
        uploads = self.open_stores().uploads
        session = self.ended(uploads.claim(self.upload_id, Algorithm.SHA256))
        session.write(content)
        self.ended(session.close())


class CancellationTests(SessionTestCase):
    def test_a_thread_goes_on_and_the_file_is_closed_after_it(self) -> None:
        self.session.write(b"bytes")
        flushing = ensureDeferred(self.session.flush())
        flushing.cancel()
        self.failureResultOf(flushing, CancelledError)
        closing = ensureDeferred(self.session.close())
        self.assertNoResult(closing)
        self.slow_threads.run_all()
        self.successResultOf(closing)
        self.assertEqual(5, self.staged())

    def test_closing_goes_on_when_nobody_waits_for_it(self) -> None:
        self.session.write(b"bytes")
        closing = ensureDeferred(self.session.close())
        closing.cancel()
        self.failureResultOf(closing, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual(5, self.claimed().offset)

    def test_a_claim_that_nobody_waits_for_is_given_up(self) -> None:
        self.ended(self.session.close())
        claiming = ensureDeferred(self.slow.uploads.claim(self.upload_id, Algorithm.SHA256))
        claiming.cancel()
        self.failureResultOf(claiming, CancelledError)
        self.slow_threads.run_all()
        self.assertEqual(0, self.claimed().offset)

    def test_a_staged_blob_that_nobody_waits_for_is_swept(self) -> None:
        self.session.write(b"bytes")
        digest = self.ended(self.session.digest(Algorithm.SHA256))
        staging = ensureDeferred(self.session.stage(digest))
        staging.cancel()
        self.failureResultOf(staging, CancelledError)
        self.ended(self.session.close())
        self.assertEqual(1, len(self.ended(self.slow.blobs.sweep(self.rows.forget))))
        self.assertEqual([], self.below("staging") + self.below("uploads"))

    def test_a_blob_is_withdrawn_only_after_its_publication_has_ended(self) -> None:
        digest = Digest.of(b"blob")
        staged = self.ended(self.slow.blobs.stage(digest, b"blob"))
        publishing = ensureDeferred(staged.publish())
        publishing.cancel()
        self.failureResultOf(publishing, CancelledError)
        self.ended(staged.withdraw(self.rows.forget))
        self.assertEqual([], self.below("staging") + self.below("blobs"))

    def test_nothing_is_taken_after_the_close(self) -> None:
        self.ended(self.session.close())
        self.session.write(b"late")
        self.slow_threads.run_all()
        self.assertEqual((0, 0), (self.staged(), self.budget.used))

    def test_an_upload_that_is_being_written_is_busy_until_closed(self) -> None:
        claiming = ensureDeferred(self.slow.uploads.claim(self.upload_id, Algorithm.SHA256))
        self.slow_threads.run_all()
        self.failureResultOf(claiming, UploadBusy)
        self.ended(self.session.discard())
        self.ended(self.session.close())
        claiming = ensureDeferred(self.slow.uploads.claim(self.upload_id, Algorithm.SHA256))
        self.slow_threads.run_all()
        self.failureResultOf(claiming, UploadMissing)


SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512


def running(content: bytes) -> RunningDigest:
    digest = RunningDigest(SHA256)
    digest.update(content)
    return digest


class RunningDigestTests(SynchronousTestCase):
    def test_it_is_that_of_all_pieces(self) -> None:
        digest = running(b"one ")
        digest.update(memoryview(b"two"))
        self.assertEqual((Digest.of(b"one two"), 7), (digest.digest(), digest.length))

    def test_a_copy_goes_its_own_way(self) -> None:
        digest = running(b"one")
        copy = digest.copy()
        digest.update(b" two")
        self.assertEqual((Digest.of(b"one"), 3), (copy.digest(), copy.length))


class RunningDigestsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.kept = RunningDigests(limit=2)

    def test_one_that_was_kept_goes_on(self) -> None:
        self.kept.keep("upload", digest := running(b"bytes"), STAMP)
        self.assertEqual((digest, STAMP), self.kept.take("upload", SHA256))

    def test_it_is_dropped_for_another_algorithm(self) -> None:
        self.kept.keep("upload", running(b"bytes"), STAMP)
        fresh, stamp = self.kept.take("upload", SHA512)
        self.assertEqual((SHA512, 0, None), (fresh.algorithm, fresh.length, stamp))

    def test_it_serves_one_claim(self) -> None:
        self.kept.keep("upload", running(b"bytes"), STAMP)
        self.kept.take("upload", SHA256)
        self.assertEqual(0, self.kept.take("upload", SHA256)[0].length)

    def test_a_forgotten_one_is_gone(self) -> None:
        self.kept.keep("upload", running(b"bytes"), STAMP)
        self.kept.forget("upload")
        self.assertEqual(0, self.kept.take("upload", SHA256)[0].length)

    def test_the_oldest_goes_when_there_are_too_many(self) -> None:
        for upload_id in "abc":
            self.kept.keep(upload_id, running(b"bytes"), STAMP)
        lengths = [self.kept.take(upload_id, SHA256)[0].length for upload_id in "abc"]
        self.assertEqual([0, 5, 5], lengths)
