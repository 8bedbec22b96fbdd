"""Who carries a token: verified once, and asked anew what may have changed."""

from __future__ import annotations

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactd.auth.bearer import Account, BearerTokens, Opened, TokenSource
from artifactd.auth.identity import ANONYMOUS, Caller, Identity, Kind
from artifactd.auth.tokens import ISSUER
from artifactd.oci.errors import Unauthorized
from artifactd.settings.access import Action
from tests.auth.accounts import ALICE, FakeAccounts, Now
from tests.auth.issuing import GITHUB, FakeIssuer
from tests.auth.test_issuers import make_issuer
from tests.auth.test_tokens import PULL, make_tokens


@define
class Counted:
    """A source whose verifications are counted."""

    source: TokenSource
    opened: list[str] = field(factory=list)

    async def open(self, token: str) -> Opened:
        self.opened.append(token)
        return await self.source.open(token)

    async def stands(self, opened: Opened) -> bool:
        return await self.source.stands(opened)

    def recalls(self, opened: Opened) -> bool:
        return self.source.recalls(opened)


class BearerCase(TestCase):
    def setUp(self) -> None:
        self.now = Now()
        self.accounts = FakeAccounts()
        self.tokens = make_tokens(self.now)
        self.fake = FakeIssuer(self.now)
        self.own = Counted(self.tokens)
        self.other = Counted(make_issuer(self.fake))
        self.bearer = BearerTokens(
            ISSUER,
            self.own,
            {GITHUB: self.other},
            self.accounts.directory(),
            self.now,
            limit=2,
        )

    async def own_token(self, identity: Identity = ALICE) -> str:
        account = await self.accounts.directory().current(identity)
        assert account is not None
        return (await self.tokens.issue(account, [PULL])).text

    def refused(self, token: str, *words: str) -> None:
        verifying = Deferred.fromCoroutine(self.bearer.verify(token))
        error = self.failureResultOf(verifying, Unauthorized).value
        for word in words:
            self.assertIn(word, error.message)
        self.assertIsNone(self.bearer.recall(token))


class BearerTests(BearerCase):
    async def test_one_that_was_verified_is_recalled_at_once(self) -> None:
        for token in (await self.own_token(), await self.own_token(ANONYMOUS), self.fake.token()):
            self.assertIsNone(self.bearer.recall(token))
            self.assertEqual(await self.bearer.verify(token), self.bearer.recall(token))
        own = await self.own_token()
        await self.bearer.verify(own)
        self.now.seconds += 1  # the file of the keys is looked at, which takes microseconds
        self.assertEqual(await self.bearer.verify(own), self.bearer.recall(own))

    async def test_an_own_token_is_limited_to_its_scopes(self) -> None:
        caller = await self.bearer.verify(await self.own_token())
        self.assertEqual(caller, Caller(ALICE, {"hello": frozenset({Action.PULL})}))

    async def test_another_issuers_is_limited_by_the_rules_alone(self) -> None:
        caller = await self.bearer.verify(self.fake.token())
        self.assertEqual(caller.identity.kind, Kind.ISSUER)
        self.assertIsNone(caller.scopes)

    async def test_nobodys_is_nobodys(self) -> None:
        caller = await self.bearer.verify(await self.own_token(ANONYMOUS))
        self.assertEqual(caller.identity, ANONYMOUS)
        self.assertIsNotNone(caller.scopes)

    async def test_a_signature_is_verified_once(self) -> None:
        for token, source in ((await self.own_token(), self.own), (self.fake.token(), self.other)):
            for _ in range(50):
                await self.bearer.verify(token)
            self.assertEqual(source.opened, [token])

    async def test_few_are_remembered(self) -> None:
        first = await self.own_token()
        for token in (first, await self.own_token(), await self.own_token(), first):
            await self.bearer.verify(token)
        self.assertEqual(self.own.opened.count(first), 2)

    async def test_those_in_use_are_remembered_longest(self) -> None:
        first = await self.own_token()
        for _ in range(5):
            await self.bearer.verify(await self.own_token())
            await self.bearer.verify(first)
        self.assertEqual(self.own.opened.count(first), 1)

    async def test_what_is_refused_is_not_remembered(self) -> None:
        token = self.fake.token("late")
        self.refused(token)
        self.fake.keys["late"] = self.fake.keys["one"]
        await self.bearer.verify(token)

    async def test_a_remembered_one_expires_too(self) -> None:
        token = await self.own_token()
        await self.bearer.verify(token)
        self.now.seconds += 310
        self.refused(token, "expired")
        self.refused(token, "expired")

    async def test_a_remembered_one_dies_with_its_key(self) -> None:
        token, job = await self.own_token(), self.fake.token()
        await self.bearer.verify(token)
        await self.bearer.verify(job)
        self.tokens.keys.rotate()
        await self.bearer.verify(token)
        self.tokens.keys.rotate(forget=True)
        self.refused(token, "key")
        del self.fake.keys["one"]
        self.refused(job, "key")

    async def test_it_dies_with_the_account_and_with_the_password(self) -> None:
        token = await self.own_token()
        await self.bearer.verify(token)
        self.accounts.passwords["alice"] = "changed"
        self.refused(token, "password has changed")
        del self.accounts.passwords["alice"]
        self.refused(token, "no more")

    async def test_groups_are_those_of_now(self) -> None:
        token = await self.own_token()
        self.bearer.accounts = self.accounts.directory(staff=["alice"])
        self.assertEqual((await self.bearer.verify(token)).identity.groups, {"staff"})
        self.bearer.accounts = self.accounts.directory()
        self.assertEqual((await self.bearer.verify(token)).identity.groups, frozenset())

    async def test_issuers_nobody_trusts_are_refused(self) -> None:
        self.refused(FakeIssuer(self.now, "https://elsewhere.example").token(), "trusts")
        self.refused("nonsense", "no JSON Web Token")

    async def test_without_the_token_service_its_tokens_are_worth_nothing(self) -> None:
        bearer = BearerTokens(ISSUER, None, {}, self.accounts.directory(), self.now)
        verifying = Deferred.fromCoroutine(bearer.verify(await self.own_token()))
        self.failureResultOf(verifying, Unauthorized)


