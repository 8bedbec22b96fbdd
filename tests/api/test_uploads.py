"""distribution-spec, "Pushing a blob in chunks" and "POST then PUT": end-4 to end-6, 13, 14."""

from __future__ import annotations

import re

from artifactd.oci.names import Algorithm, Digest
from artifactd.registry import uploads
from tests.api.case import ApiTestCase, Connection
from tests.api.served import Served
from tests.programs import wait_for

CONTENT = b"0123456789"
DIGEST = Digest.of(CONTENT)
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


class StartTests(ApiTestCase):
    """end-4a, end-4c."""

    async def test_a_session_is_opened_at_a_relative_location_of_its_own(self) -> None:
        answers = [
            await self.accepted(202, "POST", "/v2/team/hello/blobs/uploads/", body)
            for body in (None, b"")
        ]
        locations = [answer.header("Location") or "" for answer in answers]
        self.assertEqual(len(set(locations)), 2)
        for location, answer in zip(locations, answers, strict=True):
            match = re.fullmatch(
                rf"/v2/team/hello/blobs/uploads/({UUID})[.\w-]{{0,80}}\?offset=0", location
            )
            assert match is not None, location
            self.assertEqual(answer.header("Docker-Upload-UUID"), match[1])
            self.assertEqual(answer.header("Range"), "0-0")
            self.assertEqual(answer.body, b"")
            self.assertIsNone(answer.header("OCI-Chunk-Min-Length"))

    async def test_its_location_may_be_asked_for_without_the_slash(self) -> None:
        await self.accepted(202, "POST", "/v2/hello/blobs/uploads")

    async def test_an_unsupported_algorithm_is_refused(self) -> None:
        path = "/v2/hello/blobs/uploads/?digest-algorithm="
        for algorithm in ("md5", "SHA256", "sha256:"):
            await self.refused(400, "DIGEST_INVALID", "POST", path + algorithm)

    async def test_a_session_of_another_algorithm_makes_blobs_of_it(self) -> None:
        digest = Digest.of(CONTENT, Algorithm.SHA512)
        location = await self.start_upload(query="?digest-algorithm=sha512")
        await self.accepted(202, "PATCH", location, CONTENT)
        await self.accepted(201, "PUT", f"{location}?digest={digest}")
        answer = await self.accepted(200, "GET", f"/v2/hello/blobs/{digest}")
        self.assertEqual(answer.body, CONTENT)

    async def test_an_algorithm_first_named_at_the_end_counts_too(self) -> None:
        digest = Digest.of(CONTENT, Algorithm.SHA512)
        location = await self.start_upload()
        await self.accepted(201, "PUT", f"{location}?digest={digest}", CONTENT)
        await self.accepted(200, "HEAD", f"/v2/hello/blobs/{digest}")


class MinimumChunkTests(ApiTestCase):
    toml = """
        min_chunk = "64KiB"
        [repository.local]
        kind = "local"
    """

    async def test_the_least_length_of_a_chunk_is_told_in_bytes(self) -> None:
        answer = await self.accepted(202, "POST", "/v2/hello/blobs/uploads/")
        self.assertEqual(answer.header("OCI-Chunk-Min-Length"), "65536")


