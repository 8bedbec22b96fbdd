-- How many images and tags each repository has, counted by triggers as repository_usage is.
CREATE TABLE repository_count (
    repository TEXT NOT NULL PRIMARY KEY,
    images INTEGER NOT NULL,  -- known ones
    tags INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO repository_count
    SELECT repository, sum(known_at IS NOT NULL),
        sum((SELECT count(*) FROM tag WHERE image_id = image.id))
    FROM image GROUP BY repository;

CREATE TRIGGER image_added AFTER INSERT ON image BEGIN
    INSERT INTO repository_count VALUES (NEW.repository, NEW.known_at IS NOT NULL, 0)
        ON CONFLICT DO UPDATE SET images = images + excluded.images;
END;

CREATE TRIGGER image_known AFTER UPDATE OF known_at ON image BEGIN
    UPDATE repository_count
        SET images = images + (NEW.known_at IS NOT NULL) - (OLD.known_at IS NOT NULL)
        WHERE repository = NEW.repository;
END;

CREATE TRIGGER image_removed AFTER DELETE ON image BEGIN
    UPDATE repository_count SET images = images - (OLD.known_at IS NOT NULL)
        WHERE repository = OLD.repository;
END;

CREATE TRIGGER tag_added AFTER INSERT ON tag BEGIN
    UPDATE repository_count SET tags = tags + 1
        WHERE repository = (SELECT repository FROM image WHERE id = NEW.image_id);
END;

CREATE TRIGGER tag_removed AFTER DELETE ON tag BEGIN
    UPDATE repository_count SET tags = tags - 1
        WHERE repository = (SELECT repository FROM image WHERE id = OLD.image_id);
END;

-- An image's tags by the time, and the journal of all its tags.
CREATE INDEX tag_moved ON tag (image_id, moved_at);
CREATE INDEX tag_movement_image ON tag_movement (image_id);
