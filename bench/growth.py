#!/usr/bin/env python3
"""
Whether anything becomes slower, or takes more memory, when one image has very many tags.

usage: growth.py [--manifests 1000,1000000] [--without-bytes] [--images 100000] [--data FOLDER]

For each number: has artifactd make an image of one tag, fills its catalog with so many copies of
that, each tag with a manifest of its own, by SQL, since pushing them would take hours, and writes
the bytes of each.  Then a daemon is started and asked, and the commands are run.

Printed are, for each number, the seconds of wall-clock time, of processor time, and the peak
resident memory of:

* the start, until the daemon listens;
* a HEAD of one tag, a page of 100 tags from any tag on, the push of a manifest with a new tag, and
  the deletion of a tag and of a manifest: in milliseconds, the median of several hundred and, of
  the processor time of the daemon, the mean; the memory is the daemon's up to then;
* a collection (``artifactd gc``) after that, which finds the deleted manifests;
* a backup, and a check of all (``artifactd fsck``): these read everything, so their time grows with
  the number; the memory should not.

A manifest takes 1.2 KB of the catalog, a block of the disk for its bytes, and twice that for the
backup.  With ``--without-bytes`` no bytes are written; then of the backup and the check only the
part of the catalog is done: copying it, and the checks that SQL makes.

Then the same daemon's ``_catalog`` is read to its end, 100 images at a time, by a robot that rules
let see a part of so many images.  Stops by itself and removes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

import catalog
from attrs import define, field
from images import MANIFEST, digest_of, manifest_of
from servers import MEGABYTE, Server, artifactd, in_process, private_folder

from artifactd.catalog.migrations import copy_catalog
from artifactd.catalog.repair import RepairCatalog

CONFIG = b"{}"
IMAGE = "bench/app"
ASKED, WRITTEN = 1000, 300  # times that something is read, and written
AT_ONCE = 50_000  # rows of a table that are inserted one after the other
SETTINGS = """\
lease = "1s"
grace = "0"
gc_interval = "24h"
gc_rate = 0
scrub_rate = "0"
"""
RULES = """\
[robot.reader]
secret_hash = "{secret}"

[[access]]
who = ["robot:reader"]
may = ["pull"]
images = ["local/team1*", "local/team*/app*7", "docker.io/team2?/*"]
"""


def manifest(number: int) -> bytes:
    """One of the image's manifests."""
    return manifest_of(CONFIG, annotations={"number": f"{number:010}"})


def tag(number: int) -> str:
    return f"v{number:010}"


@define
class Client:
    """Asks one daemon, on one connection."""

    port: int
    connection: HTTPConnection = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connection = HTTPConnection("127.0.0.1", self.port, timeout=600)

    def ask(
        self, method: str, path: str, body: bytes | None = None, wanted: int = 200, **more: str
    ) -> tuple[Any, bytes]:
        """The headers and the body of the answer, whose status has to be ``wanted``."""
        headers = {"Content-Type": MANIFEST, "Accept": MANIFEST, **more}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status == wanted, (method, path, answer.status, content[:300])
        return answer.headers, content

    def push_first(self) -> None:
        """Push the image with its first tag."""
        path = f"/v2/{IMAGE}/blobs/uploads/?digest={digest_of(CONFIG)}"
        self.ask("POST", path, CONFIG, 201)
        self.push(1)

    def head(self, number: int) -> None:
        self.ask("HEAD", f"/v2/{IMAGE}/manifests/{tag(number)}")

    def page(self, number: int) -> None:
        self.ask("GET", f"/v2/{IMAGE}/tags/list?n=100&last={tag(number)}")

    def push(self, number: int) -> None:
        self.ask("PUT", f"/v2/{IMAGE}/manifests/{tag(number)}", manifest(number), 201)

    def delete_tag(self, number: int) -> None:
        self.ask("DELETE", f"/v2/{IMAGE}/manifests/{tag(number)}", wanted=202)

    def delete_manifest(self, number: int) -> None:
        self.ask("DELETE", f"/v2/{IMAGE}/manifests/{digest_of(manifest(number))}", wanted=202)


# -- filling


