"""
Whichever step of the disk fails: who asked is told so, nothing that was there before is lost,
nothing is left over, and the service goes on.  docs/durability.md
"""

from __future__ import annotations

import errno
import json
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from http.client import HTTPException
from itertools import count
from pathlib import Path

from attrs import define, field
from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import Served, image_manifest
from tests.durability.client import LOCAL
from tests.durability.faults import READING, FailingFiles
from tests.durability.recording import CATALOG
from tests.durability.replay import LATER, collected, shelves_of
from tests.process import Answer
from tests.pull.case import noise
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

_MOST = 400
_FULL = (errno.ENOSPC, errno.EDQUOT)


@define
class Asked:
    """
    Requests, and how they were answered.

    :ivar refused: those that were not, for a reason of the disk.
    """

    test: TestCase
    served: Served
    files: FailingFiles
    may_break_off: bool = False
    refused: list[Answer] = field(factory=list)
    broken_off: int = 0

    async def __call__(self, method: str, path: str, body: bytes | None = None) -> Answer | None:
        """Ask; ``None`` if the disk was in the way, which has been said as it should be."""
        try:
            headers = {"Content-Type": OCI_MANIFEST}
            answer = await self.served.request(method, path, body, headers)
        except (HTTPException, ConnectionResetError):
            if not self.may_break_off:
                raise
            self.broken_off += 1
            return None
        if answer.status < 400:
            return answer
        (error,) = json.loads(answer.body)["errors"]
        if answer.status == 500 and self.files.failed == ["read"]:
            # What can't be read is lost, until fsck or a push mend it: that is told at length.
            self.test.assertEqual(len(self.test.flushLoggedErrors(RuntimeError)), 1)
            return None
        self.test.assertEqual(answer.status, 503, answer.body)
        self.test.assertEqual(error["code"], "UNKNOWN")
        self.test.assertRegex(error["message"], "disk|descriptors|catalog")
        self.refused.append(answer)
        return None


Scenario = Callable[[Asked, int], Awaitable[None]]


async def push(ask: Asked, number: int) -> None:
    blob = b"%d in one request" % number
    await ask("POST", f"/v2/app/blobs/uploads/?digest={Digest.of(blob)}", blob)


async def push_in_chunks(ask: Asked, number: int) -> None:
    blob = b"%d in chunks" % number
    begun = await ask("POST", "/v2/app/blobs/uploads/")
    if begun is None:
        return
    session = (begun.header("Location") or "").partition("?")[0]
    if await ask("PATCH", session, blob[:3]) is not None:
        await ask("PUT", f"{session}?digest={Digest.of(blob)}", blob[3:])


async def push_manifest(ask: Asked, number: int) -> None:
    manifest = image_manifest(b"stays", b"stays", annotations={"number": str(number)})
    await ask("PUT", "/v2/app/manifests/moves", manifest)


async def delete(ask: Asked, number: int) -> None:
    manifest = image_manifest(b"stays", b"stays", annotations={"number": str(number)})
    path = f"/v2/app/manifests/to-go-{number}"
    if await ask("PUT", path, manifest) is not None:
        await ask("DELETE", path)


async def pull(ask: Asked, number: int) -> None:
    await ask("GET", f"/v2/app/blobs/{Digest.of(b'stays')}")
    # Not one that is cached in memory.
    await ask("GET", f"/v2/app/blobs/{Digest.of(LARGE)}")


LARGE = noise(100_000)


