"""``kill -9`` while events wait for a webhook, and while its receiver has not answered."""

from __future__ import annotations

import signal

from twisted.trial.unittest import TestCase

from tests.api.served import image_manifest
from tests.process import Daemon
from tests.webhooks.hook import Hook

IMAGES = ("app", "team/other")


class WebhookKillTests(TestCase):
    async def test_each_event_comes_at_least_once_in_the_order_of_its_image(self) -> None:
        hook = Hook(self)
        toml = f'[repository.local]\nkind = "local"\n[webhook.ci]\nurl = "{hook.url}"\n'
        daemon = await Daemon.start(self, toml=toml, workers="2")
        content = image_manifest(b"{}")
        for image in IMAGES:
            await daemon.push_blob(image, b"{}")
        pushed: list[str] = []
        got = 0
        for kill in range(3):
            hook.status = 0  # what it gets now, the daemon does not know
            for number in range(3):
                pushed.append(f"v{kill}.{number}")
                for image in IMAGES:
                    await daemon.push_manifest(image, pushed[-1], content)
            await hook.wait_for(got + len(IMAGES))
            self.assertEqual(await daemon.kill(), -signal.SIGKILL)
            got = len(hook.told)
            hook.status = 200 if kill else 0  # after the second death some are delivered
            await daemon.restart()
            if kill == 1:
                await hook.wait_for(got + 4)
                got = len(hook.told)
        wanted = {(image, tag) for image in IMAGES for tag in pushed}
        while {each.tag for each in hook.told} != wanted:
            await hook.wait_for(len(hook.told) + 1)
        ids = {each.id: each.tag for each in hook.told}
        self.assertEqual(len(wanted), len(ids))  # a repeated event has the id that it had
        for image in IMAGES:
            tags = [each.tag[1] for each in hook.told if each.tag[0] == image]
            places = [pushed.index(tag) for tag in tags]
            # One that is repeated comes before any later one.
            self.assertEqual(places, sorted(places), tags)
