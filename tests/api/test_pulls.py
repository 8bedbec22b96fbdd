"""Which requests count as a pull of an image that was pushed here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http.client import HTTPConnection

from cachetools import TTLCache
from twisted.internet.threads import deferToThread

from artifactd.catalog.overview import Overview
from artifactd.catalog.retention import HOUR
from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Digest, ImageName
from tests.api.case import ApiTestCase
from tests.api.guarded import BLOB, CONFIG, GuardedCase
from tests.api.served import Served, image_index, image_manifest
from tests.programs import PATIENCE

MANIFEST = image_manifest(CONFIG, BLOB)
DIGEST = Digest.of(MANIFEST)


async def pulled(registry: Served, name: str) -> set[str]:
    """The tags of an image that have been pulled."""
    await registry.parts.pulls.write()
    overview = Overview(registry.parts.catalog.database)
    tags = await overview.tags(ImageName("local", name), None, 100)
    return {each.tag for each in tags if each.pulled is not None}


class CountedTests(ApiTestCase):
    async def push(self) -> None:
        for blob in (CONFIG, BLOB):
            await self.registry.push_blob("hello", blob)
        for tag in ("v1", "latest"):
            await self.registry.push_manifest("hello", tag, MANIFEST)

    async def test_get_by_tag_counts_for_that_tag(self) -> None:
        await self.push()
        await self.accepted(200, "GET", "/v2/hello/manifests/v1")
        self.assertEqual(await pulled(self.registry, "hello"), {"v1"})

    async def test_get_by_digest_counts_for_every_tag(self) -> None:
        await self.push()
        await self.accepted(200, "GET", f"/v2/local/hello/manifests/{DIGEST}")
        self.assertEqual(await pulled(self.registry, "hello"), {"v1", "latest"})

    async def test_a_get_that_finds_it_unchanged_counts(self) -> None:
        await self.push()
        unchanged = {"If-None-Match": f'"{DIGEST}"'}
        await self.accepted(304, "GET", "/v2/hello/manifests/v1", None, unchanged)
        self.assertEqual(await pulled(self.registry, "hello"), {"v1"})

    async def test_nothing_else_counts(self) -> None:
        await self.push()
        for method, path in (
            ("HEAD", "/v2/hello/manifests/v1"),
            ("HEAD", f"/v2/hello/manifests/{DIGEST}"),
            ("GET", f"/v2/hello/blobs/{Digest.of(BLOB)}"),
            ("GET", "/v2/hello/tags/list"),
            ("GET", f"/v2/hello/referrers/{DIGEST}"),
        ):
            await self.accepted(200, method, path)
        self.assertEqual(await pulled(self.registry, "hello"), set())

    async def test_an_index_is_pulled_by_itself_and_not_by_its_children(self) -> None:
        await self.push()
        index = image_index(MANIFEST)
        path = "/v2/hello/manifests/multi"
        await self.accepted(201, "PUT", path, index, {"Content-Type": OCI_INDEX})
        await self.accepted(200, "GET", f"/v2/hello/manifests/{DIGEST}")
        self.assertEqual(await pulled(self.registry, "hello"), {"v1", "latest"})
        await self.accepted(200, "GET", path)
        self.assertEqual(await pulled(self.registry, "hello"), {"v1", "latest", "multi"})

    async def test_agents_of_the_settings_do_not_count(self) -> None:
        registry = Served.start(self, 'uncounted_pulls = ["agent:*Trivy/*", "user:alice"]')
        await registry.push_image("hello", "v1", BLOB)
        for agent, counts in (("aquasecurity/trivy/0.5 (linux)", False), ("docker/27", True)):
            headers = {"User-Agent": agent}
            await registry.request("GET", "/v2/hello/manifests/v1", None, headers)
            self.assertEqual(await pulled(registry, "hello"), {"v1"} if counts else set())

    async def test_what_was_pulled_is_known_after_a_restart(self) -> None:
        await self.push()
        await self.accepted(200, "GET", "/v2/hello/manifests/v1")
        await self.registry.service.stopService()
        again = Served.start(self, data=self.registry.data)
        self.addCleanup(self.registry.service.startService)
        self.assertEqual(await pulled(again, "hello"), {"v1"})


class HotTests(ApiTestCase):
    """A hot answer comes within a second of one that was noted, and so within its hour."""

    def gets(self, path: str, times: int) -> Iterator[int]:
        connection = HTTPConnection("127.0.0.1", self.registry.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            for _ in range(times):
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                yield response.status

    async def ask(self) -> set[int]:
        return await deferToThread(lambda: set(self.gets("/v2/hello/manifests/v1", 5)))

    async def test_pulls_that_are_answered_hot_are_known_in_every_hour(self) -> None:
        await self.registry.push_image("hello", "v1", BLOB)
        pulls, hot = self.registry.parts.pulls, self.registry.running.site.hot
        assert hot is not None
        start = pulls.now()
        seconds = 0.0
        self.patch(pulls, "now", lambda: start + seconds)
        self.patch(pulls, "noted", TTLCache(100, HOUR, pulls.now))
        self.patch(hot, "_clock", type("Clock", (), {"seconds": lambda _: seconds})())
        noted = set()
        for hour in range(3):
            seconds = hour * HOUR
            self.assertEqual(await self.ask(), {200})
            await pulls.write()
            overview = Overview(self.registry.parts.catalog.database)
            (seen,) = await overview.tags(ImageName("local", "hello"), None, 10)
            noted.add(seen.pulled)
        self.assertEqual(noted, {start, start + HOUR, start + 2 * HOUR})


class IdentityTests(GuardedCase):
    top = 'uncounted_pulls = ["user:b?b", "robot:scanner"]'

    async def test_users_of_the_settings_do_not_count(self) -> None:
        await self.have("team/app")
        for who, counts in (("bob", False), ("alice", True)):
            self.assertEqual(await self.status("GET", "/v2/team/app/manifests/v1", who), 200)
            expected = {"v1"} if counts else set()
            self.assertEqual(await pulled(self.registry, "team/app"), expected)
