#!/usr/bin/env python3
"""
How long the operator's lists take in a catalog of many images.

usage: catalog.py [--images 100000] [--tags 10] [--data FOLDER]

Makes a catalog with so many images of so many tags each, by SQL, since pushing them would take
hours: every image has two manifests with two layers of their own and two that other images have
too.  Then it prints for each list the CPU milliseconds of its query and the most memory that the
process has had.  Removes what it wrote.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from hashlib import sha256
from pathlib import Path

from attrs import evolve

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.migrations import migrate
from artifactd.catalog.overview import Overview, TagOrder
from artifactd.catalog.records import ImageSpan
from artifactd.oci.names import ImageName

SHARED = 500  # layers that several images have
MANIFESTS = 2  # of an image
LAYERS = 2  # of a manifest, that no other has
TIMES = 5  # that each list is read
PAGE = 500
CACHE = 4 << 30  # bytes of a catalog that is filled


def digest_of(*names: object) -> str:
    return f"sha256:{sha256(repr(names).encode()).hexdigest()}"


def blobs(images: int) -> Iterator[tuple[int, str, int]]:
    """Ids, digests and sizes: shared layers first, then each image's manifests and layers."""
    number = 0
    for shared in range(SHARED):
        number += 1
        yield number, digest_of("shared", shared), 1_000_000 + shared
    for image in range(1, images + 1):
        for manifest in range(MANIFESTS):
            number += 1
            yield number, digest_of("manifest", image, manifest), 500
            for layer in range(LAYERS):
                number += 1
                yield number, digest_of("layer", image, manifest, layer), 12_345


