"""Digests: image-spec, descriptor.md, "Digests"."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.oci.errors import DigestInvalid
from artifactd.oci.names import Algorithm, Digest


class DigestTests(TestCase):
    """What is a digest, and what is not."""

    def test_a_sha256_digest_reads_back_as_it_was_written(self) -> None:
        text = "sha256:" + hashlib.sha256(b"hello").hexdigest()
        self.assertEqual(text, str(Digest.parse(text)))
        self.assertEqual(Digest.parse(text), Digest.of(b"hello"))

    def test_a_sha512_digest_reads_back_as_it_was_written(self) -> None:
        text = "sha512:" + hashlib.sha512(b"hello").hexdigest()
        self.assertEqual(Digest.parse(text), Digest.of(b"hello", Algorithm.SHA512))

    def test_what_is_no_digest_is_refused(self) -> None:
        for text in (
            "",
            "sha256",
            "sha256:",
            "sha256:" + "a" * 63,
            "sha256:" + "a" * 65,
            "sha256:" + "A" * 64,
            "sha256:" + "g" * 64,
            "sha256:" + "a" * 64 + "\n",
            "sha256:../../../../etc/passwd",
            "SHA256:" + "a" * 64,
            "sha512:" + "a" * 64,
            " sha256:" + "a" * 64,
        ):
            with self.subTest(text=text):
                self.assertRaises(DigestInvalid, Digest.parse, text)

    def test_an_algorithm_we_do_not_have_is_refused_by_name(self) -> None:
        error = self.assertRaises(DigestInvalid, Digest.parse, "md5:" + "a" * 32)
        self.assertEqual({"algorithm": "md5"}, error.detail)

    @given(st.text())
    def test_any_text_is_a_digest_or_refused(self, text: str) -> None:
        try:
            digest = Digest.parse(text)
        except DigestInvalid as error:
            self.assertEqual(400, error.status)
        else:
            self.assertEqual(text, str(digest))
