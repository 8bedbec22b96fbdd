"""Proof of access: upstreams that are not as Docker Hub, several, and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from artifactd.kit.start import StartError
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest
from artifactd.settings.settings import Settings
from tests.api.served import Served
from tests.process import Answer
from tests.pull.mirrors import FULL, Instead, Without, side_by_side
from tests.pull.proving import ABSENT, ANYBODY, APP, PASSWORDS, PUBLIC, ProofCase, as_user
from tests.upstreams.faulty import Fault, Garbage, RedirectTo, Status
from tests.upstreams.hub import Hub

ALICE, BOB = as_user("docker.io/alice"), as_user("docker.io/bob")
NAME = f"docker.io/{APP}"
OURS: dict[str, Any] = {"username": "builder", "password": PASSWORDS["builder"]}


class UpstreamTests(ProofCase):
    async def test_many_layers_at_once_ask_once(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        self.outlive(registry)
        await registry.service.stopService()
        registry.service.startService()
        self.hub.forget_requests()
        path = f"/v2/{NAME}/blobs/{self.blob}"
        pulls = [registry.request("GET", path, headers=ALICE) for _ in range(8)]
        answers = await gatherResults([Deferred.fromCoroutine(pull) for pull in pulls])
        self.assertEqual({answer.status for answer in answers}, {200})
        self.assertEqual(self.hub.count("HEAD", "/v2/*/manifests/*"), 2)  # 401, and with the token

    async def test_a_page_that_anybody_gets_is_no_proof(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        self.hub.challenges = False
        self.hub.images.add_image(ABSENT, "1", b"secret")
        self.hub.faults.add(Garbage(), on=f"/v2/{ABSENT}/tags/list", times=None)
        answer = await registry.request("GET", f"/v2/docker.io/{ABSENT}/tags/list")
        self.assertEqual(answer.status, 401, answer.body)

    async def test_neither_is_where_the_upstream_leads_to(self) -> None:
        elsewhere = Hub.start(self, self.hub.backing)
        elsewhere.challenges = False
        registry = self.proving()
        await self.cached(registry)
        self.hub.challenges = False
        for tail in ("manifests/1", "tags/list"):
            leads = RedirectTo(f"{elsewhere.url}/v2/{APP}/{tail}")
            self.hub.faults.add(leads, on=f"/v2/{APP}/{tail}", method="*", times=None)
        for who, status in (({}, 401), (BOB, 403)):
            answer = await self.manifest(registry, who)
            self.assertEqual(answer.status, status, answer.body)
        self.assertTrue(elsewhere.requests)

    async def test_who_may_pull_and_not_list_has_proved_it_by_pulling(self) -> None:
        self.hub.faults.add(Status(403), on="/v2/*/tags/list", times=None)
        self.hub.images.add_image(APP, "latest", b"layer")
        registry = self.proving()
        # Of a blob no manifest is known yet.
        path = f"/v2/{NAME}/blobs/{self.blob}"
        self.assertEqual((await registry.request("GET", path, headers=ALICE)).status, 200)
        self.assertEqual((await registry.request("GET", path, headers=BOB)).status, 403)

    async def test_a_tag_that_is_gone_there_is_not_taken_for_a_refusal(self) -> None:
        registry = self.proving()
        answer = await self.manifest(registry, ALICE, f"{NAME}:absent")
        self.assertEqual(answer.status, 404, answer.body)
        self.assertEqual((await self.manifest(registry, ALICE)).status, 200)

    async def test_an_upstream_that_asks_nobody_who_he_is_says_nothing_of_a_login(self) -> None:
        self.hub.challenges = False
        self.rules = '[[access]]\nwho = ["upstream:docker.io/*"]\nmay = ["pull"]\nimages = ["*"]\n'
        registry = self.proving()
        answer = await self.manifest(registry, as_user("docker.io/alice", "anything"))
        self.assertEqual(answer.status, 401)  # no rule is for those whom it does not know

    async def test_what_it_lets_everybody_have_all_the_same_is_had(self) -> None:
        self.hub.challenges = False
        registry = self.proving()
        for who in ({}, as_user("docker.io/alice", "anything")):
            answer = await self.manifest(registry, who, f"docker.io/{PUBLIC}:3")
            self.assertEqual(answer.status, 200, answer.body)

    async def test_a_token_service_that_fails_is_no_wrong_password(self) -> None:
        registry = self.proving()
        await self.cached(registry)
        self.outlive(registry)
        await registry.service.stopService()
        registry.service.startService()
        self.hub.faults.add(Status(500), on="/token", times=None)
        answer = await self.manifest(registry, ALICE)
        self.assertEqual(answer.status, 502, answer.body)
        self.hub.faults.clear()
        self.assertEqual((await self.manifest(registry, ALICE)).status, 200)

    async def test_what_others_make_fail_there_does_not_keep_us_from_asking(self) -> None:
        registry = self.proving()
        self.hub.faults.add(Status(500), on="/token", times=None)
        for number in range(6):
            who = as_user(f"docker.io/bob{number}", "x")
            self.assertEqual((await self.manifest(registry, who)).status, 502)
        self.hub.faults.clear()
        target = registry.parts.registry.for_operator().target(NAME)
        found = await target.readable.manifest(target.image, self.digest)
        self.assertEqual(found.record.digest, self.digest)


class ManifestProofTests(ProofCase):
    """Bob asks for what is here, of an upstream that answers 200 to everybody."""

    def setUp(self) -> None:
        super().setUp()
        self.registry = self.proving()

    async def ask(self, reference: str | Digest, who: dict[str, str]) -> Answer:
        """Ask for the manifest, by ``reference``, with nothing remembered."""
        self.outlive(self.registry)
        await self.registry.service.stopService()
        self.registry.service.startService()
        path = f"/v2/{NAME}/manifests/{reference}"
        return await self.registry.request("GET", path, headers={**FULL, **who})

    async def answering(self, *faults: Fault, method: str = "*") -> None:
        """Let the manifest be here, and the upstream challenge nobody and have ``faults``."""
        await self.cached(self.registry)
        self.hub.challenges = False
        for fault in faults:
            self.hub.faults.add(fault, on=f"/v2/{APP}/manifests/*", method=method, times=None)

    async def assert_proves_nothing(self) -> None:
        for reference in ("1", self.digest):
            self.assertEqual((await self.ask(reference, {})).status, 401)
            for who in (BOB, ALICE):
                answer = await self.ask(reference, who)
                self.assertEqual(self.refused(answer), (502, "UNKNOWN"))
        # It is not remembered as a proof either.
        self.hub.faults.clear()
        self.hub.challenges = True
        self.assertEqual((await self.ask(self.digest, BOB)).status, 403)
        self.assertEqual((await self.ask(self.digest, ALICE)).status, 200)

    async def test_a_page_for_people_is_no_proof(self) -> None:
        await self.answering(Garbage())
        await self.assert_proves_nothing()

    async def test_neither_is_a_document_that_is_no_manifest(self) -> None:
        await self.answering(Instead(b'{"login": true}', "application/json"))
        await self.assert_proves_nothing()

    async def test_nor_one_that_only_says_that_it_is(self) -> None:
        unnamed = Without("Docker-Content-Digest")
        await self.answering(Instead(b'{"login": true}', OCI_MANIFEST), unnamed)
        await self.assert_proves_nothing()

    async def test_one_that_another_program_wrote_is(self) -> None:
        sent = json.loads(self.hub.images.manifest_of(APP, "1"))
        content = json.dumps({**sent, "layers": None, "annotations": {"a": 1}}).encode()
        await self.answering(Instead(content, "text/plain"), Without("Docker-Content-Digest"))
        self.assertEqual((await self.ask("1", BOB)).status, 200)

    async def test_another_manifest_is_no_proof_for_the_one_that_is_asked_for(self) -> None:
        other = {"Docker-Content-Digest": str(Digest.of(b"another"))}
        await self.answering(Instead(b"", OCI_MANIFEST, other))
        for who, status in (({}, 401), (BOB, 502)):
            self.assertEqual((await self.ask(self.digest, who)).status, status)

    async def test_a_type_that_is_not_known_is_a_manifests_where_the_digest_says_so(self) -> None:
        named = {"Docker-Content-Digest": str(self.digest)}
        kind = "application/vnd.example.thing+json"
        await self.answering(Instead(b"{}", kind, named))
        self.assertEqual((await self.ask("1", BOB)).status, 502)
        self.assertEqual((await self.ask(self.digest, BOB)).status, 200)

    async def test_where_the_headers_do_not_tell_the_bytes_do(self) -> None:
        for header in ("Docker-Content-Digest", "Content-Type"):
            await self.answering(Without(header))
            self.hub.forget_requests()
            for reference in ("1", self.digest):
                self.assertEqual((await self.ask(reference, BOB)).status, 200)
                self.assertEqual(self.hub.count("GET", "/v2/*/manifests/*"), 1)
                self.hub.forget_requests()
            self.hub.faults.clear()
            self.hub.challenges = True

    async def test_they_do_where_head_is_refused_or_wrong(self) -> None:
        wrong = {"Docker-Content-Digest": str(Digest.of(b"another"))}
        faults: Sequence[Fault] = (
            *(Status(status) for status in (400, 401, 403, 404, 405, 406, 500)),
            Garbage(),
            Instead(b"", OCI_MANIFEST, wrong),
        )
        for fault in faults:
            self.registry = self.proving()
            await self.cached(self.registry)
            self.hub.faults.add(fault, on=f"/v2/{APP}/manifests/*", method="HEAD", times=None)
            for who, status in ((ALICE, 200), (BOB, 403)):
                self.assertEqual((await self.ask(self.digest, who)).status, status, fault)
            self.hub.faults.clear()

    async def test_they_do_where_the_digest_is_one_of_another_algorithm(self) -> None:
        other = {"Docker-Content-Digest": str(Digest.of(b"another", Algorithm.SHA512))}
        await self.answering(Instead(b"", OCI_MANIFEST, other), method="HEAD")
        self.assertEqual((await self.ask(self.digest, BOB)).status, 200)
        self.hub.faults.add(Garbage(), on=f"/v2/{APP}/manifests/*", times=None)
        self.assertEqual((await self.ask(self.digest, BOB)).status, 502)


class SeveralTests(ProofCase):
    """Two upstreams that want proof, and one that doesn't."""

    async def test_each_is_shown_its_own_credentials_alone(self) -> None:
        other, third = Hub.start(self), Hub.start(self)
        for hub in (other, third):
            hub.tokens.users.update(PASSWORDS)
            hub.images.add_image(APP, "1", b"other")
            hub.private.add(APP)
        hubs = {"docker.io": self.hub, "ghcr.io": other}
        text = side_by_side(hubs, None, proof_of_access=True, negative_freshness="0s", **OURS)
        text = text.replace("[default]", f"{_open(third)}\n[default]")
        rules = ANYBODY.replace("docker.io/*", "*")
        registry = Served.start(self, f"{rules}\n{text}")
        for name, status in (("docker.io", 200), ("ghcr.io", 403), ("quay.io", 200)):
            answer = await self.manifest(registry, ALICE, f"{name}/{APP}:1")
            self.assertEqual(answer.status, status, (name, answer.body))
        shown = as_user("alice")["Authorization"]
        for hub, times in ((self.hub, True), (other, False), (third, False)):
            asked = [each for each in hub.requests if each.headers.get("authorization") == shown]
            self.assertEqual(bool(asked), times)

    async def test_which_is_meant_has_to_be_said(self) -> None:
        other = Hub.start(self)
        hubs = {"docker.io": self.hub, "ghcr.io": other}
        text = side_by_side(hubs, None, proof_of_access=True, **OURS)
        registry = Served.start(self, f"{ANYBODY}\n{text}")
        self.assertEqual((await self.manifest(registry, as_user("alice"))).status, 401)
        self.assertEqual([*self.hub.requests, *other.requests], [])


