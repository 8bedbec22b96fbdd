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
from tests.clients.images import build_context, image, native_architecture
from tests.process import Daemon

SIZES = (0, 1000, 1000 * 1000)


class ContainersTestCase(TestCase):
    daemon: Daemon
    tools: Containers

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.daemon = await Daemon.start(self)
        self.forget()

    def forget(self) -> None:
        """Begin with an empty storage."""
        self.tools = Containers.make(self, self.daemon.address)

    @property
    def image(self) -> str:
        """The name to push by."""
        return f"{self.daemon.address}/team/hello:1"

    async def image_id(self) -> str:
        """The digest of the config of ``image``, which names the digests of all its layers."""
        inspected = await self.tools.run(
            "podman", "image", "inspect", "--format", "{{.Id}}", self.image
        )
        return inspected.out.strip()


class PushAndPullTests(ContainersTestCase):
    async def assert_comes_back(self, program: str, pushed: str, *options: str) -> None:
        """Push ``image``, whose id is ``pushed``, by ``program``, pull it elsewhere, and run it."""
        await self.tools.run(program, "push", *options, self.image)
        self.forget()
        await self.tools.run(program, "pull", self.image)
        self.assertEqual(await self.image_id(), pushed)
        self.assertEqual(await self.tools.say(self.image), "hello")

    async def test_podman_pulls_and_runs_what_it_pushed(self) -> None:
        config, *layers = image("hello", *SIZES)
        await self.tools.load(self.image, config, *layers)
        await self.assert_comes_back("podman", Digest.of(config).encoded)

    async def test_buildah_pulls_and_runs_what_it_built_and_pushed(self) -> None:
        context = await build_context(Path(self.mktemp()), native_architecture(), "hello", SIZES)
        await self.tools.build(self.image, context)
        await self.assert_comes_back("buildah", await self.image_id())

    async def test_an_image_pushed_in_docker_format_is_pulled_and_runs(self) -> None:
        await self.tools.load(self.image, *image("hello"))
        await self.tools.run("buildah", "push", "--format", "v2s2", self.image)
        manifest = await self.daemon.request("GET", "/v2/team/hello/manifests/1")
        self.assertEqual(manifest.header("Content-Type"), DOCKER_MANIFEST)
        self.forget()
        await self.tools.run("buildah", "pull", self.image)
        self.assertEqual(await self.tools.say(self.image), "hello")


class IndexTests(ContainersTestCase):
    async def test_each_platform_has_its_image_of_an_index_and_the_api_tells_of_both(self) -> None:
        for architecture in ("amd64", "arm64"):
            says = f"hello {architecture}"
            context = await build_context(Path(self.mktemp()), architecture, says, [1000])
            options = ("--platform", f"linux/{architecture}", "--manifest", "both")
            await self.tools.build(architecture, context, *options)
        target = f"docker://{self.image}"
        await self.tools.run("buildah", "manifest", "push", "--all", "both", target)
        for program, architecture in (("podman", "amd64"), ("buildah", "arm64")):
            self.forget()
            await self.tools.run(program, "pull", "--platform", f"linux/{architecture}", self.image)
            inspected = await self.tools.run(
                *("podman", "image", "inspect", "--format", "{{.Architecture}}", self.image)
            )
            self.assertEqual(inspected.out.strip(), architecture)
        self.forget()
        await self.tools.run("podman", "pull", self.image)
        self.assertEqual(await self.tools.say(self.image), f"hello {native_architecture()}")
        await self.assert_the_api_tells_of_both()

    async def assert_the_api_tells_of_both(self) -> None:
        """It tells the platforms of the index, and what they hold."""
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


class SkopeoTests(ContainersTestCase):
    async def push(self) -> None:
        """Push ``image``."""
        await self.tools.load(self.image, *image("hello", *SIZES))
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

    async def test_it_inspects_an_image_lists_its_tags_and_deletes_it(self) -> None:
        await self.push()
        manifest = await self.daemon.request("GET", "/v2/team/hello/manifests/1")
        inspected = await self.inspect(self.image)
        self.assertEqual(inspected["Digest"], str(Digest.of(manifest.body)))
        self.assertEqual(inspected["Architecture"], native_architecture())
        self.assertEqual(inspected["RepoTags"], ["1"])
        layers = [layer["digest"] for layer in json.loads(manifest.body)["layers"]]
        self.assertEqual(inspected["Layers"], layers)

        name = f"docker://{self.daemon.address}/team/hello"
        await self.copy(f"{name}:1", f"{name}:newest")
        listed = json.loads((await self.tools.run("skopeo", "list-tags", name)).out)
        self.assertEqual(listed["Tags"], ["1", "newest"])

        await self.tools.run("skopeo", "delete", f"docker://{self.image}")
        inspect = ("skopeo", "inspect", f"docker://{self.image}")
        failed = await self.tools.run(*inspect, check=False)
        self.assertNotEqual(failed.status, 0)
        self.assertIn("manifest unknown", failed.err)


def blobs(layout: Path) -> dict[str, bytes]:
    """What lies in an OCI image layout, by the encoded part of its digest."""
    return {path.name: path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}
