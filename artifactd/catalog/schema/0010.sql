-- The bytes of a manifest with all that its image has of what it holds, also by way of its children, each
-- once.  NULL: they are not summed up yet.  A push does that, and the collection for what is left.  NULL for
-- a manifest from an upstream, too: layers come and go there.
ALTER TABLE manifest ADD COLUMN held_size INTEGER;

CREATE INDEX manifest_unsized ON manifest (id) WHERE held_size IS NULL AND used_at IS NULL;

-- What the triggers below tell: that an image has a digest now, or has it no more.  So whatever holds it has
-- to be summed up anew.
CREATE VIEW held_part (image_id, digest) AS SELECT 0, '';

CREATE TRIGGER held_part_changed INSTEAD OF INSERT ON held_part BEGIN
    UPDATE manifest SET held_size = NULL WHERE held_size IS NOT NULL AND id IN (
        WITH RECURSIVE above (id, digest) AS (
            SELECT NULL, NEW.digest
            UNION
            SELECT manifest.id, manifest.digest FROM above
                CROSS JOIN manifest_entry AS entry
                    ON entry.image_id = NEW.image_id AND entry.digest = above.digest
                CROSS JOIN manifest ON manifest.id = entry.manifest_id
        ) SELECT id FROM above
    );
END;

CREATE TRIGGER held_blob_added AFTER INSERT ON blob_link BEGIN
    INSERT INTO held_part SELECT NEW.image_id, digest FROM blob WHERE id = NEW.blob_id;
END;

CREATE TRIGGER held_blob_removed AFTER DELETE ON blob_link BEGIN
    INSERT INTO held_part SELECT OLD.image_id, digest FROM blob WHERE id = OLD.blob_id;
END;

CREATE TRIGGER held_manifest_added AFTER INSERT ON manifest BEGIN
    INSERT INTO held_part VALUES (NEW.image_id, NEW.digest);
END;

CREATE TRIGGER held_manifest_removed AFTER DELETE ON manifest BEGIN
    INSERT INTO held_part VALUES (OLD.image_id, OLD.digest);
END;

CREATE TRIGGER held_blob_resized AFTER UPDATE OF size ON blob WHEN NEW.size <> OLD.size BEGIN
    UPDATE manifest SET held_size = NULL WHERE digest = NEW.digest;
    INSERT INTO held_part SELECT image_id, NEW.digest FROM blob_link WHERE blob_id = NEW.id
        UNION SELECT image_id, NEW.digest FROM manifest WHERE digest = NEW.digest;
END;
