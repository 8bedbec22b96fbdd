"""``/token`` and what it gives, over real sockets."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlencode

import bcrypt

from tests.api.case import ApiTestCase
from tests.api.served import Served
from tests.auth.accounts import Now
from tests.auth.issuing import AUDIENCE, FakeIssuer
from tests.auth.test_tokens import read_part
from tests.process import Answer

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
RULES = """
[[access]]
who = ["anonymous"]
may = ["pull"]
images = ["local/public/*"]

[[access]]
who = ["user:alice"]
may = ["pull", "push"]
images = ["local/hello", "local/public/*"]

[[access]]
who = ["claim:ci:repository=octo/hello"]
may = ["pull", "push"]
images = ["local/octo/*"]
"""


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class TokenCase(ApiTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        self.users = folder / "htpasswd"
        self.set_password("secret")
        self.fake = FakeIssuer(Now(time()), "https://ci.example")
        keys = folder / "jwks.json"
        keys.write_bytes(self.fake.key_set())
        self.toml = (
            f'[auth]\nhtpasswd = "{self.users}"\n{RULES}\n[issuer.ci]\nissuer = "https://ci.example"\n'
            f'audience = ["{AUDIENCE}"]\njwks_file = "{keys}"\n'
        )
        super().setUp()

    def set_password(self, password: str) -> None:
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        new = self.users.with_suffix(".new")
        new.write_text(f"alice:{hashed}\n")
        new.rename(self.users)

    async def get(self, query: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        answer = await self.accepted(200, "GET", f"/token?{query}", headers=headers)
        return self.document(answer)

    async def post(self, **fields: str) -> Answer:
        body = urlencode({"service": "artifactd", "client_id": "test", **fields}).encode()
        return await self.registry.request("POST", "/token", body, FORM)

    async def granted(self, **fields: str) -> dict[str, Any]:
        answer = await self.post(**fields)
        self.assertEqual(answer.status, 200, answer.body)
        return self.document(answer)

    def document(self, answer: Answer) -> dict[str, Any]:
        self.assertEqual(answer.header("Content-Type"), "application/json")
        self.assertEqual(answer.header("Cache-Control"), "no-store")
        document: dict[str, Any] = json.loads(answer.body)
        return document

    def assert_oauth_error(self, answer: Answer, status: int, code: str, error: str) -> None:
        """RFC 6749, 5.2, and the spec's at once."""
        self.assert_error(answer, status, code)
        document = self.document(answer)
        self.assertEqual(document["error"], error)
        self.assertEqual(document["error_description"], document["errors"][0]["message"])


