"""The ids of upload sessions: what they say, and that nobody else makes one."""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog.records import session_key
from artifactd.oci.names import Algorithm, ImageName
from artifactd.registry.upload_id import UploadIds

APP = ImageName("local", "team/app")
LONGEST = ImageName("local", "a" * 249)
NOW = 1_700_000_000.123
LIFETIME = 3600.0


class UploadIdTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ids = UploadIds(bytes(range(32)), LIFETIME)

    def made(self, owner: str | None = "ann", algorithm: Algorithm = Algorithm.SHA256) -> str:
        return self.ids.make(APP, algorithm, owner, NOW).text

    def test_it_says_what_it_was_made_of(self) -> None:
        for algorithm in Algorithm:
            for owner in (None, "ann", "address:2001:db8::/64", "x" * 1000):
                made = self.ids.make(APP, algorithm, owner, NOW)
                other = UploadIds(bytes(range(32)), LIFETIME)
                opened = other.open(made.text, APP)
                assert opened is not None
                self.assertIs(other.open(made.text, APP), opened)
                self.assertIs(self.ids.open(made.text, APP), made)
                self.assertEqual((opened.text, opened.algorithm), (made.text, algorithm))
                self.assertEqual(made.until, NOW + LIFETIME)
                self.assertAlmostEqual(opened.until, made.until, places=3)
                self.assertLessEqual(len(made.text), 102)
                self.assertRegex(made.text, r"^[0-9A-Za-z._-]+$")

    def test_each_is_another_one_and_they_ascend_with_the_time(self) -> None:
        keys = [
            session_key(self.ids.make(APP, Algorithm.SHA256, "ann", NOW + second).text) or b""
            for second in range(100)
            for _ in range(10)
        ]
        self.assertEqual(len(set(keys)), 1000)
        seconds = [keys[start : start + 10] for start in range(0, 1000, 10)]
        for earlier, later in pairwise(seconds):
            self.assertLess(max(earlier), min(later))

    def test_the_sessions_of_an_owner_are_known_by_what_follows_the_uuid(self) -> None:
        owners = [self.made(owner).split(".")[1:-1] for owner in ("ann", "ann", "ben", None)]
        self.assertEqual(owners[0], owners[1])
        self.assertEqual([len(owner) for owner in owners], [1, 1, 1, 0])
        self.assertNotEqual(owners[0], owners[2])

    def test_another_image_has_no_such_session(self) -> None:
        for other in (
            ImageName("local", "team/ap"),
            ImageName("local", "team/app2"),
            ImageName("team", "app"),
            ImageName("l", "ocalteam/app"),
        ):
            self.assertIsNone(self.ids.open(self.made(), other))

    def test_another_data_folder_has_none(self) -> None:
        self.assertIsNone(UploadIds(bytes(32), LIFETIME).open(self.made(), APP))

    def test_what_was_changed_anywhere_is_none(self) -> None:
        for owner in ("ann", None):
            made = self.made(owner)
            others = [made[:at] + "0" + made[at + 1 :] for at in range(len(made))]
            others += [made[:-1], made + "A", made.upper(), made + "\n", "." + made]
            for text in others:
                if text != made:
                    self.assertIsNone(self.ids.open(text, APP), text)

    def test_nor_one_with_the_parts_of_two(self) -> None:
        ann, ben, nobody = self.made("ann"), self.made("ben"), self.made(None)
        uuid, owner, seal = ann.split(".")
        other, others, others_seal = ben.split(".")
        for parts in (
            (uuid, others, seal),
            (other, owner, seal),
            (uuid, owner, others_seal),
            (uuid, seal),
            (nobody.split(".")[0], owner, nobody.split(".")[1]),
        ):
            self.assertIsNone(self.ids.open(".".join(parts), APP))

    def test_what_is_no_id_at_all_is_none(self) -> None:
        uuid = self.made().partition(".")[0]
        for text in ("", "nonsense", uuid, f"{uuid}.", f"{uuid}..", "../../etc/passwd", "\u0661"):
            self.assertIsNone(self.ids.open(text, APP))
