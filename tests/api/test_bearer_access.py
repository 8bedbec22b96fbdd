"""Who may do what, as clients with a Bearer token see it: registry-auth-token."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import urlencode

from artifactd.oci.names import Digest
from tests.api.guarded import BLOB, GuardedCase, basic, shape
from tests.process import Answer

PATH = "/v2/team/app/manifests/v1"
PULL = "repository:team/app:pull"


class BearerCase(GuardedCase):
    tokens = True

    def challenge(self, answer: Answer) -> str:
        """The one challenge of ``answer``, with the realm's own port taken out."""
        (value,) = answer.headers.get_all("WWW-Authenticate") or []
        text: str = value.replace(f"127.0.0.1:{self.registry.port}", "HOST")
        return text


class ChallengeTests(BearerCase):
    async def test_bearer_alone_is_asked_for(self) -> None:
        answer = await self.ask("GET", "/v2/")
        self.assert_error(answer, 401, "UNAUTHORIZED")
        self.assertEqual(
            self.challenge(answer), 'Bearer realm="http://HOST/token",service="artifactd"'
        )

    async def test_it_says_which_scope_is_needed(self) -> None:
        for method, path, scope in (
            ("GET", PATH, PULL),
            ("POST", "/v2/team/app/blobs/uploads/", "repository:team/app:pull,push"),
            ("DELETE", PATH, "repository:team/app:delete"),
            ("GET", "/v2/_catalog", "registry:catalog:*"),
        ):
            answer = await self.ask(method, path)
            self.assertEqual(answer.status, 401)
            self.assertIn(f'scope="{scope}"', self.challenge(answer))

    async def test_a_mirrors_scope_has_the_canonical_name(self) -> None:
        answer = await self.ask("GET", "/v2/alpine/manifests/3?ns=docker.io")
        self.assertIn('scope="repository:docker.io/library/alpine:pull"', self.challenge(answer))

    async def test_basic_counts_without_being_asked_for(self) -> None:
        await self.have("team/app")
        self.assertEqual(await self.status("GET", "/v2/", "bob"), 200)
        self.assertEqual(await self.status("GET", PATH, "bob"), 200)

    async def test_a_wrong_token_is_told_to_be_wrong(self) -> None:
        for token in ("nonsense", "a.b.c", ""):
            answer = await self.with_token(token, "GET", PATH)
            self.assert_error(answer, 401, "UNAUTHORIZED")
            self.assertIn('error="invalid_token"', self.challenge(answer))

    async def test_a_wrong_token_is_told_the_scope_of_a_right_one(self) -> None:
        for method, path, scope in (
            ("HEAD", PATH, PULL),
            ("POST", "/v2/team/app/blobs/uploads/", "repository:team/app:pull,push"),
            ("DELETE", PATH, "repository:team/app:delete"),
            ("GET", "/v2/_catalog", "registry:catalog:*"),
            (
                "GET",
                "/v2/alpine/manifests/3?ns=docker.io",
                "repository:docker.io/library/alpine:pull",
            ),
        ):
            answer = await self.with_token("a.b.c", method, path)
            self.assertEqual(answer.status, 401)
            self.assertIn(f'scope="{scope}"', self.challenge(answer))
            self.assertIn('error="invalid_token"', self.challenge(answer))
        for path in ("/v2/", "/v2/No/tags/list"):
            answer = await self.with_token("a.b.c", "GET", path)
            self.assertEqual(answer.status, 401)
            self.assertNotIn("scope=", self.challenge(answer))

    async def test_a_wrong_password_at_the_token_service_is_asked_for_by_basic(self) -> None:
        answer = await self.ask("GET", "/token?service=artifactd", headers=basic("bob", "wrong"))
        self.assert_error(answer, 401, "UNAUTHORIZED")
        self.assertEqual(self.challenge(answer), 'Basic realm="artifactd", charset="UTF-8"')

    async def test_the_realm_has_the_host_that_the_client_asked(self) -> None:
        answer = await self.ask("GET", "/v2/", headers={"Host": "registry.example:5000"})
        self.assertIn('realm="http://registry.example:5000/token"', self.challenge(answer))

    async def test_a_host_that_is_none_does_not_get_into_it(self) -> None:
        for host in ("", "(a)", "a;b"):
            answer = await self.ask("GET", "/v2/", headers={"Host": host})
            self.assertIn('realm="http://HOST/token"', self.challenge(answer), host)
        for host in ('a"b', "a/b", "a b", "user@a"):
            answer = await self.ask("GET", "/v2/", headers={"Host": host})
            self.assert_error(answer, 400, "UNSUPPORTED")
            self.assertIsNone(answer.header("WWW-Authenticate"))

    async def test_nobody_but_a_trusted_proxy_says_that_it_is_https(self) -> None:
        answer = await self.ask("GET", "/v2/", headers={"X-Forwarded-Proto": "https"})
        self.assertIn('realm="http://HOST/token"', self.challenge(answer))


class ProxiedChallengeTests(BearerCase):
    top = 'trusted_proxies = ["127.0.0.0/8"]'

    async def test_a_trusted_proxy_says_by_which_scheme_it_was_asked(self) -> None:
        for said, scheme in (("https", "https"), ("HTTPS", "https"), ("ftp", "http")):
            headers = {"X-Forwarded-Proto": said, "Host": "registry.example"}
            answer = await self.ask("GET", "/v2/", headers=headers)
            self.assertIn(f'realm="{scheme}://registry.example/token"', self.challenge(answer))


class ExternalUrlTests(BearerCase):
    top = 'external_url = "https://registry.example/"'

    async def test_the_realm_is_where_the_settings_say(self) -> None:
        answer = await self.ask("GET", "/v2/", headers={"Host": "elsewhere.example"})
        self.assertIn('realm="https://registry.example/token"', self.challenge(answer))


