"""Listings of tags, images and referrers: in ASCII order, page by page."""

from __future__ import annotations

import json
from collections.abc import Awaitable

from artifactd.catalog.overview import Overview
from artifactd.catalog.records import ManifestRecord, TagPage
from artifactd.oci.manifest import OCI_MANIFEST, Manifest
from artifactd.oci.names import Algorithm, Digest, ImageName, Tag
from tests.catalog.fixture import (
    APP,
    OTHER,
    CatalogTestCase,
    manifest,
)

SUBJECT = Digest.of(b"subject")


class TagListTests(CatalogTestCase):
    async def test_tags_are_in_ascii_order(self) -> None:
        await self.put(b"1", "b", "B", "a", "1", "_", "a.1", "a-1", "10")
        self.assertEqual(
            ["1", "10", "B", "_", "a", "a-1", "a.1", "b"], await self.catalog.tags(APP, None, None)
        )

    async def test_tags_are_listed_behind_one_and_up_to_a_number(self) -> None:
        await self.put(b"1", "a", "b", "c", "d")
        self.assertEqual(["a", "b"], await self.catalog.tags(APP, None, 2))
        self.assertEqual(["c", "d"], await self.catalog.tags(APP, "b", None))
        self.assertEqual(["c"], await self.catalog.tags(APP, "bb", 1))
        self.assertEqual([], await self.catalog.tags(APP, "d", 2))
        self.assertEqual([], await self.catalog.tags(APP, None, 0))

    async def test_a_page_of_them_says_in_json_whether_more_come(self) -> None:
        await self.put(b"1", "b", "B", "a", "1", "_", "a.1", "a-1", "10")
        for after, limit, expected in (
            (None, 3, (["1", "10", "B"], "B")),
            ("B", 3, (["_", "a", "a-1"], "a-1")),
            ("a-1", 2, (["a.1", "b"], None)),
            ("A", 100, (["B", "_", "a", "a-1", "a.1", "b"], None)),
            ("b", 2, ([], None)),
            (None, 0, ([], None)),
        ):
            page = await self.catalog.tag_page(APP, after, limit)
            assert page is not None
            self.assertEqual(expected, (json.loads(page.tags), page.last))
        self.assertIsNone(await self.catalog.tag_page(OTHER, None, 1))

    async def test_a_first_page_that_was_read_is_read_anew_when_a_tag_comes_or_goes(self) -> None:
        reads = 0
        read = self.catalog._read_tag_page

        def counted(image: ImageName, after: str, limit: int) -> Awaitable[TagPage | None]:
            nonlocal reads
            reads += 1
            return read(image, after, limit)

        self.patch(self.catalog, "_read_tag_page", counted)
        self.assertIsNone(await self.catalog.tag_page(APP, None, 9))
        digest = await self.put(b"1", "a")
        await self.put(b"1", "z", image=OTHER)
        await self.see(b'["a"]')
        await self.put(b"1", "b")
        await self.see(b'["a","b"]')
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        await self.see(b"[]")
        self.assertEqual(reads, 4)

    async def see(self, tags: bytes) -> None:
        """The first page has ``tags``, in JSON, each time that it is asked for."""
        for _ in range(3):
            page = await self.catalog.tag_page(APP, None, 9)
            assert page is not None
            self.assertEqual(page.tags, tags)

    async def test_an_image_without_a_manifest_is_unknown(self) -> None:
        self.assertIsNone(await self.catalog.tags(APP, None, None))
        await self.blob(b"blob")
        self.assertIsNone(await self.catalog.tags(APP, None, None))

    async def test_an_image_stays_known_without_tags_and_manifests(self) -> None:
        digest = await self.put(b"1", "v1")
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        self.assertEqual([], await self.catalog.tags(APP, None, None))
        self.assertEqual([APP.image], await self.images("local", "", 10))


class ImageListTests(CatalogTestCase):
    async def test_known_images_of_a_repository_are_in_ascii_order(self) -> None:
        for name in ("b", "a/b", "a-b", "a"):
            await self.put(b"1", image=ImageName("local", name))
        await self.put(b"1", image=ImageName("elsewhere", "c"))
        await self.blob(b"blob", ImageName("local", "unknown"))
        self.assertEqual(["a", "a-b", "a/b", "b"], await self.images("local", "", 10))
        self.assertEqual(["a/b"], await self.images("local", "a-b", 1))
        self.assertEqual([], await self.images("nowhere", "", 10))


