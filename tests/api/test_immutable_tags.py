"""Tags that clients push once."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog.records import ImmutableTags
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest, ImageName
from tests.api.case import ApiTestCase
from tests.api.guarded import BLOB, CONFIG, GuardedCase
from tests.api.served import image_index, image_manifest

FIRST = image_manifest(CONFIG, BLOB)
SECOND = image_manifest(CONFIG, BLOB, annotations={"a": "b"})
TYPE = {"Content-Type": OCI_MANIFEST}


class ImmutableTagTests(ApiTestCase):
    toml = '[repository.local]\nkind = "local"\nimmutable_tags = ["v*"]\n'

    async def push(self) -> None:
        """Push both manifests, the first as v1 and the second as latest."""
        for blob in (CONFIG, BLOB):
            await self.registry.push_blob("hello", blob)
        await self.registry.push_manifest("hello", "v1", FIRST)
        await self.registry.push_manifest("hello", "latest", SECOND)

    async def test_it_is_not_moved_and_the_refusal_says_why(self) -> None:
        await self.push()
        before = self.state()
        for path in ("v1", f"{Digest.of(SECOND)}?tag=latest&tag=v1"):
            answer = await self.refused(
                403, "DENIED", "PUT", f"/v2/hello/manifests/{path}", SECOND, TYPE
            )
            (error,) = json.loads(answer.body)["errors"]
            for part in ("v1", '"v*"', str(Digest.of(FIRST))):
                self.assertIn(part, error["message"])
            self.assertEqual(error["detail"]["current"], str(Digest.of(FIRST)))
        self.assertEqual(self.state(), before)

    async def test_the_same_manifest_may_be_pushed_again(self) -> None:
        await self.push()
        await self.accepted(201, "PUT", "/v2/hello/manifests/v1", FIRST, TYPE)

    async def test_other_tags_are_moved_and_deleted(self) -> None:
        await self.push()
        await self.accepted(201, "PUT", "/v2/hello/manifests/latest", FIRST, TYPE)
        await self.accepted(202, "DELETE", "/v2/hello/manifests/latest")
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{Digest.of(SECOND)}")

    async def test_neither_it_nor_its_manifest_is_deleted(self) -> None:
        await self.push()
        before = self.state()
        for reference in ("v1", str(Digest.of(FIRST))):
            await self.refused(403, "DENIED", "DELETE", f"/v2/hello/manifests/{reference}")
        self.assertEqual(self.state(), before)
        await self.accepted(200, "GET", "/v2/hello/manifests/v1")


class ContentTests(ApiTestCase):
    """What belongs to a tag that stays, stays too, also where held content may be deleted."""

    toml = (
        '[repository.local]\nkind = "local"\nimmutable_tags = ["v*"]\ndelete_held = true\n'
        "other_media_types = true\n"
    )

    async def test_neither_a_child_nor_a_blob_is_deleted(self) -> None:
        for blob in (CONFIG, BLOB):
            await self.registry.push_blob("hello", blob)
        await self.registry.push_manifest("hello", "child", FIRST)
        index = image_index(FIRST)
        await self.accepted(
            201, "PUT", "/v2/hello/manifests/v1", index, {"Content-Type": OCI_INDEX}
        )
        child = f"/v2/hello/manifests/{Digest.of(FIRST)}"
        for path in (child, f"/v2/hello/blobs/{Digest.of(BLOB)}"):
            answer = await self.refused(403, "DENIED", "DELETE", path)
            (error,) = json.loads(answer.body)["errors"]
            self.assertEqual(error["detail"]["current"], str(Digest.of(index)))
        await self.accepted(202, "DELETE", "/v2/hello/manifests/child")
        await self.registry.push_blob("hello", b"loose")
        await self.accepted(202, "DELETE", f"/v2/hello/blobs/{Digest.of(b'loose')}")

    async def test_it_keeps_its_media_type(self) -> None:
        content = b'{"schemaVersion": 2}'
        kinds = ({"Content-Type": f"application/x.{kind}+json"} for kind in ("one", "other"))
        first, other = kinds
        path = f"/v2/hello/manifests/{Digest.of(content)}"
        await self.accepted(201, "PUT", "/v2/hello/manifests/latest", content, first)
        await self.accepted(201, "PUT", path, content, other)
        await self.accepted(201, "PUT", "/v2/hello/manifests/v1", content, other)
        await self.accepted(201, "PUT", path, content, other)
        for again in (path, "/v2/hello/manifests/v1", "/v2/hello/manifests/latest"):
            await self.refused(403, "DENIED", "PUT", again, content, first)


class HiddenDigestTests(GuardedCase):
    rules = GuardedCase.rules.replace(', "docker.io/*"', "") + (
        '\n[repository.local]\nkind = "local"\nimmutable_tags = ["team/*:v*"]\n'
    )

    async def test_a_client_that_may_not_pull_learns_no_digest(self) -> None:
        await self.have("team/app")
        for who, learns in (("writer", False), ("alice", True)):
            answer = await self.ask("PUT", "/v2/team/app/manifests/v1", who, SECOND, TYPE)
            self.assertEqual(answer.status, 403, answer.body)
            self.assertEqual(str(Digest.of(FIRST)).encode() in answer.body, learns)

    async def test_it_is_for_the_images_that_the_pattern_names(self) -> None:
        await self.have("team/app", "public/app")
        answer = await self.ask("DELETE", "/v2/public/app/manifests/v1", "alice")
        self.assertEqual(answer.status, 202)
        answer = await self.ask("DELETE", "/v2/team/app/manifests/v1", "alice")
        self.assertEqual(answer.status, 403)


class PatternTests(SynchronousTestCase):
    def test_the_first_that_matches_is_the_rule(self) -> None:
        image = ImageName("local", "team/app")
        tags = ImmutableTags(("v*", "team/*:release", "[0-9]*"))
        for tag, rule in (
            ("v1", "v*"),
            ("release", "team/*:release"),
            ("1.0", "[0-9]*"),
            ("latest", None),
            ("av1", None),
        ):
            self.assertEqual(tags.rule(image, tag), rule, tag)
        self.assertIsNone(tags.rule(ImageName("local", "app"), "release"))
