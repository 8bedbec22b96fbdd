"""What clients were told is here, and for how long that is kept to."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.names import Digest, ImageName
from artifactd.registry.unprefixed import Promises

IMAGE = ImageName("local", "hello")
LAYER = Digest.of(b"layer")


class PromisesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.promises = Promises(self.clock.seconds)

    def test_one_holds_for_an_hour(self) -> None:
        self.promises.give(IMAGE, LAYER)
        self.clock.advance(3599)
        self.assertTrue(self.promises.holds(IMAGE, LAYER))
        self.clock.advance(1)
        self.assertFalse(self.promises.holds(IMAGE, LAYER))

    def test_given_again_it_holds_for_longer(self) -> None:
        self.promises.give(IMAGE, LAYER)
        self.clock.advance(3000)
        self.promises.give(IMAGE, LAYER)
        self.clock.advance(3000)
        self.assertTrue(self.promises.holds(IMAGE, LAYER))

    def test_it_is_one_of_that_image_alone(self) -> None:
        self.promises.give(IMAGE, LAYER)
        self.assertFalse(self.promises.holds(ImageName("local", "other"), LAYER))
        self.assertFalse(self.promises.holds(IMAGE, Digest.of(b"other")))

    def test_so_many_are_remembered_and_the_oldest_go(self) -> None:
        digests = [Digest.of(b"%d" % number) for number in range(8193)]
        for digest in digests:
            self.promises.give(IMAGE, digest)
        held = [self.promises.holds(IMAGE, digest) for digest in digests]
        self.assertEqual(held, [False] + [True] * 8192)
