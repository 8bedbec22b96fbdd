"""
What every catalog does: upload sessions, repositories, and how processes share it.

A backend's tests subclass each contract, here and in the modules ``catalog_…`` beside this one, and
say how to open a catalog.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import ManifestPut, Precondition, UploadRecord
from artifactd.kit.start import StartError
from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from artifactd.oci.names import ImageName, Tag

_E = TypeVar("_E", bound=BaseException)

APP = ImageName("local", "app")
OTHER = ImageName("local", "other")


class ConfirmFailed(Exception):
    """The bytes that a row was to be written for are gone."""


def confirmed() -> None:
    """The bytes are there."""


def not_confirmed() -> None:
    raise ConfirmFailed


def descriptor(content: bytes, size: int | None = None, *, optional: bool = False) -> Descriptor:
    """Of ``content``, or lying about its size."""
    return Descriptor(
        "application/octet-stream",
        Digest.of(content),
        len(content) if size is None else size,
        optional,
    )


def manifest(
    content: bytes,
    *,
    blobs: Sequence[Descriptor] = (),
    media_type: str = OCI_MANIFEST,
    artifact_type: str | None = None,
    subject: Digest | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """An image manifest; a catalog does not look into ``content``."""
    return Manifest(
        content=content,
        digest=Digest.of(content),
        media_type=media_type,
        artifact_type=artifact_type,
        subject=subject,
        annotations=annotations or {},
        blobs=tuple(blobs),
    )


def index(content: bytes, children: Sequence[Descriptor]) -> Manifest:
    """An image index."""
    return Manifest(content, Digest.of(content), OCI_INDEX, children=tuple(children))


class CatalogTestCase(TestCase):
    """
    :ivar catalog: an empty one.
    :ivar time: what it takes for the time, in seconds since the epoch.
    """

    catalog: Catalog

    def open_catalog(self) -> Catalog:
        """
        Open the test's catalog once more, as another process would, with ``self.time`` for the
        time; it is closed after the test.
        """
        raise NotImplementedError

    def configure_repositories(self, names: Sequence[str], default: str | None) -> None:
        """
        Begin a process with these repositories, ``default`` the one of names without a prefix.

        :raises StartError: if that would hide images.
        """
        raise NotImplementedError

    def setUp(self) -> None:
        self.time = 1000.0
        self.catalog = self.open_catalog()

    async def assert_raises(self, error: type[_E], call: Awaitable[object]) -> _E:
        try:
            await call
        except error as raised:
            return raised
        self.fail(f"{error.__name__} was not raised")

    async def blob(self, content: bytes, image: ImageName = APP) -> Descriptor:
        """Let ``image`` hold a blob."""
        await self.catalog.add_blob(image, Digest.of(content), len(content), confirmed)
        return descriptor(content)

    async def put(
        self, content: Manifest | bytes, *tags: str, image: ImageName = APP, actor: str = "anne"
    ) -> Digest:
        """Put a manifest."""
        pushed = content if isinstance(content, Manifest) else manifest(content)
        wanted = tuple(Tag.parse(tag) for tag in tags)
        await self.catalog.put_manifest(ManifestPut(image, pushed, wanted, actor=actor), confirmed)
        return pushed.digest


class UploadContract(CatalogTestCase):
    def session(self, upload_id: str) -> UploadRecord:
        return UploadRecord(upload_id, APP, Algorithm.SHA512, 12.5)

    async def test_a_session_is_remembered_as_it_was(self) -> None:
        await self.catalog.add_upload(self.session("u1"))
        self.assertEqual(self.session("u1"), await self.catalog.upload("u1"))
        self.assertIsNone(await self.catalog.upload("u2"))

    async def test_a_session_is_forgotten_once(self) -> None:
        await self.catalog.add_upload(self.session("u1"))
        self.assertTrue(await self.catalog.delete_upload("u1"))
        self.assertFalse(await self.catalog.delete_upload("u1"))
        self.assertIsNone(await self.catalog.upload("u1"))

    async def test_sessions_are_listed_by_id_page_by_page(self) -> None:
        for upload_id in ("c", "a", "d", "b"):
            await self.catalog.add_upload(self.session(upload_id))
        first = await self.catalog.uploads("", 3)
        self.assertEqual(["a", "b", "c"], [upload.id for upload in first])
        self.assertEqual([self.session("d")], await self.catalog.uploads("c", 3))

    async def test_a_session_whose_bytes_cannot_begin_is_not_remembered(self) -> None:
        await self.assert_raises(
            ConfirmFailed, self.catalog.add_upload(self.session("u1"), not_confirmed)
        )
        self.assertIsNone(await self.catalog.upload("u1"))

    async def test_a_session_makes_no_image_known(self) -> None:
        await self.catalog.add_upload(self.session("u1"))
        self.assertIsNone(await self.catalog.tags(APP, None, None))
        self.assertEqual([], await self.catalog.images("local", "", 10))


class RepositoryContract(CatalogTestCase):
    TEAM_APP = ImageName("local", "team/app")

    def refusal(self, *names: str, default: str | None = "local") -> str | None:
        """Start a process with these repositories; what stops the start."""
        try:
            self.configure_repositories(names, default)
        except StartError as error:
            return str(error)
        return None

    async def test_a_repository_that_hides_no_image_can_be_added(self) -> None:
        await self.put(b"{}", image=ImageName("local", "teams"))
        await self.put(b"{}", image=ImageName("local", "team-x/app"))
        self.assertIsNone(self.refusal("local"))
        self.assertIsNone(self.refusal("local", "team"))

    async def test_a_repository_that_would_hide_an_image_is_refused_by_name(self) -> None:
        self.refusal("local")
        await self.put(b"{}", image=self.TEAM_APP)
        for _ in range(2):  # a refusal must not count as having been configured
            reason = self.refusal("local", "team")
            assert reason is not None
            self.assertIn('"team"', reason)
            self.assertIn('"team/app"', reason)

    async def test_a_name_that_has_lost_its_manifests_is_free_again(self) -> None:
        digest = await self.put(b"{}", image=self.TEAM_APP)
        await self.catalog.delete_manifest(self.TEAM_APP, digest, allow_held=False, actor="anne")
        self.assertIsNone(self.refusal("local", "team"))

    async def test_a_repository_configured_all_along_hides_nothing_new(self) -> None:
        self.refusal("local", "team")
        await self.put(b"{}", image=self.TEAM_APP)  # pushed as local/team/app
        self.assertIsNone(self.refusal("local", "team"))

    async def test_a_repository_taken_out_and_added_again_counts_as_added(self) -> None:
        self.refusal("local", "team")
        self.refusal("local")
        await self.put(b"{}", image=self.TEAM_APP)
        self.assertIsNotNone(self.refusal("local", "team"))

    async def test_without_a_default_nothing_is_hidden(self) -> None:
        await self.put(b"{}", image=self.TEAM_APP)
        self.assertIsNone(self.refusal("local", "team", default=None))

    async def test_images_of_other_repositories_are_not_hidden(self) -> None:
        await self.put(b"{}", image=ImageName("elsewhere", "team/app"))
        self.assertIsNone(self.refusal("local", "elsewhere", "team"))


class SharedContract(CatalogTestCase):
    """One catalog, several processes."""

    def setUp(self) -> None:
        super().setUp()
        self.second = self.open_catalog()

    async def test_what_one_process_commits_the_other_sees_at_once(self) -> None:
        for number in range(20):
            writer, reader = (
                (self.catalog, self.second) if number % 2 else (self.second, self.catalog)
            )
            digest = Digest.of(b"%d" % number)
            self.assertIsNone(await reader.blob_size(APP, digest))
            await writer.add_blob(APP, digest, number, confirmed)
            self.assertEqual(number, await reader.blob_size(APP, digest))

    async def test_a_tag_that_one_process_moves_is_moved_for_the_other(self) -> None:
        tag = Tag.parse("v1")
        for content in (b"1", b"2", b"3"):
            digest = await self.put(content, "v1")
            found = await self.second.manifest(APP, tag)
            assert found is not None
            self.assertEqual(digest, found.digest)
        await self.second.delete_tag(APP, tag, actor="bob")
        self.assertIsNone(await self.catalog.manifest(APP, tag))

    async def test_processes_that_write_at_the_same_time_lose_nothing(self) -> None:
        digests = [Digest.of(b"%d" % number) for number in range(100)]
        await gatherResults(
            Deferred.fromCoroutine(
                (self.catalog, self.second)[number % 2].add_blob(APP, digest, number, confirmed)
            )
            for number, digest in enumerate(digests)
        )
        sizes = [await self.catalog.blob_size(APP, digest) for digest in digests]
        self.assertEqual(list(range(100)), sizes)

    async def test_of_two_processes_that_create_a_tag_one_wins(self) -> None:
        absent = Precondition(if_none_match=("*",))
        puts = [
            ManifestPut(APP, manifest(content), (Tag.parse("v1"),), absent)
            for content in (b"1", b"2")
        ]
        outcomes: list[str] = []
        deferreds = [
            Deferred.fromCoroutine(catalog.put_manifest(put, confirmed))
            for catalog, put in zip((self.catalog, self.second), puts, strict=True)
        ]
        for deferred in deferreds:
            deferred.addCallbacks(
                lambda _: outcomes.append("put"), lambda failure: outcomes.append(failure.type.code)
            )
            await deferred
        self.assertEqual(["DENIED", "put"], sorted(outcomes))
        self.assertEqual(1, len(await self.catalog.tag_movements(APP, Tag.parse("v1"))))
