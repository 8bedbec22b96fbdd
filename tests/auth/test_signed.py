"""Signatures: of the algorithm that the verifier says, and of no other."""

from __future__ import annotations

from typing import Any

import jwt
from twisted.trial.unittest import TestCase

from artifactd.auth.jwt import is_token, verify
from artifactd.oci.errors import Unauthorized
from tests.auth.issuing import RSA_KEY

CLAIMS = {"iss": "x"}


class SignatureTests(TestCase):
    def test_the_token_does_not_choose_how_it_is_verified(self) -> None:
        # A key that fits several algorithms, so that nothing but the pin tells them apart.
        public = RSA_KEY.public_key()
        for algorithm in ("RS256", "RS512", "PS256"):
            token = jwt.encode(CLAIMS, RSA_KEY, algorithm=algorithm)
            self.assertEqual(verify(token, public, algorithm, dict[str, Any]), CLAIMS)
            for other in {"RS256", "RS512", "PS256", "ES256"} - {algorithm}:
                self.assertRaises(Unauthorized, verify, token, public, other, dict[str, Any])

    def test_claims_of_another_form_are_refused(self) -> None:
        token = jwt.encode(CLAIMS, RSA_KEY, algorithm="RS256")
        self.assertRaises(Unauthorized, verify, token, RSA_KEY.public_key(), "RS256", list[int])

    def test_passwords_do_not_look_like_tokens(self) -> None:
        self.assertTrue(is_token(jwt.encode(CLAIMS, RSA_KEY, algorithm="RS256")))
        for password in ("", "secret", "a.b.c", "eyJ", "eyJ.a", "eyJ.a.b.c", "eyJ.é.b"):
            self.assertFalse(is_token(password), password)
