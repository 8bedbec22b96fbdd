"""distribution-spec, "Content Management": end-9, end-10."""

from __future__ import annotations

import json

from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase
from tests.api.served import image_index, image_manifest

ABSENT = Digest.of(b"absent")


class TagTests(ApiTestCase):
    async def test_a_deleted_tag_is_gone_and_its_manifest_stays(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        answer = await self.accepted(202, "DELETE", "/v2/hello/manifests/v1")
        self.assertEqual(answer.body, b"")
        await self.refused(404, "MANIFEST_UNKNOWN", "GET", "/v2/hello/manifests/v1")
        await self.accepted(200, "GET", f"/v2/hello/manifests/{digest}")
        await self.refused(404, "MANIFEST_UNKNOWN", "DELETE", "/v2/hello/manifests/v1")

    async def test_other_tags_of_the_manifest_stay(self) -> None:
        await self.registry.push_image("hello", "v1")
        got = await self.accepted(200, "GET", "/v2/hello/manifests/v1")
        await self.registry.push_manifest("hello", "v2", got.body)
        await self.accepted(202, "DELETE", "/v2/hello/manifests/v1")
        await self.accepted(200, "GET", "/v2/hello/manifests/v2")


class ManifestTests(ApiTestCase):
    async def test_a_deleted_manifest_is_gone_with_all_its_tags(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        got = await self.accepted(200, "GET", "/v2/hello/manifests/v1")
        await self.registry.push_manifest("hello", "v2", got.body)
        await self.registry.push_image("hello", "v3", b"layer")
        path = f"/v2/hello/manifests/{digest}"
        answer = await self.accepted(202, "DELETE", path)
        self.assertEqual(answer.body, b"")
        for reference in ("v1", "v2", str(digest)):
            await self.refused(404, "MANIFEST_UNKNOWN", "GET", f"/v2/hello/manifests/{reference}")
        tags = await self.accepted(200, "GET", "/v2/hello/tags/list")
        self.assertEqual(json.loads(tags.body)["tags"], ["v3"])
        await self.refused(404, "MANIFEST_UNKNOWN", "DELETE", path)

    async def test_another_image_keeps_its_own(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        await self.registry.push_image("other", "v1")
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{digest}")
        await self.accepted(200, "GET", f"/v2/other/manifests/{digest}")

    async def test_it_can_be_pushed_again(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{digest}")
        await self.registry.push_image("hello", "v1")
        await self.accepted(200, "GET", f"/v2/hello/manifests/{digest}")

    async def test_nothing_is_deleted_from_an_unknown_image(self) -> None:
        for reference in ("v1", str(ABSENT)):
            path = f"/v2/nobody/manifests/{reference}"
            await self.refused(404, "NAME_UNKNOWN", "DELETE", path)

    async def test_what_is_no_reference_is_refused(self) -> None:
        for reference in ("-v1", "sha256:abc"):
            path = f"/v2/hello/manifests/{reference}"
            await self.refused(400, "MANIFEST_INVALID", "DELETE", path)

    async def test_a_manifest_that_an_index_holds_stays(self) -> None:
        child = image_manifest(b"{}")
        await self.registry.push_blob("hello", b"{}")
        digest = await self.registry.push_manifest("hello", "child", child)
        index = await self.registry.push_manifest("hello", "v1", image_index(child), OCI_INDEX)
        path = f"/v2/hello/manifests/{digest}"
        answer = await self.refused(405, "UNSUPPORTED", "DELETE", path)
        detail = self.assert_error(answer, 405, "UNSUPPORTED")
        self.assertEqual(detail, {"digest": str(digest), "heldBy": [str(index)]})
        await self.accepted(202, "DELETE", "/v2/hello/manifests/child")  # only the tag
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{index}")
        await self.accepted(202, "DELETE", path)


class BlobTests(ApiTestCase):
    async def test_a_deleted_blob_is_gone_from_that_image(self) -> None:
        digest = await self.registry.push_blob("hello", b"content")
        await self.registry.push_blob("other", b"content")
        path = f"/v2/hello/blobs/{digest}"
        answer = await self.accepted(202, "DELETE", path)
        self.assertEqual(answer.body, b"")
        await self.refused(404, "BLOB_UNKNOWN", "GET", path)
        await self.refused(404, "BLOB_UNKNOWN", "DELETE", path)
        await self.accepted(200, "GET", f"/v2/other/blobs/{digest}")

    async def test_a_blob_that_is_absent_is_unknown(self) -> None:
        await self.refused(404, "BLOB_UNKNOWN", "DELETE", f"/v2/hello/blobs/{ABSENT}")
        await self.refused(400, "DIGEST_INVALID", "DELETE", "/v2/hello/blobs/sha256:abc")

    async def test_a_blob_that_a_manifest_holds_stays(self) -> None:
        manifest = await self.registry.push_image("hello", "v1", b"layer")
        digest = Digest.of(b"layer")
        path = f"/v2/hello/blobs/{digest}"
        answer = await self.refused(405, "UNSUPPORTED", "DELETE", path)
        detail = self.assert_error(answer, 405, "UNSUPPORTED")
        self.assertEqual(detail, {"digest": str(digest), "heldBy": [str(manifest)]})
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{manifest}")
        await self.accepted(202, "DELETE", path)


class DeleteHeldTests(ApiTestCase):
    toml = '[repository.local]\nkind = "local"\ndelete_held = true'

    async def test_what_is_held_is_deleted_where_the_settings_allow_it(self) -> None:
        child = image_manifest(b"{}")
        blob = await self.registry.push_blob("hello", b"{}")
        digest = await self.registry.push_manifest("hello", "child", child)
        await self.registry.push_manifest("hello", "v1", image_index(child), OCI_INDEX)
        await self.accepted(202, "DELETE", f"/v2/hello/blobs/{blob}")
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{digest}")
        await self.accepted(200, "GET", "/v2/hello/manifests/v1")
