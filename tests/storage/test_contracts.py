"""The contracts of storage, held by the filesystem, in real threads."""

from __future__ import annotations

from tests.contracts import storage, storage_sessions, storage_uploads
from tests.storage import fixture


class BlobReadingTests(fixture.ThreadedTestCase, storage.BlobReadingContract):
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
