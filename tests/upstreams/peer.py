"""Debian's docker-registry, to have something real behind a test's upstream."""

from __future__ import annotations

import signal
from pathlib import Path

from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.process import request
from tests.programs import Process, require

_CONFIG = """\
version: 0.1
log: {{accesslog: {{disabled: true}}, level: info, formatter: text}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:0"}}
"""


class DockerRegistry:
    """
    A docker-registry of the test's own; it ends with the test.

    :ivar port: where it listens on 127.0.0.1.
    """

    def __init__(self, port: int, process: Process) -> None:
        self.port = port
        self._process = process

    @classmethod
    async def start(cls, test: TestCase) -> DockerRegistry:
        """
        Start an empty one.

        :raises SkipTest: as :func:`~tests.programs.require`.
        """
        require("docker-registry")
        folder = Path(test.mktemp()).absolute()
        folder.mkdir(parents=True)
        (folder / "config.yml").write_text(_CONFIG.format(folder=folder))
        process = Process.start(test, "docker-registry", "serve", str(folder / "config.yml"))
        port = await process.matched(r"listening on 127\.0\.0\.1:(\d+)")
        return cls(int(port[1]), process)

    async def stop(self) -> None:
        """End it."""
        await self._process.kill(signal.SIGTERM)

    @property
    def address(self) -> str:
        """``host:port``, as it stands before the name in an image reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    async def push_blob(self, name: str, content: bytes) -> Digest:
        """Let the image ``name`` hold ``content``."""
        digest = Digest.of(content)
        started = await request(self.port, "POST", f"/v2/{name}/blobs/uploads/")
        location = (started.header("Location") or "").removeprefix(self.url)
        headers = {"Content-Type": "application/octet-stream"}
        target = f"{location}&digest={digest}"
        answer = await request(self.port, "PUT", target, body=content, headers=headers)
        assert answer.status == 201, answer
        return digest

    async def push_manifest(self, name: str, tag: str, content: bytes, media_type: str) -> Digest:
        """Put a manifest whose blobs are there."""
        headers = {"Content-Type": media_type}
        target = f"/v2/{name}/manifests/{tag}"
        answer = await request(self.port, "PUT", target, body=content, headers=headers)
        assert answer.status == 201, answer
        return Digest.of(content)
