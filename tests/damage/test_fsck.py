"""``artifactd fsck``, beside a daemon; and that a backup passes it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from twisted.internet.defer import Deferred, gatherResults

from artifactd.oci.names import Digest
from artifactd.registry.upkeep.sweep import NEWBORN
from tests.api.served import descriptor, image_manifest
from tests.commands.maintaining import NAME, MaintenanceTestCase
from tests.commands.test_main import artifactd
from tests.crash.pulling import content
from tests.damage.rot import WAYS, file_of, rot
from tests.rows import writing

LAYER = b"layer"


class FsckTests(MaintenanceTestCase):
    def execute(self, statement: str, *values: object) -> None:
        with writing(self.daemon.data / "catalog.sqlite3") as db:
            db.execute(statement, values)

    async def fsck(self, *argv: str) -> tuple[int, list[str]]:
        """Its exit status, and its lines."""
        result = await self.command("fsck", *argv)
        self.assertNotIn("Traceback", result.err)
        return result.status, result.out.splitlines()

    async def assert_clean(self) -> None:
        status, lines = await self.fsck()
        self.assertEqual((status, len(lines)), (0, 1), lines)
        self.assertIn("0 problems left, 0 repaired, 0 notes", lines[-1])

    async def test_right_data_is_a_line(self) -> None:
        await self.push("app", LAYER)
        self.hub.images.add_image(NAME, "1", content(1))
        await self.pull("1")
        usual = json.loads(self.hub.images.manifest_of(NAME, "1"))
        layer = {**usual["layers"][0], "size": float(usual["layers"][0]["size"])}
        loose: list[dict[str, object]] = [
            {"layers": [layer], "annotations": {"a": None, "b": 2}},
            {"layers": None, "Subject": layer, "ArtifactType": "a/b"},
        ]
        for number, fields in enumerate(loose):
            tag, other = (
                f"other{number}",
                b"\xef\xbb\xbf" + json.dumps({**usual, **fields}).encode(),
            )
            self.hub.images.add_manifest(NAME, tag, other, usual["mediaType"])
            self.assertEqual((await self.get(f"docker.io/{NAME}/manifests/{tag}")).body, other)
        await self.assert_clean()

    async def test_pushed_bytes_that_rot_are_a_problem_until_they_are_pushed_again(self) -> None:
        for number, way in enumerate(WAYS):
            await self.push(f"app{number}", way.encode())
            rot(self.daemon.data, Digest.of(way.encode()), way)
        for options in ((), ("--repair",), ("--repair",)):
            status, lines = await self.fsck(*options)
            self.assertEqual((status, len(lines)), (1, len(WAYS) + 1), lines)
            for number, way in enumerate(WAYS):
                (line,) = [text for text in lines if str(Digest.of(way.encode())) in text]
                self.assertTrue(line.startswith("problem: lost: "), line)
                self.assertIn(f"push it again: local/app{number}", line)
        for number, way in enumerate(WAYS):
            await self.push(f"app{number}", way.encode())
        await self.assert_clean()

    async def test_all_problems_are_found_behind_a_page_of_rows(self) -> None:
        await self.push("app", LAYER)
        for number in range(70):
            digest = str(Digest.of(b"lost %d" % number))
            self.execute("INSERT INTO blob (digest, size, created_at) VALUES (?, 9, 1.0)", digest)
            self.execute(
                "INSERT INTO blob_link (image_id, blob_id)"
                " SELECT image.id, blob.id FROM image, blob WHERE blob.digest = ?",
                digest,
            )
        status, lines = await self.fsck()
        self.assertEqual(status, 1)
        lost = [line for line in lines if line.startswith("problem: lost: ")]
        self.assertEqual(len(lost), 70)

    async def test_what_was_pushed_is_a_problem_however_many_upstream_images_have_it(self) -> None:
        await self.push("zoo", LAYER)
        digest = Digest.of(LAYER)
        for number in range(25):
            self.execute(
                "INSERT INTO image (repository, name, known_at) VALUES ('docker.io', ?, 1.0)",
                f"library/app{number}",
            )
            self.execute(
                "INSERT INTO blob_link (image_id, blob_id, used_at)"
                " SELECT image.id, blob.id, 1.0 FROM image, blob WHERE name = ? AND digest = ?",
                f"library/app{number}",
                str(digest),
            )
        rot(self.daemon.data, digest, "a bit flips")
        status, lines = await self.fsck("--repair")
        self.assertEqual(status, 1, lines)
        (line,) = [text for text in lines if text.startswith("problem: lost: ")]
        self.assertIn("push it again: local/zoo", line)

    async def test_without_reading_it_finds_what_has_another_size(self) -> None:
        for way in ("a bit flips", "it grows", "it is gone"):
            await self.push("app", way.encode())
            rot(self.daemon.data, Digest.of(way.encode()), way)
        status, lines = await self.fsck("--no-hash")
        self.assertEqual((status, len(lines)), (1, 3), lines)

    async def test_what_is_noted_as_lost_and_is_right_is_here_again(self) -> None:
        await self.push("app", LAYER)
        digest = Digest.of(LAYER)
        self.execute("UPDATE blob SET lost_at = 1.0 WHERE digest = ?", str(digest))
        status, lines = await self.fsck()
        self.assertEqual((status, len(lines)), (1, 2), lines)
        self.assertIn("its right file is here", lines[0])
        status, lines = await self.fsck("--repair", "--no-hash")
        self.assertEqual((status, len(lines)), (0, 2), lines)
        answer = await self.get(f"app/blobs/{digest}")
        self.assertEqual((answer.status, answer.body), (200, LAYER))
        await self.assert_clean()

    async def test_without_reading_it_throws_no_right_bytes_away(self) -> None:
        await self.push("app", LAYER)
        self.execute("UPDATE blob SET size = size + 1")
        status, lines = await self.fsck("--no-hash", "--repair")
        self.assertEqual(status, 0, lines)
        self.assertTrue(all(text.startswith("repaired: size: ") for text in lines[:-1]), lines)
        answer = await self.get(f"app/blobs/{Digest.of(LAYER)}")
        self.assertEqual((answer.status, answer.body), (200, LAYER))
        await self.assert_clean()

    async def test_what_came_from_an_upstream_is_fetched_again_after_a_repair(self) -> None:
        self.hub.images.add_image(NAME, "1", content(1))
        manifest = Digest.of((await self.get(f"docker.io/{NAME}/manifests/1")).body)
        blobs = await self.pull("1")
        for digest in (*map(Digest.parse, blobs), manifest):
            rot(self.daemon.data, digest, "a bit flips")
        status, lines = await self.fsck()
        self.assertEqual((status, len(lines)), (1, len(blobs) + 2), lines)
        status, lines = await self.fsck("--repair")
        self.assertEqual(status, 0, lines)
        self.assertIn(f"0 problems left, {len(blobs) + 1} repaired", lines[-1])
        await self.assert_clean()
        self.assertEqual((await self.pull("1")).keys(), blobs.keys())
        await self.assert_clean()

    async def test_rows_of_a_manifest_are_made_anew_from_its_bytes(self) -> None:
        await self.push("app", LAYER)
        # What a field that is unknown here describes is held, and may be absent.
        further = [descriptor(b"{}"), descriptor(b"absent")]
        await self.daemon.push_manifest("app", "1", image_manifest(b"{}", LAYER, further=further))
        before = (await self.get("app/manifests/1")).header("Content-Type")
        for statement in (
            "UPDATE manifest SET media_type = 'application/vnd.oci.image.index.v1+json'",
            "UPDATE manifest SET artifact_type = 'other', annotations = '{\"a\": \"b\"}'",
            f"UPDATE manifest SET subject = '{Digest.of(LAYER)}'",
            "DELETE FROM manifest_entry",
            f"DELETE FROM manifest_entry WHERE digest = '{Digest.of(b'absent')}'",
            "UPDATE manifest_entry SET kind = 'manifest'",
            "UPDATE blob SET size = size + 1",
        ):
            self.execute(statement)
            status, lines = await self.fsck()
            self.assertEqual(status, 1, (statement, lines))
            status, lines = await self.fsck("--repair")
            self.assertEqual(status, 0, (statement, lines))
            await self.assert_clean()
        self.assertEqual((await self.get("app/manifests/1")).header("Content-Type"), before)

    async def test_an_image_that_lacks_what_it_refers_to_is_named(self) -> None:
        manifest = await self.push("app", LAYER)
        self.execute(
            "DELETE FROM blob_link WHERE blob_id = (SELECT id FROM blob WHERE digest = ?)",
            str(Digest.of(LAYER)),
        )
        status, lines = await self.fsck("--repair")
        self.assertEqual(status, 1, lines)
        (line,) = [text for text in lines if text.startswith("problem")]
        self.assertIn(f"incomplete: local/app@{manifest}", line)
        self.assertIn(str(Digest.of(LAYER)), line)
        settings = self.config.read_text()
        local = 'kind = "local"\n'
        self.config.write_text(settings.replace(local, f'{local}sparse = "images"\n'))
        await self.assert_clean()
        self.config.write_text(settings)
        await self.push("app", LAYER)
        await self.assert_clean()

    async def test_files_and_rows_that_nobody_needs(self) -> None:
        await self.push("app", LAYER)
        stray = Digest.of(b"stray")
        file = file_of(self.daemon.data, stray)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"stray")
        self.execute(
            "INSERT INTO upload (id, repository, image, algorithm, started)"
            " VALUES (?, 'local', 'app', 'sha256', ?)",
            "01234567-0123-4567-89ab-0123456789ab",
            time.time() - 2 * NEWBORN,  # the daemon does not sweep it yet
        )
        self.execute("UPDATE blob_link SET unheld_since = 1.0")
        status, lines = await self.fsck()
        kinds = [" ".join(line.split()[:2]) for line in lines[:-1]]
        self.assertIn("note: stray:", kinds)
        self.assertIn("note: upload:", kinds)
        self.assertIn("problem: lease:", kinds)
        self.assertEqual(status, 1)
        status, lines = await self.fsck("--repair")
        self.assertEqual(status, 0, lines)
        self.assertFalse(file.exists())
        await self.assert_clean()

    async def test_counts_that_are_not_what_they_count_are_told_and_counted_anew(self) -> None:
        manifest = await self.push("app", LAYER)
        size = sum(file.stat().st_size for file in self.daemon.data.glob("blobs/*/*/*"))
        for statement in (
            "UPDATE image_count SET tags = 7, own = own - 1",
            "UPDATE repository_count SET images = 5, tags = 2 WHERE repository = 'local'",
            "UPDATE repository_usage SET size = 3 WHERE repository = 'local'",
            f"UPDATE repository_blob SET links = 4 WHERE blob_id ="
            f" (SELECT id FROM blob WHERE digest = '{Digest.of(LAYER)}')",
            "UPDATE manifest SET held_size = 1",
        ):
            self.execute(statement)
        status, lines = await self.fsck()
        expected = [
            f"local: {Digest.of(LAYER)}: its repository has counted 4 links to it, and has 1",
            f"local: it has counted 3 bytes, which its quota is compared with, and has {size}",
            "local: it has counted 5 images and 2 tags, and has 1 and 1",
            f"local/app: it has counted 7 tags, {size} bytes and {size - 1} bytes that no other"
            f" image has, and has 1, {size} and {size}",
            f"local/app@{manifest}: its bytes with all that it holds are recorded as 1, and are"
            f" {size}",
        ]
        self.assertEqual(
            [f"problem: count: {text}; fsck --repair sees to it" for text in expected], lines[:-1]
        )
        self.assertEqual(status, 1)
        status, lines = await self.fsck("--repair")
        self.assertEqual([f"repaired: count: {text}" for text in expected], lines[:-1])
        self.assertEqual(status, 0)
        await self.assert_clean()

    async def test_a_row_that_refers_to_none_is_told(self) -> None:
        await self.push("app", LAYER)
        self.execute("PRAGMA foreign_keys = OFF")
        self.execute(
            "INSERT INTO tag (image_id, name, manifest_id, moved_at)"
            " VALUES (1, 'dangling', 4711, 1.0)"
        )
        status, lines = await self.fsck("--repair")
        self.assertEqual(status, 1)
        self.assertTrue(any(line.startswith("problem: database: ") for line in lines), lines)

    async def test_where_rows_are_missing_nothing_goes_for_want_of_them(self) -> None:
        await self.push("app", LAYER)
        layer = Digest.of(LAYER)
        self.execute("PRAGMA foreign_keys = OFF")
        self.execute("DELETE FROM blob WHERE digest = ?", str(layer))
        status, lines = await self.fsck("--repair")
        self.assertEqual((status, [line for line in lines if line.startswith("repaired")]), (1, []))
        self.assertTrue(any(line.startswith(f"note: stray: {layer}") for line in lines), lines)
        self.assertEqual(file_of(self.daemon.data, layer).read_bytes(), LAYER)

    async def test_a_folder_that_can_not_be_listed_does_not_hide_other_problems(self) -> None:
        await self.push("app", LAYER)
        self.execute("UPDATE image_count SET tags = 99")
        shelf = file_of(self.daemon.data, Digest.of(LAYER)).parent
        shelf.rename(self.mktemp())
        shelf.touch()
        status, lines = await self.fsck("--repair")
        kinds = [" ".join(line.split()[:2]) for line in lines[:-1]]
        self.assertEqual((status, sorted(set(kinds))), (1, ["problem: file:", "repaired: count:"]))


class BackupTests(MaintenanceTestCase):
    async def test_a_copy_made_under_load_passes_and_has_all_that_was_told(self) -> None:
        target = Path(self.mktemp()).absolute()
        told = {f"app{n}": await self.push(f"app{n}", content(n)) for n in range(4)}
        self.hub.images.add_image(NAME, "1", content(99))
        await self.pull("1")
        ended: list[object] = []

        async def push(worker: int) -> None:
            number = 0
            while not ended:
                number += 1
                name, layer = f"load{worker}", f"{worker} {number}".encode()
                await self.push(name, layer)
                if number % 2:
                    digest = Digest.of(image_manifest(b"{}", layer))
                    path = f"/v2/{name}/manifests/{digest}"
                    answer = await self.daemon.request("DELETE", path)
                    self.assertEqual(answer.status, 202)

        async def take_away() -> None:
            while not ended:
                await self.command("gc")
                await self.command("purge", f"docker.io/{NAME}")

        async def back_up() -> None:
            try:
                await self.do("backup", str(target))
            finally:
                ended.append(True)

        work = [push(0), push(1), take_away(), back_up()]
        await gatherResults([Deferred.fromCoroutine(each) for each in work])
        options = ("--config", str(self.config))
        result = await artifactd(self, "fsck", *options, ARTIFACTD_DATA=str(target))
        self.assertEqual(result.status, 0, result.out + result.err)
        await self.daemon.kill(signal.SIGTERM)
        self.daemon = await type(self.daemon).start(self, toml=self.config.read_text(), data=target)
        for number, (name, digest) in enumerate(told.items()):
            layer = await self.get(f"{name}/blobs/{Digest.of(content(number))}")
            self.assertTrue(layer.body == content(number))
            answer = await self.get(f"{name}/manifests/1")
            self.assertEqual(Digest.of(answer.body), digest)

    async def back_up(self, target: Path) -> tuple[int, str]:
        result = await self.command("backup", str(target))
        self.assertNotIn("Traceback", result.err)
        return result.status, result.err

    def lose(self, digest: Digest) -> None:
        """As a scrub does."""
        rot(self.daemon.data, digest, "it is gone")
        self.execute("UPDATE blob SET lost_at = 1.0 WHERE digest = ?", str(digest))

    def execute(self, statement: str, *values: object) -> None:
        with writing(self.daemon.data / "catalog.sqlite3") as db:
            db.execute(statement, values)

    async def assert_served(self, target: Path, *contents: bytes) -> None:
        """A daemon that starts from ``target`` has these, and fsck agrees."""
        options = ("--config", str(self.config))
        result = await artifactd(self, "fsck", *options, ARTIFACTD_DATA=str(target))
        self.assertEqual(result.status, 0, result.out + result.err)
        toml = self.config.read_text()
        restored = await type(self.daemon).start(self, toml=toml, data=target)
        for each in contents:
            answer = await restored.request("GET", f"/v2/app/blobs/{Digest.of(each)}")
            self.assertEqual((answer.status, answer.body), (200, each))

    async def test_what_was_lost_since_stays_in_the_backup_that_has_it(self) -> None:
        target = Path(self.mktemp()).absolute()
        await self.push("app", LAYER)
        self.assertEqual(await self.back_up(target), (0, ""))
        self.lose(Digest.of(LAYER))
        self.assertEqual(await self.back_up(target), (0, ""))
        await self.assert_served(target, LAYER)

    async def test_what_is_lost_and_in_no_backup_is_told_each_time(self) -> None:
        target = Path(self.mktemp()).absolute()
        await self.push("app", LAYER)
        self.lose(Digest.of(LAYER))
        for _ in range(2):
            status, errors = await self.back_up(target)
            self.assertEqual(status, 1)
            self.assertIn(str(Digest.of(LAYER)), errors)
        copy = file_of(target, Digest.of(LAYER))
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(LAYER[::-1])
        self.assertEqual((await self.back_up(target))[0], 1)

    async def test_a_row_of_a_wrong_size_loses_no_right_bytes(self) -> None:
        target = Path(self.mktemp()).absolute()
        await self.push("app", LAYER)
        self.execute("UPDATE blob SET size = size + 1 WHERE digest = ?", str(Digest.of(LAYER)))
        for _ in range(2):
            self.assertEqual(await self.back_up(target), (0, ""))
        await self.assert_served(target, LAYER)

    async def test_a_copy_says_what_it_lacks(self) -> None:
        target = Path(self.mktemp()).absolute()
        await self.push("app", LAYER)
        self.hub.images.add_image(NAME, "1", content(1))
        cached = await self.pull("1")
        for digest in (Digest.of(LAYER), *map(Digest.parse, cached)):
            rot(self.daemon.data, digest, "a bit flips")
        result = await self.command("backup", str(target))
        self.assertEqual(result.status, 1)
        self.assertIn(str(Digest.of(LAYER)), result.err)
        options = ("--config", str(self.config))
        result = await artifactd(self, "fsck", *options, ARTIFACTD_DATA=str(target))
        self.assertEqual(result.status, 1)
        problems = [line for line in result.out.splitlines() if line.startswith("problem")]
        self.assertEqual(len(problems), 1, problems)
        self.assertIn("push it again: local/app", problems[0])
