"""Files that are read again when they change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.followed import Followed, stamp_of
from artifactd.kit.start import StartError
from tests.auth.held import HeldThreads


class FollowedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = HeldThreads()
        self.path = Path(self.mktemp())
        self.path.write_text("one")
        self.problems: list[str] = []
        self.changes: list[str] = []

    def followed(self, *, cheap: bool = False, settling: bool = False) -> Followed[str]:
        followed = Followed(
            partial(stamp_of, self.path),
            self.read,
            self.threads,
            self.clock.seconds,
            1.0,
            self.problems.append,
            self.changes.append,
            cheap,
            settling,
        )
        followed.load()
        return followed

    def read(self) -> str:
        text = self.path.read_text()
        if text.startswith("wrong"):
            raise StartError(text)
        return text

    def look(self, followed: Followed[str], fresh: bool = False) -> Deferred[None]:
        return Deferred.fromCoroutine(followed.look(fresh=fresh))

    def test_a_change_is_seen_once_a_look_is_due(self) -> None:
        followed = self.followed()
        self.path.write_text("three")
        self.look(followed)
        self.assertEqual((followed.content, self.changes), ("one", []))
        self.clock.advance(1)
        self.look(followed)
        self.assertEqual((followed.content, self.changes), ("three", ["three"]))

    def test_what_is_asked_for_all_the_time_is_looked_at_before_a_look_is_due(self) -> None:
        followed = self.followed()
        self.path.write_text("three")
        self.clock.advance(0.5)
        self.assertTrue(followed.is_fresh())
        self.assertEqual(followed.content, "one")
        self.clock.advance(0.3)
        self.threads.held = True
        for _ in range(2):
            self.assertTrue(followed.is_fresh())
        self.clock.advance(0.2)
        self.assertFalse(followed.is_fresh())  # the look takes its time
        self.threads.held = False
        self.threads.finish()
        self.assertEqual((followed.content, self.changes), ("three", ["three"]))
        self.assertTrue(followed.is_fresh())

    def test_a_fresh_look_does_not_rest_on_one_that_began_before(self) -> None:
        for cheap in (False, True):
            followed = self.followed(cheap=cheap)
            self.path.write_text("between" + str(cheap))
            self.threads.held = True
            first = self.look(followed, fresh=True)
            self.threads.held = False
            self.threads.finish()
            self.successResultOf(first)
            self.path.write_text("before")
            self.threads.held = True
            self.look(followed, fresh=True)
            self.path.write_text("afterwards" + str(cheap))
            self.threads.held = False
            second = self.look(followed, fresh=True)
            self.assertNoResult(second)
            self.threads.finish()
            self.successResultOf(second)
            self.assertEqual(followed.content, "afterwards" + str(cheap))

    def test_a_problem_is_reported_once_and_the_old_content_stays(self) -> None:
        followed = self.followed()
        for text in ("wrong", "wrong", "wrong!", "wrong!", "one", "wrong!"):
            self.path.write_text(text)
            self.look(followed, fresh=True)
            self.assertEqual((followed.content, followed.failing), ("one", text != "one"))
        self.assertEqual(self.problems, ["wrong", "wrong!", "wrong!"])

    def test_a_stamp_that_cannot_be_told_is_a_problem_like_any_other(self) -> None:
        for cheap in (False, True):
            self.problems.clear()
            followed = self.followed(cheap=cheap)
            with self.untold(followed):
                self.successResultOf(self.look(followed, fresh=True))
                self.successResultOf(self.look(followed, fresh=True))
            self.assertEqual((followed.content, self.problems), ("one", ["no permission"]))
            self.assertTrue(followed.failing)
            self.successResultOf(self.look(followed, fresh=True))
            self.assertFalse(followed.failing)

    @contextmanager
    def untold(self, followed: Followed[str]) -> Iterator[None]:
        """Let the stamp fail, as when the folder can't be entered any more."""

        def fail() -> object:
            raise PermissionError("no permission")

        before, followed.stamp = followed.stamp, fail
        yield
        followed.stamp = before

    def test_while_files_settle_a_problem_has_to_be_there_twice(self) -> None:
        followed = self.followed(settling=True)
        for text in ("wrong", "one", "wrong"):
            self.path.write_text(text)
            self.look(followed, fresh=True)
        self.assertEqual(self.problems, [])
        self.look(followed, fresh=True)
        self.look(followed, fresh=True)
        self.assertEqual(self.problems, ["wrong"])
