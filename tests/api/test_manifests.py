"""distribution-spec, "Pushing Manifests": end-7a, end-7b."""

from __future__ import annotations

import json
from typing import Any

from artifactd.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest
from tests.api.case import ApiTestCase
from tests.api.served import descriptor, image_index, image_manifest

ABSENT = Digest.of(b"absent")
IMAGE = {"Content-Type": OCI_MANIFEST}
INDEX = {"Content-Type": OCI_INDEX}
NON_DISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


class ManifestTestCase(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.image = image_manifest(b"{}", b"layer")

    async def push_blobs(self) -> None:
        """What ``self.image`` holds."""
        for content in (b"{}", b"layer"):
            await self.registry.push_blob("hello", content)


class PushTests(ManifestTestCase):
    async def test_a_manifest_is_pushed_by_tag(self) -> None:
        await self.push_blobs()
        answer = await self.accepted(201, "PUT", "/v2/hello/manifests/v1", self.image, IMAGE)
        self.assertEqual(answer.header("Location"), "/v2/hello/manifests/v1")
        self.assertEqual(answer.header("Docker-Content-Digest"), str(Digest.of(self.image)))
        self.assertIsNone(answer.header("OCI-Subject"))
        self.assertIsNone(answer.header("OCI-Tag"))
        got = await self.accepted(200, "GET", answer.header("Location") or "")
        self.assertEqual(got.body, self.image)

    async def test_a_large_manifest_comes_back_as_it_was(self) -> None:
        await self.push_blobs()
        large = image_manifest(b"{}", b"layer", annotations={"a": "x" * 300_000})
        await self.accepted(201, "PUT", "/v2/hello/manifests/v1", large, IMAGE)
        got = await self.accepted(200, "GET", "/v2/hello/manifests/v1")
        self.assertEqual(got.body, large)
        self.assertEqual(got.header("Content-Type"), OCI_MANIFEST)

    async def test_a_manifest_is_pushed_by_digest_without_a_tag(self) -> None:
        await self.push_blobs()
        for algorithm in Algorithm:
            digest = Digest.of(self.image, algorithm)
            path = f"/v2/hello/manifests/{digest}"
            answer = await self.accepted(201, "PUT", path, self.image, IMAGE)
            self.assertEqual(answer.header("Location"), path)
            self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))
            got = await self.accepted(200, "GET", path)
            self.assertEqual(got.body, self.image)
        tags = await self.accepted(200, "GET", "/v2/hello/tags/list")
        self.assertEqual(json.loads(tags.body)["tags"], [])

    async def test_a_manifest_comes_by_chunked_coding_too(self) -> None:
        await self.push_blobs()
        path = "/v2/hello/manifests/v1"
        await self.accepted(201, "PUT", path, self.image, IMAGE, chunked=True)

    async def test_a_tag_moves_and_what_it_pointed_at_stays(self) -> None:
        before = await self.registry.push_image("hello", "v1")
        after = await self.registry.push_image("hello", "v1", b"layer")
        tag = await self.accepted(200, "HEAD", "/v2/hello/manifests/v1")
        self.assertEqual(tag.header("Docker-Content-Digest"), str(after))
        await self.accepted(200, "GET", f"/v2/hello/manifests/{before}")

    async def test_a_list_may_be_empty_or_null_or_absent(self) -> None:
        """Go writes a list of none as null, or leaves it out."""
        await self.registry.push_blob("hello", b"{}")
        image, index = json.loads(image_manifest(b"{}")), json.loads(image_index())
        for usual, name, media_type in (
            (image, "layers", OCI_MANIFEST),
            (index, "manifests", OCI_INDEX),
        ):
            absent = {key: value for key, value in usual.items() if key != name}
            for document in (usual | {name: []}, usual | {name: None}, absent):
                content = json.dumps(document).encode()
                await self.registry.push_manifest("hello", "v1", content, media_type)
                answer = await self.accepted(200, "GET", "/v2/hello/manifests/v1")
                self.assertEqual(answer.body, content)

    async def test_fields_may_be_null_or_unknown(self) -> None:
        await self.registry.push_blob("hello", b"{}")
        document = json.loads(image_manifest(b"{}"))
        document["config"] |= {"annotations": None, "urls": None, "data": None, "x": [1]}
        document |= {"annotations": None, "subject": None, "artifactType": None, "x": {"a": 1.5}}
        await self.registry.push_manifest("hello", "v1", json.dumps(document).encode())

    async def test_docker_manifests_and_lists_are_accepted(self) -> None:
        await self.push_blobs()
        docker = self.image.replace(OCI_MANIFEST.encode(), DOCKER_MANIFEST.encode())
        await self.registry.push_manifest("hello", "v1", docker, DOCKER_MANIFEST)
        index = image_index(docker, mediaType=DOCKER_LIST)
        await self.registry.push_manifest("hello", "all", index, DOCKER_LIST)

    async def test_an_index_may_hold_indexes_and_be_empty(self) -> None:
        inner, outer = image_index(), json.loads(image_index())
        await self.registry.push_manifest("hello", "inner", inner, OCI_INDEX)
        outer["manifests"] = [descriptor(inner, OCI_INDEX)]
        await self.registry.push_manifest("hello", "outer", json.dumps(outer).encode(), OCI_INDEX)

    async def test_without_a_content_type_the_manifests_own_counts(self) -> None:
        await self.push_blobs()
        await self.accepted(201, "PUT", "/v2/hello/manifests/v1", self.image)
        answer = await self.accepted(200, "GET", "/v2/hello/manifests/v1")
        self.assertEqual(answer.header("Content-Type"), OCI_MANIFEST)

    async def test_a_subject_that_is_absent_is_accepted_and_told(self) -> None:
        for subject in (ABSENT, Digest.of(b"absent", Algorithm.SHA512)):
            described = descriptor(b"absent", OCI_MANIFEST, digest=subject)
            await self.registry.push_blob("hello", b"{}")
            for body, headers in (
                (image_manifest(b"{}", subject=described), IMAGE),
                (image_index(subject=described), INDEX),
            ):
                path = "/v2/hello/manifests/signature"
                answer = await self.accepted(201, "PUT", path, body, headers)
                self.assertEqual(answer.header("OCI-Subject"), str(subject))

    async def test_what_a_registry_need_not_hold_may_be_absent(self) -> None:
        document = json.loads(image_manifest(b"{}"))
        document["layers"] = [
            descriptor(b"foreign", NON_DISTRIBUTABLE),
            descriptor(b"elsewhere", urls=["https://example.com/layer"]),
        ]
        await self.registry.push_blob("hello", b"{}")
        await self.registry.push_manifest("hello", "v1", json.dumps(document).encode())


