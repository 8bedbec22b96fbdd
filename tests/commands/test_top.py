"""``artifactd top``."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from artifactd.commands import top
from artifactd.oci.names import Digest
from artifactd.settings.settings import Settings
from artifactd.settings.values import Endpoint
from tests.commands.maintaining import NAME, MaintenanceTestCase
from tests.commands.test_main import artifactd
from tests.programs import Result, wait_for
from tests.upstreams.faulty import CDN, Stall

LAYER = b"layer" * 100_000


class TopTests(MaintenanceTestCase):
    async def top(self, *argv: str) -> Result:
        url = f"http://127.0.0.1:{self.daemon.port}"
        return await artifactd(self, "top", "--url", url, *argv)

    async def status(self) -> Any:
        result = await self.top("--once", "--json")
        self.assertEqual((0, ""), (result.status, result.err))
        return json.loads(result.out)

    async def begin_upload(self, body: bytes) -> socket.socket:
        """A push that sends only ``body`` of 1000 bytes; the connection."""
        digest = Digest.of(LAYER)
        head = (
            f"POST /v2/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 1000\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.daemon.port))
        self.addCleanup(connection.close)
        await deferToThread(connection.sendall, head.encode() + body)
        return connection

    async def test_a_daemon_that_does_nothing(self) -> None:
        status = await self.status()
        self.assertEqual((0, []), (status["requests"], status["transfers"]))
        self.assertEqual(self.daemon.process.pid, status["pid"])
        (hub,) = [each for each in status["remotes"] if each["repository"] == "docker.io"]
        self.assertEqual((0, 0, []), (hub["hits"], hub["misses"], hub["fills"]))
        self.assertEqual(("", 0), (hub["upstream"]["trouble"], hub["upstream"]["throttled"]))

    async def test_a_transfer_is_shown_while_it_goes_on(self) -> None:
        connection = await self.begin_upload(b"x" * 400)

        async def has_come() -> bool:
            transfers = (await self.status())["transfers"]
            return [each["received"] for each in transfers] == [400]

        await wait_for(has_come)
        (row,) = [
            line.split("\t")
            for line in (await self.top("--once")).out.splitlines()
            if line.startswith("transfer\t")
        ]
        self.assertEqual(("400 B", "0 B"), (row[2], row[3]))
        self.assertEqual("POST /v2/app/blobs/uploads/", row[-1])
        connection.close()

        async def has_gone() -> bool:
            return not (await self.status())["transfers"]

        await wait_for(has_gone)

    async def test_a_fill_is_shown_with_its_client(self) -> None:
        self.hub.images.add_image(NAME, "1", LAYER)
        await self.get(f"docker.io/{NAME}/manifests/1")
        stalled = Stall(after=200_000)
        self.hub.faults.add(stalled, on=CDN)
        path = f"docker.io/{NAME}/blobs/{Digest.of(LAYER)}"
        pulled = Deferred.fromCoroutine(self.get(path))
        fill: dict[str, Any] = {}

        async def is_stalled() -> bool:
            for remote in (await self.status())["remotes"]:
                for each in remote["fills"]:
                    fill.update(each)
            return bool(fill.get("written"))

        await wait_for(is_stalled)
        self.assertEqual(f"docker.io/{NAME}", fill["image"])
        self.assertEqual((str(Digest.of(LAYER)), len(LAYER)), (fill["digest"], fill["size"]))
        self.assertEqual(1, fill["clients"])
        self.assertIn("fill\t", (await self.top("--once")).out)
        stalled.release()
        self.assertEqual(LAYER, (await pulled).body)

    async def test_it_looks_again_until_it_is_interrupted(self) -> None:
        looks: list[float] = []

        def sleep(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 3:
                raise KeyboardInterrupt

        self.patch(time, "sleep", sleep)
        result = await self.top("--json")
        self.assertEqual((0, 3), (result.status, len(result.out.splitlines())))

    async def test_without_a_daemon_it_is_one_line(self) -> None:
        held = socket.socket()
        self.addCleanup(held.close)
        held.bind(("127.0.0.1", 0))
        config = Path(self.mktemp())
        config.write_text(f'listen = "127.0.0.1:{held.getsockname()[1]}"\n')
        result = await artifactd(self, "top", "--config", str(config))
        self.assertEqual((1, ""), (result.status, result.out))
        self.assertRegex(result.err, r"\Aartifactd: http://127.0.0.1:\d+: Connection refused: does")


class AddressTests(SynchronousTestCase):
    def url(self, *listen: str) -> str:
        return top._local_url(Settings(listen=tuple(map(Endpoint.parse, listen))))

    def test_it_is_one_that_this_machine_reaches_without_tls_if_there_is_one(self) -> None:
        for listen, url in (
            ((":5000",), "http://127.0.0.1:5000"),
            (("[::]:5000",), "http://[::1]:5000"),
            (("192.0.2.1:5000", "127.0.0.1:5001"), "http://127.0.0.1:5001"),
            (("artifactd-tls:5443:cert=c.pem", "unix:/run/a.sock:mode=660"), "unix:/run/a.sock"),
            (("artifactd-tls:5443:cert=c.pem",), "https://127.0.0.1:5443"),
        ):
            self.assertEqual(url, self.url(*listen))


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class ShownTests(SynchronousTestCase):
    TRANSFER: ClassVar = {
        "request": "1",
        "client": "192.0.2.1",
        "user": "alice\x1b[2J",
        "method": "GET",
        "path": "/v2/app/blobs/x",
        "status": 200,
        "received": 0,
        "sent": 4096,
        "seconds": 2.0,
    }
    FILL: ClassVar = {"image": "a/b", "digest": "x", "size": 200, "written": 50, "clients": 3}
    UPSTREAM: ClassVar = {
        "host": "hub",
        "trouble": "",
        "pause": 0,
        "throttled": 0,
        "remaining": 0.25,
    }

    def remote(self, stale_tags: int = 0, **upstream: object) -> dict[str, object]:
        counts = {"hits": 3, "misses": 1, "stale": 0, "upstream_bytes": 10, "client_bytes": 2048}
        return {
            "repository": "docker.io",
            "upstream": {**self.UPSTREAM, **upstream},
            "fills": [self.FILL],
            "stale_tags": stale_tags,
            **counts,
        }

    def shown(
        self,
        before: dict[str, object] | None = None,
        columns: int = 200,
        stale_tags: int = 0,
        **upstream: object,
    ) -> list[str]:
        self.patch(shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
        status = {
            "version": "1",
            "pid": 7,
            "processes": 1,
            "connections": 2,
            "requests": 1,
            "transfers": [self.TRANSFER],
            "remotes": [self.remote(stale_tags, **upstream)],
        }
        with redirect_stdout(_Terminal()) as out:
            top._show(status, before)
        return out.getvalue().splitlines()

    def test_a_terminal_is_cleared_and_gets_headings_and_columns(self) -> None:
        head, _, titles, transfer, *rest = self.shown()
        self.assertEqual("\x1b[H\x1b[Jartifactd 1, process 7, connections: 2, requests: 1", head)
        self.assertIn("RECEIVED", titles)
        self.assertEqual(titles.index("CLIENT") - len("\x1b[1m"), transfer.index("192.0.2.1"))
        self.assertIn("2.0 KiB/s", transfer)
        self.assertIn("alice\\u001b[2J", transfer)
        self.assertEqual(["50 B", "200 B", "25 %", "-", "3", "a/b", "x"], re.split("  +", rest[2]))
        self.assertEqual(
            ["docker.io", "75 %", "0", "10 B", "2.0 KiB", "25 %", "ok"], re.split("  +", rest[5])
        )

    def test_rates_are_since_the_look_before(self) -> None:
        before: dict[str, object] = {
            "transfers": [{**self.TRANSFER, "sent": 1024}],
            "remotes": [{"fills": [{**self.FILL, "written": 20}]}],
        }
        lines = "\n".join(self.shown(before))
        self.assertIn("3.0 KiB/s", lines)
        self.assertIn("30 B/s", lines)

    def test_trouble_of_an_upstream_is_told(self) -> None:
        trouble = self.shown(trouble="connection refused", pause=4.2)[-1]
        self.assertIn("not asked for 4 s: connection refused", trouble)
        self.assertIn("throttles us for 30 s", self.shown(throttled=30.0)[-1])
        self.assertIn("stale tags: 3", self.shown(stale_tags=3)[-1])

    def test_lines_are_no_longer_than_the_terminal_is_wide(self) -> None:
        plain = (re.sub("\x1b\\[[0-9]*[mHJ]", "", line) for line in self.shown(columns=60)[1:])
        self.assertLessEqual(max(map(len, plain)), 60)
