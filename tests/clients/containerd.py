"""containerd of the test's own, asked by ctr."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Self

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.programs import Process, Result, require, run

_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/ttrpc.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
"""


class Containerd:
    """A containerd with nothing in it at first; it ends with the test; root only."""

    def __init__(self, test: TestCase, folder: Path) -> None:
        self._test = test
        self._folder = folder

    @classmethod
    async def start(cls, test: TestCase) -> Self:
        """:raises SkipTest: as :func:`~tests.programs.require`."""
        require("containerd", "ctr", root=True)
        # Not test.mktemp(): the path of a socket has room for 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="containerd-", dir="/tmp"))
        test.addCleanup(deferToThread, shutil.rmtree, folder)
        config = folder / "config.toml"
        config.write_text(_CONFIG.format(folder=folder))
        daemon = Process.start(test, "containerd", "--config", str(config), env=os.environ)
        test.addCleanup(daemon.kill, signal.SIGTERM)
        await daemon.matched("containerd successfully booted")
        return cls(test, folder)

    def configure(self, registry: str, hosts: str) -> None:
        """Let it pull what is of ``registry`` as ``hosts``, a hosts.toml, says."""
        file = self._folder / "hosts" / registry / "hosts.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(hosts)

    async def pull(self, name: str) -> Result:
        """Pull an image, by its full name, for this machine."""
        hosts = str(self._folder / "hosts")
        # Unpacked by copying: an overlay may not be had where the tests run.
        options = ("--hosts-dir", hosts, "--snapshotter", "native")
        return await self.ctr("images", "pull", *options, name)

    async def ctr(self, *argv: str) -> Result:
        """Ask it."""
        return await run(self._test, "ctr", "--address", f"{self._folder}/containerd.sock", *argv)
