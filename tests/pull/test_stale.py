"""An upstream that does not answer as it should: what is cached is served, else it is told why."""

from __future__ import annotations

from typing import Any

from artifactd.registry.local import index_of
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.upstream import patience
from tests.api.served import Served
from tests.process import Answer
from tests.programs import wait_for
from tests.pull.mirrors import CONFIRMED, HIT, STORED, Instead, MirrorCase, digest_of
from tests.upstreams.faulty import (
    BLOBS,
    MANIFESTS,
    REFERRERS,
    TAGS,
    TOKEN,
    Fault,
    Garbage,
    Reset,
    Silence,
    Status,
    Truncate,
)

NAME = "library/alpine"
PATH = "/v2/docker.io/alpine/manifests"
ANY = "/v2/*"
DAY = 86_400.0
PATIENCE = "100ms"


class StaleCase(MirrorCase):
    def setUp(self) -> None:
        super().setUp()
        self.digest = self.hub.images.add_image(NAME, "latest", b"layer")
        self.body = self.hub.images.manifest_of(NAME, "latest")

    def break_down(self, fault: Fault, on: str = ANY) -> None:
        """From now on the upstream answers so."""
        self.hub.faults.add(fault, on=on, method="*", times=None)

    async def primed(self, **settings: Any) -> Served:
        """A registry that has ``latest``, and asks for it each time."""
        registry = self.mirror(**{"freshness": "0s", **settings})
        self.assert_from(await self.get(registry), "remote", STORED)
        self.hub.forget_requests()
        return registry

    async def get(self, registry: Served, reference: str = "latest") -> Answer:
        return await registry.request("GET", f"{PATH}/{reference}")


