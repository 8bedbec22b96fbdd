"""``artifactd ls``, ``tags``, ``show``, ``history``, ``du``, ``rm`` and ``restore``."""

from __future__ import annotations

import json
from typing import Any

from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Digest
from tests.api.described import told
from tests.api.served import image_index, image_manifest
from tests.commands.maintaining import NAME, MaintenanceTestCase

CONFIG = b'{"os": "linux", "architecture": "arm64"}'


class SeeingTests(MaintenanceTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.old = await self.push_as("app", "v1", b"layer", b"shared")
        self.new = await self.push_as("app", "v1", b"newer layer", b"shared")
        await self.push_as("team/other", "latest", b"shared")

    async def push_as(self, name: str, tag: str, *layers: bytes) -> Digest:
        for blob in (CONFIG, *layers):
            await self.daemon.push_blob(name, blob)
        return await self.daemon.push_manifest(name, tag, image_manifest(CONFIG, *layers))

    async def rows(self, name: str, *argv: str) -> list[list[str]]:
        """The cells of what a command prints in a pipe."""
        return [line.split("\t") for line in (await self.do(name, *argv)).splitlines()]

    async def objects(self, name: str, *argv: str) -> list[Any]:
        out = await self.do(name, "--json", *argv)
        return [json.loads(line) for line in out.splitlines()]

    async def test_images_with_their_sizes(self) -> None:
        app, other = await self.objects("ls")
        self.assertEqual(
            ("local/app", 1, "local/team/other", 1),
            (
                *(app["image"], app["tags"]),
                *(other["image"], other["tags"]),
            ),
        )
        manifest = len(image_manifest(CONFIG, b"shared"))
        self.assertEqual(len(CONFIG) + len(b"shared") + manifest, other["size"])
        self.assertEqual(manifest, other["own"])  # config and layer are in the other image too
        self.assertIsNone(app["pulled"])
        self.assertEqual(["local/app", "1"], (await self.rows("ls"))[0][:2])

    async def test_images_by_a_pattern(self) -> None:
        self.assertEqual(["local/team/other"], [r[0] for r in await self.rows("ls", "*/team/*")])
        self.assertEqual(["local/app"], [r[0] for r in await self.rows("ls", "local/[!t]*")])
        result = await self.command("ls", "absent*")
        self.assertEqual((1, "", ""), (result.status, result.out, result.err))

    async def test_tags(self) -> None:
        (seen,) = await self.objects("tags", "app")
        self.assertEqual(("v1", str(self.new)), (seen["tag"], seen["digest"]))
        self.assertEqual(["linux/arm64"], seen["platforms"])
        manifest = len(image_manifest(CONFIG, b"newer layer", b"shared"))
        self.assertEqual(len(CONFIG + b"newer layer" + b"shared") + manifest, seen["size"])
        await self.assert_refused("tags", "absent")

    async def test_the_platforms_and_the_size_of_an_index(self) -> None:
        child = image_manifest(CONFIG, b"shared")
        index = json.loads(image_index(child))
        index["manifests"][0]["platform"] = {"os": "linux", "architecture": "arm", "variant": "v7"}
        content = json.dumps(index).encode()
        answer = await self.daemon.request(
            "PUT", "/v2/team/other/manifests/all", content, {"Content-Type": OCI_INDEX}
        )
        self.assertEqual(201, answer.status)
        seen = (await self.objects("tags", "team/other"))[0]
        self.assertEqual(["linux/arm/v7"], seen["platforms"])
        self.assertEqual(len(content) + len(child) + len(CONFIG + b"shared"), seen["size"])
        shown = await self.do("show", "team/other:all")
        self.assertIn(f"manifest {Digest.of(child)}", shown)
        self.assertIn(f"    config {Digest.of(CONFIG)}", shown)
        self.assertIn(f"manifest {Digest.of(child)}  linux/arm/v7", shown)

    async def test_a_manifest_and_why_it_is_kept(self) -> None:
        (seen,) = await self.objects("show", "app:v1")
        self.assertEqual(["v1"], seen["tags"])
        shared = {each["digest"]: each["shared"] for each in seen["entries"]}
        self.assertEqual(1, shared[str(Digest.of(b"shared"))])
        self.assertEqual(0, shared[str(Digest.of(b"newer layer"))])
        self.assertIn("kept by the tag v1", await self.do("show", "app:v1"))
        self.assertIn("kept by nothing", await self.do("show", f"app@{self.old}"))
        await self.assert_refused("show", "app:absent")

    async def test_the_history_of_a_tag(self) -> None:
        first, second = await self.objects("history", "app:v1")
        self.assertEqual((None, str(self.old)), (first["before"], first["after"]))
        self.assertEqual((str(self.old), str(self.new)), (second["before"], second["after"]))
        self.assertEqual(2, len(await self.rows("history", "app")))
        told = await self.assert_refused("history", f"app@{self.old}")
        self.assertIn("expected IMAGE or IMAGE:TAG, got a digest", told)
        self.assertIn("no image of that name", await self.assert_refused("history", "absent"))

    async def test_what_repositories_hold(self) -> None:
        usage = {each["repository"]: each for each in await self.objects("du")}
        self.assertEqual((2, 2), (usage["local"]["images"], usage["local"]["tags"]))
        self.assertGreater(usage["local"]["size"], 0)

    async def test_images_that_take_most(self) -> None:
        await self.push_as("small", "v1", b"shared")
        listed = await self.objects("du", "local/*")
        owned = [each["own"] for each in listed]
        self.assertEqual("local/app", listed[0]["image"])
        self.assertEqual((3, sorted(owned, reverse=True)), (len(owned), owned))
        self.assertEqual([listed[0]], await self.objects("du", "--most", "1", "local/*"))
        self.assertEqual(["local/app", "1"], (await self.rows("du", "*/app"))[0][:2])
        self.assertEqual(1, (await self.command("du", "absent/*")).status)
        for wrong in "0", "few":
            self.assertIn("most", await self.assert_refused("du", "--most", wrong, "*"))

    async def test_tags_are_deleted_by_a_pattern(self) -> None:
        await self.push_as("app", "v2", b"shared")
        before = await self.do("ls", "--json")
        self.assertIn("would delete local/app:v1", await self.do("rm", "--dry-run", "app:v*"))
        self.assertEqual(before, await self.do("ls", "--json"))
        said = await self.do("rm", "app:v*")
        self.assertEqual("deleted local/app:v1\ndeleted local/app:v2\n", said)
        self.assertEqual(404, (await self.get("app/manifests/v1")).status)
        rows = await self.rows("undelete", "--list", "app")
        self.assertEqual(["v2", "v1"], [row[3] for row in rows])
        await self.do("rm", "team/other:*")
        rows = await self.rows("undelete", "--list")
        expected = ["local/team/other", "tag", "latest"], ["local/app", "tag", "v2"]
        self.assertEqual([*expected], [row[1:4] for row in rows[:2]])
        self.assertIn("say which image", await self.assert_refused("undelete"))
        await self.do("undelete", "app:v1")
        self.assertEqual(200, (await self.get("app/manifests/v1")).status)

    async def test_a_manifest_is_deleted(self) -> None:
        self.assertEqual(f"deleted local/app@{self.new}\n", await self.do("rm", f"app@{self.new}"))
        self.assertEqual(404, (await self.get("app/manifests/v1")).status)

    async def test_what_nothing_else_holds_is_freed_at_once(self) -> None:
        self.assertTrue(self.here(b"newer layer"))
        await self.do("rm", "app:v1")
        self.assertTrue(self.here(b"newer layer"), "it can be brought back")
        await self.do("undelete", "app:v1")
        said = await self.do("rm", "--now", "--dry-run", "app:v1")
        self.assertIn(f"would delete local/app:v1\nwould delete local/app@{self.new}\n", said)
        self.assertIn(f"bytes: {Digest.of(b'newer layer')}, 11 bytes", said)
        self.assertNotIn(str(Digest.of(b"shared")), said)
        self.assertEqual(200, (await self.get("app/manifests/v1")).status)
        self.assertTrue(self.here(b"newer layer"))
        said = await self.do("rm", "--now", "app:v1")
        self.assertIn(f"deleted local/app:v1\ndeleted local/app@{self.new}\n", said)
        self.assertIn("bytes of the store", said.splitlines()[-1])
        self.assertFalse(self.here(b"newer layer"))
        self.assertTrue(self.here(b"shared"), "the other image has it too")
        self.assertTrue(self.here(b"layer"), "another manifest has it, which was not deleted")
        self.assertEqual(1, (await self.command("undelete", "--list", "app")).status)

    async def test_a_manifest_that_something_keeps_is_not_freed(self) -> None:
        await self.daemon.push_manifest(
            "app", "also", image_manifest(CONFIG, b"newer layer", b"shared")
        )
        said = await self.do("rm", "--now", "app:v1")
        self.assertNotIn(str(self.new), said)
        answer = await self.get("app/manifests/also")
        self.assertEqual(
            (200, str(self.new)), (answer.status, answer.header("Docker-Content-Digest"))
        )
        self.assertTrue(self.here(b"newer layer"))

    async def test_what_commands_did_is_told_in_json_too(self) -> None:
        (deleted,) = await self.objects("rm", "app:v1")
        self.assertEqual(("local/app", "v1", str(self.new), False, True), tuple(deleted.values()))
        (listed,) = await self.objects("undelete", "--list", "app")
        self.assertEqual(("tag", "v1", "rm"), (listed["kind"], listed["name"], listed["actor"]))
        (restored,) = await self.objects("undelete", "app:v1")
        self.assertEqual((["v1"], []), (restored["tags"], restored["manifests"]))
        (moved,) = await self.objects("restore", "app:v1", "--to", str(self.old))
        self.assertEqual(("v1", str(self.old), str(self.new)), tuple(moved.values())[1:])
        *gone, counts = await self.objects("rm", "--now", "app:v1")
        told = [("v1", str(self.old)), (str(self.old), str(self.old))]
        self.assertEqual(told, [(each["reference"], each["digest"]) for each in gone[:2]])
        names = {each["name"]: each["why"] for each in gone[2:]}
        self.assertEqual("bytes", names[str(Digest.of(b"layer"))])
        self.assertEqual(2, counts["bytes"])  # the layer and the manifest

    async def test_what_is_not_there_is_not_deleted(self) -> None:
        for wanted in ("app:absent", "app:w*", f"app@{Digest.of(b'absent')}", "absent:v1", "app"):
            await self.assert_refused("rm", wanted)

    async def test_a_tag_is_restored(self) -> None:
        await self.do("restore", "app:v1", "--to", str(self.old))
        answer = await self.get("app/manifests/v1")
        self.assertEqual(str(self.old), answer.header("Docker-Content-Digest"))
        await self.do("restore", "app:v1", "--to", str(self.new))
        moved = await self.objects("history", "app:v1")
        self.assertEqual("restore", moved[-1]["actor"])
        self.assertEqual(str(self.new), moved[-1]["after"])

    async def test_a_tag_is_restored_as_it_was_at_a_time(self) -> None:
        await self.do("rm", "app:v1")
        told = await self.assert_refused("restore", "app:v1", "--at", "2999-01-01")
        self.assertIn("had no tag v1", told)
        told = await self.assert_refused("restore", "app:v1", "--at", "1999-01-01T10:00:00Z")
        self.assertIn("had no tag v1 at 1999-01-01T10:00:00Z", told)
        await self.push_as("app", "v2", b"shared")
        await self.do("restore", "app:v2", "--at", "2999-01-01")
        self.assertIn(
            "--at: expected a time", await self.assert_refused("restore", "app:v2", "--at", "now")
        )
        self.assertIn("--to DIGEST or --at", await self.assert_refused("restore", "app:v2"))


class ImmutableTests(MaintenanceTestCase):
    """What clients may not change, an administrator changes by an option alone."""

    local = 'immutable_tags = ["v*"]'

    async def test_it_is_deleted_and_moved_by_the_option_alone(self) -> None:
        for blob in (CONFIG, b"one", b"two"):
            await self.daemon.push_blob("app", blob)
        first = await self.daemon.push_manifest("app", "v1", image_manifest(CONFIG, b"one"))
        other = await self.daemon.push_manifest("app", "latest", image_manifest(CONFIG, b"two"))
        for argv in (("rm", "app:v1"), ("rm", "-n", f"app@{first}")):
            told = await self.assert_refused(*argv)
            self.assertIn('is not deleted: immutable_tags of the settings has "v*"', told)
        result = await self.command("rm", "--dry-run", "app:*")
        self.assertEqual((1, "would delete local/app:latest\n"), (result.status, result.out))
        told = await self.assert_refused("restore", "app:v1", "--to", str(other))
        self.assertIn("local/app:v1 is not moved", told)
        self.assertIn("v1", await self.do("restore", "app:v1", "--to", str(first)))
        await self.do("restore", "--immutable", "app:v1", "--to", str(other))
        self.assertEqual("deleted local/app:v1\n", await self.do("rm", "--immutable", "app:v1"))
        await self.do("undelete", "app:v1")
        self.assertEqual(200, (await self.get("app/manifests/v1")).status)


class UpstreamTests(MaintenanceTestCase):
    """Tags of an upstream are in its hands, not in those of the operator here."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.image = f"docker.io/{NAME}"
        self.digest = self.hub.images.add_image(NAME, "1", b"layer")
        await self.pull("1")

    async def test_a_removed_tag_is_evicted_and_comes_again(self) -> None:
        for reference in f"{self.image}:*", f"{self.image}@{self.digest}":
            told = f"{reference.replace('*', '1')} from the cache: a pull fetches it again\n"
            self.assertEqual(f"would evict {told}", await self.do("rm", "-n", reference))
            self.assertTrue(self.here(b"layer"))
            self.assertEqual(f"evicted {told}", await self.do("rm", reference))
            self.assertFalse(self.here(b"layer"))
            result = await self.command("undelete", "--list", self.image)
            self.assertEqual((1, ""), (result.status, result.out), "there is nothing to undelete")
            await self.pull("1")

    async def test_the_api_evicts_alike(self) -> None:
        path = f"/images/{self.image}"
        for uri in f"{path}/tags/1", f"{path}/manifests/{self.digest}":
            self.assertTrue(self.here(b"layer"))
            self.assertEqual(
                str(self.digest), (await told(self, self.daemon, "GET", uri))["digest"]
            )
            for status, wanted in ((412, '"sha256:other"'), (204, f'"{self.digest}"')):
                answer = await self.daemon.request(
                    "DELETE", f"/api/v1{uri}", None, {"If-Match": wanted}
                )
                self.assertEqual(status, answer.status, answer.body)
            self.assertFalse(self.here(b"layer"))
            self.assertEqual(
                [], (await told(self, self.daemon, "GET", f"{path}/deleted"))["deleted"]
            )
            await self.pull("1")

    async def test_a_tag_is_not_restored(self) -> None:
        said = await self.assert_refused("restore", f"{self.image}:1", "--to", str(self.digest))
        self.assertIn(f"{self.image}:1 comes from an upstream, which says where it points", said)