def _open(hub: Hub) -> str:
    """An upstream whose images are for whom the rules let have them."""
    settings = {"kind": "remote", "upstream": hub.url, "retries": 0, **OURS}
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    return f'[repository."quay.io"]\n{"".join(lines)}'


class SettingsTests(ProofCase):
    def refusal(self, text: str) -> str:
        path = Path(self.mktemp())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        with self.assertRaises(StartError) as caught:
            Settings.load(path, {})
        return str(caught.exception).removeprefix(f"{path}: ")

    def test_it_wants_a_login_of_ours(self) -> None:
        told = self.refusal(self.settings(username="", password=""))
        self.assertEqual(
            told,
            'repository."docker.io".proof_of_access: expected username and a password, or'
            " credential_command, with it: what others have shown that they may have is fetched"
            " with them",
        )

    def test_it_wants_rules(self) -> None:
        self.rules = ""
        self.assertIn("access: expected at least one [[access]]", self.refusal(self.settings()))

    def test_a_rule_for_those_of_an_upstream_names_one_that_wants_proof(self) -> None:
        for who in ("upstream:ghcr.io/*", "upstream:docker.io", "upstream:*"):
            self.rules = ANYBODY.replace("anonymous", who)
            self.assertEqual(
                self.refusal(self.settings()),
                "access[0].who: expected configured repositories with proof_of_access, as"
                f' <repository>/* ("docker.io"), got "{who.partition(":")[2]}"',
            )

    def test_a_name_that_an_upstream_need_not_verify_gets_no_rule_of_its_own(self) -> None:
        for user in ("alice", "a*", "?", "*/*"):
            self.rules = ANYBODY.replace("anonymous", f"upstream:docker.io/{user}")
            self.assertEqual(
                self.refusal(self.settings()),
                'access[0].who: expected "upstream:docker.io/*", got'
                f' "upstream:docker.io/{user}": an upstream need not verify the user\'s name, so'
                " that anybody with an account there can take any",
            )

    def test_those_of_an_upstream_may_be_let_pull_and_no_more(self) -> None:
        for action in ("push", "delete", "administer"):
            rule = ANYBODY.replace('"anonymous"', '"anonymous", "upstream:docker.io/*"')
            self.rules = rule.replace('["pull"]', f'["pull", "{action}"]')
            self.assertEqual(
                self.refusal(self.settings()),
                'access[0].may: expected "pull" alone for "upstream:docker.io/*", got'
                f' "{action}": anybody may have an account there; let accounts of this registry do'
                " it, in another rule",
            )
