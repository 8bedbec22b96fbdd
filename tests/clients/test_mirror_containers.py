"""podman, skopeo and containerd with the daemon between them and Docker Hub."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import MANIFEST_TYPES
from artifactd.oci.names import Digest
from tests.clients.containerd import Containerd
from tests.clients.containers import Containers
from tests.clients.mirrored import NAME, SAYS, Upstream
from tests.clients.observed import answered
from tests.commands.test_main import artifactd
from tests.process import Daemon
from tests.programs import wait_for
from tests.upstreams.settings import settings_for

HUBS_NAME = f"docker.io/{NAME}"


class MirrorTestCase(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.upstream = await Upstream.start(self)
        # The upstream is asked about a tag each time, so that its absence is noticed.
        self.toml = settings_for(
            self.upstream.hub, freshness="0s", hosts=["docker.io", "registry-1.docker.io"]
        )
        self.daemon = await Daemon.start(self, toml=self.toml)

    async def mirror_config(self, client: str) -> str:
        """What the command prints for ``client``."""
        config = Path(self.mktemp()).absolute()
        config.write_text(self.toml)
        url = f"http://{self.daemon.address}"
        result = await artifactd(
            self, "mirror-config", "--config", str(config), "--url", url, client
        )
        self.assertEqual((result.status, result.err), (0, ""))
        return result.out

    async def assert_asked(self, *starts: str) -> None:
        """The daemon has answered such requests, and all were answered as they wish."""
        await wait_for(
            lambda: all(
                any(each.path.startswith(start) for each in answered(self.daemon))
                for start in starts
            )
        )
        self.assertEqual({each.status for each in answered(self.daemon)}, {200})


class PodmanTests(MirrorTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.forget()

    def forget(self) -> None:
        """Begin with an empty storage."""
        self.tools = Containers.make(self, self.daemon.address)

    async def assert_pulls(self, name: str, *environment: str) -> None:
        """podman pulls the upstream's image by ``name``, which runs."""
        await self.tools.run("env", *environment, "podman", "pull", name)
        inspected = await self.tools.run("podman", "image", "inspect", "--format", "{{.Id}}", name)
        self.assertEqual(inspected.out.strip(), self.upstream.config.encoded)
        self.assertEqual(await self.tools.say(name), SAYS)

    async def test_podman_pulls_by_the_prefix_and_again_when_docker_hub_is_gone(self) -> None:
        for tag in ("latest", "all"):
            await self.assert_pulls(f"{self.daemon.address}/{HUBS_NAME}:{tag}")
            self.forget()
        self.upstream.assert_asked_as_docker_hub_wants(self)
        await self.upstream.stop()
        for tag in ("latest", "all"):
            await self.assert_pulls(f"{self.daemon.address}/{HUBS_NAME}:{tag}")
            self.forget()

    async def test_podman_pulls_docker_hubs_images_as_mirror_config_tells_it(self) -> None:
        file = Path(self.mktemp()).absolute()
        file.write_text(await self.mirror_config("podman"))
        environment = f"CONTAINERS_REGISTRIES_CONF={file}"
        await self.assert_pulls(f"{HUBS_NAME}:latest", environment)
        start = f"/v2/{HUBS_NAME}"
        await self.assert_asked(f"{start}/manifests/latest", f"{start}/blobs/")
        self.forget()
        await self.upstream.stop()
        await self.assert_pulls(f"{HUBS_NAME}:latest", environment)

    async def test_skopeo_copies_an_index_with_all_that_belongs_to_it(self) -> None:
        for number in range(2):
            layout = Path(self.mktemp()).absolute()
            await self.tools.run(
                *("skopeo", "copy", "--all", "--preserve-digests"),
                *(f"docker://{self.daemon.address}/{HUBS_NAME}:all", f"oci:{layout}:1"),
            )
            index = json.loads((layout / "index.json").read_bytes())
            self.assertEqual(index["manifests"][0]["digest"], str(self.upstream.index))
            files = {file.name: file for file in (layout / "blobs/sha256").iterdir()}
            self.assertEqual(len(files), 1 + 2 * 3)  # the index, and two images of three
            for name, file in files.items():
                self.assertEqual(Digest.of(file.read_bytes()).encoded, name)
            if not number:
                await self.upstream.stop()

    async def test_skopeo_lists_the_tags_of_docker_hub(self) -> None:
        name = f"docker://{self.daemon.address}/{HUBS_NAME}"
        listed = json.loads((await self.tools.run("skopeo", "list-tags", name)).out)
        self.assertEqual(listed["Tags"], ["all", "latest"])

    async def test_what_skopeo_copies_to_a_name_of_our_own_is_not_asked_for_upstream(
        self,
    ) -> None:
        source = f"docker://{self.daemon.address}/{HUBS_NAME}:latest"
        own = f"docker://{self.daemon.address}/team/app:1"
        await self.tools.run("skopeo", "copy", "--preserve-digests", source, own)
        self.assertNotIn("team", " ".join(each.path for each in self.upstream.hub.requests))
        await self.upstream.stop()
        inspected = json.loads((await self.tools.run("skopeo", "inspect", own)).out)
        self.assertEqual(inspected["Digest"], str(self.upstream.manifest))

    async def test_skopeo_can_delete_nothing_of_docker_hubs(self) -> None:
        name = f"docker://{self.daemon.address}/{HUBS_NAME}:latest"
        deleted = await self.tools.run("skopeo", "delete", name, check=False)
        self.assertNotEqual(deleted.status, 0)
        self.assertEqual(self.upstream.hub.count("DELETE"), 0)
        inspected = json.loads((await self.tools.run("skopeo", "inspect", name)).out)
        self.assertEqual(inspected["Digest"], str(self.upstream.manifest))


