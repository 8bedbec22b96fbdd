"""podman, buildah and skopeo, apart from what they keep on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from twisted.trial.unittest import TestCase

from tests.clients.images import manifest_bytes, packed
from tests.programs import Result, require, run

_CONTAINERS = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "{folder}/tmp"
[network]
network_config_dir = "{folder}/network"
"""
_STORAGE = """\
[storage]
driver = "vfs"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""
_REGISTRIES = """\
unqualified-search-registries = []
[[registry]]
location = "{registry}"
insecure = {insecure}
"""
_POLICY = json.dumps({"default": [{"type": "insecureAcceptAnything"}]})


class Containers:
    """
    podman, buildah and skopeo with one storage of their own, empty at first; root only.

    They run in namespaces: whatever they start ends with them, and ``/var/lib``, where they keep
    which registry holds which blob, is the test's.

    :ivar logins: the file where ``login`` keeps what it was told.
    """

    def __init__(
        self, test: TestCase, folder: Path, registry: str, trusted: bytes | None = None
    ) -> None:
        self.logins = folder / "auth.json"
        self._test = test
        self._folder = folder
        self._env = {
            "HOME": str(folder),
            "REGISTRY_AUTH_FILE": str(self.logins),
            "CONTAINERS_CONF": self._write("containers.conf", _CONTAINERS.format(folder=folder)),
            "CONTAINERS_STORAGE_CONF": self._write("storage.conf", _STORAGE.format(folder=folder)),
        }
        self._write(".config/containers/policy.json", _POLICY)
        registries = _REGISTRIES.format(registry=registry, insecure=json.dumps(trusted is None))
        self._write(".config/containers/registries.conf", registries)
        if trusted is not None:
            self._write(f".config/containers/certs.d/{registry}/ca.crt", trusted.decode())
        # Where there is none, podman push --cert-dir fails.
        self.logins.write_text("{}")
        (folder / "var-lib").mkdir()

    @classmethod
    def make(cls, test: TestCase, registry: str, trusted: bytes | None = None) -> Self:
        """
        :param registry: the ``host:port`` that is asked over plain HTTP.
        :param trusted: ask it over TLS instead; the authority, in PEM, that vouches for it.
        :raises SkipTest: as :func:`~tests.programs.require`.
        """
        require("podman", "buildah", "skopeo", "unshare", root=True)
        return cls(test, Path(test.mktemp()).absolute(), registry, trusted)

    async def run(self, *argv: str, stdin: bytes = b"", check: bool = True) -> Result:
        """Run one of them; parameters as of :func:`tests.programs.run`."""
        namespaces = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        script = 'mount --bind "$0" /var/lib && exec "$@"'
        return await run(
            self._test,
            *("unshare", *namespaces, "sh", "-c", script, f"{self._folder}/var-lib", *argv),
            env=self._env,
            stdin=stdin,
            check=check,
        )

    async def build(self, name: str, context: Path, *options: str) -> None:
        """Build an image from ``context``, with more ``options`` to buildah."""
        await self.run("buildah", "build", "--layers", *options, "--tag", name, str(context))

    async def load(self, name: str, config: bytes, *layers: bytes) -> None:
        """Let the storage have an image by ``name``: a tenth of the time that it takes to build."""
        archive = self._folder / "loaded.tar"
        archive.write_bytes(packed(manifest_bytes(config, *layers), config, *layers))
        await self.run("skopeo", "copy", f"oci-archive:{archive}", f"containers-storage:{name}")

    async def say(self, name: str) -> str:
        """What an image of the storage writes when it runs."""
        # By chroot: neither an OCI runtime nor control groups are needed, as podman would.
        made = await self.run("buildah", "from", "--pull-never", name)
        container = made.out.strip()
        said = await self.run("buildah", "run", "--isolation", "chroot", container, "/hello")
        return said.out.strip()

    def _write(self, name: str, text: str) -> str:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)
