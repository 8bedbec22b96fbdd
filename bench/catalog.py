#!/usr/bin/env python3
"""
What the operator's lists cost in a registry of many images: commands, API and page.

usage: catalog.py [--images 100000] [--tags 10] [--most 100000] [--children 10000] [--rounds 5]
                  [--data FOLDER] [--keep]

Makes a data folder, by SQL, since pushing it all would take hours:

* so many images of so many tags each, in two repositories: every image has two manifests with two
  layers of their own and two that other images have too;
* ``local/big`` with the most tags, each at a manifest of its own whose document is in the store;
* ``local/long`` with ten tags at indexes of so many children.

Then it starts artifactd on the folder and asks it for each list, as an administrator and as a user
who may see eleven of the images, and runs the commands on it.  Printed of each list, of the
quickest of the rounds:

* milliseconds of CPU of the daemon's process, and how many of them are the reactor's thread's;
* KiB of the answer;
* the most memory that the daemon has had until then, in MiB (VmHWM).

Of each command: seconds of CPU and the most memory.  Milliseconds of CPU, and not of the clock, so
that a busy machine prints the same.  Removes what it wrote, unless it is to keep it; then
``--data`` may name it again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urlencode

import bcrypt
from attrs import define, field
from servers import Server, artifactd, exit_on_sigterm, in_process

from artifactd.catalog.manifests import note_size
from artifactd.catalog.migrations import SCHEMA, migrate
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.store.folder import FORMAT, MARKER

SHARED = 500  # layers that several images have
MANIFESTS = 2  # of an image
LAYERS = 2  # of a manifest, that no other has
INDEXES = 10  # of many children
BEGAN = time.time()
CACHE = 4 << 30  # bytes of a catalog that is filled
MEBIBYTE = 1 << 20
USERS = ("admin", "few")
SETTINGS = """
data = "{data}/data"
gc_interval = "365d"
sweep_interval = "365d"
scrub_rate = "0"

[auth]
htpasswd = "{data}/htpasswd"

[[access]]
who = ["user:admin"]
may = ["pull", "push", "delete", "administer"]
images = ["*"]

