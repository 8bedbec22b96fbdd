-- That somebody may have an image of an upstream: docs/access.md, "Proof of access".

-- id is a keyed hash of who, by which credential, and which image; the key is not in here.
CREATE TABLE access_proof (
    id BLOB NOT NULL PRIMARY KEY,
    expires_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX access_proof_expiry ON access_proof (expires_at);
