"""The read-only mode, while the daemon runs."""

from __future__ import annotations

import json

from artifactd.oci.names import Digest
from artifactd.store.folder import ReadOnlyMode
from tests.api.case import ApiTestCase
from tests.api.guarded import GuardedCase
from tests.api.served import Served

BLOB = b"content"
PUSH = f"/v2/hello/blobs/uploads/?digest={Digest.of(BLOB)}"


class ReadOnlyTests(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.mode = ReadOnlyMode(self.registry.data)

    async def test_nothing_changes_and_everything_is_read(self) -> None:
        await self.registry.push_image("hello", "v1", BLOB)
        location = await self.start_upload("hello")
        self.mode.turn_on()
        for method, path in (
            ("POST", PUSH),
            ("PATCH", location),
            ("PUT", "/v2/hello/manifests/v2"),
            ("DELETE", "/v2/hello/manifests/v1"),
            ("DELETE", location),
        ):
            answer = await self.refused(405, "UNSUPPORTED", method, path, BLOB)
            self.assertIn("read-only off", json.loads(answer.body)["errors"][0]["message"])
        await self.accepted(200, "GET", "/v2/hello/manifests/v1")

    async def test_an_upload_goes_on_where_it_was(self) -> None:
        location = await self.start_upload("hello")
        await self.accepted(202, "PATCH", location, BLOB)
        self.mode.turn_on()
        await self.registry.running.swept()
        await self.refused(405, "UNSUPPORTED", "PUT", f"{location}?digest={Digest.of(BLOB)}")
        self.mode.turn_off()
        await self.accepted(201, "PUT", f"{location}?digest={Digest.of(BLOB)}")

    async def test_every_process_on_the_folder_obeys_and_a_restart_changes_nothing(self) -> None:
        beside = Served.start(self, data=self.registry.data)
        self.mode.turn_on()
        self.assertEqual((await beside.request("POST", PUSH, BLOB)).status, 405)
        await self.registry.service.stopService()
        self.registry.service.startService()
        await self.refused(405, "UNSUPPORTED", "POST", PUSH, BLOB)
        self.mode.turn_off()
        await self.accepted(201, "POST", PUSH, BLOB)
        self.assertEqual((await beside.request("POST", PUSH, BLOB)).status, 201)

    async def test_it_is_ready_and_says_so(self) -> None:
        self.mode.turn_on()
        answer = await self.accepted(200, "GET", "/readyz")
        self.assertEqual(json.loads(answer.body), {"status": "ok", "mode": "read-only"})

    async def test_the_setting_turns_it_on_for_good(self) -> None:
        registry = Served.start(self, read_only="true")
        self.assertEqual((await registry.request("POST", PUSH, BLOB)).status, 405)


class GuardedReadOnlyTests(GuardedCase):
    async def test_only_who_might_push_is_told(self) -> None:
        ReadOnlyMode(self.registry.data).turn_on()
        path = f"/v2/team/app/blobs/uploads/?digest={Digest.of(BLOB)}"
        for who, status in ((None, 401), ("bob", 403), ("writer", 405)):
            self.assertEqual(await self.status("POST", path, who, body=BLOB), status)