class TokenTests(BearerCase):
    async def test_a_token_for_it_lets_in(self) -> None:
        await self.have("team/app")
        token = await self.token(PULL, who="bob")
        self.assertEqual((await self.with_token(token, "GET", PATH)).status, 200)
        self.assertEqual((await self.with_token(token, "GET", "/v2/")).status, 200)

    async def test_the_canonical_name_may_be_in_it_too(self) -> None:
        await self.have("team/app")
        token = await self.token("repository:local/team/app:pull", who="bob")
        for name in ("team/app", "local/team/app"):
            answer = await self.with_token(token, "GET", f"/v2/{name}/manifests/v1")
            self.assertEqual(answer.status, 200)

    async def test_a_token_without_a_scope_that_its_subject_may_have_is_told_which(self) -> None:
        await self.have("team/app", "public/app")
        shapes = []
        for name in ("team/app", "team/absent"):
            for scopes in ((), ("repository:team/other:pull",)):
                token = await self.token(*scopes, who="bob")
                answer = await self.with_token(token, "GET", f"/v2/{name}/manifests/v1")
                self.assert_error(answer, 401, "UNAUTHORIZED")
                challenge = self.challenge(answer)
                self.assertIn(f'scope="repository:{name}:pull"', challenge)
                self.assertIn('error="insufficient_scope"', challenge)
                self.assertIsNone(answer.header("Server-Timing"))
                shapes.append(shape(answer, name))
        self.assertEqual(len({repr(each) for each in shapes}), 1)

    async def test_a_token_whose_subject_may_not_is_denied(self) -> None:
        await self.have("secret/app")
        for name in ("secret/app", "secret/absent"):
            token = await self.token(f"repository:{name}:pull", who="nobody")
            answer = await self.with_token(token, "GET", f"/v2/{name}/manifests/v1")
            self.assert_error(answer, 403, "DENIED")

    async def test_a_token_is_for_what_its_subject_may_and_no_more(self) -> None:
        token = await self.token("repository:team/app:pull,push", who="bob")
        answer = await self.with_token(token, "POST", "/v2/team/app/blobs/uploads/")
        self.assert_error(answer, 403, "DENIED")

    async def test_a_token_of_nobody_pulls_what_anybody_may(self) -> None:
        await self.have("public/app", "team/app")
        token = await self.token("repository:public/app:pull")
        answer = await self.with_token(token, "GET", "/v2/public/app/manifests/v1")
        self.assertEqual(answer.status, 200)
        self.assertEqual((await self.with_token(token, "GET", "/v2/")).status, 200)
        answer = await self.with_token(token, "GET", PATH)
        self.assert_error(answer, 401, "UNAUTHORIZED")
        self.assertNotIn("error=", self.challenge(answer))

    async def test_pulling_what_anybody_may_needs_no_token(self) -> None:
        await self.have("public/app")
        self.assertEqual(await self.status("GET", "/v2/public/app/manifests/v1"), 200)

    async def test_the_catalog_needs_a_token_for_it(self) -> None:
        await self.have("team/app", "secret/app")
        answer = await self.with_token(await self.token(PULL, who="bob"), "GET", "/v2/_catalog")
        self.assertIn('error="insufficient_scope"', self.challenge(answer))
        token = await self.token("registry:catalog:*", who="bob")
        answer = await self.with_token(token, "GET", "/v2/_catalog")
        self.assertEqual(json.loads(answer.body), {"repositories": ["team/app"]})

    async def test_a_token_for_the_catalog_tells_no_tags(self) -> None:
        await self.have("team/app")
        await self.ask("DELETE", "/v2/team/app/manifests/v1", "alice")
        token = await self.token("registry:catalog:*", who="bob")
        for path in ("/api/v1/deleted", "/api/v1/stale"):
            answer = await self.with_token(token, "GET", path)
            self.assert_error(answer, 403, "DENIED")
            self.assertEqual(await self.status("GET", path, "bob"), 200)
        token = await self.token(PULL, who="bob")
        answer = await self.with_token(token, "GET", "/api/v1/images/team/app/deleted")
        self.assertEqual(answer.status, 200)

    async def test_a_mount_needs_a_scope_for_its_source(self) -> None:
        await self.have("team/app")
        path = f"/v2/team/copy/blobs/uploads/?mount={Digest.of(BLOB)}&from=team/app"
        push = "repository:team/copy:pull,push"
        for scopes, status in (((push,), 202), ((push, PULL), 201)):
            token = await self.token(*scopes, who="alice")
            self.assertEqual((await self.with_token(token, "POST", path)).status, status)

    async def test_a_token_given_by_post_counts_as_well(self) -> None:
        await self.have("team/app")
        form = {
            "grant_type": "password",
            "client_id": "test",
            "service": "artifactd",
            "username": "bob",
            "password": "bob!",
            "scope": PULL,
        }
        answer = await self.ask(
            "POST",
            "/token",
            body=urlencode(form).encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        self.assertEqual(answer.status, 200, answer.body)
        token = json.loads(answer.body)["access_token"]
        self.assertEqual((await self.with_token(token, "GET", PATH)).status, 200)

    async def test_a_token_of_ours_is_no_password(self) -> None:
        token = await self.token(PULL, who="bob")
        login = b64encode(f"bob:{token}".encode()).decode()
        answer = await self.ask("GET", PATH, headers={"Authorization": f"Basic {login}"})
        self.assert_error(answer, 401, "UNAUTHORIZED")


class NoTokenServiceTests(GuardedCase):
    async def test_there_is_no_token_to_be_had(self) -> None:
        self.assert_error(await self.ask("GET", "/token"), 404, "NAME_UNKNOWN")
