"""Two daemons on one data folder: any of them serves any step."""

from __future__ import annotations

import json
import signal

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import image_manifest
from tests.crash.upload import CONTENT, Upload, send, status
from tests.process import Answer, Daemon

DIGEST = Digest.of(CONTENT)
HALF = len(CONTENT) // 2
CONFIG = b"{}"


class TwoProcessTests(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.one = await Daemon.start(self)
        self.other = await Daemon.start(self, data=self.one.data)

    async def tag(self, daemon: Daemon, tag: str, number: int) -> Digest:
        """Let ``tag`` point at a manifest like no other; its digest."""
        manifest = image_manifest(CONFIG, annotations={"number": str(number)})
        return await daemon.push_manifest("crash", tag, manifest)

    async def test_an_upload_wanders_between_them(self) -> None:
        upload = await Upload.start(self.one)
        third = len(CONTENT) // 3

        async def append(daemon: Daemon, first: int, end: int) -> Answer:
            headers = {"Content-Range": f"{first}-{end - 1}"}
            return await daemon.request(
                "PATCH", upload.path, body=CONTENT[first:end], headers=headers
            )

        answer = await append(self.other, 0, third)
        self.assertEqual((answer.status, answer.header("Range")), (202, f"0-{third - 1}"))
        answer = await append(self.one, third, 2 * third)
        self.assertEqual((answer.status, answer.header("Range")), (202, f"0-{2 * third - 1}"))
        self.assertEqual(await upload.offset(self.other), 2 * third)
        answer = await self.other.request(
            "PUT", f"{upload.path}?digest={DIGEST}", body=CONTENT[2 * third :]
        )
        self.assertEqual(answer.status, 201)
        for daemon in (self.one, self.other):
            answer = await daemon.request("GET", f"/v2/crash/blobs/{DIGEST}")
            self.assertEqual(answer.status, 200)
            self.assertTrue(answer.body == CONTENT, "other bytes than were pushed")
            self.assertEqual((await daemon.request("GET", upload.path)).status, 404)

    async def test_while_one_receives_a_chunk_the_other_takes_none(self) -> None:
        upload = await Upload.start(self.one)
        chunk = await send(
            self, self.one, "PATCH", upload.path, CONTENT[:HALF], length=len(CONTENT)
        )
        await upload.receiving(self.other)
        for method, path in (("PATCH", upload.path), ("PUT", f"{upload.path}?digest={DIGEST}")):
            answer = await self.other.request(method, path, body=b"too much")
            self.assertEqual(answer.status, 416, answer)
            self.assertEqual(json.loads(answer.body)["errors"][0]["code"], "BLOB_UPLOAD_INVALID")
            first, _, last = (answer.header("Range") or "").partition("-")
            self.assertEqual(first, "0")
            self.assertTrue(0 < int(last) < HALF, last)
        chunk.send(CONTENT[HALF:])
        self.assertEqual(await status(chunk), 202)
        answer = await self.other.request("PUT", f"{upload.path}?digest={DIGEST}")
        self.assertEqual(answer.status, 201)

    async def test_a_chunk_that_one_was_killed_over_is_taken_on_by_the_other(self) -> None:
        upload = await Upload.start(self.one)
        await send(self, self.one, "PATCH", upload.path, CONTENT[:HALF], length=len(CONTENT))
        await upload.receiving(self.other)
        self.assertEqual(await self.one.kill(), -signal.SIGKILL)
        offset = await upload.offset(self.other)
        answer = await self.other.request(
            "PUT", f"{upload.path}?digest={DIGEST}", body=CONTENT[offset:]
        )
        self.assertEqual(answer.status, 201)

    async def test_a_tag_moved_through_one_is_seen_at_once_through_the_other(self) -> None:
        await self.one.push_blob("crash", CONFIG)
        for number in range(100):
            mover, reader = (self.one, self.other)[:: 1 if number % 2 else -1]
            moved = await self.tag(mover, "latest", number)
            for daemon in (reader, mover):
                answer = await daemon.request("GET", "/v2/crash/manifests/latest")
                self.assertEqual(answer.status, 200)
                self.assertEqual(Digest.of(answer.body), moved, f"stale at move {number}")

    async def test_what_one_deletes_the_other_has_no_more(self) -> None:
        await self.one.push_blob("crash", CONFIG)
        for number in range(20):
            deleter, reader = (self.one, self.other)[:: 1 if number % 2 else -1]
            digest = await self.tag(deleter, "doomed", number)
            paths = ("/v2/crash/manifests/doomed", f"/v2/crash/manifests/{digest}")
            for path in paths:
                self.assertEqual((await reader.request("GET", path)).status, 200)
            self.assertEqual((await deleter.request("DELETE", paths[1])).status, 202)
            for path in paths:
                self.assertEqual((await reader.request("GET", path)).status, 404, path)
        blob = f"/v2/crash/blobs/{Digest.of(CONFIG)}"
        self.assertEqual((await self.other.request("GET", blob)).status, 200)
        self.assertEqual((await self.one.request("DELETE", blob)).status, 202)
        self.assertEqual((await self.other.request("GET", blob)).status, 404)

    async def test_of_two_that_create_the_same_tag_only_if_absent_one_does(self) -> None:
        await self.one.push_blob("crash", CONFIG)
        for number in range(20):
            answers = await gatherResults(
                Deferred.fromCoroutine(
                    daemon.request(
                        "PUT",
                        f"/v2/crash/manifests/only-{number}",
                        body=image_manifest(CONFIG, annotations={"by": daemon.address}),
                        headers={"Content-Type": OCI_MANIFEST, "If-None-Match": "*"},
                    )
                )
                for daemon in (self.one, self.other)
            )
            self.assertEqual(sorted(answer.status for answer in answers), [201, 412])

    async def test_one_ends_and_the_other_goes_on(self) -> None:
        await self.one.push_blob("crash", CONTENT)
        self.assertEqual(await self.one.kill(signal.SIGTERM), -signal.SIGTERM)
        answer = await self.other.request("GET", f"/v2/crash/blobs/{DIGEST}")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.body == CONTENT, "other bytes than were pushed")
        self.assertEqual(await self.other.kill(signal.SIGTERM), -signal.SIGTERM)
        for daemon in (self.one, self.other):
            self.assertIn("Server Shut Down.", daemon.process.output)
            self.assertNotIn("Traceback", daemon.process.output)
