"""
``kill -9`` at moments nobody has chosen, while clients push and delete, and garbage goes; of two
workers and their supervisor.
"""

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

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import image_manifest
from tests.crash.test_sweep import listed, stored
from tests.process import Answer, Daemon
from tests.programs import reactor, wait_for

KILLS = 5
CLIENTS = 3
LAYERS = 6
TOML = """
lease = "1s"
grace = "0"
gc_interval = "20ms"
gc_rate = 0
sweep_interval = "200ms"
upload_timeout = "1s"
[repository.local]
kind = "local"
"""


def layer(number: int) -> bytes:
    """One of a few that all images are made of."""
    return Random(number % LAYERS).randbytes(5000)


@define
class Client:
    """
    Pushes images, and deletes some of them again, for as long as the daemon answers.

    :ivar there: the manifests that must be there, by their tags.
    :ivar killed: whether the daemon is being killed.
    """

    daemon: Daemon
    name: str
    numbers: Iterator[int]
    random: Random
    there: dict[str, bytes] = field(factory=dict)
    killed: bool = False

    async def work_until_killed(self) -> None:
        try:
            for number in self.numbers:
                while not await self.push(number):
                    pass
                if self.there and self.random.random() < 0.6:
                    await self.delete(self.random.choice(list(self.there)))
        except (OSError, HTTPException):  # what a connection says that ends half-way
            if not self.killed:
                raise

    async def push(self, number: int) -> bool:
        """One image; whether all of it was still there when its manifest came."""
        config = b"{}"
        for blob in (config, layer(number)):
            path = f"/v2/{self.name}/blobs/{Digest.of(blob)}"
            if (await self._ask("HEAD", path)).status == 404:
                upload = f"/v2/{self.name}/blobs/uploads/?digest={Digest.of(blob)}"
                assert (await self._ask("POST", upload, blob)).status == 201
        manifest = image_manifest(config, layer(number), annotations={"n": str(number)})
        put = await self._ask("PUT", f"/v2/{self.name}/manifests/{number}", manifest)
        if put.status == 201:
            self.there[str(number)] = manifest
        else:
            assert json.loads(put.body)["errors"][0]["code"] == "MANIFEST_BLOB_UNKNOWN", put
        return put.status == 201

    async def delete(self, tag: str) -> None:
        # Before: whether one that is not answered was done, nobody knows.
        digest = Digest.of(self.there.pop(tag))
        answer = await self._ask("DELETE", f"/v2/{self.name}/manifests/{digest}")
        assert answer.status == 202, answer

    async def _ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        headers = {"Content-Type": OCI_MANIFEST}
        return await self.daemon.request(method, path, body=body, headers=headers)

    async def assert_whole(self) -> None:
        for tag, manifest in self.there.items():
            answer = await self._ask("GET", f"/v2/{self.name}/manifests/{tag}")
            assert (answer.status, answer.body) == (200, manifest), f"{self.name}:{tag}: {answer}"
            document = json.loads(manifest)
            for held in (document["config"], *document["layers"]):
                blob = await self._ask("GET", f"/v2/{self.name}/blobs/{held['digest']}")
                assert blob.status == 200, f"{held} of {self.name}:{tag}: {blob}"
                assert str(Digest.of(blob.body)) == held["digest"]


class CollectionKillTests(TestCase):
    async def test_what_was_pushed_and_not_deleted_is_whole_after_each_kill(self) -> None:
        seed = int(os.environ.get("CRASH_SEED") or SystemRandom().getrandbits(32))
        try:
            await self.kill_many(Random(seed))
        except BaseException:
            print(f"CRASH_SEED={seed}")
            raise

    async def kill_many(self, moments: Random) -> None:
        daemon = await Daemon.start(self, toml=TOML, workers="2")
        numbers = count()
        begun = reactor.seconds()
        warm = Client(daemon, "warm", numbers, moments)
        await warm.push(next(numbers))
        one_image = reactor.seconds() - begun
        clients = [warm]
        for kill in range(KILLS):
            working = [Client(daemon, f"kill-{kill}-{n}", numbers, moments) for n in range(CLIENTS)]
            pushing = [Deferred.fromCoroutine(client.work_until_killed()) for client in working]
            await deferLater(reactor, moments.uniform(0, 4 * CLIENTS * one_image))
            for client in working:
                client.killed = True
            await daemon.kill()
            await gatherResults(pushing)
            await daemon.restart()
            clients += working
            for client in working:
                await client.assert_whole()
        # In the end there is what is needed, and no file without a row.
        needed = set[str]()
        for client in clients:
            await client.assert_whole()
            needed |= {str(Digest.of(manifest)) for manifest in client.there.values()}
        self.assertGreater(len(needed), KILLS, "hardly anything was pushed")
        await wait_for(lambda: stored(daemon.data) == listed(daemon.data))
        self.assertLessEqual(needed, stored(daemon.data).keys())
