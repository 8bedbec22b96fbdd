"""``artifactd gc`` and ``artifactd undelete`` beside a running daemon; and what that collects."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.python.usage import UsageError
from twisted.trial.unittest import TestCase

import artifactd as artifactd_package
from artifactd.catalog.garbage import Garbage
from artifactd.catalog.records import UploadRecord
from artifactd.commands import offline
from artifactd.commands.backup import Backup
from artifactd.commands.offline import CollectGarbage
from artifactd.commands.retention import Retain
from artifactd.oci.errors import NameUnknown
from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Algorithm, Digest, ImageName
from artifactd.registry.upkeep.collector import NotNow
from artifactd.registry.upkeep.retention import Retention
from artifactd.registry.upkeep.sweep import Remains
from artifactd.settings.settings import LocalSettings, RetentionRule
from artifactd.settings.values import Duration
from artifactd.store.examine import ScrubLock, ScrubPosition
from artifactd.store.fills import blob_name
from artifactd.store.folder import DataFolder, FolderCollectionLock
from artifactd.store.publication import staged_name
from tests.api.served import image_index, image_manifest
from tests.catalog.fixture import add_upload
from tests.collection.clock import SharedClock
from tests.collection.registry import (
    GRACE,
    KEEPING,
    LEASE,
    SHORT,
    UNTAGGED,
    Client,
    image,
    index,
    opened,
    settings,
    tag,
)
from tests.commands.test_main import artifactd
from tests.crash.test_sweep import listed, stored
from tests.process import Daemon
from tests.programs import Result, reactor, wait_for

DOCS = Path(artifactd_package.__file__).parents[1] / "docs"
LAYER = b"layer" * 100
MANIFEST = image_manifest(b"{}", LAYER)
DIGEST = Digest.of(MANIFEST)
LOCAL = '[repository.local]\nkind = "local"\n'
AT_ONCE = f'grace = "0"\nlease = "1ms"\n{LOCAL}'


class GarbageTestCase(TestCase):
    """A daemon that collects once, at its start."""

    async def start(self, toml: str) -> None:
        self.daemon = await Daemon.start(self, toml=toml)
        self.config = Path(self.mktemp()).absolute()
        self.config.write_text(toml)
        await wait_for(self.has_collected)

    async def has_collected(self) -> bool:
        return "artifactd_gc_runs_total 0.0" not in await self.metrics()

    async def metrics(self) -> str:
        return (await self.daemon.request("GET", "/metrics")).body.decode()

    async def command(self, name: str, *argv: str) -> Result:
        options = ("--config", str(self.config))
        return await artifactd(self, name, *options, *argv, ARTIFACTD_DATA=str(self.daemon.data))

    async def do(self, name: str, *argv: str) -> str:
        """What a command says that does what it is told."""
        result = await self.command(name, *argv)
        self.assertEqual((result.status, result.err), (0, ""))
        return result.out

    async def push(self, *tags: str) -> None:
        for blob in (b"{}", LAYER):
            await self.daemon.push_blob("app", blob)
        for each in tags:
            await self.daemon.push_manifest("app", each, MANIFEST)

    async def status(self, path: str, method: str = "GET") -> int:
        return (await self.daemon.request(method, f"/v2/app/{path}")).status

    async def delete(self, path: str) -> None:
        self.assertEqual(await self.status(path, "DELETE"), 202)

    @property
    def stored(self) -> dict[str, int]:
        return stored(self.daemon.data)


class CollectGarbageTests(GarbageTestCase):
    async def test_a_deleted_image_goes_and_the_rest_stays(self) -> None:
        await self.start(AT_ONCE)
        await self.push("1")
        before = self.stored
        self.assertIn("; 0 bytes of the store", await self.do("gc"))
        self.assertEqual(self.stored, before)
        await self.delete(f"manifests/{DIGEST}")
        out = await self.do("gc")
        self.assertIn(f"bytes: {DIGEST}, {len(MANIFEST)} bytes, since ", out)
        self.assertIn(f"lease: local/app@{Digest.of(LAYER)}, {len(LAYER)} bytes, since ", out)
        self.assertIn("deleted: local/app:1, ", out)
        self.assertIn(f"; {sum(before.values())} bytes of the store", out)
        self.assertEqual(self.stored, {})
        self.assertEqual(listed(self.daemon.data), {})
        await self.push("1")
        self.assertEqual(self.stored, before)

    async def test_a_dry_run_lists_the_same_and_takes_nothing_away(self) -> None:
        await self.start(AT_ONCE)
        await self.push("1")
        await self.delete(f"manifests/{DIGEST}")
        before, rows = self.stored, listed(self.daemon.data)
        tried = await self.do("gc", "--dry-run")
        self.assertEqual((self.stored, listed(self.daemon.data)), (before, rows))
        *lines, last = (await self.do("gc")).splitlines()
        *would, summary = tried.splitlines()
        self.assertEqual(would, lines)
        self.assertEqual(summary.removeprefix("would be "), last)

    async def test_at_once_what_was_deleted_goes_before_its_time_and_nothing_else(self) -> None:
        await self.start(LOCAL)
        await self.push("1")
        uploaded = await self.daemon.push_blob("app", b"no manifest yet")
        before = self.stored
        self.assertIn("; 0 bytes of the store", await self.do("gc", "--now"))
        self.assertEqual(self.stored, before)
        await self.delete(f"manifests/{DIGEST}")
        self.assertIn("; 0 bytes of the store", await self.do("gc"))
        self.assertEqual(self.stored, before)
        tried = (await self.do("gc", "--now", "--dry-run")).splitlines()
        self.assertEqual(self.stored, before)
        done = (await self.do("gc", "--now")).splitlines()
        self.assertEqual(tried[:-1], done[:-1])
        self.assertEqual(list(self.stored.values()), [len(b"no manifest yet")])
        self.assertEqual(await self.status(f"blobs/{uploaded}"), 200)
        await self.push("1")
        self.assertEqual(self.stored, before)

    async def test_at_once_a_blob_that_another_manifest_holds_stays(self) -> None:
        await self.start(LOCAL)
        await self.push("1")
        other = image_manifest(LAYER, b"{}")
        await self.daemon.push_manifest("app", "2", other)
        before = self.stored
        await self.delete(f"manifests/{DIGEST}")
        await self.do("gc", "--now")
        self.assertEqual(sum(before.values()) - sum(self.stored.values()), len(MANIFEST))
        for blob in (LAYER, b"{}"):
            self.assertEqual(await self.status(f"blobs/{Digest.of(blob)}"), 200)

    async def test_in_read_only_mode_nothing_goes_and_nothing_comes_back(self) -> None:
        await self.start(AT_ONCE)
        await self.push("1")
        await self.delete(f"manifests/{DIGEST}")
        before = self.stored
        self.config.write_text(f"read_only = true\n{AT_ONCE}")
        for argv in (["gc"], ["undelete", "app"]):
            result = await self.command(*argv)
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertIn("read-only", result.err)
        self.assertEqual(self.stored, before)
        self.assertIn(" 2 lease", await self.do("gc", "--dry-run"))

    async def test_of_a_damaged_catalog_nothing_goes_and_it_says_so(self) -> None:
        await self.start(AT_ONCE)
        await self.push("1")
        await self.delete(f"manifests/{DIGEST}")
        scrub = ScrubLock(self.daemon.data)
        self.assertTrue(scrub.claim())
        scrub.write(ScrubPosition(wrong="row 1 is wrong"))
        scrub.release()
        before = self.stored
        for argv in (["gc"], ["gc", "--dry-run"]):
            result = await self.command(*argv)
            self.assertEqual(result.status, 1)
            told = "artifactd: the catalog is damaged (row 1 is wrong): restore a backup\n"
            self.assertEqual(result.err, told)
        self.assertEqual(self.stored, before)

    async def test_what_is_told_of_stays_for_its_lease(self) -> None:
        await self.start(LOCAL)
        await self.push()
        self.assertIn(" 0 lease", await self.do("gc"))
        self.assertEqual(await self.status(f"blobs/{Digest.of(LAYER)}", "HEAD"), 200)

    async def test_without_a_data_folder_there_is_nothing_to_collect(self) -> None:
        absent = Path(self.mktemp()).absolute()
        for argv in (["gc"], ["gc", "--dry-run"], ["undelete", "app"]):
            result = await artifactd(self, *argv, ARTIFACTD_DATA=str(absent))
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertIn(f"{absent}: there is no data folder", result.err)
        self.assertFalse(absent.exists())

    async def test_the_daemon_collects_by_itself(self) -> None:
        await self.start(f'gc_interval = "50ms"\n{AT_ONCE}')
        await self.push()
        await wait_for(lambda: self.stored == {})

        async def counted() -> bool:
            return 'artifactd_gc_collected_total{why="bytes"} 2.0' in await self.metrics()

        await wait_for(counted)


class ForesightTests(TestCase):
    """What a dry run lists is what the run then does; in this process, on a clock of the test's."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.clock = SharedClock.set(Path(self.mktemp()), time.time())
        self.data = Path(self.mktemp()).absolute()
        with opened(self.data, self.clock, reactor) as self.parts:
            self.addCleanup(self.close)

    async def close(self) -> None:
        await self.parts.close()

    async def gc(self, *argv: str) -> list[str]:
        """The lines that the command prints; one that fails is an error."""
        command = CollectGarbage()
        command.parseOptions(argv)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.assertEqual(0, await command.work(self.parts, settings(self.data)))
        return printed.getvalue().splitlines()

    async def test_while_another_process_collects_it_waits(self) -> None:
        lock = FolderCollectionLock(self.data)
        self.assertTrue(lock.claim())
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            collecting = Deferred.fromCoroutine(self.gc())
            await wait_for(lambda: bool(said.getvalue()))
            lock.release()
            await collecting
        waits = "another process collects garbage: waiting for up to a minute"
        self.assertEqual(said.getvalue(), f"artifactd: {waits}\n")

    async def test_it_does_not_wait_for_ever(self) -> None:
        self.patch(offline, "_WAIT", 0.0)
        lock = FolderCollectionLock(self.data)
        self.assertTrue(lock.claim())
        self.addCleanup(lock.release)
        self.drop_tags(SHORT)
        for command in (CollectGarbage(), Retain()):
            command.parseOptions([])
            with self.assertRaises(NotNow) as refused, contextlib.redirect_stdout(io.StringIO()):
                await command.work(self.parts, settings(self.data))
            self.assertIn("another process collects garbage", str(refused.exception))

    @property
    def files(self) -> set[str]:
        """All files with the bytes of something."""
        folders = ("blobs", "uploads", "staging", "fills")
        found = (each for folder in folders for each in (self.data / folder).rglob("*"))
        return {str(each.relative_to(self.data)) for each in found if each.is_file()}

    async def assert_foreseen(self, *argv: str) -> list[str]:
        """Try it and do it; the lines but for the last."""
        before, rows = self.files, listed(self.data)
        *tried, would = await self.gc("--dry-run", *argv)
        self.assertEqual((before, rows), (self.files, listed(self.data)))
        *done, did = await self.gc(*argv)
        self.assertEqual((tried, would), (done, f"would be {did}"))
        return done

    async def image_in(self, name: str, *layers: bytes, tagged: bool = True) -> bytes:
        client = Client(self.parts, name)
        for each in layers:
            await client.upload(each)
        content = image(layers[0], list(layers[1:]), 0)
        await client.put(content, tag(0) if tagged else Digest.of(content))
        return content

    async def index_that_was_deleted(self, name: str, layer: bytes) -> bytes:
        """The manifest that only it listed."""
        child = await self.image_in(name, layer, tagged=False)
        holder = index([child])
        client = Client(self.parts, name)
        await client.put(holder, tag(1))
        await client.delete(Digest.of(holder))
        return child

    async def stray(self, content: bytes) -> Digest:
        """Bytes in the store without a row."""
        staged = await self.parts.blobs.stage(Digest.of(content), content)
        await staged.publish()
        staged.release()
        return staged.digest

    def drop_tags(self, repository: str) -> None:
        """Let retention keep no tag of a repository for more than a second."""
        retained = LocalSettings(retention=(RetentionRule(pushed=Duration(1), drop_last=True),))
        collector = self.parts.collector
        collector.retention = Retention(
            collector.retention.catalog, {repository: retained}, self.clock
        )

    def left(self, path: str) -> str:
        """An old file in the data folder."""
        file = self.data / path
        file.write_bytes(b"left")
        file.chmod(0o600)
        os.utime(file, (0, 0))
        return file.name

    async def test_each_step_of_a_collection(self) -> None:
        keeping = Client(self.parts, f"{KEEPING}/app")
        await self.index_that_was_deleted(keeping.name, b"a child's")
        await self.image_in(f"{SHORT}/app", b"untagged", tagged=False)
        await self.image_in(f"{SHORT}/dropped", b"of a tag that no rule keeps")
        self.drop_tags(SHORT)
        await keeping.upload(b"never held")
        gone = await self.image_in(keeping.name, b"deleted")
        await keeping.delete(Digest.of(gone))
        await self.stray(b"stray")
        dropped = await self.stray(b"dropped")
        await self.parts.catalog.database.write(
            lambda db: db.execute("INSERT INTO dropped_blob VALUES (?)", (str(dropped),))
        )
        upload_id = self.left(f"uploads/{uuid4()}")
        row = UploadRecord(str(uuid4()), ImageName(KEEPING, "app"), Algorithm.SHA256, 0.0)
        await self.parts.catalog.database.write(partial(add_upload, record=row))
        dead = Digest.of(b"dead push")
        self.left(f"staging/{staged_name(dead, str(uuid4()))}")
        fill = self.left(f"fills/{blob_name('docker.io', dead)}")
        self.clock.advance(10 * (LEASE + GRACE + UNTAGGED))
        lines = await self.assert_foreseen()
        kinds = Counter(line.partition(":")[0] for line in lines)
        self.assertEqual({*Garbage, *Remains}, set(kinds), lines)
        self.assertEqual(1, kinds[Garbage.STRAY])
        for kind, name in (
            (Remains.UPLOAD, upload_id),
            (Remains.UPLOAD, row.id),
            (Remains.BLOB, dropped),
            (Remains.STAGED, dead),
            (Remains.FILL, fill),
        ):
            self.assertTrue([line for line in lines if line.startswith(f"{kind}: {name}: ")], name)
        for _ in range(3):
            self.clock.advance(10 * (LEASE + GRACE + UNTAGGED))
            await self.assert_foreseen()
        self.assertEqual(set(), self.files)

    async def test_what_goes_at_once(self) -> None:
        await self.index_that_was_deleted(f"{KEEPING}/app", b"a child's")
        await self.index_that_was_deleted(f"{SHORT}/other", b"another's")
        self.assertEqual([], await self.assert_foreseen())
        lines = await self.assert_foreseen("--now")
        self.assertEqual(2, sum(line.startswith("orphaned: ") for line in lines))
        self.assertEqual(set(), self.files)

    async def test_what_goes_at_once_of_one_image(self) -> None:
        mine, shared = f"{KEEPING}/app", b"which both have"
        await self.index_that_was_deleted(mine, b"a child's")
        for name in (mine, f"{KEEPING}/other"):
            await self.index_that_was_deleted(name, shared)
        stray = await self.stray(b"stray")
        self.clock.advance(LEASE / 2)
        lines = await self.assert_foreseen("--now", "app")
        self.assertEqual(2, sum(line.startswith("orphaned: local/app@") for line in lines))
        self.assertNotIn("other", "".join(lines))
        left = {str(stray), str(Digest.of(shared)), str(Digest.of(image(shared, [], 0)))}
        left.add(str(Digest.of(index([image(shared, [], 0)]))))
        self.assertEqual(left, set(stored(self.data)))

    async def test_an_image_goes_with_now_and_there_has_to_be_one(self) -> None:
        with self.assertRaisesRegex(UsageError, "gc: say --now with an image: app"):
            await self.gc("app")
        for argv in (["--now", "absent"], ["--now", "--dry-run", "absent"]):
            with self.assertRaisesRegex(NameUnknown, "local/absent: there is no such image"):
                await self.gc(*argv)