class ChunkTests(ApiTestCase):
    """end-5, end-13."""

    async def test_chunks_are_appended_in_order(self) -> None:
        location = await self.start_upload()
        for first, last in ((0, 3), (4, 4), (5, 9)):
            answer = await self.accepted(
                202,
                "PATCH",
                location,
                CONTENT[first : last + 1],
                {"Content-Range": f"{first}-{last}"},
            )
            self.assertEqual(answer.header("Range"), f"0-{last}")
            self.assertEqual(answer.header("Location"), f"{location}?offset={last + 1}")
            uuid = location.rpartition("/")[2].partition(".")[0]
            self.assertEqual(answer.header("Docker-Upload-UUID"), uuid)
            await self.assert_offset(location, last + 1)
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_a_chunk_without_a_range_belongs_at_the_end(self) -> None:
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, CONTENT[:4])
        answer = await self.accepted(202, "PATCH", location, CONTENT[4:], chunked=True)
        self.assertEqual(answer.header("Range"), "0-9")
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_a_chunk_with_a_range_may_come_by_chunked_coding(self) -> None:
        location = await self.start_upload()
        headers = {"Content-Range": "0-9"}
        await self.accepted(202, "PATCH", location, CONTENT, headers, chunked=True)
        await self.assert_offset(location, 10)

    async def test_the_status_of_an_empty_session_is_0_0_and_its_next_chunk_at_0(self) -> None:
        location = await self.start_upload()
        answer = await self.accepted(204, "GET", location)
        self.assertEqual(answer.header("Range"), "0-0")
        self.assertEqual(answer.header("Location"), f"{location}?offset=0")
        answer = await self.accepted(202, "PATCH", location, b"")
        self.assertEqual(answer.header("Range"), "0-0")
        headers = {"Content-Range": "1-1"}
        await self.refused(416, "BLOB_UPLOAD_INVALID", "PATCH", location, b"1", headers)
        await self.accepted(202, "PATCH", location, b"0", {"Content-Range": "0-0"})

    async def test_a_body_cut_short_leaves_the_bytes_that_arrived(self) -> None:
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, CONTENT[:2])
        chunk = await Connection.begin_body(self, self.registry.port, "PATCH", location, 8)
        await chunk.send(CONTENT[2:5])
        chunk.leave()

        async def resumed() -> bool:
            # 416 as long as the registry has not noticed that the client is gone.
            headers = {"Content-Range": "5-9"}
            answer = await self.registry.request("PATCH", location, CONTENT[5:], headers)
            return answer.status == 202

        await wait_for(resumed)
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_status_and_chunks_need_a_session_of_that_image(self) -> None:
        location = await self.start_upload()
        elsewhere = location.replace("/hello/", "/other/")
        unknown = "/v2/hello/blobs/uploads/00000000-0000-4000-8000-000000000000"
        for path in (elsewhere, unknown, "/v2/hello/blobs/uploads/nonsense"):
            await self.refused(404, "BLOB_UPLOAD_UNKNOWN", "GET", path)
            await self.refused(404, "BLOB_UPLOAD_UNKNOWN", "PATCH", path, CONTENT)
            await self.refused(404, "BLOB_UPLOAD_UNKNOWN", "DELETE", path)
            close = f"{path}?digest={DIGEST}"
            await self.refused(404, "BLOB_UPLOAD_UNKNOWN", "PUT", close, CONTENT)
        await self.accepted(204, "GET", location)


class CloseTests(ApiTestCase):
    """end-6."""

    async def test_the_whole_blob_may_come_at_the_end(self) -> None:
        location = await self.start_upload()
        answer = await self.accepted(
            201,
            "PUT",
            f"{location}?digest={DIGEST}",
            CONTENT,
            {"Content-Type": "application/octet-stream"},
        )
        self.assertEqual(answer.header("Location"), f"/v2/hello/blobs/{DIGEST}")
        self.assertEqual(answer.header("Docker-Content-Digest"), str(DIGEST))
        got = await self.accepted(200, "GET", answer.header("Location") or "")
        self.assertEqual(got.body, CONTENT)

    async def test_the_last_chunk_may_come_at_the_end(self) -> None:
        for headers in ({}, {"Content-Range": "4-9"}):
            for chunked in (False, True):
                location = await self.start_upload("image")
                await self.accepted(202, "PATCH", location, CONTENT[:4])
                path = f"{location}?digest={DIGEST}"
                await self.accepted(201, "PUT", path, CONTENT[4:], headers, chunked=chunked)

    async def test_a_blob_of_no_bytes_is_pushed(self) -> None:
        location = await self.start_upload()
        digest = Digest.of(b"")
        await self.accepted(201, "PUT", f"{location}?digest={digest}")
        await self.accepted(200, "GET", f"/v2/hello/blobs/{digest}")

    async def test_a_closed_session_is_gone_and_leaves_one_file(self) -> None:
        location = await self.start_upload()
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}", CONTENT)
        await self.refused(404, "BLOB_UPLOAD_UNKNOWN", "GET", location)
        encoded = DIGEST.encoded
        self.assertEqual(self.registry.files(), [f"blobs/sha256/{encoded[:2]}/{encoded}"])


