"""The right to push what is not there, without the right to move what is."""

from __future__ import annotations

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.guarded import BLOB, CONFIG, RULES, GuardedCase
from tests.api.served import image_manifest
from tests.process import Answer

FIRST = image_manifest(CONFIG, BLOB)
SECOND = image_manifest(CONFIG, BLOB, annotations={"a": "b"})
TYPE = {"Content-Type": OCI_MANIFEST}
V1, V2 = (f"/v2/team/app/manifests/{tag}" for tag in ("v1", "v2"))
READ = 'may = ["pull"]\nimages = ["local/team/*"'
WRITE = 'may = ["push"]\nimages = ["local/team/*"'


class CreateCase(GuardedCase):
    """Bob and writer may create; writer may not pull."""

    rules = RULES.replace(READ, READ.replace('"pull"', '"pull", "create"')).replace(
        WRITE, WRITE.replace("push", "create")
    )

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        super().setUp()
        await self.have("team/app")

    def assert_exists(self, answer: Answer, rule: str) -> str:
        """The refusal names what is there, and the rule; its whole text."""
        detail = self.assert_error(answer, 403, "DENIED")
        self.assertIn(rule, detail["rule"])
        text = answer.body.decode()
        for part in (detail["reference"], rule, "only what is not"):
            self.assertIn(part, text)
        return text


class CreateRightTests(CreateCase):
    async def test_a_new_tag_is_created_and_the_same_digest_again_is_201(self) -> None:
        for _ in range(2):
            self.assertEqual(await self.status("PUT", V2, "bob", body=SECOND, headers=TYPE), 201)
        path = f"/v2/team/app/manifests/{Digest.of(FIRST)}?tag=new&tag=v1"
        self.assertEqual(await self.status("PUT", path, "bob", body=FIRST, headers=TYPE), 201)

    async def test_blobs_are_pushed_and_mounted(self) -> None:
        await self.have("team/other")
        uploads = "/v2/team/app/blobs/uploads/"
        path = f"{uploads}?digest={Digest.of(b'new')}"
        self.assertEqual(await self.status("POST", path, "bob", body=b"new"), 201)
        mount = f"/v2/team/third/blobs/uploads/?mount={Digest.of(BLOB)}&from=team/other"
        self.assertEqual(await self.status("POST", mount, "bob"), 201)
        answer = await self.ask("POST", uploads, "bob")
        location = answer.header("Location") or ""
        self.assertEqual(await self.status("DELETE", location, "bob"), 204)

    async def test_a_tag_that_is_there_is_not_moved(self) -> None:
        before = self.state()
        for path in (V1, f"/v2/team/app/manifests/{Digest.of(SECOND)}?tag=v3&tag=v1"):
            answer = await self.ask("PUT", path, "bob", SECOND, TYPE)
            self.assertIn(str(Digest.of(FIRST)), self.assert_exists(answer, "access[1]"))
        self.assertEqual(self.state(), before)
        self.assertEqual(await self.status("PUT", V1, "alice", body=SECOND, headers=TYPE), 201)

    async def test_who_may_not_pull_learns_no_digest(self) -> None:
        answer = await self.ask("PUT", V1, "writer", SECOND, TYPE)
        self.assertNotIn("sha256:", self.assert_exists(answer, "access[2]"))

    async def test_nothing_is_deleted(self) -> None:
        for path in (V1, f"/v2/team/app/manifests/{Digest.of(FIRST)}"):
            self.assertEqual(await self.status("DELETE", path, "bob"), 403)

    async def test_who_may_not_create_is_told_that_they_may_not_push(self) -> None:
        answer = await self.ask("PUT", V2, "nobody", SECOND, TYPE)
        detail = self.assert_error(answer, 403, "DENIED")
        self.assertEqual(detail["action"], "push")


class MediaTypeTests(CreateCase):
    rules = CreateCase.rules.replace(', "docker.io/*"', "")
    toml = '[repository.local]\nkind = "local"\nother_media_types = true\n'

    async def test_a_manifest_that_is_there_keeps_it(self) -> None:
        content = b'{"schemaVersion": 2}'
        one, other = ({"Content-Type": f"application/x.{kind}+json"} for kind in ("one", "other"))
        path = f"/v2/team/app/manifests/{Digest.of(content)}"
        self.assertEqual(await self.status("PUT", path, "bob", body=content, headers=one), 201)
        self.assertEqual(await self.status("PUT", path, "bob", body=content, headers=one), 201)
        self.assert_exists(await self.ask("PUT", path, "bob", content, other), "access[1]")
        self.assertEqual(await self.status("PUT", path, "alice", body=content, headers=other), 201)


class TokenTests(CreateCase):
    tokens = True

    async def put(self, path: str, token: str, content: bytes) -> Answer:
        return await self.with_token(token, "PUT", path, body=content, headers=TYPE)

    async def test_a_token_for_push_lets_no_more_than_the_rules(self) -> None:
        token = await self.token("repository:team/app:pull,push", who="bob")
        self.assertEqual((await self.put(V2, token, SECOND)).status, 201)
        self.assert_exists(await self.put(V1, token, SECOND), "access[1]")

    async def test_a_token_for_create_lets_nobody_move_a_tag(self) -> None:
        token = await self.token("repository:team/app:pull,create", who="alice")
        self.assertEqual((await self.put(V2, token, SECOND)).status, 201)
        self.assert_exists(await self.put(V1, token, SECOND), "the scope of the token")
        token = await self.token("repository:team/app:pull,push", who="alice")
        self.assertEqual((await self.put(V1, token, SECOND)).status, 201)

    async def test_a_token_for_pull_creates_nothing_and_the_challenge_names_push(self) -> None:
        token = await self.token("repository:team/app:pull", who="bob")
        answer = await self.put(V2, token, SECOND)
        self.assert_error(answer, 401, "UNAUTHORIZED")
        self.assertIn(
            'scope="repository:team/app:pull,push"', answer.header("WWW-Authenticate") or ""
        )
