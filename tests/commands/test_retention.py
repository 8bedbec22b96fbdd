"""``artifactd retention`` beside a running daemon."""

from __future__ import annotations

import json
from typing import Any

from tests.api.served import image_manifest
from tests.commands.maintaining import MaintenanceTestCase

RULES = """
immutable_tags = ["v*"]

[[repository.local.retention]]
images = ["team/*"]
tags = ["[!x]*"]
newest = 1
keep = ["stable"]
"""


class RetentionTests(MaintenanceTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        # Those of the commands alone: the daemon collects as it starts, and later.
        local = 'kind = "local"\n'
        self.config.write_text(self.config.read_text().replace(local, local + RULES))
        for name in ("team/app", "other"):
            await self.daemon.push_blob(name, b"{}")
            for tag in ("v1", "stable", "b1", "x", "b2"):
                content = image_manifest(b"{}", annotations={"tag": tag})
                await self.daemon.push_manifest(name, tag, content)

    async def judged(self, *argv: str) -> dict[str, Any]:
        out = await self.do("retention", "--dry-run", "--json", *argv)
        return {each["tag"]: each for each in map(json.loads, out.splitlines())}

    async def test_a_dry_run_tells_each_tag_and_the_rule_and_changes_nothing(self) -> None:
        judged = await self.judged()
        self.assertEqual({"local/team/app"}, {each["image"] for each in judged.values()})
        self.assertEqual(
            {"b1": "drop", "b2": "keep", "stable": "keep", "v1": "keep", "x": "keep"},
            {tag: each["verdict"] for tag, each in judged.items()},
        )
        self.assertEqual(["retention[0]"], judged["b1"]["rules"])
        rows = (await self.do("retention", "-n", "local/team/*")).splitlines()
        self.assertEqual(
            ["local/team/app:b1", "drop", "retention[0]: nothing keeps it"],
            rows[0].split("\t")[:3],
        )
        result = await self.command("retention", "--dry-run", "local/other")
        told = "artifactd: no rule of retention is for a tag of local/other: all stay\n"
        self.assertEqual((0, "", told), (result.status, result.out, result.err))
        self.assertEqual(200, (await self.get("team/app/manifests/b1")).status)

        self.config.write_text(self.config.read_text().replace(RULES, ""))
        result = await self.command("retention", "--dry-run")
        told = "artifactd: the settings have no rule of retention: all tags stay\n"
        self.assertEqual((0, "", told), (result.status, result.out, result.err))

    async def test_it_drops_and_undelete_brings_back(self) -> None:
        self.assertEqual("", await self.do("retention", "local/other"))
        self.assertEqual("local/team/app:b1\tdropped\n", await self.do("retention"))
        self.assertEqual(404, (await self.get("team/app/manifests/b1")).status)
        for tag in ("v1", "stable", "x", "b2"):
            self.assertEqual(200, (await self.get(f"team/app/manifests/{tag}")).status)
        *_, moved = (await self.do("history", "--json", "team/app:b1")).splitlines()
        self.assertEqual("retention[0]", json.loads(moved)["actor"])
        await self.do("undelete", "team/app:b1")
        self.assertEqual(200, (await self.get("team/app/manifests/b1")).status)
        # It is the newest now.
        self.assertEqual("drop", (await self.judged())["b2"]["verdict"])
        said = await self.do("gc", "--dry-run")
        self.assertIn("retention: local/team/app:b2", said)
        self.assertEqual(200, (await self.get("team/app/manifests/b2")).status)
        await self.do("read-only", "on")
        result = await self.command("retention")
        self.assertEqual((1, ""), (result.status, result.out))
