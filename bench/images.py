"""
Digests and image manifests for the scripts beside this one, which push them.

Not a script.
"""

from __future__ import annotations

import hashlib
import json

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest_of(content: bytes) -> str:
    """The digest of ``content``, as the spec writes it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def manifest_of(config: bytes, *layers: bytes, **more: object) -> bytes:
    """An image manifest in JSON; ``more`` are further fields."""
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, config)}
    layered = [described(LAYER, layer) for layer in layers]
    return json.dumps({**document, "layers": layered, **more}).encode()


def described(kind: str, content: bytes) -> dict[str, object]:
    """A descriptor of ``content``, whose media type is ``kind``."""
    return {"mediaType": kind, "digest": digest_of(content), "size": len(content)}
