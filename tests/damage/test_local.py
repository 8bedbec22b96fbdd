"""What was pushed here goes bad: it is as if it were not here, until it is pushed again."""

from __future__ import annotations

import contextlib
import json

from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Digest
from artifactd.registry.content import Lost
from tests.api.case import Connection
from tests.api.served import image_index, image_manifest
from tests.damage.case import LARGE, SMALL, DamageCase
from tests.damage.rot import WAYS, file_of
from tests.pull.case import noise
from tests.rows import writing


class BlobTests(DamageCase):
    async def test_a_scrub_finds_it_and_a_push_heals_it(self) -> None:
        for way in WAYS:
            digest = Digest.of(LARGE)
            await self.registry.push_image("app", "1", LARGE, SMALL)
            self.rot(digest, way)
            before = len(self.quarantined())
            await self.scrub()
            path = f"/v2/app/blobs/{digest}"
            answer = await self.registry.request("GET", path)
            self.assertEqual(
                (answer.status, json.loads(answer.body)["errors"][0]["code"]),
                (404, "BLOB_UNKNOWN"),
                way,
            )
            self.assertEqual(await self.statuses(path), (404, 404), way)
            self.assertEqual(len(self.quarantined()) - before, way != "it is gone", way)
            self.assertFalse(file_of(self.registry.data, digest).exists(), way)
            self.assertTrue(self.logged(str(digest), "push local/app again"), way)
            await self.registry.push_blob("app", LARGE)
            answer = await self.registry.request("GET", path)
            self.assertTrue(answer.body == LARGE, way)
        self.assertEqual(await self.damaged("damaged_total"), len(WAYS))
        self.assertEqual(self.hub.requests, [])

    async def test_who_asks_for_a_small_one_finds_it(self) -> None:
        for way in WAYS:
            digest = await self.registry.push_blob("app", SMALL + way.encode())
            self.rot(digest, way)
            self.assertEqual(await self.statuses(f"/v2/app/blobs/{digest}"), (404, 404), way)

    async def test_who_asks_for_a_large_one_of_another_size_finds_it(self) -> None:
        for way in ("it is cut short", "it grows", "it is gone", "it is empty"):
            digest = await self.registry.push_blob("app", LARGE)
            self.rot(digest, way)
            self.assertEqual(await self.statuses(f"/v2/app/blobs/{digest}"), (404, 404), way)

    async def test_a_push_takes_its_place_before_anybody_has_found_out(self) -> None:
        for way in WAYS:
            digest = await self.registry.push_blob("app", LARGE)
            self.rot(digest, way)
            await self.registry.push_blob("other", LARGE)
            answer = await self.registry.request("GET", f"/v2/app/blobs/{digest}")
            self.assertTrue(answer.body == LARGE, way)

    async def test_it_can_not_be_mounted_and_no_manifest_may_refer_to_it(self) -> None:
        digest = await self.registry.push_blob("app", LARGE)
        await self.registry.push_blob("app", b"{}")
        self.rot(digest, "a bit flips")
        await self.scrub()
        mount = f"/v2/other/blobs/uploads/?mount={digest}&from=app"
        self.assertEqual((await self.registry.request("POST", mount)).status, 202)
        manifest = image_manifest(b"{}", LARGE)
        put = await self.registry.request("PUT", "/v2/app/manifests/1", manifest)
        self.assertIn(b"MANIFEST_BLOB_UNKNOWN", put.body)

    async def test_it_can_be_deleted(self) -> None:
        digest = await self.registry.push_blob("app", LARGE)
        self.rot(digest, "a bit flips")
        await self.scrub()
        answer = await self.registry.request("DELETE", f"/v2/app/blobs/{digest}")
        self.assertEqual(answer.status, 202)

    async def test_an_answer_under_way_is_cut(self) -> None:
        content = noise(64 << 20, 2)
        digest = await self.registry.push_blob("app", content)
        client = Connection(self, self.registry.port)
        await client.head(f"GET /v2/app/blobs/{digest}", "Connection: close")
        self.rot(digest, "a page is zeros")
        await self.scrub()
        with contextlib.suppress(ConnectionResetError):
            self.assertLess(len(await client.rest()), len(content))
        self.assertTrue(self.logged("cut off", "found damaged"))

    async def test_right_bytes_stay_whatever_size_their_row_says(self) -> None:
        digest = await self.registry.push_blob("app", LARGE)
        with writing(self.registry.data / "catalog.sqlite3") as db:
            db.execute("UPDATE blob SET size = size - 1 WHERE digest = ?", (str(digest),))
        path = f"/v2/app/blobs/{digest}"
        self.assertEqual((await self.registry.request("GET", path)).status, 500)  # to be retried
        self.assertEqual(len(self.flushLoggedErrors(Lost)), 1)
        answer = await self.registry.request("GET", path)
        self.assertEqual((answer.status, answer.body == LARGE), (200, True))
        self.assertEqual(self.quarantined(), [])

    async def test_what_can_not_be_read_is_looked_into(self) -> None:
        digest = await self.registry.push_blob("app", LARGE)
        self.rot(digest, "a bit flips")
        self.parts.damage.suspect(digest)
        await self.seen_to()
        self.assertEqual(self.quarantined(), [str(digest)])


class ManifestTests(DamageCase):
    async def test_a_scrub_finds_it_and_a_push_heals_it(self) -> None:
        for way in WAYS:
            digest = await self.registry.push_image("app", "1", SMALL)
            self.rot(digest, way)
            await self.scrub()
            for reference in ("1", digest):
                path = f"/v2/app/manifests/{reference}"
                self.assertEqual(await self.statuses(path), (404, 404), way)
            self.assertEqual((await self.registry.push_image("app", "1", SMALL)), digest)
            answer = await self.registry.request("GET", "/v2/app/manifests/1")
            self.assertEqual(Digest.of(answer.body), digest, way)
            self.parts.registry.stored.contents._kept.clear()  # as if it were long ago
        self.assertEqual(self.hub.requests, [])

    async def test_who_asks_for_it_finds_it(self) -> None:
        for way in WAYS:
            digest = await self.registry.push_image("app", way.replace(" ", "-"), SMALL)
            self.rot(digest, way)
            self.assertEqual(await self.statuses(f"/v2/app/manifests/{digest}"), (404, 404), way)

    async def test_what_memory_has_verified_heals_it(self) -> None:
        digest = await self.registry.push_image("app", "1", SMALL)
        await self.registry.request("GET", "/v2/app/manifests/1")
        self.rot(digest, "a bit flips")
        await self.scrub()
        self.assertEqual(Digest.of(file_of(self.registry.data, digest).read_bytes()), digest)
        self.assertEqual(await self.statuses("/v2/app/manifests/1"), (200, 200))

    async def test_an_index_is_refused_whose_child_is_lost(self) -> None:
        digest = await self.registry.push_image("app", "1", SMALL)
        content = file_of(self.registry.data, digest).read_bytes()
        self.rot(digest, "a bit flips")
        await self.scrub()
        put = await self.registry.request(
            "PUT", "/v2/app/manifests/all", image_index(content), {"Content-Type": OCI_INDEX}
        )
        self.assertIn(b"MANIFEST_BLOB_UNKNOWN", put.body)
