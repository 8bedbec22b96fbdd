"""podman, buildah and skopeo against the daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import DOCKER_MANIFEST
from artifactd.oci.names import Digest
from tests.api.described import told
from tests.clients.containers import Containers
from tests.clients.images import build_context, native_architecture
from tests.process import Daemon

SIZES = (0, 1000, 1000 * 1000)


class ContainersTestCase(TestCase):
    daemon: Daemon
    tools: Containers

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.daemon = await Daemon.start(self)
        self.tools = Containers.make(self, self.daemon.address)

    @property
    def image(self) -> str:
        """The name to push by."""
        return f"{self.daemon.address}/team/hello:1"

    async def build(self) -> None:
        """Build ``image``."""
        context = await build_context(Path(self.mktemp()), native_architecture(), "hello", SIZES)
        await self.tools.build(self.image, context)

    async def image_id(self) -> str:
        """The digest of the config of ``image``, which names the digests of all its layers."""
        inspected = await self.tools.run(
            "podman", "image", "inspect", "--format", "{{.Id}}", self.image
        )
        return inspected.out.strip()

    async def forget(self) -> None:
        """Remove all images from the storage."""
        await self.tools.run("buildah", "rmi", "--all", "--force")
        left = await self.tools.run("podman", "image", "ls", "--all", "--quiet")
        self.assertEqual(left.out, "", "the storage still has images")


class PushAndPullTests(ContainersTestCase):
    async def assert_round_trip(self, program: str) -> None:
        """Push an image by ``program``, remove it, pull it, and run it."""
        await self.build()
        pushed = await self.image_id()
        await self.tools.run(program, "push", self.image)
        await self.forget()
        await self.tools.run(program, "pull", self.image)
        self.assertEqual(await self.image_id(), pushed)
        self.assertEqual(await self.tools.say(self.image), "hello")

    async def test_podman_pulls_and_runs_what_it_pushed(self) -> None:
        await self.assert_round_trip("podman")

    async def test_buildah_pulls_and_runs_what_it_pushed(self) -> None:
        await self.assert_round_trip("buildah")

    async def test_an_image_pushed_in_docker_format_is_pulled_and_runs(self) -> None:
        await self.build()
        await self.tools.run("buildah", "push", "--format", "v2s2", self.image)
        manifest = await self.daemon.request("GET", "/v2/team/hello/manifests/1")
        self.assertEqual(manifest.header("Content-Type"), DOCKER_MANIFEST)
        await self.forget()
        await self.tools.run("buildah", "pull", self.image)
        self.assertEqual(await self.tools.say(self.image), "hello")


class IndexTests(ContainersTestCase):
    async def push(self) -> None:
        """Push an index of an image for each of two platforms."""
        await self.tools.run("buildah", "manifest", "create", "both")
        for architecture in ("amd64", "arm64"):
            says = f"hello {architecture}"
            context = await build_context(Path(self.mktemp()), architecture, says, SIZES)
            await self.tools.build(architecture, context, "--platform", f"linux/{architecture}")
            await self.tools.run("buildah", "manifest", "add", "both", architecture)
        await self.tools.run(
            "buildah", "manifest", "push", "--all", "both", f"docker://{self.image}"
        )

    async def test_each_platform_pulls_its_image_of_an_index(self) -> None:
        await self.push()
        for program, architecture in (("podman", "amd64"), ("buildah", "arm64")):
            await self.forget()
            await self.tools.run(program, "pull", "--platform", f"linux/{architecture}", self.image)
            inspected = await self.tools.run(
                *("podman", "image", "inspect", "--format", "{{.Architecture}}", self.image)
            )
            self.assertEqual(inspected.out.strip(), architecture)

    async def test_the_api_tells_the_platforms_of_an_index_and_what_they_hold(self) -> None:
        await self.push()
        (image,) = (await told(self, self.daemon, "GET", "/images"))["images"]
        (tag,) = (await told(self, self.daemon, "GET", f"/images/{image['image']}/tags"))["tags"]
        self.assertEqual({"linux/amd64", "linux/arm64"}, set(tag["platforms"]))
        path = f"/images/{image['image']}/manifests/{tag['tag']}"
        shown = await told(self, self.daemon, "GET", path)
        for each in shown["entries"]:
            below = each["manifest"]
            self.assertEqual([each["platform"]], below["platforms"])
            self.assertEqual("config", below["entries"][0]["role"])
            self.assertIn("layer", {entry["role"] for entry in below["entries"]})

    async def test_the_image_of_the_own_platform_runs(self) -> None:
        await self.push()
        await self.forget()
        await self.tools.run("podman", "pull", self.image)
        self.assertEqual(await self.tools.say(self.image), f"hello {native_architecture()}")


class SkopeoTests(ContainersTestCase):
    async def push(self) -> None:
        """Build and push ``image``."""
        await self.build()
        await self.tools.run("buildah", "push", self.image)

    async def inspect(self, name: str) -> dict[str, Any]:
        """What skopeo says of an image."""
        inspected = await self.tools.run("skopeo", "inspect", f"docker://{name}")
        document = json.loads(inspected.out)
        assert isinstance(document, dict)
        return document

    async def copy(self, source: str, destination: str) -> None:
        """Copy an image, or an index with all of its images, as it is."""
        await self.tools.run("skopeo", "copy", "--all", "--preserve-digests", source, destination)

    async def test_copies_to_a_folder_and_back_keep_every_byte(self) -> None:
        await self.push()
        first, second = (Path(self.mktemp()).absolute() for _ in range(2))
        again = f"{self.daemon.address}/again:1"
        await self.copy(f"docker://{self.image}", f"oci:{first}:1")
        await self.copy(f"oci:{first}:1", f"docker://{again}")
        await self.copy(f"docker://{again}", f"oci:{second}:1")
        self.assertEqual(blobs(first), blobs(second))
        self.assertEqual(len(blobs(first)), 2 + 1 + len(SIZES))  # manifest, config and layers
        for digest, content in blobs(first).items():
            self.assertEqual(str(Digest.of(content)), f"sha256:{digest}")
        digests = [(await self.inspect(name))["Digest"] for name in (self.image, again)]
        self.assertEqual(digests[0], digests[1])

    async def test_it_inspects_an_image(self) -> None:
        await self.push()
        manifest = await self.daemon.request("GET", "/v2/team/hello/manifests/1")
        inspected = await self.inspect(self.image)
        self.assertEqual(inspected["Digest"], str(Digest.of(manifest.body)))
        self.assertEqual(inspected["Architecture"], native_architecture())
        self.assertEqual(inspected["RepoTags"], ["1"])
        layers = [layer["digest"] for layer in json.loads(manifest.body)["layers"]]
        self.assertEqual(inspected["Layers"], layers)

    async def test_it_lists_tags(self) -> None:
        await self.push()
        name = f"docker://{self.daemon.address}/team/hello"
        await self.copy(f"{name}:1", f"{name}:newest")
        listed = json.loads((await self.tools.run("skopeo", "list-tags", name)).out)
        self.assertEqual(listed["Tags"], ["1", "newest"])

    async def test_it_deletes_an_image(self) -> None:
        await self.push()
        await self.tools.run("skopeo", "delete", f"docker://{self.image}")
        inspected = await self.tools.run("skopeo", "inspect", f"docker://{self.image}", check=False)
        self.assertNotEqual(inspected.status, 0)
        self.assertIn("manifest unknown", inspected.err)


def blobs(layout: Path) -> dict[str, bytes]:
    """What lies in an OCI image layout, by the encoded part of its digest."""
    return {path.name: path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}
