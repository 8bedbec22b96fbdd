"""Opening the store on what a power loss has left, and looking whether all is as promised."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import define, field, frozen
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.catalog import migrations
from artifactd.daemon.service import RegistryService
from artifactd.oci.manifest import MANIFEST_TYPES, OCI_MANIFEST
from artifactd.oci.names import Digest
from artifactd.registry.upkeep.collector import Collector, NotNow
from artifactd.settings.settings import Settings
from artifactd.store import procfs
from tests.api.served import image_manifest
from tests.durability.disk import State
from tests.durability.recording import CATALOG
from tests.programs import PATIENCE, reactor, wait_for

DATA = "data"
# What comes to nothing goes at last: long after any lease, grace period or timeout.
LATER = 100 * 24 * 3600.0
# What is found was written before the machine has started again.
BEFORE_BOOT = procfs.boot_time() - 60
_AFTER = "/v2/after"
_ACCEPT = {"Accept": ", ".join(sorted(MANIFEST_TYPES))}

Promises = Mapping[str, Collection[bytes | None]]


def latest() -> int:
    """The schema that the daemon works with: that of the package, or of the test's migrations."""
    return sum(1 for _ in migrations.SCHEMA.iterdir())


class Broken(AssertionError):
    """A promise of docs/durability.md is broken."""


@frozen
class Rows:
    """
    What a catalog says.

    :ivar blobs: sizes, by digest.
    :ivar held: an image's name and a digest, of each blob that an image holds.
    :ivar manifests: digests, by an image's name and each reference.
    """

    blobs: Mapping[str, int]
    held: Collection[tuple[str, str]]
    manifests: Mapping[tuple[str, str], str]

    @classmethod
    def of(cls, catalog: bytes) -> Rows:
        with closing(sqlite3.connect(":memory:")) as db:
            db.deserialize(_not_wal(catalog))
            manifests = {
                (f"{repository}/{name}", reference): digest
                for query in (
                    "SELECT repository, name, digest, digest FROM manifest"
                    " JOIN image ON image.id = image_id",
                    "SELECT repository, image.name, tag.name, digest FROM tag"
                    " JOIN image ON image.id = tag.image_id"
                    " JOIN manifest ON manifest.id = tag.manifest_id",
                )
                for repository, name, reference, digest in db.execute(query)
            }
            held = db.execute(
                "SELECT repository || '/' || image.name, digest FROM blob_link"
                " JOIN blob ON blob.id = blob_id JOIN image ON image.id = image_id"
            )
            blobs = dict(db.execute("SELECT digest, size FROM blob"))
            return cls(blobs, set(held), manifests)


