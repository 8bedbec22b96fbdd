"""Manifests through an upstream: what comes is verified, what is here is not asked for again."""

from __future__ import annotations

import json

from artifactd.oci.manifest import DOCKER_MANIFEST, MANIFEST_TYPES, OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest
from tests.pull.mirrors import FULL, HIT, STORED, Instead, MirrorCase, digest_of, timings
from tests.upstreams.faulty import MANIFESTS, Coded, Corrupt, Garbage, NoLength, Truncate

NAME = "library/alpine"
PATH = "/v2/docker.io/alpine/manifests"


class DigestTests(MirrorCase):
    async def test_what_is_here_is_never_asked_for_again(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror(freshness="0s")
        first = await registry.request("GET", f"{PATH}/{digest}", headers=FULL)
        self.assert_from(first, "remote", STORED)
        self.assertIn("upstream", timings(first))
        self.assertEqual(first.body, self.hub.images.manifest_of(NAME, str(digest)))
        self.hub.forget_requests()
        for method, body in (("GET", first.body), ("HEAD", b"")):
            again = await registry.request(method, f"{PATH}/{digest}", headers=FULL)
            self.assert_from(again, "cache", HIT)
            self.assertNotIn("upstream", timings(again))
            self.assertEqual((again.body, digest_of(again)), (body, digest))
        self.assertEqual(self.hub.requests, [])
        metrics = (await registry.request("GET", "/metrics")).body.decode()
        sent = 2.0 * len(first.body)  # HEAD has none
        self.assertIn(f'artifactd_client_bytes_total{{repository="docker.io"}} {sent}', metrics)

    async def test_a_restarted_registry_has_it_still(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        first = await registry.request("GET", f"{PATH}/{digest}")
        await self.hub.stop()
        again = await self.mirror(registry.data).request("GET", f"{PATH}/{digest}")
        self.assert_from(again, "cache", HIT)
        self.assertEqual(again.body, first.body)

    async def test_a_digest_of_another_algorithm_is_verified_by_that(self) -> None:
        self.hub.images.add_image(NAME, "latest", b"layer")
        content = self.hub.images.manifest_of(NAME, "latest")
        digest = Digest.of(content, Algorithm.SHA512)
        registry = self.mirror(negative_freshness="0s")
        for sent, status in ((content + b"\n", 502), (content, 200)):
            self.hub.faults.add(Garbage(), on=MANIFESTS)
            self.hub.faults.add(Instead(sent, OCI_MANIFEST), on=MANIFESTS)
            answer = await registry.request("GET", f"{PATH}/{digest}")
            self.assertEqual(answer.status, status, answer.body)
        self.assertEqual((digest_of(answer), answer.body), (digest, content))
        self.assert_from(await registry.request("GET", f"{PATH}/{digest}"), "cache", HIT)

    async def test_what_two_could_read_differently_or_is_a_bomb_is_502_and_not_kept(self) -> None:
        self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror(negative_freshness="0s")
        content = self.hub.images.manifest_of(NAME, "latest").rstrip()
        for field in (
            b'"layers":[]',
            b'"Layers":[]',
            b'"x":' + b"[" * 101 + b"]" * 101,
            b'"x":' + b"[" * 1_000_000,
            b'"x":[' + b"[]," * 200_000 + b"[]]",
            b'"artifactType":"application/' + b"x" * 244 + b'"',
        ):
            sent = content[:-1] + b"," + field + b"}"
            headers = {"Docker-Content-Digest": str(Digest.of(sent))}
            self.hub.faults.add(Instead(sent, OCI_MANIFEST, headers), on=MANIFESTS)
            answer = await registry.request("GET", f"{PATH}/latest")
            self.assertEqual(answer.status, 502, field)
        self.assertEqual(registry.files(), [])

    async def test_wrong_bytes_are_answered_502_and_not_kept(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        other = self.hub.images.manifest_of(NAME, "latest") + b"\n"
        for fault in (Corrupt(at=5), Instead(other)):
            self.hub.faults.add(fault, on=MANIFESTS)
            answer = await registry.request("GET", f"{PATH}/{digest}")
            self.assert_refused(answer, 502, "UNKNOWN", "digest")
            self.assertEqual(registry.files(), [])
            self.assertEqual(self.execute(registry, "SELECT * FROM manifest"), [])
        metrics = await registry.request("GET", "/metrics")
        self.assertIn(b'artifactd_corrupt_total{repository="docker.io"} 2.0', metrics.body)
        self.assert_from(await registry.request("GET", f"{PATH}/{digest}"), "remote", STORED)

    async def test_an_answer_that_breaks_off_is_502_and_not_kept(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        self.hub.faults.add(Truncate(after=20), on=MANIFESTS)
        answer = await registry.request("GET", f"{PATH}/{digest}")
        self.assert_refused(answer, 502, "UNKNOWN")
        self.assertEqual(registry.files(), [])

    async def test_one_that_broke_off_is_asked_for_again_at_once(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror(retries=1)
        self.hub.faults.add(Truncate(after=20), on=MANIFESTS)
        self.assert_from(await registry.request("GET", f"{PATH}/{digest}"), "remote", STORED)

    async def test_it_is_not_one_of_another_image(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        self.hub.images.add_image("library/busybox", "latest", b"other")
        registry = self.mirror()
        await registry.request("GET", f"{PATH}/{digest}")
        other = await registry.request("GET", f"/v2/docker.io/busybox/manifests/{digest}")
        self.assert_refused(other, 404, "MANIFEST_UNKNOWN")

    async def test_the_index_comes_first_and_its_manifests_when_they_are_wanted(self) -> None:
        children = [
            self.hub.images.add_image(NAME, None, b"amd64"),
            self.hub.images.add_image(NAME, None, b"arm64", platform="arm64"),
        ]
        index = self.hub.images.add_index(NAME, "latest", *children)
        registry = self.mirror()
        answer = await registry.request("GET", f"{PATH}/latest", headers=FULL)
        self.assertEqual(digest_of(answer), index)
        self.assertEqual(answer.header("Content-Type"), OCI_INDEX)
        self.assertEqual(self.hub.count("GET", f"*/manifests/{children[0]}"), 0)
        child = await registry.request("GET", f"{PATH}/{children[1]}", headers=FULL)
        self.assert_from(child, "remote", STORED)
        self.assertEqual(child.header("Content-Type"), OCI_MANIFEST)
        self.assertEqual(self.hub.count("GET", f"*/manifests/{children[0]}"), 0)


class OtherProgramsTests(MirrorCase):
    """Documents that a push would not be let in with, and that clients of an upstream live with."""

    async def test_they_come_as_they_are_and_stay(self) -> None:
        self.hub.images.add_image(NAME, "latest", b"layer")
        usual = json.loads(self.hub.images.manifest_of(NAME, "latest"))
        layer = usual["layers"][0]
        for document, sent in (
            ({**usual, "layers": None}, OCI_MANIFEST),
            ({**usual, "annotations": {"a": None, "b": 1}}, OCI_MANIFEST),
            ({**usual, "layers": [{**layer, "size": float(layer["size"])}]}, OCI_MANIFEST),
            ({**usual, "layers": [{**layer, "mediaType": ""}]}, OCI_MANIFEST),
            ({**usual, "schemaVersion": 2.0}, OCI_MANIFEST),
            ({**usual, "config": None}, OCI_MANIFEST),
            ({**usual, "subject": None, "annotations": None, "of": {"ours": 1.5}}, OCI_MANIFEST),
            ({**usual, "mediaType": OCI_MANIFEST.title()}, OCI_MANIFEST.upper()),
            (usual, "text/plain; charset=utf-8"),
            (b"\xef\xbb\xbf" + json.dumps(usual).encode(), OCI_MANIFEST),
        ):
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            told = {"Docker-Content-Digest": str(Digest.of(content))}
            self.hub.faults.add(Instead(content, sent, told), on=MANIFESTS)
            registry = self.mirror()
            for source, cache in (("remote", STORED), ("cache", HIT)):
                answer = await registry.request("GET", f"{PATH}/latest")
                self.assert_from(answer, source, cache)
                self.assertEqual(content, answer.body)
                self.assertEqual(OCI_MANIFEST, answer.header("Content-Type"))


class TagTests(MirrorCase):
    async def test_bytes_that_are_not_those_of_the_digest_told_are_not_kept(self) -> None:
        self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        # As good a manifest as any: only the digest in the headers says that it is not this one.
        other = self.hub.images.manifest_of(NAME, "latest") + b"\n"
        self.hub.faults.add(Instead(other), on=MANIFESTS)
        answer = await registry.request("GET", f"{PATH}/latest")
        self.assert_refused(answer, 502, "UNKNOWN", "digest")
        self.assertEqual(registry.files(), [])
        self.assert_from(await registry.request("GET", f"{PATH}/latest"), "remote", STORED)

    async def test_what_is_no_manifest_is_502_with_the_reason(self) -> None:
        self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        first = json.dumps({"schemaVersion": 1, "name": NAME, "tag": "latest"}).encode()
        for content, media_type in (
            (b"<html>Welcome</html>", "text/html"),
            (b"<html>Welcome</html>", OCI_MANIFEST),
            (b"", OCI_MANIFEST),
            (b"{}", "application/json"),
            (first, DOCKER_MANIFEST),
            (first, "application/json"),
        ):
            told = {"Docker-Content-Digest": str(Digest.of(content))}
            self.hub.faults.add(Instead(content, media_type, told), on=MANIFESTS)
            answer = await registry.request("GET", f"{PATH}/latest")
            self.assert_refused(answer, 502, "UNKNOWN", "not this manifest")
            self.assertEqual(registry.files(), [], media_type)
        self.hub.faults.add(Garbage(), on=MANIFESTS)
        answer = await registry.request("GET", f"{PATH}/latest")
        self.assert_refused(answer, 502, "UNKNOWN", "text/html")

    async def test_what_was_compressed_on_the_way_is_kept_as_it_was_before(self) -> None:
        for tag, coding in enumerate(("gzip", "x-gzip", "deflate", "Deflate")):
            digest = self.hub.images.add_image(NAME, str(tag), b"layer")
            self.hub.faults.add(Coded(coding), on=MANIFESTS)
            answer = await self.mirror().request("GET", f"{PATH}/{tag}")
            self.assertEqual((answer.status, digest_of(answer)), (200, digest), coding)
            self.assertEqual(answer.header("Content-Encoding"), None)

    async def test_one_with_a_coding_that_cannot_be_undone_is_502_by_itself(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        other = self.hub.images.add_image(NAME, "other", b"another layer")
        registry = self.mirror()
        self.hub.faults.add(Coded("br"), on=f"{MANIFESTS[:-1]}latest", times=8)
        for _ in range(8):
            answer = await registry.request("GET", f"{PATH}/latest")
            self.assert_refused(answer, 502, "UNKNOWN", r"Content-Encoding \(br\)")
        self.assertEqual(registry.files(), [])
        answer = await registry.request("GET", f"{PATH}/other")
        self.assertEqual(digest_of(answer), other)
        again = await registry.request("GET", f"{PATH}/latest")
        self.assertEqual(digest_of(again), digest)

    async def test_a_label_that_says_nothing_true_is_overlooked(self) -> None:
        for tag, label in enumerate(("gzip", "deflate", "br", "zstd", "utf-8", "aws-chunked")):
            digest = self.hub.images.add_image(NAME, str(tag), b"layer")
            self.hub.faults.add(Coded(label, applied=False), on=MANIFESTS)
            answer = await self.mirror().request("GET", f"{PATH}/{tag}")
            self.assertEqual((answer.status, digest_of(answer)), (200, digest), label)

    async def test_a_manifest_of_any_json_type_is_kept_as_it_is(self) -> None:
        media_type = "application/vnd.example.thing.v1+json"
        digest = self.hub.images.add_manifest(NAME, "thing", b'{"thing": 1}', media_type)
        # The hub shows it only to who accepts its type; other registries show it to everybody.
        self.hub.images.add_image(NAME, "latest", b"layer")
        told = {"Docker-Content-Digest": str(digest)}
        self.hub.faults.add(Instead(b'{"thing": 1}', media_type, told), on=MANIFESTS)
        answer = await self.mirror().request("GET", f"{PATH}/latest")
        self.assertEqual(answer.header("Content-Type"), media_type)
        self.assertEqual((answer.status, digest_of(answer)), (200, digest))


class SizeTests(MirrorCase):
    async def test_one_that_is_too_long_is_502_whether_it_says_so_or_not(self) -> None:
        self.hub.images.add_image(NAME, "latest", b"layer", annotations={"a": "b" * 5000})
        registry = self.mirror_with('max_manifest = "2KiB"\n')
        answer = await registry.request("GET", f"{PATH}/latest")
        self.assert_refused(answer, 502, "UNKNOWN", "more than")
        self.hub.faults.add(NoLength(), on=MANIFESTS)
        answer = await registry.request("GET", f"{PATH}/latest")
        self.assert_refused(answer, 502, "UNKNOWN", "more than|too long|2048")
        self.assertEqual(registry.files(), [])

    async def test_one_that_is_too_long_is_asked_for_once_whether_it_says_so_or_not(self) -> None:
        self.hub.images.add_image(NAME, "latest", b"layer", annotations={"a": "b" * 5000})
        for fault in (None, NoLength()):
            registry = self.mirror_with('max_manifest = "2KiB"\n', retries=2)
            if fault is not None:
                self.hub.faults.add(fault, on=MANIFESTS, times=None)
            self.hub.forget_requests()
            await registry.request("GET", f"{PATH}/latest")
            self.assertEqual([a.status for a in self.hub.asked("GET", MANIFESTS)], [401, 200])

    async def test_a_large_one_is_as_good_as_a_small_one(self) -> None:
        annotations = {"a": "b" * 300_000}
        digest = self.hub.images.add_image(NAME, "latest", b"x", annotations=annotations)
        registry = self.mirror()
        for cache in (STORED, HIT):
            answer = await registry.request("GET", f"{PATH}/latest")
            self.assertEqual(answer.header("Cache-Status"), cache)
            self.assertEqual(Digest.of(answer.body), digest)


class RequestTests(MirrorCase):
    async def test_the_upstream_is_asked_for_all_types_whatever_the_client_accepts(self) -> None:
        child = self.hub.images.add_image(NAME, None, b"amd64")
        index = self.hub.images.add_index(NAME, "latest", child)
        registry = self.mirror()
        for accept in (DOCKER_MANIFEST, OCI_MANIFEST, OCI_INDEX, "text/html", "*/*", ""):
            headers = {"Accept": accept} if accept else {}
            answer = await registry.request("GET", f"{PATH}/latest", headers=headers)
            self.assertEqual((answer.status, digest_of(answer)), (200, index))
        (asked,) = [a for a in self.hub.asked("GET", MANIFESTS) if a.status == 200]
        self.assertEqual(set(asked.headers["accept"].split(", ")), MANIFEST_TYPES)
        self.age(registry, 90_000)
        await registry.request("HEAD", f"{PATH}/latest", headers={"Accept": DOCKER_MANIFEST})
        (asked,) = self.hub.asked("HEAD", MANIFESTS)
        self.assertEqual(set(asked.headers["accept"].split(", ")), MANIFEST_TYPES)

    async def test_nothing_of_the_clients_own_headers_goes_upstream(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror(freshness="0s")
        secret = "Basic c2VjcmV0OnNlY3JldA=="
        headers = {"Authorization": secret, "Cookie": "secret=1", "X-Secret": "1"}
        for path in (
            f"{PATH}/latest",
            f"{PATH}/{digest}",
            "/v2/alpine/manifests/latest",
            "/v2/docker.io/alpine/tags/list",
            f"/v2/docker.io/alpine/referrers/{digest}",
            f"/v2/docker.io/alpine/blobs/{Digest.of(b'layer')}",
        ):
            for method in ("HEAD", "GET"):
                answer = await registry.request(method, path, headers=headers)
                self.assertIn(answer.status, (200, 404, 405))
        self.assertGreater(self.hub.count(), 6)
        for asked in self.hub.requests:
            self.assertNotEqual(asked.headers.get("authorization"), secret, asked)
            self.assertFalse({"cookie", "x-secret"} & set(asked.headers), asked)

    async def test_a_head_by_digest_brings_it_here_too(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        head = await registry.request("HEAD", f"{PATH}/{digest}")
        self.assert_from(head, "remote", STORED)
        content = self.hub.images.manifest_of(NAME, "latest")
        self.assertEqual(head.header("Content-Length"), str(len(content)))
        self.assertEqual((head.body, digest_of(head)), (b"", digest))
        await self.hub.stop()
        self.assertEqual((await registry.request("GET", f"{PATH}/{digest}")).body, content)

    async def test_who_has_it_already_is_told_so(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        for reference in ("latest", str(digest)):
            answer = await registry.request(
                "GET", f"{PATH}/{reference}", headers={"If-None-Match": f'"{digest}"'}
            )
            self.assertEqual((answer.status, answer.body), (304, b""))
            self.assertEqual(answer.header("ETag"), f'"{digest}"')
            self.assertIn("total", timings(answer))
        self.assert_from(answer, "cache", HIT, 304)
        answer = await registry.request(
            "GET", f"{PATH}/latest", headers={"If-None-Match": f'"{Digest.of(b"")}"'}
        )
        self.assertEqual(answer.status, 200)
