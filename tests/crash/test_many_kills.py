"""
``kill -9`` at moments nobody has chosen, while clients push, mount, pull, delete and pull through,
and garbage is collected.

When the daemon is killed does not depend on time: after so many steps on the disk, in the middle
of one, or when so many requests have been answered, while others are under way.

``CRASH_SEED`` sets what is done and when it is killed, as far as threads let it; ``CRASH_KILLS``
how often, and ``CRASH_SECONDS`` for how long at most.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from random import Random, SystemRandom

from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import Served, image_manifest
from tests.crash.killing import Progress, Worker
from tests.durability.replay import check_nothing_left, finished
from tests.process import request
from tests.programs import Process, reactor
from tests.pull.case import noise
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

_KILLS = int(os.environ.get("CRASH_KILLS", "200"))
_SECONDS = float(os.environ.get("CRASH_SECONDS", "75"))
_CLIENTS = 4
# More requests or steps than a daemon may do before it is killed.
_REQUESTS, _STEPS = 60, 200
# Some seconds' lease, so that the collector has something to do.
_BUSY = 'lease = "3s"\ngrace = "0s"\ngc_interval = "50ms"\nsweep_interval = "200ms"\n'


class ManyKillsTests(TestCase):
    timeout = _SECONDS + 600

    async def test_all_that_was_acknowledged_is_there(self) -> None:
        seed = int(os.environ.get("CRASH_SEED") or SystemRandom().getrandbits(32))
        try:
            await self.kill_many(Random(seed))
        except BaseException:
            print(f"CRASH_SEED={seed}")
            raise

    async def kill_many(self, random: Random) -> None:
        upstream = self.upstream()
        self.data = Path(self.mktemp()).absolute()
        self.config = self.data.with_name("artifactd.toml")
        self.config.parent.mkdir(parents=True, exist_ok=True)
        settings = settings_for(self.hub, retries=0, resumes=1, freshness="1d", size_cap="200KiB")
        self.config.write_text(_BUSY + settings)
        shared = b"what all images share"
        workers = [
            Worker(f"kill/{n}", Random(random.random()), upstream, shared) for n in range(_CLIENTS)
        ]
        await self.push("kill/shared", shared)
        until, kills = reactor.seconds() + _SECONDS, 0
        while kills < _KILLS and reactor.seconds() < until:
            await self.kill(workers, random)
            kills += 1
        await self.look(workers)
        last = Served.start(self, settings, data=self.data)
        await finished(last.service)
        check_nothing_left(self.data)
        total = {m: sum(w.counts.get(m, 0) for w in workers) for m in ("POST", "PUT", "GET")}
        print(f"\n    killed {kills} times; requests answered: {total}", file=sys.stderr)

    def upstream(self) -> dict[str, bytes]:
        """Let a hub have some blobs; by the paths that the daemon has them under."""
        self.hub = Hub.start(self)
        contents = [noise(size, size) for size in (100_000, 150_000, 300_000)]
        name = "library/app"
        return {
            f"/v2/docker.io/{name}/blobs/{self.hub.images.add_blob(content, name)}": content
            for content in contents
        }

    async def start(self, steps: int) -> tuple[Process, int]:
        """A daemon that kills itself after so many steps, and its port: 0 if it has done so."""
        daemon = Process.fork(
            self, "tests.crash.fatal", str(self.data), str(self.config), str(steps)
        )
        try:
            said = await daemon.matched(r"port (\d+)\n")
        except AssertionError:
            return daemon, 0
        return daemon, int(said[1])

    async def kill(self, workers: list[Worker], random: Random) -> None:
        """Let a daemon start, and work until it is killed."""
        steps = random.randrange(1, _STEPS) if random.random() < 0.5 else 0
        daemon, port = await self.start(steps)
        if port:
            progress = Progress(daemon.pid, random.randrange(1, _REQUESTS))
            await gatherResults([deferToThread(each.work, port, progress) for each in workers])
        self.assertEqual(await daemon.ended(), -signal.SIGKILL, daemon.output[-5000:])

    async def push(self, name: str, blob: bytes) -> None:
        """Push an image of one blob, which is its config too."""
        daemon, port = await self.start(0)
        path = f"/v2/{name}/blobs/uploads/?digest={Digest.of(blob)}"
        self.assertEqual((await request(port, "POST", path, body=blob)).status, 201)
        headers, manifest = {"Content-Type": OCI_MANIFEST}, image_manifest(blob, blob)
        path = f"/v2/{name}/manifests/latest"
        put = await request(port, "PUT", path, body=manifest, headers=headers)
        self.assertEqual(put.status, 201)
        await daemon.kill(signal.SIGKILL)

    async def look(self, workers: list[Worker]) -> None:
        """See that all is there, and stop."""
        daemon, port = await self.start(0)
        await gatherResults([deferToThread(each.check, port) for each in workers])
        await daemon.kill(signal.SIGKILL)
