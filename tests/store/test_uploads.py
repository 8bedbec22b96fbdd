"""Claiming the file of an upload while others look at it, or take it away."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from artifactd.store.files import Directory, FileOperations
from artifactd.store.uploads import UploadBusy, UploadDirectory, UploadMissing


class LookTests(SynchronousTestCase):
    """Somebody looks whether the upload is idle: holds a shared lock for an instant."""

    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.mkdir()
        self.directory = Directory.open(path)
        self.addCleanup(self.directory.close)
        self.upload_id = str(uuid4())
        self.uploads().create(self.upload_id)
        self.looking = os.open(path / self.upload_id, os.O_RDONLY)
        self.addCleanup(os.close, self.looking)
        fcntl.flock(self.looking, fcntl.LOCK_SH)
        self.waited = 0

    def uploads(self, meanwhile: Callable[[], None] = lambda: None) -> UploadDirectory:
        """In which ``meanwhile`` happens when a claim waits for the tenth time."""

        def pause(_: float) -> None:
            self.waited += 1
            if self.waited == 10:
                meanwhile()

        return UploadDirectory(self.directory, FileOperations(), pause)

    def look_away(self) -> None:
        fcntl.flock(self.looking, fcntl.LOCK_UN)

    def test_a_claim_waits_for_who_only_looks(self) -> None:
        fd, size = self.uploads(self.look_away).claim(self.upload_id)
        self.addCleanup(os.close, fd)
        self.assertEqual((0, 10), (size, self.waited))

    def test_a_claim_does_not_wait_for_another_claim(self) -> None:
        fcntl.flock(self.looking, fcntl.LOCK_EX)
        with self.assertRaises(UploadBusy):
            self.uploads().claim(self.upload_id)
        self.assertEqual(0, self.waited)

    def test_a_claim_that_waited_finds_what_was_discarded_missing(self) -> None:
        def discard_and_look_away() -> None:
            self.uploads().discard(self.upload_id)
            self.look_away()

        with self.assertRaises(UploadMissing):
            self.uploads(discard_and_look_away).claim(self.upload_id)

    def test_a_claim_does_not_wait_for_ever(self) -> None:
        with self.assertRaises(UploadBusy):
            self.uploads().claim(self.upload_id)

    def test_two_may_look_at_once(self) -> None:
        self.assertEqual([self.upload_id], self.uploads().idle(float("inf")))
