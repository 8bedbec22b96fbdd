"""The whole daemon, wired as a process of its own, on a free port in the process of the tests."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

from attrs import frozen
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from artifactd.daemon.assemble import Assembly
from artifactd.daemon.service import RegistryService, _Running
from artifactd.kit.shared import SharedMemory
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from artifactd.registry.upkeep.collector import Busy
from artifactd.settings.settings import Settings
from artifactd.store.files import FileOperations
from tests.catalog.fixture import empty_data
from tests.process import Answer, Pushed, request
from tests.programs import reactor
from tests.upstreams.settings import beside_no_upstream

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def descriptor(content: bytes, media_type: str = LAYER_TYPE, **more: object) -> dict[str, Any]:
    """What a manifest says of ``content``."""
    digest = str(more.pop("digest", None) or Digest.of(content))
    return {"mediaType": media_type, "digest": digest, "size": len(content), **more}


def image_manifest(config: bytes, *layers: bytes, **more: object) -> bytes:
    """An OCI image manifest of blobs; ``more`` are further fields."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, CONFIG_TYPE),
        "layers": [descriptor(layer) for layer in layers],
        **more,
    }
    return json.dumps(document).encode()


def image_index(*manifests: bytes, **more: object) -> bytes:
    """An OCI index of image manifests."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(manifest, OCI_MANIFEST) for manifest in manifests],
        **more,
    }
    return json.dumps(document).encode()


@frozen
class Served(Pushed):
    """
    A registry to ask; it ends with the test.

    :ivar data: its data folder.
    """

    service: RegistryService
    data: Path

    @classmethod
    def start(
        cls,
        test: TestCase,
        toml: str = "",
        *,
        data: Path | None = None,
        files: FileOperations | None = None,
        memory: SharedMemory | None = None,
        **settings: str,
    ) -> Self:
        """
        Start one on a fresh data folder, or on ``data``.

        :param toml: its settings file, :func:`beside_no_upstream` unless it says otherwise.
        :param files: what all that changes the data folder goes through.
        :param memory: what it shares with the other processes of its daemon.
        :param settings: as ``ARTIFACTD_<NAME>`` would give them.
        """
        file = Path(test.mktemp())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(beside_no_upstream(toml))
        folder = data or Path(test.mktemp())
        if data is None and files is None:
            empty_data(folder)
        environment = {"LISTEN": "tcp:0:interface=127.0.0.1", "DATA": str(folder)}
        environment |= {name.upper(): value for name, value in settings.items()}
        loaded = Settings.load(file, {f"ARTIFACTD_{k}": v for k, v in environment.items()})
        own = None if memory is None else SharedMemory(memory.descriptor)
        service = RegistryService(loaded, reactor, files, memory=own)
        service.startService()
        started = cls(service, folder)
        test.addCleanup(lambda: Deferred.fromCoroutine(started.stop()))
        return started

    async def stop(self) -> None:
        """End it now."""
        if self.service.running:
            await self.service.stopService()

    @property
    def running(self) -> _Running:
        """What the service has started; it runs."""
        running = self.service._running
        assert running is not None
        return running

    @property
    def parts(self) -> Assembly:
        """What the daemon consists of."""
        return self.running.parts

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self.port_of(0)

    def port_of(self, listener: int) -> int:
        """Where the listener of that number listens on 127.0.0.1."""
        address = self.service.ports[listener].getHost()
        assert isinstance(address, IPv4Address)
        return address.port

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> Answer:
        """Ask for ``path``; with ``chunked`` the body goes by chunked transfer coding."""
        return await request(self.port, method, path, body=body, headers=headers, chunked=chunked)

    async def push_image(self, name: str, tag: str, *layers: bytes, **more: object) -> Digest:
        """Push an image of a config and ``layers``, with ``more`` manifest fields; its digest."""
        config = json.dumps({"tag": tag}).encode()
        for blob in (config, *layers):
            await self.push_blob(name, blob)
        return await self.push_manifest(name, tag, image_manifest(config, *layers, **more))

    async def once_free(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do work of the collector once the round has ended that the daemon begins as it starts."""
        while True:
            try:
                return await work()
            except Busy:
                await deferLater(reactor, 0)

    def files(self) -> list[str]:
        """Every file of the store, relative to the data folder: what a refused request leaves."""
        folders = ("blobs", "uploads", "staging")
        return sorted(
            str(path.relative_to(self.data))
            for folder in folders
            for path in (self.data / folder).rglob("*")
            if path.is_file()
        )
