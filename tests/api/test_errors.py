"""distribution-spec, "Error Codes"; unknown routes and methods; what fails unexpectedly."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from twisted.logger import formatEvent

from artifactd.oci.names import Digest
from artifactd.web.server.sendfile import BlobReader
from tests.api.case import ApiTestCase, Connection
from tests.process import Answer

DIGEST = Digest.of(b"content")
UPLOAD = "/v2/hello/blobs/uploads/00000000-0000-4000-8000-000000000000"


class RouteTests(ApiTestCase):
    async def test_an_unknown_route_is_unknown(self) -> None:
        for path in ("/", "/v1/", "/v2/hello", "/v2/hello/tags", "/v2/hello/blobs", "/favicon.ico"):
            await self.refused(404, "NAME_UNKNOWN", "GET", path)
            await self.refused(404, "NAME_UNKNOWN", "POST", path, b"content")
            head = await self.accepted(404, "HEAD", path)
            self.assertEqual(head.body, b"")

    async def test_a_method_that_is_not_allowed_is_told_which_are(self) -> None:
        for path, allowed in (
            ("/v2/", "GET, HEAD"),
            ("/v2/_catalog", "GET, HEAD"),
            ("/v2/hello/tags/list", "GET, HEAD"),
            (f"/v2/hello/referrers/{DIGEST}", "GET, HEAD"),
            (f"/v2/hello/blobs/{DIGEST}", "DELETE, GET, HEAD"),
            ("/v2/hello/manifests/v1", "DELETE, GET, HEAD, PUT"),
            (UPLOAD, "DELETE, GET, HEAD, PATCH, PUT"),
            ("/v2/hello/blobs/uploads/", "POST, PUT"),
        ):
            for method in ("PATCH", "OPTIONS", "TRACE", "BREW", "DELETE"):
                if method not in allowed:
                    answer = await self.refused(405, "UNSUPPORTED", method, path)
                    found = sorted((answer.header("Allow") or "").split(", "))
                    self.assertEqual(", ".join(found), allowed)


class AnswerTests(ApiTestCase):
    async def test_every_answer_says_the_version_of_the_api(self) -> None:
        digest = await self.registry.push_image("hello", "v1", b"layer")
        location = await self.start_upload()
        for method, path, status in (
            ("GET", "/v2/", 200),
            ("GET", f"/v2/hello/blobs/{Digest.of(b'layer')}", 200),
            ("HEAD", f"/v2/hello/manifests/{digest}", 200),
            ("HEAD", "/v2/hello/manifests/absent", 404),
            ("GET", "/v2/hello/tags/list", 200),
            ("GET", location, 204),
            ("DELETE", location, 204),
            ("GET", "/nowhere", 404),
            ("POST", "/v2/", 405),
            ("GET", "/v2//", 400),
        ):
            answer = await self.accepted(status, method, path)
            version = answer.header("Docker-Distribution-Api-Version")
            self.assertEqual(version, "registry/2.0", (method, path))

    async def test_head_never_has_a_body(self) -> None:
        digest = await self.registry.push_image("hello", "v1", b"layer")
        for path in (
            "/v2/",
            "/v2/_catalog",
            "/v2/hello/tags/list",
            "/v2/nobody/tags/list",
            f"/v2/hello/referrers/{digest}",
            f"/v2/hello/blobs/{Digest.of(b'layer')}",
            f"/v2/hello/blobs/{DIGEST}",
            "/v2/hello/blobs/nonsense",
            f"/v2/hello/manifests/{digest}",
            "/v2/hello/manifests/absent",
            "/v2/HELLO/manifests/v1",
            "/v2/hello/blobs/uploads/",
            "/v2/a%2fb/tags/list",
            "/nowhere",
        ):
            connection = Connection(self, self.registry.port)
            await connection.head(f"HEAD {path}", "Connection: close")
            received = await connection.rest()
            self.assertTrue(received.startswith(b"HTTP/1.1 "), received)
            self.assertTrue(received.endswith(b"\r\n\r\n"), received)

    async def test_an_error_before_the_end_of_a_body_is_read_by_the_client(self) -> None:
        body = b"x" * 5_000_000
        for method, path in (
            ("POST", "/nowhere"),
            ("PATCH", UPLOAD),
            ("PUT", "/v2/HELLO/manifests/v1"),
            ("POST", "/v2/a%2Fb/blobs/uploads/"),
            ("DELETE", "/v2/"),
        ):
            for chunked in (False, True):
                answer = await self.registry.request(method, path, body, chunked=chunked)
                self.assertIn(answer.status, (400, 404, 405))
                self.assertEqual(len(json.loads(answer.body)["errors"]), 1)

    async def test_header_fields_of_any_bytes_are_answered(self) -> None:
        digest = await self.registry.push_image("hello", "v1", b"layer")
        location = await self.start_upload()
        blob = f"/v2/hello/blobs/{Digest.of(b'layer')}"
        strange = "\xe9\xff"
        for line, name, status in (
            (f"GET {blob}", "Range", 200),
            (f"GET {blob}", "If-None-Match", 200),
            (f"GET {blob}", "If-Range", 200),
            (f"GET {blob}", "User-Agent", 200),
            (f"PATCH {location}", "Content-Range", 400),
            (f"PUT /v2/hello/manifests/{digest}", "Content-Type", 400),
            (f"GET {blob}", "Expect", 200),
        ):
            connection = Connection(self, self.registry.port)
            await connection.head(line, f"{name}: {strange}", "Content-Length: 0")
            self.assertEqual((await connection.answer()).status, status, (line, name))


class UnexpectedTests(ApiTestCase):
    def only_file(self) -> Path:
        """The only file of the store."""
        (name,) = self.registry.files()
        return self.registry.data / name

    async def failing(self) -> Answer:
        """The answer to a GET of a blob in whose place somebody has put a symbolic link."""
        digest = await self.registry.push_blob("hello", b"content")
        path = self.only_file()
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
        return await self.registry.request("GET", f"/v2/hello/blobs/{digest}")

    async def test_the_client_is_told_an_id_that_the_log_carries(self) -> None:
        detail = self.assert_error(await self.failing(), 500, "UNKNOWN")
        (event,) = [event for event in self.log.events if "request_id" in event]
        self.assertEqual(detail, {"requestId": event["request_id"]})
        self.assertRegex(detail["requestId"], "^[0-9a-f]{16}$")
        (failure,) = self.flushLoggedErrors(RuntimeError)
        self.assertIn("local/hello", failure.getErrorMessage())

    async def test_the_client_is_told_nothing_of_the_inside(self) -> None:
        answer = await self.failing()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        for secret in (str(self.registry.data), "Traceback", "RuntimeError", "regular file"):
            self.assertNotIn(secret, answer.body.decode())

    async def test_a_blob_that_is_lost_is_not_there(self) -> None:
        digest = await self.registry.push_blob("hello", b"content")
        self.only_file().unlink()
        await self.assert_lost("BLOB_UNKNOWN", f"/v2/hello/blobs/{digest}", digest)

    async def test_a_blob_that_has_lost_bytes_is_not_there(self) -> None:
        digest = await self.registry.push_blob("hello", b"content")
        path = self.only_file()
        path.chmod(0o600)
        path.write_bytes(b"cont")
        await self.assert_lost("BLOB_UNKNOWN", f"/v2/hello/blobs/{digest}", digest)

    async def test_a_manifest_whose_bytes_have_changed_is_not_there(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        path = self.registry.data / "blobs" / "sha256" / digest.encoded[:2] / digest.encoded
        path.chmod(0o600)
        path.write_bytes(path.read_bytes().replace(b"layers", b"LAYERS"))
        await self.assert_lost("MANIFEST_UNKNOWN", "/v2/hello/manifests/v1", digest)

    async def assert_lost(self, code: str, path: str, digest: Digest) -> None:
        """Clients are told to push it again; the log names it."""
        self.log.events.clear()
        self.assert_error(await self.registry.request("GET", path), 404, code)
        logged = [formatEvent(event) for event in self.log.events]
        self.assertTrue(any(str(digest) in line and "local/hello" in line for line in logged))


class BrokenReadTests(ApiTestCase):
    async def test_an_error_has_no_field_of_the_answer_in_whose_place_it_is(self) -> None:
        digest = await self.registry.push_blob("hello", b"content" * 100_000)

        def cached(reader: BlobReader, first: int, length: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        self.patch(BlobReader, "cached", cached)
        part = {"Range": "bytes=1-100"}
        answer = await self.refused(503, "UNKNOWN", "GET", f"/v2/hello/blobs/{digest}", None, part)
        for name in ("Cache-Control", "ETag", "Docker-Content-Digest", "Accept-Ranges"):
            self.assertIsNone(answer.header(name), name)
        self.assertEqual(answer.headers.get_all("Server-Timing", [""])[1:], [])
