"""Which of several processes on a data folder does what one has to do for all."""

from __future__ import annotations

import socket
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.store.folder import Duties, ReloadSocket


class DutyTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir(mode=0o700)
        self.one, self.other = Duties(folder), Duties(folder)
        self.addCleanup(self.one.release)
        self.addCleanup(self.other.release)

    def test_one_has_them_until_it_ends_and_then_another_one(self) -> None:
        for _ in range(2):
            self.assertTrue(self.one.held())
            self.assertFalse(self.other.held())
        self.one.release()
        self.assertTrue(self.other.held())

    def test_one_that_has_left_them_never_takes_them_again(self) -> None:
        self.assertTrue(self.one.held())
        self.one.release()
        self.assertFalse(self.one.held())


class ReloadSocketTests(SynchronousTestCase):
    def setUp(self) -> None:
        # A path that is longer than the name of a socket may be.
        self.folder = Path(self.mktemp()).absolute() / ("x" * 120)
        self.folder.mkdir(mode=0o700, parents=True)
        self.socket = ReloadSocket(self.folder)
        self.addCleanup(self.socket.release)

    def listen(self, name: str | None) -> socket.socket:
        assert name is not None
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.bind(name)
        listening.listen()
        return listening

    def test_a_command_reaches_the_one_that_has_claimed_it(self) -> None:
        listening = self.listen(self.socket.claim())
        with ReloadSocket(self.folder).named() as name, socket.socket(socket.AF_UNIX) as asking:
            asking.connect(name)
            listening.accept()[0].close()

    def test_what_one_that_was_killed_has_left_is_in_nobodys_way(self) -> None:
        self.listen(self.socket.claim()).close()
        self.socket.release()
        self.listen(ReloadSocket(self.folder).claim())

    def test_a_second_one_gets_none(self) -> None:
        self.listen(self.socket.claim())
        self.assertIsNone(ReloadSocket(self.folder).claim())
