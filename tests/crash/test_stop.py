"""SIGTERM, with requests under way; of one process, and of two workers and their supervisor."""

from __future__ import annotations

import os
import signal

from twisted.internet.interfaces import IPushProducer
from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.crash.upload import CONTENT, Upload, connect, send, status
from tests.process import Daemon
from tests.programs import wait_for

DIGEST = Digest.of(CONTENT)
HALF = len(CONTENT) // 2


class StopTests(TestCase):
    workers = "1"

    async def start(self, **settings: str) -> Daemon:
        return await Daemon.start(
            self, data=None, toml="", behind=None, workers=self.workers, **settings
        )

    async def terminate(self, daemon: Daemon) -> None:
        """Tell it to stop, and wait until it answers a new connection that it does."""
        os.kill(daemon.process.pid, signal.SIGTERM)

        async def refuses() -> bool:
            answer = await daemon.request("GET", "/v2/")
            if answer.status == 503:
                self.assertEqual(answer.header("Retry-After"), "10")
            return answer.status == 503

        await wait_for(refuses)
        self.assertIsNone(daemon.process.status, "it did not wait for what is under way")

    async def assert_ended_cleanly(self, daemon: Daemon) -> None:
        # twistd ends itself by the signal when all is shut down.
        self.assertEqual(await daemon.process.ended(), -signal.SIGTERM)
        self.assertIn("Server Shut Down.", daemon.process.output)
        self.assertNotIn("Traceback", daemon.process.output)

    async def test_a_push_under_way_ends_with_its_answer(self) -> None:
        daemon = await self.start()
        path = f"/v2/crash/blobs/uploads/?digest={DIGEST}"
        push = await send(self, daemon, "POST", path, CONTENT[:HALF], length=len(CONTENT))
        await wait_for(lambda: any(f.stat().st_size for f in daemon.data.glob("uploads/*")))
        await self.terminate(daemon)
        push.send(CONTENT[HALF:])
        headers, _ = await push.response()
        self.assertRegex(headers, rb"^HTTP/1.1 201 ")
        self.assertRegex(headers, rb"(?i)\r\nConnection: close\r\n")
        await push.lost
        await self.assert_ended_cleanly(daemon)
        await daemon.restart()
        answer = await daemon.request("GET", f"/v2/crash/blobs/{DIGEST}")
        self.assertTrue(answer.body == CONTENT, "other bytes than were pushed")

    async def test_a_pull_under_way_ends_with_its_last_byte(self) -> None:
        daemon = await self.start()
        content = CONTENT * 4  # more than the sockets hold
        digest = await daemon.push_blob("crash", content)
        pull = await send(self, daemon, "GET", f"/v2/crash/blobs/{digest}")
        self.assertEqual(await status(pull), 200)
        IPushProducer(pull.transport).pauseProducing()
        await self.terminate(daemon)
        IPushProducer(pull.transport).resumeProducing()
        _, body = await pull.response()
        self.assertTrue(body == content, "other bytes than were pushed")
        await pull.lost
        await self.assert_ended_cleanly(daemon)

    async def test_an_idle_connection_does_not_keep_it(self) -> None:
        daemon = await self.start(shutdown_timeout="1h")
        idle = await send(self, daemon, "GET", "/healthz")
        self.assertEqual(await status(idle), 200)
        silent = await connect(self, daemon)
        await daemon.request("GET", "/healthz")  # so that it has accepted those before
        os.kill(daemon.process.pid, signal.SIGTERM)
        await self.assert_ended_cleanly(daemon)
        await idle.lost
        await silent.lost

    async def test_a_transfer_that_does_not_end_is_cut_and_can_be_resumed(self) -> None:
        daemon = await self.start(shutdown_timeout="1s", idle_timeout="1h")
        upload = await Upload.start(daemon)
        chunk = await send(self, daemon, "PATCH", upload.path, CONTENT[:HALF], length=len(CONTENT))
        await upload.receiving(daemon)
        os.kill(daemon.process.pid, signal.SIGTERM)
        await self.assert_ended_cleanly(daemon)
        await chunk.lost
        self.assertEqual(chunk.received, b"")
        await daemon.restart()
        # All that had arrived, not only what a thread had been given to write.
        self.assertEqual(await upload.offset(daemon), HALF)
        answer = await daemon.request("PUT", f"{upload.path}?digest={DIGEST}", body=CONTENT[HALF:])
        self.assertEqual(answer.status, 201)

    async def test_a_reader_that_does_not_read_is_cut(self) -> None:
        daemon = await self.start(shutdown_timeout="1s", stall_timeout="1h")
        content = CONTENT * 4
        digest = await daemon.push_blob("crash", content)
        pull = await send(self, daemon, "GET", f"/v2/crash/blobs/{digest}")
        self.assertEqual(await status(pull), 200)
        IPushProducer(pull.transport).pauseProducing()
        os.kill(daemon.process.pid, signal.SIGTERM)
        await self.assert_ended_cleanly(daemon)


class WorkersStopTests(StopTests):
    """The same of two workers, of which one has nothing under way."""

    workers = "2"