[[access]]
who = ["user:few"]
may = ["pull"]
images = ["*/app{few}*"]
"""

# -- the data folder


def digest_of(*names: object) -> str:
    return f"sha256:{sha256(repr(names).encode()).hexdigest()}"


@define
class Filling:
    """
    Writes rows as pushes do.

    :ivar blobs: the folder of the store.
    """

    db: sqlite3.Connection
    blobs: Path
    last_blob: int = 0
    last_image: int = 0
    last_manifest: int = 0

    def blob(self, digest: str, size: int) -> tuple[int, str]:
        self.last_blob += 1
        self.db.execute(
            "INSERT INTO blob VALUES (?, ?, ?, 0, NULL)", (self.last_blob, digest, size)
        )
        return self.last_blob, digest

    def stored(self, document: object) -> tuple[int, str]:
        """The bytes of a blob, too."""
        content = json.dumps(document).encode()
        encoded = sha256(content).hexdigest()
        file = self.blobs / "sha256" / encoded[:2] / encoded
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o400)
        return self.blob(f"sha256:{encoded}", len(content))

    def image(self, repository: str, name: str) -> int:
        self.last_image += 1
        row = (self.last_image, repository, name)
        self.db.execute("INSERT INTO image VALUES (?, ?, ?, 1.0)", row)
        return self.last_image

    def link(self, image: int, blobs: Sequence[int], used: float | None) -> None:
        self.db.executemany(
            "INSERT OR IGNORE INTO blob_link VALUES (?, ?, ?, NULL)",
            [(image, blob, used) for blob in blobs],
        )

    def manifest(
        self,
        image: int,
        digest: str,
        held: Sequence[str],
        *,
        kind: str = "blob",
        at: float = 1.0,
        used: float | None = None,
    ) -> int:
        self.last_manifest += 1
        media_type = OCI_MANIFEST if kind == "blob" else OCI_INDEX
        self.db.execute(
            "INSERT INTO manifest (id, image_id, digest, media_type, annotations, pushed_at,"
            " used_at) VALUES (?, ?, ?, ?, '{}', ?, ?)",
            (self.last_manifest, image, digest, media_type, at, used),
        )
        self.db.executemany(
            "INSERT INTO manifest_entry VALUES (?, ?, ?, ?)",
            [(image, each, kind, self.last_manifest) for each in held],
        )
        return self.last_manifest

    def tag(self, image: int, name: str, manifest: int, digest: str, at: float) -> None:
        self.db.execute(
            "INSERT INTO tag (image_id, name, manifest_id, moved_at) VALUES (?, ?, ?, ?)",
            (image, name, manifest, at),
        )
        self.db.execute(
            "INSERT INTO tag_movement (image_id, tag, actor, at, after)"
            " VALUES (?, ?, 'anne', ?, ?)",
            (image, name, at, digest),
        )

    def deleted(self, image: int, name: str, digest: str, at: float) -> None:
        row = (image, name, digest, at)
        self.db.execute("INSERT INTO deleted_tag VALUES (?, ?, ?, 'anne', ?)", row)


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
    for counted in ("repository_blob", "repository_usage", "repository_count", "image_count"):
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
    script = SCHEMA.joinpath("0009.sql").read_text()  # counts the images that it finds
    counting = re.search(r"INSERT INTO image_count\b.*?;\n", script, re.DOTALL)
    assert counting is not None
    db.execute(counting[0])
    for _, sql in triggers:
        db.execute(sql)
    db.execute("COMMIT")
    db.execute(f"PRAGMA journal_mode = {mode}")
    db.close()


def fill(path: Path, images: int, tags: int) -> None:
    """Make a catalog of many images, or fill one that has none."""
    migrate(path, nullcontext)
    with filling(path) as db:
        _images(Filling(db, path.parent / "blobs"), images, tags)


def fill_all(data: Path, images: int, tags: int, most: int, children: int) -> None:
    """Make a data folder with the two large images, too."""
    data.mkdir(mode=0o700)
    (data / MARKER).write_text(FORMAT)
    path = data / "catalog.sqlite3"
    migrate(path, nullcontext)
    with filling(path) as db:
        rows = Filling(db, data / "blobs")
        _images(rows, images, tags)
        _big(rows, most)
        _long(rows, children)
        for (manifest,) in db.execute("SELECT id FROM manifest WHERE used_at IS NULL").fetchall():
            note_size(db, manifest)


def _images(filling: Filling, images: int, tags: int) -> None:
    filling.db.execute("INSERT OR IGNORE INTO repository VALUES ('local'), ('docker.io')")
    shared = [filling.blob(digest_of("shared", n), 1_000_000 + n)[0] for n in range(SHARED)]
    for number in range(1, images + 1):
        _image(filling, number, tags, {shared[number % SHARED], shared[number * 7 % SHARED]})


def named(number: int) -> str:
    return f"team{number % 97}/app{number}"


def _image(filling: Filling, number: int, tags: int, shared: set[int]) -> None:
    repository, used = ("local", None) if number % 2 else ("docker.io", float(number))
    image = filling.image(repository, named(number))
    held = []
    for each in range(MANIFESTS):
        _, digest = filling.blob(digest_of("manifest", number, each), 500)
        layers = [filling.blob(digest_of("layer", digest, n), 12_345) for n in range(LAYERS)]
        filling.link(image, [blob for blob, _ in layers], used)
        entries = [layer for _, layer in layers]
        at = float(number)
        held.append((filling.manifest(image, digest, entries, at=at, used=used), digest))
    filling.link(image, list(shared), used)
    for each in range(tags):
        filling.tag(image, f"v{each}", *held[each % MANIFESTS], 1.0)
    filling.deleted(image, "old", held[0][1], BEGAN - 86400 + number / 2)


def _big(filling: Filling, most: int) -> None:
    """The image with the most tags; a hundred manifests in a row have one config."""
    image = filling.image("local", "big")
    base = filling.blob(digest_of("base"), 30_000_000)
    filling.link(image, [base[0]], None)
    config = (0, "")
    for number in range(most):
        if number % 100 == 0:
            config = filling.stored({"os": "linux", "architecture": "amd64", "build": number})
            filling.link(image, [config[0]], None)
        own = filling.blob(digest_of("big", number), 10_000 + number)
        filling.link(image, [own[0]], None)
        layers = [{"digest": base[1], "size": 30_000_000}, {"digest": own[1], "size": 10_000}]
        document = {"config": {"digest": config[1], "size": 50}, "layers": layers}
        _, digest = filling.stored({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **document})
        entries = [base[1], own[1], config[1]]
        manifest = filling.manifest(image, digest, entries, at=float(number))
        filling.tag(image, f"build-{number}", manifest, digest, float(number))
        filling.deleted(image, f"old-{number}", digest, BEGAN - 86400 + number / 2)


def _long(filling: Filling, children: int) -> None:
    image = filling.image("local", "long")
    below = []
    for number in range(children):
        layers = [filling.blob(digest_of("long", number, each), 1000) for each in range(LAYERS)]
        filling.link(image, [blob for blob, _ in layers], None)
        _, digest = filling.blob(digest_of("child", number), 500)
        filling.manifest(image, digest, [layer for _, layer in layers])
        below.append(digest)
    for number in range(INDEXES):
        platform = {"os": "linux", "architecture": "arm64"}
        listed = [{"digest": each, "size": 500, "platform": platform} for each in below]
        _, digest = filling.stored({"mediaType": OCI_INDEX, "manifests": listed, "n": number})
        manifest = filling.manifest(image, digest, below, kind="manifest")
        filling.tag(image, f"v{number}", manifest, digest, float(number))


# -- asking the daemon


def spent(server: Server) -> tuple[float, float]:
    """Milliseconds of CPU so far: of the reactor's thread, and of all others."""
    own, others = 0.0, 0.0
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        took = int((task / "schedstat").read_text().split()[0]) / 1e6
        if task.name == str(server.pid):
            own = took
        else:
            others += took
    return own, others


