"""What the token service gives to whom."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactd.auth.identity import ANONYMOUS, Caller, Identity, Kind
from artifactd.auth.token_service import MOST_SCOPES, Asked, Granted, TokenService
from artifactd.oci.errors import QueryInvalid, Unauthorized
from artifactd.settings.access import Action, implied
from tests.auth.accounts import ALICE, FakeAccounts, Now, granting, resolve
from tests.auth.test_keys import MemoryFile
from tests.auth.test_tokens import make_tokens, read_part

PULL, PUSH = Action.PULL, Action.PUSH
NOBODY = Caller()
JOB = Identity(Kind.ISSUER, "github/repo:a/b")


class ServiceCase(TestCase):
    def setUp(self) -> None:
        self.now = Now()
        self.accounts = FakeAccounts()
        self.file = MemoryFile()
        every = frozenset(Action)
        self.rules = granting(
            {
                "anonymous": {"docker.io/library/alpine": frozenset({PULL})},
                "issuer:github": {"local/hello": frozenset({PUSH})},
                "user:alice": {
                    "local/hello": implied({PULL, PUSH}),
                    "local/new": frozenset({PULL, Action.CREATE}),
                    "local/team/app": every,
                    "docker.io/library/alpine": frozenset({PULL}),
                },
            }
        )
        self.service = self.process()

    def process(self, **more: Any) -> TokenService:
        """Another process on the same data folder."""
        tokens = make_tokens(self.now, self.file, **more)
        return TokenService(
            self.accounts.logins(), self.accounts.directory(), self.rules, resolve, tokens
        )

    async def log_in(self, *scopes: str, offline: bool = False) -> Granted:
        asked = Asked(scopes, "registry", offline)
        return await self.service.for_login("alice", "secret", "192.0.2.1", asked)

    def refused(self, kind: type[Exception], asking: Coroutine[Deferred[Any], Any, Granted]) -> str:
        return str(self.failureResultOf(Deferred.fromCoroutine(asking), kind).value)


class GrantTests(ServiceCase):
    async def test_what_is_asked_and_allowed_is_granted(self) -> None:
        for asked, granted in (
            ("repository:hello:pull,push", "repository:hello:pull,push"),
            ("repository:hello:pull", "repository:hello:pull"),
            ("repository:hello:push,delete", "repository:hello:push"),
            ("repository:hello:*", "repository:hello:pull,push"),
            ("repository:local/hello:pull", "repository:local/hello:pull"),
            # Who may only create gets the scope that clients ask for; the gate tells them apart.
            ("repository:new:pull,push", "repository:new:pull,push"),
            ("repository:new:*", "repository:new:pull,push"),
            ("repository:new:create", "repository:new:create"),
            ("repository:hello:pull,create", "repository:hello:pull,create"),
            ("repository:alpine:create", ""),
            ("repository:alpine:pull,push", "repository:alpine:pull"),
            ("repository:library/alpine:pull", "repository:library/alpine:pull"),
            ("repository(plugin):hello:pull", "repository:hello:pull"),
            (
                "repository:local/team/app:*",
                "repository:local/team/app:pull,push,delete,administer",
            ),
            ("registry:catalog:*", "registry:catalog:*"),
            ("repository:other:pull,push", ""),
            ("repository:registry.example:5000/hello:pull", ""),
            ("repository:Hello:pull", ""),
            ("repository:hello:fly", ""),
            ("registry:catalog:pull", ""),
            ("registry:other:*", ""),
            ("other:hello:pull", ""),
            ("nonsense", ""),
            ("", ""),
        ):
            self.assertEqual((await self.log_in(asked)).scope, granted, asked)

    async def test_scopes_come_one_by_one_or_together(self) -> None:
        one, other = "repository:hello:pull", "repository:alpine:pull"
        self.assertEqual((await self.log_in(one, other)).scope, f"{one} {other}")
        self.assertEqual((await self.log_in(f"{one} {other}")).scope, f"{one} {other}")

    async def test_the_token_says_what_was_granted(self) -> None:
        granted = await self.log_in("repository:hello:pull,delete repository:other:pull")
        access = [{"type": "repository", "name": "hello", "actions": ["pull"]}]
        self.assertEqual(read_part(granted.token, 1)["access"], access)
        self.assertEqual((granted.issued_at, granted.expires_in), (int(self.now()), 300))

    async def test_nothing_is_granted_by_a_token_and_that_is_no_error(self) -> None:
        granted = await self.log_in()
        self.assertEqual(read_part(granted.token, 1)["access"], [])

    async def test_anybody_gets_what_anonymous_may(self) -> None:
        asked = Asked(["repository:alpine:pull", "repository:hello:pull"], "registry", True)
        granted = await self.service.for_caller(NOBODY, asked)
        self.assertEqual(granted.scope, "repository:alpine:pull")
        opened = await self.service.tokens.open(granted.token)
        self.assertEqual(opened.identity, ANONYMOUS)
        self.assertIsNone(granted.refresh_token)

    async def test_a_wrong_password_is_unauthorized(self) -> None:
        asking = self.service.for_login("alice", "wrong", "192.0.2.1", Asked())
        self.refused(Unauthorized, asking)
        self.assertEqual(self.accounts.asked, [("alice", "wrong")])

    async def test_another_service_is_refused_before_any_login(self) -> None:
        asking = self.service.for_login("alice", "secret", "", Asked(service="other"))
        self.assertIn("registry", self.refused(QueryInvalid, asking))
        self.assertEqual(self.accounts.asked, [])

    async def test_too_many_scopes_are_refused(self) -> None:
        scopes = [f"repository:a{each}:pull" for each in range(MOST_SCOPES)]
        await self.log_in(*scopes)
        asked = Asked([" ".join(scopes), "repository:b:pull"])
        self.refused(QueryInvalid, self.service.for_caller(NOBODY, asked))

    async def test_a_token_of_its_own_gets_no_other_one(self) -> None:
        self.refused(Unauthorized, self.service.for_caller(Caller(ALICE, {}), Asked()))

    async def test_an_account_that_is_no_more_gets_none(self) -> None:
        self.accounts.passwords.clear()
        self.refused(Unauthorized, self.service.for_caller(Caller(ALICE), Asked()))

    async def test_a_job_gets_one_but_no_refresh_token(self) -> None:
        asked = Asked(["repository:hello:pull,push"], offline=True)
        granted = await self.service.for_caller(Caller(JOB), asked)
        self.assertEqual((granted.scope, granted.expires_in), ("repository:hello:push", 3600))
        self.assertIsNone(granted.refresh_token)


class RefreshTests(ServiceCase):
    async def refresh_token(self) -> str:
        return (await self.log_in(offline=True)).refresh_token or ""

    async def test_one_is_given_to_who_asks_for_it(self) -> None:
        self.assertIsNone((await self.log_in()).refresh_token)
        self.assertTrue(await self.refresh_token())

    async def test_it_gets_tokens_for_other_scopes_and_stays_the_same(self) -> None:
        token = await self.refresh_token()
        granted = await self.service.for_refresh_token(token, Asked(["repository:hello:push"]))
        self.assertEqual((granted.scope, granted.refresh_token), ("repository:hello:push", token))
        opened = await self.service.tokens.open(granted.token)
        self.assertEqual(opened.identity, ALICE)

    async def test_any_process_on_the_data_takes_it(self) -> None:
        token = await self.refresh_token()
        await self.process().for_refresh_token(token, Asked())

    async def test_it_dies_with_the_password(self) -> None:
        token = await self.refresh_token()
        self.accounts.passwords["alice"] = "changed"
        self.refused(Unauthorized, self.service.for_refresh_token(token, Asked()))
        self.refused(Unauthorized, self.process().for_refresh_token(token, Asked()))

    async def test_it_dies_with_the_account(self) -> None:
        token = await self.refresh_token()
        self.accounts.passwords.clear()
        self.refused(Unauthorized, self.service.for_refresh_token(token, Asked()))

    async def test_it_dies_when_tokens_are_to_be_forgotten(self) -> None:
        token = await self.refresh_token()
        self.process().tokens.keys.rotate(forget=True)
        self.refused(Unauthorized, self.service.for_refresh_token(token, Asked()))

    async def test_it_is_not_had_by_an_access_token(self) -> None:
        token = (await self.log_in("repository:hello:pull")).token
        self.refused(Unauthorized, self.service.for_refresh_token(token, Asked()))

    async def test_what_the_rules_grant_no_more_it_gets_no_more(self) -> None:
        token = await self.refresh_token()
        service = evolve(self.service, rules=granting({}))
        granted = await service.for_refresh_token(token, Asked(["repository:hello:pull"]))
        self.assertEqual(granted.scope, "")
