"""Signatures of JSON Web Tokens, and the keys in JSON Web Key Sets."""

from __future__ import annotations

import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, SECP521R1
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.auth.jwt import VerificationKey, is_token, parse_key_set, verify
from artifactd.oci.errors import Unauthorized
from tests.auth.issuing import RSA_KEY, ec_key, ed_key, jwk

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


def parse(*keys: Any) -> list[VerificationKey]:
    return list(parse_key_set(json.dumps({"keys": keys}).encode()))


class KeySetTests(TestCase):
    def test_a_key_verifies_the_algorithms_of_its_kind(self) -> None:
        for key, algorithms in (
            (RSA_KEY, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
            (ec_key(), {"ES256"}),
            (ec_key(SECP384R1()), {"ES384"}),
            (ed_key(), {"EdDSA"}),
        ):
            (parsed,) = parse(jwk(key, kid="k"))
            self.assertEqual((parsed.kid, parsed.algorithms), ("k", algorithms))

    def test_one_that_says_its_algorithm_is_for_that_alone(self) -> None:
        (parsed,) = parse(jwk(RSA_KEY, alg="RS256"))
        self.assertEqual(parsed.algorithms, {"RS256"})

    def test_what_can_not_verify_is_left_out(self) -> None:
        good = jwk(RSA_KEY, kid="good")
        short = generate_private_key(public_exponent=65537, key_size=1024)
        others: list[Any] = [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "good"},
            jwk(RSA_KEY, use="enc"),
            jwk(RSA_KEY, alg="HS256"),
            jwk(short),
            jwk(ec_key(SECP521R1())),
            {**jwk(ec_key()), "x": "AQ"},
            {**jwk(RSA_KEY), "e": "AQ"},
            {**jwk(RSA_KEY), "n": "!"},
            {"kty": "RSA"},
            {"kid": "no type"},
            "no key",
            7,
        ]
        self.assertEqual([key.kid for key in parse(*others, good)], ["good"])
        self.assertRaises(ValueError, parse, *others)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_key_set_or_none(self, content: bytes) -> None:
        self.assertRaises(ValueError, parse_key_set, content)

    def test_nesting_without_end_is_no_key_set(self) -> None:
        self.assertRaises(ValueError, parse_key_set, b'{"keys":' + b"[" * 100_000)
