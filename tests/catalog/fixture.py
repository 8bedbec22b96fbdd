"""A catalog for a test, and the rows of images to put into it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from sqlite3 import Connection
from tempfile import TemporaryDirectory
from typing import TypeVar, cast

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorFromThreads
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.garbage import Garbage, GarbageCatalog
from artifactd.catalog.migrations import migrate
from artifactd.catalog.records import ImageSpan, ManifestPut, UploadRecord, nothing
from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.store.files import PRIVATE
from artifactd.store.folder import MARKER

REACTOR = cast(IReactorFromThreads, reactor)


_E = TypeVar("_E", bound=BaseException)

APP = ImageName("local", "app")
OTHER = ImageName("local", "other")
ALPINE = ImageName("docker.io", "library/alpine")
BUSYBOX = ImageName("docker.io", "library/busybox")
ELSEWHERE = ImageName("ghcr.io", "team/app")
V1, V2 = Tag.parse("v1"), Tag.parse("v2")

LEASE = 24 * 3600.0  # seconds
QUARTER = LEASE / 4
EVER = 1e12  # seconds since the epoch, in some 30,000 years


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
    others: Sequence[Digest] = (),
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
        others=tuple(others),
    )


def index(content: bytes, children: Sequence[Descriptor]) -> Manifest:
    """An image index."""
    return Manifest(content, Digest.of(content), OCI_INDEX, children=tuple(children))


@cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.sqlite"
        migrate(path, nullcontext)
        return path.read_bytes()


def empty_catalog(path: Path) -> None:
    """Make the file of an empty catalog: by a copy, since migrations take longer than a test."""
    path.touch(PRIVATE)
    path.write_bytes(_empty())


def empty_data(folder: Path) -> None:
    """Make a data folder as an interrupted first start leaves it."""
    folder.mkdir(0o700, parents=True)
    (folder / MARKER).touch(PRIVATE)
    empty_catalog(folder / "catalog.sqlite3")


def add_upload(db: Connection, record: UploadRecord) -> None:
    """Add a session as releases did whose sessions had rows."""
    image = record.image
    db.execute(
        "INSERT INTO upload (id, repository, image, algorithm, started) VALUES (?, ?, ?, ?, ?)",
        (record.id, image.repository, image.image, str(record.algorithm), record.started),
    )


def new_catalog(case: SynchronousTestCase) -> Path:
    """The path of an empty catalog, closed by all."""
    path = Path(case.mktemp()) / "catalog.sqlite"
    path.parent.mkdir()
    empty_catalog(path)
    return path


def schema_folder(case: SynchronousTestCase, *scripts: str) -> Path:
    """A folder of migrations, the first one to version 1."""
    folder = Path(case.mktemp())
    folder.mkdir()
    for number, script in enumerate(scripts, 1):
        (folder / f"{number:04}.sql").write_text(script, "utf-8")
    return folder


class CatalogTestCase(TestCase):
    """
    :ivar path: of the catalog.
    :ivar catalog: an empty one.
    :ivar time: the time that the catalog takes for now, in seconds since the epoch.
    """

    def setUp(self) -> None:
        self.path = new_catalog(self)
        self.time = 1000.0
        self.catalog = self.open_catalog()

    def open_catalog(self, busy_timeout: float = 60.0) -> Catalog:
        """
        Open the test's catalog once more, as another process would, with ``self.time`` for the
        time; it is closed after the test.
        """
        database = Database(self.path, REACTOR, busy_timeout=busy_timeout, now=lambda: self.time)
        self.addCleanup(database.close)
        return Catalog(database)

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

    async def images(self, repository: str, after: str, limit: int) -> list[str]:
        """The names of known images of a repository behind ``after``."""
        span = ImageSpan(repository, after, "~")
        found, _ = await self.catalog.images_between([span], limit)
        return [image.image for image in found]

    async def put(
        self, content: Manifest | bytes, *tags: str, image: ImageName = APP, actor: str = "anne"
    ) -> Digest:
        """Put a manifest."""
        pushed = content if isinstance(content, Manifest) else manifest(content)
        wanted = tuple(Tag.parse(tag) for tag in tags)
        await self.catalog.put_manifest(ManifestPut(image, pushed, wanted, actor=actor), confirmed)
        return pushed.digest


class RemoteCatalogTestCase(CatalogTestCase):
    """:ivar remote: of the same catalog as ``catalog``."""

    def setUp(self) -> None:
        super().setUp()
        self.remote = RemoteCatalog(self.catalog.database)

    async def cache(
        self, content: Manifest | bytes, tag: str | None = None, image: ImageName = ALPINE
    ) -> Digest:
        """Cache a manifest from upstream."""
        fetched = content if isinstance(content, Manifest) else manifest(content)
        wanted = None if tag is None else Tag.parse(tag)
        await self.remote.cache_manifest(image, fetched, wanted, confirmed)
        return fetched.digest

    async def fill(self, content: bytes, *images: ImageName) -> Descriptor:
        """Store a blob from upstream."""
        digest = Digest.of(content)
        await self.remote.add_blobs(images or (ALPINE,), digest, len(content), confirmed)
        return descriptor(content)

    async def forgotten(self, *digests: Digest) -> list[Digest]:
        """Forget ``digests``; returns those whose bytes no row needs."""
        return [each for each in digests if await self.catalog.forget_blob(each, nothing)]


class GarbageCatalogTestCase(RemoteCatalogTestCase):
    """:ivar garbage: of the same catalog as ``catalog``."""

    def setUp(self) -> None:
        super().setUp()
        self.garbage = GarbageCatalog(self.catalog.database)

    async def links(self, before: float | None = None) -> list[tuple[ImageName | None, str]]:
        """Collect the links whose lease runs from ``before`` or earlier."""
        if before is None:
            before = self.time - LEASE
        return [(c.image, c.name) for c in await self.garbage.collect_links(before, 100)]

    async def bytes(self, before: float = EVER) -> list[str]:
        """Collect the bytes that nothing has needed since ``before``; their digests."""
        collected = await self.garbage.collect_bytes(before, 100)
        self.assertEqual({Garbage.BYTES}, {each.why for each in collected} or {Garbage.BYTES})
        return [each.name for each in collected]

    async def deleted(self, before: float = EVER) -> list[str]:
        return [each.name for each in await self.garbage.collect_deleted(before, 100)]

    async def untagged(self, before: float = EVER, repository: str = "local") -> list[str]:
        collected = await self.garbage.collect_untagged(repository, before, 100)
        return [each.name for each in collected]

    async def orphaned(self, before: float = EVER) -> list[str]:
        return [each.name for each in await self.garbage.collect_orphaned(before, 100)]

    async def delete(self, digest: Digest, image: ImageName = APP) -> None:
        await self.catalog.delete_manifest(image, digest, allow_held=False, actor="bob")
