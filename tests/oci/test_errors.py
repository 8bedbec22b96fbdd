"""Errors: distribution-spec, "Error Codes"."""

from __future__ import annotations

import json

from twisted.trial.unittest import TestCase

from artifactd.oci.errors import ManifestUnknown, QuotaExceeded
from artifactd.settings.values import Size


class BodyTests(TestCase):
    """The JSON of an error."""

    def test_it_has_code_message_and_detail(self) -> None:
        body = json.loads(ManifestUnknown("no such manifest", {"reference": "v1"}).body())
        expected = {
            "code": "MANIFEST_UNKNOWN",
            "message": "no such manifest",
            "detail": {"reference": "v1"},
        }
        self.assertEqual({"errors": [expected]}, body)

    def test_without_a_detail_there_is_none(self) -> None:
        body = json.loads(ManifestUnknown("no such manifest").body())
        self.assertNotIn("detail", body["errors"][0])

    def test_stored_facts_are_for_clients_that_may_pull(self) -> None:
        for detail, shown in (({"a": 1}, {"a": 1, "b": 2}), (None, {"b": 2})):
            error = ManifestUnknown("no such manifest", detail, stored={"b": 2})
            seen = json.loads(error.body(sees_stored=True))["errors"][0]
            self.assertEqual(shown, seen["detail"])
            self.assertEqual(detail, json.loads(error.body())["errors"][0].get("detail"))

    def test_what_json_has_no_form_for_becomes_text(self) -> None:
        error = json.loads(ManifestUnknown("no", {"limit": Size(5 << 20)}).body())
        self.assertEqual({"limit": "5MiB"}, error["errors"][0]["detail"])

    def test_a_quota_that_is_exceeded_is_told_with_figures(self) -> None:
        error = QuotaExceeded("local", quota=1000, used=900, requested=300)
        excess = "the quota of local is exceeded: 300 bytes more do not fit into its 1000 bytes"
        remedy = ": delete images there, or ask its administrator for more"
        (told,) = json.loads(error.body())["errors"]
        self.assertEqual(told["message"], excess + remedy)
        (told,) = json.loads(error.body(sees_stored=True))["errors"]
        self.assertEqual(told["message"], f"{excess}, of which 900 bytes are used{remedy}")
        self.assertEqual(told["detail"]["used"], 900)

    def test_figures_of_a_quota_are_told_exactly_and_readably(self) -> None:
        error = QuotaExceeded("local", quota=10 << 30, used=9 << 30, requested=(1 << 30) + 512)
        for figure in (
            "1073742336 bytes (1.0 GiB) more",
            "its 10737418240 bytes (10.0 GiB)",
            "9663676416 bytes (9.0 GiB) are used",
        ):
            self.assertIn(figure, error.full_message)
