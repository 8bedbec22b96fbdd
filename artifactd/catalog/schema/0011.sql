-- What was deleted from one image, the newest first, however much there is.
CREATE INDEX deleted_tag_of ON deleted_tag (image_id, deleted_at, name);
CREATE INDEX deleted_manifest_of ON deleted_manifest (image_id, deleted_at, digest);
CREATE INDEX deleted_blob_of ON deleted_blob (image_id, deleted_at, digest);