class CachedTests(StaleCase):
    async def test_it_stands_in_for_an_error(self) -> None:
        registry = await self.primed(negative_freshness="0s")
        for status in (500, 502, 503, 504, 501, 401, 403, 404, 410, 400, 418, 429):
            self.break_down(Status(status, message="out of order"))
            answer = await self.get(registry)
            # A bare 401 to a token is told apart from one to a fresh token.
            self.assert_stale(answer, self.body, "" if status == 401 else str(status))
            self.assertEqual(digest_of(answer), self.digest)
            self.hub.faults.clear()
        self.assertEqual(self.execute(registry, "SELECT count(*) FROM manifest"), [(1,)])

    async def test_the_reason_is_passed_on_in_what_a_header_may_hold(self) -> None:
        registry = await self.primed(negative_freshness="0s")
        for message in ('"quoted" \\ ', "zwölf \N{SNOWMAN}", "x" * 5000, "a\r\nX-Injected: 1"):
            self.break_down(Status(404, message=message))
            answer = await self.get(registry)
            self.assert_stale(answer, self.body, "404")
            self.assertIsNone(answer.header("X-Injected"))
            self.assertLess(len(answer.header("Warning") or ""), 300)
            self.hub.faults.clear()

    async def test_it_stands_in_for_an_answer_that_breaks_off_or_makes_no_sense(self) -> None:
        registry = await self.primed()
        new = self.hub.images.add_image(NAME, "latest", b"new")
        for fault in (Truncate(-1), Reset(-1), Truncate(10), Garbage(), Instead(b"{}")):
            self.break_down(fault)
            self.assert_stale(await self.get(registry), self.body)
            self.hub.faults.clear()
        self.assertEqual(digest_of(await self.get(registry)), new)

    async def test_it_stands_in_for_an_upstream_that_says_nothing(self) -> None:
        registry = await self.primed()
        self.hub.challenges = False
        impatient = self.mirror(registry.data, freshness="0s", first_byte_timeout=PATIENCE)
        self.break_down(Silence())
        self.assert_stale(await self.get(impatient), self.body)

    async def test_it_stands_in_for_one_that_takes_too_long_and_is_still_asked(self) -> None:
        registry = await self.primed()
        slow = self.mirror(registry.data, freshness="0s", stale_after=PATIENCE)
        new = self.hub.images.add_image(NAME, "latest", b"new")
        held = Silence()
        self.break_down(held)
        self.assert_stale(await self.get(slow), self.body, "has not answered for 0.1 seconds")
        self.hub.faults.clear()
        held.release()
        remotes = slow.parts.registry.repositories["docker.io"]
        assert isinstance(remotes, RemoteRepository)
        await wait_for(lambda: not remotes.manifests.overdue.silent)
        await self.hub.stop()
        self.assertEqual(digest_of(await self.get(slow)), new)

    async def test_a_list_stands_in_so_too(self) -> None:
        registry = await self.primed()
        slow = self.mirror(registry.data, freshness="0s", stale_after=PATIENCE)
        for path in (
            "/v2/docker.io/alpine/tags/list",
            f"/v2/docker.io/alpine/referrers/{self.digest}",
        ):
            body = (await slow.request("GET", path)).body
            self.break_down(Silence())
            self.assert_stale(await slow.request("GET", path), body, "has not answered for")
            self.hub.faults.clear()

    async def test_it_stands_in_for_one_that_is_gone_until_it_is_back(self) -> None:
        registry = await self.primed()
        await self.hub.stop()
        for method, body in (("GET", self.body), ("HEAD", b"")):
            answer = await registry.request(method, f"{PATH}/latest")
            self.assert_stale(answer, body, "refused")
        self.hub.resume()
        answer = await self.get(registry)
        self.assert_from(answer, "cache", CONFIRMED)
        self.assertIsNone(answer.header("Warning"))

    async def test_it_stands_in_where_no_token_is_to_be_had(self) -> None:
        registry = await self.primed()
        for status in (401, 403, 500, 429):
            self.break_down(Status(status), on=TOKEN)
            self.hub.tokens.forget()
            self.assert_stale(await self.get(registry), self.body)
            self.hub.faults.clear()

    async def test_a_digest_is_answered_as_if_nothing_were_wrong(self) -> None:
        registry = await self.primed()
        await self.hub.stop()
        answer = await self.get(registry, str(self.digest))
        self.assert_from(answer, "cache", HIT)
        self.assertIsNone(answer.header("Warning"))

    async def test_a_fresh_one_is_not_stale_whatever_the_upstream_does(self) -> None:
        registry = await self.primed(freshness="1d")
        await self.hub.stop()
        answer = await self.get(registry)
        self.assert_from(answer, "cache", HIT)
        self.assertIsNone(answer.header("Warning"))

    async def test_who_has_it_already_is_told_so_and_that_it_is_old(self) -> None:
        registry = await self.primed()
        await self.hub.stop()
        for method in ("GET", "HEAD"):
            answer = await registry.request(
                method, f"{PATH}/latest", headers={"If-None-Match": f'"{self.digest}"'}
            )
            self.assertEqual((answer.status, answer.body), (304, b""))
            self.assertIn("stale", answer.header("Warning") or "")
            self.assertIn("detail=stale", answer.header("Cache-Status") or "")

    async def test_it_is_counted(self) -> None:
        registry = await self.primed()
        await self.hub.stop()
        await self.get(registry)
        metrics = await registry.request("GET", "/metrics")
        self.assertIn(b'artifactd_stale_total{repository="docker.io"} 1.0', metrics.body)


class MaxStaleTests(StaleCase):
    async def test_beyond_it_there_is_nothing_to_answer_with(self) -> None:
        registry = await self.primed(freshness="1d", max_stale="2d")
        self.break_down(Status(503))
        self.age(registry, 2.9 * DAY)
        self.assert_stale(await self.get(registry), self.body, "503")
        self.age(registry, 0.2 * DAY)
        self.assert_refused(await self.get(registry), 502, "UNKNOWN", "503")
        # By its digest it is as good as ever.
        self.assertEqual((await self.get(registry, str(self.digest))).status, 200)

    async def test_without_it_there_is_no_end(self) -> None:
        registry = await self.primed(freshness="1d")
        self.break_down(Status(503))
        self.age(registry, 10_000 * DAY)
        self.assert_stale(await self.get(registry), self.body, "503")


