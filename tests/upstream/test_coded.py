"""What is remembered of blobs that an upstream codes."""

from __future__ import annotations

import gzip

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.names import Digest
from artifactd.upstream import coded
from artifactd.upstream.coded import KeptBody, Meaning, Meanings
from tests.upstream.fake import Answer, Watch

CONTENT = b"a layer" * 100


class MeaningsTests(SynchronousTestCase):
    """A blob that is too large to be read to look at its digest."""

    def setUp(self) -> None:
        self.patch(coded, "KEPT", 10)
        self.patch(coded, "MOST_READ", 10)
        self.clock = Clock()
        self.meanings = Meanings(self.clock, Watch())

    def find(self, *, goes_on: bool = False, unread: bool = False) -> Meaning | KeptBody | None:
        response = Answer(200, gzip.compress(CONTENT), coding="gzip")
        found = self.meanings.find(response, Digest.of(CONTENT), goes_on=goes_on, unread=unread)
        return self.successResultOf(Deferred.fromCoroutine(found))

    def meaning(self) -> Meaning | KeptBody | None:
        """Ask for the blob, and again if it has to be."""
        return self.find() or self.find(goes_on=True)

    def test_the_other_meaning_is_tried_where_the_blob_is_asked_for_again(self) -> None:
        self.assertEqual([self.meaning() for _ in range(3)],
                         [Meaning(True), Meaning(False), Meaning(True)])  # fmt: skip

    def test_not_where_only_its_size_was_asked_for(self) -> None:
        for _ in range(2):
            self.assertEqual(self.find(unread=True), Meaning(True))
            self.assertEqual(self.meaning(), Meaning(True))
            self.meanings = Meanings(self.clock, Watch())
        self.meaning()
        self.find(unread=True)
        self.assertEqual(self.find(goes_on=True), Meaning(True))

    def test_nor_where_that_was_long_ago_so_that_it_was_evicted(self) -> None:
        for _ in range(2):
            self.assertEqual(self.meaning(), Meaning(True))
            self.clock.advance(3601)
