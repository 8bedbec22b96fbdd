"""HEADs of clients: of tags that are not here the upstream is asked by HEAD, which is no pull."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import Served
from tests.process import Answer
from tests.pull.mirrors import CONFIRMED, HIT, STORED, Instead, MirrorCase, Without, digest_of
from tests.upstreams.faulty import MANIFESTS, Fault, Garbage, Silence, Status

NAME = "library/alpine"
UPSTREAM = f"/v2/{NAME}/manifests"
PATH = "/v2/docker.io/alpine/manifests"
MISS = "artifactd; fwd=miss; fwd-status=200"
MOVED = "artifactd; fwd=stale; fwd-status=200"
DAY = 86_400.0


class HeadCase(MirrorCase):
    def setUp(self) -> None:
        super().setUp()
        self.latest = self.hub.images.add_image(NAME, "latest", b"layer")

    async def head(self, registry: Served, reference: str = "latest") -> Answer:
        return await registry.request("HEAD", f"{PATH}/{reference}")

    async def get(self, registry: Served, reference: str = "latest") -> Answer:
        return await registry.request("GET", f"{PATH}/{reference}")

    def move(self, content: bytes = b"new") -> Digest:
        """Let ``latest`` be another image upstream."""
        return self.hub.images.add_image(NAME, "latest", content)

    def gets(self) -> int:
        """How many manifests the upstream has sent, or refused, without a challenge."""
        return sum(a.status != 401 for a in self.hub.asked("GET", MANIFESTS))


class UncachedTests(HeadCase):
    async def test_twenty_tags_cost_no_pull(self) -> None:
        for number in range(20):
            self.hub.images.add_image(NAME, f"v{number}", b"%d" % number)
        registry = self.mirror()
        for number in range(20):
            answer = await self.head(registry, f"v{number}")
            content = self.hub.images.manifest_of(NAME, f"v{number}")
            self.assert_from(answer, "remote", MISS)
            self.assertEqual((answer.body, digest_of(answer)), (b"", Digest.of(content)))
            self.assertEqual(answer.header("Content-Length"), str(len(content)))
            self.assertEqual(answer.header("Content-Type"), OCI_MANIFEST)
            self.assertEqual(answer.header("Cache-Control"), "no-store")
        self.assertEqual((self.gets(), self.hub.answers.remaining), (0, 100))
        self.assertEqual(registry.files(), [])

    async def test_the_answer_counts_for_the_freshness_of_a_tag(self) -> None:
        for freshness, asked in (("1d", 1), ("0s", 3)):
            registry = self.mirror(freshness=freshness)
            self.hub.forget_requests()
            for _ in range(3):
                self.assertEqual(digest_of(await self.head(registry)), self.latest)
            self.assertEqual(
                [a.status for a in self.hub.asked("HEAD", MANIFESTS)].count(200), asked
            )
        self.assertEqual(self.gets(), 0)

    async def test_who_then_gets_the_digest_makes_the_tag_known(self) -> None:
        for freshness in ("1d", "0s"):
            registry = self.mirror(freshness=freshness)
            digest = digest_of(await self.head(registry))
            self.assert_from(await self.get(registry, str(digest)), "remote", STORED)
            self.age(registry, 2 * DAY)
            self.hub.faults.add(Status(503), on=MANIFESTS, method="*", times=None)
            body = self.hub.images.manifest_of(NAME, "latest")
            self.assert_stale(await self.get(registry), body, "503")
            self.hub.faults.clear()

    async def test_but_not_a_tag_that_has_moved_since(self) -> None:
        registry = self.mirror()
        old = digest_of(await self.head(registry))
        new = self.move()
        self.assertEqual(digest_of(await self.get(registry)), new)
        await self.get(registry, str(old))
        self.assert_from(await self.get(registry), "cache", HIT)
        self.assertEqual(digest_of(await self.get(registry)), new)

    async def test_a_digest_that_get_does_not_give_is_not_told_again(self) -> None:
        wrong = Digest.of(b"nowhere")
        named = {"Docker-Content-Digest": str(wrong)}
        self.hub.faults.add(
            Instead(b"{}", OCI_MANIFEST, named), on=MANIFESTS, method="HEAD", times=None
        )
        registry = self.mirror(freshness="1d")
        self.assertEqual(digest_of(await self.head(registry)), wrong)
        self.assertEqual((await self.get(registry, str(wrong))).status, 404)
        self.assertEqual(digest_of(await self.head(registry)), self.latest)
        self.assertEqual((await self.get(registry, str(self.latest))).status, 200)

    async def test_several_clients_at_once_cost_one_head(self) -> None:
        registry = self.mirror()
        held = Silence()
        self.hub.faults.add(held, on=MANIFESTS, method="HEAD", times=None)
        heads = [Deferred.fromCoroutine(self.head(registry)) for _ in range(5)]
        await self.hub.coming("HEAD", MANIFESTS, times=2)  # the first is answered by a challenge
        await registry.request("GET", "/healthz")  # answered after those have been read
        held.release()
        for head in heads:
            self.assertEqual(digest_of(await head), self.latest)
        self.assertEqual(self.asked(), [("HEAD", f"{UPSTREAM}/latest", s) for s in (401, 200)])

    async def test_a_get_is_not_answered_by_a_head_that_is_under_way(self) -> None:
        registry = self.mirror()
        held = Silence()
        self.hub.faults.add(held, on=MANIFESTS, method="HEAD")
        head = Deferred.fromCoroutine(self.head(registry))
        await self.hub.coming("HEAD", MANIFESTS, times=2)  # the first is answered by a challenge
        answer = await self.get(registry)
        self.assertEqual(Digest.of(answer.body), self.latest)
        held.release()
        self.assertEqual(digest_of(await head), self.latest)

    async def test_a_head_joins_a_get_that_is_under_way(self) -> None:
        registry = self.mirror()
        held = Silence()
        self.hub.faults.add(held, on=MANIFESTS)
        get = Deferred.fromCoroutine(self.get(registry))
        await self.hub.coming("GET", MANIFESTS, times=2)
        head = Deferred.fromCoroutine(self.head(registry))
        await registry.request("GET", "/healthz")  # answered after that has been read
        held.release()
        self.assertEqual(digest_of(await head), digest_of(await get))
        self.assertEqual(self.hub.count("HEAD", MANIFESTS), 0)

    async def test_what_is_not_there_is_404(self) -> None:
        registry = self.mirror()
        for _ in range(2):
            self.assertEqual((await self.head(registry, "missing")).status, 404)
            self.assertEqual((await self.get(registry, "missing")).status, 404)
        self.assertEqual(self.gets(), 1)

    async def test_once_no_pull_is_left_head_is_answered_still(self) -> None:
        self.hub.answers.remaining = 0
        registry = self.mirror()
        self.assert_refused(await self.get(registry), 429, "TOOMANYREQUESTS")
        answer = await self.head(registry)
        self.assertEqual((answer.status, digest_of(answer)), (200, self.latest))

    async def test_where_head_is_refused_or_says_too_little_get_answers_it(self) -> None:
        faults: tuple[Fault, ...] = (
            *map(Status, (400, 401, 403, 404, 405, 406, 500)),
            Garbage(),
            Without("Docker-Content-Digest"),
            Without("Content-Type"),
            Instead(b"", OCI_MANIFEST),
        )
        for fault in faults:
            registry = self.mirror()
            self.hub.faults.add(fault, on=MANIFESTS, method="HEAD", times=None)
            answer = await self.head(registry)
            self.assert_from(answer, "remote", STORED)
            content = self.hub.images.manifest_of(NAME, "latest")
            self.assertEqual(answer.header("Content-Length"), str(len(content)))
            self.assertEqual(answer.header("Content-Type"), OCI_MANIFEST)
            self.hub.faults.clear()

    async def test_a_head_that_is_throttled_is_429(self) -> None:
        registry = self.mirror()
        self.hub.faults.add(Status(429, "100"), on=MANIFESTS, method="HEAD")
        self.assertEqual((await self.head(registry)).status, 429)
        self.assertEqual(self.gets(), 0)


class NameTests(HeadCase):
    """A name without a prefix."""

    async def ask(self, registry: Served, method: str, tag: str) -> Answer:
        return await registry.request(method, f"/v2/alpine/manifests/{tag}")

    async def test_its_first_manifest_is_fetched_since_it_shows_whose_name_it_is(self) -> None:
        self.hub.images.add_image(NAME, "edge", b"edge")
        registry = self.mirror()
        self.assert_from(await self.ask(registry, "HEAD", "latest"), "remote", STORED)
        self.assert_from(await self.ask(registry, "HEAD", "edge"), "remote", MISS)
        self.assertEqual(self.gets(), 1)

    async def test_a_page_that_is_answered_to_everything_takes_no_name(self) -> None:
        registry = self.mirror()
        named = {"Docker-Content-Digest": str(self.latest)}
        self.hub.faults.add(
            Instead(b"{}", OCI_MANIFEST, named), on=MANIFESTS, method="*", times=None
        )
        self.assertEqual((await self.ask(registry, "HEAD", "latest")).status, 404)
        self.assertEqual(self.execute(registry, "SELECT * FROM origin"), [])


class CachedTests(HeadCase):
    async def primed(self, **settings: Any) -> Served:
        """A registry that has ``latest``, which is not fresh."""
        registry = self.mirror(**settings)
        self.assert_from(await self.get(registry), "remote", STORED)
        self.age(registry, 2 * DAY)
        self.hub.forget_requests()
        return registry

    async def test_one_that_has_not_moved_is_confirmed(self) -> None:
        registry = await self.primed()
        self.assert_from(await self.head(registry), "cache", CONFIRMED)
        self.assert_from(await self.head(registry), "cache", HIT)

    async def test_one_that_has_moved_costs_no_pull_before_it_is_pulled(self) -> None:
        registry = await self.primed()
        new = self.move()
        answer = await self.head(registry)
        self.assert_from(answer, "remote", MOVED)
        self.assertEqual(digest_of(answer), new)
        self.assert_from(await self.head(registry), "cache", HIT)
        self.assertEqual(self.gets(), 0)
        answer = await self.get(registry)
        self.assertEqual((digest_of(answer), Digest.of(answer.body)), (new, new))
        self.assertEqual(self.gets(), 1)

    async def test_nor_where_it_is_pulled_by_digest(self) -> None:
        registry = await self.primed()
        new = digest_of(await self.head(registry)) if self.move() else None
        await self.get(registry, str(new))
        self.hub.forget_requests()
        answer = await self.get(registry)
        self.assert_from(answer, "cache", HIT)
        self.assertEqual(digest_of(answer), new)
        self.assertEqual(self.hub.requests, [])

    async def test_one_that_is_held_back_is_the_old_one(self) -> None:
        registry = await self.primed(cooldown="1d")
        self.move()
        for _ in range(2):
            self.assertEqual(digest_of(await self.head(registry)), self.latest)


class MoreTagsTests(HeadCase):
    """Other tags of an image that is here."""

    async def test_those_of_a_manifest_that_is_here_cost_no_pull(self) -> None:
        registry = self.mirror()
        await self.get(registry)
        for number in range(10):
            self.hub.images.add_image(NAME, f"alias{number}", b"layer")
            answer = await self.get(registry, f"alias{number}")
            self.assert_from(answer, "cache", MISS)
            self.assertEqual(Digest.of(answer.body), self.latest)
        self.assertEqual(self.hub.answers.remaining, 99)
        await self.hub.stop()
        self.assert_from(await self.get(registry, "alias0"), "cache", HIT)

    async def test_another_manifest_is_fetched(self) -> None:
        registry = self.mirror()
        await self.get(registry)
        other = self.hub.images.add_image(NAME, "other", b"other")
        answer = await self.get(registry, "other")
        self.assert_from(answer, "remote", STORED)
        self.assertEqual(Digest.of(answer.body), other)

    async def test_what_head_says_of_one_that_is_here_has_to_be_true(self) -> None:
        registry = self.mirror()
        await self.get(registry)
        other = self.hub.images.add_image(NAME, "other", b"other and longer")
        wrong = Instead(b"{}", None, {"Docker-Content-Digest": str(self.latest)})
        self.hub.faults.add(wrong, on=MANIFESTS, method="HEAD")
        self.assertEqual(digest_of(await self.get(registry, "other")), other)

    async def test_where_head_is_refused_it_is_not_tried_for_each(self) -> None:
        registry = self.mirror()
        await self.get(registry)
        self.hub.faults.add(Status(405), on=MANIFESTS, method="HEAD", times=None)
        for number in range(5):
            self.hub.images.add_image(NAME, f"v{number}", b"%d" % number)
            self.assert_from(await self.get(registry, f"v{number}"), "remote", STORED)
        self.assertEqual(self.hub.count("HEAD", MANIFESTS), 1)

    async def test_where_head_is_throttled_get_is_asked(self) -> None:
        registry = self.mirror()
        await self.get(registry)
        self.hub.faults.add(Status(429, "100"), on=MANIFESTS, method="HEAD", times=None)
        for tag in ("one", "two"):
            self.hub.images.add_image(NAME, tag, tag.encode())
            self.assert_from(await self.get(registry, tag), "remote", STORED)
