"""distribution-spec, "Pull": end-1, end-2, end-3."""

from __future__ import annotations

import json

from artifactd.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest
from tests.api.case import ApiTestCase
from tests.api.served import image_manifest

ABSENT = Digest.of(b"absent")


class VersionTests(ApiTestCase):
    """end-1."""

    async def test_the_registry_says_that_it_implements_the_spec(self) -> None:
        for path in ("/v2/", "/v2"):
            answer = await self.accepted(200, "GET", path)
            self.assertEqual(answer.body, b"{}")
            self.assertEqual(answer.header("Docker-Distribution-Api-Version"), "registry/2.0")

    async def test_the_daemon_says_that_it_is_well(self) -> None:
        for path in ("/healthz", "/readyz"):
            answer = await self.accepted(200, "GET", path)
            self.assertEqual(json.loads(answer.body), {"status": "ok"})


class BlobTests(ApiTestCase):
    """end-2."""

    async def test_a_blob_is_pulled_as_it_was_pushed(self) -> None:
        digest = await self.registry.push_blob("hello", b"content")
        answer = await self.accepted(200, "GET", f"/v2/hello/blobs/{digest}")
        self.assertEqual(answer.body, b"content")
        expected = {
            "Docker-Content-Digest": str(digest),
            "Content-Length": "7",
            "Content-Type": "application/octet-stream",
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "max-age=31536000, immutable",
            "X-Artifact-Source": "local",
            "Docker-Distribution-Api-Version": "registry/2.0",
        }
        self.assertEqual({name: answer.header(name) for name in expected}, expected)

    async def test_head_of_a_blob_is_its_get_without_the_body(self) -> None:
        digest = await self.registry.push_blob("hello", b"content")
        got = await self.accepted(200, "GET", f"/v2/hello/blobs/{digest}")
        head = await self.accepted(200, "HEAD", f"/v2/hello/blobs/{digest}")
        self.assertEqual(head.body, b"")
        for name in got.headers:
            if name not in ("Date", "Server-Timing"):
                self.assertEqual(head.header(name), got.header(name), name)

    async def test_a_blob_too_large_for_one_write_is_pulled_whole(self) -> None:
        content = bytes(range(256)) * 20_000
        digest = await self.registry.push_blob("hello", content)
        answer = await self.accepted(200, "GET", f"/v2/hello/blobs/{digest}")
        self.assertEqual(Digest.of(answer.body), digest)

    async def test_a_blob_of_no_bytes_is_pulled(self) -> None:
        digest = await self.registry.push_blob("hello", b"")
        for method in ("GET", "HEAD"):
            answer = await self.accepted(200, method, f"/v2/hello/blobs/{digest}")
            self.assertEqual((answer.header("Content-Length"), answer.body), ("0", b""))

    async def test_a_blob_is_pulled_by_its_sha512_digest(self) -> None:
        digest = await self.registry.push_blob("hello", b"content", Algorithm.SHA512)
        answer = await self.accepted(200, "GET", f"/v2/hello/blobs/{digest}")
        self.assertEqual(answer.body, b"content")
        self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))

    async def test_an_absent_blob_is_unknown(self) -> None:
        await self.registry.push_blob("hello", b"content")
        answer = await self.refused(404, "BLOB_UNKNOWN", "GET", f"/v2/hello/blobs/{ABSENT}")
        self.assertIn(str(ABSENT), answer.body.decode())
        head = await self.accepted(404, "HEAD", f"/v2/hello/blobs/{ABSENT}")
        self.assertEqual(head.body, b"")

    async def test_a_blob_is_pulled_only_from_images_that_hold_it(self) -> None:
        digest = await self.registry.push_blob("hello", b"content")
        await self.registry.push_blob("other", b"other")
        for name in ("other", "nobody"):
            await self.refused(404, "BLOB_UNKNOWN", "GET", f"/v2/{name}/blobs/{digest}")
            await self.accepted(404, "HEAD", f"/v2/{name}/blobs/{digest}")

    async def test_what_is_no_digest_is_refused(self) -> None:
        for text in ("latest", "sha256:abc", f"sha256:{'A' * 64}", f"md5:{'a' * 32}", "sha256:"):
            await self.refused(400, "DIGEST_INVALID", "GET", f"/v2/hello/blobs/{text}")