@define
class Replay:
    """
    States, checked.

    :ivar looked: how many were compared with what was promised.
    :ivar oldest: the schema of the catalog that it all began with.
    :ivar opened: on how many a daemon was started.
    """

    test: TestCase
    toml: str
    oldest: int
    looked: int = 0
    opened: int = 0
    _rows: dict[bytes, Rows] = field(factory=dict)
    _digests: dict[bytes, str] = field(factory=dict)

    def look(self, state: State, promised: Promises) -> None:
        """
        Compare what is on the disk with what it says.

        :raises Broken:
        """
        self.looked += 1
        blobs: dict[str, bytes] = {}
        catalog = state.catalog
        if (copied := state.names.get(f"{DATA}/{CATALOG}")) is not None:
            catalog = copied[1].content  # of a backup
        version = 0 if catalog is None else _version(catalog)
        copies = {f"{DATA}/{CATALOG}.before-{n}": n for n in range(self.oldest + 1, version + 1)}
        if (
            version > self.oldest
            and f"{DATA}/{CATALOG}.before-{self.oldest + 1}" not in state.names
        ):
            raise Broken(f"upgraded to {version} without a copy: only {[*state.names]}")
        for path, (_, file) in state.names.items():
            if path in copies and _version(file.content) != copies[path] - 1:
                raise Broken(f"a copy that is none: {path}")
            parts = path.split("/")
            if parts[1] == "blobs":
                digest = f"{parts[2]}:{parts[4]}"
                if self._digest(file.content, parts[2]) != digest:
                    raise Broken(f"half-written and visible: {digest}")
                blobs[digest] = file.content
        if catalog is None or version != latest():
            return
        rows = self._rows.get(catalog)
        if rows is None:
            rows = self._rows[catalog] = Rows.of(catalog)
        for digest, size in rows.blobs.items():
            if digest not in blobs or len(blobs[digest]) != size:
                raise Broken(f"a row without its bytes: {digest}")
        for key, contents in promised.items():
            _, _, *name, kind, reference = key.split("/")
            image = "/".join(name if name[0] == "docker.io" else ["local", *name])
            if image.startswith("docker.io/"):
                continue  # may be had again
            if kind == "manifests":
                found = rows.manifests.get((image, reference))
            else:
                found = reference if (image, reference) in rows.held else None
            if (None if found is None else blobs[found]) not in contents:
                raise Broken(f"not as promised: {key}")

    def _digest(self, content: bytes, algorithm: str) -> str:
        found = self._digests.get(content)
        if found is None or not found.startswith(algorithm):
            found = self._digests[content] = str(Digest.of(content))
        return found

    async def open(self, state: State, promised: Promises, sessions: Sequence[str]) -> None:
        """
        Let a daemon start on it, as it does after any other end, and see that all is there that was
        promised, that it can be used, and that nothing is left over in the end.

        :raises Broken:
        """
        self.opened += 1
        with TemporaryDirectory(dir=_fast()) as root:
            _build(state, Path(root))
            service = self._service(Path(root, DATA))
            try:
                service.startService()
            except SystemExit as error:
                if state.catalog is None and " is lost, and there are blobs" in str(error):
                    return  # a first backup that was cut is no registry, and says so
                raise Broken(f"does not start: {error}") from error
            try:
                running = service._running
                assert running is not None
                await running.parts.sweep.run()
                port = service.ports[0].getHost().port  # type: ignore[attr-defined]
                await deferToThread(_use, port, promised, sessions)
                await finished(service)
                check_nothing_left(Path(root, DATA))
            finally:
                await service.stopService()
            errors = self.test.flushLoggedErrors()
            if errors:
                raise Broken(errors[0].getTraceback())

    def _service(self, data: Path) -> RegistryService:
        config = data.with_name("artifactd.toml")
        config.write_text(self.toml)
        environment = {
            "ARTIFACTD_LISTEN": "tcp:0:interface=127.0.0.1",
            "ARTIFACTD_DATA": str(data),
            "ARTIFACTD_GC_RATE": "0",
        }
        return RegistryService(Settings.load(config, environment), reactor)


async def finished(service: RegistryService) -> None:
    """Let go of all that is not needed, as a daemon does that runs long after."""
    running = service._running
    assert running is not None
    running.parts.collector.now = running.parts.sweep.now = lambda: time.time() + LATER
    running.parts.sweep.upload_timeout = -1.0
    uploads = running.parts.folder.path / "uploads"

    async def swept() -> bool:
        # Two sweeps at once take each other's looks at an upload for somebody who writes to it, and
        # leave it to the next.
        await running.parts.sweep.run()
        return not any(uploads.iterdir())

    await wait_for(swept)
    await collected(running.parts.collector, shelves_of(running.parts.folder.path))


def shelves_of(data: Path) -> list[int]:
    """The shelves of the store that are not empty."""
    return sorted({int(file.parts[-2], 16) for file in data.glob("blobs/*/*/*")})


async def collected(collector: Collector, shelves: Sequence[int]) -> None:
    """Collect; the daemon may be about it by itself, as it has just started."""

    async def done() -> bool:
        with suppress(NotNow):
            await collector.run(shelves)
            return True
        return False

    await wait_for(done)


