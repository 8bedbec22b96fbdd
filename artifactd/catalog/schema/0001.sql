-- The catalog.  Digests are text, "<algorithm>:<hex>"; times are seconds since the epoch.
-- Every text is compared byte by byte: ASCII order.

PRAGMA application_id = 0x61727464;  -- "artd"

-- The repositories that were configured at the last start.
CREATE TABLE repository (
    name TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- An image has a row from its first blob on, and is known from its first manifest on, for ever.
CREATE TABLE image (
    id INTEGER PRIMARY KEY,
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    known_at REAL,
    UNIQUE (repository, name)
) STRICT;

-- All published bytes, those of manifests too.  The store may drop what is not listed here.
CREATE TABLE blob (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL CHECK (size >= 0),
    created_at REAL NOT NULL
) STRICT;

-- Which image answers for which blob.
CREATE TABLE blob_link (
    image_id INTEGER NOT NULL REFERENCES image (id),
    blob_id INTEGER NOT NULL REFERENCES blob (id),
    PRIMARY KEY (image_id, blob_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX blob_link_blob ON blob_link (blob_id);

CREATE TABLE manifest (
    id INTEGER PRIMARY KEY,
    image_id INTEGER NOT NULL REFERENCES image (id),
    digest TEXT NOT NULL REFERENCES blob (digest),
    media_type TEXT NOT NULL,
    artifact_type TEXT,
    subject TEXT,
    annotations TEXT NOT NULL,  -- a JSON object of strings
    pushed_at REAL NOT NULL,
    UNIQUE (image_id, digest)
) STRICT;

CREATE INDEX manifest_digest ON manifest (digest);
CREATE INDEX manifest_referrer ON manifest (image_id, subject, digest) WHERE subject IS NOT NULL;

-- What a manifest holds, whether it is there or not.  image_id is the manifest's, so that "who
-- holds this here" costs nothing, however many other images hold it.
CREATE TABLE manifest_entry (
    image_id INTEGER NOT NULL,
    digest TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('blob', 'manifest')),
    manifest_id INTEGER NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
    PRIMARY KEY (image_id, digest, kind, manifest_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX manifest_entry_manifest ON manifest_entry (manifest_id);

-- No cascade: a tag goes only with a line in the journal.
CREATE TABLE tag (
    image_id INTEGER NOT NULL REFERENCES image (id),
    name TEXT NOT NULL,
    manifest_id INTEGER NOT NULL REFERENCES manifest (id),
    moved_at REAL NOT NULL,
    PRIMARY KEY (image_id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX tag_manifest ON tag (manifest_id);

-- The journal; it outlives the manifests it names.
CREATE TABLE tag_movement (
    id INTEGER PRIMARY KEY,
    image_id INTEGER NOT NULL REFERENCES image (id),
    tag TEXT NOT NULL,
    actor TEXT NOT NULL,
    at REAL NOT NULL,
    before TEXT,
    after TEXT
) STRICT;

CREATE INDEX tag_movement_tag ON tag_movement (image_id, tag);

-- Upload sessions: of no image yet, since a session alone makes no name known.
CREATE TABLE upload (
    id TEXT NOT NULL PRIMARY KEY,
    repository TEXT NOT NULL,
    image TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    started REAL NOT NULL
) STRICT, WITHOUT ROWID;
