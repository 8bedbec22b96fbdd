"""When something was last pulled, written down now and then."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.mirror.eviction import LastUsed

ALPINE = ImageName("docker.io", "library/alpine")
BLOB, OTHER = Digest.of(b"blob"), Digest.of(b"other")

Used = Mapping[tuple[ImageName, Digest], float]


class _Catalog:
    """:ivar written: what was touched, one entry for each transaction."""

    def __init__(self) -> None:
        self.written: list[Used] = []
        self.locked = False

    async def touch(self, used: Used) -> None:
        if self.locked:
            raise Unavailable("the catalog is locked")
        self.written.append(dict(used))


class AccessesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1000.0
        self.catalog = _Catalog()
        remote: RemoteCatalog = self.catalog  # type: ignore[assignment]
        self.last_used = LastUsed(remote, lambda: self.now)

    def write(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.last_used.write()))

    def test_all_pulls_since_the_last_time_are_one_transaction(self) -> None:
        self.last_used.touch(ALPINE, BLOB)
        self.last_used.touch(ALPINE, OTHER)
        self.now = 2000.0
        self.last_used.touch(ALPINE, BLOB)
        self.write()
        self.assertEqual([{(ALPINE, BLOB): 2000.0, (ALPINE, OTHER): 1000.0}], self.catalog.written)

    def test_if_nothing_was_pulled_nothing_is_written(self) -> None:
        self.last_used.touch(ALPINE, BLOB)
        self.write()
        self.write()
        self.assertEqual(1, len(self.catalog.written))

    def test_what_is_being_read_counts_as_pulled_now_until_its_last_reader_has_ended(self) -> None:
        ends = [self.last_used.begin(ALPINE, BLOB) for _ in range(2)]
        for self.now, end in zip((2000.0, 3000.0), ends, strict=True):
            self.write()
            end()
        self.now = 4000.0
        self.write()
        self.write()
        times = [next(iter(used.values())) for used in self.catalog.written]
        self.assertEqual([2000.0, 3000.0, 3000.0], times)

    def test_what_could_not_be_written_is_written_the_next_time(self) -> None:
        self.last_used.touch(ALPINE, BLOB)
        self.last_used.touch(ALPINE, OTHER)
        self.catalog.locked = True
        self.failureResultOf(Deferred.fromCoroutine(self.last_used.write()), Unavailable)
        self.now = 2000.0
        self.last_used.touch(ALPINE, BLOB)
        self.catalog.locked = False
        self.write()
        self.assertEqual([{(ALPINE, BLOB): 2000.0, (ALPINE, OTHER): 1000.0}], self.catalog.written)
