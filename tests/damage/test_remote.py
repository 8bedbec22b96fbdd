"""What came from an upstream goes bad: it is fetched again, under the name it came by."""

from __future__ import annotations

import contextlib
import json
from io import StringIO

from artifactd.catalog.repair import Holder
from artifactd.commands.offline import CheckData
from artifactd.oci.errors import BadGateway
from artifactd.oci.names import Digest
from artifactd.settings.settings import Settings
from tests.damage.case import LARGE, NAME, DamageCase
from tests.damage.rot import WAYS, file_of


async def _unreachable(holder: Holder, digest: Digest) -> None:
    raise BadGateway("the upstream can't be reached")


class RemoteTests(DamageCase):
    async def pulled(self) -> Digest:
        """An image that is here; its manifest."""
        digest = self.hub.images.add_image(NAME, "1", LARGE)
        answer = await self.registry.request("GET", f"/v2/docker.io/{NAME}/manifests/1")
        for layer in json.loads(answer.body)["layers"]:
            await self.pull(Digest.parse(layer["digest"]), name=NAME)
        self.parts.registry.stored.contents._kept.clear()  # as if it were long ago
        return digest

    def assert_right(self, digest: Digest, way: str) -> None:
        found = Digest.of(file_of(self.registry.data, digest).read_bytes())
        self.assertEqual(found, digest, way)

    async def test_a_scrub_has_a_blob_fetched_again(self) -> None:
        await self.pulled()
        digest = Digest.of(LARGE)
        for way in WAYS:
            self.rot(digest, way)
            self.hub.forget_requests()
            await self.scrub()
            self.assert_right(digest, way)
            self.assertTrue(self.hub.asked("GET", f"/v2/{NAME}/blobs/*"), way)
        self.assertEqual(self.holders(digest), [f"docker.io/{NAME}"])

    async def test_a_scrub_has_a_manifest_fetched_again(self) -> None:
        digest = await self.pulled()
        for way in WAYS:
            self.rot(digest, way)
            await self.scrub()
            self.assert_right(digest, way)
            self.parts.registry.stored.contents._kept.clear()

    async def test_fsck_asks_no_upstream(self) -> None:
        digest = await self.pulled()
        command = CheckData()
        for damaged, way in ((Digest.of(LARGE), "a bit flips"), (digest, "it is gone")):
            self.rot(damaged, way)
            self.hub.forget_requests()
            for repair in (0, 1):
                command["repair"] = repair
                with contextlib.redirect_stdout(StringIO()) as told:
                    await command.work(self.parts, Settings())
                self.assertIn("it is fetched again when it is wanted", told.getvalue())
                await self.seen_to()
            self.assertEqual(self.hub.requests, [])

    async def test_a_pull_gets_the_right_bytes_at_once(self) -> None:
        await self.pulled()
        digest = Digest.of(LARGE)
        for way in ("it is cut short", "it is gone"):
            self.rot(digest, way)
            self.assert_whole(await self.pull(digest, name=NAME), LARGE)
            await self.seen_to()
            self.assert_right(digest, way)

    async def test_without_the_upstream_it_is_fetched_when_it_is_back(self) -> None:
        await self.pulled()
        digest = Digest.of(LARGE)
        self.rot(digest, "a bit flips")
        offline = self.parts.damage.refetch
        self.parts.damage.refetch = _unreachable
        await self.scrub()
        self.assertEqual(self.quarantined(), [str(digest)])
        self.assertTrue(self.logged("is fetched again when it is wanted"))
        self.parts.damage.refetch = offline
        self.assert_whole(await self.pull(digest, name=NAME), LARGE)

    async def test_what_was_pushed_too_is_healed_with_it(self) -> None:
        await self.pulled()
        await self.registry.push_blob("app", LARGE)
        digest = Digest.of(LARGE)
        for way in WAYS:
            self.rot(digest, way)
            self.hub.forget_requests()
            await self.scrub()
            self.assert_right(digest, way)
            self.assertEqual(
                {asked.path for asked in self.hub.asked("GET", "/v2/*/blobs/*")},
                {f"/v2/{NAME}/blobs/{digest}"},
            )
            answer = await self.registry.request("GET", f"/v2/app/blobs/{digest}")
            self.assertTrue(answer.body == LARGE, way)

    async def test_a_name_that_was_pushed_is_never_asked_for(self) -> None:
        self.hub.images.add_image(NAME, "1", LARGE)
        await self.registry.push_image("app", "1", LARGE)
        for way in WAYS:
            await self.registry.push_blob("app", LARGE)
            self.rot(Digest.of(LARGE), way)
            await self.scrub()
            path = f"/v2/app/blobs/{Digest.of(LARGE)}"
            self.assertEqual(await self.statuses(path), (404, 404), way)
        self.assertEqual(self.hub.requests, [])
