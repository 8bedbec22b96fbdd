-- Since when pulls of images that were pushed here are noted; no row: since there is the catalog.  Before,
-- tags may have been pulled all the same.
CREATE TABLE pulls_known (
    since REAL NOT NULL
) STRICT;

INSERT INTO pulls_known (since)
    SELECT (julianday('now') - 2440587.5) * 86400.0 WHERE EXISTS (SELECT 1 FROM tag);
