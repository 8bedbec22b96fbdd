"""The tokens of this registry, their scopes, and what is not taken for one of them."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping
from typing import Any

import jwt
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactd.auth.bearer import Account
from artifactd.auth.identity import ANONYMOUS, Identity, Kind
from artifactd.auth.keys import Keys, SigningKey
from artifactd.auth.tokens import Scope, Tokens, parse_scopes
from artifactd.oci.errors import QueryInvalid, Unauthorized
from artifactd.settings.access import Action
from artifactd.settings.accounts import IssuerSettings, TokenServiceSettings
from artifactd.settings.values import Duration
from tests.auth.accounts import ALICE, Now
from tests.auth.test_keys import MemoryFile
from tests.store.fixture import at_once

PULL = Scope("repository", "hello", ("pull",))
ACCOUNT = Account(ALICE, "mark")


def make_tokens(now: Now, file: MemoryFile | None = None, **more: Any) -> Tokens:
    """The tokens of a process of its own."""
    keys = Keys(file or MemoryFile(), at_once, now, 0, 90 * 86400)
    keys.start()
    service = {"service": "registry", "refresh_lifetime": Duration(86400), **more}
    github = IssuerSettings(issuer="https://github.example", audience=("registry",))
    return Tokens(keys, TokenServiceSettings(**service), {"github": github}, now)


def read_part(token: str, index: int) -> dict[str, Any]:
    """The header (0) or the claims (1) of a token."""
    part = token.split(".")[index]
    document: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return document


def encode(content: Mapping[str, Any]) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


class TokensCase(TestCase):
    def setUp(self) -> None:
        self.now = Now()
        self.file = MemoryFile()
        self.tokens = make_tokens(self.now, self.file)

    async def issue(self, *scopes: Scope, account: Account = ACCOUNT) -> str:
        return (await self.tokens.issue(account, scopes)).text

    async def refused(self, token: str, *words: str) -> None:
        """It is Unauthorized, and the message says why without telling the token."""
        opening = Deferred.fromCoroutine(self.tokens.open(token))
        error = self.failureResultOf(opening, Unauthorized).value
        for word in words:
            self.assertIn(word, error.message)
        if token:
            self.assertNotIn(token, error.message)


class AccessTokenTests(TokensCase):
    async def test_it_has_the_claims_of_the_spec(self) -> None:
        issued = await self.tokens.issue(ACCOUNT, [PULL])
        claims = read_part(issued.text, 1)
        self.assertEqual(
            {name: claims[name] for name in ("iss", "sub", "aud", "exp", "nbf", "iat", "access")},
            {
                "iss": "artifactd",
                "sub": "alice",
                "aud": "registry",
                "exp": 1_800_000_300,
                "nbf": 1_800_000_000,
                "iat": 1_800_000_000,
                "access": [{"type": "repository", "name": "hello", "actions": ["pull"]}],
            },
        )
        self.assertEqual((issued.issued_at, issued.expires_in), (1_800_000_000, 300))

    async def test_its_header_says_which_key_signed_it(self) -> None:
        signing = await self.tokens.keys.signing()
        header = read_part(await self.issue(), 0)
        self.assertEqual(header, {"alg": "ES256", "typ": "JWT", "kid": signing.kid})

    async def test_each_has_an_id_of_its_own(self) -> None:
        ids = {read_part(await self.issue(), 1)["jti"] for _ in range(3)}
        self.assertEqual(len(ids), 3)

    async def test_it_says_who_has_it_and_for_what(self) -> None:
        catalog = Scope("registry", "catalog", ("*",))
        opened = await self.tokens.open(await self.issue(PULL, catalog))
        self.assertEqual(opened.identity, ALICE)
        self.assertEqual(opened.scopes, {"hello": frozenset({Action.PULL}), "*": frozenset(Action)})

    async def test_one_for_nothing_limits_to_nothing(self) -> None:
        self.assertEqual((await self.tokens.open(await self.issue())).scopes, {})

    async def test_of_nobody_the_subject_is_empty(self) -> None:
        token = await self.issue(PULL, account=Account(ANONYMOUS))
        self.assertEqual(read_part(token, 1)["sub"], "")
        self.assertEqual((await self.tokens.open(token)).identity, ANONYMOUS)

    async def test_the_claims_of_a_ci_system_stay_in_it(self) -> None:
        job = Identity(Kind.ISSUER, "github/repo:a/b", claims={"repository": "a/b"})
        opened = await self.tokens.open(await self.issue(PULL, account=Account(job)))
        self.assertEqual(opened.identity, job)

    async def test_a_job_may_go_on_for_longer(self) -> None:
        for name, lifetime in (("github/repo:a/b", 3600), ("githubs/x", 300)):
            issued = await self.tokens.issue(Account(Identity(Kind.ISSUER, name)), [])
            self.assertEqual(issued.expires_in, lifetime)

    async def test_another_process_on_the_same_data_takes_it(self) -> None:
        other = make_tokens(self.now, self.file)
        self.assertEqual((await other.open(await self.issue())).identity, ALICE)

    async def test_it_is_refused_when_it_has_expired(self) -> None:
        token = await self.issue()
        self.now.seconds += 309
        await self.tokens.open(token)
        self.now.seconds += 1
        await self.refused(token, "expired")

    async def test_it_is_refused_before_its_time(self) -> None:
        token = await self.issue()
        self.now.seconds -= 10
        await self.tokens.open(token)
        self.now.seconds -= 1
        await self.refused(token, "later")

    async def test_more_scopes_than_a_token_holds_are_refused(self) -> None:
        many = [Scope("repository", "a" * 200 + str(each), ("pull",)) for each in range(100)]
        asking = Deferred.fromCoroutine(self.tokens.issue(ACCOUNT, many))
        self.failureResultOf(asking, QueryInvalid)


class ForgedTests(TokensCase):
    async def forged(self, key: Any, algorithm: str, headers: Mapping[str, Any]) -> str:
        """A token like one of ours, but for how it is signed."""
        claims = read_part(await self.issue(PULL), 1)
        return jwt.encode(claims, key, algorithm=algorithm, headers=dict(headers))

    async def signing(self) -> SigningKey:
        return await self.tokens.keys.signing()

    async def test_one_that_is_not_signed_is_none(self) -> None:
        kid = (await self.signing()).kid
        claims = read_part(await self.issue(PULL), 1)
        for algorithm in ("none", "None", "NONE", ""):
            header = encode({"alg": algorithm, "typ": "JWT", "kid": kid})
            for signature in ("", "AAAA"):
                await self.refused(f"{header}.{encode(claims)}.{signature}", "signature")

    async def test_the_public_key_is_no_shared_secret(self) -> None:
        # What confuses a verifier that lets the token choose: HS256 keyed with the public key.
        signing = await self.signing()
        public = signing.private.public_key()
        for encoding, form in (
            (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            (Encoding.X962, PublicFormat.UncompressedPoint),
        ):
            secret = public.public_bytes(encoding, form)
            claims = read_part(await self.issue(PULL), 1)
            signed = (
                f"{encode({'alg': 'HS256', 'typ': 'JWT', 'kid': signing.kid})}.{encode(claims)}"
            )
            mac = hmac.digest(secret, signed.encode(), "sha256")
            signature = base64.urlsafe_b64encode(mac).decode().rstrip("=")
            await self.refused(f"{signed}.{signature}", "signature")

    async def test_a_key_that_comes_with_the_token_counts_for_nothing(self) -> None:
        own = generate_private_key(SECP256R1())
        kid = (await self.signing()).kid
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(own.public_key()))
        await self.refused(
            await self.forged(own, "ES256", {"kid": kid, "jwk": jwk}), "signature is wrong"
        )
        await self.refused(await self.forged(own, "ES256", {"jwk": jwk}), "key")

    async def test_a_byte_changed_is_another_token(self) -> None:
        header, _, signature = (await self.issue(PULL)).split(".")
        claims = read_part(await self.issue(PULL), 1)
        claims["sub"] = "root"
        await self.refused(f"{header}.{encode(claims)}.{signature}", "signature is wrong")
        zeros = base64.urlsafe_b64encode(bytes(64)).decode().rstrip("=")
        await self.refused(f"{header}.{encode(claims)}.{zeros}", "signature is wrong")

    async def test_extensions_that_are_not_understood_are_refused(self) -> None:
        signing = await self.signing()
        for extension in (
            {"crit": ["exp"], "exp": 1},
            {"b64": False},
            {"b64": True, "crit": ["b64"]},
        ):
            header = {"alg": "ES256", "typ": "JWT", "kid": signing.kid, **extension}
            await self.refused(f"{encode(header)}.{encode({})}.AAAA", "extension")

    async def test_one_for_another_service_is_refused(self) -> None:
        other = make_tokens(self.now, self.file, service="other")
        issued = await other.issue(ACCOUNT, [PULL])
        await self.refused(issued.text, "another service")

    async def test_one_of_another_registry_is_refused(self) -> None:
        issued = await make_tokens(self.now).issue(ACCOUNT, [PULL])
        await self.refused(issued.text, "key")

    async def test_nonsense_is_refused(self) -> None:
        for text in (
            "",
            "x",
            "a.b.c",
            "eyJ.eyJ.",
            "eyJhbGciOiJFUzI1NiJ9",
            "eyJhbGciOiJFUzI1NiJ9.!!!.???",
            f"{encode({'alg': 1})}.e30.AA",
            "eyJ" + "[" * 5000 + "..",
            "eyJ" + "é..",
            "eyJhbGciOiJFUzI1NiJ9." * 5,
            "eyJ" * 8000 + "..",
        ):
            await self.refused(text)


class RefreshTokenTests(TokensCase):
    async def test_it_says_whose_it_is(self) -> None:
        token = await self.tokens.issue_refresh(ACCOUNT)
        opened = await self.tokens.open_refresh(token)
        self.assertEqual((opened.identity, opened.fingerprint), (ALICE, "mark"))

    async def test_it_is_good_for_nothing_but_getting_others(self) -> None:
        await self.refused(await self.tokens.issue_refresh(ACCOUNT), "purpose")

    async def test_an_access_token_is_none(self) -> None:
        opening = Deferred.fromCoroutine(self.tokens.open_refresh(await self.issue(PULL)))
        self.failureResultOf(opening, Unauthorized)

    async def test_it_expires(self) -> None:
        token = await self.tokens.issue_refresh(ACCOUNT)
        self.now.seconds += 86400 + 10
        self.failureResultOf(Deferred.fromCoroutine(self.tokens.open_refresh(token)), Unauthorized)

    async def test_it_outlives_the_key_that_signed_it(self) -> None:
        token = await self.tokens.issue_refresh(ACCOUNT)
        self.tokens.keys.rotate()
        self.now.seconds += 86400
        self.assertEqual((await self.tokens.open_refresh(token)).identity, ALICE)

    async def test_it_is_for_one_service(self) -> None:
        token = await self.tokens.issue_refresh(ACCOUNT)
        other = make_tokens(self.now, self.file, service="other")
        self.failureResultOf(Deferred.fromCoroutine(other.open_refresh(token)), Unauthorized)


class AnyKindTests(TokensCase):
    async def test_every_kind_of_identity_comes_back(self) -> None:
        for kind in Kind:
            identity = evolve(ALICE, kind=kind)
            token = await self.issue(PULL, account=Account(identity))
            self.assertEqual((await self.tokens.open(token)).identity, identity)


class ScopeTests(TestCase):
    def test_a_scope_is_a_type_a_name_and_actions(self) -> None:
        for text, expected in (
            ("repository:samalba/my-app:pull,push", ("samalba/my-app", ("pull", "push"))),
            ("repository(plugin):a/b:pull", ("a/b", ("pull",))),
            (
                "repository:registry.example:5000/team/app:pull",
                ("registry.example:5000/team/app", ("pull",)),
            ),
            ("repository:a:*", ("a", ("*",))),
            ("repository:a:", ("a", ())),
            ("repository:a:pull,,pull,fly", ("a", ("pull", "fly"))),
        ):
            scope = Scope.parse(text)
            assert scope is not None, text
            self.assertEqual((scope.type, scope.name, scope.actions), ("repository", *expected))

    def test_the_list_of_images_is_a_resource_of_the_registry(self) -> None:
        self.assertEqual(Scope.parse("registry:catalog:*"), Scope("registry", "catalog", ("*",)))

    def test_what_is_none_grants_nothing(self) -> None:
        for text in ("", "repository", "repository:a", ":a:pull", "Repository:a:pull", "a:b:PULL"):
            self.assertIsNone(Scope.parse(text), text)

    def test_several_may_come_in_one_text_and_in_several(self) -> None:
        scopes = list(
            parse_scopes(["repository:a:pull repository:b:push", "nonsense", "repository:a:push"])
        )
        self.assertEqual(list(map(str, scopes)), ["repository:a:pull,push", "repository:b:push"])

    def test_a_star_is_every_action_and_unknown_ones_are_none(self) -> None:
        self.assertEqual(Scope("repository", "a", ("*",)).wanted, frozenset(Action))
        self.assertEqual(Scope("repository", "a", ("fly", "delete")).wanted, {Action.DELETE})

    @given(st.lists(st.text(max_size=60), max_size=5))
    def test_any_text_is_parsed(self, texts: list[str]) -> None:
        for scope in parse_scopes(texts):
            self.assertEqual(Scope.parse(str(scope)), scope)
