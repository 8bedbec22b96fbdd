"""Many clients of one blob, those who come late, and those who leave."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from tests.pull.case import HELD, PullCase, noise, remote
from tests.upstreams.faulty import CDN, Silence

MEBIBYTE = 1 << 20
CLIENTS = 50

SIZE = 2_000_000
HALF = SIZE // 2
CONTENT = noise(SIZE)


class ManyTests(PullCase):
    async def test_fifty_clients_get_a_cold_blob_for_the_price_of_one(self) -> None:
        content = noise(16 * MEBIBYTE)
        digest = self.blob(content)
        held = self.hub.withhold(CDN, 8 * MEBIBYTE)
        clients = [await self.ask(digest, keep=False) for _ in range(CLIENTS)]
        # The upstream keeps its second half until everybody has some of the first.
        await gatherResults([Deferred.fromCoroutine(client.has(1)) for client in clients])
        held.release()
        await gatherResults([Deferred.fromCoroutine(client.end()) for client in clients])
        got = {(client.status, client.whole, client.encoded) for client in clients}
        self.assertEqual(got, {(200, True, digest.encoded)})
        self.assertLessEqual(self.hub.bytes_sent, 1.02 * len(content))
        self.assertEqual(self.hub.count("GET", CDN), 1)
        self.assertEqual(await self.counted("coalesced"), CLIENTS - 1)
        stored = [client.headers["cache-status"].endswith("; stored") for client in clients]
        collapsed = [client.headers["cache-status"].endswith("collapsed") for client in clients]
        self.assertEqual((sum(stored), sum(collapsed)), (1, CLIENTS - 1))
        await self.settled(digest)
        self.assert_kept(digest, content)

    async def test_fifty_clients_of_a_small_blob_wait_for_one_answer(self) -> None:
        content = noise(1000)
        digest = self.blob(content)
        held = self.hub.withhold(CDN, 500)
        clients = [await self.ask(digest) for _ in range(CLIENTS)]
        await held.reached
        held.release()
        await gatherResults([Deferred.fromCoroutine(client.end()) for client in clients])
        for client in clients:
            self.assert_whole(client, content)
        self.assertEqual(self.hub.count("GET", CDN), 1)

    async def test_who_comes_late_gets_at_once_what_is_here(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, HALF)
        first = await (await self.ask(digest)).has(HALF)
        late = await (await self.ask(digest)).has(HALF)
        self.assertEqual(late.headers["cache-status"], "artifactd; fwd=miss; collapsed")
        held.release()
        for client in (first, late):
            self.assert_whole(await client.end(), CONTENT)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, SIZE))

    async def test_a_client_that_takes_nothing_delays_nobody(self) -> None:
        content = noise(16 * MEBIBYTE)  # more than sockets hold
        digest = self.blob(content)
        slow = await (await self.ask(digest)).has(1)
        slow.transport.pauseProducing()
        self.assert_whole(await self.pull(digest), content)
        self.assertLess(slow.count, len(content))
        slow.transport.resumeProducing()
        self.assert_whole(await slow.end(), content)
        self.assertEqual(self.blob_bytes, len(content))


class LeavingTests(PullCase):
    async def test_the_first_client_may_leave(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, HALF)
        first = await (await self.ask(digest)).has(1)
        second = await (await self.ask(digest)).has(1)
        await first.leave()
        held.release()
        self.assert_whole(await second.end(), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE)

    async def test_all_clients_may_leave(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, HALF)
        for client in [await (await self.ask(digest)).has(1) for _ in range(2)]:
            await client.leave()
        held.release()
        await self.settled(digest)
        self.assert_kept(digest, CONTENT)
        self.assertEqual((self.hub.count("GET", CDN), self.blob_bytes), (1, SIZE))
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.hub.requests, [])

    async def test_all_clients_may_leave_before_the_upstream_has_answered(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, 0)
        client = await self.ask(digest)
        await held.reached
        await client.leave()
        held.release()
        await self.settled(digest)
        self.assert_kept(digest, CONTENT)


class UnfinishedTests(PullCase):
    """With ``finish_fills = false``."""

    settings = remote(finish_fills=False)

    async def test_when_all_have_left_it_stops_and_the_next_client_has_it_go_on(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.withhold(CDN, HALF)
        clients = [await (await self.ask(digest)).has(HALF) for _ in range(2)]
        await clients[0].leave()
        await clients[1].leave()
        await self.settled(digest)
        self.assert_begun(digest, HALF)
        self.assertEqual(self.logged("failed"), [])
        self.hub.faults.clear()
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE - HALF)
        (asked,) = self.hub.asked("GET", CDN)
        self.assertEqual(asked.headers["range"], f"bytes={HALF}-")
        self.assertEqual(asked.headers["if-range"], f'"{digest.encoded[:32]}"')
        self.assert_kept(digest, CONTENT)

    async def test_while_one_stays_it_goes_on(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, HALF)
        clients = [await (await self.ask(digest)).has(HALF) for _ in range(3)]
        await clients[0].leave()
        await clients[2].leave()
        held.release()
        self.assert_whole(await clients[1].end(), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE)

    async def test_who_waits_for_it_to_be_verified_is_a_client_too(self) -> None:
        digest = self.blob(CONTENT)
        held = self.hub.withhold(CDN, HALF)
        waiting = await self.ask(digest, "0-99")
        await held.reached
        leaving = await (await self.ask(digest)).has(1)
        # It has been asked for by somebody who leaves, and by somebody who stays.
        await leaving.leave()
        self.assert_part(
            await (await self.ask(digest, f"{HELD}-{HELD}")).end(), CONTENT, HELD, HELD
        )
        held.release()
        self.assert_part(await waiting.end(), CONTENT, 0, 99)


class StoppingTests(PullCase):
    settings = remote(first_byte_timeout="1h", idle_timeout="1h")

    async def test_a_daemon_that_stops_does_not_wait_for_an_upstream_that_says_nothing(
        self,
    ) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Silence(), on=CDN)
        client = await self.ask(digest)
        await self.hub.coming("GET", CDN)
        await client.leave()
        await self.restart()
        self.assert_nothing_kept(digest)
        self.assert_whole(await self.pull(digest), CONTENT)

    async def test_a_daemon_that_stops_in_the_middle_of_a_part_says_nothing_of_it(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.withhold(CDN, HALF)
        part = await (await self.ask(digest, f"1-{SIZE - 1}")).has(HALF - 1)
        await part.leave()
        await self.restart()
        self.hub.faults.clear()
        self.assertEqual(self.logged(str(digest)), [])
        self.assert_whole(await self.pull(digest), CONTENT)

    async def test_a_daemon_that_stops_keeps_what_has_come(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.withhold(CDN, HALF)
        client = await (await self.ask(digest)).has(HALF)
        await client.leave()
        await self.restart()
        self.assert_begun(digest, HALF)
        self.hub.faults.clear()
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE - HALF)
