"""Tags through an upstream: from here while they are fresh, then one HEAD, whoever many ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from artifactd.catalog.remote import CachedTag, RemoteCatalog
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest, ImageName, Tag
from tests.api.case import Connection
from tests.api.served import Served
from tests.process import Answer
from tests.pull.mirrors import (
    CONFIRMED,
    HIT,
    STORED,
    Instead,
    MirrorCase,
    Without,
    digest_of,
    timings,
)
from tests.upstreams.faulty import MANIFESTS, Expired, Fault, Garbage, RedirectTo, Silence, Status
from tests.upstreams.hub import Hub

NAME = "library/alpine"
UPSTREAM = f"/v2/{NAME}/manifests"
PATH = "/v2/docker.io/alpine/manifests"
DAY = 86_400.0


class TagCase(MirrorCase):
    def setUp(self) -> None:
        super().setUp()
        self.old = self.hub.images.add_image(NAME, "latest", b"old")

    def move(self) -> Digest:
        """Let ``latest`` be another image upstream."""
        return self.hub.images.add_image(NAME, "latest", b"new")

    async def clients(self, registry: Served) -> list[Connection]:
        """Twenty that have asked for ``latest``."""
        clients = [Connection(self, registry.port) for _ in range(20)]
        for client in clients:
            await client.head(f"GET {PATH}/latest")
        return clients

    async def get(self, registry: Served, reference: str = "latest") -> Answer:
        return await registry.request("GET", f"{PATH}/{reference}")

    async def primed(self, **settings: Any) -> Served:
        """A registry that has ``latest``, and an upstream that has forgotten it."""
        registry = self.mirror(**settings)
        self.assert_from(await self.get(registry), "remote", STORED)
        self.hub.forget_requests()
        return registry


class FreshnessTests(TagCase):
    async def test_a_fresh_one_is_answered_from_here(self) -> None:
        registry = await self.primed()
        self.move()
        for method in ("GET", "HEAD", "GET"):
            answer = await registry.request(method, f"{PATH}/latest")
            self.assert_from(answer, "cache", HIT)
            self.assertEqual(digest_of(answer), self.old)
            self.assertEqual(answer.header("Cache-Control"), "no-cache")
        self.assertEqual(self.hub.requests, [])

    async def test_after_that_one_head_makes_it_fresh_again(self) -> None:
        registry = await self.primed()
        self.age(registry, 2 * DAY)
        answer = await self.get(registry)
        self.assert_from(answer, "cache", CONFIRMED)
        self.assertIn("upstream", timings(answer))
        self.assert_from(await self.get(registry), "cache", HIT)
        self.assertEqual(self.asked(), [("HEAD", f"{UPSTREAM}/latest", 304)])
        (asked,) = self.hub.requests
        self.assertEqual(asked.headers["if-none-match"], f'"{self.old}"')

    async def test_a_whole_image_costs_nothing_while_it_is_fresh_and_then_one_head(self) -> None:
        child = self.hub.images.add_image(NAME, None, b"layer", b"another")
        index = self.hub.images.add_index(NAME, "multi", child)
        registry = self.mirror()
        for name in ("alpine", "docker.io/alpine"):
            for asked in (None, 0, 1):
                if asked == 1:
                    self.age(registry, 2 * DAY)
                self.assertEqual(await self.pull(registry, name), index)
                if asked is not None:
                    self.assertEqual(self.asked(), [("HEAD", f"{UPSTREAM}/multi", 304)] * asked)
                self.hub.forget_requests()

    async def pull(self, registry: Served, name: str) -> Digest:
        """What a client does; the digest of the index."""

        async def get(path: str, method: str = "GET") -> Answer:
            answer = await registry.request(method, f"/v2/{name}/{path}")
            self.assertEqual(answer.status, 200, path)
            return answer

        head = await get("manifests/multi", "HEAD")
        index = json.loads((await get(f"manifests/{digest_of(head)}")).body)
        image = json.loads((await get(f"manifests/{index['manifests'][0]['digest']}")).body)
        for each in (image["config"], *image["layers"]):
            await get(f"blobs/{each['digest']}")
            await self.filled(registry, Digest.parse(each["digest"]))
        return digest_of(head)

    async def test_it_is_always_asked_for_where_the_settings_say_so(self) -> None:
        registry = await self.primed(freshness="0s")
        for _ in range(3):
            self.assert_from(await self.get(registry), "cache", CONFIRMED)
        self.assertEqual(self.asked(), [("HEAD", f"{UPSTREAM}/latest", 304)] * 3)

    async def test_it_stays_fresh_over_a_restart(self) -> None:
        registry = await self.primed()
        await registry.service.stopService()
        registry.service.startService()
        self.assert_from(await self.get(registry), "cache", HIT)
        self.assertEqual(self.hub.requests, [])

    async def test_a_clock_that_was_set_back_makes_nothing_fresh_for_ever(self) -> None:
        registry = await self.primed()
        self.age(registry, -10 * DAY)
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_a_pull_by_digest_makes_no_tag_fresh(self) -> None:
        registry = await self.primed()
        self.age(registry, 2 * DAY)
        await self.get(registry, str(self.old))
        self.assertEqual(self.hub.requests, [])
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_another_tag_of_the_same_image_is_asked_for_by_itself(self) -> None:
        registry = await self.primed()
        self.hub.images.add_image(NAME, "3", b"another")
        self.assert_from(await self.get(registry, "3"), "remote", STORED)


class ManyTests(TagCase):
    async def test_twenty_clients_at_once_cost_one_head(self) -> None:
        registry = await self.primed()
        self.age(registry, 2 * DAY)
        held = Silence()
        self.hub.faults.add(held, on=MANIFESTS, method="HEAD", times=None)
        clients = await self.clients(registry)
        await self.hub.coming("HEAD", MANIFESTS)
        held.release()
        for client in clients:
            answer = await client.answer()
            self.assertEqual(digest_of(answer), self.old)
            self.assertRegex(
                answer.header("Cache-Status") or "",
                r"^artifactd; (hit|fwd=stale; detail=confirmed(; collapsed)?)$",
            )
        self.assertEqual(self.asked(), [("HEAD", f"{UPSTREAM}/latest", 304)])

    async def test_twenty_clients_at_once_cost_one_get(self) -> None:
        registry = self.mirror()
        held = Silence()
        self.hub.faults.add(held, on=MANIFESTS, times=None)
        clients = await self.clients(registry)
        await self.hub.coming("GET", MANIFESTS, times=2)  # the first is answered with a challenge
        held.release()
        for client in clients:
            self.assertEqual(digest_of(await client.answer()), self.old)
        self.assertEqual([s for _, _, s in self.asked()], [401, 200])

    async def test_who_leaves_takes_nothing_from_those_who_stay(self) -> None:
        registry = self.mirror()
        held = Silence()
        self.hub.faults.add(held, on=MANIFESTS, times=None)
        leaving, staying, *_ = await self.clients(registry)
        await self.hub.coming("GET", MANIFESTS, times=2)
        leaving.leave()
        held.release()
        self.assertEqual(digest_of(await staying.answer()), self.old)
        self.assertEqual([s for _, _, s in self.asked()], [401, 200])

    async def test_who_has_looked_just_before_another_was_told_asks_no_more(self) -> None:
        registry = await self.primed()
        self.age(registry, 2 * DAY)
        original = RemoteCatalog.cached_tag
        looked: Deferred[None] = Deferred()
        told: Deferred[None] = Deferred()

        async def slowly(catalog: RemoteCatalog, image: ImageName, tag: Tag) -> CachedTag | None:
            cached = await original(catalog, image, tag)
            if not looked.called:
                looked.callback(None)
                await told
            return cached

        self.patch(RemoteCatalog, "cached_tag", slowly)
        first = Deferred.fromCoroutine(self.get(registry))
        await looked
        self.assert_from(await self.get(registry), "cache", CONFIRMED)
        told.callback(None)
        self.assert_from(await first, "cache", HIT)
        self.assertEqual(self.asked(), [("HEAD", f"{UPSTREAM}/latest", 304)])


class MovedTests(TagCase):
    async def test_one_that_has_moved_is_fetched_by_its_new_digest(self) -> None:
        registry = await self.primed(freshness="0s")
        new = self.move()
        answer = await self.get(registry)
        self.assert_from(answer, "remote", STORED)
        self.assertEqual((digest_of(answer), Digest.of(answer.body)), (new, new))
        self.assertEqual(
            self.asked(),
            [("HEAD", f"{UPSTREAM}/latest", 200), ("GET", f"{UPSTREAM}/{new}", 200)],
        )
        # What it was stays to be had by its digest.
        self.hub.images.remove(NAME, "latest")
        self.assert_from(await self.get(registry, str(self.old)), "cache", HIT)

    async def test_one_that_has_moved_to_what_is_here_is_not_fetched(self) -> None:
        registry = await self.primed(freshness="0s")
        new = self.move()
        await self.get(registry, str(new))
        self.hub.forget_requests()
        answer = await self.get(registry)
        self.assert_from(answer, "cache", "artifactd; fwd=stale; fwd-status=200")
        self.assertEqual(digest_of(answer), new)
        self.assertEqual(self.asked(), [("HEAD", f"{UPSTREAM}/latest", 200)])
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_one_that_moves_back_is_not_fetched_again(self) -> None:
        registry = await self.primed(freshness="0s")
        self.move()
        await self.get(registry)
        self.hub.images.add_image(NAME, "latest", b"old")
        self.hub.forget_requests()
        self.assertEqual(digest_of(await self.get(registry)), self.old)
        self.assertEqual(self.hub.count("GET"), 0)

    async def test_an_upstream_that_tells_no_digest_is_asked_for_the_bytes(self) -> None:
        registry = await self.primed(freshness="0s")
        told = Without("Docker-Content-Digest")
        self.hub.faults.add(told, on=MANIFESTS, method="*", times=None)
        self.assert_from(await self.get(registry), "cache", CONFIRMED)
        new = self.move()
        answer = await self.get(registry)
        self.assertEqual((digest_of(answer), Digest.of(answer.body)), (new, new))

    async def test_an_upstream_without_head_is_asked_for_the_bytes(self) -> None:
        registry = await self.primed(freshness="0s")
        elsewhere = Hub.start(self, self.hub.backing)
        elsewhere.challenges = False
        elsewhere.faults.add(Status(403), on="*", method="*", times=None)
        nonsense = {"Docker-Content-Digest": str(Digest.of(b"nothing"))}
        current = {"Docker-Content-Digest": str(self.old)}
        faults: Sequence[Fault] = (
            *(Status(status) for status in (400, 401, 403, 404, 405, 406, 410, 500, 501, 503)),
            RedirectTo(f"{elsewhere.url}/v2/{NAME}/manifests/latest"),
            Garbage(),
            Instead(b"<html>", "text/html"),
            Instead(b"<html>", "text/html", current),
            Instead(b"", None, current),
            Instead(b"", None, nonsense),
            Without("Docker-Content-Digest"),
        )
        for number, fault in enumerate(faults):
            self.hub.faults.clear()
            self.hub.faults.add(fault, on=MANIFESTS, method="HEAD", times=None)
            for _ in range(2):
                self.assertEqual((await self.get(registry)).header("Warning"), None, fault)
            new = self.hub.images.add_image(NAME, "latest", b"new %d" % number)
            answer = await self.get(registry)
            self.assertEqual((digest_of(answer), Digest.of(answer.body)), (new, new), fault)

    async def test_a_digest_that_get_does_not_know_is_not_believed(self) -> None:
        registry = await self.primed(freshness="0s")
        for number, status in enumerate((404, 403, 500)):
            new = self.hub.images.add_image(NAME, "latest", b"new %d" % number)
            self.hub.faults.add(Status(status), on=f"{UPSTREAM}/sha256:*", times=None)
            self.assertEqual(digest_of(await self.get(registry)), new)
            self.hub.faults.clear()

    async def test_a_tag_of_which_head_tells_wrong_things_is_asked_for_by_get_alone(self) -> None:
        registry = await self.primed(freshness="0s")
        nothing = {"Docker-Content-Digest": str(Digest.of(b"nothing"))}
        self.hub.faults.add(Instead(b"{}", None, nothing), on=MANIFESTS, method="HEAD", times=None)
        for number, asked in enumerate((["HEAD", "GET", "GET"], ["GET"], ["GET"])):
            self.hub.forget_requests()
            new = self.hub.images.add_image(NAME, "latest", b"new %d" % number)
            self.assertEqual(digest_of(await self.get(registry)), new)
            self.assertEqual([method for method, _, _ in self.asked()], asked)

    async def test_a_head_that_is_refused_with_a_token_costs_no_second_login(self) -> None:
        registry = await self.primed(freshness="0s")
        for status in (401, 403):
            self.hub.faults.clear()
            self.hub.faults.add(Status(status), on=MANIFESTS, method="HEAD", times=None)
            for _ in range(3):
                self.assert_from(await self.get(registry), "cache", CONFIRMED)
        self.assertEqual(self.hub.count("GET", "/token"), 1)
        self.hub.forget_requests()
        self.hub.faults.add(Status(401), on=MANIFESTS, times=None)
        body = self.hub.images.manifest_of(NAME, "latest")
        self.assert_stale(await self.get(registry), body, "401")
        self.assertEqual(self.hub.count("GET", "/token"), 0)

    async def test_new_bytes_that_are_wrong_leave_the_old_ones(self) -> None:
        registry = await self.primed(freshness="0s")
        old = self.hub.images.manifest_of(NAME, "latest")
        new = self.move()
        other = Instead(old + b"\n", OCI_MANIFEST)
        self.hub.faults.add(other, on=MANIFESTS, times=2)  # by digest, and by tag
        self.assert_stale(await self.get(registry), old, "digest")
        self.assertEqual(digest_of(await self.get(registry)), new)

    async def test_a_token_that_has_expired_is_replaced_unnoticed(self) -> None:
        registry = await self.primed(freshness="0s")
        self.hub.faults.add(Expired(), on=MANIFESTS, method="HEAD")
        self.assert_from(await self.get(registry), "cache", CONFIRMED)
        self.assertEqual([s for _, _, s in self.asked()], [401, 304])
        self.assertEqual(self.hub.count("GET", "/token"), 1)

    async def test_one_that_is_gone_upstream_is_served_on(self) -> None:
        registry = await self.primed(freshness="0s")
        body = self.hub.images.manifest_of(NAME, "latest")
        self.hub.images.remove(NAME, "latest")
        self.assert_stale(await self.get(registry), body, "404")
        self.assertEqual((await self.get(registry, str(self.old))).status, 200)


class BudgetTests(TagCase):
    """As docs/pull-through.md has it: freshness times a half, divided by the share left."""

    async def spent(self, left: int) -> Served:
        """A registry that has been told that ``left`` of 100 pulls are left."""
        self.hub.answers.remaining = left + 1
        return await self.primed(freshness="1d")

    async def test_with_half_of_it_left_nothing_is_spared(self) -> None:
        registry = await self.spent(50)
        self.age(registry, 1.1 * DAY)
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_a_quarter_left_lets_tags_be_fresh_twice_as_long(self) -> None:
        registry = await self.spent(25)
        self.age(registry, 1.9 * DAY)
        self.assert_from(await self.get(registry), "cache", HIT)
        self.age(registry, 0.2 * DAY)
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_with_nothing_left_they_are_fresh_sixty_times_as_long(self) -> None:
        registry = await self.spent(0)
        self.age(registry, 59 * DAY)
        self.assert_from(await self.get(registry), "cache", HIT)
        self.age(registry, 2 * DAY)
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_what_was_fresh_for_longer_may_be_stale_for_no_less(self) -> None:
        self.hub.answers.remaining = 1
        registry = await self.primed(freshness="1d", max_stale="2d")
        await registry.request("GET", "/v2/docker.io/alpine/tags/list")
        self.hub.faults.add(Status(503), method="*", times=None)
        for days, expected in ((61, 200), (2, 502)):
            self.age(registry, days * DAY)
            for path in (f"{PATH}/latest", "/v2/docker.io/alpine/tags/list"):
                self.assertEqual((await registry.request("GET", path)).status, expected, path)

    async def test_an_upstream_that_tells_of_none_is_not_spared(self) -> None:
        self.hub.answers.limit = None
        registry = await self.primed()
        self.age(registry, 1.1 * DAY)
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_with_nothing_left_what_is_not_here_is_429(self) -> None:
        registry = await self.spent(0)
        self.move()
        answer = await self.get(registry, str(self.hub.images.add_image(NAME, "new", b"x")))
        self.assert_refused(answer, 429, "TOOMANYREQUESTS", "rate limit")
        self.assertGreaterEqual(int(answer.header("Retry-After") or 0), 1)
        self.hub.forget_requests()
        again = await self.get(registry, "another")
        self.assert_refused(again, 429, "TOOMANYREQUESTS", "rate limit")
        self.assertEqual(self.hub.count("GET", MANIFESTS), 0)
