"""What is remembered of digests that are not finished."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.digest import Algorithm, Digest
from artifactd.store.intake import RunningDigest, RunningDigests

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512


def running(content: bytes) -> RunningDigest:
    digest = RunningDigest(SHA256)
    digest.update(content)
    return digest


class RunningDigestTests(SynchronousTestCase):
    def test_it_is_that_of_all_pieces(self) -> None:
        digest = running(b"one ")
        digest.update(memoryview(b"two"))
        self.assertEqual((Digest.of(b"one two"), 7), (digest.digest(), digest.length))

    def test_a_copy_goes_its_own_way(self) -> None:
        digest = running(b"one")
        copy = digest.copy()
        digest.update(b" two")
        self.assertEqual((Digest.of(b"one"), 3), (copy.digest(), copy.length))


class RunningDigestsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.kept = RunningDigests(limit=2)

    def test_one_that_was_kept_goes_on(self) -> None:
        self.kept.keep("upload", digest := running(b"bytes"))
        self.assertIs(digest, self.kept.take("upload", SHA256))

    def test_it_is_dropped_for_another_algorithm(self) -> None:
        self.kept.keep("upload", running(b"bytes"))
        fresh = self.kept.take("upload", SHA512)
        self.assertEqual((SHA512, 0), (fresh.algorithm, fresh.length))

    def test_it_serves_one_claim(self) -> None:
        self.kept.keep("upload", running(b"bytes"))
        self.kept.take("upload", SHA256)
        self.assertEqual(0, self.kept.take("upload", SHA256).length)

    def test_a_forgotten_one_is_gone(self) -> None:
        self.kept.keep("upload", running(b"bytes"))
        self.kept.forget("upload")
        self.assertEqual(0, self.kept.take("upload", SHA256).length)

    def test_the_oldest_goes_when_there_are_too_many(self) -> None:
        for upload_id in "abc":
            self.kept.keep(upload_id, running(b"bytes"))
        lengths = [self.kept.take(upload_id, SHA256).length for upload_id in "abc"]
        self.assertEqual([0, 5, 5], lengths)