class NothingCachedTests(StaleCase):
    """The table in docs/pull-through.md."""

    async def refused(self, fault: Fault, on: str, status: int, code: str, reason: str) -> Answer:
        """What a client gets of an upstream that has such a fault."""
        self.hub.tokens.forget()
        self.hub.faults.clear()
        self.break_down(fault, on)
        registry = self.mirror()
        answer = await self.get(registry)
        detail = self.assert_refused(answer, status, code, reason)
        self.assertEqual(
            (detail["name"], detail["reference"]), ("docker.io/library/alpine", "latest")
        )
        self.assertEqual(registry.files(), [])
        return answer

    async def test_what_is_not_there_is_404_with_the_reason(self) -> None:
        for status in (404, 410, 403):
            answer = await self.refused(
                Status(status), MANIFESTS, 404, "MANIFEST_UNKNOWN", f"{status}: this is a fault"
            )
            self.assertEqual(
                answer.header("Cache-Status"), f"artifactd; fwd=miss; fwd-status={status}"
            )

    async def test_401_in_spite_of_a_fresh_token_is_404_and_no_challenge(self) -> None:
        registry = self.mirror()
        answer = await registry.request("GET", "/v2/docker.io/nothing/manifests/latest")
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN", "not for us")
        self.hub.private.add(NAME)
        answer = await self.get(registry)
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN", "not for us")

    async def test_429_stays_429_with_the_time(self) -> None:
        answer = await self.refused(
            Status(429, retry_after="77"), MANIFESTS, 429, "TOOMANYREQUESTS", "429"
        )
        self.assertIn(int(answer.header("Retry-After") or 0), range(1, 78))

    async def test_429_for_a_token_is_429(self) -> None:
        await self.refused(Status(429, retry_after="77"), TOKEN, 429, "TOOMANYREQUESTS", "429")

    async def test_a_token_that_can_not_be_had_is_502(self) -> None:
        for fault in (Status(500), Status(503), Status(404), Garbage(), Truncate(5)):
            await self.refused(fault, TOKEN, 502, "UNKNOWN", "token|answers|closed")

    async def test_a_token_that_nobody_is_given_is_404_as_the_image_is_not_for_us(self) -> None:
        for status in (401, 403):
            await self.refused(Status(status), TOKEN, 404, "MANIFEST_UNKNOWN", "anonymously")

    async def test_a_login_that_is_refused_is_502(self) -> None:
        self.hub.private.add("library/alpine")
        registry = self.mirror(username="builder", password="wrong")
        self.assert_refused(await self.get(registry), 502, "UNKNOWN", "builder|password|token")

    async def test_5xx_and_what_makes_no_sense_are_502(self) -> None:
        for status in (500, 501, 503, 505, 400, 418):
            await self.refused(Status(status), MANIFESTS, 502, "UNKNOWN", str(status))
        for fault in (Truncate(-1), Reset(-1), Truncate(10), Garbage()):
            await self.refused(fault, MANIFESTS, 502, "UNKNOWN", "")

    async def test_one_that_can_not_be_reached_is_502(self) -> None:
        await self.hub.stop()
        answer = await self.get(self.mirror())
        self.assert_refused(answer, 502, "UNKNOWN", "connection refused")
        self.assertEqual(answer.header("Cache-Status"), "artifactd; fwd=miss")

    async def test_one_that_takes_too_long_is_504(self) -> None:
        self.break_down(Silence())
        self.hub.challenges = False
        answer = await self.get(self.mirror(first_byte_timeout=PATIENCE))
        self.assert_refused(answer, 504, "UNKNOWN", "time|long|second")

    async def test_nobody_is_challenged_whatever_is_asked_for(self) -> None:
        self.hub.private.add(NAME)
        registry = self.mirror()
        for path, code in (
            (f"manifests/{self.digest}", "MANIFEST_UNKNOWN"),
            (f"blobs/{self.digest}", "BLOB_UNKNOWN"),
            ("tags/list", "NAME_UNKNOWN"),
        ):
            answer = await registry.request("GET", f"/v2/docker.io/alpine/{path}")
            self.assert_refused(answer, 404, code, "not for us")

    async def test_blobs_and_lists_are_refused_alike(self) -> None:
        for fault, status, code in (
            (Status(500), 502, "UNKNOWN"),
            (Status(429), 429, "TOOMANYREQUESTS"),
            (Truncate(-1), 502, "UNKNOWN"),
        ):
            self.hub.faults.clear()
            for on in (BLOBS, TAGS, REFERRERS):
                self.break_down(fault, on)
            registry = self.mirror()
            for path in (f"blobs/{self.digest}", "tags/list", f"referrers/{self.digest}"):
                answer = await registry.request("GET", f"/v2/docker.io/alpine/{path}")
                self.assert_refused(answer, status, code)


