"""Manifests that are refused, and leave nothing; "Pushing Manifests" and the issue's limits."""

from __future__ import annotations

import json

from artifactd.oci.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase, Connection
from tests.api.served import CONFIG_TYPE, descriptor, image_index, image_manifest

PATH = "/v2/hello/manifests/v1"
IMAGE = {"Content-Type": OCI_MANIFEST}
INDEX = {"Content-Type": OCI_INDEX}
SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"


class RefusalTests(ApiTestCase):
    """One table of each kind; ``tests.oci`` has every way in which a document can be wrong."""

    async def test_what_is_no_manifest_or_no_reference_is_refused(self) -> None:
        await self.registry.push_blob("hello", b"{}")
        image, wrong = image_manifest(b"{}"), "MANIFEST_INVALID"
        for reference, media_type, body, code in (
            (str(Digest.of(b"other")), OCI_MANIFEST, image, "DIGEST_INVALID"),
            ("-v1", OCI_MANIFEST, image, wrong),
            ("a" * 129, OCI_MANIFEST, image, wrong),
            ("sha256:abc", OCI_MANIFEST, image, wrong),
            (f"md5:{'a' * 32}", OCI_MANIFEST, image, wrong),
            # types that the document contradicts, or that are none of a manifest
            ("v1", DOCKER_MANIFEST, image, wrong),
            ("v1", OCI_INDEX, image, wrong),
            *(("v1", t, b"{}", wrong) for t in (SIGNED, "text/plain", "application/json", "\xe9")),
            ("v1", "application/x+json", b"{}", wrong),
            ("v1", None, b'{"schemaVersion": 2, "manifests": []}', wrong),
            # documents
            ("v1", OCI_INDEX, image_index(layers=[descriptor(b"{}", OCI_MANIFEST)]), wrong),
            ("v1", OCI_MANIFEST, b"", wrong),
            ("v1", OCI_MANIFEST, b"[" * 100_000, wrong),
            ("v1", OCI_MANIFEST, image_manifest(b"{}", schemaVersion=1), wrong),
            ("v1", OCI_MANIFEST, image.replace(b'"config"', b'"unconfig"'), wrong),
            ("v1", OCI_MANIFEST, image_manifest(b"{}", Subject=descriptor(b"{}")), wrong),
            ("v1", OCI_MANIFEST, image.replace(b'"size": 2', b'"size": 2.0'), wrong),
            ("v1", OCI_MANIFEST, b"\xef\xbb\xbf" + image, wrong),
        ):
            headers = {} if media_type is None else {"Content-Type": media_type}
            path = f"/v2/hello/manifests/{reference}"
            await self.refused(400, code, "PUT", path, body, headers)


class ContentTests(ApiTestCase):
    async def test_blobs_that_are_absent_are_all_named(self) -> None:
        await self.registry.push_blob("hello", b"present")
        await self.registry.push_blob("other", b"layer")
        body = image_manifest(b"{}", b"layer", b"present", b"layer")
        answer = await self.refused(400, "MANIFEST_BLOB_UNKNOWN", "PUT", PATH, body, IMAGE)
        detail = self.assert_error(answer, 400, "MANIFEST_BLOB_UNKNOWN")
        expected = [str(Digest.of(content)) for content in (b"{}", b"layer")]
        self.assertEqual(detail, {"digests": expected})

    async def test_manifests_that_are_absent_from_the_image_are_all_named(self) -> None:
        held = await self.registry.push_image("hello", "held")
        elsewhere = await self.registry.push_image("other", "elsewhere")
        index = json.loads(image_index(b"absent"))
        index["manifests"] += [
            {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1}
            for digest in (held, elsewhere)
        ]
        body = json.dumps(index).encode()
        answer = await self.refused(400, "MANIFEST_BLOB_UNKNOWN", "PUT", PATH, body, INDEX)
        detail = self.assert_error(answer, 400, "MANIFEST_BLOB_UNKNOWN")
        self.assertEqual(detail, {"digests": [str(Digest.of(b"absent")), str(elsewhere)]})

    async def test_a_size_that_is_not_the_contents_is_refused(self) -> None:
        await self.registry.push_blob("hello", b"{}")
        image = json.loads(image_manifest(b"{}"))
        image["config"]["size"] = 3
        body = json.dumps(image).encode()
        await self.refused(400, "MANIFEST_INVALID", "PUT", PATH, body, IMAGE)
        child = image_manifest(b"{}")
        await self.registry.push_manifest("hello", "child", child)
        index = json.dumps(
            {
                **json.loads(image_index()),
                "manifests": [{**descriptor(child, OCI_MANIFEST), "size": 3}],
            }
        ).encode()
        await self.refused(400, "MANIFEST_INVALID", "PUT", PATH, index, INDEX)


