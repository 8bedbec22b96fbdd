"""Docker Engine against the daemon."""

from __future__ import annotations

import signal
import tarfile
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.api.described import told
from tests.clients.images import build_context, native_architecture
from tests.clients.observed import answered, stored
from tests.process import Daemon
from tests.programs import DockerEngine, Result, wait_for

MIB = 1024 * 1024
LARGE = 8 * MIB
CUT = 32 * MIB
README = Path(__file__).parents[2] / "README.md"


class DockerTestCase(TestCase):
    daemon: Daemon
    engine: DockerEngine

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.engine = await DockerEngine.start(self)
        self.daemon = await Daemon.start(self, shutdown_timeout="60s")

    async def build(self, *sizes: int) -> str:
        """Build an image with files of ``sizes``; its name."""
        context = await build_context(
            Path(self.mktemp()), native_architecture(), "hello from a layer", sizes
        )
        name = f"{self.daemon.address}/hello:1"
        await self.engine.docker("build", "--tag", name, str(context))
        return name

    async def image_id(self, name: str) -> str:
        """The digest of the image's config, which names the digests of all its layers."""
        inspected = await self.engine.docker("image", "inspect", "--format", "{{.Id}}", name)
        return inspected.out.strip()

    async def forget(self, name: str) -> None:
        """Remove an image with its layers from the engine."""
        await self.engine.docker("image", "rm", name)
        left = await self.engine.docker("image", "ls", "--all", "--quiet")
        self.assertEqual(left.out, "", "the engine still has images")


class DockerTests(DockerTestCase):
    async def test_an_image_comes_back_as_it_was_pushed_and_runs(self) -> None:
        name = await self.build(0, 1000, LARGE)
        pushed = await self.image_id(name)
        await self.engine.docker("push", name)
        await self.forget(name)
        await self.engine.docker("pull", name)
        self.assertEqual(await self.image_id(name), pushed)
        said = await self.engine.docker("run", "--rm", "--network", "none", name)
        self.assertEqual(said.out, "hello from a layer\n")
        await wait_for(lambda: any(request.sent > LARGE for request in answered(self.daemon)))

    async def test_the_image_that_readme_makes_comes_back(self) -> None:
        name = f"{self.daemon.address}/hello:1"
        archive = BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(README, README.name)
        await self.engine.docker("import", "-", name, stdin=archive.getvalue())
        pushed = await self.image_id(name)
        await self.engine.docker("push", name)
        await self.forget(name)
        await self.engine.docker("pull", name)
        self.assertEqual(await self.image_id(name), pushed)

    async def test_the_api_tells_of_an_image_deletes_it_and_brings_it_back(self) -> None:
        name = await self.build(1000)
        await self.engine.docker("push", name)
        pushed = await self.image_id(name)
        (image,) = (await told(self, self.daemon, "GET", "/images?search=hello"))["images"]
        self.assertEqual(("local/hello", 1), (image["image"], image["tags"]))
        (tag,) = (await told(self, self.daemon, "GET", "/images/hello/tags"))["tags"]
        self.assertEqual(["1"], [tag["tag"]])
        self.assertTrue(any(native_architecture() in each for each in tag["platforms"]))
        shown = await told(self, self.daemon, "GET", f"/images/hello/manifests/{tag['digest']}")
        config, *layers = shown["entries"]
        self.assertEqual(("config", pushed), (config["role"], config["digest"]))
        self.assertTrue(layers)
        self.assertTrue(all(each["created_by"] for each in layers))
        await told(self, self.daemon, "DELETE", "/images/hello/tags/1")
        await self.forget(name)
        failed = await self.engine.docker("pull", name, check=False)
        self.assertNotEqual(0, failed.status)
        (deleted,) = (await told(self, self.daemon, "GET", "/images/hello/deleted"))["deleted"]
        self.assertEqual(("tag", "1"), (deleted["kind"], deleted["name"]))
        await told(self, self.daemon, "POST", "/images/hello/deleted?reference=1")
        await self.engine.docker("pull", name)
        self.assertEqual(pushed, await self.image_id(name))

    async def test_blobs_of_one_image_are_mounted_into_another(self) -> None:
        name = await self.build(1000)
        await self.engine.docker("push", name)
        other = f"{self.daemon.address}/team/other:2"
        await self.engine.docker("tag", name, other)
        await self.engine.docker("push", other)
        await self.daemon.process.matched('"PUT /v2/team/other/manifests/2" 201')
        requests = [
            request
            for request in answered(self.daemon)
            if request.path.startswith("/v2/team/other/blobs/uploads/")
        ]
        mounts = [request for request in requests if "mount=" in request.path]
        self.assertEqual(
            [(mount.method, mount.status) for mount in mounts], [("POST", 201)] * 2, requests
        )
        mounted = set()
        for mount in mounts:
            query = parse_qs(urlsplit(mount.path).query)
            self.assertEqual(query["from"], ["hello"])
            mounted |= set(query["mount"])
        # Docker pushes the config anew, but nothing that has been mounted.
        puts = [request for request in requests if request.method == "PUT"]
        pushed = {parse_qs(urlsplit(put.path).query)["digest"][0] for put in puts}
        self.assertEqual(mounted & pushed, set())
        patches = [request for request in requests if request.method == "PATCH"]
        self.assertEqual(len(patches), len(puts), requests)


class InterruptionTests(DockerTestCase):
    async def push_in_the_middle(self) -> tuple[str, Deferred[Result]]:
        """An image, and its push by Docker while a large layer is on its way."""
        name = await self.build(CUT)
        pushing = Deferred.fromCoroutine(self.engine.docker("push", name))
        await wait_for(lambda: self.received() > CUT // 8)
        return name, pushing

    def received(self) -> int:
        """How many bytes of uploads have come."""
        return sum(file.stat().st_size for file in self.daemon.data.glob("uploads/*"))

    async def end_by(self, number: int) -> None:
        """End the daemon by a signal, before the image has been pushed."""
        self.assertEqual(await self.daemon.kill(number), -number)
        puts = [request.path for request in answered(self.daemon) if request.method == "PUT"]
        self.assertNotIn("/v2/hello/manifests/1", puts)

    async def assert_complete(self, name: str) -> None:
        """Pull what has been pushed as ``name``."""
        pushed = await self.image_id(name)
        await self.forget(name)
        await self.engine.docker("pull", name)
        self.assertEqual(await self.image_id(name), pushed)

    async def test_docker_completes_a_push_that_a_crash_cut_off(self) -> None:
        name, pushing = await self.push_in_the_middle()
        await self.end_by(signal.SIGKILL)
        await self.daemon.restart()
        await pushing  # Docker tries again by itself, from the start of the layer
        await self.assert_complete(name)

    async def test_a_stop_waits_for_the_layer_and_docker_completes_the_push(self) -> None:
        name, pushing = await self.push_in_the_middle()
        await self.end_by(signal.SIGTERM)
        patches = {request.status for request in answered(self.daemon) if request.method == "PATCH"}
        self.assertEqual(patches, {202})
        self.assertGreater(stored(self.daemon), CUT)
        self.assertNotIn("Traceback", self.daemon.process.output)
        await self.daemon.restart()
        await pushing
        await self.assert_complete(name)
