-- What each image has, counted by triggers as repository_usage is: a list of images sums up nothing.
CREATE TABLE image_count (
    image_id INTEGER PRIMARY KEY,
    tags INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0,  -- bytes of its blobs and manifests, each once
    own INTEGER NOT NULL DEFAULT 0,   -- of those that no other image has
    pushed_at REAL,                   -- when a manifest last came; NULL: none ever has
    pulled_at REAL                    -- when one was last pulled, or fetched; NULL: never
) STRICT;

INSERT INTO image_count
    WITH held (image_id, blob_id) AS (
        SELECT image_id, blob_id FROM blob_link
        UNION SELECT image_id, blob.id FROM manifest JOIN blob USING (digest)
    ), each (image_id, blob_id, images) AS (
        SELECT image_id, blob_id, count(*) OVER (PARTITION BY blob_id) FROM held
    ), sums (image_id, size, own) AS MATERIALIZED (
        SELECT image_id, sum(size), sum(size) FILTER (WHERE images = 1)
        FROM each JOIN blob ON blob.id = blob_id GROUP BY image_id
    )
    SELECT image.id, (SELECT count(*) FROM tag WHERE image_id = image.id),
        coalesce(sums.size, 0), coalesce(sums.own, 0),
        (SELECT max(pushed_at) FROM manifest WHERE image_id = image.id),
        nullif(max(
            coalesce((SELECT max(coalesce(used_at, pulled_at)) FROM manifest WHERE image_id = image.id), 0),
            coalesce((SELECT max(pulled_at) FROM tag WHERE image_id = image.id), 0)), 0)
    FROM image LEFT JOIN sums ON sums.image_id = image.id;

CREATE TRIGGER image_count_added AFTER INSERT ON image BEGIN
    INSERT INTO image_count (image_id) VALUES (NEW.id);
END;

CREATE TRIGGER image_count_removed AFTER DELETE ON image BEGIN
    DELETE FROM image_count WHERE image_id = OLD.id;
END;

CREATE TRIGGER image_tag_added AFTER INSERT ON tag BEGIN
    UPDATE image_count SET tags = tags + 1 WHERE image_id = NEW.image_id;
END;

CREATE TRIGGER image_tag_removed AFTER DELETE ON tag BEGIN
    UPDATE image_count SET tags = tags - 1 WHERE image_id = OLD.image_id;
END;

CREATE TRIGGER image_tag_pulled AFTER UPDATE OF pulled_at ON tag WHEN NEW.pulled_at IS NOT NULL BEGIN
    UPDATE image_count SET pulled_at = max(coalesce(pulled_at, 0), NEW.pulled_at)
        WHERE image_id = NEW.image_id;
END;

-- The images that have a manifest's digest are found by the same index, the first and the last at once.
DROP INDEX manifest_digest;
CREATE INDEX manifest_digest ON manifest (digest, image_id);

-- What the triggers below tell: that an image has the bytes of a blob since now (change is 1), as a blob
-- or as a manifest, or has them no more (-1).  They are the image's own if no other one has them; where
-- one other image has them, they were, or become, the other's own.
CREATE VIEW image_hold (image_id, blob_id, change) AS SELECT 0, 0, 0;

CREATE TRIGGER image_hold_changed INSTEAD OF INSERT ON image_hold BEGIN
    UPDATE image_count
        SET size = size + NEW.change * (SELECT size FROM blob WHERE id = NEW.blob_id)
        WHERE image_id = NEW.image_id;
    UPDATE image_count
        SET own = own + CASE image_id WHEN NEW.image_id THEN NEW.change ELSE -NEW.change END
            * (SELECT size FROM blob WHERE id = NEW.blob_id)
        WHERE image_id = (
            SELECT CASE WHEN min(other) IS NULL THEN NEW.image_id
                WHEN min(other) = max(other) THEN min(other) END
            FROM (
                SELECT min(image_id) AS other FROM blob_link
                    WHERE blob_id = NEW.blob_id AND image_id <> NEW.image_id
                UNION ALL SELECT max(image_id) FROM blob_link
                    WHERE blob_id = NEW.blob_id AND image_id <> NEW.image_id
                UNION ALL SELECT min(image_id) FROM manifest
                    WHERE digest = (SELECT digest FROM blob WHERE id = NEW.blob_id)
                    AND image_id <> NEW.image_id
                UNION ALL SELECT max(image_id) FROM manifest
                    WHERE digest = (SELECT digest FROM blob WHERE id = NEW.blob_id)
                    AND image_id <> NEW.image_id
            )
        );
