"""An upstream that answers with errors, at first and in the middle of a blob."""

from __future__ import annotations

from typing import Any

from artifactd.oci.names import Digest
from tests.pull.case import Later, PullCase, noise, remote
from tests.upstreams.faulty import BLOBS, CDN, TOKEN, Expired, Garbage, Status, Truncate

SIZE = 1_000_000
BREAK = 600_000
CONTENT = noise(SIZE)


class AtFirstTests(PullCase):
    settings = remote(negative_freshness="0s")

    async def refused(self, status: int, code: str, fault: Status | Garbage, where: str) -> Any:
        """
        Pull while ``fault`` is there, for which the client gets an error; and once it is over, when
        it gets the blob.

        :return: the error's detail.
        """
        digest = self.blob(CONTENT)
        self.hub.faults.add(fault, on=where, times=None)
        download = await self.pull(digest)
        self.assertEqual(download.error[:2], (status, code))
        self.assertNotIn("www-authenticate", download.headers)
        if isinstance(fault, Status):
            self.assertIn(f"fwd-status={fault.status}", download.headers["cache-status"])
        self.assert_nothing_kept(digest)
        self.hub.faults.clear()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assert_kept(digest, CONTENT)
        return download.error[2]

    async def test_500_is_502_with_the_reason(self) -> None:
        detail = await self.refused(502, "UNKNOWN", Status(500), BLOBS)
        self.assertEqual(detail["reason"], f"{self.hub.host} answers 500: this is a fault")

    async def test_503_of_whom_it_redirects_to_is_too(self) -> None:
        detail = await self.refused(502, "UNKNOWN", Status(503), CDN)
        # Its message is not for clients: the upstream may have redirected to any service.
        self.assertEqual(detail["reason"], f"{self.hub.cdn_host} answers 503")

    async def test_404_is_404(self) -> None:
        detail = await self.refused(404, "BLOB_UNKNOWN", Status(404), BLOBS)
        self.assertIn("answers 404", detail["reason"])

    async def test_403_in_spite_of_a_fresh_token_is_404(self) -> None:
        detail = await self.refused(404, "BLOB_UNKNOWN", Status(403), BLOBS)
        self.assertIn("answers 403", detail["reason"])

    async def test_401_in_spite_of_a_fresh_token_is_404(self) -> None:
        detail = await self.refused(404, "BLOB_UNKNOWN", Status(401), BLOBS)
        self.assertIn("answers 401", detail["reason"])

    async def test_a_token_service_that_fails_is_502(self) -> None:
        detail = await self.refused(502, "UNKNOWN", Status(500), TOKEN)
        self.assertIn("no token", detail["reason"])

    async def test_a_token_service_that_answers_nonsense_is_502(self) -> None:
        detail = await self.refused(502, "UNKNOWN", Garbage(), TOKEN)
        self.assertIn("no JSON with a token in it", detail["reason"])

    async def test_a_page_instead_of_a_blob_is_502_and_not_kept(self) -> None:
        detail = await self.refused(502, "UNKNOWN", Garbage(), CDN)
        self.assertIn("sent wrong bytes", detail["reason"])

    async def test_a_status_that_makes_no_sense_is_502(self) -> None:
        detail = await self.refused(502, "UNKNOWN", Status(418), BLOBS)
        self.assertIn("unexpected status", detail["reason"])

    async def test_429_is_429_and_the_upstream_is_left_alone(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Status(429, "1000"), on=BLOBS)
        download = await self.pull(digest)
        self.assertEqual(download.error[:2], (429, "TOOMANYREQUESTS"))
        self.assertEqual(download.headers["retry-after"], "1000")
        self.assertIn("fwd-status=429", download.headers["cache-status"])
        self.assert_nothing_kept(digest)
        self.hub.forget_requests()
        again = await self.pull(digest)
        self.assertEqual(again.error[:2], (429, "TOOMANYREQUESTS"))
        self.assertLessEqual(int(again.headers["retry-after"]), 1000)
        self.assertEqual(self.hub.requests, [])
        await self.restart()
        self.assert_whole(await self.pull(digest), CONTENT)


class ComeAgainTests(PullCase):
    settings = remote(retries=2)

    async def test_503_that_says_when_to_come_again_is_not_asked_before(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Status(503, "1000"), on=BLOBS, times=None)
        download = await self.pull(digest)
        self.assertEqual(download.error[:2], (502, "UNKNOWN"))
        self.assertEqual(download.headers["retry-after"], "1000")
        self.assertEqual([each.status for each in self.hub.requests].count(503), 1)


class InTheMiddleTests(PullCase):
    settings = remote(resumes=2)

    async def broken(self, status: Status, where: str = CDN, times: int | None = None) -> Digest:
        """Pull a blob that breaks off and whose rest is ``status``: the client is cut off."""
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(status), on=where, times=times)
        self.assert_cut(await self.pull(digest), CONTENT)
        self.assert_begun(digest, BREAK)
        self.assertEqual(len(self.logged("the fill of", str(digest), "failed")), 1)
        self.assertEqual(await self.counted("corrupt"), 0)
        return digest

    async def assert_goes_on(self, digest: Digest) -> None:
        """Now that it is over, the next client has only the rest fetched."""
        self.hub.faults.clear()
        self.hub.forget_requests()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE - BREAK)
        self.assert_kept(digest, CONTENT)

    async def test_5xx_for_ever_cuts_the_client_off_and_the_next_one_has_it_go_on(self) -> None:
        await self.assert_goes_on(await self.broken(Status(503), BLOBS))

    async def test_5xx_of_whom_it_redirects_to_does_too(self) -> None:
        await self.assert_goes_on(await self.broken(Status(500), CDN))

    async def test_5xx_for_a_moment_is_not_noticed(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(Status(503)), on=BLOBS, times=2)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual((await self.counted("resumed"), self.blob_bytes), (2, SIZE))

    async def test_what_is_gone_cuts_the_client_off(self) -> None:
        await self.assert_goes_on(await self.broken(Status(404), BLOBS))

    async def test_no_token_cuts_the_client_off(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(Expired()), on=BLOBS, times=2)
        self.hub.faults.add(Later(Status(500)), on=TOKEN, times=None)
        self.assert_cut(await self.pull(digest), CONTENT)
        self.assert_begun(digest, BREAK)
        await self.assert_goes_on(digest)

    async def test_429_for_long_cuts_the_client_off_and_the_next_one_is_told(self) -> None:
        digest = await self.broken(Status(429, "1000"), BLOBS, 2)
        self.assertEqual((await self.pull(digest)).error[:2], (429, "TOOMANYREQUESTS"))
        self.assert_begun(digest, BREAK)
        await self.restart()
        await self.assert_goes_on(digest)

    async def test_429_for_a_moment_is_waited_for(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(Status(429, "1")), on=BLOBS, times=2)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE)
        self.assertEqual([asked.status for asked in self.hub.asked("GET", BLOBS)][-2:], [429, 307])
