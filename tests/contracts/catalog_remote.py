"""
What every catalog knows of remote images: their names.

A backend's tests subclass each contract, here and in the modules ``catalog_remote_…`` beside this
one, as those of :mod:`tests.contracts.catalog`.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import nothing
from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.digest import Digest
from artifactd.oci.errors import NameUnknown, Unsupported
from artifactd.oci.manifest import Descriptor, Manifest
from artifactd.oci.names import ImageName, Tag
from tests.contracts.catalog import (
    APP,
    CatalogTestCase,
    confirmed,
    descriptor,
    manifest,
)

ALPINE = ImageName("docker.io", "library/alpine")
BUSYBOX = ImageName("docker.io", "library/busybox")
ELSEWHERE = ImageName("ghcr.io", "team/app")
V1, V2 = Tag.parse("v1"), Tag.parse("v2")


class RemoteCatalogTestCase(CatalogTestCase):
    """:ivar remote: of the same catalog as ``catalog``."""

    remote: RemoteCatalog

    def open_remote(self, catalog: Catalog) -> RemoteCatalog:
        """What a catalog of :meth:`open_catalog` knows of remote images."""
        raise NotImplementedError

    def setUp(self) -> None:
        super().setUp()
        self.remote = self.open_remote(self.catalog)

    async def cache(
        self, content: Manifest | bytes, tag: str | None = None, image: ImageName = ALPINE
    ) -> Digest:
        """A manifest comes from upstream."""
        fetched = content if isinstance(content, Manifest) else manifest(content)
        wanted = None if tag is None else Tag.parse(tag)
        await self.remote.cache_manifest(image, fetched, wanted, confirmed)
        return fetched.digest

    async def fill(self, content: bytes, *images: ImageName) -> Descriptor:
        """A blob comes from upstream."""
        digest = Digest.of(content)
        await self.remote.add_blobs(images or (ALPINE,), digest, len(content), confirmed)
        return descriptor(content)

    async def forgotten(self, *digests: Digest) -> list[Digest]:
        """Those whose bytes no row needs."""
        return [each for each in digests if await self.catalog.forget_blob(each, nothing)]


class KnownNameContract(RemoteCatalogTestCase):
    async def test_an_image_is_known_from_its_first_manifest_on(self) -> None:
        self.assertFalse(await self.remote.is_known(APP))
        await self.blob(b"blob")
        self.assertFalse(await self.remote.is_known(APP))
        await self.put(b"{}")
        self.assertTrue(await self.remote.is_known(APP))
        self.assertFalse(await self.remote.is_known(ImageName("docker.io", APP.image)))

    async def test_an_emptied_image_stays_known_until_it_is_released(self) -> None:
        digest = await self.put(b"{}", "v1")
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        self.assertTrue(await self.remote.is_known(APP))
        await self.remote.release_image(APP)
        self.assertFalse(await self.remote.is_known(APP))
        self.assertIsNone(await self.catalog.tags(APP, None, None))
        self.assertEqual([], await self.catalog.images("local", "", 10))

    async def test_a_released_image_answers_for_no_blob(self) -> None:
        blob = await self.blob(b"blob")
        digest = await self.put(manifest(b"{}", blobs=[blob]))
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        await self.remote.release_image(APP)
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))

    async def test_a_released_image_is_known_again_from_its_next_manifest_on(self) -> None:
        digest = await self.put(b"{}")
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        await self.remote.release_image(APP)
        await self.put(b"{}", "v1")
        self.assertTrue(await self.remote.is_known(APP))
        self.assertEqual(["v1"], await self.catalog.tags(APP, None, None))

    async def test_an_image_with_manifests_is_not_released(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(b"{}")
        await self.assert_raises(Unsupported, self.remote.release_image(APP))
        self.assertTrue(await self.remote.is_known(APP))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))

    async def test_an_unknown_image_is_not_released(self) -> None:
        blob = await self.blob(b"blob")
        for image in (APP, ImageName("local", "nowhere")):
            await self.assert_raises(NameUnknown, self.remote.release_image(image))
        self.assertEqual(4, await self.catalog.blob_size(APP, blob.digest))


class OriginContract(RemoteCatalogTestCase):
    async def test_a_name_has_no_origin_at_first(self) -> None:
        self.assertIsNone(await self.remote.origin("alpine"))

    async def test_the_first_origin_counts(self) -> None:
        self.assertEqual("docker.io", await self.remote.set_origin("alpine", "docker.io"))
        self.assertEqual("docker.io", await self.remote.set_origin("alpine", "ghcr.io"))
        self.assertEqual("docker.io", await self.remote.origin("alpine"))
        self.assertIsNone(await self.remote.origin("library/alpine"))

    async def test_of_two_processes_that_remember_an_origin_one_wins(self) -> None:
        second = self.open_remote(self.open_catalog())
        self.assertIsNone(await second.origin("alpine"))
        won = await gatherResults(
            [
                Deferred.fromCoroutine(self.remote.set_origin("alpine", "docker.io")),
                Deferred.fromCoroutine(second.set_origin("alpine", "ghcr.io")),
            ]
        )
        answers = [*won, await self.remote.origin("alpine"), await second.origin("alpine")]
        self.assertEqual(1, len(set(answers)), answers)