@contextmanager
def filling(path: Path) -> Iterator[sqlite3.Connection]:
    """
    A connection to the catalog at ``path``, to insert many rows by; no daemon may have it open.

    What triggers would count row by row is counted at the end.
    """
    db = sqlite3.connect(path, isolation_level=None)
    (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = OFF", "synchronous = OFF"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute(f"PRAGMA cache_size = {-CACHE // 1024}")
    db.execute("BEGIN")
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    yield db
    for counted in ("repository_blob", "repository_usage", "repository_count"):
        db.execute(f"DELETE FROM {counted}")
    db.execute(
        "INSERT INTO repository_blob SELECT repository, id, count(*) FROM ("
        " SELECT repository, blob_id AS id FROM blob_link JOIN image ON image.id = image_id"
        " UNION ALL SELECT repository, blob.id FROM manifest JOIN image ON image.id = image_id"
        " JOIN blob USING (digest)) GROUP BY repository, id"
    )
    db.execute(
        "INSERT INTO repository_usage SELECT repository, sum(size) FROM repository_blob"
        " JOIN blob ON blob.id = blob_id GROUP BY repository"
    )
    db.execute(
        "INSERT INTO repository_count SELECT repository, count(*),"
        " sum((SELECT count(*) FROM tag WHERE image_id = image.id)) FROM image GROUP BY repository"
    )
    for _, sql in triggers:
        db.execute(sql)
    db.execute("COMMIT")
    db.execute(f"PRAGMA journal_mode = {mode}")
    db.close()


def fill(path: Path, images: int, tags: int) -> None:
    """Make the catalog, or fill one that has no images."""
    migrate(path, nullcontext)
    with filling(path) as db:
        _insert(db, images, tags)


def _insert(db: sqlite3.Connection, images: int, tags: int) -> None:
    db.execute("INSERT OR IGNORE INTO repository VALUES ('local'), ('docker.io')")
    db.executemany("INSERT INTO blob VALUES (?, ?, ?, 0, NULL)", blobs(images))
    each = 1 + LAYERS
    for image in range(1, images + 1):
        repository, used = ("local", None) if image % 2 else ("docker.io", float(image))
        name = f"team{image % 97}/app{image}"
        db.execute("INSERT INTO image VALUES (?, ?, ?, 1.0)", (image, repository, name))
        first = SHARED + 1 + (image - 1) * MANIFESTS * each
        links = {1 + image % SHARED, 1 + image * 7 % SHARED}
        for manifest in range(MANIFESTS):
            number = (image - 1) * MANIFESTS + manifest + 1
            digest = digest_of("manifest", image, manifest)
            db.execute(
                "INSERT INTO manifest (id, image_id, digest, media_type, annotations, pushed_at,"
                " used_at) VALUES (?, ?, ?, 'application/vnd.oci.image.manifest.v1+json', '{}', ?,"
                " ?)",
                (number, image, digest, float(image), used),
            )
            links.update(first + manifest * each + 1 + layer for layer in range(LAYERS))
            for layer in range(LAYERS):
                held = digest_of("layer", image, manifest, layer)
                db.execute(
                    "INSERT INTO manifest_entry VALUES (?, ?, 'blob', ?)", (image, held, number)
                )
        db.executemany(
            "INSERT INTO blob_link VALUES (?, ?, ?, NULL)", [(image, link, used) for link in links]
        )
        db.executemany(
            "INSERT INTO tag_movement (image_id, tag, actor, at, after)"
            " VALUES (?, ?, 'anne', 1.0, ?)",
            [(image, f"v{t}", digest_of("manifest", image, t % MANIFESTS)) for t in range(tags)],
        )
        db.execute(
            "INSERT INTO deleted_tag VALUES (?, 'old', ?, 'anne', ?)",
            (image, digest_of("manifest", image, 0), float(image)),
        )
        db.executemany(
            "INSERT INTO tag (image_id, name, manifest_id, moved_at) VALUES (?, ?, ?, 1.0)",
            [(image, f"v{t}", (image - 1) * MANIFESTS + t % MANIFESTS + 1) for t in range(tags)],
        )


def measure(name: str, read: Callable[[], object], times: int = TIMES) -> None:
    """Print the quickest of several readings, and the most memory so far."""
    took = []
    for _ in range(times):
        started = time.process_time()
        read()
        took.append(time.process_time() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:44} {1000 * min(took):10.1f} ms {memory:8.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--tags", type=int, default=10)
    parser.add_argument("--data", default=None)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="artifactd-catalog-", dir=arguments.data))
    try:
        path = folder / "catalog.sqlite3"
        fill(path, arguments.images, arguments.tags)
        db = sqlite3.connect(path, isolation_level=None)
        # The methods themselves, without the threads that the daemon reads in.
        between, images = Catalog.images_between.__wrapped__, Overview.images.__wrapped__
        tags, usage = Overview.tags.__wrapped__, Overview.usage.__wrapped__
        deleted, moved = Overview.deleted.__wrapped__, Catalog.tag_movements.__wrapped__
        local, mirrored = (ImageSpan(each, "", "~") for each in ("local", "docker.io"))

        def page(span: ImageSpan, pattern: str = "*", limit: int = PAGE) -> list[ImageName]:
            found, _ = between(None, db, [span], limit, None, pattern)
            images(None, db, found)
            return found

        def whole() -> None:
            for repository in (local, mirrored):
                rest = repository
                while found := page(rest):
                    rest = evolve(rest, after=found[-1].image)

        middle = arguments.images // 2 | 1
        image = ImageName("local", f"team{middle % 97}/app{middle}")
        behind = evolve(local, after=image.image)
        measure("du: all repositories", lambda: usage(None, db))
        measure("ls: a page of 500 images", lambda: page(behind))
        measure("/api/v1/images: a page of 100", lambda: page(behind, limit=100))
        measure("search: a part of the name of one", lambda: page(local, f"*app{middle}*"))
        measure("search: what no name has", lambda: page(local, "*nothing*"))
        for order in TagOrder:
            reading = partial(tags, None, db, image, None, 100, "v*", order)
            measure(f"tags: of one image, by {order}", reading)
        measure("history: of one image", lambda: moved(None, db, image, None, None, 100))
        measure("deleted: of all images", lambda: deleted(None, db, None, None, 100))
        measure("ls: all images, page by page", whole, times=1)
        db.close()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
