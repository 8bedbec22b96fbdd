"""The bytes that repositories hold, counted while they change, and quotas."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from functools import partial
from sqlite3 import Connection
from typing import Any

from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.records import ManifestPut
from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.errors import QuotaExceeded, RegistryError
from artifactd.oci.names import Digest, ImageName, Tag
from tests.catalog.fixture import (
    APP,
    OTHER,
    CatalogTestCase,
    confirmed,
    manifest,
)

ELSEWHERE = ImageName("elsewhere", "app")


def _counted(db: Connection) -> tuple[list[Any], list[Any]]:
    """The counts of the catalog, and those of a look at it all."""
    told = db.execute("SELECT * FROM repository_count ORDER BY repository").fetchall()
    counted = db.execute(
        "SELECT repository, sum(known_at IS NOT NULL),"
        " (SELECT count(*) FROM tag JOIN image AS its ON its.id = image_id"
        " WHERE its.repository = image.repository) FROM image GROUP BY repository"
    ).fetchall()
    return counted, told


class UsageTests(CatalogTestCase):
    """A catalog that counts."""

    async def size(self, repository: str = "local") -> int:
        return await self.catalog.repository_size(repository)

    async def test_a_repository_without_anything_holds_nothing(self) -> None:
        self.assertEqual(await self.size(), 0)

    async def test_bytes_count_once_in_each_repository_whatever_holds_them(self) -> None:
        digest = Digest.of(b"12345")
        for image in (APP, OTHER, APP):
            await self.catalog.add_blob(image, digest, 5, confirmed)
        await self.catalog.mount_blob(ELSEWHERE, digest, APP)
        self.assertEqual([await self.size(), await self.size("elsewhere")], [5, 5])
        await self.catalog.delete_blob(APP, digest, allow_held=False)
        self.assertEqual(await self.size(), 5)
        await self.catalog.delete_blob(OTHER, digest, allow_held=False)
        self.assertEqual([await self.size(), await self.size("elsewhere")], [0, 5])

    async def test_manifests_count_also_beside_a_blob_of_the_same_bytes(self) -> None:
        content = b'{"a": 1}'
        digest = Digest.of(content)
        await self.catalog.put_manifest(
            ManifestPut(APP, manifest(content), (Tag.parse("a"),)), confirmed
        )
        self.assertEqual(await self.size(), len(content))
        await self.catalog.add_blob(APP, digest, len(content), confirmed)
        self.assertEqual(await self.size(), len(content))
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        self.assertEqual(await self.size(), len(content))
        await self.catalog.delete_blob(APP, digest, allow_held=False)
        self.assertEqual(await self.size(), 0)

    async def test_what_exceeds_the_quota_changes_nothing(self) -> None:
        await self.catalog.add_blob(APP, Digest.of(b"1"), 60, confirmed, quota=100)
        digest = Digest.of(b"2")
        await self.catalog.add_blob(ELSEWHERE, digest, 50, confirmed)
        for attempt in (
            self.catalog.add_blob(APP, digest, 50, confirmed, quota=100),
            self.catalog.mount_blob(APP, digest, ELSEWHERE, 100),
            self.catalog.put_manifest(
                ManifestPut(APP, manifest(b"{%s}" % (b" " * 50)), quota=100), confirmed
            ),
        ):
            error = await self.assert_raises(QuotaExceeded, attempt)
            self.assertIn("'used': 60", str(error.full_detail))
            self.assertEqual(await self.size(), 60)
        self.assertIsNone(await self.catalog.blob_size(APP, digest))
        await self.catalog.add_blob(APP, Digest.of(b"3"), 40, confirmed, quota=100)

    async def test_a_quota_that_was_lowered_lets_everything_be_that_adds_nothing(self) -> None:
        digest = Digest.of(b"1")
        await self.catalog.add_blob(APP, digest, 60, confirmed)
        await self.catalog.add_blob(APP, digest, 60, confirmed, quota=10)
        await self.catalog.mount_blob(OTHER, digest, APP, 10)

    async def test_a_repository_above_a_quota_that_was_lowered_does_not_grow(self) -> None:
        digest = Digest.of(b"1")
        await self.catalog.add_blob(APP, digest, 60, confirmed)
        await self.catalog.add_blob(ELSEWHERE, Digest.of(b"2"), 1, confirmed)
        for growing in (
            self.catalog.add_blob(APP, Digest.of(b"2"), 1, confirmed, quota=50),
            self.catalog.mount_blob(OTHER, Digest.of(b"2"), ELSEWHERE, 50),
            self.catalog.put_manifest(ManifestPut(APP, manifest(b"{}"), quota=50), confirmed),
        ):
            await self.assert_raises(QuotaExceeded, growing)
        self.assertEqual(await self.size(), 60)
        await self.catalog.delete_blob(APP, digest, allow_held=False)
        await self.catalog.add_blob(APP, Digest.of(b"2"), 1, confirmed, quota=50)

    async def test_after_any_history_the_count_is_what_a_look_at_it_all_gives(self) -> None:
        chance = random.Random(4)
        images = [APP, OTHER, ELSEWHERE]
        contents = [b"{%s}" % (b" " * n) for n in range(6)]
        for _ in range(150):
            image, content = chance.choice(images), chance.choice(contents)
            digest = Digest.of(content)
            attempt = chance.choice(
                [
                    lambda i, c, d: self.catalog.add_blob(i, d, len(c), confirmed),
                    lambda i, c, d: self.catalog.delete_blob(i, d, allow_held=True),
                    lambda i, c, d: self.catalog.mount_blob(i, d, APP),
                    lambda i, c, d: self.catalog.put_manifest(
                        ManifestPut(i, manifest(c)), confirmed
                    ),
                    lambda i, c, d: self.catalog.delete_manifest(i, d, allow_held=True, actor=""),
                ]
            )
            with contextlib.suppress(RegistryError):
                await attempt(image, content, digest)
            for repository in ("local", "elsewhere"):
                held = 0
                for each in contents:
                    here = [
                        await self.catalog.blob_size(i, Digest.of(each)) is not None
                        or await self.catalog.manifest(i, Digest.of(each)) is not None
                        for i in images
                        if i.repository == repository
                    ]
                    held += len(each) if any(here) else 0
                self.assertEqual(await self.size(repository), held)

    async def test_images_and_tags_are_counted_whatever_happens_to_them(self) -> None:
        chance = random.Random(7)
        images = [APP, OTHER, ELSEWHERE]
        tags = [Tag.parse(name) for name in ("a", "b", "c")]
        contents = [b"{%s}" % (b" " * n) for n in range(4)]
        garbage = GarbageCatalog(self.catalog.database)
        remote = RemoteCatalog(self.catalog.database)
        for _ in range(200):
            image, content, tag = (
                chance.choice(images),
                chance.choice(contents),
                chance.choice(tags),
            )
            digest = Digest.of(content)
            put = ManifestPut(image, manifest(content), (tag,))
            catalog = self.catalog
            attempts: list[Callable[[], Awaitable[object]]] = [
                partial(catalog.put_manifest, put, confirmed),
                partial(catalog.delete_tag, image, tag, actor=""),
                partial(catalog.delete_manifest, image, digest, allow_held=True, actor=""),
                partial(catalog.point_tag, image, tag, digest, actor=""),
                partial(garbage.undelete, image, None, ""),
                partial(remote.release_image, image),
            ]
            with contextlib.suppress(RegistryError):
                await chance.choice(attempts)()
            counted = await self.catalog.database.read(_counted)
            self.assertEqual(*counted)
