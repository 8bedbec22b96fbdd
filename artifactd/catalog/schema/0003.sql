-- 1: an index that was deleted was the last that kept the manifest in its image, or an orphan was.  The
-- collection removes it after a lease, also where untagged manifests stay.
ALTER TABLE manifest ADD COLUMN orphaned INTEGER NOT NULL DEFAULT 0;

CREATE INDEX manifest_orphaned ON manifest (free_since) WHERE orphaned = 1;
