"""A client of a recorded daemon, which remembers what it was told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.trial.unittest import TestCase

from artifactd.daemon.assemble import Assembly
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import Served, image_manifest
from tests.durability.recording import CATALOG, Recording
from tests.durability.replay import DATA, LATER
from tests.process import Answer

LOCAL = '[repository.local]\nkind = "local"\n[default]\npull = ["local"]\n'


@define
class Recorded:
    """
    A daemon whose every step is recorded, from its first start on.

    :ivar base: the folder that the data folder lies in.
    """

    test: TestCase
    base: Path
    toml: str
    recording: Recording = field(factory=Recording)
    served: Served = field(init=False)

    @classmethod
    def prepare(cls, test: TestCase, toml: str = LOCAL) -> Recorded:
        """Nothing is started yet."""
        base = Path(test.mktemp()).absolute()
        base.mkdir(parents=True)
        self = cls(test, base, toml)
        test.addCleanup(self.recording.close)
        self.recording.record_catalog(test, self.data / CATALOG)
        return self

    @classmethod
    def start(cls, test: TestCase, toml: str = LOCAL) -> Recorded:
        """On a fresh data folder."""
        self = cls.prepare(test, toml)
        self.run()
        return self

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.base / DATA

    def run(self) -> None:
        """Let the daemon start."""
        self.served = Served.start(
            self.test,
            self.toml,
            data=self.data,
            files=self.recording,
            gc_rate="0",
            shutdown_timeout="0s",
        )

    async def restart(self) -> None:
        """Let it stop, and start again."""
        await self.served.service.stopService()
        self.served.service.startService()

    @property
    def parts(self) -> Assembly:
        """What it consists of."""
        return self.served.parts

    # -- requests

    async def ask(self, method: str, path: str, status: int, body: bytes | None = None) -> Answer:
        """Ask for what is answered with ``status``."""
        answer = await self.served.request(method, path, body, {"Content-Type": OCI_MANIFEST})
        assert answer.status == status, (method, path, answer)
        return answer

    async def change(
        self,
        keys: dict[str, bytes | None],
        method: str,
        path: str,
        status: int,
        body: bytes | None = None,
    ) -> Answer:
        """:meth:`ask` for a change of what GET of each of ``keys`` answers."""
        for key, content in keys.items():
            self.recording.asked(key, content)
        answer = await self.ask(method, path, status, body)
        for key in keys:
            self.recording.answered(key)
        return answer

    async def push_blob(self, name: str, content: bytes) -> None:
        """In one request."""
        digest = Digest.of(content)
        path = f"/v2/{name}/blobs/uploads/?digest={digest}"
        await self.change({blob_key(name, content): content}, "POST", path, 201, content)

    async def begin(self, name: str) -> str:
        """Open an upload session; its URL, without the offset."""
        answer = await self.ask("POST", f"/v2/{name}/blobs/uploads/", 202)
        session = (answer.header("Location") or "").partition("?")[0]
        self.recording.opened(session)
        return session

    async def finish(self, name: str, session: str, content: bytes, rest: bytes) -> None:
        """Close a session with its last chunk."""
        path = f"{session}?digest={Digest.of(content)}"
        await self.change({blob_key(name, content): content}, "PUT", path, 201, rest)

    async def mount(self, name: str, content: bytes, source: str) -> None:
        """From another image."""
        path = f"/v2/{name}/blobs/uploads/?mount={Digest.of(content)}&from={source}"
        await self.change({blob_key(name, content): content}, "POST", path, 201)

    async def put(self, name: str, tag: str, manifest: bytes) -> None:
        """A manifest under a tag."""
        keys: dict[str, bytes | None] = {
            manifest_key(name, tag): manifest,
            manifest_key(name, str(Digest.of(manifest))): manifest,
        }
        await self.change(keys, "PUT", manifest_key(name, tag), 201, manifest)

    async def push_image(self, name: str, tag: str, *layers: bytes) -> bytes:
        """Of a config and layers; its manifest."""
        config = json.dumps({"tag": tag, "name": name}).encode()
        for blob in (config, *layers):
            await self.push_blob(name, blob)
        manifest = image_manifest(config, *layers)
        await self.put(name, tag, manifest)
        return manifest

    async def delete(self, *keys: str) -> None:
        """Delete the first of ``keys``, with which the others go."""
        await self.change(dict.fromkeys(keys), "DELETE", keys[0], 202)

    async def pull(self, path: str, content: bytes) -> None:
        """What comes from upstream, and may be had again at any time."""
        self.recording.asked(path, content)
        self.recording.answered(path)
        answer = await self.ask("GET", path, 200)
        assert answer.body == content, path

    async def collect(self) -> None:
        """Collect garbage as if long after."""
        collector = self.parts.collector
        now, collector.now = collector.now, lambda: time.time() + LATER
        try:
            await self.served.once_free(collector.run)
        finally:
            collector.now = now


def blob_key(name: str, content: bytes) -> str:
    """The path of a blob."""
    return f"/v2/{name}/blobs/{Digest.of(content)}"


def manifest_key(name: str, reference: Any) -> str:
    """The path of a manifest."""
    return f"/v2/{name}/manifests/{reference}"
