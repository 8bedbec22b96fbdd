"""Commands of the operator, as processes beside a running daemon."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.api.served import image_manifest
from tests.commands.test_main import artifactd
from tests.crash.test_sweep import listed, stored
from tests.process import Answer, Daemon
from tests.programs import Result, wait_for
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

NAME = "library/app"
OTHER = "library/other"


class MaintenanceTestCase(TestCase):
    """
    A daemon before a hub; commands that work on the same data by the same settings.

    :cvar local: further settings of the local repository.
    """

    local = ""

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.hub = Hub.start(self)
        # What was cached once counts for ever, so that a request means that it is not.
        toml = settings_for(self.hub, freshness="1d", negative_freshness="0s", resumes=1)
        toml = toml.replace('kind = "local"\n', f'kind = "local"\n{self.local}\n')
        self.daemon = await Daemon.start(self, toml=toml)
        self.config = Path(self.mktemp()).absolute()
        self.config.write_text(toml)

    async def command(self, name: str, *argv: str) -> Result:
        """Run one of the commands."""
        options = ("--config", str(self.config))
        return await artifactd(self, name, *options, *argv, ARTIFACTD_DATA=str(self.daemon.data))

    async def do(self, name: str, *argv: str) -> str:
        """What a command says that does what it is told."""
        result = await self.command(name, *argv)
        self.assertEqual(result.status, 0, result.err)
        self.assertNotIn("Traceback", result.err)
        return result.out

    async def assert_refused(self, name: str, *argv: str) -> str:
        """What a command says that can't do it: one line."""
        result = await self.command(name, *argv)
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertRegex(result.err, r"\Aartifactd: [^\n]+\n\Z")
        return result.err

    async def get(self, path: str) -> Answer:
        return await self.daemon.request("GET", f"/v2/{path}")

    async def pull(self, reference: str, name: str = f"docker.io/{NAME}") -> dict[str, bytes]:
        """All blobs of an image, by their digests; all are right."""
        answer = await self.get(f"{name}/manifests/{reference}")
        self.assertEqual(answer.status, 200, answer)
        document = json.loads(answer.body)
        blobs = {}
        for descriptor in (document["config"], *document["layers"]):
            digest = descriptor["digest"]
            blob = await self.get(f"{name}/blobs/{digest}")
            self.assertEqual((blob.status, str(Digest.of(blob.body))), (200, digest))
            blobs[digest] = blob.body
        # Clients need not wait until what they got is durable.
        await wait_for(lambda: not list((self.daemon.data / "fills").iterdir()))
        await wait_for(lambda: blobs.keys() <= listed(self.daemon.data).keys())
        await wait_for(lambda: stored(self.daemon.data) == listed(self.daemon.data))
        return blobs

    async def push(self, name: str, layer: bytes) -> Digest:
        """Push an image of a layer into a local image; the digest of its manifest."""
        for blob in (b"{}", layer):
            await self.daemon.push_blob(name, blob)
        return await self.daemon.push_manifest(name, "1", image_manifest(b"{}", layer))

    def here(self, content: bytes) -> bool:
        """Whether its bytes are stored."""
        return str(Digest.of(content)) in stored(self.daemon.data)
