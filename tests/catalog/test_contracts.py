"""The catalog's contract, held by SQLite."""

from __future__ import annotations

from tests.catalog import fixture
from tests.contracts import (
    catalog,
    catalog_blobs,
    catalog_listings,
    catalog_manifests,
    catalog_tags,
)


class BlobTests(fixture.SQLiteCatalogTestCase, catalog_blobs.BlobContract):
    pass


class UploadTests(fixture.SQLiteCatalogTestCase, catalog.UploadContract):
    pass


class RepositoryTests(fixture.SQLiteCatalogTestCase, catalog.RepositoryContract):
    pass


class SharedTests(fixture.SQLiteCatalogTestCase, catalog.SharedContract):
    pass


class ManifestTests(fixture.SQLiteCatalogTestCase, catalog_manifests.ManifestContract):
    pass


class PreconditionTests(fixture.SQLiteCatalogTestCase, catalog_tags.PreconditionContract):
    pass


class TagTests(fixture.SQLiteCatalogTestCase, catalog_tags.TagContract):
    pass


class ManifestDeletionTests(
    fixture.SQLiteCatalogTestCase, catalog_manifests.ManifestDeletionContract
):
    pass


class TagListTests(fixture.SQLiteCatalogTestCase, catalog_listings.TagListContract):
    pass


class ImageListTests(fixture.SQLiteCatalogTestCase, catalog_listings.ImageListContract):
    pass


class ReferrerTests(fixture.SQLiteCatalogTestCase, catalog_listings.ReferrerContract):
    pass
