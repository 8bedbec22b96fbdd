"""What a session is like after a chunk has been refused."""

from __future__ import annotations

from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase, Connection

CONTENT = b"0123456789"
DIGEST = Digest.of(CONTENT)


class ChunkRefusalTests(ApiTestCase):
    """Each of them leaves the session at its old offset, on PATCH and on PUT."""

    async def begun(self) -> tuple[str, list[tuple[str, str]]]:
        """The location of a session with four bytes; and the requests that may follow."""
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, CONTENT[:4])
        return location, [("PATCH", location), ("PUT", f"{location}?digest={DIGEST}")]

    async def test_a_chunk_out_of_order_tells_where_to_go_on(self) -> None:
        location, requests = await self.begun()
        for method, path in requests:
            for first, chunked in ((0, False), (3, False), (5, True), (10**18, False)):
                headers = {"Content-Range": f"{first}-{first + 5}"}
                answer = await self.refused(
                    416, "BLOB_UPLOAD_INVALID", method, path, CONTENT[4:], headers, chunked=chunked
                )
                self.assertEqual(answer.header("Range"), "0-3")
                self.assertEqual(answer.header("Location"), f"{location}?offset=4")
                await self.assert_offset(location, 4)
        await self.accepted(201, "PUT", requests[1][1], CONTENT[4:], {"Content-Range": "4-9"})

    async def test_the_first_chunk_begins_at_0(self) -> None:
        location = await self.start_upload()
        headers = {"Content-Range": "1-10"}
        answer = await self.refused(416, "BLOB_UPLOAD_INVALID", "PATCH", location, CONTENT, headers)
        self.assertEqual(answer.header("Range"), "0-0")

    async def test_a_range_that_is_none_is_refused(self) -> None:
        location, requests = await self.begun()
        for method, path in requests:
            for text in (
                "bytes 4-9/10",
                "bytes=4-9",
                "4-",
                "-9",
                "9-4",
                "4-9/10",
                "4 - 9",
                "x",
                "",
            ):
                headers = {"Content-Range": text}
                await self.refused(400, "BLOB_UPLOAD_INVALID", method, path, CONTENT[4:], headers)
        await self.assert_offset(location, 4)

    async def test_a_body_whose_length_is_not_the_ranges_is_refused(self) -> None:
        location, requests = await self.begun()
        for method, path in requests:
            for last in (8, 10):
                headers = {"Content-Range": f"4-{last}"}
                await self.refused(400, "SIZE_INVALID", method, path, CONTENT[4:], headers)
        await self.assert_offset(location, 4)

    async def test_a_range_without_a_body_is_refused(self) -> None:
        location, requests = await self.begun()
        for method, path in requests:
            await self.refused(400, "SIZE_INVALID", method, path, None, {"Content-Range": "4-9"})
        await self.assert_offset(location, 4)

    async def test_a_chunked_body_whose_length_is_not_the_ranges_is_taken_back(self) -> None:
        location, requests = await self.begun()
        for method, path in requests:
            for last in (8, 10):
                headers = {"Content-Range": f"4-{last}"}
                await self.refused(
                    400, "SIZE_INVALID", method, path, CONTENT[4:], headers, chunked=True
                )
                await self.assert_offset(location, 4)
        await self.accepted(201, "PUT", requests[1][1], CONTENT[4:], {"Content-Range": "4-9"})

    async def test_bytes_taken_back_are_not_in_the_digest(self) -> None:
        location, _ = await self.begun()
        headers = {"Content-Range": "4-5"}
        await self.refused(
            400, "SIZE_INVALID", "PATCH", location, b"wrong bytes", headers, chunked=True
        )
        await self.accepted(202, "PATCH", location, CONTENT[4:])
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_a_refusal_does_not_wait_for_the_body(self) -> None:
        location, _ = await self.begun()
        connection = Connection(self, self.registry.port)
        await connection.head(f"PATCH {location}", "Content-Range: 9-1008", "Content-Length: 1000")
        answer = await connection.answer()
        self.assert_error(answer, 416, "BLOB_UPLOAD_INVALID")
        self.assertEqual(answer.header("Connection"), "close")
        await self.assert_offset(location, 4)

    async def test_closing_needs_a_digest(self) -> None:
        location, _ = await self.begun()
        for query in ("", "?digest=", "?digest=sha256:abc", f"?digest=md5:{'a' * 32}"):
            await self.refused(400, "DIGEST_INVALID", "PUT", location + query, CONTENT[4:])
        await self.assert_offset(location, 4)


class DigestMismatchTests(ApiTestCase):
    async def test_a_wrong_digest_ends_the_session(self) -> None:
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, CONTENT[:4])
        answer = await self.registry.request("PUT", f"{location}?digest={DIGEST}", b"wrong")
        detail = self.assert_error(answer, 400, "DIGEST_INVALID")
        self.assertEqual(detail["digest"], str(DIGEST))
        self.assertEqual(detail["actual"], str(Digest.of(b"0123wrong")))
        await self.refused(404, "BLOB_UPLOAD_UNKNOWN", "GET", location)
        await self.refused(404, "BLOB_UNKNOWN", "GET", f"/v2/hello/blobs/{DIGEST}")
        self.assertEqual(self.registry.files(), [])

    async def test_it_does_not_take_away_the_blob_of_the_same_bytes(self) -> None:
        pushed = await self.registry.push_blob("hello", b"wrong")
        location = await self.start_upload()
        answer = await self.registry.request("PUT", f"{location}?digest={DIGEST}", b"wrong")
        self.assert_error(answer, 400, "DIGEST_INVALID")
        await self.accepted(200, "GET", f"/v2/hello/blobs/{pushed}")