class SeveralTagsTests(ManifestTestCase):
    """end-7b."""

    async def tags(self) -> list[str]:
        answer = await self.accepted(200, "GET", "/v2/hello/tags/list")
        tags: list[str] = json.loads(answer.body)["tags"]
        return tags

    async def test_all_tags_are_set_and_told(self) -> None:
        await self.push_blobs()
        tags = [f"v1.{number}" for number in range(12)]
        for algorithm in Algorithm:
            digest = Digest.of(self.image, algorithm)
            query = "&".join(f"tag={tag}" for tag in tags)
            path = f"/v2/hello/manifests/{digest}?{query}"
            answer = await self.accepted(201, "PUT", path, self.image, IMAGE)
            self.assertEqual(answer.header("OCI-Tag"), ", ".join(tags))
            self.assertEqual(await self.tags(), sorted(tags))
            head = await self.accepted(200, "HEAD", "/v2/hello/manifests/v1.11")
            self.assertEqual(head.header("Docker-Content-Digest"), str(digest))

    async def test_one_bad_tag_and_none_is_set(self) -> None:
        await self.push_blobs()
        path = f"/v2/hello/manifests/{Digest.of(self.image)}?tag=good&tag="
        for bad in ("-bad", "a%2Fb", "a" * 129, "%FF", ""):
            await self.refused(400, "MANIFEST_INVALID", "PUT", path + bad, self.image, IMAGE)

    async def test_tag_parameters_need_a_digest_in_the_path(self) -> None:
        await self.push_blobs()
        path = "/v2/hello/manifests/v1?tag=v2"
        await self.refused(400, "UNSUPPORTED", "PUT", path, self.image, IMAGE)


class CaseTests(ApiTestCase):
    """Clients in Go read fields in any case, so that none may stand there in two."""

    toml = """
        [repository.local]
        kind = "local"
        other_media_types = true
    """

    async def test_annotations_may_differ_in_case_alone(self) -> None:
        await self.registry.push_blob("hello", b"{}")
        free = {"size": "XL", "Size": "42", "digest": "a", "Digest": "b"}
        described = descriptor(b"{}", annotations=free)
        manifest = image_manifest(b"{}", annotations=free, layers=[described])
        await self.registry.push_manifest("hello", "v1", manifest)
        answer = await self.accepted(200, "GET", "/v2/hello/manifests/v1")
        self.assertEqual(answer.body, manifest)

    async def test_fields_may_not(self) -> None:
        await self.registry.push_blob("hello", b"{}")
        cases: list[dict[str, Any]] = [
            {"layers": [{**descriptor(b"{}"), "Size": 3}]},
            {"Annotations": {}, "annotations": {}},
            {"x": [{"size": 1, "Size": 2}]},
            {"x": {"annotation": {"size": "1", "Size": "2"}}},
            {"annotations": {"size": "1"}, "x": [{"annotations": [{"size": "1", "Size": "2"}]}]},
        ]
        for more in cases:
            headers = {"Content-Type": OCI_MANIFEST}
            body = image_manifest(b"{}", **more)
            path = "/v2/hello/manifests/v1"
            await self.refused(400, "MANIFEST_INVALID", "PUT", path, body, headers)

    async def test_a_media_type_is_compared_in_any_case_and_kept_as_it_is(self) -> None:
        other = "application/vnd.Example.thing+json"
        for declared, embedded, kept in (
            (other, other, other),
            (other, other.lower(), other),
            (OCI_INDEX.upper(), OCI_INDEX, OCI_INDEX),
        ):
            document = {"schemaVersion": 2, "mediaType": embedded, "manifests": []}
            headers = {"Content-Type": declared}
            path = "/v2/hello/manifests/v1"
            await self.accepted(201, "PUT", path, json.dumps(document).encode(), headers)
            answer = await self.accepted(200, "HEAD", path)
            self.assertEqual(answer.header("Content-Type"), kept)


class SizeLimitTests(ManifestTestCase):
    async def test_a_manifest_of_four_megabytes_is_accepted(self) -> None:
        await self.push_blobs()
        content = self.image + b" " * (4 * 1024 * 1024 - len(self.image))
        for chunked in (False, True):
            path = "/v2/hello/manifests/v1"
            await self.accepted(201, "PUT", path, content, IMAGE, chunked=chunked)
            answer = await self.accepted(200, "GET", path)
            self.assertEqual(answer.body, content)

    async def test_a_larger_one_is_refused(self) -> None:
        await self.push_blobs()
        content = self.image + b" " * (4 * 1024 * 1024 + 1 - len(self.image))
        for chunked in (False, True):
            path = "/v2/hello/manifests/v1"
            await self.refused(413, "SIZE_INVALID", "PUT", path, content, IMAGE, chunked=chunked)
