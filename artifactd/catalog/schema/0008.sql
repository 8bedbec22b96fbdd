-- Sessions of the page at "/" that were ended by logging out: whoever still has the cookie is logged out, too.
CREATE TABLE ended_session (
    id BLOB NOT NULL PRIMARY KEY,
    until REAL NOT NULL  -- when it would have ended by itself
) STRICT, WITHOUT ROWID;

CREATE INDEX ended_session_until ON ended_session (until);
