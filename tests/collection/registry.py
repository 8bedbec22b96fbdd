"""A whole registry without the web, on a clock of the test's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer

from artifactd.catalog.records import Precondition
from artifactd.daemon.assemble import Assembly, assemble
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest, Reference, Tag
from artifactd.registry.model import BlobWanted
from artifactd.registry.registry import Target
from artifactd.settings.settings import DefaultSettings, LocalSettings, Settings
from artifactd.settings.values import Duration, Untagged
from artifactd.store.blobs import OpenBlob
from tests.collection.clock import SharedClock

LEASE, GRACE, UNTAGGED = 4.0, 6.0, 8.0
"""Seconds."""

KEEPING, SHORT = "local", "short"
"""The repositories; in the one untagged manifests stay."""


def settings(data: Path) -> Settings:
    return Settings(
        data=data,
        threads=4,
        lease=Duration(LEASE),
        grace=Duration(GRACE),
        gc_rate=0,
        repository={
            KEEPING: LocalSettings(other_media_types=True),
            SHORT: LocalSettings(untagged=Untagged(f"{UNTAGGED:.0f}s"), other_media_types=True),
        },
        default=DefaultSettings(push=KEEPING, pull=(KEEPING,)),
    )


@contextmanager
def opened(data: Path, clock: SharedClock, reactor: Any) -> Iterator[Assembly]:
    """To be closed by whoever asks; what fails to open is closed here."""
    with ExitStack() as stack:
        parts = assemble(settings(data), reactor, stack, clock)
        parts.threads.start()
        stack.pop_all()
    yield parts


@implementer(IPushProducer)
@frozen
class Body:
    """The body of a request that is here whole."""

    content: bytes
    awaits_continue: bool = False

    @property
    def length(self) -> int:
        return len(self.content)

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        consumer.registerProducer(self, True)
        consumer.write(self.content)
        consumer.unregisterProducer()
        return succeed(len(self.content))

    def pauseProducing(self) -> None:
        """It has all been taken."""

    resumeProducing = stopProducing = pauseProducing


@frozen
class Client:
    """What a client does with one image; each of these is one request."""

    parts: Assembly
    name: str

    @property
    def target(self) -> Target:
        return self.parts.registry.target(self.name)

    async def has_blob(self, digest: Digest) -> bool:
        """HEAD; :raises BlobUnknown:"""
        await self.target.readable.blob(self.target.image, digest, BlobWanted(head=True))
        return True

    async def blob(self, digest: Digest) -> bytes:
        found = await self.target.readable.blob(self.target.image, digest, BlobWanted())
        assert found.body is not None
        return read(found.body)

    async def upload(self, content: bytes) -> None:
        uploads = self.parts.registry.uploads
        await uploads.push(self.target.pushed, Digest.of(content), Body(content))

    async def upload_in_session(self, content: bytes) -> None:
        uploads, image = self.parts.registry.uploads, self.target.pushed
        session = await uploads.start(image, Algorithm.SHA256)
        await uploads.close(image, session, Digest.of(content), None, Body(content))

    async def mount(self, digest: Digest, source: str | None) -> bool:
        return await self.parts.registry.mount(self.target.pushed, digest, source)

    async def put(self, content: bytes, reference: Reference) -> None:
        await self.parts.registry.put_manifest(
            self.target, reference, [], content, media_type(content), Precondition(), "test"
        )

    async def manifest(self, reference: Reference) -> bytes:
        found = await self.target.readable.manifest(self.target.image, reference)
        return read(await self.target.readable.body(found))

    async def delete(self, reference: Reference) -> None:
        await self.target.local.delete_manifest(self.target.image, reference, "test")

    async def delete_blob(self, digest: Digest) -> None:
        await self.target.local.delete_blob(self.target.image, digest, "test")


def read(body: OpenBlob) -> bytes:
    if body.content is not None:
        return body.content
    assert body.size is not None
    content = os.pread(body.fileno(), body.size, 0)
    body.close()
    return content


# -- what is pushed


def blob(seed: int, number: int) -> bytes:
    return Random(f"{seed} {number}").randbytes(100 + 37 * number)


def descriptor(content: bytes, kind: str = "application/octet-stream") -> dict[str, object]:
    return {"mediaType": kind, "digest": str(Digest.of(content)), "size": len(content)}


def image(config: bytes, layers: list[bytes], salt: int, subject: bytes | None = None) -> bytes:
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(layer) for layer in layers],
        "annotations": {"salt": str(salt)},
    }
    if subject is not None:
        document["subject"] = descriptor(subject, OCI_MANIFEST)
    return json.dumps(document).encode()


def index(children: list[bytes]) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [descriptor(child, media_type(child)) for child in children],
        }
    ).encode()


def media_type(manifest: bytes) -> str:
    kind: str = json.loads(manifest)["mediaType"]
    return kind


def blobs_of(manifest: bytes) -> list[Digest]:
    document = json.loads(manifest)
    held = [document["config"], *document["layers"]] if "layers" in document else []
    return [Digest.parse(each["digest"]) for each in held]


def children_of(manifest: bytes) -> list[Digest]:
    return [Digest.parse(each["digest"]) for each in json.loads(manifest).get("manifests", ())]


def subject_of(manifest: bytes) -> Digest | None:
    subject = json.loads(manifest).get("subject")
    return None if subject is None else Digest.parse(subject["digest"])


def tag(number: int) -> Tag:
    return Tag.parse(f"t{number}")
