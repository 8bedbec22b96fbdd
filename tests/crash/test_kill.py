"""``kill -9`` at a chosen moment of a push; of two workers and their supervisor."""

from __future__ import annotations

import signal

from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import image_manifest
from tests.crash.upload import CONTENT, Upload, send, status
from tests.process import Daemon

DIGEST = Digest.of(CONTENT)
BLOB = f"/v2/crash/blobs/{DIGEST}"
HALF = len(CONTENT) // 2


class KillTests(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.daemon = await Daemon.start(self, workers="2")

    async def crash(self) -> None:
        self.assertEqual(await self.daemon.kill(), -signal.SIGKILL)
        await self.daemon.restart()

    async def assert_blob_is_whole(self) -> None:
        answer = await self.daemon.request("GET", BLOB)
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.body == CONTENT, "other bytes than were pushed")

    async def assert_no_blob(self) -> None:
        self.assertEqual((await self.daemon.request("HEAD", BLOB)).status, 404)
        self.assertEqual(list(self.daemon.data.glob("blobs/*/*/*")), [])

    async def test_a_chunk_that_was_cut_goes_on_where_it_was_cut(self) -> None:
        upload = await Upload.start(self.daemon)
        await send(self, self.daemon, "PATCH", upload.path, CONTENT[:HALF], length=len(CONTENT))
        await upload.receiving(self.daemon)
        await self.crash()
        offset = await upload.offset(self.daemon)
        self.assertEqual(offset, upload.file(self.daemon.data).stat().st_size)
        self.assertTrue(0 < offset <= HALF, offset)
        answer = await self.daemon.request(
            "PATCH",
            upload.path,
            body=CONTENT[offset:],
            headers={"Content-Range": f"{offset}-{len(CONTENT) - 1}"},
        )
        self.assertEqual(answer.status, 202)
        await self.assert_no_blob()
        answer = await self.daemon.request("PUT", f"{upload.path}?digest={DIGEST}")
        self.assertEqual(answer.status, 201)
        await self.assert_blob_is_whole()

    async def test_a_closing_put_that_was_cut_can_be_sent_again_from_there(self) -> None:
        upload = await Upload.start(self.daemon)
        close = f"{upload.path}?digest={DIGEST}"
        await send(self, self.daemon, "PUT", close, CONTENT[:HALF], length=len(CONTENT))
        await upload.receiving(self.daemon)
        await self.crash()
        await self.assert_no_blob()
        offset = await upload.offset(self.daemon)
        self.assertTrue(0 < offset <= HALF, offset)
        answer = await self.daemon.request(
            "PUT",
            close,
            body=CONTENT[offset:],
            headers={"Content-Range": f"{offset}-{len(CONTENT) - 1}"},
        )
        self.assertEqual(answer.status, 201)
        await self.assert_blob_is_whole()

    async def test_a_session_without_bytes_is_still_there(self) -> None:
        upload = await Upload.start(self.daemon)
        await self.crash()
        answer = await self.daemon.request("PUT", f"{upload.path}?digest={DIGEST}", body=CONTENT)
        self.assertEqual(answer.status, 201)
        await self.assert_blob_is_whole()

    async def test_a_blob_is_whole_from_its_201_on(self) -> None:
        upload = await Upload.start(self.daemon)
        closing = await send(
            self, self.daemon, "PUT", f"{upload.path}?digest={DIGEST}", body=CONTENT
        )
        self.assertEqual(await status(closing), 201)
        await self.crash()
        await self.assert_blob_is_whole()
        self.assertEqual((await self.daemon.request("GET", upload.path)).status, 404)

    async def test_a_manifest_and_its_tag_are_there_from_its_201_on(self) -> None:
        config, layer = b"{}", b"layer"
        await self.daemon.push_blob("crash", config)
        await self.daemon.push_blob("crash", layer)
        manifest = image_manifest(config, layer)
        putting = await send(
            self,
            self.daemon,
            "PUT",
            "/v2/crash/manifests/latest",
            body=manifest,
            headers={"Content-Type": OCI_MANIFEST},
        )
        self.assertEqual(await status(putting), 201)
        await self.crash()
        for reference in ("latest", str(Digest.of(manifest))):
            answer = await self.daemon.request("GET", f"/v2/crash/manifests/{reference}")
            self.assertEqual((answer.status, answer.body), (200, manifest))

    async def test_what_was_deleted_stays_away_from_the_202_on(self) -> None:
        await self.daemon.push_blob("crash", CONTENT)
        self.assertEqual(await status(await send(self, self.daemon, "DELETE", BLOB)), 202)
        await self.crash()
        self.assertEqual((await self.daemon.request("HEAD", BLOB)).status, 404)