class LocationTests(ApiTestCase):
    """A ``Location`` says where its next chunk belongs, so that no body is appended twice."""

    async def begun(self) -> str:
        """The first Location of a session."""
        answer = await self.accepted(202, "POST", "/v2/hello/blobs/uploads/")
        return answer.header("Location") or ""

    async def test_a_body_that_is_sent_again_is_not_appended(self) -> None:
        first = await self.begun()
        await self.accepted(202, "PATCH", first, CONTENT)
        for method, path in (("PATCH", first), ("PUT", f"{first}&digest={DIGEST}")):
            for chunked in (False, True):
                answer = await self.refused(
                    416, "BLOB_UPLOAD_INVALID", method, path, CONTENT, chunked=chunked
                )
                self.assertEqual(answer.header("Range"), "0-9")
                self.assertEqual(answer.header("Location"), first.replace("=0", "=10"))
        await self.accepted(201, "PUT", f"{answer.header('Location')}&digest={DIGEST}")

    async def test_a_body_that_waits_to_be_asked_for_is_refused_unread(self) -> None:
        first = await self.begun()
        await self.accepted(202, "PATCH", first, CONTENT)
        for method, path in (("PATCH", first), ("PUT", f"{first}&digest={DIGEST}")):
            again = Connection(self, self.registry.port)
            headers = (f"Content-Length: {1 << 20}", "Expect: 100-continue")
            await again.head(f"{method} {path}", *headers)
            self.assert_error(await again.answer(), 416, "BLOB_UPLOAD_INVALID")

    async def test_a_large_body_goes_on_at_the_location_of_the_last_answer(self) -> None:
        content = bytes(3 << 19)
        where = await self.begun()
        for piece in (content[: 1 << 20], content[1 << 20 :]):
            first = where
            where = (await self.accepted(202, "PATCH", where, piece)).header("Location") or ""
            answer = await self.refused(416, "BLOB_UPLOAD_INVALID", "PATCH", first, piece)
            self.assertEqual(answer.header("Location"), where)
        await self.accepted(201, "PUT", f"{where}&digest={Digest.of(content)}")

    async def test_the_range_of_a_chunk_counts_more_than_its_location(self) -> None:
        first = await self.begun()
        await self.accepted(202, "PATCH", first, CONTENT[:4])
        await self.accepted(202, "PATCH", first, CONTENT[4:], {"Content-Range": "4-9"})
        await self.accepted(201, "PUT", f"{first}&digest={DIGEST}")

    async def test_a_request_without_a_body_may_name_any_offset(self) -> None:
        first = await self.begun()
        await self.accepted(202, "PATCH", first, CONTENT)
        answer = await self.accepted(202, "PATCH", first, b"")
        self.assertEqual(answer.header("Range"), "0-9")
        answer = await self.accepted(204, "GET", first)
        self.assertEqual(answer.header("Location"), first.replace("=0", "=10"))
        await self.accepted(201, "PUT", f"{first}&digest={DIGEST}", b"")

    async def test_so_may_one_whose_body_turns_out_to_have_no_bytes(self) -> None:
        """Whether it ends at once, late, or is not gathered since a quota or a limit applies."""
        self.patch(uploads, "PROMPT", 0.0)
        limited = Served.start(self, '[limits]\nblob_size = "1MiB"\n')
        for registry in (self.registry, limited):
            self.registry = registry
            first = await self.begun()
            await self.accepted(202, "PATCH", first, CONTENT)
            for method, path, status in (
                ("PATCH", first, 202),
                ("PUT", f"{first}&digest={DIGEST}", 201),
                ("PUT", f"{first}&digest={DIGEST}", 201),
            ):
                connection = Connection(self, registry.port)
                await connection.head(f"{method} {path}", "Transfer-Encoding: chunked")
                await connection.send(b"0\r\n\r\n")
                self.assertEqual((await connection.answer()).status, status)

    async def test_a_body_of_unknown_length_is_refused_at_its_first_byte(self) -> None:
        self.patch(uploads, "PROMPT", 0.0)
        first = await self.begun()
        await self.accepted(202, "PATCH", first, CONTENT)
        for method, path in (("PATCH", first), ("PUT", f"{first}&digest={DIGEST}")):
            connection = Connection(self, self.registry.port)
            await connection.head(f"{method} {path}", "Transfer-Encoding: chunked")
            await connection.send(b"1\r\na\r\n")
            answer = await connection.answer()
            self.assert_error(answer, 416, "BLOB_UPLOAD_INVALID")
            self.assertEqual(answer.header("Range"), "0-9")
        answer = await self.accepted(204, "GET", first)
        self.assertEqual(answer.header("Location"), first.replace("=0", "=10"))

    async def test_a_digest_may_be_added_as_if_the_location_had_no_query(self) -> None:
        for digest in (str(DIGEST), str(DIGEST).replace(":", "%3A")):
            first = await self.begun()
            await self.accepted(201, "PUT", f"{first}?digest={digest}", CONTENT)
            await self.accepted(200, "HEAD", f"/v2/hello/blobs/{DIGEST}")

    async def test_an_offset_that_is_no_number_is_refused(self) -> None:
        where = (await self.begun()).partition("?")[0]
        for offset in ("", "x", "-1", "1.5", "%D9%A1", "9" * 30):
            await self.refused(400, "UNSUPPORTED", "PATCH", f"{where}?offset={offset}", CONTENT)


