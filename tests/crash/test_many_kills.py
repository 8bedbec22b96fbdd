"""
``kill -9`` at moments nobody has chosen, while clients push, mount, pull, delete and pull through,
and garbage is collected: of a daemon of one process, and of workers, their supervisor, or all.

When one is killed does not depend on time: after so many steps on the disk, in the middle of one,
or when so many requests have been answered, while others are under way.

``CRASH_SEED`` sets what is done and when it is killed, as far as threads let it; ``CRASH_KILLS``
how often, and ``CRASH_SECONDS`` for how long at most, for either daemon.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from random import Random, SystemRandom

from twisted.internet.defer import FirstError, gatherResults
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
from tests.workers import Workers

_KILLS = int(os.environ.get("CRASH_KILLS", "40"))
_SECONDS = float(os.environ.get("CRASH_SECONDS", "40"))
_CLIENTS = 4
# More requests or steps than a daemon may do before it is killed.
_REQUESTS, _STEPS = 60, 200
# Some seconds' lease, so that the collector has something to do.
_BUSY = 'lease = "3s"\ngrace = "0s"\ngc_interval = "50ms"\nsweep_interval = "200ms"\n'


class ManyKillsCase(TestCase):
    """
    :ivar killed: how many processes were.
    """

    timeout = _SECONDS + 600

    async def many_kills(self) -> None:
        seed = int(os.environ.get("CRASH_SEED") or SystemRandom().getrandbits(32))
        self.killed: Counter[str] = Counter()
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
        self.toml = _BUSY + settings
        self.config.write_text(self.toml)
        shared = b"what all images share"
        clients = [
            Worker(f"kill/{n}", Random(random.random()), upstream, shared) for n in range(_CLIENTS)
        ]
        await self.push("kill/shared", shared)
        await self.kill_while(clients, random, reactor.seconds() + _SECONDS)
        await self.look(clients)
        last = Served.start(self, settings, data=self.data)
        await finished(last.service)
        check_nothing_left(self.data)
        total = {m: sum(w.counts.get(m, 0) for w in clients) for m in ("POST", "PUT", "GET")}
        print(f"\n    {dict(self.killed)}; requests answered: {total}", file=sys.stderr)

    async def kill_while(self, clients: list[Worker], random: Random, until: float) -> None:
        """Let daemons serve and be killed, as often as it shall be and until then at most."""
        raise NotImplementedError

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

    async def work(self, clients: list[Worker], port: int, progress: Progress) -> None:
        """Let the clients work until the daemon is no more."""
        working = [deferToThread(each.work, port, progress) for each in clients]
        try:
            await gatherResults(working, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()

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

    async def look(self, clients: list[Worker]) -> None:
        """See that all is there, and stop."""
        daemon, port = await self.start(0)
        await gatherResults([deferToThread(each.check, port) for each in clients])
        await daemon.kill(signal.SIGKILL)


class OneProcessTests(ManyKillsCase):
    async def test_all_that_was_acknowledged_is_there(self) -> None:
        await self.many_kills()

    async def kill_while(self, clients: list[Worker], random: Random, until: float) -> None:
        while self.killed.total() < _KILLS and reactor.seconds() < until:
            await self.kill(clients, random)

    async def kill(self, clients: list[Worker], random: Random) -> None:
        """Let a daemon start, and work until it is killed."""
        steps = random.randrange(1, _STEPS) if random.random() < 0.5 else 0
        daemon, port = await self.start(steps)

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):  # it has killed itself
                os.kill(daemon.pid, signal.SIGKILL)

        if port:
            progress = Progress([(random.randrange(1, _REQUESTS), kill)])
            await self.work(clients, port, progress)
        self.assertEqual(await daemon.ended(), -signal.SIGKILL, daemon.output[-5000:])
        self.killed["daemon"] += 1


class Fatal(Workers):
    """Workers that kill themselves in the middle of a step."""

    worker = "tests.crash.fatal_worker"
    steps = 0

    def run(self, environment: Mapping[str, str]) -> Process:
        return super().run({**environment, "FATAL_STEPS": str(self.steps)})

    @property
    def live(self) -> list[int]:
        """The workers that have become ready, and have not ended as far as the supervisor knows."""
        ended = set(map(int, re.findall(r"worker (\d+) has ended", self.process.output)))
        return [pid for pid in self.pids() if pid not in ended]


class WorkersTests(ManyKillsCase):
    """
    In the life of a daemon workers are killed, or kill themselves, and are replaced by others, with
    settings of then; at last the supervisor is killed, alone or with its workers.
    """

    async def test_all_that_was_acknowledged_is_there(self) -> None:
        await self.many_kills()

    async def kill_while(self, clients: list[Worker], random: Random, until: float) -> None:
        daemon = Fatal(self, self.data, self.toml, {"workers": "2", "access_log": "off"})
        while self.killed.total() < _KILLS and reactor.seconds() < until:
            await self.kill(daemon, clients, random)

    async def kill(self, daemon: Fatal, clients: list[Worker], random: Random) -> None:
        """Let a daemon start, and work until nothing of it is left."""
        daemon.steps = 2 * _STEPS if random.random() < 0.5 else 0
        try:
            await daemon.restart()
        except (AssertionError, OSError, HTTPException):
            self.assertTrue(daemon.steps, daemon.process.output[-5000:])
            await daemon.kill()
            return
        progress = Progress([], fails=bool(daemon.steps))

        def send(number: signal.Signals, name: str, pids: Callable[[], list[int]]) -> None:
            progress.fails = progress.fails or number == signal.SIGKILL
            for pid in pids():
                with contextlib.suppress(ProcessLookupError):  # it has ended since
                    os.kill(pid, number)
                    self.killed[name] += 1

        supervisor = daemon.process.pid
        reload = partial(send, signal.SIGHUP, "reload", lambda: [supervisor])
        one = partial(send, signal.SIGKILL, "worker", lambda: daemon.live[:1])
        last = partial(send, signal.SIGKILL, "supervisor", lambda: [supervisor])
        whole = partial(send, signal.SIGKILL, "all", lambda: [supervisor, *daemon.live])
        events = [random.choice((reload, one)) for _ in range(random.randrange(3))]
        events.append(random.choice((last, whole)))
        progress.events = [(random.randrange(1, _REQUESTS), event) for event in events]
        reloads = self.killed["reload"]
        waits = random.random() < 0.7

        def settled() -> bool:
            begun = self.killed["reload"] - reloads
            done = len(re.findall(r"reloaded: |reload refused", daemon.process.output))
            return done >= begun or not waits

        progress.settled = settled
        await self.work(clients, daemon.port, progress)
        self.assertEqual(await daemon.process.ended(), -signal.SIGKILL)
        self.assertNotIn("Traceback", daemon.process.output)
