"""Files that decide who may do what, and may be written by others."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.trusted import Untrusted, read_trusted


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
