"""Two daemons on one data folder, and one upstream."""

from __future__ import annotations

import signal

from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.crash.pulling import MIB, NAME, Pull, blob_path, content, fill_file
from tests.crash.test_sweep import listed, stored
from tests.process import Daemon
from tests.programs import wait_for
from tests.upstreams.faulty import CDN, Corrupt, Withhold
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

CONTENT = content(16 * MIB)
DIGEST = Digest.of(CONTENT)
SIZE = len(CONTENT)
HALF = SIZE // 2
CLIENTS = 20
OTHER = "library/other"


class ProcessesTestCase(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.hub = Hub.start(self)
        toml = settings_for(self.hub)
        self.one = await Daemon.start(self, toml=toml, shutdown_timeout="1s")
        self.other = await Daemon.start(self, data=self.one.data, toml=toml)

    async def begin(self) -> tuple[Withhold, Pull]:
        """Let the one fetch the blob to its middle; a client of it that has got so far."""
        self.hub.images.add_blob(CONTENT, NAME)
        held = self.hub.withhold(CDN, HALF)
        return held, await self.halved(self.one)

    async def halved(self, daemon: Daemon) -> Pull:
        """A client that has got what the hub sends while it withholds the second half."""
        pull = await Pull.start(self, daemon, DIGEST)
        await pull.reached(HALF)
        return pull

    def sent(self) -> int:
        """Bytes of blobs that the hub has sent."""
        return sum(asked.sent for asked in self.hub.asked("GET", CDN))

    async def assert_whole(self, *pulls: Pull) -> None:
        for pull in pulls:
            await pull.ended()
            self.assertEqual((pull.status, pull.received, pull.digest), (200, SIZE, DIGEST))

    async def assert_kept(self, *daemons: Daemon) -> None:
        """Any of ``daemons`` has it now, without asking."""
        await wait_for(lambda: listed(self.one.data) == {str(DIGEST): SIZE})
        asked = len(self.hub.requests)
        for daemon in daemons:
            pull = await Pull.start(self, daemon, DIGEST)
            await self.assert_whole(pull)
            self.assertIn("Cache-Status: artifactd; hit", pull.headers)
        self.assertEqual(self.hub.requests[asked:], [])
        self.assertEqual(stored(self.one.data), {str(DIGEST): SIZE})


class CollapseTests(ProcessesTestCase):
    async def test_twenty_clients_over_both_fetch_a_blob_once(self) -> None:
        large = content(64 * MIB)
        digest = self.hub.images.add_blob(large, NAME)
        held = self.hub.withhold(CDN, len(large) // 2)
        pulls = [
            await Pull.start(self, (self.one, self.other)[number % 2], digest)
            for number in range(CLIENTS)
        ]
        for pull in pulls:
            await pull.reached(1)  # before the second half has left the hub
        held.release()
        for pull in pulls:
            await pull.ended()
            self.assertEqual((pull.status, pull.received, pull.digest), (200, len(large), digest))
        self.assertLessEqual(self.hub.bytes_sent, 1.02 * len(large))

    async def test_the_follower_has_it_when_the_fill_is_done(self) -> None:
        held, filling = await self.begin()
        following = await self.halved(self.other)
        held.release()
        await self.assert_whole(filling, following)
        await self.assert_kept(self.one, self.other)
        self.assertEqual(self.sent(), SIZE)

    async def test_the_follower_serves_it_when_the_other_has_gone(self) -> None:
        held, filling = await self.begin()
        following = await self.halved(self.other)
        held.release()
        await self.assert_whole(filling, following)
        await wait_for(lambda: listed(self.one.data) == {str(DIGEST): SIZE})
        await self.one.kill()
        await self.assert_kept(self.other)

    async def test_a_fill_for_one_image_is_not_another_images(self) -> None:
        held, filling = await self.begin()
        self.hub.images.add_image(OTHER, "1", b"its only layer")
        path = blob_path(DIGEST, f"docker.io/{OTHER}")
        refused = await self.other.request("GET", path)
        self.assertEqual(refused.status, 404, refused)
        self.hub.images.add_blob(CONTENT, OTHER)
        allowed = await Pull.start(self, self.other, DIGEST, path=path)
        await allowed.reached(HALF)
        held.release()
        await self.assert_whole(filling, allowed)
        self.assertEqual(self.sent(), SIZE)
        asked = self.hub.asked("*", f"/v2/{OTHER}/blobs/*")
        # A refusal of a HEAD is decided by GET.
        self.assertEqual({each.method for each in asked if each.status != 404}, {"HEAD"})

    async def test_what_one_finds_corrupt_no_client_of_the_other_completes(self) -> None:
        self.hub.faults.add(Corrupt(at=HALF + 1), on=CDN)
        held, filling = await self.begin()
        following = await self.halved(self.other)
        held.release()
        for pull in (filling, following):
            await pull.ended()
            self.assertFalse(pull.whole, "a client has got wrong bytes")
        again = [await Pull.start(self, daemon, DIGEST) for daemon in (self.one, self.other)]
        await self.assert_whole(*again)
        await self.assert_kept(self.one, self.other)


class TakingOverTests(ProcessesTestCase):
    async def test_clients_of_the_other_get_it_all_when_the_one_is_killed(self) -> None:
        held, filling = await self.begin()
        following = [await self.halved(self.other) for _ in range(3)]
        resumed = self.hub.coming("GET", CDN, times=2)
        self.assertEqual(await self.one.kill(), -signal.SIGKILL)
        self.assertEqual((await resumed).headers.get("range"), f"bytes={HALF}-")
        held.release()
        await self.assert_whole(*following)
        self.assertFalse((await filling.ended()).whole)
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)
        await self.one.restart()
        await self.assert_kept(self.one, self.other)

    async def test_so_they_do_when_it_is_stopped(self) -> None:
        held, filling = await self.begin()
        following = await self.halved(self.other)
        resumed = self.hub.coming("GET", CDN, times=2)
        self.assertEqual(await self.one.kill(signal.SIGTERM), -signal.SIGTERM)
        await resumed
        held.release()
        await self.assert_whole(following)
        self.assertFalse((await filling.ended()).whole)
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)
        self.assertNotIn("Traceback", self.one.process.output)
        await self.assert_kept(self.other)

    async def test_the_one_that_comes_back_follows_the_one_that_took_over(self) -> None:
        held, _ = await self.begin()
        first = await self.halved(self.other)
        resumed = self.hub.coming("GET", CDN, times=2)
        await self.one.kill()
        await resumed
        await self.one.restart()
        second = await self.halved(self.one)
        held.release()
        await self.assert_whole(first, second)
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)
        await self.assert_kept(self.one, self.other)

    async def test_nobody_follows_and_it_is_still_there_to_be_gone_on_with(self) -> None:
        held, _ = await self.begin()
        await self.one.kill()
        self.assertEqual(fill_file(self.one.data, DIGEST).stat().st_size, HALF)
        held.release()
        await self.assert_whole(await Pull.start(self, self.other, DIGEST))
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * SIZE)
        await self.assert_kept(self.other)

    async def test_a_dead_upstream_ends_what_was_taken_over(self) -> None:
        self.hub.images.add_blob(CONTENT, NAME)
        held = self.hub.withhold(CDN, HALF)
        impatient = await Daemon.start(
            self, data=self.one.data, toml=settings_for(self.hub, resumes=0, retries=0)
        )
        await self.halved(self.one)
        following = await self.halved(impatient)
        await self.hub.stop()
        await self.one.kill()
        await following.ended()
        self.assertEqual((following.whole, following.received), (False, HALF))
        self.hub.resume()
        held.release()
        await self.assert_whole(await Pull.start(self, self.other, DIGEST))
        await self.assert_kept(self.other)
