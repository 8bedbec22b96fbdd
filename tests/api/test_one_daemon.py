"""Several processes of one daemon: what one of them counts and learns holds for all."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock

from artifactd.auth.passwords import hash_secret
from artifactd.kit import peers
from artifactd.kit.shared import SharedMemory
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Digest
from artifactd.store.intake import HashedFile
from artifactd.web.server.limits import Rates
from tests.api.served import Served
from tests.process import Answer
from tests.programs import wait_for
from tests.pull.mirrors import MirrorCase
from tests.upstreams.faulty import CDN, Status
from tests.upstreams.settings import settings_for

SECRET = "s" * 43
LIMITS = f"""
trusted_proxies = ["127.0.0.1"]
[limits]
address_requests = 1
address_burst = 5
user_requests = 1
user_burst = 5
[robot.ci]
secret_hash = "{hash_secret(SECRET)}"
may = ["pull", "push"]
images = ["*"]
[[access]]
who = ["anonymous"]
may = ["pull"]
images = ["*"]
"""
AWAY = {"X-Forwarded-For": "192.0.2.1"}
MISSES = 'artifactd_misses_total{repository="docker.io"}'


def robot(secret: str) -> dict[str, str]:
    """The header of a robot's login."""
    return {"Authorization": "Basic " + b64encode(f"robot+ci:{secret}".encode()).decode()}


class DaemonCase(MirrorCase):
    """:ivar workers: two processes' worth of state, on the same data."""

    toml = ""

    def setUp(self) -> None:
        super().setUp()
        self.memory = SharedMemory.create()
        first = self.worker()
        self.workers = first, self.worker(first)

    def worker(self, beside: Served | None = None) -> Served:
        """Start another one."""
        settings = self.toml + settings_for(self.hub, freshness="0s", retries=0)
        data = None if beside is None else beside.data
        return Served.start(self, settings, data=data, memory=self.memory)

    async def in_turns(
        self, times: int, path: str, headers: dict[str, str] | None = None
    ) -> Sequence[Answer]:
        """What each of them answers to a GET, one after the other."""
        return [await self.workers[n % 2].request("GET", path, None, headers) for n in range(times)]


class LimitTests(DaemonCase):
    toml = LIMITS

    async def test_rates_of_an_address_and_of_a_user(self) -> None:
        for worker in self.workers:
            # A clock that stands still: on a slow machine no request is forgiven.
            site = worker.running.site
            assert site.rates is not None
            site.rates = Rates(site.limits, worker.parts.memory, Clock().seconds)
        for headers in (AWAY, robot(SECRET)):
            answers = await self.in_turns(8, "/v2/", headers)
            self.assertEqual([429] * 3, [answer.status for answer in answers][5:])

    async def test_failed_logins(self) -> None:
        for worker in self.workers:
            worker.running.site.rates = None
        answers = await self.in_turns(7, "/v2/", {**AWAY, **robot("x" * 43)})
        self.assertEqual([401] * 5 + [429] * 2, [answer.status for answer in answers])


class UploadTests(DaemonCase):
    async def test_what_one_has_hashed_another_one_publishes_unread(self) -> None:
        content = bytes(2 << 20) + b"layer"
        first, second = self.workers
        path = "/v2/hello/blobs/uploads/"
        for told, status in ((Digest.of(content), 201), (Digest.of(b"other"), 400)):
            self.patch(HashedFile, "catch_up", lambda *_: self.fail("it is read"))
            opened = await second.request("POST", path)
            appended = await first.request("PATCH", opened.header("Location") or "", content)
            location = appended.header("Location")
            closed = await second.request("PUT", f"{location}&digest={told}")
            self.assertEqual((202, status), (appended.status, closed.status))
        got = await first.request("GET", f"/v2/hello/blobs/{Digest.of(content)}")
        self.assertEqual(content, got.body)


class UpstreamTests(DaemonCase):
    def setUp(self) -> None:
        super().setUp()
        self.hub.challenges = False
        for number in range(6):
            self.hub.images.add_image(f"library/image{number}", "latest", b"layer")

    async def test_a_host_that_fails_for_one_is_asked_by_no_other(self) -> None:
        self.hub.faults.add(Status(500), on="/v2/*", method="*", times=None)
        first, second = self.workers
        for number in range(5):
            await first.request("GET", f"/v2/docker.io/image{number}/manifests/latest")
        self.hub.forget_requests()
        answer = await second.request("GET", "/v2/docker.io/image5/manifests/latest")
        self.assertEqual(502, answer.status)
        self.assertIn(b"is not asked again for", answer.body)
        self.assertEqual([], self.hub.requests)

    async def test_nor_is_one_that_wants_to_be_asked_later(self) -> None:
        self.hub.faults.add(Status(429, "60"), on="/v2/*", method="*", times=None)
        first, second = self.workers
        answer = await first.request("GET", "/v2/docker.io/image0/manifests/latest")
        self.assertEqual((429, "60"), (answer.status, answer.header("Retry-After")))
        self.hub.forget_requests()
        answer = await second.request("GET", "/v2/docker.io/image0/manifests/latest")
        self.assertEqual(429, answer.status)
        self.assertEqual([], self.hub.requests)