class NegativeTests(StaleCase):
    async def test_what_is_not_there_is_not_asked_for_again(self) -> None:
        registry = self.mirror(negative_freshness="1d")
        for path, code in (
            ("manifests/missing", "MANIFEST_UNKNOWN"),
            (f"manifests/sha256:{'0' * 64}", "MANIFEST_UNKNOWN"),
        ):
            first = await registry.request("GET", f"/v2/docker.io/alpine/{path}")
            self.assert_refused(first, 404, code)
            self.assertEqual(first.header("Cache-Status"), "artifactd; fwd=miss; fwd-status=404")
            self.hub.forget_requests()
            for method in ("GET", "HEAD"):
                again = await registry.request(method, f"/v2/docker.io/alpine/{path}")
                self.assertEqual(again.status, 404)
                self.assertEqual(again.header("Cache-Status"), "artifactd; hit; detail=negative")
            self.assertEqual(self.hub.requests, [])

    async def test_neither_is_the_list_of_an_image_that_is_not_there(self) -> None:
        registry = self.mirror(negative_freshness="1d")
        for _ in range(3):
            answer = await registry.request("GET", "/v2/docker.io/nothing/tags/list")
            self.assert_refused(answer, 404, "NAME_UNKNOWN")
        self.assertEqual(self.hub.count("GET", TAGS), 2)  # with and without a token

    async def test_what_is_believed_of_one_is_not_believed_of_another(self) -> None:
        registry = self.mirror(negative_freshness="1d")
        await self.get(registry, "missing")
        self.assertEqual((await self.get(registry)).status, 200)

    async def test_it_is_asked_for_again_where_the_settings_say_so(self) -> None:
        registry = self.mirror(negative_freshness="0s")
        self.assertEqual((await self.get(registry, "new")).status, 404)
        self.hub.images.add_image(NAME, "new", b"layer")
        self.assertEqual((await self.get(registry, "new")).status, 200)

    async def test_an_error_is_not_believed(self) -> None:
        registry = self.mirror(negative_freshness="1d")
        self.hub.faults.add(Status(503), on=MANIFESTS)
        self.assert_refused(await self.get(registry), 502, "UNKNOWN", "503")
        self.assertEqual((await self.get(registry)).status, 200)

    async def test_what_is_gone_but_cached_is_not_asked_for_again_either(self) -> None:
        registry = await self.primed(negative_freshness="1d")
        self.hub.images.remove(NAME, "latest")
        self.assert_stale(await self.get(registry), self.body, "404")
        self.hub.forget_requests()
        self.assert_stale(await self.get(registry), self.body, "404")
        self.assertEqual(self.hub.requests, [])


