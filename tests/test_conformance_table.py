"""docs/conformance.md names tests that exist, and one for all that the spec asks for."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.tables import assert_tests_exist, tables

DOCUMENT = "conformance.md"
LEVELS = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY"}
ENDPOINTS = (
    "end-1 end-2 end-3 end-4a end-4b end-4c end-5 end-6 end-7a end-7b end-8a end-8b end-9 end-10"
    " end-11 end-12a end-12b end-13 end-14"
)
# What the conformance suite can be told to ask.
SUITE = (
    "apis.ping apis.pull apis.push apis.blobs.atomic apis.blobs.delete apis.blobs.digestHeader"
    " apis.blobs.mountAnonymous apis.blobs.uploadCancel apis.manifests.atomic"
    " apis.manifests.delete apis.manifests.digestHeader apis.manifests.tagParam apis.tags.atomic"
    " apis.tags.delete apis.tags.list apis.referrer data.image data.index data.indexList"
    " data.sparse data.artifact data.subject data.subjectMissing data.artifactList"
    " data.subjectList data.dataField data.nondistributable data.customFields data.noLayers"
    " data.emptyBlob data.sha512"
)


class ConformanceTableTests(SynchronousTestCase):
    def test_every_test_that_is_named_exists(self) -> None:
        assert_tests_exist(self, DOCUMENT, 100)

    def test_every_statement_has_a_test(self) -> None:
        rows = tables(DOCUMENT)["Statements"]
        self.assertGreater(len(rows), 80)
        for row in rows:
            _, statement, level, _, _ = row.cells
            self.assertIn(level, LEVELS, statement)
            self.assertTrue(row.tests, statement)

    def test_every_endpoint_has_a_test_of_its_success_and_of_its_failures(self) -> None:
        rows = tables(DOCUMENT)["Endpoints"]
        listed = list(dict.fromkeys(row.cells[0] for row in rows))
        self.assertEqual(listed, ENDPOINTS.split())
        for row in rows:
            self.assertTrue(row.tests, row.cells)

    def test_every_code_has_a_test_or_a_reason(self) -> None:
        rows = tables(DOCUMENT)["Error codes"]
        self.assertEqual([row.cells[0] for row in rows], [f"code-{n}" for n in range(1, 15)])
        for row in rows:
            self.assertTrue(row.tests or row.cells[2], row.cells)

    def test_all_that_the_suite_can_ask_has_a_test(self) -> None:
        rows = tables(DOCUMENT)["The conformance suite"]
        self.assertEqual([row.cells[0] for row in rows], [f"`{name}`" for name in SUITE.split()])
        for row in rows:
            self.assertTrue(row.tests, row.cells)

    def test_what_clients_need_has_a_test(self) -> None:
        rows = tables(DOCUMENT)["Clients as they are"]
        self.assertGreater(len(rows), 15)
        for row in rows:
            self.assertTrue(row.tests, row.cells)

    def test_what_does_not_apply_has_a_reason(self) -> None:
        for row in tables(DOCUMENT)["What does not apply"]:
            self.assertGreater(len(row.cells[-1]), 10, row.cells)
