"""``kill -9`` at moments nobody has chosen, while several clients push."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.client import HTTPException
from itertools import count
from random import Random, SystemRandom

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from artifactd.oci.digest import Digest
from artifactd.oci.manifest import OCI_MANIFEST
from tests.api.served import image_manifest
from tests.crash.test_sweep import listed, stored, swept
from tests.daemon import Answer, Daemon
from tests.programs import reactor

KILLS = 25
CLIENTS = 3


@define
class Pusher:
    """
    Pushes small images into one image name, each under a tag of its own and as ``latest``, for as
    long as the daemon answers.

    :ivar acknowledged: the digest of each image whose 201 was read, by its tag.
    :ivar killed: whether the daemon is being killed.
    """

    daemon: Daemon
    name: str
    numbers: Iterator[int]
    acknowledged: dict[str, Digest] = field(factory=dict)
    killed: bool = False

    async def push_until_killed(self) -> None:
        try:
            for number in self.numbers:
                await self.push(number)
        except (OSError, HTTPException):  # what a connection says that ends half-way
            if not self.killed:
                raise

    async def push(self, number: int) -> None:
        """One image: a config in one request, a layer as Docker pushes it, the manifest."""
        config = json.dumps({"number": number}).encode()
        layer = Random(number).randbytes(20_000)
        uploads = f"/v2/{self.name}/blobs/uploads/"
        await self._ask("POST", f"{uploads}?digest={Digest.of(config)}", 201, config)
        session = (await self._ask("POST", uploads, 202)).header("Location") or ""
        await self._ask("PATCH", session, 202, layer)
        await self._ask("PUT", f"{session}?digest={Digest.of(layer)}", 201)
        manifest = image_manifest(config, layer)
        for tag in (f"number-{number}", "latest"):
            await self._ask("PUT", f"/v2/{self.name}/manifests/{tag}", 201, manifest)
            self.acknowledged.setdefault(tag, Digest.of(manifest))

    async def _ask(self, method: str, path: str, status: int, body: bytes = b"") -> Answer:
        headers = {"Content-Type": OCI_MANIFEST}
        answer = await self.daemon.request(method, path, body=body, headers=headers)
        assert answer.status == status, answer
        return answer


class ManyKillsTests(TestCase):
    timeout = 600

    async def test_every_image_acknowledged_is_whole_and_no_tag_points_nowhere(self) -> None:
        seed = int(os.environ.get("CRASH_SEED") or SystemRandom().getrandbits(32))
        try:
            await self.kill_many(Random(seed))
        except BaseException:
            print(f"CRASH_SEED={seed}")
            raise

    async def kill_many(self, moments: Random) -> None:
        daemon = await Daemon.start(self)
        numbers = count()
        acknowledged: dict[str, dict[str, Digest]] = {}
        begun = reactor.seconds()
        await Pusher(daemon, "crash/warm", numbers).push(next(numbers))
        one_image = reactor.seconds() - begun
        for kill in range(KILLS):
            pushers = [Pusher(daemon, f"crash/{kill}", numbers) for _ in range(CLIENTS)]
            pushing = [Deferred.fromCoroutine(pusher.push_until_killed()) for pusher in pushers]
            await deferLater(reactor, moments.uniform(0, 2 * CLIENTS * one_image))
            for pusher in pushers:
                pusher.killed = True
            await daemon.kill()
            await gatherResults(pushing)
            await daemon.restart()
            tags = acknowledged[f"crash/{kill}"] = {}
            for pusher in pushers:
                tags |= pusher.acknowledged
            await self.assert_whole(daemon, f"crash/{kill}", tags)
        await daemon.kill()
        await swept(daemon)
        self.assertEqual(stored(daemon.data), listed(daemon.data))
        for name, tags in acknowledged.items():
            await self.assert_whole(daemon, name, tags)
        self.assertGreater(
            sum(map(len, acknowledged.values())), KILLS, "hardly anything was pushed"
        )

    async def assert_whole(self, daemon: Daemon, name: str, tags: dict[str, Digest]) -> None:
        """Image ``name`` has all of ``tags``, and of every tag that it has, all blobs."""
        answer = await daemon.request("GET", f"/v2/{name}/tags/list")
        found = json.loads(answer.body)["tags"] if answer.status == 200 else []
        self.assertEqual(tags.keys() - found, set(), f"acknowledged and lost from {name}")
        for tag in found:
            answer = await daemon.request("GET", f"/v2/{name}/manifests/{tag}")
            self.assertEqual(answer.status, 200, f"{name}:{tag}")
            if tag != "latest" and tag in tags:
                self.assertEqual(Digest.of(answer.body), tags[tag])
            manifest = json.loads(answer.body)
            for blob in (manifest["config"], *manifest["layers"]):
                answer = await daemon.request("GET", f"/v2/{name}/blobs/{blob['digest']}")
                self.assertEqual(answer.status, 200, f"{blob} of {name}:{tag}")
                self.assertEqual(str(Digest.of(answer.body)), blob["digest"])
