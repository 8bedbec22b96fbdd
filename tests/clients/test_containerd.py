"""containerd pushes a name for the first time: by ctr, which asks for the manifest before."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.clients.containerd import Containerd
from tests.clients.images import (
    config_bytes,
    layer_bytes,
    manifest_bytes,
    native_architecture,
    packed,
)
from tests.clients.observed import answered
from tests.process import Daemon
from tests.programs import wait_for
from tests.upstreams.faulty import Silence, Status
from tests.upstreams.hub import Hub
from tests.upstreams.settings import UNREACHABLE, settings_for

LAYER = layer_bytes("hello", b"hello")


class FirstPushTests(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        config = config_bytes(native_architecture(), LAYER)
        self.manifest = manifest_bytes(config, LAYER)
        self.containerd = await Containerd.start(self)
        archive = Path(self.mktemp()).absolute()
        archive.write_bytes(packed(self.manifest, config, LAYER))
        await self.containerd.ctr(
            *("images", "import", "--no-unpack", "--all-platforms", "--base-name", "example/hello"),
            str(archive),
        )

    async def assert_pushes(self, upstream: Hub | str) -> None:
        """It pushes what is bare of a registry's name, and is told so by HEAD before."""
        daemon = await Daemon.start(self, toml=settings_for(upstream))
        remote = f"{daemon.address}/hello:1"
        await self.containerd.ctr("images", "push", "--plain-http", remote, "example/hello:1")
        answer = await daemon.request("GET", "/v2/hello/manifests/1")
        self.assertEqual(answer.body, self.manifest)
        await wait_for(lambda: len(asked_of_manifests(daemon)) > 2)
        self.assertEqual(asked_of_manifests(daemon)[:2], [("HEAD", 404), ("PUT", 201)])

    async def test_while_the_upstream_is_absent(self) -> None:
        await self.assert_pushes(UNREACHABLE)

    async def test_while_the_upstream_fails(self) -> None:
        for status in (401, 429, 500):
            hub = Hub.start(self)
            hub.faults.add(Status(status), method="*", times=None)
            await self.assert_pushes(hub)
            self.assertNotEqual(hub.requests, [])

    async def test_while_the_upstream_hangs(self) -> None:
        hub = Hub.start(self)
        hub.faults.add(Silence(), method="*", times=None)
        await self.assert_pushes(hub)
        self.assertNotEqual(hub.requests, [])


def asked_of_manifests(daemon: Daemon) -> list[tuple[str, int]]:
    return [(each.method, each.status) for each in answered(daemon) if "manifests" in each.path]
