"""Docker Hub as clients of a mirror see it: the test's, in front of a real docker-registry."""

from __future__ import annotations

import json
import os
from typing import Self

from attrs import frozen
from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import descriptor
from tests.clients.images import (
    config_bytes,
    layer_bytes,
    manifest_bytes,
    native_architecture,
    program,
)
from tests.upstreams.faulty import CDN
from tests.upstreams.forwarded import Forwarded
from tests.upstreams.hub import Hub
from tests.upstreams.peer import DockerRegistry

NAME = "library/hello"
SAYS = "hello from upstream"
_ARCHITECTURES = ("amd64", "arm64")


@frozen
class Upstream:
    """
    The test's Docker Hub, with ``library/hello``: tag ``latest`` is the image for this machine,
    tag ``all`` an index of that and the one for another.

    :ivar config: the digest of the config of the image for this machine, by which Docker and
        podman call the image.
    """

    hub: Hub
    registry: DockerRegistry
    index: Digest
    manifest: Digest
    config: Digest

    @classmethod
    async def start(cls, test: TestCase) -> Self:
        """:raises SkipTest: if docker-registry is not installed, or no program can be made."""
        registry = await DockerRegistry.start(test)
        manifests, configs = {}, {}
        for architecture in _ARCHITECTURES:
            layer = layer_bytes("hello", program(architecture, SAYS))
            config = config_bytes(architecture, layer)
            for blob in (config, layer):
                await registry.push_blob(NAME, blob)
            manifests[architecture] = manifest_bytes(config, layer)
            configs[architecture] = Digest.of(config)
        native = native_architecture()
        for architecture in (*_ARCHITECTURES, native):  # the last one keeps the tag
            await registry.push_manifest(NAME, "latest", manifests[architecture], OCI_MANIFEST)
        index = _index(manifests)
        await registry.push_manifest(NAME, "all", index, OCI_INDEX)
        hub = Hub.start(test, Forwarded.to(test, registry.url))
        return cls(hub, registry, Digest.of(index), Digest.of(manifests[native]), configs[native])

    async def add_layer(self, tag: str, size: int) -> Digest:
        """Let ``tag`` be an image with ``size`` bytes more in a second layer; its digest."""
        first = layer_bytes("hello", program(native_architecture(), SAYS))
        large = layer_bytes("large", os.urandom(size))
        config = config_bytes(native_architecture(), first, large)
        for blob in (config, large):
            await self.registry.push_blob(NAME, blob)
        manifest = manifest_bytes(config, first, large)
        await self.registry.push_manifest(NAME, tag, manifest, OCI_MANIFEST)
        return Digest.of(large)

    async def stop(self) -> None:
        """Be gone, both."""
        await self.hub.stop()
        await self.registry.stop()

    def assert_asked_as_docker_hub_wants(self, test: TestCase) -> None:
        """It was asked with a token, and its CDN without."""
        test.assertGreater(self.hub.count("GET", "/token"), 0)
        manifests = self.hub.asked("GET", f"/v2/{NAME}/manifests/*")
        test.assertIn(200, [asked.status for asked in manifests])
        blobs = self.hub.asked("GET", f"/v2/{NAME}/blobs/*")
        test.assertIn(307, [asked.status for asked in blobs])
        data = self.hub.asked("GET", CDN)
        test.assertEqual({asked.status for asked in data}, {200})
        test.assertEqual([asked for asked in data if "authorization" in asked.headers], [])


def _index(manifests: dict[str, bytes]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            descriptor(
                manifest, OCI_MANIFEST, platform={"os": "linux", "architecture": architecture}
            )
            for architecture, manifest in manifests.items()
        ],
    }
    return json.dumps(document).encode()
