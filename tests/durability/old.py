"""A data folder as the first release made it."""

from __future__ import annotations

import sqlite3
from contextlib import closing, nullcontext
from importlib import resources
from pathlib import Path

from artifactd.catalog.migrations import migrate
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.store.folder import DataFolder
from tests.api.served import image_manifest
from tests.durability.recording import CATALOG


def make_version_1(data: Path) -> dict[str, bytes]:
    """Make one with an image in it; what its paths answer."""
    folder = DataFolder.open(data)
    folder.close()
    config, layer = b"{}", b"a layer of old"
    manifest = image_manifest(config, layer)
    blobs = [config, layer, manifest]
    for blob in blobs:
        digest = Digest.of(blob)
        path = data / "blobs" / digest.algorithm / digest.encoded[:2] / digest.encoded
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        path.write_bytes(blob)
        path.chmod(0o444)
    script = resources.files("artifactd.catalog") / "schema" / "0001.sql"
    migrate(data / CATALOG, nullcontext, [script.read_text("utf-8")])
    digest = Digest.of(manifest)
    with closing(sqlite3.connect(data / CATALOG)) as db:
        db.execute("INSERT INTO repository VALUES ('local')")
        db.execute("INSERT INTO image VALUES (1, 'local', 'app', 10.0)")
        for number, blob in enumerate(blobs):
            row = (number, str(Digest.of(blob)), len(blob))
            db.execute("INSERT INTO blob VALUES (?, ?, ?, 9.0)", row)
        db.execute("INSERT INTO blob_link VALUES (1, 0), (1, 1)")
        db.execute(
            "INSERT INTO manifest VALUES (1, 1, ?, ?, NULL, NULL, '{}', 10.0)",
            (str(digest), OCI_MANIFEST),
        )
        for blob in (config, layer):
            entry = (str(Digest.of(blob)),)
            db.execute("INSERT INTO manifest_entry VALUES (1, ?, 'blob', 1)", entry)
        db.execute("INSERT INTO tag VALUES (1, 'v1', 1, 10.0)")
        db.commit()
    return {
        "/v2/app/manifests/v1": manifest,
        f"/v2/app/manifests/{digest}": manifest,
        **{f"/v2/app/blobs/{Digest.of(blob)}": blob for blob in (config, layer)},
    }
