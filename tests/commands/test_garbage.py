"""``artifactd gc`` and ``artifactd undelete`` beside a running daemon; and what that collects."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from twisted.trial.unittest import TestCase

from artifactd.commands.backup import Backup
from artifactd.oci.digest import Digest
from artifactd.store.folder import DataFolder, FolderCollectionLock
from tests.api.served import image_manifest
from tests.commands.test_main import artifactd
from tests.crash.test_sweep import listed, stored
from tests.process import Daemon
from tests.programs import Result, wait_for

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
        for tag in tags:
            await self.daemon.push_manifest("app", tag, MANIFEST)

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
        self.assertEqual(summary.removeprefix("would be "), last.rpartition(";")[0])

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

    async def test_while_another_process_collects_it_says_so(self) -> None:
        await self.start(AT_ONCE)
        lock = FolderCollectionLock(self.daemon.data)
        self.assertTrue(lock.claim())
        self.addCleanup(lock.release)
        result = await self.command("gc")
        self.assertEqual(result.status, 1)
        self.assertIn("another process collects", result.err)

    async def test_the_daemon_collects_by_itself(self) -> None:
        await self.start(f'gc_interval = "50ms"\n{AT_ONCE}')
        await self.push()
        await wait_for(lambda: self.stored == {})

        async def counted() -> bool:
            return 'artifactd_gc_collected_total{why="bytes"} 2.0' in await self.metrics()

        await wait_for(counted)


class BackupTests(GarbageTestCase):
    async def test_what_the_copied_catalog_lists_stays_until_it_is_copied(self) -> None:
        await self.start(AT_ONCE)
        await self.push("1")
        await self.delete(f"manifests/{DIGEST}")
        tried: list[str] = []
        target = Path(self.mktemp()).absolute()

        def collect(backup: Backup) -> None:
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
