"""``artifactd webhooks``: ls, show, replay, test."""

from __future__ import annotations

import json

from tests.api.served import image_manifest
from tests.commands.maintaining import MaintenanceTestCase
from tests.webhooks.hook import Hook


class WebhooksTests(MaintenanceTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.hook = Hook(self)
        self.local = f'[webhook.ci]\nurl = "{self.hook.url}"\nevents = ["push", "delete"]'
        await super().setUp()
        await self.daemon.push_blob("app", b"{}")
        for tag in ("v1", "v2"):
            await self.daemon.push_manifest("app", tag, image_manifest(b"{}"))
        await self.hook.wait_for(2)

    async def noted(self, count: int) -> None:
        """Wait until the daemon has noted so many deliveries, some time after they were told."""
        await self.hook.wait_for(count)
        delivered = 0
        while delivered < count:
            (listed,) = map(json.loads, (await self.do("webhooks", "ls", "--json")).splitlines())
            delivered = listed["delivered"]

    async def test_it_lists_shows_replays_and_tests(self) -> None:
        (listed,) = map(json.loads, (await self.do("webhooks", "ls", "--json")).splitlines())
        self.assertEqual(("ci", 0), (listed["webhook"], listed["dropped"]))
        self.assertNotIn("t0ken", str(listed))  # nor is any other part of the path

        rows = [line.split("\t") for line in (await self.do("webhooks", "ls", "ci")).splitlines()]
        self.assertEqual(
            [["push", "local/app", "v1"], ["push", "local/app", "v2"]], [row[2:5] for row in rows]
        )
        last = rows[-1][0]
        shown = await self.do("webhooks", "show", last)
        self.assertIn('"action": "push"', shown)
        (shown_json,) = map(
            json.loads, (await self.do("webhooks", "show", last, "-j")).splitlines()
        )
        self.assertEqual(self.hook.told[1].id, shown_json["message"])

        await self.noted(2)
        self.assertIn("1 events", await self.do("webhooks", "replay", last))
        await self.noted(3)
        self.assertEqual(self.hook.told[1].id, self.hook.told[2].id)
        self.assertIn("2 events", await self.do("webhooks", "replay", "--all"))
        await self.noted(5)
        late = await self.command("webhooks", "replay", "--since", "2999-01-01")
        self.assertEqual((1, "0 events are delivered again\n"), (late.status, late.out))

        self.assertIn("has taken a ping", await self.do("webhooks", "test", "ci"))
        self.assertEqual("ping", self.hook.told[-1].event["action"])
        self.hook.status = 500
        self.assertIn("answers 500", await self.assert_refused("webhooks", "test", "ci"))

    async def test_wrong_arguments_are_told_in_one_line(self) -> None:
        for argv in (
            ("list",),
            ("show",),
            ("show", "x"),
            ("show", "9" * 30),
            ("replay",),
            ("replay", "--since", "soon"),
            ("test", "other"),
        ):
            self.assertNotIn("Traceback", await self.assert_refused("webhooks", *argv))

    async def test_what_a_command_deletes_is_told(self) -> None:
        await self.do("rm", "app:v1")
        told = (await self.hook.wait_for(3))[2].event
        self.assertEqual(
            ("delete", "v1", "rm"),
            (told["action"], told["target"]["tag"], told["actor"]["name"]),
        )
