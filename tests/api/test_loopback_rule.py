"""Without any authentication only clients on the registry's own machine change anything."""

from __future__ import annotations

import json

from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase

PASSED_ON = (
    ("Forwarded", "for=192.0.2.1"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "registry"),
    ("x-forwarded-anything", ""),
    ("Via", "1.1 proxy"),
    ("X-Real-IP", "127.0.0.1"),
    ("Origin", "http://evil.example"),
)
BLOB = b"content"


class LoopbackRuleTests(ApiTestCase):
    async def test_this_machine_pushes_and_deletes(self) -> None:
        await self.registry.push_image("hello", "v1", BLOB)
        await self.accepted(202, "DELETE", "/v2/hello/manifests/v1")

    async def test_what_has_been_passed_on_only_reads(self) -> None:
        await self.registry.push_image("hello", "v1", BLOB)
        for name, value in PASSED_ON:
            headers = {name: value}
            for method, path in (
                ("POST", f"/v2/hello/blobs/uploads/?digest={Digest.of(BLOB)}"),
                ("PUT", "/v2/hello/manifests/v2"),
                ("DELETE", "/v2/hello/manifests/v1"),
                ("DELETE", f"/v2/hello/blobs/{Digest.of(BLOB)}"),
                ("GET", "/v2/hello/blobs/uploads/0"),
            ):
                answer = await self.refused(403, "DENIED", method, path, b"body", headers)
                message = json.loads(answer.body)["errors"][0]["message"]
                self.assertIn("[auth]", message)
            await self.accepted(200, "GET", "/v2/hello/manifests/v1", None, headers)

    async def test_a_rebound_name_writes_nothing_since_browsers_say_where_a_page_is_from(
        self,
    ) -> None:
        headers = {"Host": "evil.example:5000", "Origin": "http://evil.example:5000"}
        await self.refused(403, "DENIED", "POST", "/v2/hello/blobs/uploads/", None, headers)

    async def test_a_name_of_the_operators_for_this_machine_writes(self) -> None:
        path = f"/v2/hello/blobs/uploads/?digest={Digest.of(BLOB)}"
        await self.accepted(201, "POST", path, BLOB, {"Host": "registry.internal:5000"})

    async def test_everybody_finds_an_open_door(self) -> None:
        await self.accepted(200, "GET", "/v2/")
        await self.accepted(200, "GET", "/metrics", None, {"X-Forwarded-For": "192.0.2.1"})

    async def test_what_goes_on_is_told_on_this_machine_alone(self) -> None:
        await self.accepted(200, "GET", "/status")
        for headers in {"X-Forwarded-For": "192.0.2.1"}, {"Host": "evil.example"}:
            await self.refused(403, "DENIED", "GET", "/status", None, headers)

    async def test_credentials_count_for_nothing(self) -> None:
        await self.accepted(200, "GET", "/v2/", None, {"Authorization": "Bearer nonsense"})
