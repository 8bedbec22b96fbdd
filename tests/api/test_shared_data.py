"""Several registries on one data folder: after a change of settings, and side by side."""

from __future__ import annotations

from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase
from tests.api.served import Served

DIGEST = Digest.of(b"content")
TWO_REPOSITORIES = """
    [repository.local]
    kind = "local"
    [repository.team]
    kind = "local"
"""


class StartTests(ApiTestCase):
    """What stops the start."""

    async def test_a_repository_that_would_hide_images(self) -> None:
        await self.registry.push_image("team/hello", "v1")
        with self.assertRaises(SystemExit) as stopped:
            Served.start(self, TWO_REPOSITORIES, data=self.registry.data)
        said = str(stopped.exception)
        self.assertIn('repository "team" would hide the image "team/hello" of "local"', said)
        self.assertEqual(said.count("\n"), 0)

    async def test_a_repository_that_hides_nothing_does_not(self) -> None:
        await self.registry.push_image("teamwork/hello", "v1")
        await self.registry.push_image("team", "v1")
        second = Served.start(self, TWO_REPOSITORIES, data=self.registry.data)
        answer = await second.request("GET", "/v2/team/manifests/v1")
        self.assertEqual(answer.status, 200)


class SecondProcessTests(ApiTestCase):
    """Two registries on the same data take turns; each is a process's worth of state."""

    async def test_steps_of_one_upload_alternate(self) -> None:
        second = Served.start(self, data=self.registry.data)
        location = await self.start_upload()
        for start, registry in ((0, second), (1, self.registry), (2, second), (3, self.registry)):
            headers = {"Content-Range": f"{start}-{start}"}
            answer = await registry.request(
                "PATCH", location, b"content"[start : start + 1], headers
            )
            self.assertEqual((answer.status, answer.header("Range")), (202, f"0-{start}"))
        answer = await second.request("PUT", f"{location}?digest={DIGEST}", b"ent")
        self.assertEqual(answer.status, 201)
        await self.accepted(200, "GET", f"/v2/hello/blobs/{DIGEST}")

    async def test_what_one_pushes_the_other_serves_at_once(self) -> None:
        second = Served.start(self, data=self.registry.data)
        for layer in (b"1", b"2"):
            digest = await self.registry.push_image("hello", "v1", layer)
            answer = await second.request("HEAD", "/v2/hello/manifests/v1")
            self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))