class FaultTestCase(TestCase):
    toml = LOCAL

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.files = FailingFiles()
        self.served = Served.start(self, self.toml, files=self.files, gc_rate="0")
        await self.served.push_blob("app", b"stays")
        await self.served.push_blob("app", LARGE)
        self.kept = await self.served.push_manifest(
            "app", "stays", image_manifest(b"stays", b"stays", LARGE)
        )
        self.numbers = count()

    async def assert_goes_on(self) -> None:
        """All is there that was before, and nothing is left over."""
        ready = await self.served.request("GET", "/readyz")
        self.assertEqual(ready.status, 200, ready.body)
        found = await self.served.request("GET", "/v2/app/manifests/stays")
        self.assertEqual(Digest.of(found.body), self.kept)
        for blob in (b"stays", LARGE):
            answer = await self.served.request("GET", f"/v2/app/blobs/{Digest.of(blob)}")
            self.assertEqual(Digest.of(answer.body), Digest.of(blob))

    async def assert_nothing_left(self) -> None:
        """But what a sweep sees to."""
        running = self.served.running
        sweep, collector = running.parts.sweep, running.parts.collector
        usual = sweep.now, sweep.upload_timeout, collector.now
        sweep.now = collector.now = lambda: time.time() + LATER
        sweep.upload_timeout = -1.0
        await sweep.run()
        await collected(collector, shelves_of(self.served.data))
        sweep.now, sweep.upload_timeout, collector.now = usual
        data = self.served.data
        with closing(sqlite3.connect(data / CATALOG)) as db:
            listed = {digest for (digest,) in db.execute("SELECT digest FROM blob")}
            sessions = db.execute("SELECT count(*) FROM upload").fetchone()
        stored = {f"{f.parts[-3]}:{f.name}" for f in data.glob("blobs/*/*/*")}
        left = [f for name in ("uploads", "staging", "fills") for f in data.glob(f"{name}/*")]
        self.assertEqual((stored ^ listed, left, sessions), (set(), [], (0,)))

    async def assert_survives(self, scenario: Scenario, *, may_break_off: bool = False) -> None:
        """``scenario``, with each of its steps failing in turn, in each way."""
        counted = 0
        for error in (errno.ENOSPC, errno.EIO, errno.EMFILE):
            for at in range(_MOST):
                if error == errno.EMFILE:
                    self.files.arm_opening(self, error, at)
                else:
                    # Nothing that is read needs space.
                    spared = READING if error == errno.ENOSPC else frozenset()
                    self.files.arm(error, at, spared)
                ask = Asked(self, self.served, self.files, may_break_off)
                await scenario(ask, next(self.numbers))
                failed = self.files.failed
                self.files.disarm()
                if not failed:
                    break
                counted += 1
                unexpected = self.flushLoggedErrors()
                if unexpected:
                    trace = unexpected[0].getTraceback()
                    self.fail(f"{errno.errorcode[error]} in {failed}: {trace}")
                await self.assert_goes_on()
                await self.assert_nothing_left()
            else:
                self.fail("it never ends")
        again = Asked(self, self.served, self.files)
        await scenario(again, next(self.numbers))
        self.assertEqual(again.refused, [])
        print(f"\n    {counted} steps failed in turn", file=sys.stderr)


class LocalFaultTests(FaultTestCase):
    async def test_a_push_in_one_request(self) -> None:
        await self.assert_survives(push)

    async def test_a_push_in_chunks(self) -> None:
        await self.assert_survives(push_in_chunks)

    async def test_a_manifest(self) -> None:
        await self.assert_survives(push_manifest)

    async def test_a_deletion(self) -> None:
        await self.assert_survives(delete)

    async def test_a_pull(self) -> None:
        await self.assert_survives(pull)

    async def test_collection(self) -> None:
        async def collect(ask: Asked, number: int) -> None:
            collector = self.served.parts.collector
            usual, collector.now = collector.now, lambda: time.time() + LATER
            try:
                await collected(collector, [0])
            except OSError:
                pass  # as the daemon, which tries again
            finally:
                collector.now = usual

        async def push_and_collect(ask: Asked, number: int) -> None:
            await push(ask, number)
            await collect(ask, number)

        await self.assert_survives(push_and_collect)


