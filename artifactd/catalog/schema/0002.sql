-- Images whose home is an upstream.  Their rows are as those of others, but for what follows.

-- When it was last pulled, or came.  What was pushed here has none, and never goes by itself.
ALTER TABLE blob_link ADD COLUMN used_at REAL;
ALTER TABLE manifest ADD COLUMN used_at REAL;

CREATE INDEX blob_link_used ON blob_link (used_at, image_id) WHERE used_at IS NOT NULL;
CREATE INDEX manifest_used ON manifest (used_at, image_id) WHERE used_at IS NOT NULL;

-- When the upstream was last asked, and what it says instead of what is served, since when.
ALTER TABLE tag ADD COLUMN checked_at REAL;
ALTER TABLE tag ADD COLUMN candidate TEXT;
ALTER TABLE tag ADD COLUMN candidate_at REAL;

-- Pages of an upstream's lists.  With rowids, since a body may be large.
CREATE TABLE upstream_page (
    image_id INTEGER NOT NULL REFERENCES image (id),
    key TEXT NOT NULL,
    body BLOB NOT NULL,
    next TEXT,  -- a JSON object of strings
    filtered TEXT,
    fetched_at REAL NOT NULL,
    PRIMARY KEY (image_id, key)
) STRICT;

CREATE INDEX upstream_page_fetched ON upstream_page (image_id, fetched_at);

-- Digests that were taken off the list of blobs, and whose bytes may still be in the store.
CREATE TABLE dropped_blob (
    digest TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Which remote repository has answered for an unprefixed name.
CREATE TABLE origin (
    name TEXT NOT NULL PRIMARY KEY,
    repository TEXT NOT NULL
) STRICT, WITHOUT ROWID;
