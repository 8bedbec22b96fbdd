"""What HEAD has said of tags is remembered for as long as it may be answered."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog.records import ManifestRecord
from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Digest, Tag
from artifactd.registry.mirror.told import ToldTags
from tests.registry.fixture import ALPINE, BUSYBOX

A, B = (ManifestRecord(Digest.of(content), 100, OCI_INDEX) for content in (b"a", b"b"))
LATEST, EDGE = Tag("latest"), Tag("edge")


class ToldTagsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.time = 1000.0
        self.told = ToldTags(60.0, lambda: self.time)

    def test_it_is_fresh_for_its_time(self) -> None:
        self.assertIsNone(self.told.fresh(ALPINE, LATEST))
        self.told.remember(ALPINE, LATEST, A)
        for self.time, expected in ((1000.0, A), (1059.9, A), (1060.0, None), (999.0, None)):
            self.assertEqual(self.told.fresh(ALPINE, LATEST), expected)
        self.assertIsNone(self.told.fresh(BUSYBOX, LATEST))

    def test_the_last_word_counts(self) -> None:
        self.told.remember(ALPINE, LATEST, A)
        self.told.remember(ALPINE, LATEST, B)
        self.assertEqual(self.told.fresh(ALPINE, LATEST), B)
        self.assertEqual(self.told.tags_of(ALPINE, A.digest), {})

    def test_the_tags_of_a_manifest_are_found_when_they_are_no_longer_fresh_too(self) -> None:
        self.told.remember(ALPINE, LATEST, A)
        self.told.remember(BUSYBOX, LATEST, A)
        self.time = 2000.0
        self.told.remember(ALPINE, EDGE, A)
        self.told.remember(ALPINE, Tag("other"), B)
        self.assertEqual(self.told.tags_of(ALPINE, A.digest), {LATEST: 1000.0, EDGE: 2000.0})

    def test_it_does_not_grow_without_end(self) -> None:
        for number in range(5000):
            self.told.remember(ALPINE, Tag(f"v{number}"), A)
        self.assertEqual(len(self.told.tags_of(ALPINE, A.digest)), 1024)
