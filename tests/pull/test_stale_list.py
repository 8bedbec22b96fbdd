"""The list of what is stale: what it has, until when, and for whom."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from typing import Any

from artifactd.auth.passwords import hash_secret
from tests.api.described import problems
from tests.api.served import Served
from tests.page.case import HTML, words
from tests.pull.mirrors import MirrorCase
from tests.upstreams.faulty import MANIFESTS, Status

DAY = 86_400.0
API = "/api/v1/stale"
IMAGES = ("alpine", "busybox", "debian")
SECRET = "s" * 43
ROBOT = {"Authorization": "Basic " + b64encode(f"robot+ci:{SECRET}".encode()).decode()}
ACCESS = f"""
[robot.ci]
secret_hash = "{hash_secret(SECRET)}"
may = ["pull"]
images = ["*"]
[[access]]
who = ["robot:ci"]
may = ["pull"]
images = ["*"]
[[access]]
who = ["anonymous"]
may = ["pull"]
images = ["docker.io/library/alpine"]
"""


class StaleListCase(MirrorCase):
    def setUp(self) -> None:
        super().setUp()
        self.hub.challenges = False
        for name in IMAGES:
            self.hub.images.add_image(f"library/{name}", "latest", name.encode())

    async def pull(
        self, registry: Served, *names: str, headers: dict[str, str] | None = None
    ) -> None:
        """Pull the latest image of these names."""
        for name in names:
            path = f"/v2/docker.io/{name}/manifests/latest"
            answer = await registry.request("GET", path, headers=headers)
            self.assertEqual(answer.status, 200)

    async def let_stale(
        self, registry: Served, *names: str, headers: dict[str, str] | None = None
    ) -> None:
        """Pull images, and again two days later, when the upstream fails."""
        await self.pull(registry, *names, headers=headers)
        self.age(registry, 2 * DAY)
        self.hub.faults.add(Status(503), on=MANIFESTS, method="*", times=None)
        await self.pull(registry, *names, headers=headers)

    async def listed(self, registry: Served, query: str = "") -> list[dict[str, Any]]:
        """All pages of the API's list, as the document says."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            path = f"{API}?limit=1{query}{after}"
            answer = await registry.request("GET", path)
            self.assertEqual((answer.status, problems("GET", path, answer)), (200, []))
            page = json.loads(answer.body)
            found += page["stale"]
            if page["next"] is None:
                return found
            after = f"&after={page['next']}"

    async def names(self, registry: Served, query: str = "") -> list[str]:
        return [each["image"].rpartition("/")[2] for each in await self.listed(registry, query)]


class StaleListTests(StaleListCase):
    async def test_a_tag_is_listed_with_its_reason_until_the_upstream_confirms_it(self) -> None:
        registry = self.mirror()
        self.assertEqual(await self.listed(registry), [])
        await self.let_stale(registry, *IMAGES)
        told = await self.listed(registry)
        self.assertEqual(
            [each["image"] for each in told], [f"docker.io/library/{n}" for n in IMAGES]
        )
        for each in told:
            self.assertEqual(each["tag"], "latest")
            self.assertIn("503", each["why"])
            self.assertEqual(each["since"], each["checked"] + DAY)
            self.assertLess(each["since"], each["answered"])
            self.assertLessEqual(each["answered"], time.time())
        self.assertEqual(await self.names(registry, "&search=busy"), ["busybox"])

        self.hub.faults.clear()
        await self.pull(registry, "busybox")
        self.assertEqual(await self.names(registry), ["alpine", "debian"])
        await registry.request("DELETE", "/api/v1/images/docker.io/library/debian/tags/latest")
        self.assertEqual(await self.names(registry), ["alpine"])

    async def test_one_that_nobody_asks_for_is_not(self) -> None:
        registry = self.mirror()
        await self.pull(registry, "alpine")
        self.age(registry, 2 * DAY)
        self.assertEqual(await self.listed(registry), [])

    async def test_an_upstream_that_is_not_asked_is_the_reason(self) -> None:
        registry = self.mirror()
        await self.pull(registry, "alpine")
        await registry.stop()
        registry = self.mirror(registry.data, offline=True)
        self.age(registry, 2 * DAY)
        await self.pull(registry, "alpine")
        (told,) = await self.listed(registry)
        self.assertIn("offline", told["why"])

    async def test_the_page_shows_it_and_the_upstreams_lead_there(self) -> None:
        registry = self.mirror()
        await self.let_stale(registry, "alpine", "busybox")

        async def page(path: str) -> str:
            answer = await registry.request("GET", path, headers=HTML)
            self.assertEqual(answer.status, 200)
            return words(answer)

        shown = await page("/ui/stale")
        self.assertRegex(shown, r"library/alpine latest .*503.* 20.*library/busybox latest .*503")
        self.assertNotIn("busybox", await page("/ui/stale?q=alp*ne"))
        self.assertIn("No tag of an image that matches", await page("/ui/stale?q=nothing"))
        upstreams = await registry.request("GET", "/ui/upstreams", headers=HTML)
        self.assertIn(b'href="/ui/stale?q=docker.io%2F%2A">which?</a>', upstreams.body)

    async def test_an_upstream_is_not_well_while_its_tags_are_answered_stale(self) -> None:
        registry = self.mirror()

        async def shown() -> tuple[int, str]:
            path = "/api/v1/upstreams"
            answer = await registry.request("GET", path)
            self.assertEqual((answer.status, problems("GET", path, answer)), (200, []))
            (upstream,) = json.loads(answer.body)["upstreams"]
            page = words(await registry.request("GET", "/ui/upstreams", headers=HTML))
            return upstream["stale_tags"], page

        await self.let_stale(registry, "alpine", "busybox")
        count, page = await shown()
        self.assertEqual(count, 2)
        self.assertIn("docker.io answers stale", page)
        self.assertIn("Stale tags now 2 which?", page)
        self.hub.faults.clear()
        await self.pull(registry, "alpine", "busybox")
        count, page = await shown()
        self.assertEqual(count, 0)
        self.assertIn("docker.io well", page)
        self.assertIn("Answered stale 2", page)

    async def test_what_makes_no_sense_is_refused(self) -> None:
        registry = self.mirror()
        for query in ("after=x", "limit=0", "after=WzFd"):
            answer = await registry.request("GET", f"{API}?{query}")
            self.assertEqual((answer.status, problems("GET", API, answer)), (400, []))


class RightsTests(StaleListCase):
    async def test_callers_see_what_they_may_pull(self) -> None:
        registry = self.mirror_with(ACCESS)
        await self.let_stale(registry, *IMAGES, headers=ROBOT)
        for headers, expected in ((ROBOT, IMAGES), ({}, ("alpine",))):
            answer = await registry.request("GET", API, headers=headers)
            told = [each["image"] for each in json.loads(answer.body)["stale"]]
            self.assertEqual(told, [f"docker.io/library/{name}" for name in expected])
            page = words(await registry.request("GET", "/ui/stale", headers=HTML))
            self.assertEqual([name for name in IMAGES if name in page], ["alpine"])
        answer = await registry.request("GET", f"{API}?search=debian")
        self.assertEqual(answer.status, 401)
