"""Docker Engine with the daemon as its mirror of Docker Hub, and without."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.clients.images import build_context, native_architecture
from tests.clients.mirrored import NAME, SAYS, Upstream
from tests.clients.observed import answered
from tests.commands.test_main import artifactd
from tests.crash.pulling import MIB, fill_file
from tests.process import Daemon
from tests.programs import DockerEngine, Result, wait_for
from tests.upstreams.faulty import CDN
from tests.upstreams.settings import settings_for

PUSHED = "hello from here"
SIZE = 32 * MIB


class MirrorTestCase(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.upstream = await Upstream.start(self)
        # The upstream is asked about a tag each time, so that its absence is noticed.
        toml = settings_for(self.upstream.hub, freshness="0s")
        self.daemon = await Daemon.start(self, toml=toml)
        url = f"http://{self.daemon.address}"
        printed = await artifactd(self, "mirror-config", "--url", url, "docker")
        (mirror,) = json.loads(printed.out)["registry-mirrors"]
        self.assertEqual(mirror, url)
        self.engine = await DockerEngine.start(self, f"--registry-mirror={mirror}")

    async def image_id(self, name: str) -> str:
        """The digest of the image's config."""
        inspected = await self.engine.docker("image", "inspect", "--format", "{{.Id}}", name)
        return inspected.out.strip()

    async def forget(self, *names: str) -> None:
        """Remove all images from the engine, which have these ``names``."""
        await self.engine.docker("image", "rm", *names)
        left = await self.engine.docker("image", "ls", "--all", "--quiet")
        self.assertEqual(left.out, "", "the engine still has images")

    async def assert_pulls(self, name: str) -> None:
        """It pulls the upstream's image by ``name``, which runs."""
        await self.engine.docker("pull", name)
        self.assertEqual(await self.image_id(name), str(self.upstream.config))
        said = await self.engine.docker("run", "--rm", "--network", "none", name)
        self.assertEqual(said.out, f"{SAYS}\n")

    async def assert_came_through(self, path: str) -> None:
        """All blobs of the image whose API is below ``path`` were answered by the daemon."""
        # The log may lag behind.
        await wait_for(
            lambda: (
                len({each.path for each in answered(self.daemon) if f"{path}blobs/" in each.path})
                == 2
            )
        )
        ours = [each for each in answered(self.daemon) if each.path.startswith(path)]
        self.assertEqual({each.status for each in ours}, {200}, ours)
        self.assertIn(f"{path}manifests/", " ".join(each.path for each in ours))


class PullTests(MirrorTestCase):
    async def test_a_bare_name_is_pulled_through_it_and_again_when_docker_hub_is_gone(
        self,
    ) -> None:
        await self.assert_pulls("hello")
        await self.assert_came_through(f"/v2/{NAME}/")
        self.upstream.assert_asked_as_docker_hub_wants(self)
        await self.forget("hello")
        asked = len(self.upstream.hub.requests)
        await self.upstream.stop()
        await self.assert_pulls("hello")
        self.assertEqual(len(self.upstream.hub.requests), asked)

    async def test_an_index_is_pulled_by_the_mirrors_own_name(self) -> None:
        name = f"{self.daemon.address}/docker.io/{NAME}:all"
        await self.assert_pulls(name)
        await self.assert_came_through(f"/v2/docker.io/{NAME}/")
        digests = await self.engine.docker(
            "image", "inspect", "--format", "{{index .RepoDigests 0}}", name
        )
        self.assertEqual(digests.out.strip().rpartition("@")[2], str(self.upstream.index))
        await self.forget(name)
        await self.upstream.stop()
        await self.assert_pulls(name)

    async def test_a_digest_is_pulled_as_it_was_asked_for(self) -> None:
        await self.assert_pulls(f"hello@{self.upstream.manifest}")
        await self.assert_pulls(f"{self.daemon.address}/docker.io/{NAME}@{self.upstream.manifest}")

    async def test_what_docker_hub_does_not_have_is_said_not_to_be_there(self) -> None:
        name = f"{self.daemon.address}/docker.io/library/absent"
        pulled = await self.engine.docker("pull", name, check=False)
        self.assertEqual(pulled.status, 1)
        self.assertIn("the upstream does not have it, or not for us", pulled.err)