class EarlyRefusalTests(ApiTestCase):
    """413, without reading on: the client is answered while it still has bytes to send."""

    async def test_a_length_over_the_limit_is_refused_before_the_body(self) -> None:
        connection = Connection(self, self.registry.port)
        await connection.head(
            f"PUT {PATH}", f"Content-Type: {OCI_MANIFEST}", f"Content-Length: {4 << 20 | 1}"
        )
        answer = await connection.answer()
        self.assert_error(answer, 413, "SIZE_INVALID")
        self.assertEqual(answer.header("Connection"), "close")

    async def test_a_body_of_unknown_length_is_refused_at_the_limit(self) -> None:
        connection = Connection(self, self.registry.port)
        await connection.head(
            f"PUT {PATH}", f"Content-Type: {OCI_MANIFEST}", "Transfer-Encoding: chunked"
        )
        piece = b" " * (1 << 20)
        for _ in range(5):
            await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        answer = await connection.answer()
        self.assert_error(answer, 413, "SIZE_INVALID")
        self.assertEqual(self.registry.files(), [])


class LimitTests(ApiTestCase):
    toml = 'max_manifest = "1KiB"'

    async def test_the_limit_is_a_setting(self) -> None:
        content = image_index()
        fitting = content + b" " * (1024 - len(content))
        await self.registry.push_manifest("hello", "v1", fitting, OCI_INDEX)
        await self.refused(413, "SIZE_INVALID", "PUT", PATH, fitting + b" ", INDEX)


class SparseIndexTests(ApiTestCase):
    toml = '[repository.local]\nkind = "local"\nsparse = "indexes"'

    async def test_an_index_may_hold_what_is_absent(self) -> None:
        held = image_manifest(b"{}")
        await self.registry.push_blob("hello", b"{}")
        await self.registry.push_manifest("hello", "held", held)
        await self.registry.push_manifest("hello", "v1", image_index(held, b"absent"), OCI_INDEX)

    async def test_an_image_may_not(self) -> None:
        body = image_manifest(b"{}")
        await self.refused(400, "MANIFEST_BLOB_UNKNOWN", "PUT", PATH, body, IMAGE)


class SparseImageTests(ApiTestCase):
    toml = '[repository.local]\nkind = "local"\nsparse = "images"'

    async def test_an_image_may_lack_blobs_that_come_later(self) -> None:
        body = image_manifest(b"{}", b"layer")
        await self.registry.push_manifest("hello", "v1", body)
        await self.registry.push_manifest("hello", "all", image_index(body, b"absent"), OCI_INDEX)
        answer = await self.accepted(200, "GET", PATH)
        self.assertEqual(answer.body, body)
        layer = f"/v2/hello/blobs/{Digest.of(b'layer')}"
        await self.refused(404, "BLOB_UNKNOWN", "GET", layer)
        await self.registry.push_blob("hello", b"layer")
        answer = await self.accepted(200, "GET", layer)
        self.assertEqual(answer.body, b"layer")

    async def test_what_is_here_still_has_to_have_its_size(self) -> None:
        await self.registry.push_blob("hello", b"layer")
        layer = {**descriptor(b"layer"), "size": 6}
        body = image_manifest(b"{}", layers=[layer])
        await self.refused(400, "MANIFEST_INVALID", "PUT", PATH, body, IMAGE)


class OtherMediaTypesTests(ApiTestCase):
    toml = '[repository.local]\nkind = "local"\nother_media_types = true'

    async def test_any_json_document_is_kept_as_it_is(self) -> None:
        subject = Digest.of(b"subject")
        described = descriptor(b"subject", OCI_MANIFEST)
        body = json.dumps({"anything": [1], "subject": described}).encode()
        headers = {"Content-Type": "application/vnd.example+json"}
        answer = await self.accepted(201, "PUT", PATH, body, headers)
        self.assertEqual(answer.header("OCI-Subject"), str(subject))
        got = await self.accepted(200, "GET", PATH)
        self.assertEqual(got.body, body)
        self.assertEqual(got.header("Content-Type"), headers["Content-Type"])

    async def test_an_index_may_list_it(self) -> None:
        other = {"Content-Type": "application/vnd.example+json"}
        await self.accepted(201, "PUT", "/v2/hello/manifests/other", b"{}", other)
        listed = descriptor(b"{}", other["Content-Type"])
        index = json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode()
        await self.accepted(201, "PUT", PATH, index, {"Content-Type": OCI_INDEX})
        path = f"/v2/hello/manifests/{Digest.of(b'{}')}"
        answer = await self.refused(405, "UNSUPPORTED", "DELETE", path)
        self.assertIn(str(Digest.of(index)), answer.body.decode())

    async def test_a_media_type_that_makes_no_header_is_refused(self) -> None:
        for name in ("\0", "x y", "\xff", "x\r\nEvil: y", "x" * 200):
            body = json.dumps({"mediaType": f"application/{name}+json"}).encode()
            await self.refused(400, "MANIFEST_INVALID", "PUT", PATH, body)

    async def test_what_is_no_json_document_is_refused(self) -> None:
        for media_type, body in (
            ("application/vnd.example+json", b"nonsense"),
            ("application/vnd.example+json", b"[]"),
            ("application/vnd.example", b"{}"),
            ("text/x+json", b"{}"),
            (CONFIG_TYPE, b'{"mediaType": "application/x+json"}'),
        ):
            headers = {"Content-Type": media_type}
            await self.refused(400, "MANIFEST_INVALID", "PUT", PATH, body, headers)
