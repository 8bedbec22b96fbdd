-- The catalog.  Digests are text, "<algorithm>:<hex>"; times are seconds since the epoch.
-- All text is compared byte by byte: ASCII order.

PRAGMA application_id = 0x61727464;  -- "artd"

-- The repositories that were configured at the last start.
CREATE TABLE repository (
    name TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- An image has a row from its first blob on.  It is known from its first manifest on, also when its
-- last manifest has been deleted.
CREATE TABLE image (
    id INTEGER PRIMARY KEY,
    repository TEXT NOT NULL,
    name TEXT NOT NULL,  -- inside the repository
    known_at REAL,
    UNIQUE (repository, name)
) STRICT;

-- Upload sessions.  They refer to no image, because a session alone makes no row of image.
CREATE TABLE upload (
    id TEXT NOT NULL PRIMARY KEY,
    repository TEXT NOT NULL,
    image TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    started REAL NOT NULL,
    owner TEXT  -- a user or an address whose sessions are limited; NULL where there is no limit
) STRICT, WITHOUT ROWID;

CREATE INDEX upload_owner ON upload (owner) WHERE owner IS NOT NULL;

-- -- blobs

-- All published bytes, those of manifests too.  The store may drop bytes that have no row here.
CREATE TABLE blob (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL CHECK (size >= 0),
    created_at REAL NOT NULL,
    -- When the bytes were found to be gone or wrong.  The rows that refer to them stay, so that it
    -- is known which images have lost them; readers do not find the blob until it is published
    -- again.
    lost_at REAL
) STRICT;

CREATE INDEX blob_lost ON blob (digest) WHERE lost_at IS NOT NULL;

-- Which image holds which blob.
CREATE TABLE blob_link (
    image_id INTEGER NOT NULL REFERENCES image (id),
    blob_id INTEGER NOT NULL REFERENCES blob (id),
    -- When it was last pulled, or fetched from an upstream.  NULL for a blob that was pushed here:
    -- eviction leaves those alone.
    used_at REAL,
    -- Since when no manifest of the image holds the blob: its lease runs from then.  NULL where a
    -- manifest does, and for a blob from an upstream.
    unheld_since REAL,
    PRIMARY KEY (image_id, blob_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX blob_link_blob ON blob_link (blob_id);
CREATE INDEX blob_link_used ON blob_link (used_at, image_id) WHERE used_at IS NOT NULL;
CREATE INDEX blob_link_unheld ON blob_link (unheld_since) WHERE unheld_since IS NOT NULL;

-- -- manifests and tags

CREATE TABLE manifest (
    id INTEGER PRIMARY KEY,
    image_id INTEGER NOT NULL REFERENCES image (id),
    digest TEXT NOT NULL REFERENCES blob (digest),
    media_type TEXT NOT NULL,
    artifact_type TEXT,
    subject TEXT,
    annotations TEXT NOT NULL,  -- a JSON object of strings
    pushed_at REAL NOT NULL,
    used_at REAL,  -- the same as in blob_link
    -- Since when neither a tag nor an index nor an existing subject keeps the manifest in its
    -- image.  NULL where one does, and for a manifest from an upstream.
    free_since REAL,
    UNIQUE (image_id, digest)
) STRICT;

CREATE INDEX manifest_digest ON manifest (digest);
CREATE INDEX manifest_referrer ON manifest (image_id, subject, digest) WHERE subject IS NOT NULL;
CREATE INDEX manifest_used ON manifest (used_at, image_id) WHERE used_at IS NOT NULL;
CREATE INDEX manifest_free ON manifest (image_id, free_since) WHERE free_since IS NOT NULL;

-- The blobs and manifests that a manifest holds, whether they are here or not.  kind is 'manifest' for
-- the manifests that an index lists, and 'blob' for everything else that the document describes, which
-- may be a manifest too.  image_id is the manifest's: so the holders of a digest in one image are found
-- without those in other images.
CREATE TABLE manifest_entry (
    image_id INTEGER NOT NULL,
    digest TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('blob', 'manifest')),
    manifest_id INTEGER NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
    PRIMARY KEY (image_id, digest, kind, manifest_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX manifest_entry_manifest ON manifest_entry (manifest_id);

-- manifest_id has no cascade, because each deleted tag gets a line in the journal.
CREATE TABLE tag (
    image_id INTEGER NOT NULL REFERENCES image (id),
    name TEXT NOT NULL,
    manifest_id INTEGER NOT NULL REFERENCES manifest (id),
    moved_at REAL NOT NULL,
    checked_at REAL,  -- when the upstream last answered for the tag; NULL for a tag pushed here
    candidate TEXT,  -- another digest that the upstream names, and that is not served yet
    candidate_at REAL,  -- since when the upstream names the candidate
    PRIMARY KEY (image_id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX tag_manifest ON tag (manifest_id);

-- The journal of tags; it outlives the manifests that it names.
CREATE TABLE tag_movement (
    id INTEGER PRIMARY KEY,
    image_id INTEGER NOT NULL REFERENCES image (id),
    tag TEXT NOT NULL,
    actor TEXT NOT NULL,
    at REAL NOT NULL,
    before TEXT,  -- a digest; NULL: the tag was absent
    after TEXT  -- a digest; NULL: the tag was deleted
) STRICT;

CREATE INDEX tag_movement_tag ON tag_movement (image_id, tag);

-- -- upstreams

-- Pages of an upstream's lists.  With rowids, since a body may be large.
CREATE TABLE upstream_page (
    image_id INTEGER NOT NULL REFERENCES image (id),
    key TEXT NOT NULL,  -- names the list and the page
    body BLOB NOT NULL,
    next TEXT,  -- the query of the page behind it: a JSON object of strings
    filtered TEXT,
    fetched_at REAL NOT NULL,
    PRIMARY KEY (image_id, key)
) STRICT;

CREATE INDEX upstream_page_fetched ON upstream_page (image_id, fetched_at);

-- Which remote repository has answered for an unprefixed name.
CREATE TABLE origin (
    name TEXT NOT NULL PRIMARY KEY,
    repository TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Proofs that callers may have images of an upstream: docs/access.md, "Proof of access".
CREATE TABLE access_proof (
    id BLOB NOT NULL PRIMARY KEY,  -- a keyed hash of caller, credential and image
    expires_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX access_proof_expiry ON access_proof (expires_at);

-- -- garbage collection

-- Blobs that may not be needed any more, since when.  Whatever deletes a link, a manifest or the
-- record of a deleted one queues the digest here; collection looks whether anything needs it.
CREATE TABLE loose_blob (
    blob_id INTEGER PRIMARY KEY REFERENCES blob (id) ON DELETE CASCADE,
    since REAL NOT NULL
) STRICT;

CREATE INDEX loose_blob_since ON loose_blob (since);

-- Digests whose rows of blob were deleted, and whose bytes may still be in the store.
CREATE TABLE dropped_blob (
    digest TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Deleted manifests as they were.  Their bytes stay as long as the row.
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
    collected INTEGER NOT NULL,  -- 1: by the collection, because nothing kept it
    UNIQUE (image_id, digest)
) STRICT;

CREATE INDEX deleted_manifest_digest ON deleted_manifest (digest);
CREATE INDEX deleted_manifest_at ON deleted_manifest (deleted_at);
CREATE INDEX deleted_manifest_referrer ON deleted_manifest (image_id, subject)
WHERE subject IS NOT NULL;

-- The blobs and manifests that a deleted manifest held.  linked: whether the image held the blob
-- then; such a blob stays too.
CREATE TABLE deleted_entry (
    deleted_id INTEGER NOT NULL REFERENCES deleted_manifest (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('blob', 'manifest')),
    linked INTEGER NOT NULL,
    PRIMARY KEY (deleted_id, digest, kind)
) STRICT, WITHOUT ROWID;

CREATE INDEX deleted_entry_linked ON deleted_entry (digest) WHERE linked = 1;

-- Deleted tags, and the digests that they pointed at.
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

-- -- what each repository holds, counted by triggers, so that a quota needs no query over all rows

-- How often the bytes of a blob or manifest are linked to images of a repository.
CREATE TABLE repository_blob (
    repository TEXT NOT NULL,
    blob_id INTEGER NOT NULL,
    links INTEGER NOT NULL,
    PRIMARY KEY (repository, blob_id)
) STRICT, WITHOUT ROWID;

-- The sum of the sizes of a repository's rows of repository_blob.
CREATE TABLE repository_usage (
    repository TEXT NOT NULL PRIMARY KEY,
    size INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER repository_blob_added AFTER INSERT ON repository_blob BEGIN
    INSERT INTO repository_usage (repository, size)
        SELECT NEW.repository, blob.size FROM blob WHERE blob.id = NEW.blob_id
        ON CONFLICT DO UPDATE SET size = repository_usage.size + excluded.size;
END;

CREATE TRIGGER repository_blob_removed AFTER DELETE ON repository_blob BEGIN
    UPDATE repository_usage
        SET size = size - (SELECT blob.size FROM blob WHERE blob.id = OLD.blob_id)
        WHERE repository = OLD.repository;
END;

CREATE TRIGGER blob_link_added AFTER INSERT ON blob_link BEGIN
    INSERT INTO repository_blob (repository, blob_id, links)
        SELECT image.repository, NEW.blob_id, 1 FROM image WHERE image.id = NEW.image_id
        ON CONFLICT DO UPDATE SET links = links + 1;
END;

CREATE TRIGGER blob_link_removed AFTER DELETE ON blob_link BEGIN
    UPDATE repository_blob SET links = links - 1
        WHERE blob_id = OLD.blob_id
        AND repository = (SELECT repository FROM image WHERE id = OLD.image_id);
    DELETE FROM repository_blob
        WHERE blob_id = OLD.blob_id AND links = 0
        AND repository = (SELECT repository FROM image WHERE id = OLD.image_id);
END;

CREATE TRIGGER manifest_added AFTER INSERT ON manifest BEGIN
    INSERT INTO repository_blob (repository, blob_id, links)
        SELECT image.repository, blob.id, 1 FROM image JOIN blob ON blob.digest = NEW.digest
            WHERE image.id = NEW.image_id
        ON CONFLICT DO UPDATE SET links = links + 1;
END;

CREATE TRIGGER manifest_removed AFTER DELETE ON manifest BEGIN
    UPDATE repository_blob SET links = links - 1
        WHERE blob_id = (SELECT id FROM blob WHERE digest = OLD.digest)
        AND repository = (SELECT repository FROM image WHERE id = OLD.image_id);
    DELETE FROM repository_blob
        WHERE blob_id = (SELECT id FROM blob WHERE digest = OLD.digest) AND links = 0
        AND repository = (SELECT repository FROM image WHERE id = OLD.image_id);
END;