class ManifestTests(ApiTestCase):
    """end-3."""

    async def test_a_manifest_is_pulled_as_it_was_pushed(self) -> None:
        content = b" \n" + image_manifest(b"{}").replace(b": ", b":\t") + b"\n"
        await self.registry.push_blob("hello", b"{}")
        digest = await self.registry.push_manifest("hello", "v1", content)
        self.assertEqual(digest, Digest.of(content))
        for reference in ("v1", str(digest)):
            answer = await self.accepted(200, "GET", f"/v2/hello/manifests/{reference}")
            self.assertEqual(answer.body, content)
            expected = {
                "Docker-Content-Digest": str(digest),
                "Content-Length": str(len(content)),
                "Content-Type": OCI_MANIFEST,
                "ETag": f'"{digest}"',
                "X-Artifact-Source": "local",
                "Docker-Distribution-Api-Version": "registry/2.0",
            }
            self.assertEqual({name: answer.header(name) for name in expected}, expected)

    async def test_head_of_a_manifest_is_its_get_without_the_body(self) -> None:
        digest = await self.registry.push_image("hello", "v1", b"layer")
        for reference in ("v1", str(digest)):
            got = await self.accepted(200, "GET", f"/v2/hello/manifests/{reference}")
            head = await self.accepted(200, "HEAD", f"/v2/hello/manifests/{reference}")
            self.assertEqual(head.body, b"")
            for name in got.headers:
                if name not in ("Date", "Server-Timing"):
                    self.assertEqual(head.header(name), got.header(name), name)

    async def test_its_type_is_the_one_it_was_pushed_as_without_parameters(self) -> None:
        await self.registry.push_blob("hello", b"{}")
        document = json.loads(image_manifest(b"{}"))
        del document["mediaType"]
        image = json.dumps(document).encode()
        index = b'{"schemaVersion": 2, "manifests": []}'
        pushed = (
            (OCI_MANIFEST, image),
            (DOCKER_MANIFEST, image + b" "),
            (OCI_INDEX, index),
            (DOCKER_LIST, index + b" "),
        )
        for media_type, content in pushed:
            sent = f"{media_type}; charset=utf-8"
            await self.registry.push_manifest("hello", "v1", content, sent)
            answer = await self.accepted(
                200, "GET", "/v2/hello/manifests/v1", headers={"Accept": "text/html"}
            )
            self.assertEqual(answer.header("Content-Type"), media_type)

    async def test_an_absent_manifest_is_unknown(self) -> None:
        await self.registry.push_image("hello", "v1")
        for path in ("hello/manifests/v2", f"hello/manifests/{ABSENT}"):
            await self.refused(404, "MANIFEST_UNKNOWN", "GET", f"/v2/{path}")
            head = await self.accepted(404, "HEAD", f"/v2/{path}")
            self.assertEqual(head.body, b"")

    async def test_nothing_is_pulled_from_an_unknown_name(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        for reference in ("v1", str(digest)):
            for method in ("GET", "HEAD"):
                await self.accepted(404, method, f"/v2/local/nobody/manifests/{reference}")

    async def test_what_is_neither_tag_nor_digest_is_refused(self) -> None:
        for reference in ("-v1", ".v1", "a" * 129, "a+b", "sha256:abc", f"md5:{'a' * 32}"):
            path = f"/v2/hello/manifests/{reference}"
            await self.refused(400, "MANIFEST_INVALID", "GET", path)
            head = await self.accepted(400, "HEAD", path)
            self.assertEqual(head.body, b"")

    async def test_a_tag_may_have_128_characters(self) -> None:
        tag = "_." + "A-" * 63
        digest = await self.registry.push_image("hello", tag)
        answer = await self.accepted(200, "HEAD", f"/v2/hello/manifests/{tag}")
        self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))
