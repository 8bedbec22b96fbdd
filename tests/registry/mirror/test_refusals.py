"""Negative answers, and for how long they are believed."""

from __future__ import annotations

from gc import collect
from traceback import extract_tb
from weakref import ref

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.names import ImageName, Tag
from artifactd.registry.mirror.refusals import Refusals
from artifactd.upstream.errors import Missing
from artifactd.upstream.http.errors import Unreachable

IMAGE = ImageName("docker.io", "library/hello")
LATEST = Tag("latest")


class RefusalsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.refusals = Refusals(self.clock, 10.0)

    def test_what_was_not_there_is_not_there_for_a_while(self) -> None:
        self.refusals.remember(IMAGE, LATEST, Missing("not there", 404))
        for _ in range(2):
            error = self.refusals.of(IMAGE, LATEST)
            assert error is not None
            self.assertEqual((error.reason, error.status), ("not there", 404))
            self.assertFalse(error.asked)
            self.clock.advance(9.9 / 2)
        self.clock.advance(0.2)
        self.assertIsNone(self.refusals.of(IMAGE, LATEST))

    def test_nothing_of_where_it_was_raised_is_kept(self) -> None:
        class Response:
            """Something large that is at hand where the error is raised."""

        def ask() -> None:
            response = Response()
            seen.append(ref(response))
            raise Missing("not there", 404)

        seen: list[ref[Response]] = []
        try:
            ask()
        except Missing as error:
            self.refusals.remember(IMAGE, LATEST, error)
        collect()
        self.assertIsNone(seen[0]())

    def test_telling_it_again_and_again_keeps_no_more(self) -> None:
        self.refusals.remember(IMAGE, LATEST, Missing("not there", 404))
        depths = set()
        for _ in range(3):
            try:
                told = self.refusals.of(IMAGE, LATEST)
                assert told is not None
                raise told
            except Missing as error:
                depths.add(len(extract_tb(error.__traceback__)))
        self.assertEqual(len(depths), 1)

    def test_so_many_are_remembered_and_the_oldest_go(self) -> None:
        for number in range(8193):
            self.refusals.remember(IMAGE, number, Missing("not there", 404))
        self.assertIsNone(self.refusals.of(IMAGE, 0))
        self.assertIsNotNone(self.refusals.of(IMAGE, 1))
        self.assertIsNotNone(self.refusals.of(IMAGE, 8192))

    def test_nothing_else_is_said_to_be_missing(self) -> None:
        self.refusals.remember(IMAGE, LATEST, Missing("not there", 404))
        self.assertIsNone(self.refusals.of(IMAGE, Tag("other")))
        self.assertIsNone(self.refusals.of(ImageName("ghcr.io", IMAGE.image), LATEST))

    def test_an_upstream_that_fails_says_nothing_about_what_is_there(self) -> None:
        self.refusals.remember(IMAGE, LATEST, Unreachable("down"))
        self.assertIsNone(self.refusals.of(IMAGE, LATEST))

    def test_zero_seconds_remember_nothing(self) -> None:
        refusals = Refusals(self.clock, 0.0)
        refusals.remember(IMAGE, LATEST, Missing("not there", 404))
        self.assertIsNone(refusals.of(IMAGE, LATEST))
