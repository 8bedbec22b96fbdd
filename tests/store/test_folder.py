"""The data folder: its checks, its locks, and the small files in it."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import threading
from errno import ENOSPC, EPERM
from pathlib import Path
from threading import Barrier, Thread

from attrs import define
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.kit.start import StartError
from artifactd.store.files import FileOperations
from artifactd.store.folder import (
    FORMAT,
    MARK,
    MARKER,
    CollectionLock,
    DataFolder,
    FolderCollectionLock,
    PrivateFile,
    ReadOnlyMode,
    collection_held,
)
from tests.programs import Process, require
from tests.store.fixture import FullDisk, RecordedFiles
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

    def test_one_that_others_may_enter_is_closed_with_one_line_in_the_log(self) -> None:
        for mode in (0o755, 0o750, 0o701, 0o2770, 0o777):
            self.path.mkdir(exist_ok=True)
            self.path.chmod(mode)
            with capturedLogs() as events:
                self.opened().close()
                self.opened().close()
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o700, oct(mode))
            (event,) = events
            self.assertEqual(
                formatEvent(event),
                f"the data folder {self.path} could be entered by others (mode {mode:04o}): closed,"
                " by mode 0700",
            )

    def test_one_that_can_not_be_closed_is_refused(self) -> None:
        self.path.mkdir(mode=0o755)

        @define
        class Careless(FileOperations):
            """A filesystem without modes, which refuses to change them or does nothing."""

            error: OSError | None = None

            def set_mode(self, fd: int, mode: int) -> None:
                if self.error is not None:
                    raise self.error

        for disk in (Careless(), Careless(PermissionError(EPERM, "not permitted"))):
            refused = self.assertRaises(StartError, DataFolder.open, self.path, files=disk)
            self.assertIn("can be entered by others (mode 0755)", str(refused))
            self.assertIn("chmod 700", str(refused))

    def test_one_of_another_program_stays_as_open_as_it_is(self) -> None:
        self.path.mkdir()
        (self.path / "thesis.txt").touch()
        self.path.chmod(0o755)
        self.assert_refused("holds other things ('thesis.txt')")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o755)

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


class PrivateFileTests(TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)

    def file(self, files: FileOperations | None = None) -> PrivateFile:
        return PrivateFile(self.folder.absolute(), "secret", files or FileOperations())

    def test_where_there_is_none_there_is_nothing_to_read(self) -> None:
        self.assertIsNone(self.file().read())
        self.assertIsNone(self.file().version())

    def test_what_was_written_is_read_again(self) -> None:
        content, version = self.file().update(lambda before: b"new" if before is None else before)
        self.assertEqual(content, b"new")
        self.assertEqual(self.file().read(), (b"new", version))
        self.assertEqual(self.file().version(), version)

    def test_each_content_has_a_version_of_its_own(self) -> None:
        _, first = self.file().update(lambda _: b"one")
        _, second = self.file().update(lambda _: b"two")
        self.assertNotEqual(first, second)

    def test_what_is_right_stays(self) -> None:
        _, version = self.file().update(lambda _: b"one")
        self.assertEqual(self.file().update(lambda _: None), (b"one", version))

    def test_it_is_nobody_elses(self) -> None:
        self.file().update(lambda _: b"one")
        modes = {
            path.name: path.stat().st_mode & 0o777 for path in (self.folder / "keys").iterdir()
        }
        self.assertEqual(modes, {"secret": 0o600, "secret.lock": 0o600})
        self.assertEqual((self.folder / "keys").stat().st_mode & 0o777, 0o700)

    def test_one_that_others_may_read_is_not_used(self) -> None:
        self.file().update(lambda _: b"one")
        self.file().path.chmod(0o640)
        for use in (self.file().read, lambda: self.file().update(lambda _: b"two")):
            self.assertIn("chmod 600", str(self.assertRaises(PermissionError, use)))
        self.assertEqual(self.file().path.read_bytes(), b"one")

    def test_its_bytes_are_on_disk_before_its_name_and_that_before_it_returns(self) -> None:
        files = RecordedFiles()
        self.file(files).update(lambda _: b"one")
        steps = [step for step in files.calls if "secret.new" in step or step == "sync keys"]
        self.assertEqual(
            steps,
            [
                "unlink keys/secret.new",
                "create keys/secret.new",
                "write keys/secret.new",
                "sync keys/secret.new",
                "rename keys/secret.new keys/secret",
                "sync keys",
            ],
            files.calls,
        )

    def test_a_full_disk_leaves_what_was_there(self) -> None:
        self.file().update(lambda _: b"one")
        full = FullDisk(room=2, error=OSError(ENOSPC, "no space"))
        error = self.assertRaises(OSError, self.file(full).update, lambda _: b"two")
        self.assertEqual(error.errno, ENOSPC)
        self.assertEqual(self.file().path.read_bytes(), b"one")
        names = sorted(path.name for path in (self.folder / "keys").iterdir())
        self.assertEqual(names, ["secret", "secret.lock"])

    def test_what_a_crash_left_is_not_in_the_way(self) -> None:
        self.file().update(lambda _: b"one")
        (self.folder / "keys" / "secret.new").write_bytes(b"tw")
        self.file().update(lambda _: b"two")
        self.assertEqual(self.file().path.read_bytes(), b"two")

    def test_of_those_who_begin_at_once_one_makes_it_and_all_have_the_same(self) -> None:
        together = Barrier(4)
        found: list[bytes] = []

        def begin(number: int) -> None:
            together.wait()
            mine = b"%d" % number
            found.append(self.file().update(lambda before: mine if before is None else None)[0])

        threads = [Thread(target=begin, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(set(found), {self.file().path.read_bytes()})
        self.assertEqual(len(found), 4)


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
