"""Tokens as the settings have them: keys of other issuers over TLS, and keys in the data folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactd.auth.identity import Identity
from artifactd.auth.token_service import Asked
from artifactd.daemon.gate import TokensWiring, wire_tokens
from artifactd.kit.start import StartError
from artifactd.oci.errors import Unauthorized, Unavailable
from artifactd.settings.settings import Settings
from tests.auth.accounts import FakeAccounts, FakeRules, Now, resolve
from tests.auth.issuing import FakeIssuer
from tests.store.fixture import at_once
from tests.upstream.http.test_tls import OTHER, TlsCase
from tests.upstream.wire import start


async def mark(identity: Identity) -> str | None:
    """Everybody is there, with one password for ever."""
    return "mark"


RULE = '[[access]]\nwho = ["anonymous"]\nmay = ["pull"]\nimages = ["*"]\n'


class WiringCase(TlsCase):
    def setUp(self) -> None:
        super().setUp()
        self.served()
        self.now = Now()
        self.data = Path(self.mktemp())
        self.data.mkdir(parents=True)
        self.fake = FakeIssuer(self.now, f"https://registry.example:{self.server.port}")

    def wire(self, more: str = "", issuer: str = "") -> TokensWiring:
        """What the settings say, with an issuer."""
        path = Path(self.mktemp())
        path.write_text(
            f'data = "{self.data}"\n{more}\n[issuer.ci]\nissuer = "{issuer or self.fake.issuer}"\n'
            f'audience = ["https://registry.example.com"]\nca_file = "{self.ca_file}"\n{RULE}'
        )
        settings = Settings.load(path, {})
        wiring = wire_tokens(settings, self.reactor, at_once, mark, lambda i: i, {}, self.now)
        self.addCleanup(wiring.close)
        return wiring

    async def answer(self, resource: str, content: object) -> None:
        """Let the issuer be asked for ``resource``."""
        peer, request = await self.server.asked.get()
        self.assertEqual((request.method, request.resource), ("GET", resource))
        self.assertEqual(request.values("Authorization"), [])
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        peer.answer(body=body)

    async def discovered(self) -> None:
        keys = f"{self.fake.issuer}/keys"
        document = {"issuer": self.fake.issuer, "jwks_uri": keys}
        await self.answer("/.well-known/openid-configuration", document)


class IssuerWiringTests(WiringCase):
    async def test_the_keys_are_found_by_discovery_over_tls(self) -> None:
        wiring = self.wire()
        verifying = start(wiring.bearer.verify(self.fake.token()))
        await self.discovered()
        await self.answer("/keys", self.fake.key_set())
        caller = await verifying
        self.assertEqual(caller.identity.name, "ci/repo:octo/hello:ref:refs/heads/main")
        await wiring.bearer.verify(self.fake.token())  # by the keys that are here

    async def test_an_issuer_that_answers_an_error_gives_no_keys(self) -> None:
        wiring = self.wire()
        verifying = start(wiring.bearer.verify(self.fake.token()))
        peer, _ = await self.server.asked.get()
        peer.answer("500 Oh No", body=b"no")
        error: Any = await self.assertFailure(verifying, Unavailable)
        self.assertIn("answers 500", error.message)

    async def test_an_issuer_that_answers_too_slowly_gives_no_keys(self) -> None:
        wiring = self.wire()
        verifying: Deferred[Any] = start(wiring.bearer.verify(self.fake.token()))
        await self.server.asked.get()
        self.clock.advance(10)
        error: Any = await self.assertFailure(verifying, Unavailable)
        self.assertIn("issuer ci", error.message)

    async def test_somebody_else_s_certificate_gives_no_keys(self) -> None:
        self.serve(OTHER.options("registry.example"))
        self.fake.issuer = f"https://registry.example:{self.server.port}"
        wiring = self.wire()
        await self.assertFailure(start(wiring.bearer.verify(self.fake.token())), Unavailable)


class ServiceWiringTests(WiringCase):
    async def log_in(self, wiring: TokensWiring) -> str:
        accounts = FakeAccounts()
        service = wiring.service(accounts, FakeRules({}), resolve)
        assert service is not None
        asked = Asked(offline=True)
        return (await service.for_login("alice", "secret", "127.0.0.1", asked)).token

    async def test_processes_on_one_data_folder_take_each_others_tokens(self) -> None:
        token = await self.log_in(self.wire())
        caller = await self.wire().bearer.verify(token)
        self.assertEqual(caller.identity.name, "alice")

    async def test_those_on_another_do_not(self) -> None:
        token = await self.log_in(self.wire())
        self.data = Path(self.mktemp())
        self.data.mkdir(parents=True)
        await self.assertFailure(start(self.wire().bearer.verify(token)), Unauthorized)

    def test_without_the_service_there_are_no_keys(self) -> None:
        wiring = self.wire("[token_service]\nenabled = false")
        self.assertIsNone(wiring.service(FakeAccounts(), FakeRules({}), resolve))
        self.assertEqual(list(self.data.iterdir()), [])

    def test_an_authority_that_can_not_be_read_is_named(self) -> None:
        self.ca_file.unlink()
        error = self.assertRaises(StartError, self.wire)
        self.assertIn("issuer.ci: the CA file", str(error))

    def test_keys_that_can_not_be_used_stop_the_start(self) -> None:
        self.wire()
        (self.data / "keys" / "tokens.json").chmod(0o644)
        error = self.assertRaises(StartError, self.wire)
        self.assertIn("chmod 600", str(error))


class KeyFileWiringTests(TestCase):
    def test_a_file_of_keys_that_is_none_stops_the_start(self) -> None:
        path = Path(self.mktemp())
        path.write_text(
            '[issuer.ci]\nissuer = "ci"\naudience = ["r"]\njwks_file = "/nowhere/keys.json"\n'
            f"[token_service]\nenabled = false\n{RULE}"
        )
        settings = Settings.load(path, {})
        error = self.assertRaises(
            StartError, wire_tokens, settings, None, at_once, mark, lambda i: i, {}
        )
        self.assertIn("issuer.ci.jwks_file: /nowhere/keys.json", str(error))
