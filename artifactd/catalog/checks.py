"""Checks that the rows of the catalog agree with one another, as SQL."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from artifactd.catalog.images import HELD, KEPT, UNNEEDED
from artifactd.catalog.manifests import HELD_SIZE


@frozen
class Check:
    """
    Finds rows that contradict others.

    :ivar kind: one word.
    :ivar text: the problem, with a place for each value that ``query`` selects beside the name.
    :ivar query: selects the name of each wrong row.
    :ivar mended: statements that correct all wrong rows; ``:now`` is the time.  Empty: none can.
    """

    kind: str
    text: str
    query: str
    mended: Sequence[str] = ()


_IMAGE = "repository || '/' || image.name"
_UNQUEUED = (
    f"{UNNEEDED} AND NOT EXISTS (SELECT 1 FROM loose_blob WHERE loose_blob.blob_id = blob.id)"
)

_ROWS = (
    Check(
        "entry",
        "its blobs and children are recorded for another image",
        f"SELECT {_IMAGE} || '@' || manifest.digest FROM manifest_entry AS entry"
        " CROSS JOIN manifest ON manifest.id = manifest_id"
        " CROSS JOIN image ON image.id = manifest.image_id"
        " WHERE entry.image_id <> manifest.image_id",
        [
            "UPDATE OR REPLACE manifest_entry SET image_id ="
            " (SELECT image_id FROM manifest WHERE id = manifest_id)"
            " WHERE image_id <> (SELECT image_id FROM manifest WHERE id = manifest_id)"
        ],
    ),
    Check(
        "tag",
        "the tag points at a manifest of another image: push it again, or delete it",
        f"SELECT {_IMAGE} || ':' || tag.name FROM tag CROSS JOIN image ON image.id = tag.image_id"
        " CROSS JOIN manifest ON manifest.id = manifest_id"
        " WHERE manifest.image_id <> tag.image_id",
    ),
    Check(
        "lease",
        "its lease is wrong, so that it would be collected too early or never",
        f"SELECT {_IMAGE} || '@' || digest FROM blob_link"
        " CROSS JOIN image ON image.id = image_id CROSS JOIN blob ON blob.id = blob_id"
        f" WHERE used_at IS NULL AND (unheld_since IS NULL) <> {HELD}",
        [
            "UPDATE blob_link SET unheld_since = CASE WHEN unheld_since IS NULL THEN :now END"
            f" WHERE used_at IS NULL AND (unheld_since IS NULL) <> {HELD}"
        ],
    ),
    Check(
        "lease",
        "its lease is wrong, so that it would be collected too early or never",
        f"SELECT {_IMAGE} || '@' || digest FROM manifest CROSS JOIN image ON image.id = image_id"
        f" WHERE used_at IS NULL AND (free_since IS NULL) <> {KEPT}",
        [
            "UPDATE manifest SET orphaned = 0,"
            " free_since = CASE WHEN free_since IS NULL THEN :now END"
            f" WHERE used_at IS NULL AND (free_since IS NULL) <> {KEPT}"
        ],
    ),
    Check(
        "unneeded",
        "nothing needs these bytes, but they are not queued for collection",
        f"SELECT digest FROM blob WHERE {_UNQUEUED}",
        [f"INSERT INTO loose_blob (blob_id, since) SELECT id, :now FROM blob WHERE {_UNQUEUED}"],
    ),
)


# -- what triggers have counted, and a look at all rows.  Each row is looked at by itself, so that
# the memory does not grow with their number.


def _counted(
    table: str, key: str, columns: Sequence[str], text: str, rows: str, *further: str
) -> Check:
    """
    Compare counts with what they count.

    :param rows: SQL that selects the ``name`` of each row of ``table``, its ``key``, and of each of
        ``columns`` what stands there (``kept_…``) and what a look at all rows gives.
    :param further: statements that are run when all rows have been corrected.
    """
    listed, kept = ", ".join(columns), ", ".join(f"coalesce(kept_{each}, 0)" for each in columns)
    wrong = f"FROM ({rows}) WHERE {' OR '.join(f'kept_{each} IS NOT {each}' for each in columns)}"
    corrected = (
        f"INSERT INTO {table} ({key}, {listed}) SELECT {key}, {listed} {wrong}"
        f" ON CONFLICT DO UPDATE SET {', '.join(f'{each} = excluded.{each}' for each in columns)}"
    )
    return Check("count", text, f"SELECT name, {kept}, {listed} {wrong}", [corrected, *further])


_REPOSITORIES = """
    (SELECT repository FROM image UNION SELECT repository FROM {0}) AS its
    LEFT JOIN {0} AS kept ON kept.repository = its.repository
