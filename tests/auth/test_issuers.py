"""Tokens of other issuers, and the keys of these."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import define
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import TestCase

from artifactd.auth.identity import Kind
from artifactd.auth.issuers import (
    FetchedKeys,
    Issuer,
    KeysInFile,
    KeysUnavailable,
    as_text,
    discover,
)
from artifactd.auth.jwt import VerificationKey, parse_key_set
from artifactd.oci.errors import Unauthorized, Unavailable
from artifactd.settings.accounts import IssuerSettings
from tests.auth.accounts import Now
from tests.auth.issuing import AUDIENCE, GITHUB, RSA_KEY, FakeIssuer, ec_key
from tests.auth.test_tokens import encode, read_part
from tests.store.fixture import at_once


@define
class FakeKeys:
    """The keys of an issuer that are always at hand."""

    issuer: FakeIssuer

    async def keys(self, wanted: Callable[[VerificationKey], bool]) -> Sequence[VerificationKey]:
        return list(filter(wanted, parse_key_set(self.issuer.key_set())))

    def holds(self, mark: str) -> bool:
        return bool(self.issuer.keys) and mark in marks(self.issuer).values()


def marks(fake: FakeIssuer) -> dict[str, str]:
    """The marks of the keys that ``fake`` publishes, by their ids."""
    return {key.kid: key.mark for key in parse_key_set(fake.key_set())}


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

    async def test_it_does_not_stand_by_another_key_of_the_same_id(self) -> None:
        for kid in ("one", None):
            self.fake.keys = {kid or "": RSA_KEY}
            opened = await self.issuer.open(self.fake.token(kid))
            self.assertTrue(await self.issuer.stands(opened))
            self.fake.keys = {kid or "": ec_key()}
            self.assertFalse(await self.issuer.stands(opened), kid)


class FetchedKeysTests(TestCase):
    def setUp(self) -> None:
        self.now = Now()
        self.fake = FakeIssuer(self.now)
        self.fetches: list[Deferred[bytes]] = []
        self.down = False
        self.slow = False
        self.source = FetchedKeys("github", self.fetch, self.now, 3600)

    async def fetch(self) -> bytes:
        fetching: Deferred[bytes] = Deferred()
        self.fetches.append(fetching)
        if self.down:
            raise KeysUnavailable("nobody answers")
        if not self.slow:
            return self.fake.key_set()
        return await fetching

    def find(self, kid: str) -> Deferred[list[str]]:
        """The ids of the keys that are ``kid``."""

        def wanted(key: VerificationKey) -> bool:
            return key.kid == kid

        async def find() -> list[str]:
            return [key.kid for key in await self.source.keys(wanted)]

        return Deferred.fromCoroutine(find())

    def found(self, kid: str) -> list[str]:
        return self.successResultOf(self.find(kid))

    def test_they_are_fetched_when_the_first_is_wanted_and_kept(self) -> None:
        self.assertEqual(self.fetches, [])
        for _ in range(3):
            self.assertEqual(self.found("one"), ["one"])
        self.assertEqual(len(self.fetches), 1)

    def test_many_who_want_them_at_once_wait_for_one_fetch(self) -> None:
        self.slow = True
        finding = [self.find("one") for _ in range(5)]
        self.fetches[0].callback(self.fake.key_set())
        self.assertEqual([self.successResultOf(each) for each in finding], [["one"]] * 5)
        self.assertEqual(len(self.fetches), 1)

    def test_an_unknown_key_is_looked_for_at_most_once_a_minute(self) -> None:
        self.found("one")
        for _ in range(3):
            self.assertEqual(self.found("two"), [])
        self.assertEqual(len(self.fetches), 1)
        self.fake.keys["two"] = ec_key()
        self.now.seconds += 60
        self.assertEqual(self.found("two"), ["two"])
        self.assertEqual(len(self.fetches), 2)

    def test_old_ones_are_fetched_again_while_they_serve(self) -> None:
        self.found("one")
        self.now.seconds += 3600
        self.slow = True
        self.assertEqual(self.found("one"), ["one"])
        self.assertEqual(len(self.fetches), 2)
        one = marks(self.fake)["one"]
        self.assertTrue(self.source.holds(one))
        self.fake.keys = {"one": ec_key()}
        self.fetches[1].callback(self.fake.key_set())
        self.assertTrue(self.source.holds(marks(self.fake)["one"]))
        self.assertFalse(self.source.holds(one))

    def test_a_clock_that_is_set_back_keeps_no_old_ones(self) -> None:
        self.found("one")
        self.now.seconds -= 86400
        self.found("one")
        self.assertEqual(len(self.fetches), 2)
        self.now.seconds -= 86400
        self.fake.keys = {"two": ec_key()}
        self.assertEqual(self.found("two"), ["two"])
        self.assertEqual(self.found("three"), [])
        self.assertEqual(len(self.fetches), 3)

    def test_a_token_in_use_has_old_ones_fetched_again(self) -> None:
        self.found("one")
        self.now.seconds += 3600
        self.source.holds("one")
        self.source.holds("one")
        self.assertEqual(len(self.fetches), 2)

    def test_they_are_kept_when_they_can_not_be_fetched_again(self) -> None:
        self.found("one")
        self.down = True
        for hour in range(2, 50):
            self.now.seconds += 3600
            self.assertEqual(self.found("one"), ["one"])
            self.assertEqual(len(self.fetches), hour)

    def test_an_answer_without_keys_does_not_take_their_place(self) -> None:
        self.found("one")
        self.fake.keys.clear()
        self.now.seconds += 3600
        self.assertEqual(self.found("one"), ["one"])

    def test_without_any_it_is_unavailable_and_soon_tried_again(self) -> None:
        self.down = True
        for _ in range(3):
            error = self.failureResultOf(self.find("one"), Unavailable).value
        self.assertIn("github", error.message)
        # Anybody may get it, and the reason has URLs and addresses of an inner network.
        self.assertNotIn("nobody answers", error.message)
        self.assertEqual(len(self.fetches), 1)
        self.down = False
        self.now.seconds += 5
        self.assertEqual(self.found("one"), ["one"])


class DiscoveryTests(TestCase):
    def discover(self, document: object) -> Deferred[str]:
        self.asked = ""

        def fetch(url: str) -> Deferred[bytes]:
            self.asked = url
            return succeed(json.dumps(document).encode())

        return Deferred.fromCoroutine(discover(GITHUB, fetch))

    def test_the_issuer_says_where_its_keys_are(self) -> None:
        found = self.discover({"issuer": GITHUB, "jwks_uri": f"{GITHUB}/jwks", "more": 1})
        self.assertEqual(self.successResultOf(found), f"{GITHUB}/jwks")
        self.assertEqual(self.asked, f"{GITHUB}/.well-known/openid-configuration")

    def test_a_document_of_another_or_to_elsewhere_is_refused(self) -> None:
        documents: list[object] = [
            {"issuer": GITHUB + "/", "jwks_uri": f"{GITHUB}/jwks"},
            {"issuer": GITHUB, "jwks_uri": "http://keys.example/jwks"},
            {"issuer": GITHUB},
            [],
        ]
        for document in documents:
            self.failureResultOf(self.discover(document), KeysUnavailable)


class KeysInFileTests(TestCase):
    def setUp(self) -> None:
        self.now = Now()
        self.fake = FakeIssuer(self.now)
        self.path = Path(self.mktemp())
        self.path.write_bytes(self.fake.key_set())
        self.source = KeysInFile(self.path, at_once, self.now)

    def found(self) -> list[str]:
        async def find() -> list[str]:
            return [key.kid for key in await self.source.keys(lambda key: True)]

        return self.successResultOf(Deferred.fromCoroutine(find()))

    def replace(self, content: bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(content)
        new.rename(self.path)
        self.now.seconds += 1

    def test_they_are_read_again_when_the_file_changes(self) -> None:
        self.assertEqual(self.found(), ["one"])
        self.fake.keys["two"] = ec_key()
        self.replace(self.fake.key_set())
        self.assertEqual(self.found(), ["one", "two"])

    def test_a_token_in_use_dies_when_its_key_goes_from_the_file(self) -> None:
        mark = marks(self.fake)["one"]
        self.assertTrue(self.source.holds(mark))
        self.fake.keys = {"one": ec_key()}
        self.replace(self.fake.key_set())
        self.assertFalse(self.source.holds(mark))

    def test_a_file_that_is_damaged_or_gone_changes_nothing(self) -> None:
        self.replace(b"{")
        self.assertEqual(self.found(), ["one"])
        self.path.unlink()
        self.now.seconds += 1
        self.assertEqual(self.found(), ["one"])

    def test_keys_that_others_may_have_written_do_not_count(self) -> None:
        self.fake.keys = {"forged": ec_key()}
        self.replace(self.fake.key_set())
        self.path.chmod(0o666)
        self.assertEqual(self.found(), ["one"])
        self.assertRaises(ValueError, KeysInFile, self.path, at_once, self.now)

    def test_a_damaged_one_is_told_at_the_start(self) -> None:
        self.replace(b"{}")
        self.assertRaises(ValueError, KeysInFile, self.path, at_once, self.now)
