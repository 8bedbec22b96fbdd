"""Images in memory."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from artifactd.oci.digest import Digest
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from artifactd.oci.names import Tag
from tests.upstreams.images import Images

NAME = "library/app"


class ImagesTests(TestCase):
    def setUp(self) -> None:
        self.images = Images()

    async def test_an_image_is_a_manifest_that_can_be_pulled_whole(self) -> None:
        digest = self.images.add_image(NAME, "1", b"one", b"two")
        stored = await self.images.manifest(NAME, Tag("1"))
        assert stored is not None
        manifest = parse_manifest(stored.content, stored.media_type, digest, other_types=False)
        self.assertEqual(manifest.media_type, OCI_MANIFEST)
        self.assertEqual([each.size for each in manifest.blobs[1:]], [3, 3])
        for each in manifest.blobs:
            content = await self.images.blob(NAME, each.digest)
            assert content is not None
            self.assertEqual(Digest.of(await content.read(0, each.size)), each.digest)

    async def test_an_index_lists_manifests(self) -> None:
        each = [
            self.images.add_image(NAME, None, b"layer", platform=platform)
            for platform in ("amd64", "arm64")
        ]
        digest = self.images.add_index(NAME, "all", *each)
        content = self.images.manifest_of(NAME, "all")
        index = parse_manifest(content, OCI_INDEX, digest, other_types=False)
        self.assertEqual([child.digest for child in index.children], each)
        self.assertEqual(await self.images.tags(NAME), ["all"])

    async def test_a_referrer_is_listed_under_its_subject(self) -> None:
        subject = self.images.add_image(NAME, "1", b"layer")
        digest = self.images.add_image(
            NAME,
            None,
            b"signature",
            subject=subject,
            artifactType="application/vnd.signature",
            annotations={"by": "ann"},
        )
        (descriptor,) = await self.images.referrers(NAME, subject)
        self.assertEqual(descriptor["digest"], str(digest))
        self.assertEqual(descriptor["artifactType"], "application/vnd.signature")
        self.assertEqual(descriptor["annotations"], {"by": "ann"})
        self.assertEqual(await self.images.referrers(NAME, digest), [])

    async def test_images_and_tags_can_be_taken_away(self) -> None:
        digest = self.images.add_image(NAME, "1", b"layer")
        self.images.remove(NAME, "1")
        self.assertIsNone(await self.images.manifest(NAME, Tag("1")))
        self.assertIsNotNone(await self.images.manifest(NAME, digest))
        self.images.remove(NAME)
        self.assertFalse(await self.images.knows(NAME))
