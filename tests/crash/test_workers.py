"""Several workers of one daemon: connections are spread, and the end of a process is survived."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from base64 import b64encode
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from random import Random

from twisted.internet.defer import gatherResults
from twisted.internet.interfaces import IPushProducer
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.auth.passwords import hash_secret, make_secret
from artifactd.oci.names import Digest
from tests.api.served import image_manifest
from tests.crash.pulling import NAME, Pull
from tests.crash.upload import CONTENT, Upload, send, status
from tests.process import Behind
from tests.programs import wait_for
from tests.tls.authority import ROOT
from tests.tls.case import Files
from tests.upstreams.faulty import CDN
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for
from tests.webhooks.hook import Hook
from tests.workers import Busy, Workers, running, worker_of

DIGEST = Digest.of(CONTENT)
HALF = len(CONTENT) // 2


class WorkersCase(TestCase):
    async def start(self, number: int = 2, toml: str = "", **settings: str) -> Workers:
        daemon = await Workers.start(
            self, data=None, toml=toml, behind=None, workers=str(number), **settings
        )
        await daemon.all_ready(number)
        return daemon


class SpreadTests(WorkersCase):
    async def test_few_connections_go_to_all_workers_alike(self) -> None:
        daemon = await self.start()
        one, other = sorted(daemon.pids())

        def spread(number: int) -> Counter[int]:
            connections = [daemon.connect() for _ in range(number)]
            try:
                return Counter(map(worker_of, connections))
            finally:
                for connection in connections:
                    connection.close()

        for number in (2, 4, 4):
            found = await deferToThread(spread, number)
            self.assertEqual(found, {one: number // 2, other: number // 2})
            # The next ones may come before the workers have told that these are closed.
            await wait_for(lambda: self.open(daemon, daemon.pids()))

    async def open(self, daemon: Workers, pids: list[int]) -> bool:
        """Whether no worker has a connection but the one that asks."""
        seen = {}
        for _ in range(2 * len(pids)):
            told = json.loads((await daemon.request("GET", "/status")).body)
            seen[told["pid"]] = told["connections"]
        return all(number == 1 for number in seen.values())

    async def test_the_limit_of_an_address_holds_over_all(self) -> None:
        daemon = await self.start(toml="[limits]\nconnections = 5\n")

        def refused() -> int:
            with closing(daemon.connect()) as connection:
                connection.request("GET", "/healthz")
                return connection.getresponse().status

        held = [daemon.connect() for _ in range(5)]
        try:
            for connection in held:
                await deferToThread(worker_of, connection)
            self.assertEqual(await deferToThread(refused), 503)
        finally:
            for connection in held:
                connection.close()

        async def accepted() -> bool:
            with contextlib.suppress(OSError, HTTPException):
                return await deferToThread(refused) == 200
            return False

        await wait_for(accepted)


class EndpointTests(WorkersCase):
    async def test_tls_is_spoken_by_the_workers(self) -> None:
        files = Files(self)
        files.write(ROOT.sign("server"))
        folder = files.folder.absolute()
        behind = Behind(f":key={folder}/key.pem:cert={folder}/cert.pem", ROOT.trusting())
        daemon = await Workers.start(self, behind=behind, workers="2")
        await daemon.all_ready(2)
        digest = await daemon.push_blob("crash", CONTENT)
        for _ in range(2):
            answer = await daemon.request("GET", f"/v2/crash/blobs/{digest}")
            self.assertTrue(answer.body == CONTENT, "other bytes than were pushed")
        self.assertEqual(await daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertNotIn("Traceback", daemon.process.output)


class FetchTests(WorkersCase):
    async def test_a_blob_that_all_workers_are_asked_for_is_fetched_once(self) -> None:
        hub = Hub.start(self)
        digest = hub.images.add_blob(CONTENT, NAME)
        held = hub.withhold(CDN, HALF)
        daemon = await self.start(toml=settings_for(hub))
        pulls = [await Pull.start(self, daemon, digest) for _ in range(4)]
        for pull in pulls:
            await pull.reached(1)  # before the second half has left the hub
        held.release()
        for pull in pulls:
            await pull.ended()
            self.assertEqual((pull.whole, pull.digest), (True, digest))
        self.assertEqual(sum(asked.sent for asked in hub.asked("GET", CDN)), len(CONTENT))


class KillTests(WorkersCase):
    async def test_a_worker_that_is_killed_is_replaced_and_nothing_acknowledged_is_lost(
        self,
    ) -> None:
        daemon = await self.start()
        doomed = daemon.pids()[0]
        random = Random(11)
        blobs = [random.randbytes(50_000) for _ in range(40)]

        def push(contents: list[bytes]) -> list[bytes]:
            """Push blobs, each again until it is acknowledged.  Returns those that were."""
            acknowledged = []
            connection = daemon.connect()
            for number, content in enumerate(contents):
                if number == len(contents) // 2:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(doomed, signal.SIGKILL)
                path = f"/v2/crash/blobs/uploads/?digest={Digest.of(content)}"
                while True:
                    try:
                        connection.request("POST", path, content)
                        answer = connection.getresponse()
                        answer.read()
                    except (OSError, HTTPException):
                        connection.close()
                        connection = daemon.connect()
                        continue
                    assert answer.status == 201, answer.status
                    acknowledged.append(content)
                    break
            connection.close()
            return acknowledged

        pushed = await gatherResults(
            [deferToThread(push, blobs[:20]), deferToThread(push, blobs[20:])]
        )
        await daemon.process.matched(rf"worker {doomed} has ended \(signal 9\)")
        await daemon.all_ready(3)
        for content in [each for some in pushed for each in some]:
            answer = await daemon.request("GET", f"/v2/crash/blobs/{Digest.of(content)}")
            self.assertEqual((answer.status, answer.body == content), (200, True))
        self.assertNotIn(doomed, await self.serving(daemon))

    async def serving(self, daemon: Workers) -> set[int]:
        """The workers that new connections come to."""

        def ask() -> set[int]:
            connections = [daemon.connect() for _ in range(4)]
            try:
                return set(map(worker_of, connections))
            finally:
                for connection in connections:
                    connection.close()

        return await deferToThread(ask)

    async def test_one_that_hangs_gets_no_connections_and_prints_where_as_it_is_ended(self) -> None:
        daemon = await self.start()
        hung, other = daemon.pids()

        def asked() -> list[int]:
            connections = [daemon.connect() for _ in range(4)]
            try:
                return [worker_of(each) for each in connections]
            finally:
                for each in connections:
                    each.close()

        os.kill(hung, signal.SIGSTOP)
        try:
            await daemon.process.matched(f"worker {hung} does not answer")
            self.assertEqual(await deferToThread(asked), [other] * 4)
        finally:
            os.kill(hung, signal.SIGCONT)
        await daemon.process.matched(f"worker {hung} answers again")
        os.kill(hung, signal.SIGABRT)  # as the supervisor does after a minute
        await daemon.process.matched("Fatal Python error: Aborted")
        await daemon.process.matched("in main")
        await daemon.all_ready(3)

    async def test_without_the_supervisor_the_workers_end_after_what_is_under_way(self) -> None:
        daemon = await self.start(shutdown_timeout="1h")
        path = f"/v2/crash/blobs/uploads/?digest={DIGEST}"
        push = await send(self, daemon, "POST", path, CONTENT[:HALF], length=len(CONTENT))
        await wait_for(lambda: any(f.stat().st_size for f in daemon.data.glob("uploads/*")))
        os.kill(daemon.process.pid, signal.SIGKILL)
        await wait_for(lambda: sum(map(running, daemon.pids())) == 1)
        push.send(CONTENT[HALF:])
        self.assertEqual(await status(push), 201)
        await daemon.process.ended()
        await wait_for(lambda: not any(map(running, daemon.pids())))
        await daemon.restart()
        answer = await daemon.request("GET", f"/v2/crash/blobs/{DIGEST}")
        self.assertTrue(answer.body == CONTENT, "other bytes than were pushed")


class ReloadTests(WorkersCase):
    async def test_under_load_no_request_fails_and_what_is_under_way_goes_on(self) -> None:
        daemon = await self.start(idle_timeout="1s", stall_timeout="1h")
        content = CONTENT * 4  # more than the sockets hold
        digest = await daemon.push_blob("crash", content)
        pull = await send(self, daemon, "GET", f"/v2/crash/blobs/{digest}")
        self.assertEqual(await status(pull), 200)
        IPushProducer(pull.transport).pauseProducing()
        busy = Busy(self, daemon)
        old = daemon.pids()
        os.kill(daemon.process.pid, signal.SIGHUP)
        await daemon.process.matched("reloaded: 2 workers")
        await wait_for(lambda: sum(map(running, old)) == 1)  # the one that sends the blob
        self.assertTrue(all(await busy.ended()))
        IPushProducer(pull.transport).resumeProducing()
        _, body = await pull.response()
        self.assertTrue(body == content, "other bytes than were pushed")
        await wait_for(lambda: not any(map(running, old)))
        self.assertEqual(await daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        self.assertNotIn("Traceback", daemon.process.output)

    async def test_a_connection_that_is_open_gets_one_more_answer(self) -> None:
        daemon = await self.start(idle_timeout="1h")
        old = daemon.pids()

        def ask(connection: HTTPConnection) -> tuple[int, int, str | None]:
            connection.request("GET", "/status")
            answer = connection.getresponse()
            pid = int(json.loads(answer.read())["pid"])
            return pid, answer.status, answer.getheader("Connection")

        with closing(daemon.connect()) as one, closing(daemon.connect()) as other:
            first = [await deferToThread(ask, each) for each in (one, other)]
            self.assertEqual({pid for pid, _, _ in first}, set(old))
            self.assertEqual((await daemon.reload()).status, 0)
            second = [await deferToThread(ask, each) for each in (one, other)]
            self.assertEqual(second, [(pid, 200, "close") for pid, _, _ in first])
        await wait_for(lambda: not any(map(running, old)))

    async def test_what_is_wrong_is_refused_and_what_is_right_is_taken(self) -> None:
        daemon = await self.start()
        old = daemon.pids()
        daemon.configure("threads = 65\n")
        result = await daemon.reload()
        self.assertEqual((result.status, result.out), (1, ""))
        wrong = "threads: expected a whole number from 1 to 64, got 65"
        self.assertRegex(result.err, rf"^artifactd: reload refused: .*: {wrong}\n$")
        await daemon.process.matched(f"reload refused, all stays as it was: .*: {wrong}")
        # One that is started again does not read them either.
        os.kill(old[0], signal.SIGKILL)
        await daemon.all_ready(3)
        self.assertEqual((await daemon.request("GET", "/healthz")).status, 200)

        daemon.configure("read_only = true\n")
        result = await daemon.reload()
        self.assertEqual((result.status, result.out, result.err), (0, "reloaded\n", ""))
        answer = await daemon.request("POST", "/v2/crash/blobs/uploads/")
        self.assertEqual(answer.status, 405)
        await wait_for(lambda: not any(map(running, old)))

    async def test_events_go_where_the_new_settings_say_although_old_workers_still_serve(
        self,
    ) -> None:
        before, after = Hook(self), Hook(self)
        toml = '[repository.local]\nkind = "local"\n[webhook.ci]\nurl = "{}"\n'
        daemon = await self.start(toml=toml.format(before.url), idle_timeout="1h")
        await daemon.push_blob("crash", b"{}")
        await daemon.push_manifest("crash", "v1", image_manifest(b"{}"))
        await before.wait_for(1)
        with closing(daemon.connect()) as one, closing(daemon.connect()) as other:
            old = [await deferToThread(worker_of, each) for each in (one, other)]
            daemon.configure(toml.format(after.url))
            self.assertEqual((await daemon.reload()).status, 0)
            await daemon.push_manifest("crash", "v2", image_manifest(b"{}"))
            await after.wait_for(1)
            self.assertTrue(all(map(running, old)))
        self.assertEqual([each.tag for each in before.told], [("crash", "v1")])
        self.assertEqual([each.tag for each in after.told], [("crash", "v2")])

    async def test_one_process_tells_that_it_is_not_reloaded(self) -> None:
        daemon = await Workers.start(self)
        result = await daemon.reload()
        self.assertEqual((result.status, result.out), (1, ""))
        self.assertIn("no daemon with several workers runs on", result.err)


class StopTests(WorkersCase):
    async def test_requests_of_all_workers_are_waited_for(self) -> None:
        daemon = await self.start(shutdown_timeout="1h")
        content = CONTENT * 4  # more than the sockets hold
        digest = await daemon.push_blob("crash", content)
        pulls = [await send(self, daemon, "GET", f"/v2/crash/blobs/{digest}") for _ in range(2)]
        for pull in pulls:
            self.assertEqual(await status(pull), 200)
            IPushProducer(pull.transport).pauseProducing()
        os.kill(daemon.process.pid, signal.SIGTERM)
        for _ in range(2):
            await daemon.process.matched("stopping: waiting up to .* for 1 running requests")
        for pull in pulls:
            IPushProducer(pull.transport).resumeProducing()
            _, body = await pull.response()
            self.assertTrue(body == content, "other bytes than were pushed")
        self.assertEqual(await daemon.process.ended(), -signal.SIGTERM)
        self.assertNotIn("Traceback", daemon.process.output)

    async def test_so_are_those_of_a_worker_that_was_replaced_and_new_ones_get_503(self) -> None:
        daemon = await self.start(shutdown_timeout="1h")
        content = CONTENT * 4  # more than the sockets hold
        digest = await daemon.push_blob("crash", content)
        pull = await send(self, daemon, "GET", f"/v2/crash/blobs/{digest}")
        self.assertEqual(await status(pull), 200)
        IPushProducer(pull.transport).pauseProducing()
        self.assertEqual((await daemon.reload()).status, 0)
        os.kill(daemon.process.pid, signal.SIGTERM)
        await daemon.process.matched("stopping: waiting up to .* for 1 running requests")
        await wait_for(lambda: sum(map(running, daemon.pids())) == 2)
        answer = await daemon.request("GET", "/v2/")
        self.assertEqual((answer.status, answer.header("Retry-After")), (503, "10"))
        IPushProducer(pull.transport).resumeProducing()
        _, body = await pull.response()
        self.assertTrue(body == content, "other bytes than were pushed")
        self.assertEqual(await daemon.process.ended(), -signal.SIGTERM)
        self.assertNotIn("Traceback", daemon.process.output)

    async def test_a_second_sigterm_cuts_them(self) -> None:
        daemon = await self.start(shutdown_timeout="1h", idle_timeout="1h")
        upload = await Upload.start(daemon)
        chunk = await send(self, daemon, "PATCH", upload.path, CONTENT[:HALF], length=len(CONTENT))
        await upload.receiving(daemon)
        os.kill(daemon.process.pid, signal.SIGTERM)
        await daemon.process.matched("stopping: waiting up to .* for 1 running requests")
        self.assertEqual(await daemon.kill(signal.SIGTERM), -signal.SIGTERM)
        await chunk.lost
        self.assertNotIn("Traceback", daemon.process.output)


class OneDaemonTests(WorkersCase):
    """What the workers share, told by any of them."""

    async def asked_of_each(
        self, daemon: Workers, path: str, headers: dict[str, str] | None = None
    ) -> list[tuple[int, bytes]]:
        """The answers of all workers to a GET, over connections made one after the other."""

        def ask() -> list[tuple[int, bytes]]:
            connections = [daemon.connect() for _ in range(2)]
            try:
                answers = []
                for connection in connections:
                    connection.request("GET", path, headers=headers or {})
                    answer = connection.getresponse()
                    answers.append((answer.status, answer.read()))
                return answers
            finally:
                for connection in connections:
                    connection.close()

        return await deferToThread(ask)

    async def test_figures_are_of_all_and_stay_when_one_is_killed(self) -> None:
        daemon = await self.start()
        counted = re.compile(
            rb'^artifactd_http_requests_total{code="200",method="GET",route="/v2/"} (\d+)', re.M
        )

        async def figures() -> list[int]:
            found = [
                counted.search(body) for _, body in await self.asked_of_each(daemon, "/metrics")
            ]
            return [int(each[1]) for each in found if each is not None]

        for _ in range(3):
            await self.asked_of_each(daemon, "/v2/")
        self.assertEqual(await figures(), [6, 6])
        doomed = daemon.pids()[0]
        os.kill(doomed, signal.SIGKILL)
        await daemon.all_ready(3)
        self.assertEqual(await figures(), [6, 6])
        await self.asked_of_each(daemon, "/v2/")
        self.assertEqual(await figures(), [8, 8])
        for code, body in await self.asked_of_each(daemon, "/status"):
            self.assertEqual((code, json.loads(body)["processes"]), (200, 2))

    async def test_the_daemon_is_ready_while_all_workers_answer(self) -> None:
        daemon = await self.start()
        one, other = daemon.pids()
        self.assertEqual(
            [code for code, _ in await self.asked_of_each(daemon, "/readyz")], [200] * 2
        )
        with closing(daemon.connect()) as connection:
            asked = await deferToThread(worker_of, connection)
            stopped = one if asked == other else other
            os.kill(stopped, signal.SIGSTOP)
            try:

                def ready() -> tuple[int, bytes]:
                    connection.request("GET", "/readyz")
                    answer = connection.getresponse()
                    return answer.status, answer.read()

                code, body = await deferToThread(ready)
            finally:
                os.kill(stopped, signal.SIGCONT)
            self.assertEqual(code, 503)
            self.assertIn(f"worker process {stopped} does not answer".encode(), body)

            async def is_ready() -> bool:
                return (await deferToThread(ready))[0] == 200

            await wait_for(is_ready)

    async def test_failed_logins_count_over_all(self) -> None:
        robot = hash_secret(make_secret())
        daemon = await self.start(
            toml=f"""
            [robot.ci]
            secret_hash = "{robot}"
            may = ["pull"]
            images = ["*"]
            [[access]]
            who = ["anonymous"]
            may = ["pull"]
            images = ["*"]
            """
        )
        headers = {"Authorization": "Basic " + b64encode(b"robot+ci:wrong").decode()}
        codes = []
        for _ in range(4):
            codes += [code for code, _ in await self.asked_of_each(daemon, "/v2/", headers)]
        self.assertEqual(codes, [401] * 5 + [429] * 3)
