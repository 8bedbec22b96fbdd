"""Proof of access: docs/access.md, "Proof of access"."""

from __future__ import annotations

import json
from base64 import b64decode
from hashlib import new
from pathlib import Path

from twisted.internet.defer import Deferred, gatherResults

from artifactd.oci.names import Digest
from tests.api.described import problems
from tests.api.guarded import basic, shape
from tests.api.served import Served
from tests.pull.proving import ABSENT, ANYBODY, APP, LAYER, PASSWORDS, PUBLIC, ProofCase, as_user
from tests.upstreams.faulty import RedirectTo, Status

ALICE, BOB = as_user("docker.io/alice"), as_user("docker.io/bob")
NAME = f"docker.io/{APP}"
HASHES = ("md5", "sha1", "sha256")


class BasicTests(ProofCase):
    async def test_who_may_have_it_there_has_it_here(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        self.hub.forget_requests()
        answer = await self.manifest(registry, ALICE)
        self.assert_from(answer, "cache", "artifactd; hit")
        self.assertEqual(self.hub.requests, [])  # what was shown counts

    async def test_who_may_not_is_refused_what_is_here(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        for path in self.paths():
            answer = await registry.request("GET", path, headers=BOB)
            self.assertEqual(self.refused(answer), (403, "DENIED"), path)
            self.assertIn(b"does not let bob have this image", answer.body)
            self.assertIsNone(answer.header("Cache-Status"))
            head = await registry.request("HEAD", path, headers=BOB)
            self.assertEqual(head.status, 403, path)

    def paths(self, name: str = NAME) -> list[str]:
        return [
            f"/v2/{name}/manifests/1",
            f"/v2/{name}/manifests/{self.digest}",
            f"/v2/{name}/blobs/{self.blob}",
            f"/v2/{name}/tags/list",
            f"/v2/{name}/referrers/{self.digest}",
        ]

    async def test_by_another_name_of_it_too(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        self.assertEqual((await self.manifest(registry, ALICE, f"{APP}:1")).status, 200)
        mirrored = [f"{path}?ns=docker.io" for path in self.paths(APP)]
        for path in (*self.paths(APP), *mirrored):
            answer = await registry.request("GET", path, headers=BOB)
            self.assertEqual(self.refused(answer), (403, "DENIED"), path)
            self.assertEqual((await registry.request("GET", path)).status, 401, path)
            self.assertEqual((await registry.request("GET", path, headers=ALICE)).status, 200)

    async def test_nobody_is_challenged_alike_for_what_is_there_and_what_is_not(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        await self.manifest(registry, ALICE, f"{APP}:1")  # its name without prefix is known, too
        for prefix in ("docker.io/", ""):
            for tail in (
                "manifests/1",
                f"blobs/{self.blob}",
                "tags/list",
                f"referrers/{self.blob}",
            ):
                answers = []
                for name in (APP, ABSENT):
                    path = f"/v2/{prefix}{name}/{tail}"
                    answers.append(shape(await registry.request("GET", path), name))
                self.assertEqual(*answers)
                self.assertEqual(answers[0][0], 401)
                self.assertIn("WWW-Authenticate", dict(answers[0][1]))  # type: ignore[call-overload]

    async def test_what_anybody_may_have_there_anybody_may_have_here(self) -> None:
        registry = self.proving()
        for who in ({}, BOB, {}):
            answer = await self.manifest(registry, who, f"docker.io/{PUBLIC}:3")
            self.assertEqual(answer.status, 200, answer.body)
        self.hub.forget_requests()
        await self.manifest(registry, {}, f"docker.io/{PUBLIC}:3")
        self.assertEqual(self.hub.requests, [])

    async def test_a_wrong_password_is_refused_before_anything_else(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        wrong = as_user("docker.io/alice", "guessed")
        for name in (f"{NAME}:1", f"docker.io/{ABSENT}:1", f"docker.io/{PUBLIC}:3"):
            answer = await self.manifest(registry, wrong, name)
            self.assertEqual(self.refused(answer), (401, "UNAUTHORIZED"))
            self.assertTrue((answer.header("WWW-Authenticate") or "").startswith("Basic"))

    async def test_guessing_is_slowed_down(self) -> None:
        registry = self.proving(negative_freshness="1h")
        for attempt in range(5):
            answer = await self.manifest(registry, as_user("docker.io/alice", f"guess {attempt}"))
            self.assertEqual(answer.status, 401)
        self.hub.forget_requests()
        answer = await self.manifest(registry, ALICE)
        self.assertEqual(answer.status, 429)
        self.assertGreater(int(answer.header("Retry-After") or 0), 0)
        self.assertEqual(self.hub.requests, [])

    async def test_guesses_made_at_once_are_not_all_shown_to_the_upstream(self) -> None:
        self.rules = f"{ANYBODY}\n[auth]\nname_failures = 1\n"
        registry = self.proving()
        guesses = [as_user("docker.io/alice", f"guess {number}") for number in range(8)]
        made = [Deferred.fromCoroutine(self.manifest(registry, guess)) for guess in guesses]
        answers = await gatherResults(made)
        self.assertEqual({answer.status for answer in answers}, {401, 429})
        sent = {each.headers.get("authorization", "") for each in self.hub.requests}
        shown = [user for user in sent if user.startswith("Basic ")]
        self.assertIn(len(shown), range(1, 5))

    async def test_a_refusal_is_remembered_shortly(self) -> None:
        registry = self.proving(negative_freshness="1h")
        await self.cached(registry)
        await self.manifest(registry, BOB)
        self.hub.forget_requests()
        self.assertEqual((await self.manifest(registry, BOB)).status, 403)
        self.assertEqual((await registry.request("GET", self.paths()[2], headers=BOB)).status, 403)
        self.assertEqual(self.hub.requests, [])

    async def test_whose_access_has_ended_there_has_it_until_the_proof_expires(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        self.hub.readers[APP].discard("alice")
        self.assertEqual((await self.manifest(registry, ALICE)).status, 200)
        await registry.service.stopService()
        self.outlive(registry)
        registry.service.startService()
        self.assertEqual(self.refused(await self.manifest(registry, ALICE)), (403, "DENIED"))
        self.hub.tokens.users["alice"] = "another"
        await registry.service.stopService()
        self.outlive(registry)
        registry.service.startService()
        self.assertEqual(self.refused(await self.manifest(registry, ALICE))[0], 401)

    async def test_a_shorter_lifetime_counts_for_older_proofs_too(self) -> None:
        registry = self.proving(proof_lifetime="1h")
        await self.cached(registry)
        self.hub.readers[APP].discard("alice")
        shorter = self.proving(registry.data, proof_lifetime="1m")
        self.assertEqual((await self.manifest(shorter, ALICE)).status, 403)

    async def test_while_the_upstream_is_down_what_was_proved_is_served(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        await self.hub.stop()
        self.assertEqual((await self.manifest(registry, ALICE)).status, 200)
        answer = await self.manifest(registry, BOB)
        self.assertEqual(answer.status, 502, answer.body)
        self.assertIn("refused", json.loads(answer.body)["errors"][0]["detail"]["reason"])
        # He has not said who he is, and may be alice.
        self.assertEqual((await self.manifest(registry, {})).status, 401)

    async def test_while_it_is_down_it_is_not_asked_for_each_anonymous_request(self) -> None:
        registry = self.proving(negative_freshness="1h")
        self.hub.faults.add(Status(503), method="*", times=None)
        for name in (f"docker.io/{APP}:1", f"docker.io/{PUBLIC}:3"):
            self.assertEqual((await self.manifest(registry, {}, name)).status, 401)
            self.hub.forget_requests()
            for _ in range(3):
                self.assertEqual((await self.manifest(registry, {}, name)).status, 401)
            self.assertEqual(self.hub.requests, [], name)

    async def test_offline_what_was_proved_is_served(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        self.hub.forget_requests()
        offline = self.proving(registry.data, offline=True)
        self.assertEqual((await self.manifest(offline, ALICE)).status, 200)
        self.assertEqual((await self.manifest(offline, BOB)).status, 502)
        self.assertEqual(self.hub.requests, [])

    async def test_another_process_takes_the_proof(self) -> None:
        first = self.proving()
        second = self.proving(first.data)
        await self.cached(first)
        self.hub.forget_requests()
        self.assertEqual((await self.manifest(second, ALICE)).status, 200)
        self.assertEqual(self.hub.requests, [])
        self.assertEqual((await self.manifest(second, BOB)).status, 403)

    async def test_what_was_proved_at_one_upstream_says_nothing_of_another(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        self.hub.readers[APP].discard("alice")
        moved = self.hub.url.replace("127.0.0.1", "localhost")
        other = self.proving(registry.data, upstream=moved)
        self.assertNotEqual((await self.manifest(other, ALICE)).status, 200)

    async def test_the_list_of_images_shows_what_was_proved(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        await self.manifest(registry, {}, f"docker.io/{PUBLIC}:3")
        seen = {}
        for who, headers in (("alice", ALICE), ("bob", BOB), ("nobody", {})):
            answer = await registry.request("GET", "/v2/_catalog", headers=headers)
            seen[who] = json.loads(answer.body)["repositories"]
        public = [f"docker.io/{PUBLIC}"]
        self.assertEqual(seen, {"alice": [NAME, *public], "bob": public, "nobody": public})

    async def test_the_json_api_shows_what_the_caller_has_proved(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        for headers, status in ((ALICE, 200), (BOB, 404), ({}, 404)):
            path = f"/api/v1/images/{NAME}"
            for uri in (f"{path}/tags", f"{path}/tags/1", f"{path}/manifests/1", f"{path}/history"):
                answer = await registry.request("GET", uri, headers=headers)
                self.assertEqual(answer.status, status, (uri, answer.body))
                self.assertEqual([], problems("GET", uri, answer))
            answer = await registry.request("GET", "/api/v1/images", headers=headers)
            shown = [each["image"] for each in json.loads(answer.body).get("images", ())]
            self.assertEqual([NAME] if status == 200 else [], shown)

    async def test_docker_login_by_basic_is_checked_upstream(self) -> None:
        registry = self.proving()
        for who, status in (
            (ALICE, 200),
            (as_user("docker.io/alice", "wrong"), 401),
            (as_user("alice"), 200),  # there is no other that she could be meant for
            ({}, 401),
        ):
            self.assertEqual((await registry.request("GET", "/v2/", headers=who)).status, status)

    async def test_warming_wants_no_proof(self) -> None:
        registry = self.proving()
        target = registry.parts.registry.for_operator().target(f"{NAME}")
        found = await target.readable.manifest(target.image, self.digest)
        self.assertEqual(found.record.digest, self.digest)


class SecretTests(ProofCase):
    async def test_the_password_goes_to_the_upstream_and_nowhere_else(self) -> None:
        self.hub.realm = self.hub.elsewhere
        host = self.hub.elsewhere.partition("://")[2].partition("/")[0]
        registry = self.proving(auth_hosts=[host])
        await self.cached(registry)
        await self.manifest(registry, BOB)
        await self.manifest(registry, as_user("docker.io/alice", PASSWORDS["bob"]))
        shown = as_user("alice")["Authorization"]
        asked = [each for each in self.hub.requests if each.headers.get("authorization") == shown]
        self.assertTrue(asked)
        self.assertEqual({(each.role, each.path) for each in asked}, {("token", "/token")})
        cdn = [each for each in self.hub.requests if each.role == "cdn"]
        self.assertTrue(cdn)
        self.assertFalse([each for each in cdn if "authorization" in each.headers])

    async def test_a_token_server_that_is_not_listed_is_not_shown_it(self) -> None:
        self.hub.realm = self.hub.elsewhere
        registry = self.proving()
        answer = await self.manifest(registry, ALICE)
        self.assertNotEqual(answer.status, 200)
        for each in self.hub.requests:
            self.assertNotIn("Basic", each.headers.get("authorization", ""))

    async def test_neither_is_who_the_upstream_redirects_to(self) -> None:
        other = type(self.hub).start(self, self.hub.backing)
        other.challenges = False
        registry = self.proving()
        await self.cached(registry)
        self.outlive(registry)
        await registry.service.stopService()
        registry.service.startService()
        for path in ("/token", f"/v2/{APP}/manifests/*", f"/v2/{APP}/tags/list"):
            self.hub.faults.add(
                RedirectTo(f"{other.url}{path.replace('*', '1')}"), on=path, times=9
            )
        answer = await self.manifest(registry, BOB)
        self.assertNotEqual(answer.status, 200, answer.body)
        self.assertFalse([e for e in other.requests if "authorization" in e.headers])

    async def test_it_is_not_on_the_disk_nor_in_the_log(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        await self.manifest(registry, BOB)
        await self.manifest(registry, as_user("docker.io/alice", "gue55ed"))
        logins = (ALICE, BOB, as_user("alice"), as_user("bob"))
        secrets = [
            *PASSWORDS.values(),
            "gue55ed",
            *(each["Authorization"].partition(" ")[2] for each in logins),
            *(token.text for token in self.hub.tokens.given if token.user in ("alice", "bob")),
        ]
        contents = [path.read_bytes() for path in registry.data.rglob("*") if path.is_file()]
        self.assertTrue(any(b"access_proof" in content for content in contents))
        for secret in secrets:
            self.assertNotIn(secret, self.logged())
            self.assertFalse([c for c in contents if secret.encode() in c])

    async def test_the_key_is_for_nobody_elses_eyes(self) -> None:
        registry = self.proving()
        key = registry.data / "keys" / "secret.key"
        self.assertEqual(key.stat().st_mode & 0o077, 0)
        await self.cached(registry)
        await registry.service.stopService()
        self.hub.readers[APP].discard("alice")
        key.unlink()  # as in what a backup brings back
        registry.service.startService()
        self.assertEqual((await self.manifest(registry, ALICE)).status, 403)


class TokenTests(ProofCase):
    tokens = True

    async def test_docker_logs_in_and_pulls(self) -> None:
        registry = self.proving()
        challenge = await registry.request("GET", "/v2/")
        self.assertEqual(challenge.status, 401)
        self.assertTrue((challenge.header("WWW-Authenticate") or "").startswith("Bearer"))
        answer = await self.token(registry, ALICE, offline_token="true", account="alice")
        self.assertEqual(answer.status, 200, answer.body)
        self.assertNotIn("refresh_token", json.loads(answer.body))  # which would outlive access
        bearer = await self.bearer(registry, ALICE, NAME)
        self.assertEqual((await self.manifest(registry, bearer)).status, 200)
        path = f"/v2/{NAME}/blobs/{self.blob}"
        self.assertEqual((await registry.request("GET", path, headers=bearer)).body, LAYER)

    async def test_a_wrong_password_gets_no_token(self) -> None:
        registry = self.proving()
        wrong = as_user("docker.io/alice", "wrong")
        self.assertEqual((await self.token(registry, wrong)).status, 401)
        self.assertEqual((await self.token(registry, wrong, NAME)).status, 401)

    async def test_a_form_does_as_well(self) -> None:
        registry = self.proving()
        form = (
            "grant_type=password&service=artifactd&client_id=x&username=docker.io/alice"
            f"&password={PASSWORDS['alice']}&scope=repository:{NAME}:pull"
        ).replace(" ", "%20")
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await registry.request("POST", "/token", form.encode(), kind)
        self.assertEqual(answer.status, 200, answer.body)
        bearer = {"Authorization": f"Bearer {json.loads(answer.body)['token']}"}
        self.assertEqual((await self.manifest(registry, bearer)).status, 200)

    async def test_who_may_not_is_told_why(self) -> None:
        registry = self.proving(negative_freshness="1h")
        await self.cached(registry)
        bearer = await self.bearer(registry, BOB, NAME)
        answer = await self.manifest(registry, bearer)
        self.assertEqual(self.refused(answer), (403, "DENIED"))
        self.assertIn(b"does not let bob have this image", answer.body)

    async def test_another_process_takes_the_token_with_its_proof(self) -> None:
        first = self.proving()
        second, third = self.proving(first.data), self.proving(first.data)
        bearer = await self.bearer(first, ALICE, NAME)
        self.assertEqual((await self.manifest(second, bearer)).status, 200)
        bob = await self.bearer(first, BOB, NAME)
        answer = await self.manifest(third, bob)
        self.assertEqual(answer.status, 401)  # what was refused, each process has to ask itself
        self.assertIn('error="invalid_token"', answer.header("WWW-Authenticate") or "")

    async def test_the_token_dies_with_the_proof(self) -> None:
        registry = self.proving()
        bearer = await self.bearer(registry, ALICE, NAME)
        self.assertEqual((await self.manifest(registry, bearer)).status, 200)
        await registry.service.stopService()
        self.outlive(registry)
        registry.service.startService()
        answer = await self.manifest(registry, bearer)
        self.assertEqual(answer.status, 401)
        self.assertIn(f'scope="repository:{NAME}:pull"', answer.header("WWW-Authenticate") or "")
        again = await self.bearer(registry, ALICE, NAME)
        self.assertEqual((await self.manifest(registry, again)).status, 200)

    async def test_a_token_says_nothing_of_the_password(self) -> None:
        registry = self.proving()
        text = (await self.bearer(registry, ALICE, NAME))["Authorization"]
        claims = json.loads(b64decode(text.split(".")[1] + "==", b"-_"))
        self.assertEqual((claims["sub"], claims["kind"]), ("docker.io/alice", "upstream"))
        plain = PASSWORDS["alice"].encode()
        for secret in (PASSWORDS["alice"], *(new(n, plain).hexdigest() for n in HASHES)):
            self.assertNotIn(secret, json.dumps(claims))

    async def test_a_proof_of_one_image_is_none_of_another(self) -> None:
        self.hub.images.add_image("corp/other", "1", b"other")
        self.hub.private.add("corp/other")
        self.hub.readers["corp/other"] = {"builder", "bob"}
        registry = self.proving()
        other = "docker.io/corp/other"
        self.assertEqual((await self.manifest(registry, BOB, f"{other}:1")).status, 200)
        bearer = await self.bearer(registry, ALICE, NAME, other)
        self.assertEqual((await self.manifest(registry, bearer)).status, 200)
        self.assertNotEqual((await self.manifest(registry, bearer, f"{other}:1")).status, 200)

    async def test_while_the_upstream_is_down_a_token_is_given_for_what_was_proved(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        await self.hub.stop()
        bearer = await self.bearer(registry, ALICE, NAME, f"docker.io/{ABSENT}")
        self.assertEqual((await self.manifest(registry, bearer)).status, 200)
        self.assertEqual((await self.token(registry, ALICE, f"docker.io/{ABSENT}")).status, 502)
        self.assertEqual((await self.token(registry, BOB, NAME)).status, 502)

    async def test_anybodys_token_is_for_what_anybody_may_have(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        bearer = await self.bearer(registry, {}, NAME, f"docker.io/{PUBLIC}")
        self.assertEqual((await self.manifest(registry, bearer)).status, 401)
        answer = await self.manifest(registry, bearer, f"docker.io/{PUBLIC}:3")
        self.assertEqual(answer.status, 200)


RULES = """
[[access]]
who = ["user:alice"]
may = ["pull", "push", "delete", "administer"]
images = ["*"]

[[access]]
who = ["upstream:docker.io/*"]
may = ["pull"]
images = ["docker.io/*"]

[[access]]
who = ["anonymous"]
may = ["pull", "push"]
images = ["local/shared"]

[[access]]
who = ["authenticated"]
may = ["pull"]
images = ["local/*"]
"""


class AccountTests(ProofCase):
    """With users of its own; alice is one here too, with another password."""

    rules = RULES

    def registry(self) -> Served:
        self.rules = f"{self.users()}\n{RULES}"
        return self.proving()

    async def test_an_account_here_is_none_there(self) -> None:
        registry = self.registry()
        await self.cached(registry)
        answer = await self.manifest(registry, basic("alice"))
        self.assertEqual(self.refused(answer), (403, "DENIED"))
        self.assertIn(b"log in here as docker.io/<user>", answer.body)
        answer = await self.manifest(registry, basic("alice"), f"docker.io/{PUBLIC}:3")
        self.assertEqual(answer.status, 200)

    async def test_a_password_without_the_upstreams_name_is_not_shown_to_it(self) -> None:
        registry = self.registry()
        for who in (as_user("alice"), as_user("bob"), basic("alice", "mistyped")):
            self.assertEqual((await self.manifest(registry, who)).status, 401)
        self.assertEqual(self.hub.requests, [])

    async def test_the_rules_say_who_may_at_all(self) -> None:
        registry = self.registry()
        await self.cached(registry)
        self.assertEqual((await self.manifest(registry, {})).status, 401)
        self.assertEqual(self.refused(await self.manifest(registry, basic("bob")))[0], 403)
        self.hub.forget_requests()
        # Nobody whom no rule lets pull makes the upstream be asked.
        await self.manifest(registry, basic("bob"), f"docker.io/{ABSENT}:1")
        self.assertEqual(self.hub.requests, [])

    async def test_who_is_known_upstream_is_not_thereby_known_here(self) -> None:
        registry = self.registry()
        path = "/v2/local/private/tags/list"
        self.assertEqual((await registry.request("GET", path, headers=ALICE)).status, 403)
        self.assertEqual((await registry.request("GET", path, headers=basic("bob"))).status, 404)

    async def test_a_mount_from_it_wants_the_proof(self) -> None:
        registry = self.registry()
        await self.cached(registry)
        mount = f"/v2/local/shared/blobs/uploads/?mount={self.blob}&from={NAME}"
        self.assertEqual((await registry.request("POST", mount, headers=BOB)).status, 202)
        self.assertEqual(
            (await registry.request("POST", mount, headers=basic("alice"))).status, 202
        )
        self.assertEqual((await registry.request("POST", mount, headers=ALICE)).status, 201)

    async def test_a_refusal_is_in_the_audit_log(self) -> None:
        audit = self.mktemp()
        self.rules = f"{self.users()}\n{RULES}"
        registry = Served.start(self, self.settings(), audit_log=audit)
        await self.cached(registry)
        await self.manifest(registry, BOB)
        lines = [json.loads(line) for line in Path(audit).read_text("utf-8").splitlines()]
        (line,) = [each for each in lines if each["outcome"] == "refused"]
        self.assertEqual(
            (line["who"], line["image"], line["code"]), ("upstream:docker.io/bob", NAME, "DENIED")
        )


class PushTests(ProofCase):
    rules = f"""
{ANYBODY}
[[access]]
who = ["anonymous"]
may = ["pull", "push"]
images = ["local/*"]
"""

    async def test_a_push_takes_over_no_blob_that_its_sender_may_not_have(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        await self.manifest(registry, ALICE, f"{APP}:1")
        content = (await self.manifest(registry, ALICE)).body
        kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        path = f"/v2/{APP}/manifests/stolen"
        answer = await registry.request("PUT", path, content, {**BOB, **kind})
        self.assertEqual(self.refused(answer), (400, "MANIFEST_BLOB_UNKNOWN"))
        answer = await registry.request("PUT", path, content, {**ALICE, **kind})
        self.assertEqual(answer.status, 201, answer.body)
        self.assertEqual(Digest.of(content), self.digest)
