"""Images in memory, for an upstream to serve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest, Reference, Tag
from tests.upstreams.backing import Bytes, Content, StoredManifest

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


class Images:
    """
    A :class:`~tests.upstreams.backing.Backing` that a test fills.

    A blob is served under the names of the images that hold it, and under no other.
    """

    def __init__(self) -> None:
        self._images: dict[str, _Image] = {}
        self._blobs: dict[Digest, Bytes] = {}

    def add_blob(
        self, content: bytes, *names: str, algorithm: Algorithm = Algorithm.SHA256
    ) -> Digest:
        """Let the images ``names`` hold ``content``."""
        digest = Digest.of(content, algorithm)
        self._blobs[digest] = Bytes(content)
        for name in names:
            self._image(name).blobs.add(digest)
        return digest

    def add_image(
        self, name: str, tag: str | None, *layers: bytes, platform: str = "amd64", **more: object
    ) -> Digest:
        """
        Let ``name`` have an image of ``layers`` (any bytes); the digest of its manifest.

        :param tag: what points at it from now on, or ``None``.
        :param more: fields of the manifest, such as ``annotations`` or ``artifactType``; a
            ``subject`` may be a digest of the same name.
        """
        config = json.dumps({"architecture": platform, "os": "linux"}).encode()
        for blob in (config, *layers):
            self.add_blob(blob, name)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(config, _CONFIG),
            "layers": [_descriptor(layer, _LAYER) for layer in layers],
            **more,
        }
        subject = document.get("subject")
        if isinstance(subject, Digest):
            document["subject"] = self._described(name, subject)
        return self.add_manifest(name, tag, json.dumps(document).encode(), OCI_MANIFEST)

    def add_index(self, name: str, tag: str | None, *manifests: Digest, **more: object) -> Digest:
        """Let ``name`` have an index of manifests that it has; the digest of the index."""
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [self._described(name, digest) for digest in manifests],
            **more,
        }
        return self.add_manifest(name, tag, json.dumps(document).encode(), OCI_INDEX)

    def add_manifest(self, name: str, tag: str | None, content: bytes, media_type: str) -> Digest:
        """Let ``name`` have a manifest, whatever it holds; its digest."""
        image, manifest = self._image(name), StoredManifest(content, media_type)
        image.manifests[manifest.digest] = manifest
        if tag is not None:
            image.tags[tag] = manifest.digest
        return manifest.digest

    def manifest_of(self, name: str, reference: str) -> bytes:
        """The bytes of a manifest that is there, by its tag or digest."""
        image = self._images[name]
        return image.manifests[image.tags.get(reference) or Digest.parse(reference)].content

    def remove(self, name: str, tag: str | None = None) -> None:
        """Take an image away, or one of its tags."""
        if tag is None:
            del self._images[name]
        else:
            del self._images[name].tags[tag]

    async def knows(self, name: str) -> bool:
        return name in self._images

    async def manifest(self, name: str, reference: Reference) -> StoredManifest | None:
        image = self._images[name]
        digest = image.tags.get(str(reference)) if isinstance(reference, Tag) else reference
        return None if digest is None else image.manifests.get(digest)

    async def blob(self, name: str, digest: Digest) -> Content | None:
        return self._blobs.get(digest) if digest in self._images[name].blobs else None

    async def tags(self, name: str) -> Sequence[str]:
        return sorted(self._images[name].tags)

    async def referrers(self, name: str, subject: Digest) -> Sequence[Mapping[str, Any]]:
        manifests = self._images[name].manifests
        documents = {digest: json.loads(each.content) for digest, each in manifests.items()}
        return [
            self._described(name, digest)
            | {"artifactType": document.get("artifactType", _CONFIG)}
            | {key: document[key] for key in ("annotations",) if key in document}
            for digest, document in documents.items()
            if document.get("subject", {}).get("digest") == str(subject)
        ]

    def _image(self, name: str) -> _Image:
        return self._images.setdefault(name, _Image())

    def _described(self, name: str, digest: Digest) -> dict[str, Any]:
        manifest = self._images[name].manifests[digest]
        return _descriptor(manifest.content, manifest.media_type)


class _Image:
    def __init__(self) -> None:
        self.manifests: dict[Digest, StoredManifest] = {}
        self.tags: dict[str, Digest] = {}
        self.blobs: set[Digest] = set()


def _descriptor(content: bytes, media_type: str) -> dict[str, Any]:
    """What a manifest says of ``content``."""
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}