class RecipeTests(GarbageTestCase):
    async def test_a_full_disk_is_emptied_as_the_page_says(self) -> None:
        await self.start(LOCAL)
        await self.push("stays")
        kept = self.stored
        other = b"of the image that is not needed" * 1000
        child = image_manifest(b"{}", other)
        for blob in (b"{}", other):
            await self.daemon.push_blob("old", blob)
        await self.daemon.push_manifest("old", str(Digest.of(child)), child)
        both = image_index(child)
        await self.daemon.push_manifest("old", "v1", both, OCI_INDEX)
        page = (DOCS / "operating.md").read_text(encoding="utf-8")
        recipe = page.partition("### When the disk is full\n")[2].split("```")[1]
        lines = [line.partition("#")[0].split() for line in recipe.splitlines()[1:]]
        self.assertEqual(5, len(lines))
        said = [
            await self.do(*(each.replace("sha256:…", str(Digest.of(both))) for each in words))
            for _, *words in lines
        ]
        self.assertIn(str(Digest.of(both)), said[1])
        for digest in map(Digest.of, (both, child, other)):
            self.assertIn(f"bytes: {digest}", said[3])
        self.assertEqual(said[3].replace("\nwould be ", "\n"), said[4])
        self.assertEqual(kept, self.stored)


