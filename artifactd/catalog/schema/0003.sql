-- Garbage collection: what nothing holds, since when; and what was deleted, and may come back.

-- Since when no manifest of the image holds the blob: its lease runs from then.  NULL where one
-- does, and for what came from an upstream.
ALTER TABLE blob_link ADD COLUMN unheld_since REAL;

-- Since when neither a tag nor an index nor a subject that is there keeps the manifest in its
-- image.  NULL where one does, and for what came from an upstream.
ALTER TABLE manifest ADD COLUMN free_since REAL;

-- What has been lying about was told to nobody knows whom: its time begins now.
UPDATE blob_link SET unheld_since = (julianday('now') - 2440587.5) * 86400.0
WHERE used_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM manifest_entry
    WHERE manifest_entry.image_id = blob_link.image_id
    AND manifest_entry.digest = (SELECT digest FROM blob WHERE id = blob_link.blob_id)
);

UPDATE manifest SET free_since = (julianday('now') - 2440587.5) * 86400.0
WHERE used_at IS NULL
AND NOT EXISTS (SELECT 1 FROM tag WHERE tag.manifest_id = manifest.id)
AND NOT EXISTS (
    SELECT 1 FROM manifest_entry
    WHERE manifest_entry.image_id = manifest.image_id AND manifest_entry.digest = manifest.digest
)
AND NOT EXISTS (
    SELECT 1 FROM manifest AS kept
    WHERE kept.image_id = manifest.image_id AND kept.digest = manifest.subject
);

CREATE INDEX blob_link_unheld ON blob_link (unheld_since) WHERE unheld_since IS NOT NULL;
CREATE INDEX manifest_free ON manifest (image_id, free_since) WHERE free_since IS NOT NULL;

-- Blobs that may be needed no longer, since when.  Whatever takes a link, a manifest or what was
-- kept of a deleted one away puts the digest here; collecting looks whether anything is left.
CREATE TABLE loose_blob (
    blob_id INTEGER PRIMARY KEY REFERENCES blob (id) ON DELETE CASCADE,
    since REAL NOT NULL
) STRICT;

CREATE INDEX loose_blob_since ON loose_blob (since);

INSERT INTO loose_blob (blob_id, since)
SELECT id, (julianday('now') - 2440587.5) * 86400.0 FROM blob
WHERE NOT EXISTS (SELECT 1 FROM blob_link WHERE blob_link.blob_id = blob.id)
AND NOT EXISTS (SELECT 1 FROM manifest WHERE manifest.digest = blob.digest);

-- Manifests that were deleted, as they were.  Their bytes stay as long as the row.
CREATE TABLE deleted_manifest (
    id INTEGER PRIMARY KEY,
    image_id INTEGER NOT NULL REFERENCES image (id),
    digest TEXT NOT NULL REFERENCES blob (digest),
    media_type TEXT NOT NULL,
    artifact_type TEXT,
    subject TEXT,
    annotations TEXT NOT NULL,
    pushed_at REAL NOT NULL,
    actor TEXT NOT NULL,
    deleted_at REAL NOT NULL,
    collected INTEGER NOT NULL,  -- 1: not by a client, but for want of a tag
    UNIQUE (image_id, digest)
) STRICT;

CREATE INDEX deleted_manifest_digest ON deleted_manifest (digest);
CREATE INDEX deleted_manifest_at ON deleted_manifest (deleted_at);
CREATE INDEX deleted_manifest_referrer ON deleted_manifest (image_id, subject)
WHERE subject IS NOT NULL;

-- What they held; linked tells whether the image had the blob then, which stays too.
CREATE TABLE deleted_entry (
    deleted_id INTEGER NOT NULL REFERENCES deleted_manifest (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('blob', 'manifest')),
    linked INTEGER NOT NULL,
    PRIMARY KEY (deleted_id, digest, kind)
) STRICT, WITHOUT ROWID;

CREATE INDEX deleted_entry_linked ON deleted_entry (digest) WHERE linked = 1;

-- Tags that were deleted, and what they pointed at.
CREATE TABLE deleted_tag (
    image_id INTEGER NOT NULL REFERENCES image (id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    actor TEXT NOT NULL,
    deleted_at REAL NOT NULL,
    PRIMARY KEY (image_id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX deleted_tag_digest ON deleted_tag (image_id, digest);
CREATE INDEX deleted_tag_at ON deleted_tag (deleted_at);

-- Blobs that were deleted from an image.
CREATE TABLE deleted_blob (
    image_id INTEGER NOT NULL REFERENCES image (id),
    digest TEXT NOT NULL REFERENCES blob (digest),
    actor TEXT NOT NULL,
    deleted_at REAL NOT NULL,
    PRIMARY KEY (image_id, digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX deleted_blob_digest ON deleted_blob (digest);
CREATE INDEX deleted_blob_at ON deleted_blob (deleted_at);