class FiguresTests(DaemonCase):
    async def figures(self, worker: Served) -> dict[str, float]:
        """What ``/metrics`` tells there, by names and labels."""
        lines = (await worker.request("GET", "/metrics")).body.decode().splitlines()
        pairs = [line.rpartition(" ") for line in lines if line and line[0] != "#"]
        return {name: float(value) for name, _, value in pairs}

    async def test_any_of_them_tells_the_figures_of_all(self) -> None:
        self.hub.images.add_image("library/alpine", "latest", b"layer")
        await self.in_turns(2, "/v2/docker.io/alpine/manifests/latest")
        for worker in self.workers:
            figures = await self.figures(worker)
            revalidated = figures['artifactd_revalidated_total{repository="docker.io"}']
            self.assertEqual((1, 1), (figures[MISSES], revalidated))
            self.assertEqual(2, figures["artifactd_processes"])

    async def test_what_one_has_counted_stays_when_it_ends(self) -> None:
        self.hub.images.add_image("library/alpine", "latest", b"layer")
        first, second = self.workers
        third = self.worker(first)
        await third.request("GET", "/v2/docker.io/alpine/manifests/latest")
        await third.stop()
        for worker in (second, self.worker(first)):
            self.assertEqual(1, (await self.figures(worker))[MISSES])


class StatusTests(DaemonCase):
    async def status(self, worker: Served) -> dict[str, Any]:
        """What ``/status`` tells there."""
        return dict(json.loads((await worker.request("GET", "/status")).body))

    async def test_it_has_the_transfers_and_fills_of_all(self) -> None:
        content = b"x" * 200_000
        self.hub.images.add_image("library/alpine", "latest", content)
        path = f"/v2/docker.io/alpine/blobs/{Digest.of(content)}"
        held = self.hub.withhold(CDN, 100_000)
        asked = [ensureDeferred(each.request("GET", path)) for each in self.workers]
        await held.reached

        async def are_told() -> bool:
            return all([(await self.status(each))["requests"] == 2 for each in self.workers])

        await wait_for(are_told)
        for worker in self.workers:
            status = await self.status(worker)
            self.assertEqual((2, 2), (status["processes"], status["requests"]))
            self.assertEqual([path] * 2, [each["path"] for each in status["transfers"]])
            fills = [fill for remote in status["remotes"] for fill in remote["fills"]]
            told = [(fill["digest"], fill["clients"]) for fill in fills]
            self.assertEqual([(str(Digest.of(content)), 2)], told)
        held.release()
        for answer in asked:
            self.assertEqual(content, (await answer).body)

    async def test_what_another_version_tells_is_left_out(self) -> None:
        async def other() -> bytes:
            return b'{"version": 7}'

        first, second = self.workers
        second.running.daemon.peers.answer("status", other)
        self.assertEqual(1, (await self.status(first))["processes"])


class StaleTests(DaemonCase):
    async def stale(self) -> list[list[str]]:
        """The images that each of them lists as stale."""
        answers = await self.in_turns(2, "/api/v1/stale")
        return [[e["image"] for e in json.loads(each.body)["stale"]] for each in answers]

    async def test_what_one_has_answered_all_list_until_any_learns_better(self) -> None:
        self.hub.images.add_image("library/alpine", "latest", b"layer")
        path = "/v2/docker.io/alpine/manifests/latest"
        await self.in_turns(1, path)
        self.hub.faults.add(Status(503), on="/v2/*", method="*", times=None)
        await self.in_turns(2, path)
        self.assertEqual([["docker.io/library/alpine"]] * 2, await self.stale())
        self.hub.faults.clear()
        await self.in_turns(1, path)
        self.assertEqual([[], []], await self.stale())

    async def test_what_another_version_tells_is_left_out(self) -> None:
        async def other() -> bytes:
            return b'[{"name": 7}]'

        self.workers[1].running.daemon.peers.answer("stale", other)
        self.assertEqual([[], []], await self.stale())


class ReadyTests(DaemonCase):
    async def test_all_of_them_have_to_be_ready(self) -> None:
        async def fail() -> None:
            raise Unavailable("the catalog can't be read")

        answers = await self.in_turns(2, "/readyz")
        self.assertEqual([200, 200], [answer.status for answer in answers])
        self.patch(self.workers[1].parts.catalog.database, "check", fail)
        first, second = await self.in_turns(2, "/readyz")
        self.assertEqual([503, 503], [first.status, second.status])
        self.assertIn(b"worker process ", first.body)
        for answer in (first, second):
            self.assertIn(b"the catalog can't be read", answer.body)

    async def test_one_that_does_not_move_is_not_ready(self) -> None:
        self.patch(peers, "SECONDS", 0.1)

        async def never() -> bytes:
            await Deferred()
            return b""

        self.workers[1].running.daemon.peers.answer("ready", never)
        answer = await self.workers[0].request("GET", "/readyz")
        self.assertEqual(503, answer.status)
        self.assertIn(b"does not answer", answer.body)

    async def test_one_that_has_ended_is_none(self) -> None:
        third = self.worker(self.workers[0])
        await third.stop()
        self.assertEqual([200], [answer.status for answer in await self.in_turns(1, "/readyz")])