class ContainerdTests(MirrorTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.containerd = await Containerd.start(self)
        self.containerd.configure("docker.io", await self.mirror_config("containerd"))

    async def assert_pulls(self, tag: str, digest: Digest) -> None:
        """containerd pulls the upstream's image by its own name, and unpacks it."""
        name = f"{HUBS_NAME}:{tag}"
        await self.containerd.pull(name)
        listed = await self.containerd.ctr("images", "list", f"name=={name}")
        self.assertIn(f" {digest} ", listed.out)
        checked = await self.containerd.ctr("images", "check", "--snapshotter", "native")
        self.assertRegex(checked.out, rf"{name} .* complete \(2/2\) .* true")

    async def test_it_pulls_docker_hubs_images_as_mirror_config_tells_it(self) -> None:
        await self.assert_pulls("latest", self.upstream.manifest)
        base = f"/v2/{NAME}"
        await self.assert_asked(f"{base}/manifests/latest?ns=docker.io", f"{base}/blobs/")
        asked = [each.path for each in answered(self.daemon) if each.path.startswith(base)]
        self.assertEqual([path for path in asked if not path.endswith("?ns=docker.io")], [])
        self.upstream.assert_asked_as_docker_hub_wants(self)

    async def test_it_pulls_an_image_again_when_docker_hub_is_gone(self) -> None:
        await self.assert_pulls("latest", self.upstream.manifest)
        await self.containerd.ctr("images", "remove", "--sync", f"{HUBS_NAME}:latest")
        left = await self.containerd.ctr("content", "list", "--quiet")
        self.assertEqual(left.out, "", "containerd still has the image")
        await self.upstream.stop()
        await self.assert_pulls("latest", self.upstream.manifest)

    async def test_it_pulls_its_platform_of_an_index(self) -> None:
        await self.containerd.pull(f"{HUBS_NAME}:all")
        listed = await self.containerd.ctr("images", "list", f"name=={HUBS_NAME}:all")
        self.assertIn(f" {self.upstream.index} ", listed.out)
        content = await self.containerd.ctr("content", "list", "--quiet")
        self.assertIn(str(self.upstream.manifest), content.out.split())
        self.assertIn(str(self.upstream.config), content.out.split())


class NamespaceTests(MirrorTestCase):
    """What containerd sends, where there is none."""

    async def test_it_is_asked_step_by_step_for_what_ns_names(self) -> None:
        accept = {"Accept": ", ".join(sorted(MANIFEST_TYPES))}
        base, ns = f"/v2/{NAME}", "?ns=docker.io"
        head = await self.daemon.request("HEAD", f"{base}/manifests/latest{ns}", headers=accept)
        digest = head.header("Docker-Content-Digest")
        self.assertEqual((head.status, digest), (200, str(self.upstream.manifest)))
        self.assertEqual(head.header("OCI-Namespace"), "docker.io")
        got = await self.daemon.request("GET", f"{base}/manifests/{digest}{ns}", headers=accept)
        self.assertEqual(str(Digest.of(got.body)), digest)
        manifest = json.loads(got.body)
        for blob in (manifest["config"], *manifest["layers"]):
            answer = await self.daemon.request("GET", f"{base}/blobs/{blob['digest']}{ns}")
            self.assertEqual((answer.status, len(answer.body)), (200, blob["size"]))
            self.assertEqual(str(Digest.of(answer.body)), blob["digest"])
            self.assertEqual(answer.header("OCI-Namespace"), "docker.io")
        unknown = await self.daemon.request("HEAD", f"{base}/manifests/latest?ns=ghcr.io")
        self.assertEqual(unknown.status, 404)