class GetTests(TokenCase):
    async def test_a_login_gets_what_is_asked_and_allowed(self) -> None:
        scope = "repository:hello:pull,push,delete"
        document = await self.get(f"service=artifactd&scope={scope}", basic("alice", "secret"))
        self.assertEqual(document["scope"], "repository:hello:pull,push")
        self.assertEqual(document["token"], document["access_token"])
        self.assertEqual(document["expires_in"], 300)
        self.assertRegex(document["issued_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.assertNotIn("refresh_token", document)
        self.assertEqual(read_part(document["token"], 1)["sub"], "alice")

    async def test_scopes_are_repeated_or_divided_by_spaces(self) -> None:
        one, other = "repository:hello:pull", "repository:public/a:pull"
        for query in (
            f"scope={one}&scope={other}",
            f"scope={one}%20{other}",
            f"scope={one}+{other}",
        ):
            document = await self.get(query, basic("alice", "secret"))
            self.assertEqual(document["scope"], f"{one} {other}")

    async def test_docker_login_gets_one_for_nothing_and_one_to_keep(self) -> None:
        query = "account=alice&client_id=docker&offline_token=true&service=artifactd"
        document = await self.get(query, basic("alice", "secret"))
        self.assertEqual(document["scope"], "")
        self.assertIn("refresh_token", document)
        await self.accepted(200, "GET", "/v2/", headers=bearer(document["token"]))

    async def test_anybody_gets_what_anonymous_may(self) -> None:
        document = await self.get("scope=repository:public/a:pull,push&scope=repository:hello:pull")
        self.assertEqual(document["scope"], "repository:public/a:pull")

    async def test_a_wrong_login_is_401_with_a_challenge(self) -> None:
        for headers in (basic("alice", "wrong"), basic("bob", "secret"), bearer("nonsense")):
            answer = await self.refused(401, "UNAUTHORIZED", "GET", "/token", headers=headers)
            self.assertIn("Basic", answer.header("WWW-Authenticate") or "")

    async def test_another_service_is_400(self) -> None:
        await self.refused(400, "UNSUPPORTED", "GET", "/token?service=other")

    async def test_a_token_gets_no_other_one(self) -> None:
        token = (await self.get("", basic("alice", "secret")))["token"]
        await self.refused(401, "UNAUTHORIZED", "GET", "/token", headers=bearer(token))


class PostTests(TokenCase):
    async def log_in(self) -> str:
        """A refresh token."""
        document = await self.granted(
            grant_type="password", username="alice", password="secret", access_type="offline"
        )
        token: str = document["refresh_token"]
        return token

    async def test_a_password_gets_a_token(self) -> None:
        scope = "repository:hello:pull,push repository:other:pull"
        document = await self.granted(
            grant_type="password", username="alice", password="secret", scope=scope
        )
        self.assertEqual(document["scope"], "repository:hello:pull,push")
        self.assertEqual(document["token_type"], "Bearer")
        self.assertNotIn("refresh_token", document)

    async def test_a_refresh_token_gets_others(self) -> None:
        token = await self.log_in()
        document = await self.granted(
            grant_type="refresh_token", refresh_token=token, scope="repository:hello:pull"
        )
        self.assertEqual(document["scope"], "repository:hello:pull")
        self.assertEqual(document["refresh_token"], token)

    async def test_several_scopes_come_in_a_field_each(self) -> None:
        one, other = "repository:hello:pull,push", "repository:public/a:pull"
        fields = [("service", "artifactd"), ("client_id", "test"), ("grant_type", "refresh_token")]
        fields += [("refresh_token", await self.log_in()), ("scope", one), ("scope", other)]
        answer = await self.registry.request("POST", "/token", urlencode(fields).encode(), FORM)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(self.document(answer)["scope"], f"{one} {other}")
        for twice in ("service", "refresh_token"):
            body = urlencode([*fields, (twice, "x")]).encode()
            await self.refused(400, "UNSUPPORTED", "POST", "/token", body, FORM)

    async def test_another_process_on_the_data_takes_it(self) -> None:
        token = await self.log_in()
        self.registry = Served.start(self, self.toml, data=self.registry.data)
        await self.granted(grant_type="refresh_token", refresh_token=token)

    async def test_it_is_worth_nothing_on_its_own(self) -> None:
        headers = bearer(await self.log_in())
        await self.refused(401, "UNAUTHORIZED", "GET", "/v2/", headers=headers)

    async def test_it_dies_with_the_password(self) -> None:
        token = await self.log_in()
        access = (await self.get("", basic("alice", "secret")))["token"]
        self.set_password("changed")
        # Another process, so that nobody has to wait until this one looks at the file.
        self.registry = Served.start(self, self.toml, data=self.registry.data)
        answer = await self.post(grant_type="refresh_token", refresh_token=token)
        self.assert_oauth_error(answer, 401, "UNAUTHORIZED", "invalid_grant")
        await self.refused(401, "UNAUTHORIZED", "GET", "/v2/", headers=bearer(access))

    async def test_a_wrong_login_is_401(self) -> None:
        answer = await self.post(grant_type="password", username="alice", password="wrong")
        self.assert_oauth_error(answer, 401, "UNAUTHORIZED", "invalid_grant")

    async def test_guessing_is_slowed_down(self) -> None:
        for _ in range(5):
            await self.post(grant_type="password", username="alice", password="wrong")
        answer = await self.post(grant_type="password", username="alice", password="secret")
        self.assert_oauth_error(answer, 429, "TOOMANYREQUESTS", "slow_down")
        self.assertTrue(answer.header("Retry-After"))

    async def test_a_form_that_is_none_is_400(self) -> None:
        login = {"grant_type": "password", "username": "alice", "password": "secret"}
        for fields, error in (
            ({}, "invalid_request"),
            ({**login, "grant_type": "authorization_code"}, "unsupported_grant_type"),
            ({**login, "service": "other"}, "invalid_request"),
            ({**login, "service": ""}, "invalid_request"),
            ({**login, "client_id": ""}, "invalid_request"),
            ({**login, "client_id": "a\nb"}, "invalid_request"),
            ({**login, "username": ""}, "invalid_request"),
            ({**login, "username": "alice:secret"}, "invalid_request"),
            ({**login, "username": "ali\nce"}, "invalid_request"),
            ({**login, "password": "secret\r\n"}, "invalid_request"),
            ({**login, "password": "secret\x7f"}, "invalid_request"),
            ({"grant_type": "refresh_token"}, "invalid_request"),
        ):
            answer = await self.post(**fields)
            self.assert_oauth_error(answer, 400, "UNSUPPORTED", error)

    async def test_a_body_that_is_no_form_is_refused(self) -> None:
        for body, headers, status in (
            (b"{}", {"Content-Type": "application/json"}, 400),
            (b"grant_type=password", {}, 400),
            (b"a=1&a=2", FORM, 400),
            (b"a=%ff", FORM, 400),
            (b"a=\xff", FORM, 400),
            (b"&".join(b"a%d=1" % each for each in range(60)), FORM, 400),
            (b"a=" + b"x" * (64 << 10), FORM, 413),
        ):
            answer = await self.registry.request("POST", "/token", body, headers)
            code = "SIZE_INVALID" if status == 413 else "UNSUPPORTED"
            self.assert_oauth_error(answer, status, code, "invalid_request")


class UseTests(TokenCase):
    async def token(self, *scopes: str) -> dict[str, str]:
        query = urlencode([("scope", scope) for scope in scopes])
        return bearer((await self.get(query, basic("alice", "secret")))["token"])

    async def test_a_token_does_what_it_is_for_and_nothing_else(self) -> None:
        push = await self.token("repository:hello:pull,push")
        await self.accepted(202, "POST", "/v2/hello/blobs/uploads/", headers=push)
        pull = await self.token("repository:hello:pull")
        answer = await self.refused(
            401, "UNAUTHORIZED", "POST", "/v2/hello/blobs/uploads/", headers=pull
        )
        challenge = answer.header("WWW-Authenticate") or ""
        self.assertIn('error="insufficient_scope"', challenge)
        self.assertIn('scope="repository:hello:pull,push"', challenge)
        self.assertIn('service="artifactd"', challenge)

    async def test_both_names_of_an_image_count(self) -> None:
        pull = await self.token("repository:local/hello:pull")
        for name in ("hello", "local/hello"):
            await self.accepted(404, "GET", f"/v2/{name}/manifests/latest", headers=pull)

    async def test_the_list_of_images_has_a_scope(self) -> None:
        catalog = await self.token("registry:catalog:*")
        await self.accepted(200, "GET", "/v2/_catalog", headers=catalog)
        await self.refused(401, "UNAUTHORIZED", "GET", "/v2/_catalog", headers=await self.token())

    async def test_a_forged_token_is_401(self) -> None:
        token = (await self.token("repository:hello:pull"))["Authorization"]
        head, _, signature = token.rpartition(".")
        forged = f"{head}.{signature[:-4]}AAAA"
        answer = await self.refused(
            401, "UNAUTHORIZED", "GET", "/v2/", headers={"Authorization": forged}
        )
        self.assertIn('error="invalid_token"', answer.header("WWW-Authenticate") or "")


class JobTests(TokenCase):
    async def pushed(self, headers: Mapping[str, str]) -> None:
        await self.accepted(202, "POST", "/v2/octo/app/blobs/uploads/", headers=headers)

    async def test_a_job_pushes_with_its_token_as_it_is(self) -> None:
        await self.pushed(bearer(self.fake.token()))

    async def test_a_job_pushes_with_its_token_as_a_password(self) -> None:
        await self.pushed(basic("any", self.fake.token()))

    async def test_a_job_gets_a_token_of_ours_for_its_own(self) -> None:
        query = "offline_token=true&scope=repository:octo/app:pull,push"
        for headers in (basic("any", self.fake.token()), bearer(self.fake.token())):
            document = await self.get(query, headers)
            self.assertEqual(document["scope"], "repository:octo/app:pull,push")
            self.assertEqual(document["expires_in"], 3600)
            self.assertNotIn("refresh_token", document)
            await self.pushed(bearer(document["token"]))
        document = await self.granted(
            grant_type="password",
            username="any",
            password=self.fake.token(),
            scope="repository:octo/app:push",
        )
        await self.pushed(bearer(document["token"]))

    async def test_a_job_of_another_repository_is_denied(self) -> None:
        headers = bearer(self.fake.token(repository="mallory/hello"))
        await self.refused(403, "DENIED", "POST", "/v2/octo/app/blobs/uploads/", headers=headers)

    async def test_a_token_for_another_audience_is_401(self) -> None:
        for headers in (bearer(self.fake.token(aud="x")), basic("a", self.fake.token(aud="x"))):
            answer = await self.registry.request("GET", "/v2/", headers=headers)
            self.assert_error(answer, 401, "UNAUTHORIZED")


class WithoutServiceTests(TokenCase):
    def setUp(self) -> None:
        super().setUp()
        toml = f"{self.toml}\n[token_service]\nenabled = false\n"
        self.registry = Served.start(self, toml)

    async def test_no_token_is_given_and_basic_asked_for(self) -> None:
        await self.accepted(404, "GET", "/token")
        answer = await self.registry.request("GET", "/v2/")
        self.assert_error(answer, 401, "UNAUTHORIZED")
        self.assertIn("Basic", answer.header("WWW-Authenticate") or "")

    async def test_other_issuers_tokens_count_all_the_same(self) -> None:
        await self.accepted(200, "GET", "/v2/", headers=bearer(self.fake.token()))
