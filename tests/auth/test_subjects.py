"""Whom a rule is for."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.identity import ANONYMOUS, Identity, Kind
from artifactd.auth.rules import matcher
from artifactd.settings.access import Subject

ALICE = Identity(Kind.USER, "alice", frozenset({"dev"}))
CI = Identity(Kind.ROBOT, "ci")
NODE = Identity(Kind.CERTIFICATE, "node-1.example")
JOB = Identity(
    Kind.ISSUER,
    "gitlab/project_path:mycorp/app:ref_type:branch:ref:main",
    claims={"project_path": "mycorp/app", "ref": "main", "https://x.example/y": "z"},
)
EVERYBODY = (ANONYMOUS, ALICE, CI, NODE, JOB)


class SubjectTests(SynchronousTestCase):
    def assert_meant(self, subject: str, *meant: Identity) -> None:
        matches = matcher(Subject.parse(subject))
        self.assertEqual([each for each in EVERYBODY if matches(each)], list(meant))

    def test_what_anonymous_may_whoever_is_logged_in_may(self) -> None:
        self.assert_meant("anonymous", *EVERYBODY)

    def test_authenticated_is_who_is_logged_in(self) -> None:
        self.assert_meant("authenticated", ALICE, CI, NODE, JOB)

    def test_a_name_is_of_one_kind(self) -> None:
        self.assert_meant("user:alice", ALICE)
        self.assert_meant("robot:ci", CI)
        self.assert_meant("user:ci")
        self.assert_meant("robot:alice")

    def test_names_may_be_patterns(self) -> None:
        self.assert_meant("user:*", ALICE)
        self.assert_meant("robot:c?", CI)
        self.assert_meant("certificate:node-*", NODE)
        self.assert_meant("certificate:*.other")

    def test_a_pattern_has_to_match_the_whole_name(self) -> None:
        self.assert_meant("user:lice")
        self.assert_meant("certificate:node-")

    def test_groups_have_members(self) -> None:
        self.assert_meant("group:dev", ALICE)
        self.assert_meant("group:ops")

    def test_an_issuers_tokens(self) -> None:
        self.assert_meant("issuer:gitlab", JOB)
        self.assert_meant("issuer:git")

    def test_a_claim_is_compared_with_a_pattern(self) -> None:
        self.assert_meant("claim:gitlab:project_path=mycorp/*", JOB)
        self.assert_meant("claim:gitlab:project_path=other/*")
        self.assert_meant("claim:gitlab:https://x.example/y=z", JOB)

    def test_a_claim_that_is_missing_matches_nothing(self) -> None:
        self.assert_meant("claim:gitlab:environment=*")

    def test_a_claim_counts_of_its_issuer_alone(self) -> None:
        self.assert_meant("claim:github:project_path=mycorp/*")
        self.assert_meant("claim:git:project_path=mycorp/*")

    def test_several_claims_have_to_be_there_all(self) -> None:
        self.assert_meant("claim:gitlab:project_path=mycorp/*&ref=main", JOB)
        self.assert_meant("claim:gitlab:project_path=mycorp/*&ref=release")

    def test_anything_else_is_refused(self) -> None:
        for text in (
            "",
            "alice",
            "user:",
            "user",
            "user:a b",
            "user:a:b",
            "anonymous:x",
            "authenticated:",
            "claim:gitlab",
            "claim:gitlab:project_path",
            "claim:gitlab:project_path=",
            "claim:gitlab:=x",
            "claim::a=b",
            "claim:gitlab:a=b&",
            "claim:gitlab:a=b&c",
            "kind:alice",
        ):
            with self.assertRaises(ValueError, msg=text):
                Subject.parse(text)
