"""Names, tags and references: distribution-spec, "Pulling manifests"."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.oci.errors import ManifestInvalid, NameInvalid
from artifactd.oci.names import Digest, ImageName, RepositoryName, Tag, parse_reference

# As the spec prints them.
SPEC_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
SPEC_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"

names_or_nearly = st.text(alphabet="aZ09._-/: \n%é", max_size=30)


class RepositoryNameTests(TestCase):
    """The grammar of ``<name>``."""

    @given(names_or_nearly | st.from_regex(SPEC_NAME, fullmatch=True))
    @example("a" * 255)
    @example("a" * 256)
    @example("a/../b")
    def test_a_name_is_what_the_spec_s_expression_matches_within_255(self, text: str) -> None:
        valid = bool(re.fullmatch(SPEC_NAME, text)) and len(text) <= 255
        try:
            self.assertEqual(text, str(RepositoryName.parse(text)))
            self.assertTrue(valid, text)
        except NameInvalid as error:
            self.assertFalse(valid, text)
            self.assertEqual(("NAME_INVALID", 400), (error.code, error.status))

    def test_a_long_almost_valid_name_is_refused_without_delay(self) -> None:
        # A backtracking expression would take for ever over this one.
        self.assertRaises(NameInvalid, RepositoryName.parse, "a-" * 120 + "!")


class ImageNameTests(TestCase):
    """Canonical names as text."""

    def test_the_repository_is_what_stands_before_the_first_slash(self) -> None:
        for name in (ImageName("local", "app"), ImageName("docker.io", "library/alpine")):
            self.assertEqual(name, ImageName.of(str(name)))


class ReferenceTests(TestCase):
    """The grammar of ``<tag-or-digest>``."""

    @given(names_or_nearly | st.from_regex(SPEC_TAG, fullmatch=True))
    @example("v" * 128)
    @example("v" * 129)
    @example("latest\n")
    def test_a_tag_is_what_the_spec_s_expression_matches(self, text: str) -> None:
        valid = bool(re.fullmatch(SPEC_TAG, text))
        try:
            self.assertEqual(text, str(Tag.parse(text)))
            self.assertTrue(valid, text)
        except ManifestInvalid as error:
            self.assertFalse(valid, text)
            self.assertEqual(400, error.status)

    def test_what_holds_a_colon_is_a_digest_or_nothing(self) -> None:
        digest = Digest.of(b"x")
        self.assertEqual(digest, parse_reference(str(digest)))
        self.assertEqual(Tag("latest"), parse_reference("latest"))
        self.assertRaises(ManifestInvalid, parse_reference, "sha256:short")
        self.assertRaises(ManifestInvalid, parse_reference, "la:test")

    @given(st.text())
    def test_any_text_is_a_reference_or_manifest_invalid(self, text: str) -> None:
        try:
            self.assertEqual(text, str(parse_reference(text)))
        except ManifestInvalid as error:
            self.assertEqual("MANIFEST_INVALID", error.code)
