"""
What the OCI's conformance suite asks of a registry, with all that is optional in it: manifests that
lack content, digests in headers, tags as parameters, cancelled uploads.

The suite counts as skipped what a registry answers in a way that is allowed and does not do; here
that fails.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from attrs import Factory, define

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest
from tests.api.case import ApiTestCase
from tests.api.served import CONFIG_TYPE, LAYER_TYPE
from tests.process import Answer

REPOSITORY = "conformance/one"
OTHER = "conformance/two"
PATH = f"/v2/{REPOSITORY}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EXAMPLE_TYPES = ("application/vnd.example.one.v1", "application/vnd.example.two.v1")
BYTES = {"Content-Type": "application/octet-stream"}
ACCEPT = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"}
CONTENT = bytes(range(256)) * 12


class ConformanceTestCase(ApiTestCase):
    toml = '[repository.local]\nkind = "local"\nsparse = "images"'

    async def assert_here(self, path: str, content: bytes, digest: Digest, kind: str = "") -> None:
        """GET and HEAD of ``path`` tell its bytes, length, digest and, of a manifest, type."""
        for method, body in (("HEAD", b""), ("GET", content)):
            answer = await self.accepted(200, method, path, headers=ACCEPT if kind else None)
            self.assertEqual(answer.body, body)
            self.assertEqual(answer.header("Content-Length"), str(len(content)))
            self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))
            if kind:
                self.assertEqual(answer.header("Content-Type"), kind)

    async def assert_made(self, answer: Answer, content: bytes, digest: Digest) -> None:
        """``answer`` is that of a push: it has the digest, and the content is at its Location."""
        self.assertEqual(answer.status, 201, answer.body)
        self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))
        got = await self.accepted(200, "GET", answer.header("Location") or "", headers=ACCEPT)
        self.assertEqual(got.body, content)

    async def delete(self, path: str) -> None:
        """Delete what is at ``path``; it is gone at once."""
        await self.accepted(202, "DELETE", path)
        await self.accepted(404, "HEAD", path)


class BlobTests(ConformanceTestCase):
    """The ways of pushing a blob, with its bytes and with others; each by both algorithms."""

    async def session(self, name: str = REPOSITORY) -> str:
        answer = await self.accepted(202, "POST", f"/v2/{name}/blobs/uploads/")
        return answer.header("Location") or ""

    async def in_one_request(self, content: bytes, digest: Digest) -> Answer:
        path = f"{PATH}/blobs/uploads/?digest={digest}"
        return await self.registry.request("POST", path, content, BYTES)

    async def at_the_end(self, content: bytes, digest: Digest) -> Answer:
        location = with_digest(await self.session(), digest)
        return await self.registry.request("PUT", location, content, BYTES)

    async def as_a_stream(self, content: bytes, digest: Digest) -> Answer:
        location = await self.session()
        answer = await self.accepted(202, "PATCH", location, content, BYTES, chunked=True)
        location = with_digest(answer.header("Location") or "", digest)
        return await self.registry.request("PUT", location, b"", BYTES)

    async def in_chunks(
        self, content: bytes, digest: Digest, *, put_last: bool = False, stray: bool = False
    ) -> Answer:
        """
        Push in chunks of 1024 bytes.

        :param put_last: send the last one with the PUT that closes the session.
        :param stray: before each send one that is out of order, and ask where to go on.
        """
        location = await self.session()
        for start in range(0, len(content), 1024):
            if stray:
                location = await self.after_a_stray_chunk(
                    location, content, start, digest if put_last else None
                )
            last = start + 1024 >= len(content)
            if last and put_last:
                location = with_digest(location, digest)
            method = "PUT" if last and put_last else "PATCH"
            answer = await self.send_chunk(method, location, content, start)
            if method == "PUT":
                return answer
            self.assertEqual(answer.status, 202, answer.body)
            location = answer.header("Location") or ""
        return await self.registry.request("PUT", with_digest(location, digest), b"", BYTES)

    async def send_chunk(self, method: str, location: str, content: bytes, start: int) -> Answer:
        chunk = content[start : start + 1024]
        headers = {**BYTES, "Content-Range": f"{start}-{start + len(chunk) - 1}"}
        return await self.registry.request(method, location, chunk, headers)

    async def after_a_stray_chunk(
        self, location: str, content: bytes, offset: int, closing: Digest | None
    ) -> str:
        """Send a chunk ahead of ``offset``, or the first one again; where to go on."""
        stray = offset + 1024 if offset + 1024 < len(content) else 0
        method = "PATCH"
        if closing is not None and stray + 1024 >= len(content):
            method, location = "PUT", with_digest(location, closing)
        refused = await self.send_chunk(method, location, content, stray)
        self.assertEqual(refused.status, 416)
        status = await self.accepted(204, "GET", location)
        self.assertEqual(status.header("Range"), f"0-{max(offset - 1, 0)}")
        return status.header("Location") or ""

    async def pushes(self, content: bytes, digest: Digest) -> AsyncIterator[Answer]:
        """The answers to each way of pushing ``content``, which is said to have ``digest``."""
        yield await self.in_one_request(content, digest)
        yield await self.at_the_end(content, digest)
        yield await self.as_a_stream(content, digest)
        for put_last in (False, True):
            yield await self.in_chunks(content, digest, put_last=put_last)

    async def assert_goes_through(self, answer: Answer, content: bytes, digest: Digest) -> None:
        await self.assert_made(answer, content, digest)
        await self.assert_here(f"{PATH}/blobs/{digest}", content, digest)
        await self.delete(f"{PATH}/blobs/{digest}")

    async def test_a_blob_is_pushed_pulled_and_deleted_whatever_the_way(self) -> None:
        await self.accepted(404, "GET", f"{PATH}/blobs/{Digest.of(CONTENT)}")
        for content in (CONTENT[:-5], b"{}", b""):
            for algorithm in Algorithm:
                digest = Digest.of(content, algorithm)
                async for answer in self.pushes(content, digest):
                    await self.assert_goes_through(answer, content, digest)

    async def test_a_session_goes_on_after_chunks_out_of_order(self) -> None:
        content = CONTENT[:-5]
        for algorithm in Algorithm:
            digest = Digest.of(content, algorithm)
            for put_last in (False, True):
                answer = await self.in_chunks(content, digest, put_last=put_last, stray=True)
                await self.assert_goes_through(answer, content, digest)

    async def test_a_wrong_digest_is_refused_whatever_the_way(self) -> None:
        for algorithm in Algorithm:
            digest = Digest.of(CONTENT, algorithm)
            async for answer in self.pushes(CONTENT + b"oh no", digest):
                self.assert_error(answer, 400, "DIGEST_INVALID")
            await self.accepted(404, "HEAD", f"{PATH}/blobs/{digest}")

    async def test_a_blob_is_mounted_by_its_source_and_without(self) -> None:
        for algorithm in Algorithm:
            digest = Digest.of(CONTENT, algorithm)
            for source in ({"from": OTHER}, {}):
                await self.registry.push_blob(OTHER, CONTENT, algorithm)
                query = urlencode({"mount": str(digest), **source})
                answer = await self.registry.request("POST", f"{PATH}/blobs/uploads/?{query}")
                await self.assert_goes_through(answer, CONTENT, digest)
                await self.delete(f"/v2/{OTHER}/blobs/{digest}")

    async def test_a_mount_of_what_is_missing_opens_a_session(self) -> None:
        for algorithm in Algorithm:
            digest = Digest.of(CONTENT, algorithm)
            query = urlencode({"mount": str(digest), "from": OTHER})
            answer = await self.accepted(202, "POST", f"{PATH}/blobs/uploads/?{query}")
            location = with_digest(answer.header("Location") or "", digest)
            answer = await self.registry.request("PUT", location, CONTENT, BYTES)
            await self.assert_goes_through(answer, CONTENT, digest)

    async def test_an_upload_is_cancelled(self) -> None:
        location = await self.session()
        await self.accepted(204, "DELETE", location)
        await self.accepted(404, "GET", location)
        await self.accepted(404, "DELETE", f"{PATH}/blobs/{Digest.of(CONTENT)}")

    async def test_ranges(self) -> None:
        content = CONTENT[:2048]
        for algorithm in Algorithm:
            digest = await self.registry.push_blob(REPOSITORY, content, algorithm)
            for wanted, first, end in (
                ("500-1499", 500, 1500),
                ("500-", 500, 2048),
                ("-500", 1548, 2048),
                ("2000-5000", 2000, 2048),
            ):
                headers = {"Range": f"bytes={wanted}"}
                answer = await self.accepted(206, "GET", f"{PATH}/blobs/{digest}", None, headers)
                self.assertEqual(answer.body, content[first:end])
                self.assertEqual(answer.header("Content-Length"), str(end - first))
                self.assertEqual(answer.header("Content-Range"), f"bytes {first}-{end - 1}/2048")
            for wanted in ("500-0", "5000-10000"):
                headers = {"Range": f"bytes={wanted}"}
                await self.accepted(416, "GET", f"{PATH}/blobs/{digest}", None, headers)


@define
class Documents:
    """
    Manifests with what they hold, as they are pushed: blobs first, then manifests in their order.

    :ivar manifests: each with its media type.
    :ivar tags: by name, which manifest has it.
    :ivar as_parameters: whether tags are set by parameters of the manifest's push.
    :ivar referrers: by their subjects, the descriptors that have to be listed.
    """

    algorithm: Algorithm = Algorithm.SHA256
    as_parameters: bool = False
    blobs: list[bytes] = Factory(list)
    manifests: list[tuple[bytes, str]] = Factory(list)
    tags: dict[str, bytes] = Factory(dict)
    referrers: dict[str, list[dict[str, Any]]] = Factory(dict)

    def digest(self, content: bytes) -> Digest:
        return Digest.of(content, self.algorithm)

    def descriptor(self, content: bytes, media_type: str, **more: object) -> dict[str, Any]:
        digest = str(self.digest(content))
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def image(self, tag: str = "", count: int = 2, **more: Any) -> dict[str, Any]:
        """
        Add an image of a config and ``count`` layers.

        :param more: further fields, or others in place of its own.
        :returns: its descriptor.
        """
        config = json.dumps({"os": "linux", "number": len(self.blobs)}).encode()
        contents = [f"layer {len(self.blobs)} {number}".encode() for number in range(count)]
        self.blobs += [config, *contents]
        document = {
            "config": self.descriptor(config, CONFIG_TYPE),
            "layers": [self.descriptor(each, LAYER_TYPE) for each in contents],
            **more,
        }
        return self._add(OCI_MANIFEST, tag, document)

    def artifact(self, kind: str, tag: str = "", **more: object) -> dict[str, Any]:
        """Add an artifact of the type ``kind`` with one layer; as :meth:`image`."""
        layer = f"{kind} {len(self.blobs)}".encode()
        self.blobs += [b"{}", layer]
        document = {
            "artifactType": kind,
            "config": self.descriptor(b"{}", EMPTY_TYPE),
            "layers": [self.descriptor(layer, kind)],
            **more,
        }
        return self._add(OCI_MANIFEST, tag, document)

    def index(
        self, children: Sequence[Mapping[str, Any]], tag: str = "", **more: object
    ) -> dict[str, Any]:
        """Add an index of ``children``, which are descriptors; as :meth:`image`."""
        return self._add(OCI_INDEX, tag, {"manifests": list(children), **more})

    def platforms(self, tag: str = "", **more: Any) -> dict[str, Any]:
        """Add an index of an image for each of two platforms; as :meth:`image`."""
        children = [
            {**self.image(**more), "platform": {"os": "linux", "architecture": architecture}}
            for architecture in ("amd64", "arm64")
        ]
        return self.index(children, tag, **more)

    def _add(self, media_type: str, tag: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": media_type, **fields}
        content = json.dumps(document).encode()
        self.manifests.append((content, media_type))
        if tag:
            self.tags[tag] = content
        made = self.descriptor(content, media_type)
        if "subject" in fields:
            kind = fields.get("artifactType") or fields.get("config", {}).get("mediaType")
            listed = {**made, "artifactType": kind}
            if "annotations" in fields:
                listed["annotations"] = fields["annotations"]
            self.referrers.setdefault(fields["subject"]["digest"], []).append(listed)
        return made


class DocumentTests(ConformanceTestCase):
    """Each kind of document is pushed, listed, pulled and deleted."""

    async def assert_go_through(self, documents: Documents) -> None:
        for blob in documents.blobs:
            await self.registry.push_blob(REPOSITORY, blob, documents.algorithm)
        await self.push_manifests(documents)
        tags = list(documents.tags)
        if tags:
            await self.assert_listed(tags)
        for tag, content in documents.tags.items():
            media_type = json.loads(content)["mediaType"]
            path = f"{PATH}/manifests/{tag}"
            await self.assert_here(path, content, documents.digest(content), media_type)
        for content, media_type in documents.manifests:
            digest = documents.digest(content)
            await self.assert_here(f"{PATH}/manifests/{digest}", content, digest, media_type)
        for blob in documents.blobs:
            digest = documents.digest(blob)
            await self.assert_here(f"{PATH}/blobs/{digest}", blob, digest)
        for subject, referrers in documents.referrers.items():
            await self.assert_refer(subject, referrers)
        for tag in tags:
            await self.delete(f"{PATH}/manifests/{tag}")
        for content, _ in reversed(documents.manifests):
            await self.delete(f"{PATH}/manifests/{documents.digest(content)}")
        for blob in dict.fromkeys(documents.blobs):
            await self.delete(f"{PATH}/blobs/{documents.digest(blob)}")

    async def push_manifests(self, documents: Documents) -> None:
        for content, _ in documents.manifests:
            digest = documents.digest(content)
            own = [tag for tag, tagged in documents.tags.items() if tagged == content]
            query = urlencode([("tag", tag) for tag in own]) if documents.as_parameters else ""
            answer = await self.put(f"{digest}?{query}" if query else str(digest), content)
            await self.assert_made(answer, content, digest)
            if query:
                told = ",".join(answer.headers.get_all("OCI-Tag") or ()).split(",")
                self.assertEqual(sorted(tag.strip() for tag in told), sorted(own))
            elif not documents.as_parameters:
                for tag in own:
                    await self.assert_made(await self.put(tag, content), content, digest)

    async def put(self, reference: str, content: bytes) -> Answer:
        """Push a manifest; its subject, if it has one, is confirmed."""
        document = json.loads(content)
        headers = {"Content-Type": document["mediaType"]}
        answer = await self.registry.request(
            "PUT", f"{PATH}/manifests/{reference}", content, headers
        )
        if answer.status == 201:
            subject = document.get("subject", {}).get("digest")
            self.assertEqual(answer.header("OCI-Subject"), subject)
        return answer

    async def assert_listed(self, tags: Sequence[str]) -> None:
        answer = await self.accepted(200, "GET", f"{PATH}/tags/list")
        listed = json.loads(answer.body)["tags"]
        self.assertEqual(listed, sorted(tags))
        middle = len(listed) // 2
        answer = await self.accepted(200, "GET", f"{PATH}/tags/list?last={listed[middle - 1]}")
        if middle:
            self.assertEqual(json.loads(answer.body)["tags"], listed[middle:])

    async def assert_refer(self, subject: str, referrers: Sequence[Mapping[str, Any]]) -> None:
        for kind in (None, *sorted({each["artifactType"] for each in referrers})):
            query = "" if kind is None else "?" + urlencode({"artifactType": kind})
            answer = await self.accepted(200, "GET", f"{PATH}/referrers/{subject}{query}")
            self.assertEqual(answer.header("Content-Type"), OCI_INDEX)
            applied = None if kind is None else "artifactType"
            self.assertEqual(answer.header("OCI-Filters-Applied"), applied)
            index = json.loads(answer.body)
            self.assertEqual((index["schemaVersion"], index["mediaType"]), (2, OCI_INDEX))
            wanted = [each for each in referrers if kind in (None, each["artifactType"])]
            self.assertCountEqual(index["manifests"], wanted)

    async def test_before_anything_is_pushed(self) -> None:
        answer = await self.registry.request("GET", f"{PATH}/tags/list")
        self.assertIn(answer.status, (200, 404))
        await self.assert_refer(str(Digest.of(b"nowhere")), [])

    async def test_images(self) -> None:
        documents = Documents()
        documents.image("image")
        documents.image("no-layers", count=0)
        annotations = {f"large-{number}": "A" * 10_000 for number in range(390)}
        documents.image("large", annotations=annotations)
        await self.assert_go_through(documents)

    async def test_indexes(self) -> None:
        documents = Documents()
        documents.platforms("index")
        documents.index([documents.platforms(), documents.platforms()], "index-of-indexes")
        documents.index([], "empty")
        await self.assert_go_through(documents)

    async def test_artifacts(self) -> None:
        documents = Documents()
        one, _ = EXAMPLE_TYPES
        documents.artifact(one, "artifact")
        empty = documents.descriptor(b"{}", EMPTY_TYPE)
        documents.artifact(one, "without-layers", layers=[empty])
        documents.index([documents.artifact(one)], "artifact-index", artifactType=one)
        await self.assert_go_through(documents)

    async def test_subjects_that_are_here(self) -> None:
        documents = Documents()
        documents.image(subject=documents.image("image"))
        subject = documents.platforms("index")
        for number, kind in enumerate(EXAMPLE_TYPES):
            more = {"subject": subject, "annotations": {"org.example.number": str(number)}}
            child = documents.artifact(kind, f"artifact-{number}", **more)
            documents.index([child], f"artifact-index-{number}", artifactType=kind, **more)
        await self.assert_go_through(documents)

    async def test_a_subject_that_is_missing(self) -> None:
        documents = Documents()
        documents.artifact(
            EXAMPLE_TYPES[0], "artifact", subject=documents.descriptor(b"missing", OCI_MANIFEST)
        )
        await self.assert_go_through(documents)

    async def test_data_in_descriptors(self) -> None:
        documents = Documents()
        config = documents.descriptor(b"{}", CONFIG_TYPE, data="e30=")
        documents.blobs.append(b"{}")
        documents.image("data", config=config)
        await self.assert_go_through(documents)

    async def test_layers_that_are_not_distributed(self) -> None:
        documents = Documents()
        layers = [
            documents.descriptor(
                kind.encode(),
                f"application/vnd.oci.image.layer.nondistributable.v1.{kind}",
                urls=["https://store.example.com/blob"],
            )
            for kind in ("tar", "tar+gzip")
        ]
        here = documents.descriptor(b"here", LAYER_TYPE)
        documents.blobs.append(b"here")
        documents.image("non-distributable", count=0, layers=[*layers, here])
        await self.assert_go_through(documents)

    async def test_fields_that_no_spec_has(self) -> None:
        documents = Documents()
        documents.platforms("custom", **{"org.EXAMPLE": "custom"})
        await self.assert_go_through(documents)

    async def test_content_that_is_not_here(self) -> None:
        documents = Documents()
        documents.image("sparse-image")
        documents.blobs.pop()
        absent = documents.descriptor(b"absent", OCI_MANIFEST)
        documents.index([documents.image(), absent], "sparse-index")
        await self.assert_go_through(documents)

    async def test_documents_by_sha512(self) -> None:
        documents = Documents(Algorithm.SHA512)
        documents.platforms()
        await self.assert_go_through(documents)

    async def test_tags_as_parameters(self) -> None:
        for algorithm in Algorithm:
            documents = Documents(algorithm, as_parameters=True)
            documents.platforms("index")
            for number, (content, _) in enumerate(documents.manifests):
                documents.tags[f"tag-{number}"] = content
            await self.assert_go_through(documents)

    async def test_a_manifest_without_the_digest_that_it_is_pushed_by(self) -> None:
        documents = Documents()
        digest = documents.image()["digest"]
        content, _ = documents.manifests[0]
        for blob in documents.blobs:
            await self.registry.push_blob(REPOSITORY, blob)
        for reference in (digest, "sha256:baddigeststring"):
            answer = await self.put(reference, content + b"  ")
            self.assertEqual(answer.status, 400)
            answer = await self.registry.request("GET", f"{PATH}/manifests/{reference}")
            self.assertIn(answer.status, (400, 404))

    async def test_a_manifest_that_is_missing(self) -> None:
        for reference in (str(Digest.of(b"missing")), "missing"):
            await self.accepted(404, "GET", f"{PATH}/manifests/{reference}")


def with_digest(location: str, digest: Digest) -> str:
    """``location`` with the digest in its query, which is encoded anew as Go does it."""
    parts = urlsplit(urljoin(PATH, location))
    query = {**dict(parse_qsl(parts.query)), "digest": str(digest)}
    return f"{parts.path}?{urlencode(sorted(query.items()))}"
