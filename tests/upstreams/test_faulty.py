"""What goes wrong with the test's upstream goes wrong as the test says."""

from __future__ import annotations

import gzip
import json
from http.client import RemoteDisconnected

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactd.oci.digest import Digest
from tests.process import Answer
from tests.upstreams.asking import ACCEPT, ask, blob_url, brief, cut_off, pull_manifest, token
from tests.upstreams.faulty import (
    BLOBS,
    CDN,
    MANIFESTS,
    TOKEN,
    Corrupt,
    Expired,
    Garbage,
    Gzipped,
    NoLength,
    NoRanges,
    OtherETag,
    RedirectTo,
    Reset,
    Silence,
    Stall,
    Status,
    Truncate,
    WrongLength,
)
from tests.upstreams.hub import Hub

NAME = "library/app"
MIB = 1024 * 1024
BLOB = bytes(range(256)) * 4 * 1024  # 1 MiB


class FaultyCase(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.hub = Hub.start(self)
        self.hub.images.add_image(NAME, "1", b"layer")
        self.digest = self.hub.images.add_blob(BLOB, NAME)
        self.blob = await blob_url(self.hub, NAME, self.digest)
        self.faults = self.hub.faults

    def asking(self, **headers: str) -> Deferred[Answer]:
        """The blob, on its way."""
        return Deferred.fromCoroutine(ask(self.blob, headers=headers))

    async def assert_whole(self) -> None:
        """The fault is over."""
        self.assert_answer(await ask(self.blob), 200, BLOB)

    def assert_answer(self, answer: Answer, status: int, body: bytes) -> None:
        self.assertEqual((answer.status, brief(answer.body)), (status, brief(body)))

    def assert_cut(self, received: tuple[bytes, str], body: bytes, how: str) -> None:
        self.assertEqual((brief(received[0]), received[1]), (brief(body), how))


class ConnectionTests(FaultyCase):
    async def test_a_body_is_truncated(self) -> None:
        self.faults.add(Truncate(after=1000), on=CDN)
        self.assert_cut(await cut_off(self.blob), BLOB[:1000], "closed")
        await self.assert_whole()

    async def test_so_much_of_a_range_comes_as_the_test_says(self) -> None:
        self.faults.add(Truncate(after=1000), on=CDN)
        received = await cut_off(self.blob, {"Range": "bytes=500-"})
        self.assert_cut(received, BLOB[500:1500], "closed")

    async def test_a_chunked_body_is_truncated(self) -> None:
        self.faults.add(NoLength(), on=CDN)
        self.faults.add(Truncate(after=1000), on=CDN)
        self.assert_cut(await cut_off(self.blob), BLOB[:1000], "closed")

    async def test_a_connection_is_closed_without_an_answer(self) -> None:
        self.faults.add(Truncate(after=-1), on=CDN)
        with self.assertRaises(RemoteDisconnected):
            await ask(self.blob)
        await self.assert_whole()

    async def test_a_connection_is_reset(self) -> None:
        for after in (0, 1000, MIB - 1):
            self.faults.add(Reset(after=after), on=CDN)
            self.assert_cut(await cut_off(self.blob), BLOB[:after], "reset")
        await self.assert_whole()

    async def test_a_connection_is_reset_without_an_answer(self) -> None:
        self.faults.add(Reset(after=-1), on=CDN)
        with self.assertRaises(ConnectionResetError):
            await ask(self.blob)

    async def test_a_body_stalls_until_it_is_released(self) -> None:
        stalled = Stall(after=1000)
        self.faults.add(stalled, on=CDN)
        asking = self.asking(Range="bytes=500-")
        await stalled.reached
        self.assertEqual(self.hub.asked("GET", CDN)[0].sent, 1000)
        stalled.release()
        self.assert_answer(await asking, 206, BLOB[500:])

    async def test_nothing_is_answered_until_it_is_released(self) -> None:
        silent = Silence()
        self.faults.add(silent, on=CDN)
        asking = self.asking()
        await silent.reached
        self.assertEqual(self.hub.asked("GET", CDN)[0].sent, 0)
        silent.release()
        self.assert_answer(await asking, 200, BLOB)

    async def test_what_stalls_for_ever_ends_with_the_hub(self) -> None:
        stalled = Stall(after=1000)
        self.faults.add(stalled, on=CDN)
        receiving = Deferred.fromCoroutine(cut_off(self.blob))
        await stalled.reached
        await self.hub.stop()
        self.assertNotEqual((await receiving)[1], "complete")

    async def test_bodies_are_withheld_from_an_offset_on(self) -> None:
        held = self.hub.withhold(CDN, at=1000)
        one, two = self.asking(), self.asking(Range="bytes=900-")
        await held.reached
        await self.hub.coming("GET", CDN, times=2)
        self.assertEqual((await ask(self.blob, headers={"Range": "bytes=0-999"})).status, 206)
        self.assertFalse(one.called or two.called)
        held.release()
        self.assert_answer(await one, 200, BLOB)
        self.assert_answer(await two, 206, BLOB[900:])

    async def test_a_slow_body_comes_in_the_pieces_that_the_test_releases(self) -> None:
        held = self.hub.withhold(CDN, at=0)
        asking = self.asking()
        await held.reached
        for to in (10, 5000):
            held.release(to)
            self.assertEqual(self.hub.asked("GET", CDN)[0].sent, to)
        held.release()
        self.assert_answer(await asking, 200, BLOB)


class BytesTests(FaultyCase):
    async def test_one_byte_is_wrong(self) -> None:
        self.faults.add(Corrupt(at=MIB - 1), on=CDN, times=2)
        body = (await ask(self.blob)).body
        self.assertEqual(brief(body[:-1]), brief(BLOB[:-1]))
        self.assertEqual(body[-1], BLOB[-1] ^ 0xFF)
        part = (await ask(self.blob, headers={"Range": "bytes=-10"})).body
        self.assertNotEqual(part, BLOB[-10:])
        await self.assert_whole()

    async def test_more_is_promised_than_comes(self) -> None:
        self.faults.add(WrongLength(by=10), on=CDN)
        self.assert_cut(await cut_off(self.blob), BLOB, "closed")

    async def test_less_is_promised_than_comes(self) -> None:
        self.faults.add(WrongLength(by=-10), on=CDN)
        self.assert_answer(await ask(self.blob), 200, BLOB[:-10])
        self.assertEqual(self.hub.asked("GET", CDN)[0].sent, MIB)

    async def test_no_length_is_told(self) -> None:
        self.faults.add(NoLength(), on=CDN)
        answer = await ask(self.blob)
        self.assertEqual(answer.header("Transfer-Encoding"), "chunked")
        self.assertIsNone(answer.header("Content-Length"))
        self.assert_answer(answer, 200, BLOB)

    async def test_ranges_are_ignored(self) -> None:
        self.faults.add(NoRanges(), on=CDN)
        answer = await ask(self.blob, headers={"Range": "bytes=5-"})
        self.assert_answer(answer, 200, BLOB)
        self.assertIsNone(answer.header("Accept-Ranges"))
        self.assertIsNone(answer.header("Content-Range"))

    async def test_the_entity_tag_is_another_one(self) -> None:
        etag = (await ask(self.blob, "HEAD")).header("ETag") or ""
        self.faults.add(OtherETag(), on=CDN)
        answer = await ask(self.blob, headers={"Range": "bytes=5-", "If-Range": etag})
        self.assert_answer(answer, 200, BLOB)
        self.assertNotEqual(answer.header("ETag"), etag)

    async def test_a_body_is_compressed_that_should_not_be(self) -> None:
        self.faults.add(Gzipped(), on=CDN)
        answer = await ask(self.blob, headers={"Accept-Encoding": "identity"})
        self.assertEqual(answer.header("Content-Encoding"), "gzip")
        self.assertEqual(brief(gzip.decompress(answer.body)), brief(BLOB))


class AnswerTests(FaultyCase):
    async def test_an_error_is_answered_so_often_as_the_test_says(self) -> None:
        self.faults.add(Status(503), on=MANIFESTS, times=2)
        statuses = [(await pull_manifest(self.hub, NAME, "1")).status for _ in range(3)]
        self.assertEqual(statuses, [503, 503, 200])

    async def test_any_error_is_one_of_the_specification(self) -> None:
        for status in (401, 403, 404, 429, 500, 502, 503):
            self.faults.add(Status(status, retry_after="7"), on=MANIFESTS)
            answer = await pull_manifest(self.hub, NAME, "1")
            self.assertEqual(answer.status, status)
            self.assertEqual(answer.header("Retry-After"), "7")
            self.assertEqual(json.loads(answer.body)["errors"][0]["message"], "this is a fault")
            self.assertIsNone(answer.header("ETag"))

    async def test_a_fault_is_for_one_method(self) -> None:
        self.faults.add(Status(500), on=MANIFESTS, method="HEAD")
        self.assertEqual((await pull_manifest(self.hub, NAME, "1")).status, 200)
        self.assertEqual((await pull_manifest(self.hub, NAME, "1", "HEAD")).status, 500)
        self.faults.add(Status(500), on=MANIFESTS, method="*", times=None)
        for method in ("GET", "HEAD", "GET"):
            self.assertEqual((await pull_manifest(self.hub, NAME, "1", method)).status, 500)
        self.faults.clear()
        self.assertEqual((await pull_manifest(self.hub, NAME, "1")).status, 200)

    async def test_a_challenge_is_never_faulty(self) -> None:
        self.faults.add(Status(500), on=MANIFESTS)
        url = f"{self.hub.url}/v2/{NAME}/manifests/1"
        self.assertEqual((await ask(url)).status, 401)
        self.assertEqual((await pull_manifest(self.hub, NAME, "1")).status, 500)

    async def test_tokens_cannot_be_had(self) -> None:
        for fault, status in ((Status(500), 500), (Status(401), 401), (Garbage(), 200)):
            self.faults.add(fault, on=TOKEN)
            answer = await ask(self.hub.realm)
            self.assertEqual(answer.status, status)
            self.assertNotIn(b'"token"', answer.body)
        self.assertIn("token", json.loads((await ask(self.hub.realm)).body))

    async def test_a_token_is_forgotten_when_it_is_used(self) -> None:
        headers = await token(self.hub, NAME) | ACCEPT
        self.faults.add(Expired(), on=MANIFESTS)
        url = f"{self.hub.url}/v2/{NAME}/manifests/1"
        for _ in range(2):
            answer = await ask(url, headers=headers)
            self.assertEqual(answer.status, 401)
            self.assertIn("invalid_token", answer.header("WWW-Authenticate") or "")
        self.assertEqual((await pull_manifest(self.hub, NAME, "1")).status, 200)

    async def test_redirects_lead_elsewhere_or_nowhere(self) -> None:
        headers = await token(self.hub, NAME)
        path = f"/v2/{NAME}/blobs/{self.digest}"
        self.faults.add(RedirectTo("https://127.0.0.2:1/"), on=BLOBS)
        answer = await ask(self.hub.url + path, headers=headers)
        self.assertEqual((answer.status, answer.header("Location")), (307, "https://127.0.0.2:1/"))
        self.faults.add(RedirectTo(), on=BLOBS)
        answer = await ask(self.hub.url + path, headers=headers)
        self.assertEqual((answer.status, answer.header("Location")), (307, path))


class QueueTests(FaultyCase):
    async def test_faults_of_one_kind_come_one_after_the_other(self) -> None:
        self.faults.add(Truncate(after=10), on=CDN)
        self.faults.add(Truncate(after=20), on=CDN)
        self.assertEqual([len((await cut_off(self.blob))[0]) for _ in range(2)], [10, 20])
        await self.assert_whole()

    async def test_faults_of_several_kinds_come_together(self) -> None:
        self.faults.add(NoRanges(), on=CDN, times=None)
        self.faults.add(Corrupt(at=0), on=CDN)
        self.faults.add(Truncate(after=10), on=CDN)
        received = await cut_off(self.blob, {"Range": "bytes=500-"})
        self.assert_cut(received, b"\xff" + BLOB[1:10], "closed")
        answer = await ask(self.blob, headers={"Range": "bytes=500-"})
        self.assert_answer(answer, 200, BLOB)

    async def test_other_paths_have_no_fault(self) -> None:
        self.faults.add(Truncate(after=10), on=f"/data/{Digest.of(b'other')}")
        await self.assert_whole()
