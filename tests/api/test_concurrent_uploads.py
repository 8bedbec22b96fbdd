"""Several clients at one session, or at one digest."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase, Connection
from tests.programs import wait_for

HALF = b"a" * 3_000_000
DIGEST = Digest.of(HALF + HALF)


class OneSessionTests(ApiTestCase):
    async def begin(self, location: str) -> Connection:
        """A chunk under way, half of which has been sent."""
        length = 2 * len(HALF)
        chunk = await Connection.begin_body(self, self.registry.port, "PATCH", location, length)
        await chunk.send(HALF)
        return chunk

    async def test_one_chunk_wins_and_no_byte_is_mixed(self) -> None:
        location = await self.start_upload()
        chunk = await self.begin(location)
        for headers in ({}, {"Content-Range": "0-3"}):
            for method, path in (("PATCH", location), ("PUT", f"{location}?digest={DIGEST}")):
                answer = await self.registry.request(method, path, b"evil", headers)
                self.assert_error(answer, 416, "BLOB_UPLOAD_INVALID")
                self.assertRegex(answer.header("Location") or "", rf"^{location}\?offset=\d+$")
                self.assertRegex(answer.header("Range") or "", r"^0-\d+$")
        await chunk.send(HALF)
        answer = await chunk.answer()
        self.assertEqual((answer.status, answer.header("Range")), (202, f"0-{2 * len(HALF) - 1}"))
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_its_status_tells_how_far_it_is(self) -> None:
        location = await self.start_upload()
        chunk = await self.begin(location)

        async def moved() -> bool:
            status = await self.accepted(204, "GET", location)
            return status.header("Range") != "0-0"

        await wait_for(moved)
        await chunk.send(HALF)
        self.assertEqual((await chunk.answer()).status, 202)


class OneDigestTests(ApiTestCase):
    async def test_pushes_of_one_blob_all_succeed_and_make_one_file(self) -> None:
        path = f"/v2/hello/blobs/uploads/?digest={DIGEST}"
        pushes = [
            await Connection.begin_body(self, self.registry.port, "POST", path, 2 * len(HALF))
            for _ in range(2)
        ]
        location = await self.start_upload("other")
        await self.accepted(202, "PATCH", location, HALF)
        pushes.append(
            await Connection.begin_body(
                self, self.registry.port, "PUT", f"{location}?digest={DIGEST}", len(HALF)
            )
        )
        for push in pushes:
            await push.send(HALF)
        for push in pushes[:2]:
            await push.send(HALF[1:])
        for push in pushes[:2]:
            await push.send(HALF[:1])
        answers = await gatherResults([Deferred.fromCoroutine(push.answer()) for push in pushes])
        self.assertEqual([answer.status for answer in answers], [201] * 3)
        encoded = DIGEST.encoded
        self.assertEqual(self.registry.files(), [f"blobs/sha256/{encoded[:2]}/{encoded}"])
        for name in ("hello", "other"):
            await self.accepted(200, "HEAD", f"/v2/{name}/blobs/{DIGEST}")
