"""A real registry behind the test's Docker Hub."""

from __future__ import annotations

import json
import os

from twisted.trial.unittest import TestCase

from artifactd.oci.digest import Digest
from artifactd.oci.manifest import OCI_MANIFEST
from tests.upstreams.asking import ask, blob_url, brief, cut_off, pull_manifest, token
from tests.upstreams.faulty import CDN, Truncate
from tests.upstreams.forwarded import Forwarded
from tests.upstreams.hub import Hub
from tests.upstreams.images import Images
from tests.upstreams.peer import DockerRegistry

NAME = "library/app"
SIZE = 1_000_003


class ForwardedTests(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.layer = os.urandom(SIZE)
        registry = await DockerRegistry.start(self)
        images = Images()
        images.add_image(NAME, "1", self.layer)
        self.content = images.manifest_of(NAME, "1")
        document = json.loads(self.content)
        config = await images.blob(NAME, Digest.parse(document["config"]["digest"]))
        assert config is not None
        await registry.push_blob(NAME, await config.read(0, config.size))
        await registry.push_blob(NAME, self.layer)
        for tag in ("1", "2"):
            await registry.push_manifest(NAME, tag, self.content, OCI_MANIFEST)
        self.hub = Hub.start(self, Forwarded.to(self, registry.url))

    async def test_its_manifests_are_served(self) -> None:
        for reference in ("1", str(Digest.of(self.content))):
            answer = await pull_manifest(self.hub, NAME, reference)
            self.assertEqual((answer.status, answer.body), (200, self.content))
            self.assertEqual(answer.header("Content-Type"), OCI_MANIFEST)
        self.assertEqual((await pull_manifest(self.hub, NAME, "absent")).status, 404)

    async def test_its_blobs_are_served(self) -> None:
        url = await blob_url(self.hub, NAME, Digest.of(self.layer))
        whole, part = await ask(url), await ask(url, headers={"Range": "bytes=-300000"})
        self.assertEqual((whole.status, whole.body == self.layer), (200, True))
        self.assertEqual((part.status, part.body == self.layer[-300000:]), (206, True))

    async def test_what_it_does_not_have_is_not_there(self) -> None:
        headers = await token(self.hub, NAME)
        url = f"{self.hub.url}/v2/{NAME}/blobs/{Digest.of(b'absent')}"
        self.assertEqual((await ask(url, headers=headers)).status, 404)
        self.assertEqual((await pull_manifest(self.hub, "library/absent", "1")).status, 401)

    async def test_its_tags_are_listed_and_it_knows_no_referrers(self) -> None:
        headers = await token(self.hub, NAME)
        tags = await ask(f"{self.hub.url}/v2/{NAME}/tags/list?n=1", headers=headers)
        self.assertEqual(json.loads(tags.body)["tags"], ["1"])
        self.assertIn('rel="next"', tags.header("Link") or "")
        url = f"{self.hub.url}/v2/{NAME}/referrers/{Digest.of(self.content)}"
        self.assertEqual((await ask(url, headers=headers)).status, 404)

    async def test_faults_are_the_same(self) -> None:
        url = await blob_url(self.hub, NAME, Digest.of(self.layer))
        self.hub.faults.add(Truncate(after=SIZE // 2), on=CDN)
        body, how = await cut_off(url)
        self.assertEqual((brief(body), how), (brief(self.layer[: SIZE // 2]), "closed"))
