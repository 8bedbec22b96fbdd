"""What the tests of pulling from an upstream have in common."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from random import Random
from typing import Any

from attrs import define
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from artifactd.daemon.assemble import Assembly
from artifactd.oci.names import Digest
from artifactd.registry.mirror.fill import Fills
from artifactd.store.extents import map_name
from artifactd.store.fills import blob_name
from tests.api.case import LogLines
from tests.api.served import Served
from tests.programs import wait_for
from tests.pull.download import Download
from tests.upstreams.faulty import CDN, Fault
from tests.upstreams.hub import Hub
from tests.upstreams.reply import Reply
from tests.upstreams.settings import settings_for

ALPINE = "library/alpine"
HELD = 64 << 10
"""Bytes of an answer that are held back until the blob is verified."""


def noise(size: int, seed: int = 0) -> bytes:
    """So many bytes that repeat nowhere."""
    return Random(seed).randbytes(size)


def remote(**settings: object) -> Mapping[str, object]:
    """Settings of the remote repository."""
    return settings


@define(eq=False)
class Later:
    """A fault of the requests behind the first ``skip`` of them."""

    fault: Fault
    skip: int = 1

    def change(self, reply: Reply) -> None:
        if self.skip:
            self.skip -= 1
        else:
            self.fault.change(reply)


class PullCase(TestCase):
    """
    :cvar settings: of the remote repository ``docker.io``; what fails is not repeated unless they
        say so.
    :ivar hub: its upstream.
    :ivar registry: a fresh one.
    :ivar log: what is logged while the test runs.
    """

    settings = remote()
    hub: Hub
    registry: Served

    def setUp(self) -> None:
        self.hub = Hub.start(self)
        self.toml = settings_for(
            self.hub, "docker.io", **{"retries": 0, "resumes": 1, **self.settings}
        )
        self.registry = Served.start(self, self.toml)
        self.log = LogLines()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)

    async def restart(self) -> None:
        """A daemon that remembers no more than is on the disk."""
        await self.registry.service.stopService()
        self.registry.service.startService()

    @property
    def parts(self) -> Assembly:
        """What the daemon consists of."""
        return self.registry.parts

    @property
    def fills(self) -> Fills:
        """The fills of ``docker.io``."""
        return self.parts.remotes.fills["docker.io"]

    # -- pulling

    def blob(self, content: bytes, *names: str) -> Digest:
        """Let ``names``, or alpine, have ``content`` upstream."""
        return self.hub.images.add_blob(content, *(names or [ALPINE]))

    async def ask(
        self,
        digest: Digest,
        wanted: str | None = None,
        name: str = ALPINE,
        *,
        version: str = "1.1",
        keep: bool = True,
        **headers: str,
    ) -> Download:
        """Begin to pull; ``wanted`` is the ``Range``."""
        fields = {field.replace("_", "-"): value for field, value in headers.items()}
        if wanted is not None:
            fields["Range"] = f"bytes={wanted}"
        path = f"/v2/docker.io/{name}/blobs/{digest}"
        return await Download.start(
            self, self.registry.port, path, fields, version=version, keep=keep
        )

    async def pull(self, digest: Digest, wanted: str | None = None, **more: Any) -> Download:
        """Pull, and wait for the end of the answer and of the fill."""
        download = await (await self.ask(digest, wanted, **more)).end()
        await self.settled(digest)
        return download

    async def filled(self, digest: Digest, count: int) -> None:
        """Wait until ``count`` bytes of a blob that is under way may be read."""
        fill = self.fills.find(digest)
        assert fill is not None, "it is not under way"
        while fill.progress.written < count:
            await fill.progress.change()

    async def settled(self, digest: Digest) -> None:
        """Wait until nothing of a blob is under way any more."""
        await self.fills.ended(digest)

    # -- what it shows

    def assert_whole(self, download: Download, content: bytes) -> None:
        """It is all of ``content``."""
        self.assertEqual((download.status, download.whole), (200, True), bytes(download.body[:500]))
        self.assertTrue(download.body == content)

    def assert_part(self, download: Download, content: bytes, first: int, last: int) -> None:
        """It is a 206 of these bytes, ``last`` included."""
        self.assertEqual((download.status, download.whole), (206, True), bytes(download.body[:500]))
        self.assertEqual(download.headers["content-range"], f"bytes {first}-{last}/{len(content)}")
        self.assertTrue(download.body == content[first : last + 1])

    def assert_cut(self, download: Download, content: bytes | None = None) -> None:
        """It has broken off, behind right bytes where ``content`` says which; not too late."""
        self.assertEqual((download.status, download.ended, download.whole), (200, True, False))
        if content is not None:
            self.assertTrue(content.startswith(download.body))
            self.assertLessEqual(download.count, len(content) - HELD)

    def assert_kept(self, digest: Digest, content: bytes, *names: str) -> None:
        """The blob is all that is kept, and ``names``, or alpine, hold it."""
        kept = f"blobs/{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"
        self.assertEqual(self.files(), {kept: len(content)})
        holders = [f"docker.io/{name}" for name in names or [ALPINE]]
        self.assertEqual(self.holders(digest), sorted(holders))

    async def assert_kept_for_the_next(self, digest: Digest, content: bytes) -> None:
        """:meth:`assert_kept`, and the next client gets it without the upstream."""
        self.assert_kept(digest, content)
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), content)
        self.assertEqual(self.hub.requests, [])

    def assert_nothing_kept(self, digest: Digest) -> None:
        """Neither bytes nor rows; not even of what had come."""
        self.assertEqual((self.files(), self.holders(digest)), ({}, []))

    def assert_begun(self, digest: Digest, count: int) -> None:
        """The first ``count`` bytes are kept for whoever goes on."""
        self.assertEqual(self.holders(digest), [])
        files = self.files()
        fill = f"fills/{blob_name('docker.io', digest)}"
        self.assertEqual(files.pop(fill, None), count)
        self.assertLessEqual(files.keys(), {f"{fill}.info"})

    async def recorded(self, digest: Digest, parts: int) -> None:
        """Wait until ``parts`` of a blob are kept: who asked for them need not wait for that."""
        map_file = self.registry.data / "fills" / map_name(blob_name("docker.io", digest))
        await wait_for(lambda: map_file.read_bytes().count(b".") == parts)

    def files(self) -> dict[str, int]:
        """Every file of the store, relative to the data folder, and its size."""
        return {
            str(path.relative_to(self.registry.data)): path.stat().st_size
            for folder in ("blobs", "uploads", "staging", "fills")
            for path in (self.registry.data / folder).rglob("*")
            if path.is_file()
        }

    def holders(self, digest: Digest) -> list[str]:
        """The images that hold a blob, by the catalog; a blob that none holds is ``""``."""
        query = (
            "SELECT coalesce(repository || '/' || name, '') FROM blob"
            " LEFT JOIN blob_link ON blob_id = blob.id LEFT JOIN image ON image.id = image_id"
            " WHERE digest = ?"
        )
        with closing(sqlite3.connect(self.registry.data / "catalog.sqlite3")) as db:
            return sorted(name for (name,) in db.execute(query, (str(digest),)))

    async def counted(self, name: str) -> float:
        """A counter of the repository ``docker.io``."""
        metrics = (await self.registry.request("GET", "/metrics")).body.decode()
        line = rf'^artifactd_{name}_total\{{repository="docker\.io"\}} (\S+)$'
        found = re.search(line, metrics, re.MULTILINE)
        assert found is not None, metrics
        return float(found[1])

    def logged(self, *parts: str) -> list[str]:
        """The lines of the log that have all of ``parts``."""
        lines = [formatEvent(event) for event in self.log.events]
        return [line for line in lines if all(part in line for part in parts)]

    @property
    def blob_bytes(self) -> int:
        """Bytes of blobs that the upstream has sent."""
        return sum(asked.sent for asked in self.hub.asked("GET", CDN))
