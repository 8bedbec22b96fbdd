"""A data folder of an older schema, and the migrations that a newer release would bring."""

from __future__ import annotations

import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog.migrations import SCHEMA, migrate
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from artifactd.store.folder import DataFolder
from tests.api.served import image_manifest
from tests.catalog.fixture import schema_folder
from tests.durability.recording import CATALOG

LATER = (
    """
    CREATE TABLE pushed (manifest_id INTEGER PRIMARY KEY, at REAL NOT NULL) STRICT;
    INSERT INTO pushed (manifest_id, at) SELECT id, pushed_at FROM manifest;
    ALTER TABLE blob ADD COLUMN seen_at REAL;
    UPDATE blob SET seen_at = created_at;
    """,
    """
    CREATE TRIGGER manifest_pushed AFTER INSERT ON manifest BEGIN
        INSERT INTO pushed (manifest_id, at) VALUES (NEW.id, NEW.pushed_at);
    END;
    """,
)
"""Migrations behind that of this release; the daemon works with the result as well."""


RELEASED = tuple(
    script.read_text("utf-8") for script in sorted(SCHEMA.iterdir(), key=lambda script: script.name)
)
"""The migrations of this release, the first one to version 1."""


def make_version_1(case: SynchronousTestCase, data: Path) -> dict[str, bytes]:
    """
    Make a data folder with an image in it, its catalog of version 1.

    :return: what GET of its paths answers.
    """
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
    migrate(data / CATALOG, nullcontext, schema_folder(case, RELEASED[0]))
    digest = Digest.of(manifest)
    with closing(sqlite3.connect(data / CATALOG)) as db:
        db.execute("INSERT INTO repository VALUES ('local')")
        db.execute("INSERT INTO image VALUES (1, 'local', 'app', 10.0)")
        for number, blob in enumerate(blobs):
            row = (number, str(Digest.of(blob)), len(blob))
            db.execute("INSERT INTO blob (id, digest, size, created_at) VALUES (?, ?, ?, 9.0)", row)
        db.execute("INSERT INTO blob_link (image_id, blob_id) VALUES (1, 0), (1, 1)")
        db.execute(
            "INSERT INTO manifest (id, image_id, digest, media_type, annotations, pushed_at)"
            " VALUES (1, 1, ?, ?, '{}', 10.0)",
            (str(digest), OCI_MANIFEST),
        )
        for blob in (config, layer):
            entry = (str(Digest.of(blob)),)
            db.execute("INSERT INTO manifest_entry VALUES (1, ?, 'blob', 1)", entry)
        db.execute(
            "INSERT INTO tag (image_id, name, manifest_id, moved_at) VALUES (1, 'v1', 1, 10.0)"
        )
        db.commit()
    return {
        "/v2/app/manifests/v1": manifest,
        f"/v2/app/manifests/{digest}": manifest,
        **{f"/v2/app/blobs/{Digest.of(blob)}": blob for blob in (config, layer)},
    }