class InterruptionTests(MirrorTestCase):
    async def test_docker_completes_a_pull_that_a_crash_cut_off(self) -> None:
        layer = await self.upstream.add_layer("large", SIZE)
        held = self.upstream.hub.withhold(CDN, SIZE // 2)
        name = f"{self.daemon.address}/docker.io/{NAME}:large"
        pulling = Deferred.fromCoroutine(self.engine.docker("pull", name))
        file = fill_file(self.daemon.data, layer)
        await wait_for(lambda: file.exists() and file.stat().st_size == SIZE // 2)
        await self.daemon.kill()
        await self.daemon.restart()
        held.release()
        await pulling  # Docker tries again by itself
        said = await self.engine.docker("run", "--rm", "--network", "none", name)
        self.assertEqual(said.out, f"{SAYS}\n")
        self.assertLessEqual(self.upstream.hub.bytes_sent, 1.1 * SIZE)


class PushTests(MirrorTestCase):
    async def build(self) -> str:
        """Build an image of our own; its name."""
        context = await build_context(Path(self.mktemp()), native_architecture(), PUSHED, [1000])
        name = f"{self.daemon.address}/team/app:1"
        await self.engine.docker("build", "--tag", name, str(context))
        return name

    async def push(self, name: str, *, check: bool = True) -> Result:
        return await self.engine.docker("push", name, check=check)

    async def test_a_new_image_of_our_own_leaves_no_trace_upstream(self) -> None:
        name = await self.build()
        image_id = await self.image_id(name)
        await self.push(name)
        await self.forget(name)
        await self.engine.docker("pull", name)
        self.assertEqual(await self.image_id(name), image_id)
        self.assertEqual(list(self.upstream.hub.requests), [])

    async def test_a_push_to_what_is_docker_hubs_is_refused_with_the_reason(self) -> None:
        built = await self.build()
        name = f"{self.daemon.address}/docker.io/library/app"
        await self.engine.docker("tag", built, name)
        pushed = await self.push(name, check=False)
        self.assertEqual(pushed.status, 1)
        self.assertIn("unsupported: images of this name come from an upstream", pushed.err)
        await wait_for(lambda: any(each.status == 405 for each in answered(self.daemon)))
        writes = [each for each in answered(self.daemon) if each.method not in ("GET", "HEAD")]
        self.assertEqual({each.status for each in writes}, {405})

    async def test_an_image_pulled_from_upstream_can_be_pushed_under_its_bare_name(self) -> None:
        name = f"{self.daemon.address}/hello"
        await self.assert_pulls(name)
        await self.push(name)
        await self.forget(name)
        asked = len(self.upstream.hub.requests)
        await self.assert_pulls(name)  # our own now, which nobody is asked for
        self.assertEqual(len(self.upstream.hub.requests), asked)

    async def test_so_it_can_when_it_came_by_another_name(self) -> None:
        await self.assert_pulls("hello")
        name = f"{self.daemon.address}/hello"
        await self.engine.docker("tag", "hello", name)
        await self.push(name)
        await self.forget("hello", name)
        await self.upstream.stop()
        await self.assert_pulls(name)

    async def test_a_layer_that_docker_hub_has_goes_into_an_image_of_our_own(self) -> None:
        await self.assert_pulls("hello")
        name = f"{self.daemon.address}/team/hello:1"
        await self.engine.docker("tag", "hello", name)
        await self.push(name)
        self.assertNotIn("team", " ".join(each.path for each in self.upstream.hub.requests))
        await self.forget("hello", name)
        await self.upstream.stop()
        await self.assert_pulls(name)