"""
_LINKS = """
    (SELECT count(*) FROM blob_link CROSS JOIN image ON image.id = image_id
        WHERE blob_link.blob_id = its.blob_id AND image.repository = its.repository)
    + (SELECT count(*) FROM manifest CROSS JOIN image ON image.id = image_id
        WHERE manifest.digest = blob.digest AND image.repository = its.repository) AS links
"""
# The bytes of blobs and manifests of ``its`` image for which a condition holds, each once.
_BYTES = """
    (SELECT coalesce(sum(size), 0) FROM blob_link CROSS JOIN blob ON blob.id = blob_id
        WHERE blob_link.image_id = its.id AND {0})
    + (SELECT coalesce(sum(size), 0) FROM manifest CROSS JOIN blob USING (digest)
        WHERE manifest.image_id = its.id AND {0} AND NOT EXISTS (SELECT 1 FROM blob_link
            WHERE blob_link.image_id = its.id AND blob_link.blob_id = blob.id))
"""
_HAS_NO_OTHER = """
    NOT EXISTS (SELECT 1 FROM blob_link AS other
        WHERE other.blob_id = blob.id AND other.image_id <> its.id)
    AND NOT EXISTS (SELECT 1 FROM manifest AS other
        WHERE other.digest = blob.digest AND other.image_id <> its.id)
"""

_COUNTS = (
    _counted(
        "repository_blob",
        "repository, blob_id",
        ["links"],
        "its repository has counted {} links to it, and has {}",
        f"""
        SELECT its.repository || ': ' || coalesce(digest, blob_id) AS name, its.repository,
            its.blob_id, its.links AS kept_links, {_LINKS}
        FROM repository_blob AS its LEFT JOIN blob ON blob.id = its.blob_id
        UNION ALL
        SELECT DISTINCT its.repository || ': ' || digest, its.repository, its.blob_id, 0, {_LINKS}
        FROM (
            SELECT repository, blob_id FROM blob_link CROSS JOIN image ON image.id = image_id
            UNION ALL
            SELECT repository, blob.id FROM manifest CROSS JOIN image ON image.id = image_id
                CROSS JOIN blob USING (digest)
        ) AS its CROSS JOIN blob ON blob.id = its.blob_id
        WHERE NOT EXISTS (SELECT 1 FROM repository_blob AS kept
            WHERE kept.repository = its.repository AND kept.blob_id = its.blob_id)
        """,
        "DELETE FROM repository_blob WHERE links = 0",
    ),
    _counted(
        "repository_usage",
        "repository",
        ["size"],
        "it has counted {} bytes, which its quota is compared with, and has {}",
        f"""
        SELECT its.repository AS name, its.repository, coalesce(kept.size, 0) AS kept_size,
            (SELECT coalesce(sum(blob.size), 0) FROM repository_blob
                CROSS JOIN blob ON blob.id = blob_id
                WHERE repository_blob.repository = its.repository) AS size
        FROM {_REPOSITORIES.format("repository_usage")}
        """,
    ),
    _counted(
        "repository_count",
        "repository",
        ["images", "tags"],
        "it has counted {} images and {} tags, and has {} and {}",
        f"""
        SELECT its.repository AS name, its.repository,
            coalesce(kept.images, 0) AS kept_images, coalesce(kept.tags, 0) AS kept_tags,
            (SELECT count(*) FROM image
                WHERE image.repository = its.repository AND known_at IS NOT NULL) AS images,
            (SELECT count(*) FROM image CROSS JOIN tag ON tag.image_id = image.id
                WHERE image.repository = its.repository) AS tags
        FROM {_REPOSITORIES.format("repository_count")}
        """,
    ),
    _counted(
        "image_count",
        "image_id",
        ["tags", "size", "own"],
        "it has counted {} tags, {} bytes and {} bytes that no other image has,"
        " and has {}, {} and {}",
        f"""
        SELECT its.repository || '/' || its.name AS name, its.id AS image_id,
            kept.tags AS kept_tags, kept.size AS kept_size, kept.own AS kept_own,
            (SELECT count(*) FROM tag WHERE tag.image_id = its.id) AS tags,
            {_BYTES.format("1")} AS size, {_BYTES.format(_HAS_NO_OTHER)} AS own
        FROM image AS its LEFT JOIN image_count AS kept ON kept.image_id = its.id
        """,
    ),
    Check(
        "count",
        "its bytes with all that it holds are recorded as {}, and are {}",
        f"SELECT {_IMAGE} || '@' || its.digest, held_size, {HELD_SIZE}"
        " FROM manifest AS its CROSS JOIN image ON image.id = its.image_id"
        f" WHERE held_size IS NOT NULL AND held_size IS NOT {HELD_SIZE}",
        [
            "UPDATE manifest AS its SET held_size = NULL"
            f" WHERE held_size IS NOT NULL AND held_size IS NOT {HELD_SIZE}"
        ],
    ),
)

CHECKS = _ROWS + _COUNTS
