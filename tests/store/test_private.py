"""Private files: replaced as a whole, kept from others, and whole after a crash."""

from __future__ import annotations

from errno import ENOSPC
from pathlib import Path
from threading import Barrier, Thread

from twisted.trial.unittest import TestCase

from artifactd.store.files import FileOperations
from artifactd.store.folder import PrivateFile
from tests.store.fixture import FullDisk, RecordedFiles


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