class LostAnswerTests(ApiTestCase):
    async def test_a_session_is_closed_again_if_the_image_has_the_blob(self) -> None:
        large = bytes(1 << 20)
        for content in (CONTENT, large):
            location = await self.start_upload()
            path = f"{location}?digest={Digest.of(content)}"
            for body in (content, content, b""):
                answer = await self.accepted(201, "PUT", path, body)
                self.assertEqual(answer.header("Location"), f"/v2/hello/blobs/{Digest.of(content)}")
        self.assertEqual(len(self.registry.files()), 2)

    async def test_not_so_for_a_blob_that_only_another_image_has(self) -> None:
        location = await self.start_upload("other")
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}", CONTENT)
        path = f"{location.replace('/other/', '/hello/')}?digest={DIGEST}"
        await self.refused(404, "BLOB_UPLOAD_UNKNOWN", "PUT", path, CONTENT)


class CancelTests(ApiTestCase):
    """end-14."""

    async def test_a_cancelled_session_leaves_nothing(self) -> None:
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, CONTENT)
        answer = await self.accepted(204, "DELETE", location)
        self.assertEqual(answer.body, b"")
        self.assertEqual(self.registry.files(), [])
        for method in ("GET", "PATCH", "DELETE"):
            await self.refused(404, "BLOB_UPLOAD_UNKNOWN", method, location)

    async def test_a_session_is_cancelled_while_it_is_written_to(self) -> None:
        location = await self.start_upload()
        chunk = await Connection.begin_body(self, self.registry.port, "PATCH", location, 10)
        await chunk.send(CONTENT[:5])
        await self.accepted(204, "DELETE", location)
        await chunk.send(CONTENT[5:])
        self.assert_error(await chunk.answer(), 404, "BLOB_UPLOAD_UNKNOWN")
        self.assertEqual(self.registry.files(), [])
