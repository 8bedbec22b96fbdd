"""Tag cooldown: a tag that moved upstream is served as it was, until that has lasted."""

from __future__ import annotations

from typing import Any

from artifactd.oci.names import Digest
from tests.api.served import Served
from tests.process import Answer
from tests.pull.mirrors import CONFIRMED, STORED, MirrorCase, Without, digest_of
from tests.upstreams.faulty import MANIFESTS, Status

NAME = "library/alpine"
PATH = "/v2/docker.io/alpine/manifests"
HELD = "artifactd; fwd=stale; fwd-status=200; detail=cooldown"
DAY = 86_400.0


class CooldownTests(MirrorCase):
    def setUp(self) -> None:
        super().setUp()
        self.old = self.push(b"old")

    def push(self, layer: bytes, tag: str = "latest") -> Digest:
        return self.hub.images.add_image(NAME, tag, layer)

    async def started(self, **settings: Any) -> Served:
        """A registry that has ``latest`` and asks for it each time."""
        registry = self.mirror(**{"freshness": "0s", "cooldown": "7d", **settings})
        self.assert_from(await self.get(registry), "remote", STORED)
        return registry

    async def get(self, registry: Served, reference: str = "latest") -> Answer:
        return await registry.request("GET", f"{PATH}/{reference}")

    async def assert_held(self, registry: Served) -> None:
        answer = await self.get(registry)
        self.assert_from(answer, "cache", HELD)
        self.assertEqual(digest_of(answer), self.old)
        self.assertIsNone(answer.header("Warning"))

    async def test_a_tag_seen_for_the_first_time_is_served_at_once(self) -> None:
        registry = await self.started()
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_one_that_moved_is_served_as_it_was_for_the_time(self) -> None:
        registry = await self.started()
        new = self.push(b"new")
        await self.assert_held(registry)
        self.age(registry, 6.9 * DAY)
        await self.assert_held(registry)
        self.hub.forget_requests()
        self.age(registry, 0.2 * DAY)
        answer = await self.get(registry)
        self.assert_from(answer, "remote", STORED)
        self.assertEqual(digest_of(answer), new)
        self.assertEqual([m for m, _, _ in self.asked()], ["HEAD", "GET"])
        self.assert_from(await self.get(registry), "cache", CONFIRMED)

    async def test_the_time_goes_on_over_a_restart(self) -> None:
        registry = await self.started()
        new = self.push(b"new")
        await self.assert_held(registry)
        self.age(registry, 8 * DAY)
        await registry.service.stopService()
        registry.service.startService()
        self.assertEqual(digest_of(await self.get(registry)), new)

    async def test_the_new_one_is_served_by_its_digest_meanwhile(self) -> None:
        registry = await self.started()
        new = self.push(b"new")
        await self.assert_held(registry)
        self.assert_from(await self.get(registry, str(new)), "remote", STORED)
        await self.assert_held(registry)
        self.age(registry, 8 * DAY)
        answer = await self.get(registry)
        self.assert_from(answer, "cache", "artifactd; fwd=stale; fwd-status=200")
        self.assertEqual(digest_of(answer), new)

    async def test_an_upstream_that_tells_no_digest_is_held_back_as_others_are(self) -> None:
        registry = await self.started()
        self.hub.faults.add(Without("Docker-Content-Digest"), on=MANIFESTS, method="*", times=None)
        new = self.push(b"new")
        await self.assert_held(registry)
        self.age(registry, 6.9 * DAY)
        await self.assert_held(registry)
        self.age(registry, 0.2 * DAY)
        answer = await self.get(registry)
        self.assert_from(answer, "remote", STORED)
        self.assertEqual((digest_of(answer), Digest.of(answer.body)), (new, new))

    async def test_moving_again_starts_the_time_anew(self) -> None:
        registry = await self.started()
        self.push(b"new")
        await self.assert_held(registry)
        self.age(registry, 6 * DAY)
        newer = self.push(b"newer")
        await self.assert_held(registry)
        self.age(registry, 6 * DAY)
        await self.assert_held(registry)
        self.age(registry, 2 * DAY)
        self.assertEqual(digest_of(await self.get(registry)), newer)

    async def test_the_time_of_one_does_not_count_for_another(self) -> None:
        registry = await self.started()
        self.push(b"new")
        await self.assert_held(registry)
        self.age(registry, 8 * DAY)
        newer = self.push(b"newer")
        await self.assert_held(registry)
        self.age(registry, 8 * DAY)
        self.assertEqual(digest_of(await self.get(registry)), newer)

    async def test_moving_back_makes_an_end_of_it(self) -> None:
        registry = await self.started()
        self.push(b"new")
        await self.assert_held(registry)
        self.age(registry, 6 * DAY)
        self.push(b"old")
        self.assert_from(await self.get(registry), "cache", CONFIRMED)
        self.age(registry, 2 * DAY)
        self.push(b"new")
        await self.assert_held(registry)

    async def test_an_upstream_that_fails_meanwhile_changes_nothing(self) -> None:
        registry = await self.started()
        body = self.hub.images.manifest_of(NAME, "latest")
        new = self.push(b"new")
        await self.assert_held(registry)
        self.age(registry, 8 * DAY)
        self.hub.faults.add(Status(503), method="*", times=2)
        self.assert_stale(await self.get(registry), body, "503")
        self.assertEqual(digest_of(await self.get(registry)), new)

    async def test_it_holds_an_upstreams_word_as_long_as_that_is_fresh(self) -> None:
        registry = await self.started(freshness="1d")
        self.push(b"new")
        self.age(registry, 2 * DAY)
        await self.assert_held(registry)
        self.hub.forget_requests()
        self.assertEqual(digest_of(await self.get(registry)), self.old)
        self.assertEqual(self.hub.requests, [])

    async def test_exceptions_move_at_once(self) -> None:
        for patterns in ([NAME], [f"{NAME}:latest"], ["library/*"], ["*:lat*"]):
            old = self.push(b"old")
            registry = await self.started(cooldown_except=patterns)
            self.assertEqual(digest_of(await self.get(registry)), old)
            new = self.push(b"new")
            self.assertEqual(digest_of(await self.get(registry)), new, patterns)

    async def test_exceptions_are_exceptions(self) -> None:
        patterns = ["alpine", f"{NAME}:3", "library/busybox", "latest"]
        registry = await self.started(cooldown_except=patterns)
        self.push(b"new")
        await self.assert_held(registry)

    async def test_without_it_a_tag_moves_at_once(self) -> None:
        registry = await self.started(cooldown="0")
        new = self.push(b"new")
        self.assertEqual(digest_of(await self.get(registry)), new)
