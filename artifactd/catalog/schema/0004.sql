-- When the tag was last pushed, also to the manifest at which it is already; NULL: not since it moved.
ALTER TABLE tag ADD COLUMN pushed_at REAL;
-- When it was last pulled by this name, to an hour; NULL for a tag from an upstream, and if it never was.
ALTER TABLE tag ADD COLUMN pulled_at REAL;
-- When it was last pulled by its digest, to an hour; NULL as in tag.
ALTER TABLE manifest ADD COLUMN pulled_at REAL;
