"""Which data folders artifactd starts on, and who may use one at the same time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.start import StartError
from artifactd.store.folder import FORMAT, MARKER, DataFolder
from tests.programs import require
from tests.store.test_procfs import mount


class FolderTestCase(SynchronousTestCase):
    """:ivar path: where the test's folder will be."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.waited = 0.0

    def opened(self, path: Path | None = None, *, patience: float = 0.0) -> DataFolder:
        folder = DataFolder.open(path or self.path, patience=patience, sleep=self.pass_time)
        self.addCleanup(folder.close)
        return folder

    def pass_time(self, seconds: float) -> None:
        self.waited += seconds

    def assert_refused(self, why: str, path: Path | None = None) -> None:
        with self.assertRaises(StartError) as caught:
            self.opened(path)
        message = str(caught.exception)
        self.assertIn(why, message)
        self.assertNotIn("\n", message)


class FolderTests(FolderTestCase):
    def test_a_missing_one_is_made_for_us_alone(self) -> None:
        folder = self.opened()
        self.assertEqual(0o40700, self.path.stat().st_mode)
        self.assertEqual(FORMAT, (self.path / MARKER).read_text())
        self.assertEqual(self.path / "catalog.sqlite3", folder.catalog)
        for directory in (folder.blobs, folder.uploads, folder.staging, folder.fills):
            self.assertEqual(0o40700, os.fstat(directory.fd).st_mode)
            self.assertEqual(str(self.path), os.path.dirname(directory.path))

    def test_one_that_artifactd_made_is_used_again(self) -> None:
        self.opened().close()
        (self.path / "catalog.sqlite3").touch()
        self.assertEqual(self.path, self.opened().path)

    def test_one_of_a_release_without_fills_gets_them(self) -> None:
        self.opened().close()
        (self.path / "fills").rmdir()
        self.assertEqual([], self.opened().fills.names())

    def test_an_empty_one_is_taken(self) -> None:
        self.path.mkdir()
        (self.path / "lost+found").mkdir()
        self.assertEqual(self.path, self.opened().path)

    def test_one_that_holds_other_things_is_refused_and_left_alone(self) -> None:
        self.path.mkdir()
        (self.path / "thesis.txt").touch()
        self.assert_refused("holds other things ('thesis.txt')")
        self.assertEqual(["thesis.txt"], os.listdir(self.path))

    def test_a_symbolic_link_is_refused(self) -> None:
        self.opened().close()
        link = Path(self.mktemp()).absolute()
        link.symlink_to(self.path)
        self.assert_refused("is a symbolic link", link)

    def test_a_file_is_refused(self) -> None:
        self.path.touch()
        self.assert_refused("is not a folder")

    def test_a_folder_in_a_missing_one_is_refused(self) -> None:
        self.assert_refused("No such file or directory", self.path / "below")

    def test_one_of_another_user_is_refused(self) -> None:
        require(root=True)
        self.path.mkdir()
        os.chown(self.path, 4711, 4711)
        self.assert_refused("belongs to user 4711")

    def test_one_with_a_link_for_a_part_is_refused(self) -> None:
        self.path.mkdir()
        (self.path / MARKER).write_text(FORMAT)
        (self.path / "blobs").symlink_to("/")
        self.assert_refused("not a directory: artifactd did not make it")

    def test_one_with_a_link_for_the_marker_is_refused(self) -> None:
        self.path.mkdir()
        elsewhere = Path(self.mktemp())
        (self.path / MARKER).symlink_to(elsewhere.absolute())
        self.assert_refused("not a regular file: artifactd did not make it")
        self.assertFalse(elsewhere.exists())

    def test_one_of_another_format_is_refused(self) -> None:
        self.path.mkdir()
        (self.path / MARKER).write_text("artifactd data folder, format 2\n")
        self.assert_refused("another format than this artifactd's")

    def test_a_marker_that_the_power_has_torn_is_written_again(self) -> None:
        self.path.mkdir()
        for torn in (FORMAT[:5], FORMAT[:-1], "\0" * len(FORMAT), ""):
            (self.path / MARKER).write_text(torn)
            DataFolder.open(self.path).close()
            self.assertEqual(FORMAT, (self.path / MARKER).read_text())

    def test_one_on_a_network_filesystem_is_refused(self) -> None:
        mountinfo = Path(self.mktemp())
        for kind in ("nfs", "nfs4", "cifs", "9p", "ceph", "fuse.sshfs"):
            mountinfo.write_text(mount("/", kind))
            with self.assertRaisesRegex(StartError, rf"network filesystem \({kind}\)"):
                DataFolder.open(self.path, mountinfo=mountinfo)
        mountinfo.write_text(mount("/", "ext4"))
        DataFolder.open(self.path, mountinfo=mountinfo).close()

    def test_it_is_known_whether_its_files_lie_in_memory(self) -> None:
        mountinfo = Path(self.mktemp())
        for kind, in_memory in (("tmpfs", True), ("ramfs", True), ("ext4", False)):
            mountinfo.write_text(mount("/", kind))
            folder = DataFolder.open(self.path, mountinfo=mountinfo)
            self.assertIs(folder.in_memory, in_memory)
            folder.close()

    def test_where_mounts_can_not_be_told_it_starts(self) -> None:
        missing = Path(self.mktemp())
        DataFolder.open(self.path, mountinfo=missing).close()
        self.assertEqual(FORMAT, (self.path / MARKER).read_text())


