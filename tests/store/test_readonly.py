"""The mark that lets nobody change anything."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.store.files import FileOperations
from artifactd.store.folder import MARK, ReadOnlyMode


class Recorded(FileOperations):
    """Which calls are made, in their order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def create(self, directory: int, name: str) -> int:
        self.calls.append(f"create {name}")
        return super().create(directory, name)

    def unlink(self, directory: int, name: str) -> None:
        self.calls.append(f"unlink {name}")
        super().unlink(directory, name)

    def sync(self, fd: int) -> None:
        self.calls.append("sync")
        super().sync(fd)


class ReadOnlyModeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)
        self.files = Recorded()
        self.mode = ReadOnlyMode(self.folder, files=self.files)

    def test_it_is_off_at_first(self) -> None:
        self.assertFalse(self.mode.on())

    def test_others_on_the_folder_see_it_at_once(self) -> None:
        other = ReadOnlyMode(self.folder)
        self.mode.turn_on()
        self.assertTrue(other.on())
        self.mode.turn_off()
        self.assertFalse(other.on())

    def test_it_is_durable_when_it_has_been_turned(self) -> None:
        self.mode.turn_on()
        self.mode.turn_off()
        self.assertEqual(self.files.calls, [f"create {MARK}", "sync", f"unlink {MARK}", "sync"])

    def test_turning_it_twice_is_turning_it_once(self) -> None:
        for turn, on in ((self.mode.turn_on, True), (self.mode.turn_off, False)):
            for _ in range(2):
                turn()
                self.assertEqual(self.mode.on(), on)

    def test_a_setting_turns_it_on_whatever_the_folder_says(self) -> None:
        self.assertTrue(ReadOnlyMode(self.folder, always=True).on())

    def test_a_folder_that_can_not_tell_has_it_on(self) -> None:
        os.rmdir(self.folder)
        self.folder.touch()
        self.assertTrue(self.mode.on())