class DeletedListTests(CatalogTestCase):
    async def deleted(self, most: int, among: list[str] | None) -> list[tuple[str, str]]:
        """Images and tags of what was deleted from images of ``local``, in pages of one entry."""
        overview = Overview(self.catalog.database)
        found: list[tuple[str, str]] = []
        after = None
        while True:
            page, after = await overview.deleted(
                None, after, 1, lambda image: image.repository == "local", among, most
            )
            found += [(each.image, each.name) for each in page]
            if after is None:
                return found

    async def test_pages_of_few_images_or_of_all_add_up_to_the_same_list(self) -> None:
        for name in ("b", "a", "c"):  # in another order than their rows
            for tag in ("1", "2", "3"):
                await self.put(tag.encode(), tag, image=ImageName("local", name))
                await self.put(tag.encode(), tag, image=ImageName("elsewhere", name))
        # All of the first two at one time.
        for time, tag in ((1.0, "2"), (1.0, "3"), (2.0, "1")):
            self.time = time
            for name in ("a", "b", "c"):
                for repository in ("local", "elsewhere"):
                    image = ImageName(repository, name)
                    await self.catalog.delete_tag(image, Tag.parse(tag), actor="anne")
        expected = [(f"local/{name}", "1") for name in ("c", "a", "b")]
        expected += [(f"local/{name}", tag) for name in ("c", "a", "b") for tag in ("3", "2")]
        many = [f"nothing{number}" for number in range(60)]
        for most in (1, 2, 100):
            for among in (["local/*"], ["local/a", "*/b", "*c"], [*many, "local/*"], None):
                self.assertEqual(expected, await self.deleted(most, among), (most, among))


class ReferrerTests(CatalogTestCase):
    async def referrers(
        self, artifact_type: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[Digest]:
        found = await self.catalog.referrers(APP, SUBJECT, artifact_type, after, limit)
        return [record.digest for record in found]

    def referrer(self, content: bytes, artifact_type: str | None = None) -> Manifest:
        return manifest(content, artifact_type=artifact_type, subject=SUBJECT)

    async def test_an_unknown_subject_has_no_referrers(self) -> None:
        self.assertEqual([], await self.referrers())

    async def test_a_referrer_is_listed_with_all_that_is_known_of_it(self) -> None:
        put = manifest(b"{}", artifact_type="text/x", subject=SUBJECT, annotations={"a": "1"})
        digest = await self.put(put)
        self.assertEqual(
            [ManifestRecord(digest, 2, OCI_MANIFEST, "text/x", SUBJECT, {"a": "1"})],
            await self.catalog.referrers(APP, SUBJECT, None, None, 10),
        )

    async def test_what_would_take_much_memory_comes_in_more_pages(self) -> None:
        annotations = {"a": "x" * (1 << 20)}
        for number in range(6):
            content = b"%d" % number
            await self.put(manifest(content, subject=SUBJECT, annotations=annotations))
        first = await self.referrers()
        self.assertLess(len(first), 6)
        rest = await self.referrers(after=str(first[-1]))
        self.assertEqual(6, len({*first, *rest}))

    async def test_referrers_are_ordered_by_digest_page_by_page(self) -> None:
        digests = [await self.put(self.referrer(b"%d" % number)) for number in range(10)]
        content = b"longer"
        longer = Manifest(
            content, Digest.of(content, Algorithm.SHA512), OCI_MANIFEST, subject=SUBJECT
        )
        digests.append(await self.put(longer))
        expected = sorted(digests, key=str)
        self.assertEqual(expected, await self.referrers())
        self.assertEqual(expected[:4], await self.referrers(limit=4))
        self.assertEqual(expected[4:8], await self.referrers(after=str(expected[3]), limit=4))
        self.assertEqual([], await self.referrers(after=str(expected[-1])))

    async def test_only_referrers_of_the_type_asked_for_are_listed(self) -> None:
        signature = await self.put(self.referrer(b"1", "text/signature"))
        await self.put(self.referrer(b"2", "text/sbom"))
        await self.put(self.referrer(b"3"))
        self.assertEqual([signature], await self.referrers("text/signature"))
        self.assertEqual([], await self.referrers("text/none"))
        self.assertEqual(3, len(await self.referrers()))

    async def test_manifests_of_other_images_and_subjects_are_no_referrers(self) -> None:
        await self.put(self.referrer(b"1"), image=OTHER)
        await self.put(manifest(b"2", subject=Digest.of(b"another")))
        await self.put(manifest(b"3"))
        self.assertEqual([], await self.referrers())

    async def test_a_deleted_referrer_is_listed_no_more(self) -> None:
        digest = await self.put(self.referrer(b"1"))
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne")
        self.assertEqual([], await self.referrers())
