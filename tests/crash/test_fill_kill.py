"""``kill -9`` and SIGTERM in the middle of a fill; of two workers and their supervisor."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import MappingProxyType

from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from artifactd.store.extents import map_name
from tests.crash.pulling import MIB, NAME, Pull, blob_path, content, fill_file
from tests.crash.test_sweep import listed, stored
from tests.process import Daemon
from tests.programs import wait_for
from tests.upstreams.faulty import CDN, NoRanges, OtherETag, Withhold
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

CONTENT = content(16 * MIB)
DIGEST = Digest.of(CONTENT)
SIZE = len(CONTENT)
HALF = SIZE // 2
UPSTREAM = f"/v2/{NAME}/blobs/{DIGEST}"


class FillTestCase(TestCase):
    """A daemon before a hub that sends the blob only to its middle at first."""

    options: Mapping[str, str] = MappingProxyType({"workers": "2"})

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.hub = Hub.start(self)
        self.hub.images.add_blob(CONTENT, NAME)
        self.held: Withhold = self.hub.withhold(CDN, HALF)
        toml = settings_for(self.hub)
        self.daemon = await Daemon.start(self, data=None, toml=toml, behind=None, **self.options)
        self.file = fill_file(self.daemon.data, DIGEST)

    async def begin(self) -> Pull:
        """A client that has got all that the hub sends."""
        pull = await Pull.start(self, self.daemon, DIGEST)
        await pull.reached(HALF)
        return pull

    async def assert_whole(self) -> Pull:
        """A client gets the blob, and it is the blob; what is stored is what is listed."""
        pull = await (await Pull.start(self, self.daemon, DIGEST)).ended()
        self.assertEqual((pull.status, pull.received, pull.digest), (200, SIZE, DIGEST))
        return pull

    async def assert_here(self) -> None:
        """It is stored, and nothing of the fill is left."""
        # Clients need not wait until it is durable.
        await wait_for(lambda: listed(self.daemon.data) == {str(DIGEST): SIZE})
        asked = len(self.hub.requests)
        pull = await self.assert_whole()
        self.assertIn("Cache-Status: artifactd; hit", pull.headers)
        self.assertEqual(len(self.hub.requests), asked, self.hub.requests[asked:])
        self.assertEqual(stored(self.daemon.data), {str(DIGEST): SIZE})
        self.assertEqual(stored(self.daemon.data), listed(self.daemon.data))
        self.assertEqual(list((self.daemon.data / "fills").iterdir()), [])

    def ranges(self) -> list[str | None]:
        """What was asked of the CDN, in order."""
        return [asked.headers.get("range") for asked in self.hub.asked("GET", CDN)]


class KillTests(FillTestCase):
    async def crash(self) -> None:
        self.assertEqual(await self.daemon.kill(), -signal.SIGKILL)
        await self.daemon.restart()

    async def test_the_fill_goes_on_where_it_was_killed(self) -> None:
        pull = await self.begin()
        await self.crash()
        await pull.ended()
        self.assertEqual((pull.whole, pull.received), (False, HALF))
        self.assertEqual(self.file.stat().st_size, HALF)
        self.held.release()
        await self.assert_whole()
        self.assertEqual(self.ranges(), [None, f"bytes={HALF}-"])
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)
        await self.assert_here()

    async def test_so_it_does_however_often_it_is_killed(self) -> None:
        self.held.release(to=0)
        for step in range(1, 5):
            self.held.release(to=step * SIZE // 5)
            pull = await Pull.start(self, self.daemon, DIGEST)
            await pull.reached(step * SIZE // 5)
            await self.crash()
        self.held.release()
        await self.assert_whole()
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)
        await self.assert_here()

    async def test_a_client_that_resumes_by_itself_gets_the_rest(self) -> None:
        await self.begin()
        await self.crash()
        self.held.release()
        pull = await Pull.start(self, self.daemon, DIGEST, headers=f"Range: bytes={HALF}-\r\n")
        await pull.ended()
        self.assertEqual((pull.status, pull.received), (206, SIZE - HALF))
        self.assertEqual(pull.digest, Digest.of(CONTENT[HALF:]))
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)

    async def test_what_the_dead_have_left_can_be_read_while_the_rest_comes(self) -> None:
        await self.begin()
        await self.crash()
        pull = await Pull.start(self, self.daemon, DIGEST)
        coming = self.hub.coming("GET", CDN, times=2)
        await pull.reached(HALF)  # while the hub still sends nothing of the second half
        await coming
        self.held.release()
        await pull.ended()
        self.assertEqual((pull.whole, pull.digest), (True, DIGEST))

    async def test_without_ranges_upstream_it_is_compared_with_what_comes_again(self) -> None:
        await self.begin()
        await self.crash()
        self.hub.faults.add(NoRanges(), on=CDN, times=None)
        self.held.release()
        await self.assert_whole()
        self.assertEqual(len(self.ranges()), 2)
        await self.assert_here()

    async def test_a_validator_that_changed_meanwhile_is_no_matter_if_the_bytes_did_not(
        self,
    ) -> None:
        await self.begin()
        await self.crash()
        self.hub.faults.add(OtherETag(), on=CDN, times=None)
        self.held.release()
        await self.assert_whole()
        await self.assert_here()

    async def test_bytes_that_the_crash_has_spoilt_are_completed_by_nobody(self) -> None:
        await self.begin()
        await self.daemon.kill()
        with self.file.open("r+b") as file:  # a power cut may leave zeros
            file.seek(HALF // 2)
            file.write(bytes(4096))
        await self.daemon.restart()
        self.held.release()
        pull = await (await Pull.start(self, self.daemon, DIGEST)).ended()
        self.assertFalse(pull.whole, "a client has got wrong bytes")
        self.assertEqual(list((self.daemon.data / "fills").iterdir()), [])
        await self.assert_whole()
        await self.assert_here()

    async def test_all_bytes_and_no_verdict_are_verified_first(self) -> None:
        await self.begin()
        await self.daemon.kill()
        with self.file.open("ab") as file:
            file.write(CONTENT[HALF:])
        await self.daemon.restart()
        self.hub.images.add_image("library/other", "1", b"its only layer")
        path = blob_path(DIGEST, "docker.io/library/other")
        self.assertEqual((await self.daemon.request("GET", path)).status, 404)
        self.hub.forget_requests()
        await self.assert_whole()
        # Whether we may have it, under that name, and nothing more.
        asked = self.hub.asked("*", "/v2/*")
        self.assertEqual({(each.method, each.path) for each in asked}, {("HEAD", UPSTREAM)})
        self.assertEqual(self.ranges(), [])
        await self.assert_here()

    async def test_more_bytes_than_there_are_are_dropped(self) -> None:
        await self.begin()
        await self.daemon.kill()
        with self.file.open("ab") as file:
            file.write(CONTENT[HALF:] + b"and more")
        await self.daemon.restart()
        self.held.release()
        first = await (await Pull.start(self, self.daemon, DIGEST)).ended()
        self.assertFalse(first.whole and first.digest != DIGEST)
        await self.assert_whole()
        await self.assert_here()

    async def test_a_part_that_had_come_is_not_fetched_again(self) -> None:
        span, part = f"bytes={12 * MIB}-{14 * MIB - 1}", CONTENT[12 * MIB : 14 * MIB]
        map_file = self.file.with_name(map_name(self.file.name))
        self.held.release()
        for number in range(2):
            answer = await self.daemon.request("GET", blob_path(DIGEST), headers={"Range": span})
            self.assertEqual(answer.status, 206)
            self.assertTrue(answer.body == part, f"other bytes at answer {number}")
            # The client need not wait until it is recorded.
            await wait_for(lambda: b"." in map_file.read_bytes())
            await self.crash()
        self.assertEqual(self.ranges(), [span])
        await self.assert_whole()
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)
        self.assertEqual(len(self.ranges()), 3)  # the part, and what lies before and behind it
        await self.assert_here()

    async def test_a_part_that_was_killed_half_way_counts_for_nothing(self) -> None:
        span = f"bytes={HALF - MIB}-{HALF + MIB - 1}"
        pull = await Pull.start(self, self.daemon, DIGEST, headers=f"Range: {span}\r\n")
        await pull.reached(MIB)
        await self.crash()
        self.assertFalse((await pull.ended()).received == 2 * MIB)
        self.held.release()
        await self.assert_whole()
        await self.assert_here()


class StopTests(FillTestCase):
    options = MappingProxyType(
        {"workers": "2", "shutdown_timeout": "1s", "idle_timeout": "1h", "stall_timeout": "1h"}
    )

    async def test_a_fill_that_does_not_end_in_time_is_left_for_the_next_start(self) -> None:
        pull = await self.begin()
        # Status and output are of a process that has ended by itself within the time allowed.
        self.assertEqual(await self.daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertIn("Server Shut Down.", self.daemon.process.output)
        self.assertNotIn("Traceback", self.daemon.process.output)
        await pull.ended()
        self.assertEqual((pull.whole, pull.received), (False, HALF))
        self.assertEqual(self.file.stat().st_size, HALF)
        await self.daemon.restart()
        self.held.release()
        await self.assert_whole()
        self.assertEqual(self.ranges(), [None, f"bytes={HALF}-"])
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)
        await self.assert_here()


class LongStopTests(FillTestCase):
    options = MappingProxyType({"workers": "2", "shutdown_timeout": "1h"})

    async def test_a_fill_that_nobody_follows_does_not_keep_it(self) -> None:
        pull = await self.begin()
        pull.leave()
        await pull.ended()
        self.assertEqual(await self.daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertEqual(self.file.stat().st_size, HALF)
        self.assertNotIn("Traceback", self.daemon.process.output)

    async def test_a_client_that_follows_is_waited_for_and_gets_it_all(self) -> None:
        pull = await self.begin()
        told = self.daemon.process.matched("stopping: waiting up to .* for 1 running requests")
        os.kill(self.daemon.process.pid, signal.SIGTERM)
        await told
        self.assertIsNone(self.daemon.process.status, "it did not wait for what is under way")
        self.held.release()
        await pull.ended()
        self.assertEqual((pull.whole, pull.digest), (True, DIGEST))
        self.assertEqual(await self.daemon.process.ended(), -signal.SIGTERM)
        self.assertNotIn("Traceback", self.daemon.process.output)
        await self.daemon.restart()
        await self.assert_here()
