-- Damage: what the store had, and has no longer.

-- When its bytes were found to be gone or wrong.  Its rows stay, so that it is known what is lost
-- and to whom; to every reader it is not here until it is published again.
ALTER TABLE blob ADD COLUMN lost_at REAL;

CREATE INDEX blob_lost ON blob (digest) WHERE lost_at IS NOT NULL;
