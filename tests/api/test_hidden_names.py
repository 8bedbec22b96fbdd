"""Names that more than one repository may answer for, to callers who may not pull from all."""

from __future__ import annotations

import json

from artifactd.oci.digest import Digest
from tests.api.guarded import ABSENT, BLOB, GuardedCase, shape
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

HIDDEN, FREE = "team/hidden", "team/nowhere"

RULES = """
[[access]]
who = ["user:alice"]
may = ["pull", "push", "delete"]
images = ["local/*"]

[[access]]
who = ["user:bob"]
may = ["pull"]
images = ["docker.io/*"]

[[access]]
who = ["user:writer"]
may = ["pull", "push"]
images = ["*"]
"""


class HiddenNameTests(GuardedCase):
    """alice may pull what is local, bob what is upstream, writer both."""

    rules = RULES

    def setUp(self) -> None:
        self.hub = Hub.start(self)
        self.toml = settings_for(self.hub, retries=0)
        super().setUp()

    async def test_the_upstreams_image_is_for_who_may_pull_from_there(self) -> None:
        upstream = self.hub.images.add_image("team/app", "v1")
        path = "/v2/team/app/manifests/v1"
        self.assertEqual(await self.status("GET", path, "alice"), 404)
        self.assertEqual(self.hub.asked(), [])
        answer = await self.ask("GET", path, "bob")
        self.assertEqual(
            (answer.status, answer.header("Docker-Content-Digest")), (200, str(upstream))
        )
        # Not even now that it is here.
        self.assertEqual(await self.status("GET", path, "alice"), 404)

    async def test_a_local_name_is_one_that_no_upstream_has_and_is_not_asked_for(self) -> None:
        await self.have(HIDDEN)
        self.hub.images.add_image(HIDDEN, "v1")
        for path in (
            "manifests/v1",
            f"manifests/{ABSENT}",
            f"blobs/{Digest.of(BLOB)}",
            "tags/list",
            f"referrers/{Digest.of(BLOB)}",
        ):
            for method in ("GET", "HEAD"):
                asked = len(self.hub.asked())
                hidden = await self.ask(method, f"/v2/{HIDDEN}/{path}", "bob")
                self.assertEqual(len(self.hub.asked()), asked, path)
                free = await self.ask(method, f"/v2/{FREE}/{path}", "bob")
                # How long it took a client sees for itself.
                for answer in (hidden, free):
                    del answer.headers["Server-Timing"]
                self.assertEqual(shape(hidden, HIDDEN), shape(free, FREE), path)
                self.assertEqual(hidden.status, 200 if "referrers" in path else 404, path)

    async def test_its_prefixed_name_is_plainly_denied(self) -> None:
        await self.have(HIDDEN)
        answer = await self.ask("GET", f"/v2/local/{HIDDEN}/manifests/v1", "bob")
        self.assert_error(answer, 403, "DENIED")

    async def test_a_mirrors_name_is_the_upstreams_alone(self) -> None:
        await self.have(HIDDEN)
        self.hub.images.add_image(HIDDEN, "v1")
        path = f"/v2/{HIDDEN}/manifests/v1?ns=docker.io"
        self.assertEqual(await self.status("GET", path, "bob"), 200)
        self.assert_error(await self.ask("GET", path, "alice"), 403, "DENIED")

    async def test_who_may_pull_both_gets_the_local_one(self) -> None:
        await self.have(HIDDEN)
        self.hub.images.add_image(HIDDEN, "v1")
        answer = await self.ask("GET", f"/v2/{HIDDEN}/manifests/v1", "writer")
        self.assertEqual((answer.status, self.hub.asked()), (200, []))

    async def test_a_push_takes_no_blob_from_where_its_pusher_may_not_pull(self) -> None:
        self.hub.images.add_image("team/app", "v1")
        pulled = await self.ask("GET", "/v2/team/app/manifests/v1", "bob")
        document = json.loads(pulled.body)
        for each in [document["config"], *document["layers"]]:
            path = f"/v2/team/app/blobs/{each['digest']}"
            self.assertEqual(await self.status("GET", path, "bob"), 200)
        headers = {"Content-Type": pulled.header("Content-Type") or ""}
        path = "/v2/team/app/manifests/copy"
        for who, status in (("alice", 400), ("writer", 201)):
            answer = await self.ask("PUT", path, who, pulled.body, headers)
            self.assertEqual(answer.status, status, answer.body)
