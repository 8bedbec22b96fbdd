"""Files that decide who may do what, and may be written by others."""

from __future__ import annotations

import os
import stat
from errno import EPERM
from pathlib import Path
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.trusted import Untrusted, read_trusted, replace_trusted


class TrustedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_bytes(b"content")

    def test_a_file_that_only_its_owner_may_write_is_read(self) -> None:
        for mode in (0o600, 0o640, 0o644, 0o444, 0o755):
            self.path.chmod(mode)
            self.assertEqual(read_trusted(self.path), b"content")
        self.assertEqual(read_trusted(self.path, 3), b"con")

    def test_a_file_that_everybody_may_write_is_not(self) -> None:
        link = Path(self.mktemp()).absolute()
        link.symlink_to(self.path.absolute())
        for mode in (0o602, 0o606, 0o646, 0o666, 0o777):
            self.path.chmod(mode)
            for path in (self.path, link):
                refused = self.assertRaises(Untrusted, read_trusted, path)
                self.assertEqual(str(refused), f"others may write it (mode {mode:04o}): chmod go-w")

    def test_a_group_that_may_write_has_to_be_one_of_ours(self) -> None:
        self.path.chmod(0o660)
        self.patch(os, "getegid", lambda: self.path.stat().st_gid)
        self.assertEqual(read_trusted(self.path), b"content")
        self.patch(os, "getegid", lambda: self.path.stat().st_gid + 1)
        self.patch(os, "getgroups", lambda: [])
        self.assertRaises(Untrusted, read_trusted, self.path)
        self.patch(os, "getgroups", lambda: [self.path.stat().st_gid])
        self.assertEqual(read_trusted(self.path), b"content")

    def test_a_device_is_no_file_that_others_could_have_changed(self) -> None:
        self.assertEqual(read_trusted(Path("/dev/null")), b"")


class ReplaceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "users"

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def test_a_new_file_is_for_this_user_alone(self) -> None:
        seen: list[bytes | None] = []

        def change(before: bytes | None) -> bytes:
            seen.append(before)
            return b"new"

        self.assertTrue(replace_trusted(self.path, change))
        self.assertEqual(([None], b"new"), (seen, self.path.read_bytes()))
        self.assertEqual(0o600, stat.S_IMODE(self.path.stat().st_mode))
        self.assertEqual(["users"], self.names())

    def test_mode_and_owner_stay_and_the_file_is_another(self) -> None:
        self.path.write_bytes(b"old")
        self.path.chmod(0o640)
        before = self.path.stat()
        self.assertFalse(replace_trusted(self.path, lambda old: (old or b"") + b" and new"))
        after = self.path.stat()
        self.assertEqual(b"old and new", self.path.read_bytes())
        self.assertEqual(
            (before.st_mode, before.st_uid, before.st_gid),
            (after.st_mode, after.st_uid, after.st_gid),
        )
        self.assertNotEqual(before.st_ino, after.st_ino)

    def test_a_foreign_owner_stays_or_nothing_changes(self) -> None:
        self.path.write_bytes(b"old")
        status = os.stat_result((0o100640, 0, 0, 1, os.getuid() + 1, os.getgid() + 1, 3, 0, 0, 0))
        given: list[tuple[int, int]] = []
        self.patch(os, "stat", lambda path: status)
        self.patch(os, "fchown", lambda fd, user, group: given.append((user, group)))
        replace_trusted(self.path, lambda before: b"new")
        self.assertEqual([(os.getuid() + 1, os.getgid() + 1)], given)

        def refuse(fd: int, user: int, group: int) -> None:
            raise PermissionError(EPERM, "not permitted")

        self.patch(os, "fchown", refuse)
        with self.assertRaisesRegex(PermissionError, "only root and the owner"):
            replace_trusted(self.path, lambda before: b"newer")
        self.assertEqual((b"new", ["users"]), (self.path.read_bytes(), self.names()))

    def test_a_change_that_fails_leaves_all_as_it_was(self) -> None:
        def fail(before: bytes | None) -> bytes:
            raise ValueError("no")

        for content in None, b"old":
            if content is not None:
                self.path.write_bytes(content)
            self.assertRaises(ValueError, replace_trusted, self.path, fail)
            self.assertEqual([] if content is None else ["users"], self.names())

    def test_what_a_killed_process_has_left_is_in_nobodys_way(self) -> None:
        (self.folder / ".users.new").write_bytes(b"left")
        replace_trusted(self.path, lambda before: b"new")
        self.assertEqual((b"new", ["users"]), (self.path.read_bytes(), self.names()))

    def test_the_file_behind_a_symbolic_link_is_replaced(self) -> None:
        link = self.folder / "link"
        link.symlink_to(self.path)
        self.path.write_bytes(b"old")
        replace_trusted(link, lambda before: b"new")
        self.assertTrue(link.is_symlink())
        self.assertEqual(b"new", self.path.read_bytes())

    def test_a_file_that_others_may_write_is_not_changed(self) -> None:
        self.path.write_bytes(b"old")
        self.path.chmod(0o666)
        self.assertRaises(Untrusted, replace_trusted, self.path, lambda before: b"new")
        self.assertEqual(b"old", self.path.read_bytes())

    def test_two_at_once_lose_nothing(self) -> None:
        def add(letter: bytes) -> None:
            for _ in range(50):
                replace_trusted(self.path, lambda before: (before or b"") + letter)

        threads = [Thread(target=add, args=(letter,)) for letter in (b"a", b"b", b"c")]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(b"a" * 50 + b"b" * 50 + b"c" * 50, bytes(sorted(self.path.read_bytes())))
