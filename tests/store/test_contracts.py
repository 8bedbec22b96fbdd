"""The contracts of storage, held by the filesystem, in real threads."""

from __future__ import annotations

from tests.contracts import (
    storage,
    storage_comparison,
    storage_extents,
    storage_fill_ends,
    storage_fills,
    storage_sessions,
    storage_uploads,
)
from tests.store import fixture


class BlobReadingTests(fixture.ThreadedTestCase, storage.BlobReadingContract):
    pass


class ShelfTests(fixture.ThreadedTestCase, storage.ShelfContract):
    pass


class PublicationTests(fixture.ThreadedTestCase, storage.PublicationContract):
    pass


class UploadTests(fixture.ThreadedTestCase, storage_uploads.UploadContract):
    pass


class ClaimTests(fixture.ThreadedTestCase, storage_uploads.ClaimContract):
    pass


class UploadDigestTests(fixture.ThreadedTestCase, storage_sessions.UploadDigestContract):
    pass


class RollbackTests(fixture.ThreadedTestCase, storage_sessions.RollbackContract):
    pass


class StagingTests(fixture.ThreadedTestCase, storage_sessions.StagingContract):
    pass


class FillClaimTests(fixture.ThreadedTestCase, storage_fills.FillClaimContract):
    pass


class FillGrowthTests(fixture.ThreadedTestCase, storage_fills.FillGrowthContract):
    pass


class ComparisonTests(fixture.ThreadedTestCase, storage_comparison.ComparisonContract):
    pass


class FillStagingTests(fixture.ThreadedTestCase, storage_fill_ends.FillStagingContract):
    pass


class FillDiscardTests(fixture.ThreadedTestCase, storage_fill_ends.FillDiscardContract):
    pass


class FillSweepTests(fixture.ThreadedTestCase, storage_fill_ends.FillSweepContract):
    pass


class ExtentTests(fixture.ThreadedTestCase, storage_extents.ExtentContract):
    pass


class ExtentsInFillsTests(fixture.ThreadedTestCase, storage_extents.ExtentsInFillsContract):
    pass