def fill(data: Path, count: int, with_bytes: bool) -> None:
    """Let the image have ``count`` tags, of which it has the first."""
    shelves = next(data.glob(f"blobs/sha256/*/{digest_of(manifest(1))[7:]}")).parents[1]
    with catalog.filling(data / "catalog.sqlite3") as db:
        tables = {
            name: _row(db, name, digest_of(manifest(1)))
            for name in ("blob", "manifest", "manifest_entry", "tag", "tag_movement")
        }
        statements = {name: _insertion(name, row) for name, row in tables.items()}
        highest = {
            name: db.execute(f"SELECT max(id) FROM {name}").fetchone()[0]
            for name in ("blob", "manifest", "tag_movement")
        }
        for first in range(2, count + 1, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, count + 1))
            digests = {}
            for number in numbers:
                content = manifest(number)
                digests[number] = digest_of(content)
                if with_bytes:
                    _write(shelves, digests[number][7:], content)
            for name, row in tables.items():
                rows = _copies(name, row, digests, highest)
                db.executemany(statements[name], rows)


def _row(db: sqlite3.Connection, table: str, digest: str) -> dict[str, Any]:
    """The row of the first manifest in a table."""
    where = {
        "blob": "digest = :digest",
        "manifest": "digest = :digest",
        "manifest_entry": "manifest_id = (SELECT id FROM manifest WHERE digest = :digest)",
    }.get(table, "true")
    rows = db.execute(f"SELECT * FROM {table} WHERE {where}", {"digest": digest})
    names = [column for column, *_ in rows.description]
    (row,) = rows
    return dict(zip(names, row, strict=True))


def _insertion(table: str, row: dict[str, Any]) -> str:
    values = ", ".join(f":{name}" for name in row)
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})"


