"""Negative answers, and for how long they are believed."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.name import ImageName, Tag
from artifactd.registry.refusals import Refusals
from artifactd.upstream.errors import Missing, Unreachable

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
