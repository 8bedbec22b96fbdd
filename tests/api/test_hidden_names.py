"""Names that more than one repository may answer for, to callers who may not pull from all."""

from __future__ import annotations

import json

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.guarded import ABSENT, BLOB, CONFIG, GuardedCase, shape
from tests.api.served import image_manifest
from tests.process import Answer
from tests.pull.mirrors import side_by_side
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

[[access]]
who = ["user:nobody"]
may = ["push"]
images = ["local/*"]

[[access]]
who = ["user:nobody"]
may = ["pull"]
images = ["docker.io/*"]
"""


class HiddenNameTests(GuardedCase):
    """
    alice may pull what is local, bob what is upstream, writer both; nobody may push locally, and
    pull what is upstream.
    """

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

    async def test_a_push_does_not_tell_what_is_local_to_one_who_may_pull_the_upstreams(
        self,
    ) -> None:
        await self.have(HIDDEN)
        headers = {"Content-Type": OCI_MANIFEST, "If-Match": f'"{ABSENT}"'}
        path = f"/v2/{HIDDEN}/manifests/v1"
        for who, told in (("nobody", False), ("writer", True)):
            answer = await self.ask("PUT", path, who, image_manifest(CONFIG), headers)
            detail = self.assert_error(answer, 412, "DENIED")
            self.assertEqual("current" in detail, told, who)

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


class _TwoUpstreams(GuardedCase):
    """bob may pull from docker.io alone, alice from ghcr.io too."""

    rules = """
[[access]]
who = ["user:alice"]
may = ["pull"]
images = ["*"]

[[access]]
who = ["user:bob"]
may = ["pull"]
images = ["docker.io/*", "local/*"]
"""
    order: tuple[str, ...] = ("ghcr.io", "docker.io")

    def setUp(self) -> None:
        self.hubs = {name: Hub.start(self) for name in self.order}
        self.digests = {
            name: str(hub.images.add_image("team/app", "v1", name.encode()))
            for name, hub in self.hubs.items()
        }
        self.toml = side_by_side(self.hubs)
        super().setUp()

    async def pull(self, who: str, name: str = "team/app") -> Answer:
        return await self.ask("GET", f"/v2/{name}/manifests/v1", who)

    def assert_of(self, answer: Answer, upstream: str) -> None:
        told = answer.status, answer.header("Docker-Content-Digest")
        self.assertEqual(told, (200, self.digests[upstream]))


class HiddenUpstreamTests(_TwoUpstreams):
    """The upstream that only alice may pull from is asked first."""

    async def test_who_may_not_pull_the_first_does_not_make_the_name_anothers(self) -> None:
        self.assert_error(await self.pull("bob"), 404, "MANIFEST_UNKNOWN")
        self.assertEqual([hub.asked() for hub in self.hubs.values()], [[], []])
        self.assert_of(await self.pull("alice"), "ghcr.io")
        self.assert_error(await self.pull("bob"), 404, "MANIFEST_UNKNOWN")

    async def test_once_a_name_is_anothers_he_gets_it(self) -> None:
        self.hubs["ghcr.io"].images.add_image("team/b", "v2")  # else 401, and that is not for us
        self.digests["docker.io"] = str(self.hubs["docker.io"].images.add_image("team/b", "v1"))
        self.assert_error(await self.pull("bob", "team/b"), 404, "MANIFEST_UNKNOWN")
        for who in ("alice", "bob"):
            self.assert_of(await self.pull(who, "team/b"), "docker.io")


class PublicFirstTests(_TwoUpstreams):
    """The upstream that both may pull from is asked first."""

    order = ("docker.io", "ghcr.io")

    async def test_both_get_what_the_first_has(self) -> None:
        for who in ("bob", "alice"):
            self.assert_of(await self.pull(who), "docker.io")

    async def test_what_only_the_hidden_one_has_is_for_who_may_pull_it(self) -> None:
        self.hubs["ghcr.io"].images.add_image("team/b", "v1")
        self.assert_error(await self.pull("bob", "team/b"), 404, "MANIFEST_UNKNOWN")
        self.assertEqual((await self.pull("alice", "team/b")).status, 200)
        self.assert_error(await self.pull("bob", "team/b"), 404, "MANIFEST_UNKNOWN")