class SharingTests(FolderTestCase):
    def locked(self, kind: int) -> bool:
        """Whether somebody else could lock the folder now."""
        fd = os.open(self.path / MARKER, os.O_RDWR)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)

    def test_the_first_has_it_alone_until_it_settles(self) -> None:
        first = self.opened()
        self.assertTrue(self.locked(fcntl.LOCK_SH))
        first.settle()
        self.assertFalse(self.locked(fcntl.LOCK_SH))
        self.assertTrue(self.locked(fcntl.LOCK_EX))

    def test_others_share_it_afterwards(self) -> None:
        self.opened().settle()
        self.opened()
        self.opened()
        self.assertEqual(0.0, self.waited)

    def test_who_comes_meanwhile_waits(self) -> None:
        first = self.opened()

        def pass_time(seconds: float) -> None:
            self.pass_time(seconds)
            if self.waited > 1:
                first.settle()

        second = DataFolder.open(self.path, patience=10.0, sleep=pass_time)
        self.addCleanup(second.close)
        self.assertGreater(self.waited, 1)
        self.assertLess(self.waited, 2)

    def test_but_not_for_ever(self) -> None:
        self.opened()
        with self.assertRaisesRegex(StartError, "is being migrated by another process"):
            self.opened(patience=3.0)
        self.assertTrue(3 <= self.waited < 4, self.waited)

    def test_closing_lets_go(self) -> None:
        folder = self.opened()
        folder.close()
        folder.close()
        self.assertFalse(self.locked(fcntl.LOCK_EX))

    def test_and_closes_all_that_was_open(self) -> None:
        folder = self.opened()
        folder.close()
        for directory in (folder.blobs, folder.uploads, folder.staging, folder.fills):
            self.assertRaises(OSError, os.fstat, directory.fd)

    def test_one_who_is_alone_can_have_it_exclusively(self) -> None:
        folder = self.opened()
        folder.settle()
        with folder.exclusive():
            self.assertTrue(self.locked(fcntl.LOCK_SH))
        self.assertFalse(self.locked(fcntl.LOCK_SH))

    def test_the_first_keeps_it_after_a_migration(self) -> None:
        folder = self.opened()
        with folder.exclusive():
            pass
        self.assertTrue(self.locked(fcntl.LOCK_SH))

    def test_one_who_is_not_alone_can_not_and_still_shares_it(self) -> None:
        first = self.opened()
        first.settle()
        second = self.opened()
        with self.assertRaisesRegex(StartError, "in use by another process"), first.exclusive():
            self.fail("both had it")
        second.close()
        self.assertTrue(self.locked(fcntl.LOCK_EX))

    def test_it_is_told_who_is_in_the_way(self) -> None:
        locks = Path(self.mktemp())
        first = DataFolder.open(self.path, locks=locks)
        self.addCleanup(first.close)
        first.settle()
        self.opened()
        marker = (self.path / MARKER).stat()
        device = f"{os.major(marker.st_dev):02x}:{os.minor(marker.st_dev):02x}"
        pids = (os.getpid(), 4712, 4711)
        locks.write_text(
            "".join(f"1: FLOCK ADVISORY READ {p} {device}:{marker.st_ino} 0 EOF\n" for p in pids)
        )
        with self.assertRaisesRegex(StartError, "processes 4711, 4712: stop"), first.exclusive():
            self.fail("both had it")
