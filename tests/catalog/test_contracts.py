"""The catalog's contract, held by SQLite."""

from __future__ import annotations

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.proofs import ProofCatalog
from tests.catalog import fixture
from tests.contracts import (
    catalog,
    catalog_blobs,
    catalog_garbage,
    catalog_listings,
    catalog_manifests,
    catalog_proofs,
    catalog_remote,
    catalog_remote_blobs,
    catalog_remote_eviction,
    catalog_remote_purge,
    catalog_remote_tags,
    catalog_tags,
    catalog_undelete,
    catalog_usage,
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


class KnownNameTests(fixture.SQLiteRemoteTestCase, catalog_remote.KnownNameContract):
    pass


class OriginTests(fixture.SQLiteRemoteTestCase, catalog_remote.OriginContract):
    pass


class CachedManifestTests(fixture.SQLiteRemoteTestCase, catalog_remote_tags.CachedManifestContract):
    pass


class CachedTagTests(fixture.SQLiteRemoteTestCase, catalog_remote_tags.CachedTagContract):
    pass


class RemoteBlobTests(fixture.SQLiteRemoteTestCase, catalog_remote_blobs.RemoteBlobContract):
    pass


class CachedPageTests(fixture.SQLiteRemoteTestCase, catalog_remote_blobs.CachedPageContract):
    pass


class UseTests(fixture.SQLiteRemoteTestCase, catalog_remote_eviction.UseContract):
    pass


class DropTests(fixture.SQLiteRemoteTestCase, catalog_remote_eviction.DropContract):
    pass


class PurgeTests(fixture.SQLiteRemoteTestCase, catalog_remote_purge.PurgeContract):
    pass


class UsageTests(fixture.SQLiteCatalogTestCase, catalog_usage.UsageContract):
    pass


class ProofTests(fixture.SQLiteCatalogTestCase, catalog_proofs.ProofContract):
    def open_proofs(self, catalog: Catalog) -> ProofCatalog:
        return ProofCatalog(catalog.database)


class LeaseTests(fixture.SQLiteGarbageTestCase, catalog_garbage.LeaseContract):
    pass


class UntaggedTests(fixture.SQLiteGarbageTestCase, catalog_garbage.UntaggedContract):
    pass


class BytesTests(fixture.SQLiteGarbageTestCase, catalog_garbage.BytesContract):
    pass


class UndeleteTests(fixture.SQLiteGarbageTestCase, catalog_undelete.UndeleteContract):
    pass
