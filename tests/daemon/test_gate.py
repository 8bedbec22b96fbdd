"""Accounts, rules and tokens, put together as the settings say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bcrypt
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from artifactd.auth.bearer import Account
from artifactd.auth.identity import ANONYMOUS, Groups, Identity
from artifactd.auth.logins import Logins
from artifactd.auth.passwords import hash_secret, make_secret
from artifactd.auth.rules import AccessRules
from artifactd.daemon.gate import TokensWiring, listed_accounts
from artifactd.kit.shared import SharedMemory
from artifactd.kit.start import StartError
from artifactd.oci.errors import TooManyRequests, Unauthorized, Unavailable
from artifactd.oci.names import ImageName
from artifactd.settings.settings import Settings
from tests.auth.accounts import ALICE, FakeAccounts, Now
from tests.auth.held import HeldThreads
from tests.auth.issuing import FakeIssuer
from tests.settings.test_settings import SettingsCase
from tests.store.fixture import at_once
from tests.tls.authority import OTHER
from tests.upstream.http.test_tls import TlsCase
from tests.upstream.wire import start

SECRET = make_secret()
APP, HUB = ImageName("local", "mycorp/app"), ImageName("docker.io", "library/alpine")


class AccountsTests(SettingsCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = HeldThreads()
        self.users = Path(self.mktemp())
        hashed = bcrypt.hashpw(b"alice's", bcrypt.gensalt(4)).decode()
        self.users.write_text(f"alice:{hashed}\nbob:{hashed}\n")
        self.settings = self.load(
            f"""
            [auth]
            htpasswd = "{self.users}"
            name_failures = 2
            [auth.groups]
            dev = ["alice", "robot:ci"]
            [[access]]
            who = ["anonymous"]
            may = ["pull"]
            images = ["docker.io/*"]
            [[access]]
            who = ["group:dev"]
            may = ["pull", "push", "delete"]
            images = ["local/*"]
            [robot.ci]
            secret_hash = "{hash_secret(SECRET)}"
            may = ["pull", "push"]
            images = ["local/mycorp/*"]
            """
        )

        self.logins = self.log_in_as(self.settings)

    def log_in_as(self, settings: Settings) -> Logins:
        groups = Groups(settings.auth.groups)
        accounts = listed_accounts(settings, groups, self.threads, self.clock, lambda: 0.0)
        return Logins(accounts, settings.auth, SharedMemory.create())

    def log_in(self, name: str, password: str) -> Identity:
        coroutine = self.logins.log_in(name, password, "192.0.2.1")
        return self.successResultOf(Deferred.fromCoroutine(coroutine)).identity

    def test_who_logs_in_may_do_what_the_rules_say(self) -> None:
        alice, ci = self.log_in("alice", "alice's"), self.log_in("robot+ci", SECRET)
        granted = AccessRules(self.settings.access, self.settings.robot, lambda: 0.0).granted
        self.assertEqual(granted(alice, APP), {"pull", "create", "push", "delete"})
        self.assertEqual(granted(alice, HUB), {"pull"})
        self.assertEqual(granted(ci, APP), {"pull", "create", "push"})
        self.assertEqual(granted(ci, ImageName("local", "other")), set())
        self.assertEqual(granted(self.log_in("bob", "alice's"), APP), set())
        self.assertEqual(granted(ANONYMOUS, HUB), {"pull"})

    def test_the_limits_of_the_settings_hold(self) -> None:
        for expected in (Unauthorized, Unauthorized, TooManyRequests):
            outcome = Deferred.fromCoroutine(self.logins.log_in("alice", "x", "192.0.2.1"))
            self.failureResultOf(outcome, expected)

    def test_a_flood_from_one_address_takes_few_threads_and_delays_no_other(self) -> None:
        self.threads.held = True
        for number in range(40):
            guess = self.logins.log_in(f"user {number}", "guess", "192.0.2.1")
            Deferred.fromCoroutine(guess).addErrback(lambda failure: None)
        other = Deferred.fromCoroutine(self.logins.log_in("alice", "alice's", "198.51.100.7"))
        for _ in range(4):  # as many as one address may have checked at a time
            self.assertEqual(self.threads.running, 2)
            self.threads.finish()
        self.assertNoResult(other)
        self.threads.finish()
        self.assertEqual(self.successResultOf(other).identity.name, "alice")

    def test_a_wrong_file_stops_the_start(self) -> None:
        self.users.write_text("alice:secret\n")
        with self.assertRaisesRegex(StartError, "auth.htpasswd: .* line 1: alice: expected a bcr"):
            self.log_in_as(
                self.load(
                    f'[auth]\nhtpasswd = "{self.users}"\n[[access]]\nwho = ["authenticated"]\n'
                    'may = ["pull"]\nimages = ["*"]'
                )
            )


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
        wiring = TokensWiring(
            settings, self.reactor, at_once, Groups({}), [FakeAccounts()], {}, self.now
        )
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

    async def test_its_document_does_not_lead_to_another_network(self) -> None:
        self.reactor.names["db.corp"] = "10.0.0.9"
        connect, hosts = self.reactor.connect, []

        def connecting(host: str, *args: Any, **kwargs: Any) -> Any:
            hosts.append(host)
            return connect("127.0.0.1", *args, **kwargs)

        self.reactor.connect = connecting
        verifying = start(self.wire().bearer.verify(self.fake.token()))
        document = {"issuer": self.fake.issuer, "jwks_uri": "https://db.corp/keys"}
        await self.answer("/.well-known/openid-configuration", document)
        await self.assertFailure(verifying, Unavailable)
        self.assertEqual(hosts, ["127.0.0.1"])

    async def test_an_issuer_that_answers_an_error_gives_no_keys(self) -> None:
        wiring = self.wire()
        verifying = start(wiring.bearer.verify(self.fake.token()))
        peer, _ = await self.server.asked.get()
        with capturedLogs() as events:
            peer.answer("500 Oh No", body=b"no")
            error: Any = await self.assertFailure(verifying, Unavailable)
        self.assertNotIn("registry.example", error.message)
        self.assertIn("answers 500", "\n".join(formatEvent(each) for each in events))

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
        assert wiring.tokens is not None
        return (await wiring.tokens.issue(Account(ALICE, "mark of secret"), [])).text

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
        self.assertIsNone(wiring.tokens)
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
            StartError, TokensWiring, settings, None, at_once, Groups({}), [], {}
        )
        self.assertIn("issuer.ci.jwks_file: /nowhere/keys.json", str(error))
