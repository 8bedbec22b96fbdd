"""A daemon keeps what it has cached to the size and the age that its settings say, by itself."""

from __future__ import annotations

from typing import Any

from artifactd.oci.names import Digest
from tests.api.served import Served
from tests.programs import wait_for
from tests.pull.mirrors import HIT, STORED, MirrorCase

LAYERS = {"pinned": b"a layer that stays", "other": b"another one"}


class EvictionTests(MirrorCase):
    def setUp(self) -> None:
        super().setUp()
        for name, layer in LAYERS.items():
            self.hub.images.add_image(f"library/{name}", "latest", layer)

    async def pulled(self) -> Served:
        """A registry that has both images, which were pulled an hour ago, and one of its own."""
        registry = self.mirror()
        await registry.push_image("mine", "latest", b"mine")
        for name, layer in LAYERS.items():
            await registry.request("GET", f"/v2/docker.io/{name}/manifests/latest")
            await registry.request("GET", f"/v2/docker.io/{name}/blobs/{Digest.of(layer)}")
            await self.filled(registry, Digest.of(layer))
        await registry.parts.last_used.write()
        for table in ("blob_link", "manifest"):
            self.execute(registry, f"UPDATE {table} SET used_at = used_at - 3600")
        return registry

    async def assert_only_the_pinned_stays(self, **settings: Any) -> None:
        before = await self.pulled()
        await before.stop()  # while it runs, it is the one that evicts
        registry = self.mirror(before.data, pinned=["library/pinned"], **settings)
        gone = Digest.of(LAYERS["other"]).encoded
        await wait_for(lambda: not any(gone in file for file in registry.files()))
        for name, cache in (("pinned", ("cache", HIT)), ("other", ("remote", STORED))):
            for path in ("manifests/latest", f"blobs/{Digest.of(LAYERS[name])}"):
                answer = await registry.request("GET", f"/v2/docker.io/{name}/{path}")
                self.assert_from(answer, *cache)
        mine = await registry.request("GET", f"/v2/mine/blobs/{Digest.of(b'mine')}")
        self.assertEqual(mine.body, b"mine")
        metrics = await registry.request("GET", "/metrics")
        self.assertIn(b'artifactd_evicted_total{repository="docker.io"} 2.0', metrics.body)

    async def test_what_is_beyond_the_size_goes(self) -> None:
        await self.assert_only_the_pinned_stays(size_cap="1B")

    async def test_what_is_beyond_the_age_goes(self) -> None:
        await self.assert_only_the_pinned_stays(max_age="30m")