class OfflineTests(StaleCase):
    async def test_what_is_here_is_served_and_nothing_is_asked(self) -> None:
        first = await self.primed()
        path = "/v2/docker.io/alpine"
        referrer = self.hub.images.add_image(NAME, "signed", b"s", subject=self.digest)
        for reference in ("signed", "other"):
            await self.get(first, reference)
        self.hub.forget_requests()
        registry = self.mirror(first.data, freshness="0s", offline=True, max_stale="1ms")
        self.assert_stale(await self.get(registry), self.body, "offline")
        self.assert_from(await self.get(registry, str(self.digest)), "cache", HIT)
        tags = await registry.request("GET", f"{path}/tags/list")
        self.assertEqual((tags.status, tags.body.count(b"latest")), (200, 1))
        referrers = await registry.request("GET", f"{path}/referrers/{self.digest}")
        self.assertIn(str(referrer).encode(), referrers.body)
        for missing, code in (
            ("manifests/other", "MANIFEST_UNKNOWN"),
            (f"manifests/sha256:{'0' * 64}", "MANIFEST_UNKNOWN"),
            (f"blobs/sha256:{'0' * 64}", "BLOB_UNKNOWN"),
        ):
            answer = await registry.request("GET", f"{path}/{missing}")
            self.assert_refused(answer, 404, code, "offline")
        bare = await registry.request("GET", "/v2/alpine/manifests/latest")
        self.assert_stale(bare, self.body, "offline")
        metrics = await registry.request("GET", "/metrics")
        self.assertIn(b'artifactd_stale_total{repository="docker.io"} 4.0', metrics.body)
        self.assertEqual(self.hub.requests, [])

    async def test_each_old_one_is_counted(self) -> None:
        first = await self.primed()
        registry = self.mirror(first.data, freshness="0s", offline=True)
        for method in ("GET", "HEAD"):
            await registry.request(method, f"{PATH}/latest")
        metrics = await registry.request("GET", "/metrics")
        self.assertIn(b'artifactd_stale_total{repository="docker.io"} 2.0', metrics.body)

    async def test_of_a_name_that_was_never_pulled_nothing_is_asked_either(self) -> None:
        first = await self.primed()
        registry = self.mirror(first.data, offline=True)
        self.hub.forget_requests()
        path = f"referrers/{self.digest}"
        for name in ("docker.io/none", "none"):
            statuses = {}
            for below in ("manifests/latest", f"blobs/{self.digest}", "tags/list", path):
                for method in ("GET", "HEAD"):
                    answer = await registry.request(method, f"/v2/{name}/{below}")
                    statuses[below] = answer.status
            # distribution-spec, "Listing Referrers": never 404.
            expected = dict.fromkeys(statuses, 404) | {path: 200}
            self.assertEqual(statuses, expected, name)
        answer = await registry.request("GET", f"/v2/docker.io/alpine/{path}")
        self.assert_stale(answer, index_of([]), "offline")
        self.assertEqual(self.hub.requests, [])


class BreakerTests(StaleCase):
    def setUp(self) -> None:
        super().setUp()
        # As long as the test takes, however slow the machine is.
        self.patch(patience, "BREAKER_PAUSE", 3600.0)

    async def test_an_upstream_that_fails_is_soon_not_asked_at_all(self) -> None:
        registry = await self.primed()
        self.break_down(Status(503))
        for _ in range(5):
            self.assert_stale(await self.get(registry), self.body, "503")
        self.assertEqual(self.hub.count(), 10)  # HEAD, and GET where that fails
        self.hub.faults.clear()
        self.assert_stale(await self.get(registry), self.body, "5 times in a row")
        self.assertEqual(self.hub.count(), 10)  # HEAD, and GET where that fails
        self.assertEqual((await self.get(registry, "other")).status, 404)

    async def test_one_that_is_gone_is_not_connected_to_either(self) -> None:
        registry = await self.primed()
        await self.hub.stop()
        for _ in range(5):
            self.assert_stale(await self.get(registry), self.body, "refused")
        self.hub.resume()
        self.assert_stale(await self.get(registry), self.body, "5 times in a row")
        self.assertEqual(self.hub.requests, [])

    async def test_what_is_not_there_is_no_failure(self) -> None:
        registry = await self.primed(negative_freshness="0s")
        for number in range(8):
            self.assertEqual((await self.get(registry, f"missing{number}")).status, 404)
        self.assert_from(await self.get(registry), "cache", CONFIRMED)
