"""Accounts and rules of the settings, put together."""

from __future__ import annotations

from pathlib import Path

import bcrypt
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from artifactd.auth.identity import ANONYMOUS, Identity, Kind
from artifactd.auth.passwords import hash_secret, make_secret
from artifactd.daemon.gate import AccountsWiring, wire_accounts
from artifactd.kit.start import StartError
from artifactd.oci.errors import TooManyRequests, Unauthorized
from artifactd.oci.names import ImageName
from tests.auth.held import HeldThreads
from tests.settings.test_settings import SettingsCase

SECRET = make_secret()
APP, HUB = ImageName("local", "mycorp/app"), ImageName("docker.io", "library/alpine")


class AccountsTests(SettingsCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = HeldThreads()
        self.users = Path(self.mktemp())
        hashed = bcrypt.hashpw(b"alice's", bcrypt.gensalt(4)).decode()
        self.users.write_text(f"alice:{hashed}\nbob:{hashed}\n")
        self.wiring = self.wire(
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

    def wire(self, toml: str) -> AccountsWiring:
        return wire_accounts(self.load(toml), self.threads, self.clock, lambda: 0.0)

    def log_in(self, name: str, password: str) -> Identity:
        coroutine = self.wiring.logins().log_in(name, password, "192.0.2.1")
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def test_who_logs_in_may_do_what_the_rules_say(self) -> None:
        alice, ci = self.log_in("alice", "alice's"), self.log_in("robot+ci", SECRET)
        granted = self.wiring.rules.granted
        self.assertEqual(granted(alice, APP), {"pull", "push", "delete"})
        self.assertEqual(granted(alice, HUB), {"pull"})
        self.assertEqual(granted(ci, APP), {"pull", "push"})
        self.assertEqual(granted(ci, ImageName("local", "other")), set())
        self.assertEqual(granted(self.log_in("bob", "alice's"), APP), set())
        self.assertEqual(granted(ANONYMOUS, HUB), {"pull"})

    def test_each_has_a_mark_of_its_password(self) -> None:
        marks = [
            self.successResultOf(Deferred.fromCoroutine(self.wiring.mark(identity)))
            for identity in (
                Identity(Kind.USER, "alice"),
                Identity(Kind.ROBOT, "ci"),
                Identity(Kind.USER, "carol"),
                ANONYMOUS,
            )
        ]
        self.assertEqual([mark is not None for mark in marks], [True, True, False, False])

    def test_the_limits_of_the_settings_hold(self) -> None:
        logins = self.wiring.logins()
        for expected in (Unauthorized, Unauthorized, TooManyRequests):
            outcome = Deferred.fromCoroutine(logins.log_in("alice", "x", "192.0.2.1"))
            self.failureResultOf(outcome, expected)

    def test_what_else_a_password_may_be_is_asked_first(self) -> None:
        class Tokens:
            async def check(self, name: str, password: str) -> Identity | None:
                return Identity(Kind.ISSUER, f"gitlab/{name}")

        logins = self.wiring.logins(Tokens())
        outcome = Deferred.fromCoroutine(logins.log_in("alice", "alice's", "192.0.2.1"))
        self.assertEqual(self.successResultOf(outcome), Identity(Kind.ISSUER, "gitlab/alice"))

    def test_a_flood_from_one_address_takes_few_threads_and_delays_no_other(self) -> None:
        self.threads.held = True
        logins = self.wiring.logins()
        for number in range(40):
            guess = logins.log_in(f"user {number}", "guess", "192.0.2.1")
            Deferred.fromCoroutine(guess).addErrback(lambda failure: None)
        other = Deferred.fromCoroutine(logins.log_in("alice", "alice's", "198.51.100.7"))
        for _ in range(4):  # as many as one address may have checked at a time
            self.assertEqual(self.threads.running, 2)
            self.threads.finish()
        self.assertNoResult(other)
        self.threads.finish()
        self.assertEqual(self.successResultOf(other).name, "alice")

    def test_a_wrong_file_stops_the_start(self) -> None:
        self.users.write_text("alice:secret\n")
        with self.assertRaisesRegex(StartError, "auth.htpasswd: .* line 1: alice: expected a bcr"):
            self.wire(
                f'[auth]\nhtpasswd = "{self.users}"\n[[access]]\nwho = ["authenticated"]\n'
                'may = ["pull"]\nimages = ["*"]'
            )
