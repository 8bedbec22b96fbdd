"""Tokens of other issuers."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactd.auth.identity import Kind
from artifactd.auth.issuers import Issuer, as_text
from artifactd.auth.jwt import VerificationKey, parse_key_set
from artifactd.oci.errors import Unauthorized
from artifactd.settings.accounts import IssuerSettings
from tests.auth.accounts import Now
from tests.auth.issuing import AUDIENCE, GITHUB, RSA_KEY, FakeIssuer, ec_key
from tests.auth.test_tokens import encode, read_part


@define
class FakeKeys:
    """The keys of an issuer that are always at hand."""

    issuer: FakeIssuer

    async def keys(self, wanted: Callable[[VerificationKey], bool]) -> Sequence[VerificationKey]:
        return list(filter(wanted, parse_key_set(self.issuer.key_set())))

    def holds(self, kid: str) -> bool:
        return kid in self.issuer.keys


def make_issuer(fake: FakeIssuer, **more: Any) -> Issuer:
    """As the settings would make it."""
    settings = IssuerSettings(issuer=GITHUB, audience=(AUDIENCE, "other"), **more)
    return Issuer("github", settings, FakeKeys(fake), fake.now)


class IssuerTests(TestCase):
    def setUp(self) -> None:
        self.now = Now()
        self.fake = FakeIssuer(self.now)
        self.issuer = make_issuer(self.fake)

    def refused(self, token: str, *words: str) -> None:
        opening = Deferred.fromCoroutine(self.issuer.open(token))
        error = self.failureResultOf(opening, Unauthorized).value
        for word in words:
            self.assertIn(word, error.message)

    async def test_a_job_is_known_by_its_issuer_its_subject_and_its_claims(self) -> None:
        opened = await self.issuer.open(self.fake.token())
        identity = opened.identity
        self.assertEqual(identity.kind, Kind.ISSUER)
        self.assertEqual(identity.name, "github/repo:octo/hello:ref:refs/heads/main")
        self.assertEqual(identity.claims["repository"], "octo/hello")
        self.assertEqual(identity.claims["run_attempt"], "2")
        self.assertEqual(opened.until, self.now.seconds + 360)
        self.assertIsNone(opened.scopes)

    def test_claims_are_compared_as_text(self) -> None:
        claims = {"a": "x", "b": True, "c": 1.5, "d": ["x", 'y"'], "e": None, "f": {"g": "ü"}}
        expected = {"a": "x", "b": "true", "c": "1.5", "d": '["x","y\\""]', "f": '{"g":"ü"}'}
        self.assertEqual(as_text(claims), expected)

    async def test_one_audience_of_several_is_enough(self) -> None:
        await self.issuer.open(self.fake.token(aud=["elsewhere", "other"]))

    def test_one_for_another_audience_is_refused(self) -> None:
        for audience in ("elsewhere", [], ["elsewhere"], AUDIENCE + "/", None):
            self.refused(self.fake.token(aud=audience))
        self.refused(self.fake.token(aud="elsewhere"), AUDIENCE, "github")

    def test_one_of_another_issuer_is_refused(self) -> None:
        self.refused(self.fake.token(iss=GITHUB + "/"), "trusts")

    def test_what_a_token_must_say_it_must_say(self) -> None:
        self.refused(self.fake.token(iss=None), "claims")
        self.refused(self.fake.token(sub=None), "claims")
        self.refused(self.fake.token(exp=None), "claims")
        self.refused(self.fake.token(aud=None), "claims")
        self.refused(self.fake.token(sub=""), "subject")
        self.refused(self.fake.token(sub="a\nb"), "subject")

    async def test_a_claim_may_be_required_of_every_token(self) -> None:
        octo = ("repository=octo/*", "run_attempt=2", "repository=*/hello")
        self.issuer = make_issuer(self.fake, claims=octo)
        await self.issuer.open(self.fake.token())
        for other in ("mallory/hello", "octo/other"):
            self.refused(self.fake.token(repository=other), "repository")
        self.refused(self.fake.token(repository=None), "repository")
        self.refused(self.fake.token(run_attempt=3), "run_attempt")

    async def test_times_are_compared_with_some_leeway(self) -> None:
        token = self.fake.token()
        self.now.seconds += 359
        await self.issuer.open(token)
        self.now.seconds += 1
        self.refused(token, "expired")
        self.refused(self.fake.token(nbf=self.now.seconds + 61), "later")
        self.refused(self.fake.token(iat=self.now.seconds + 61), "later")
        await self.issuer.open(self.fake.token(nbf=self.now.seconds + 60))

    async def test_any_key_of_the_set_may_sign(self) -> None:
        self.fake.keys["two"] = ec_key()
        await self.issuer.open(self.fake.token("two", "ES256"))
        await self.issuer.open(self.fake.token("one"))

    async def test_a_token_need_not_say_which_key_it_is(self) -> None:
        self.fake.keys["two"] = ec_key()
        await self.issuer.open(self.fake.token(None))

    def test_a_key_that_is_not_in_the_set_signs_for_nobody(self) -> None:
        self.refused(self.fake.token("unknown"), "not one of github's")
        self.fake.keys["one"] = ec_key()
        token = self.fake.token("one", "ES256")
        self.fake.keys["one"] = ec_key()
        self.refused(token, "signature is wrong")

    def test_only_algorithms_of_the_settings_count(self) -> None:
        self.refused(self.fake.token(algorithm="RS512"), "RS512", "not accepted")
        self.refused(self.fake.token(algorithm="PS256"), "PS256")

    def test_the_public_key_is_no_shared_secret_and_none_no_signature(self) -> None:
        claims = read_part(self.fake.token(), 1)
        pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for algorithm in ("HS256", "none", "None"):
            signed = f"{encode({'alg': algorithm, 'kid': 'one'})}.{encode(claims)}"
            mac = base64.urlsafe_b64encode(hmac.digest(pem, signed.encode(), "sha256"))
            self.refused(f"{signed}.{mac.decode().rstrip('=')}", "not accepted")

    def test_a_key_of_another_kind_is_not_taken_for_it(self) -> None:
        # RS256 said, an EC key named.
        self.fake.keys["two"] = ec_key()
        header = read_part(self.fake.token("one"), 0) | {"kid": "two"}
        self.refused(f"{encode(header)}.{encode(read_part(self.fake.token(), 1))}.AAAA", "key")

    async def test_one_stands_as_long_as_its_key_is_published(self) -> None:
        opened = await self.issuer.open(self.fake.token())
        self.assertTrue(await self.issuer.stands(opened))
        del self.fake.keys["one"]
        self.assertFalse(await self.issuer.stands(opened))