def _use(port: int, promised: Promises, sessions: Sequence[str]) -> None:
    """Go on with uploads, ask for all that was promised, and push and pull an image."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:

        def ask(
            method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
        ) -> tuple[int, bytes]:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

        for session in sessions:
            if ask("PATCH", session, b"more")[0] not in (202, 404):
                raise Broken("an upload can neither be resumed nor begun anew")
        for key, contents in promised.items():
            if "docker.io" in key and "/blobs/" in key:
                # First what may be there of it, which nobody has verified yet.
                (content,) = (content for content in contents if content is not None)
                for span in (slice(1000, 60_000), slice(100_100, 119_000)):
                    wanted = {"Range": f"bytes={span.start}-{span.stop - 1}"}
                    status, part = ask("GET", key, headers=wanted)
                    if (status, part) != (206, content[span]):
                        raise Broken(f"a range of {key} is answered {status}, {len(part)} bytes")
            status, body = ask("GET", key, headers=_ACCEPT)
            if status not in (200, 404) or (body if status == 200 else None) not in contents:
                raise Broken(f"{key} is answered {status}, {len(body)} bytes")
            # What was not finished can be pushed anew, whatever is left of it.
            for pushed in contents:
                if "/blobs/" in key and "docker.io" not in key and pushed is not None:
                    path = key.replace("/blobs/", "/blobs/uploads/?digest=")
                    if ask("POST", path, pushed)[0] != 201:
                        raise Broken(f"{key} can't be pushed again")
        layer = b"pushed afterwards"
        config = json.dumps({"after": "a power loss"}).encode()
        manifest = image_manifest(config, layer)
        for blob in (config, layer):
            path = f"{_AFTER}/blobs/uploads/?digest={Digest.of(blob)}"
            if ask("POST", path, blob)[0] != 201:
                raise Broken("can't be pushed to")
        path = f"{_AFTER}/manifests/latest"
        if ask("PUT", path, manifest, {"Content-Type": OCI_MANIFEST})[0] != 201:
            raise Broken("can't be pushed to")
        if ask("GET", path) != (200, manifest):
            raise Broken("can't be pulled from")


def check_nothing_left(data: Path) -> None:
    """:raises Broken: if there is more in the data folder than its catalog lists."""
    with closing(sqlite3.connect(data / CATALOG)) as db:
        listed = dict(db.execute("SELECT digest, size FROM blob"))
        sessions = db.execute("SELECT count(*) FROM upload").fetchone()[0]
    stored = {f"{f.parts[-3]}:{f.name}": f.stat().st_size for f in data.glob("blobs/*/*/*")}
    left = [f for name in ("uploads", "staging", "fills") for f in data.glob(f"{name}/*")]
    if stored != listed or left or sessions:
        raise Broken(f"left over: {stored.keys() ^ listed.keys()}, {left}, {sessions} sessions")


def _build(state: State, root: Path) -> None:
    for folder in state.folders:
        (root / folder).mkdir(0o700)
    first: dict[int, Path] = {}
    for name, (number, file) in state.names.items():
        path = root / name
        if number in first:
            path.hardlink_to(first[number])
            continue
        first[number] = path
        path.write_bytes(file.content)
        path.chmod(file.mode)
        if "/fills/" in name:
            os.utime(path, (BEFORE_BOOT, BEFORE_BOOT))
    if state.catalog is not None and (root / DATA).is_dir():
        (root / DATA / CATALOG).write_bytes(state.catalog)


def _fast() -> str | None:
    """Where files are made fastest; ``None``: where temporary files go."""
    memory = "/dev/shm"
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 28:
        return memory
    return None


def _not_wal(catalog: bytes) -> bytes:
    """The same database, to be read from memory: https://sqlite.org/fileformat2.html, 1.3.3."""
    return catalog[:18] + b"\x01\x01" + catalog[20:]


def _version(catalog: bytes) -> int:
    """The schema, as SQLite's ``user_version``: https://sqlite.org/fileformat2.html, 1.3."""
    return int.from_bytes(catalog[60:64], "big")
