"""Manifests parsed without making anybody wait."""

from __future__ import annotations

from artifactd.kit.deferreds import RunInThread
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest, ManifestBounds, parse_manifest

# Above this many bytes a manifest is hashed and parsed in a thread: it takes over a millisecond.
_IN_THREAD = 16 << 10

KEPT = ManifestBounds(nesting=500, entries=0, annotations=0)
"""Of what is here: it was accepted once."""


async def parsed(
    run: RunInThread,
    content: bytes,
    content_type: str | None,
    digest: Digest | None,
    *,
    other_types: bool,
    bounds: ManifestBounds,
) -> Manifest:
    """
    As :func:`artifactd.oci.manifest.parse_manifest`, in a thread if it is large.

    :raises DigestInvalid, ManifestInvalid: as that does.
    """

    def parse() -> Manifest:
        return parse_manifest(content, content_type, digest, other_types=other_types, bounds=bounds)

    return parse() if len(content) <= _IN_THREAD else await run(parse)