@define
class Asking:
    """A user, by Basic and in a browser."""

    server: Server
    user: str
    cookies: dict[str, str] = field(factory=dict)

    def get(self, path: str) -> bytes:
        return self._ask("GET", path, None, {})

    def log_in(self) -> None:
        """The page knows no Basic."""
        form = self.get("/ui/login").decode()
        found = re.search(r'name="token" value="(\w+)"', form)
        assert found is not None, form
        fields = {"token": found[1], "user": self.user, "password": self.user}
        self._ask(
            "POST",
            "/ui/login",
            urlencode(fields).encode(),
            {"Content-Type": "application/x-www-form-urlencoded"},
        )

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
        if path.startswith("/api"):
            login = b64encode(f"{self.user}:{self.user}".encode()).decode()
            sent = {"Authorization": f"Basic {login}"}
        else:
            sent = {"Accept": "text/html", "Cookie": "; ".join(map("=".join, self.cookies.items()))}
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=600)
        connection.request(method, path, body, {**sent, **headers, "Connection": "close"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status not in (200, 303):
            raise SystemExit(f"{method} {path}: {answer.status}\n{content.decode()[:500]}")
        for cookie in answer.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return content


def measure(asking: Asking, name: str, path: str, rounds: int) -> None:
    """Print the quickest of several rounds."""
    took = []
    for _ in range(rounds):
        before = spent(asking.server)
        content = asking.get(path)
        after = spent(asking.server)
        took.append((sum(after) - sum(before), after[0] - before[0]))
    whole, own = min(took)
    peak = max(asking.server.peaks) / MEBIBYTE
    print(f"{name:52} {whole:9.1f} {own:9.1f} {len(content) / 1024:7.0f} {peak:6.0f}", flush=True)


def ask_all(server: Server, images: int, rounds: int) -> None:
    admin, few = (Asking(server, user) for user in USERS)
    for each in (admin, few):
        each.log_in()
    middle = images // 2 | 1
    name, digest = named(middle), digest_of("manifest", middle, 0)
    api, big = "/api/v1", "/images/local/big"
    lists = {
        "API: 100 images": f"{api}/images?limit=100",
        "API: 1000 images": f"{api}/images?limit=1000",
        "API: search, a part of the name of one": f"{api}/images?search=app{middle}",
        "API: search, what no name has": f"{api}/images?search=nothing",
        "API: 100 tags of many": f"{api}{big}/tags?limit=100",
        "API: 1000 tags of many": f"{api}{big}/tags?limit=1000",
        "API: 1000 tags of many, the newest first": f"{api}{big}/tags?limit=1000&sort=-moved",
        "API: tags of many, a part of one": f"{api}{big}/tags?search=-77777",
        "API: 10 tags at long indexes": f"{api}/images/local/long/tags",
        "API: a tag": f"{api}/images/local/{name}/tags/v1",
        "API: a manifest": f"{api}/images/local/big/manifests/build-7",
        "API: a long index": f"{api}/images/local/long/manifests/v1",
        "API: referrers": f"{api}/images/local/{name}/referrers/{digest}",
        "API: 1000 movements of many tags": f"{api}{big}/history?limit=1000",
        "API: 1000 deleted, of one image": f"{api}{big}/deleted?limit=1000",
        "API: 1000 deleted, of all": f"{api}/deleted?limit=1000",
        "API: usage": f"{api}/usage",
        "page: images": "/",
        "page: search, a part of the name of one": f"/?q=app{middle}",
        "page: search, what no name has": "/?q=nothing",
        "page: an image": f"/ui/image/local/{name}",
        "page: many tags": "/ui/image/local/big",
    }
    for column in ("-name", "moved", "-moved", "size", "platforms"):
        lists[f"page: many tags, by {column}"] = f"/ui/image/local/big?sort={column}"
    some = quote("*-7[0-9][0-9]")
    lists |= {
        "page: many tags, filtered": "/ui/image/local/big?q=-77777",
        "page: 100 of many tags, by size": f"/ui/image/local/big?q={some}&sort=-size",
        "page: tags at long indexes": "/ui/image/local/long",
        "page: a manifest": "/ui/manifest/local/big?reference=build-7",
        "page: a long index": "/ui/manifest/local/long?reference=v1",
        "page: history of many tags": "/ui/history/local/big",
        "page: deleted, of many tags": "/ui/deleted/local/big",
        "page: storage": "/ui/storage",
        "page: upkeep": "/ui/upkeep",
    }
    print(f"{'list':52} {'CPU ms':>9} {'reactor':>9} {'KiB':>7} {'MiB':>6}")
    for title, path in lists.items():
        measure(admin, title, path, rounds)
    print("for a user who may see eleven images:")
    for title, path in {
        "API: 100 images": f"{api}/images?limit=100",
        "API: 1000 images": f"{api}/images?limit=1000",
        "API: search, what no name has": f"{api}/images?search=nothing",
        "API: 1000 deleted, of all": f"{api}/deleted?limit=1000",
        "page: images": "/",
        "page: search, a part of the name of one": f"/?q=app{middle}",
    }.items():
        measure(few, title, path, rounds)


def run_all(settings: Path, images: int) -> None:
    """Run the commands."""
    middle = images // 2 | 1
    print(f"{'command':52} {'CPU s':>9} {'MiB':>6}")
    for command in (
        ["--version"],
        ["ls", f"*app{middle}*"],
        ["ls", "*nothing*"],
        ["ls"],
        ["du"],
        ["du", "*"],
        ["tags", "local/big"],
        ["show", "local/big:build-7"],
        ["show", "local/long:v1"],
        ["history", "local/big"],
        ["undelete", "--list", "local/big"],
    ):
        program = Path(sys.executable).with_name("artifactd")
        words = [str(program), "--config", str(settings), *command]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: nothing was found
            raise SystemExit(f"{' '.join(words)}: {status}")
        spent, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        print(f"{'artifactd ' + ' '.join(command):52} {spent:9.2f} {peak:6.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--tags", type=int, default=10)
    parser.add_argument("--most", type=int, default=100_000)
    parser.add_argument("--children", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", default=None)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    sizes = (arguments.images, arguments.tags, arguments.most, arguments.children)
    made = arguments.data is not None and (Path(arguments.data) / "artifactd.toml").exists()
    exit_on_sigterm()
    folder = Path(arguments.data if made else tempfile.mkdtemp(dir=arguments.data)).absolute()
    settings = folder / "artifactd.toml"
    try:
        if not made:
            in_process(fill_all, folder / "data", *sizes)
            few = (
                arguments.images * 7 // 90
            )  # app7777, and the ten that it begins: with the default
            settings.write_text(SETTINGS.format(data=folder, few=few))
            hashed = [bcrypt.hashpw(u.encode(), bcrypt.gensalt(4)).decode() for u in USERS]
            lines = [f"{user}:{each}\n" for user, each in zip(USERS, hashed, strict=True)]
            (folder / "htpasswd").write_text("".join(lines))
            (folder / "htpasswd").chmod(0o600)
        with artifactd(folder, settings.read_text()) as server:
            ask_all(server, arguments.images, arguments.rounds)
        run_all(settings, arguments.images)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)
    if arguments.keep:
        print(f"kept: --data {folder}")


if __name__ == "__main__":
    main()
