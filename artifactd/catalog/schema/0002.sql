-- Pages of an upstream's lists count in the size of the cache from now on.  Those that are here are asked
-- for anew.  With rowids, since a body may be large.
DROP TABLE upstream_page;

CREATE TABLE upstream_page (
    image_id INTEGER NOT NULL REFERENCES image (id),
    repository TEXT NOT NULL,  -- the image's
    key TEXT NOT NULL,  -- names the list and the page
    size INTEGER NOT NULL,  -- bytes of key, next and body
    used_at REAL NOT NULL,
    body BLOB NOT NULL,
    next TEXT,  -- the query of the page behind it: a JSON object of strings
    filtered TEXT,
    fetched_at REAL NOT NULL,
    PRIMARY KEY (image_id, key)
) STRICT;

CREATE INDEX upstream_page_fetched ON upstream_page (image_id, fetched_at);
CREATE INDEX upstream_page_use ON upstream_page (repository, used_at, image_id);
