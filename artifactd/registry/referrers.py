"""The image index that lists referrers: distribution-spec, "Listing Referrers"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from artifactd.catalog.records import ManifestRecord
from artifactd.oci.manifest import OCI_INDEX

# Clients read an index of 4 MiB; the annotations in it may be long.
_INDEX_BYTES = 3 << 20


def referrers_page(records: Sequence[ManifestRecord], limit: int) -> tuple[bytes, str | None]:
    """
    An index of at most ``limit`` of ``records`` and about 3 MiB.

    :return: the JSON, and the digest to go on behind, or ``None`` if all are in it.
    """
    encoded: list[bytes] = []
    size = 0
    for record in records[:limit]:
        descriptor = msgspec.json.encode(_descriptor(record))
        size += len(descriptor)
        if encoded and size > _INDEX_BYTES:
            break
        encoded.append(descriptor)
    last = str(records[len(encoded) - 1].digest) if 0 < len(encoded) < len(records) else None
    return _index(encoded), last


def index_of(descriptors: Sequence[Mapping[str, object]]) -> bytes:
    """An index of ``descriptors`` as they are, in JSON."""
    return _index([msgspec.json.encode(descriptor) for descriptor in descriptors])


def _index(descriptors: Sequence[bytes]) -> bytes:
    index = b'{"schemaVersion":2,"mediaType":"%b","manifests":[%b]}'
    return index % (OCI_INDEX.encode(), b",".join(descriptors))


def _descriptor(record: ManifestRecord) -> dict[str, object]:
    """The annotations MUST be included, the artifactType where there is one."""
    descriptor: dict[str, object] = {
        "mediaType": record.media_type,
        "digest": str(record.digest),
        "size": record.size,
    }
    if record.artifact_type is not None:
        descriptor["artifactType"] = record.artifact_type
    if record.annotations:
        descriptor["annotations"] = dict(record.annotations)
    return descriptor