class PullThroughFaultTests(FaultTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.hub = Hub.start(self)
        self.toml = settings_for(self.hub, retries=0, resumes=1, negative_freshness="0s")
        await super().setUp()

    async def test_a_fill(self) -> None:
        async def fill(ask: Asked, number: int) -> None:
            content = noise(100_000, number)
            digest = self.hub.images.add_blob(content, "library/app")
            answer = await ask("GET", f"/v2/docker.io/library/app/blobs/{digest}")
            await self.served.parts.remotes.fills["docker.io"].ended(digest)
            if answer is not None:
                self.assertEqual(answer.body, content)

        await self.assert_survives(fill, may_break_off=True)

    async def test_a_range(self) -> None:
        async def get_range(ask: Asked, number: int) -> None:
            content = noise(100_000, number)
            digest = self.hub.images.add_blob(content, "library/app")
            path = f"/v2/docker.io/library/app/blobs/{digest}"
            try:
                answer = await self.served.request("GET", path, None, {"Range": "bytes=100-50000"})
            except (HTTPException, ConnectionResetError):
                return
            if answer.status != 503:
                self.assertEqual(answer.body, content[100:50001])

        await self.assert_survives(get_range, may_break_off=True)

    async def test_a_manifest_from_upstream(self) -> None:
        async def pull_manifest(ask: Asked, number: int) -> None:
            self.hub.images.add_image("library/app", f"v{number}", b"%d" % number)
            await ask("GET", f"/v2/docker.io/library/app/manifests/v{number}")

        await self.assert_survives(pull_manifest)


class WhileItLastsTests(FaultTestCase):
    async def assert_told(self, error: int) -> None:
        """Readiness says that the disk fails; what was stored before can be had."""
        ready = await self.served.request("GET", "/readyz")
        self.assertEqual(ready.status, 503)
        self.assertIn("the store can't be written", ready.body.decode())
        answer = await self.served.request("GET", "/healthz")
        self.assertEqual(answer.status, 200)
        ask = Asked(self, self.served, self.files)
        for scenario in (push, push_in_chunks, push_manifest):
            await scenario(ask, next(self.numbers))
        self.assertEqual(len(ask.refused), 3)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_a_full_disk(self) -> None:
        for error in _FULL:
            self.files.arm(error, spared=frozenset({"read", "unlink"}))
            await self.assert_told(error)
            answer = await self.served.request("GET", f"/v2/app/blobs/{Digest.of(LARGE)}")
            self.assertEqual(answer.body, LARGE)
            self.files.disarm()
            await self.assert_goes_on()
        await self.assert_nothing_left()

    async def test_a_large_chunk_that_does_not_fit_leaves_its_session_where_it_was(self) -> None:
        opened = await self.served.request("POST", "/v2/app/blobs/uploads/")
        begun = await self.served.request("PATCH", opened.header("Location") or "", b"begun")
        session = (begun.header("Location") or "").partition("?")[0]
        for method, query in (("PATCH", ""), ("PUT", f"?digest={Digest.of(b'another')}")):
            self.files.arm(errno.ENOSPC, 1)  # the first piece fits
            refused = await self.served.request(method, session + query, noise(6 << 20))
            self.assertEqual((refused.status, self.files.failed), (503, ["write"]))
            self.files.disarm()
            (staged,) = self.served.data.glob("uploads/*")
            self.assertEqual(staged.read_bytes(), b"begun")
            status = await self.served.request("GET", session)
            self.assertEqual(status.header("Range"), "0-4")
        self.assertEqual((await self.served.request("DELETE", session)).status, 204)
        await self.assert_goes_on()
        await self.assert_nothing_left()

    async def test_a_broken_disk(self) -> None:
        self.files.arm(errno.EIO)
        await self.assert_told(errno.EIO)
        self.files.disarm()
        await self.assert_goes_on()
        await self.assert_nothing_left()

    async def test_no_descriptors_left(self) -> None:
        self.files.arm_opening(self, errno.EMFILE)
        await self.assert_told(errno.EMFILE)
        self.files.disarm()
        await self.assert_goes_on()
        await self.assert_nothing_left()


class StartTests(TestCase):
    async def test_a_start_on_a_disk_that_fails_ends_in_one_line_and_the_next_one_succeeds(
        self,
    ) -> None:
        for at in range(_MOST):
            files = FailingFiles()
            files.arm((errno.ENOSPC, errno.EIO)[at % 2], at)
            data = Path(self.mktemp())
            try:
                served = Served.start(self, LOCAL, data=data, files=files)
            except SystemExit as refusal:
                self.assertRegex(str(refusal), r"\Aartifactd: .+: \[Errno \d+\] .+\Z")
                files.disarm()
            else:
                files.disarm()
                await served.push_blob("app", b"at once")  # what failed was not needed yet
            served = Served.start(self, LOCAL, data=data)
            await served.push_blob("app", b"after")
            if not files.failed:
                break
