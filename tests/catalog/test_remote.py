"""What only the catalog of SQLite does with remote images: the cache, and its transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from threading import Event

from twisted.internet.defer import Deferred

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.digest import Digest
from tests.catalog.fixture import SQLiteRemoteTestCase
from tests.contracts.catalog import APP, manifest
from tests.contracts.catalog_remote import ALPINE, V1, V2


class SQLiteRemoteTests(SQLiteRemoteTestCase):
    def test_it_is_a_remote_catalog(self) -> None:
        remote: RemoteCatalog = self.open_remote(self.catalog)  # which the type checker sees to
        self.assertIsInstance(remote, RemoteCatalog)

    async def test_what_every_pull_asks_is_answered_without_a_thread_the_second_time(self) -> None:
        await self.put(b"{}")
        await self.cache(b"{}", "v1")
        await self.remote.set_origin("alpine", "docker.io")
        questions: list[Callable[[], Awaitable[object]]] = [
            lambda: self.remote.is_known(APP),
            lambda: self.remote.is_known(ALPINE),
            lambda: self.remote.origin("alpine"),
            lambda: self.remote.origin("busybox"),
            lambda: self.remote.cached_tag(ALPINE, V1),
            lambda: self.remote.cached_tag(ALPINE, V2),
        ]
        for ask in questions:
            answer = await ask()

            async def again(ask: Callable[[], Awaitable[object]] = ask) -> object:
                return await ask()

            repeated = self.successResultOf(Deferred.fromCoroutine(again()))
            self.assertEqual(answer, repeated)

    async def test_the_answers_are_those_of_the_last_commit(self) -> None:
        for tag, digest in ((V1, Digest.of(b"1")), (V2, Digest.of(b"2"))):
            self.assertIsNone(await self.remote.cached_tag(ALPINE, tag))
            await self.cache(tag.text[1:].encode(), tag.text)
            found = await self.remote.cached_tag(ALPINE, tag)
            assert found is not None
            self.assertEqual(digest, found.record.digest)
        self.assertIsNone(await self.remote.origin("alpine"))
        await self.remote.set_origin("alpine", "docker.io")
        self.assertEqual("docker.io", await self.remote.origin("alpine"))

    async def test_a_tag_whose_manifest_has_large_annotations_is_not_kept_in_memory(self) -> None:
        await self.cache(manifest(b"{}", annotations={"a": "x" * 5000}), "v1")
        await self.remote.cached_tag(ALPINE, V1)
        again = Deferred.fromCoroutine(self.remote.cached_tag(ALPINE, V1))
        self.assertNoResult(again)
        self.assertIsNotNone(await again)

    async def assert_forgotten_after_the_commit(
        self, remove: Callable[[], Awaitable[Sequence[Digest] | None]]
    ) -> None:
        """Bytes that go in the transaction behind ``remove`` go with their row gone for good."""
        digest = (await self.fill(b"blob")).digest
        rows: list[int] = []

        def unlink() -> None:
            with closing(sqlite3.connect(self.path)) as other:
                rows.extend(n for (n,) in other.execute("SELECT count(*) FROM blob"))

        async def removed() -> Sequence[Digest] | None:
            return await remove()

        assert isinstance(self.catalog, Catalog)
        event = Event()
        self.addCleanup(event.set)
        held = self.catalog.database.write(lambda _: event.wait(60))
        removing = Deferred.fromCoroutine(removed())
        forgetting = Deferred.fromCoroutine(self.catalog.forget_blob(digest, unlink))
        event.set()
        self.assertEqual([digest], await removing)
        self.assertTrue(await forgetting)
        self.assertEqual([0], rows)
        await held

    async def test_bytes_are_not_forgotten_in_the_transaction_that_drops_their_row(self) -> None:
        await self.fill(b"blob")
        held = await self.remote.least_used("docker.io", 2000.0, 0, 10)
        await self.assert_forgotten_after_the_commit(lambda: self.remote.drop(held))

    async def test_bytes_are_not_forgotten_in_the_transaction_that_purges_their_row(self) -> None:
        await self.assert_forgotten_after_the_commit(lambda: self.remote.purge(ALPINE, None))