class BackupTests(GarbageTestCase):
    async def test_what_the_copied_catalog_lists_stays_until_it_is_copied(self) -> None:
        await self.start(AT_ONCE)
        await self.push("1")
        await self.delete(f"manifests/{DIGEST}")
        tried: list[str] = []
        target = Path(self.mktemp()).absolute()

        def collect(size: int) -> None:
            lock = FolderCollectionLock(self.daemon.data)
            assert lock.claim()
            with lock.step() as free:
                tried.append(str(free))
            lock.release()

        with (
            closing(DataFolder.open(self.daemon.data)) as source,
            closing(DataFolder.open(target)) as copy,
        ):
            Backup(source, copy, collect).run()
        self.assertEqual(tried, ["False"] * 3)
        self.assertEqual(stored(target), listed(target))


class UndeleteTests(GarbageTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await self.start(LOCAL)
        await self.push("1", "2")

    async def pulls(self, reference: str) -> None:
        answer = await self.daemon.request("GET", f"/v2/app/manifests/{reference}")
        self.assertEqual((answer.status, answer.body), (200, MANIFEST))
        for descriptor in (json.loads(MANIFEST)["config"], *json.loads(MANIFEST)["layers"]):
            self.assertEqual(await self.status(f"blobs/{descriptor['digest']}"), 200)

    async def test_a_tag_comes_back(self) -> None:
        await self.delete("manifests/1")
        self.assertEqual(
            await self.do("undelete", "app:1"),
            "brought back of local/app: 0 manifests, 1 tags (1), 0 blobs\n",
        )
        await self.pulls("1")

    async def test_a_manifest_comes_back_with_its_tags(self) -> None:
        await self.delete(f"manifests/{DIGEST}")
        self.assertEqual(await self.status("manifests/1"), 404)
        out = await self.do("undelete", f"local/app@{DIGEST}")
        self.assertIn("1 manifests, 2 tags (1, 2)", out)
        for reference in ("1", "2", str(DIGEST)):
            await self.pulls(reference)

    async def test_a_name_comes_back_with_all_that_it_had(self) -> None:
        await self.delete(f"manifests/{DIGEST}")
        for blob in (b"{}", LAYER):
            await self.delete(f"blobs/{Digest.of(blob)}")
        self.assertIn("1 manifests, 2 tags (1, 2), 2 blobs", await self.do("undelete", "app"))
        await self.pulls("1")

    async def test_what_was_not_deleted_is_one_line(self) -> None:
        result = await self.command("undelete", "app:1")
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertRegex(result.err, r"\Aartifactd: nothing that was deleted [^\n]+\n\Z")