END;

CREATE TRIGGER image_blob_added AFTER INSERT ON blob_link BEGIN
    INSERT INTO image_hold SELECT NEW.image_id, blob.id, 1 FROM blob
        WHERE blob.id = NEW.blob_id AND NOT EXISTS (
            SELECT 1 FROM manifest WHERE image_id = NEW.image_id AND digest = blob.digest
        );
END;

CREATE TRIGGER image_blob_removed AFTER DELETE ON blob_link BEGIN
    INSERT INTO image_hold SELECT OLD.image_id, blob.id, -1 FROM blob
        WHERE blob.id = OLD.blob_id AND NOT EXISTS (
            SELECT 1 FROM manifest WHERE image_id = OLD.image_id AND digest = blob.digest
        );
END;

CREATE TRIGGER image_manifest_added AFTER INSERT ON manifest BEGIN
    INSERT INTO image_hold SELECT NEW.image_id, blob.id, 1 FROM blob
        WHERE blob.digest = NEW.digest AND NOT EXISTS (
            SELECT 1 FROM blob_link WHERE image_id = NEW.image_id AND blob_id = blob.id
        );
    UPDATE image_count SET pushed_at = max(coalesce(pushed_at, 0), NEW.pushed_at),
        pulled_at = nullif(max(coalesce(pulled_at, 0), coalesce(NEW.used_at, 0)), 0)
        WHERE image_id = NEW.image_id;
END;

CREATE TRIGGER image_manifest_removed AFTER DELETE ON manifest BEGIN
    INSERT INTO image_hold SELECT OLD.image_id, blob.id, -1 FROM blob
        WHERE blob.digest = OLD.digest AND NOT EXISTS (
            SELECT 1 FROM blob_link WHERE image_id = OLD.image_id AND blob_id = blob.id
        );
END;

CREATE TRIGGER image_manifest_used AFTER UPDATE OF pushed_at, used_at, pulled_at ON manifest BEGIN
    UPDATE image_count SET pushed_at = max(coalesce(pushed_at, 0), NEW.pushed_at), pulled_at =
            nullif(max(coalesce(pulled_at, 0), coalesce(NEW.used_at, NEW.pulled_at, 0)), 0)
        WHERE image_id = NEW.image_id;
END;

-- A size that was listed wrongly is corrected wherever it was counted.
CREATE TRIGGER blob_resized AFTER UPDATE OF size ON blob WHEN NEW.size <> OLD.size BEGIN
    UPDATE repository_usage SET size = size + NEW.size - OLD.size
        WHERE EXISTS (SELECT 1 FROM repository_blob
            WHERE repository = repository_usage.repository AND blob_id = NEW.id);
    UPDATE image_count SET size = size + NEW.size - OLD.size, own = own + (NEW.size - OLD.size)
            * ((SELECT count(DISTINCT image_id) FROM (
                SELECT image_id FROM blob_link WHERE blob_id = NEW.id
                UNION ALL SELECT image_id FROM manifest WHERE digest = NEW.digest)) = 1)
        WHERE image_id IN (SELECT image_id FROM blob_link WHERE blob_id = NEW.id
            UNION ALL SELECT image_id FROM manifest WHERE digest = NEW.digest);
END;