def _copies(
    table: str, row: dict[str, Any], digests: dict[int, str], highest: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """The rows of other manifests in a table: as that of the first, but for what differs."""
    manifests = highest["manifest"]
    for number, digest in digests.items():
        match table:
            case "blob":
                differing = {"id": highest[table] + number, "digest": digest}
            case "manifest":
                annotations = json.dumps({"number": f"{number:010}"})
                differing = {"id": manifests + number, "digest": digest, "annotations": annotations}
            case "manifest_entry":
                differing = {"manifest_id": manifests + number}
            case "tag":
                differing = {"name": tag(number), "manifest_id": manifests + number}
            case _:
                differing = {"id": highest[table] + number, "tag": tag(number), "after": digest}
        yield row | differing


def _write(shelves: Path, encoded: str, content: bytes) -> None:
    shelf = f"{shelves}/{encoded[:2]}"
    try:
        file = os.open(f"{shelf}/{encoded}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    except FileNotFoundError:
        os.mkdir(shelf, 0o700)
        file = os.open(f"{shelf}/{encoded}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    os.write(file, content)
    os.close(file)


# -- measuring


def line(name: str, wall: float, processor: float, memory: float, unit: str = "s") -> None:
    """Print one line of the table."""
    print(f"  {name:34}{wall:10.2f} {unit:2}{processor:10.2f} {unit:2}{memory:8.0f} MB", flush=True)


def asked(server: Server, name: str, ask: Callable[[int], None], numbers: list[int]) -> None:
    """Ask for each of ``numbers``, and print the median, and the processor time of the daemon."""
    took, before = [], server.processor_time
    for number in numbers:
        begun = time.perf_counter()
        ask(number)
        took.append(time.perf_counter() - begun)
    spent = (server.processor_time - before) / len(numbers)
    line(name, statistics.median(took) * 1000, spent * 1000, max(server.peaks) / MEGABYTE, "ms")


def command(folder: Path, name: str, *arguments: str) -> None:
    """Run a command of artifactd, and print what it took."""
    argv = [sys.executable, "-m", "artifactd.commands.main", *arguments]
    environment = {**os.environ, "ARTIFACTD_DATA": str(folder / "data")}
    argv += ["--config", str(folder / "artifactd.toml")]
    begun = time.perf_counter()
    with (folder / "command.log").open("w") as log:
        actions = [(os.POSIX_SPAWN_DUP2, log.fileno(), out) for out in (1, 2)]
        pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
    took = time.perf_counter() - begun
    if status:
        text = (folder / "command.log").read_text()
        raise SystemExit(f"artifactd {' '.join(arguments)}: {text[-2000:]}")
    line(name, took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MEGABYTE)


def one_image(folder: Path, count: int, *, with_bytes: bool) -> None:
    """Everything with so many tags."""
    data = folder / "data"
    with artifactd(folder, SETTINGS) as server:
        Client(server.port).push_first()
    took, _, _ = in_process(fill, data, count, with_bytes)
    size = (data / "catalog.sqlite3").stat().st_size
    print(
        f"{count:,} tags and manifests: a catalog of {size / MEGABYTE:,.0f} MB,"
        f" filled in {took:.0f} s",
        flush=True,
    )
    begun = time.perf_counter()
    with artifactd(folder, SETTINGS) as server:
        took = time.perf_counter() - begun
        line("start", took, server.processor_time, max(server.peaks) / MEGABYTE)
        requests(server, count)
        command(folder, "collection, beside the daemon", "gc")
        if with_bytes:
            backup = folder / "backup"
            command(folder, "backup, beside the daemon", "backup", str(backup))
            shutil.rmtree(backup)
            command(folder, "fsck --no-hash, beside the daemon", "fsck", "--no-hash")
            command(folder, "fsck, beside the daemon", "fsck")
    if not with_bytes:
        path, copy = data / "catalog.sqlite3", folder / "copy.sqlite3"
        alone("backup: the catalog", copy_catalog, path, copy)
        copy.unlink()
        alone("fsck: the catalog", check, path)


def alone(name: str, work: Callable[..., object], *arguments: object) -> None:
    """Do ``work`` in a process of its own, and print what it took."""
    took, spent, memory = in_process(work, *arguments)
    line(name, took, spent, memory / MEGABYTE)


def check(path: Path) -> None:
    """The checks of fsck that SQL makes, without the threads that the command reads in."""
    with closing(sqlite3.connect(path)) as db:
        assert not RepairCatalog.integrity.__wrapped__(None, db)  # type: ignore[attr-defined]
        RepairCatalog.slips.__wrapped__(None, db, 1000)  # type: ignore[attr-defined]


def requests(server: Server, count: int) -> None:
    """Ask the daemon for what grows."""
    client, random = Client(server.port), Random(count)
    some = random.sample(range(2, count), min(count - 2, 2 * WRITTEN))
    asked(server, "HEAD of a tag", client.head, random.choices(range(1, count), k=ASKED))
    asked(server, "page of 100 tags", client.page, random.choices(range(1, count), k=ASKED))
    asked(server, "push of a tag", client.push, list(range(count + 1, count + 1 + WRITTEN)))
    asked(server, "deletion of a tag", client.delete_tag, some[:WRITTEN])
    asked(server, "deletion of a manifest", client.delete_manifest, some[WRITTEN:])


def many_images(folder: Path, count: int) -> None:
    """Read ``_catalog`` of so many images by rules that show a part of them."""
    with artifactd(folder, SETTINGS):
        pass  # it makes the data folder
    in_process(catalog.fill, folder / "data/catalog.sqlite3", count, 2)
    settings = SETTINGS + RULES.format(secret=digest_of(b"secret"))
    with artifactd(folder, settings) as server:
        client, found, took = Client(server.port), 0, []
        login = "Basic " + b64encode(b"robot+reader:secret").decode()
        path: str | None = "/v2/_catalog?n=100"
        before = server.processor_time
        while path:
            begun = time.perf_counter()
            headers, content = client.ask("GET", path, Authorization=login)
            took.append(time.perf_counter() - begun)
            found += len(json.loads(content)["repositories"])
            link = headers["Link"]
            path = link[link.index("<") + 1 : link.index(">")] if link else None
        spent = (server.processor_time - before) / len(took)
        print(f"{count:,} images, of which rules show {found:,}")
        memory = max(server.peaks) / MEGABYTE
        line("_catalog: a page of 100", statistics.median(took) * 1000, spent * 1000, memory, "ms")
        print(f"  the slowest page took {max(took) * 1000:.0f} ms")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--manifests", default="1000,1000000", help="%(default)s")
    parser.add_argument("--without-bytes", action="store_true", help="of the manifests")
    parser.add_argument("--images", type=int, default=100_000, help="0: none (%(default)s)")
    parser.add_argument("--data", type=Path, help="where a private folder is made")
    options = parser.parse_args()
    print(f"  {'':34}{'time':>10}   {'processor':>10}   {'peak':>8}")
    counts = [int(number) for number in options.manifests.split(",") if number]
    for count in counts:
        with private_folder(options.data) as folder:
            one_image(folder, count, with_bytes=not options.without_bytes)
    if options.images:
        with private_folder(options.data) as folder:
            many_images(folder, options.images)


if __name__ == "__main__":
    main()
