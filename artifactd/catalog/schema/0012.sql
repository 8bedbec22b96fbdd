-- A row of upload is a session that an older release has opened; since then, the id of a session says what the
-- row did, and sessions are counted by their files.
DROP INDEX upload_owner;

-- Sessions that were closed or cancelled, by the first 16 bytes of their ids.  The first six of them are the
-- milliseconds since the epoch at which the session was opened.
CREATE TABLE ended_upload (
    id BLOB NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;
