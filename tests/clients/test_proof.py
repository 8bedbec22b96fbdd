"""docker, podman and skopeo, where a private image of an upstream wants proof of access."""

from __future__ import annotations

from pathlib import Path

from artifactd.oci.manifest import OCI_MANIFEST
from tests.clients.containers import Containers
from tests.clients.images import (
    config_bytes,
    layer_bytes,
    manifest_bytes,
    native_architecture,
)
from tests.process import Daemon
from tests.programs import DockerEngine
from tests.pull.proving import APP, PASSWORDS, ProofCase

NAME = f"docker.io/{APP}"


class ProofTests(ProofCase):
    tokens = True

    async def daemon(self) -> Daemon:
        layer = layer_bytes("hello", b"this is private")
        config = config_bytes(native_architecture(), layer)
        for blob in (layer, config):
            self.hub.images.add_blob(blob, APP)
        self.hub.images.add_manifest(APP, "2", manifest_bytes(config, layer), OCI_MANIFEST)
        return await Daemon.start(self, toml=self.settings())

    async def test_docker_pulls_what_it_is_logged_in_for(self) -> None:
        engine = await DockerEngine.start(self)
        daemon = await self.daemon()
        image = f"{daemon.address}/{NAME}:2"
        refused = await engine.docker("pull", image, check=False)
        self.assertNotEqual(refused.status, 0)
        for user, served in (("bob", False), ("alice", True)):
            await engine.docker(
                "login", "-u", f"docker.io/{user}", "-p", PASSWORDS[user], daemon.address
            )
            result = await engine.docker("pull", image, check=False)
            self.assertEqual(result.status == 0, served, result.err)
            await engine.docker("logout", daemon.address)
        wrong = await engine.docker(
            "login", "-u", "docker.io/alice", "-p", "wrong", daemon.address, check=False
        )
        self.assertNotEqual(wrong.status, 0)

    async def test_skopeo_and_podman_too(self) -> None:
        daemon = await self.daemon()
        containers = Containers.make(self, daemon.address)
        image = f"docker://{daemon.address}/{NAME}:2"
        for number, (user, served) in enumerate((("bob", False), ("alice", True), ("", False))):
            creds = ["--src-creds", f"docker.io/{user}:{PASSWORDS[user]}"] if user else []
            target = Path(self.mktemp()).absolute() / str(number)
            target.mkdir(parents=True)
            copied = await containers.run(
                "skopeo", "copy", *creds, image, f"dir:{target}", check=False
            )
            self.assertEqual(copied.status == 0, served, copied.err)
        login = ["--username", "docker.io/alice", "--password", PASSWORDS["alice"]]
        await containers.run("podman", "login", *login, daemon.address)
        await containers.run("podman", "pull", image.removeprefix("docker://"))