class PasswordTests(BearerCase):
    async def test_another_issuers_token_is_a_password_of_any_user(self) -> None:
        for name in ("gitlab-ci-token", "x", ""):
            identity = await self.bearer.check(name, self.fake.token())
            assert identity is not None
            self.assertEqual(identity.name, "github/repo:octo/hello:ref:refs/heads/main")

    async def test_one_that_is_not_valid_is_no_password(self) -> None:
        token = self.fake.token()
        self.now.seconds += 1000
        self.assertIsNone(await self.bearer.check("x", token))

    async def test_an_own_token_is_no_password_whether_it_was_seen_or_not(self) -> None:
        token = await self.own_token()
        self.assertIsNone(await self.bearer.check("alice", token))
        await self.bearer.verify(token)
        self.assertIsNone(await self.bearer.check("alice", token))
        refresh = await self.tokens.issue_refresh(Account(ALICE, "mark of secret"))
        self.assertIsNone(await self.bearer.check("alice", refresh))

    async def test_other_passwords_are_none_of_its(self) -> None:
        for password in ("", "secret", "eyJ.secret", "eyJ é.."):
            self.assertIsNone(await self.bearer.check("alice", password))


class DirectoryTests(TestCase):
    def setUp(self) -> None:
        self.accounts = FakeAccounts()

    async def test_accounts_are_as_they_are_listed_and_others_as_they_came(self) -> None:
        directory = self.accounts.directory(staff=["alice", "robot:alice"])
        for kind in (Kind.USER, Kind.ROBOT):
            staff = Identity(kind, "alice", frozenset({"staff"}))
            current = await directory.current(Identity(kind, "alice"))
            self.assertEqual(current, Account(staff, "mark of secret"))
        for kind in (Kind.ISSUER, Kind.CERTIFICATE, Kind.ANONYMOUS):
            other = Identity(kind, "alice", claims={"a": "b"})
            self.assertEqual(await directory.current(other), Account(other))
        self.accounts.passwords.clear()
        self.assertIsNone(await directory.current(ALICE))

    async def test_a_job_whose_issuer_is_accepted_no_more_is_nobody(self) -> None:
        directory = evolve(self.accounts.directory(), accepted=lambda identity: False)
        self.assertIsNone(await directory.current(Identity(Kind.ISSUER, "github/x")))
        self.assertIsNotNone(await directory.current(ALICE))
