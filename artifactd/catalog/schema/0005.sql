-- What each repository holds, counted while it changes, so that a quota costs no look at it all; and
-- whose upload sessions are.

-- Which bytes, of blobs and of manifests, are linked to images of a repository, and how often.
CREATE TABLE repository_blob (
    repository TEXT NOT NULL,
    blob_id INTEGER NOT NULL,
    links INTEGER NOT NULL,
    PRIMARY KEY (repository, blob_id)
) STRICT, WITHOUT ROWID;

-- Their sizes together.
CREATE TABLE repository_usage (
    repository TEXT NOT NULL PRIMARY KEY,
    size INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO repository_blob (repository, blob_id, links)
    SELECT repository, blob_id, count(*) FROM (
        SELECT image.repository, blob_link.blob_id
            FROM blob_link JOIN image ON image.id = blob_link.image_id
        UNION ALL
        SELECT image.repository, blob.id
            FROM manifest JOIN image ON image.id = manifest.image_id
            JOIN blob ON blob.digest = manifest.digest
    ) GROUP BY repository, blob_id;

INSERT INTO repository_usage (repository, size)
    SELECT repository, sum(blob.size)
        FROM repository_blob JOIN blob ON blob.id = repository_blob.blob_id
        GROUP BY repository;

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

-- Who has begun it: a user, or an address; NULL for nobody in particular.
ALTER TABLE upload ADD COLUMN owner TEXT;

CREATE INDEX upload_owner ON upload (owner) WHERE owner IS NOT NULL;
