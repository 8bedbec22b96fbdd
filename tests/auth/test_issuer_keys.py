"""Where the keys of other issuers come from, and what becomes of them when that fails."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import TestCase

from artifactd.auth.issuers import FetchedKeys, KeysInFile, KeysUnavailable, discover
from artifactd.auth.jwt import VerificationKey
from artifactd.oci.errors import Unavailable
from tests.auth.accounts import Now
from tests.auth.issuing import GITHUB, FakeIssuer, ec_key
from tests.store.fixture import at_once


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
        del self.fake.keys["one"]
        self.fake.keys["two"] = ec_key()
        self.fetches[1].callback(self.fake.key_set())
        self.assertTrue(self.source.holds("two"))
        self.assertFalse(self.source.holds("one"))

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
        self.assertIn("nobody answers", error.message)
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
        self.assertTrue(self.source.holds("one"))
        self.fake.keys = {"two": ec_key()}
        self.replace(self.fake.key_set())
        self.assertFalse(self.source.holds("one"))

    def test_a_file_that_is_damaged_or_gone_changes_nothing(self) -> None:
        self.replace(b"{")
        self.assertEqual(self.found(), ["one"])
        self.path.unlink()
        self.now.seconds += 1
        self.assertEqual(self.found(), ["one"])

    def test_a_damaged_one_is_told_at_the_start(self) -> None:
        self.replace(b"{}")
        self.assertRaises(ValueError, KeysInFile, self.path, at_once, self.now)
