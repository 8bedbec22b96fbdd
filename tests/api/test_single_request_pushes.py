"""distribution-spec, "Single POST" and "Mounting a blob": end-4b, end-11."""

from __future__ import annotations

from artifactd.oci.names import Algorithm, Digest
from tests.api.case import ApiTestCase, Connection
from tests.programs import wait_for

CONTENT = b"0123456789"
DIGEST = Digest.of(CONTENT)
UPLOADS = "/v2/hello/blobs/uploads/"


class PushTests(ApiTestCase):
    """end-4b; and the same by PUT."""

    async def test_a_blob_is_pushed_in_one_request(self) -> None:
        for method in ("POST", "PUT"):
            for chunked in (False, True):
                for algorithm in Algorithm:
                    content = f"{method} {chunked}".encode()
                    digest = Digest.of(content, algorithm)
                    path = f"{UPLOADS}?digest={digest}"
                    answer = await self.accepted(201, method, path, content, chunked=chunked)
                    self.assertEqual(answer.header("Location"), f"/v2/hello/blobs/{digest}")
                    self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))
                    got = await self.accepted(200, "GET", answer.header("Location") or "")
                    self.assertEqual(got.body, content)

    async def test_a_blob_of_no_bytes_needs_no_body(self) -> None:
        digest = Digest.of(b"")
        await self.accepted(201, "POST", f"{UPLOADS}?digest={digest}")
        await self.accepted(200, "GET", f"/v2/hello/blobs/{digest}")

    async def test_pushing_it_again_leaves_one_file(self) -> None:
        for name in ("hello", "hello", "other"):
            await self.registry.push_blob(name, CONTENT)
        self.assertEqual(len(self.registry.files()), 1)

    async def test_a_blob_without_the_digest_it_is_pushed_under_leaves_nothing(self) -> None:
        for method in ("POST", "PUT"):
            for chunked in (False, True):
                answer = await self.refused(
                    400,
                    "DIGEST_INVALID",
                    method,
                    f"{UPLOADS}?digest={DIGEST}",
                    b"wrong",
                    chunked=chunked,
                )
                self.assertIn(str(Digest.of(b"wrong")), answer.body.decode())

    async def test_a_body_cut_short_leaves_nothing(self) -> None:
        path = f"{UPLOADS}?digest={DIGEST}"
        push = await Connection.begin_body(self, self.registry.port, "POST", path, 20)
        await push.send(CONTENT)  # has the digest, but is not all
        push.leave()
        await wait_for(lambda: self.registry.files() == [])
        await self.refused(404, "BLOB_UNKNOWN", "GET", f"/v2/hello/blobs/{DIGEST}")

    async def test_a_digest_that_is_none_is_refused(self) -> None:
        for method in ("POST", "PUT"):
            for digest in ("nonsense", "sha256:abc", f"md5:{'a' * 32}", ""):
                path = f"{UPLOADS}?digest={digest}"
                await self.refused(400, "DIGEST_INVALID", method, path, CONTENT)
        await self.refused(400, "DIGEST_INVALID", "PUT", UPLOADS, CONTENT)

    async def test_a_digest_without_a_body_opens_a_session(self) -> None:
        for body in (None, b""):
            for algorithm in Algorithm:
                digest = Digest.of(CONTENT, algorithm)
                answer = await self.accepted(202, "POST", f"{UPLOADS}?digest={digest}", body)
                where = answer.header("Location")
                await self.accepted(201, "PUT", f"{where}&digest={digest}", CONTENT)

    async def test_the_digest_of_no_bytes_needs_no_body(self) -> None:
        for body in (None, b""):
            await self.accepted(201, "POST", f"{UPLOADS}?digest={Digest.of(b'')}", body)


class MountTests(ApiTestCase):
    """end-11."""

    async def assert_mounted(self, query: str, digest: Digest = DIGEST) -> None:
        answer = await self.accepted(201, "POST", f"{UPLOADS}?{query}")
        self.assertEqual(answer.header("Location"), f"/v2/hello/blobs/{digest}")
        self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))
        await self.accepted(200, "HEAD", f"/v2/hello/blobs/{digest}")

    async def assert_session(self, query: str) -> None:
        """``query`` opens a session instead, by which the blob can be pushed."""
        answer = await self.accepted(202, "POST", f"{UPLOADS}?{query}")
        location = answer.header("Location") or ""
        self.assertTrue(location.startswith(UPLOADS), location)
        await self.accepted(404, "HEAD", f"/v2/hello/blobs/{DIGEST}")
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}", CONTENT)

    async def test_a_blob_of_another_image_is_mounted(self) -> None:
        await self.registry.push_blob("team/other", CONTENT)
        await self.assert_mounted(f"mount={DIGEST}&from=team/other")
        self.assertEqual(len(self.registry.files()), 1)

    async def test_the_other_image_goes_by_any_of_its_names(self) -> None:
        await self.registry.push_blob("other", CONTENT)
        await self.assert_mounted(f"mount={DIGEST}&from=local/other")
        await self.registry.push_blob("local/another", b"")
        await self.assert_mounted(f"mount={Digest.of(b'')}&from=another", Digest.of(b""))

    async def test_without_from_it_is_mounted_from_anywhere(self) -> None:
        await self.registry.push_blob("other", CONTENT)
        await self.assert_mounted(f"mount={DIGEST}")
        digest = await self.registry.push_blob("other", CONTENT, Algorithm.SHA512)
        await self.assert_mounted(f"mount={digest}&from=", digest)

    async def test_an_absent_blob_is_pushed_instead(self) -> None:
        await self.assert_session(f"mount={DIGEST}")

    async def test_a_blob_that_from_does_not_hold_is_pushed_instead(self) -> None:
        await self.registry.push_blob("other", CONTENT)
        await self.assert_session(f"mount={DIGEST}&from=nobody")

    async def test_a_manifest_is_no_blob_to_mount(self) -> None:
        digest = await self.registry.push_image("other", "v1")
        for query in (f"mount={digest}&from=other", f"mount={digest}"):
            await self.accepted(202, "POST", f"{UPLOADS}?{query}")

    async def test_a_digest_that_is_none_is_refused(self) -> None:
        for digest in ("nonsense", "sha256:abc", f"md5:{'a' * 32}"):
            path = f"{UPLOADS}?mount={digest}&from=other"
            await self.refused(400, "DIGEST_INVALID", "POST", path)

    async def test_a_from_that_is_no_name_here_holds_nothing(self) -> None:
        for name in ("Other", "../other", "a//b", "%00", "other/", "registry.example:5000/other"):
            await self.accepted(202, "POST", f"{UPLOADS}?mount={DIGEST}&from={name}")

    async def test_an_empty_mount_is_none(self) -> None:
        for query in ("mount=&from=other", "mount=", "mount=&from="):
            await self.accepted(202, "POST", f"{UPLOADS}?{query}")


class MountWithoutDefaultTests(ApiTestCase):
    toml = """
        [repository.local]
        kind = "local"
        [default]
        push = ""
    """

    async def test_a_from_that_belongs_to_no_repository_holds_nothing(self) -> None:
        path = f"/v2/local/hello/blobs/uploads/?mount={DIGEST}&from=docker.io/library/other"
        await self.accepted(202, "POST", path)
