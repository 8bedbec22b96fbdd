"""The test's Docker Hub gives out tokens, and wants them, as the real one does."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from artifactd.oci.digest import Digest
from tests.upstreams.asking import ACCEPT, ask, pull_manifest, token
from tests.upstreams.faulty import TOKEN
from tests.upstreams.test_hub import ALPINE, LAYER, HubCase


class TokenTests(HubCase):
    async def test_without_a_token_it_says_where_to_get_which(self) -> None:
        answer = await ask(self.manifest)
        self.assertEqual(answer.status, 401)
        self.assertEqual(
            answer.header("WWW-Authenticate"),
            f'Bearer realm="{self.hub.url}/token",service="registry.docker.io",'
            f'scope="repository:{ALPINE}:pull"',
        )
        self.assertEqual(json.loads(answer.body)["errors"][0]["code"], "UNAUTHORIZED")

    async def test_the_token_it_says_is_good_for_the_image(self) -> None:
        answer = await pull_manifest(self.hub, ALPINE, "3.20")
        self.assertEqual((answer.status, Digest.of(answer.body)), (200, self.digest))

    async def test_a_token_is_good_for_no_other_image(self) -> None:
        self.hub.images.add_image("library/busybox", "1", LAYER)
        headers = await token(self.hub, "library/busybox")
        answer = await ask(self.manifest, headers=headers)
        self.assertEqual(answer.status, 401)
        self.assertIn('error="insufficient_scope"', answer.header("WWW-Authenticate") or "")

    async def test_a_token_expires(self) -> None:
        headers = await token(self.hub, ALPINE) | ACCEPT
        self.clock.advance(self.hub.tokens.lifetime - 1)
        self.assertEqual((await ask(self.manifest, headers=headers)).status, 200)
        self.clock.advance(1)
        answer = await ask(self.manifest, headers=headers)
        self.assertEqual(answer.status, 401)
        self.assertIn('error="invalid_token"', answer.header("WWW-Authenticate") or "")

    async def test_a_token_can_be_forgotten(self) -> None:
        headers = await token(self.hub, ALPINE) | ACCEPT
        self.hub.tokens.forget()
        self.assertEqual((await ask(self.manifest, headers=headers)).status, 401)

    async def test_tokens_are_opaque_and_each_is_another(self) -> None:
        tokens = {(await token(self.hub, ALPINE))["Authorization"] for _ in range(3)}
        self.assertEqual(len(tokens), 3)
        self.assertEqual([each.scopes for each in self.hub.tokens.given], [{_scope()}] * 3)

    async def test_its_document_has_the_fields_of_the_specification(self) -> None:
        answer = await ask(f"{self.hub.realm}?service=registry.docker.io&scope={_scope()}")
        document = json.loads(answer.body)
        self.assertEqual(document["token"], document["access_token"])
        self.assertEqual(document["expires_in"], 300)
        self.assertEqual(document["issued_at"], "1970-01-01T00:00:00Z")

    async def test_who_asked_for_a_token_can_be_seen(self) -> None:
        self.hub.tokens.users["ann"] = "secret"
        await token(self.hub, ALPINE)
        await token(self.hub, ALPINE, "ann", "secret")
        sent = [asked.headers.get("authorization") for asked in self.hub.asked("GET", TOKEN)]
        self.assertEqual(sent, [None, "Basic YW5uOnNlY3JldA=="])
        self.assertEqual([each.user for each in self.hub.tokens.given], [None, "ann"])

    async def test_a_wrong_login_is_refused(self) -> None:
        self.hub.tokens.users["ann"] = "secret"
        for login in ("Basic YW5uOndyb25n", "Basic Ym9iOnNlY3JldA==", "Bearer secret", "Basic %"):
            answer = await ask(self.hub.realm, headers={"Authorization": login})
            self.assertEqual(answer.status, 401)
        self.assertEqual(self.hub.tokens.given, [])

    async def test_a_private_image_is_for_users_alone(self) -> None:
        self.hub.tokens.users["ann"] = "secret"
        self.hub.private.add(ALPINE)
        for user, status in (("", 401), ("ann", 200)):
            headers = await token(self.hub, ALPINE, user, "secret") | ACCEPT
            self.assertEqual((await ask(self.manifest, headers=headers)).status, status)

    async def test_a_name_that_does_not_exist_is_refused_in_spite_of_a_token(self) -> None:
        answer = await pull_manifest(self.hub, "library/absent", "latest")
        self.assertEqual(answer.status, 401)

    async def test_tokens_can_be_had_on_another_host(self) -> None:
        self.hub.realm = self.hub.elsewhere
        self.assertNotEqual(urlsplit(self.hub.realm).hostname, urlsplit(self.hub.url).hostname)
        answer = await pull_manifest(self.hub, ALPINE, "3.20")
        self.assertEqual(answer.status, 200)

    async def test_it_can_do_without_tokens(self) -> None:
        self.hub.challenges = False
        self.assertEqual((await ask(self.manifest, headers=ACCEPT)).status, 200)
        absent = await ask(f"{self.hub.url}/v2/absent/manifests/1", headers=ACCEPT)
        self.assertEqual(absent.status, 404)


def _scope() -> str:
    return f"repository:{ALPINE}:pull"
