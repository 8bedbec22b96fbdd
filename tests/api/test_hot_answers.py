"""Answers that are repeated from memory are those that the usual way gives."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.digest import Digest
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.web.server.accesslog import Access
from artifactd.web.server.hot import HotAnswers, Kept, Repeated
from artifactd.web.server.traffic import Traffic
from tests.api.case import ApiTestCase
from tests.api.guarded import GuardedCase
from tests.api.served import Served, image_manifest
from tests.process import Answer
from tests.programs import PATIENCE

LAYER = b"layer" * 100
CONFIG = b"{}"
MANIFEST = image_manifest(CONFIG, LAYER)
OTHER = image_manifest(CONFIG, LAYER, annotations={"a": "b"})

# Header fields that have a time.
TIMES = {"Date", "Server-Timing"}


def shape(status: int, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    return status, sorted((n, v) for n, v in headers.items() if n not in TIMES), body


class HotCase(ApiTestCase):
    def hits(self, registry: Served) -> int:
        """How many answers are kept."""
        hot = registry.running.site.hot
        return 0 if hot is None else sum(isinstance(kept, Kept) for kept in hot._kept.values())

    async def ask(
        self, registry: Served, requests: list[tuple[str, str, dict[str, str]]], times: int = 4
    ) -> list[Any]:
        """The answers to requests of one connection, each made several times in a row."""

        def run() -> Iterator[Any]:
            connection = HTTPConnection("127.0.0.1", registry.port, timeout=PATIENCE)
            for method, path, headers in requests:
                for _ in range(times):
                    connection.request(method, path, headers=headers)
                    response = connection.getresponse()
                    yield shape(response.status, response.headers, response.read())
            connection.close()

        return await deferToThread(lambda: list(run()))


class CorpusTests(HotCase):
    def corpus(self) -> list[tuple[str, str, dict[str, str]]]:
        manifest, layer = Digest.of(MANIFEST), Digest.of(LAYER)
        paths = [
            "/v2/",
            "/v2/hello/manifests/v1",
            "/v2/local/hello/manifests/v1",
            "/v2/hello/manifests/v2",
            f"/v2/hello/manifests/{manifest}",
            f"/v2/hello/blobs/{layer}",
            f"/v2/hello/blobs/{Digest.of(b'absent')}",
            "/v2/hello/tags/list",
            "/v2/hello/manifests/v1?ns=localhost",
            "/v2/HELLO/manifests/v1",
            "/nothing",
        ]
        headers: list[dict[str, str]] = [
            {},
            {"Accept": OCI_MANIFEST},
            {"If-None-Match": f'"{manifest}"'},
            {"Range": "bytes=1-3"},
            {"Range": "bytes=9999-"},
            {"Connection": "keep-alive"},
            {"Authorization": "Basic nonsense"},
            {"Host": "other.example"},
        ]
        return [(m, p, h) for p in paths for h in headers for m in ("GET", "HEAD")]

    async def test_with_hot_answers_and_without_every_byte_is_the_same(self) -> None:
        got = []
        for hot in ("8MiB", "0"):
            registry = Served.start(self, f'hot_answers = "{hot}"')
            await registry.push_image("hello", "v1", LAYER)
            await registry.push_blob("hello", CONFIG)
            await registry.push_manifest("hello", "v1", MANIFEST)
            answers = await self.ask(registry, self.corpus())
            got.append(answers)
            self.assertEqual(self.hits(registry) > 0, hot != "0")
            for number in range(0, len(answers), 4):
                self.assertEqual(answers[number : number + 4], [answers[number]] * 4)
        self.assertEqual(got[0], got[1])


class EndTests(HotCase):
    async def setUpImage(self) -> list[tuple[str, str, dict[str, str]]]:
        for blob in (CONFIG, LAYER):
            await self.registry.push_blob("hello", blob)
        await self.registry.push_manifest("hello", "v1", MANIFEST)
        wanted = [("GET", "/v2/hello/manifests/v1", {"Accept": "*/*"})]
        answers = await self.ask(self.registry, wanted)
        self.assertEqual({(status, body) for status, _, body in answers}, {(200, MANIFEST)})
        self.assertEqual(self.hits(self.registry), 1)
        return wanted

    async def test_a_tag_that_is_moved_is_answered_anew_at_once(self) -> None:
        wanted = await self.setUpImage()
        await self.registry.push_manifest("hello", "v1", OTHER)
        for _, _, body in await self.ask(self.registry, wanted):
            self.assertEqual(body, OTHER)

    async def test_so_is_one_that_is_deleted(self) -> None:
        wanted = await self.setUpImage()
        await self.accepted(202, "DELETE", "/v2/hello/manifests/v1")
        for status, _, _ in await self.ask(self.registry, wanted):
            self.assertEqual(status, 404)

    async def test_and_one_that_another_process_has_moved(self) -> None:
        wanted = await self.setUpImage()
        other = Served.start(self, data=self.registry.data)
        await other.push_manifest("hello", "v1", OTHER)
        for _, _, body in await self.ask(self.registry, wanted):
            self.assertEqual(body, OTHER)

    async def test_while_the_daemon_stops_there_are_none(self) -> None:
        wanted = await self.setUpImage()
        site = self.registry.running.site
        site.draining = True
        self.addCleanup(setattr, site, "draining", False)
        headers = (await self.ask(self.registry, wanted, 1))[0][1]
        self.assertIn(("Connection", "close"), headers)

    async def test_each_has_a_line_in_the_access_log_with_an_id_of_its_own(self) -> None:
        lines: list[str] = []
        self.registry.running.access_log.own = lambda line, *_, **__: lines.append(line)
        await self.setUpImage()
        gets = [line.split(" ", 1)[1] for line in lines if '"GET ' in line]
        self.assertEqual(len(gets), 4)
        self.assertEqual(len({line.rsplit(" ", 1)[1] for line in gets}), 4)
        start = f'127.0.0.1 - "GET /v2/hello/manifests/v1" 200 {len(MANIFEST)} 0.'
        for line in gets:
            self.assertTrue(line.startswith(start), line)

    async def test_none_is_kept_of_a_request_with_credentials_since_these_may_end(self) -> None:
        [(method, path, headers)] = await self.setUpImage()
        # Without a name and a password: that is no login.
        wanted = [(method, path, {**headers, "Authorization": "Basic Og=="})]
        for status, _, _ in await self.ask(self.registry, wanted):
            self.assertEqual(status, 200)
        self.assertEqual(self.hits(self.registry), 1)


TALLY = Traffic.apart().tally("/", b"GET", 200)


class MemoryTests(SynchronousTestCase):
    ACCESS = Access("::1", "-", "GET", "/", 200, 0, 0.0, "agent", "0")

    def test_long_requests_count_by_their_size_with_an_answer_and_without(self) -> None:
        limit = 1 << 20
        hot = HotAnswers(lambda _: 1, limit, Clock())
        for number in range(2000):
            head = f"GET /{number:04000} HTTP/1.1\r\n\r\n".encode()
            self.assertIsNone(hot.find(head))
            if number % 2:
                asked = hot.find(head)
                assert isinstance(asked, Repeated)
                agent = "agent" * 1000
                access = Access("::1", "-", "GET", "/", 200, 0, 0.0, agent, "0")
                hot.keep(
                    hot.resting(asked, "local/app"), b"HTTP/1.1 200 OK\r\n", b"", access, TALLY
                )
                self.assertIsInstance(hot.find(head), Kept)
            else:
                self.assertIsInstance(hot.find(head), Repeated)
        kept = hot._kept.items()
        held = sum(
            len(head) + (len(each.access.agent) if isinstance(each, Kept) else 0)
            for head, each in kept
        )
        self.assertGreater(held, limit // 4)
        self.assertLess(held, limit)

    def test_where_there_is_hardly_any_nothing_is_kept_and_nothing_fails(self) -> None:
        head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        for limit in (1, 512, 1024, 1500, 65536):
            hot = HotAnswers(lambda _: 1, limit, Clock())
            self.assertNotIsInstance(hot.find(head), Kept)
            hot.keep(
                Repeated(head, "local/app", 1), b"HTTP/1.1 200 OK\r\n", b"body", self.ACCESS, TALLY
            )
            self.assertNotIsInstance(hot.find(head), Kept)


class LimitedTests(HotCase):
    toml = "[limits]\naddress_requests = 1000\n"

    async def test_where_requests_are_counted_there_are_none(self) -> None:
        self.assertIsNone(self.registry.running.site.hot)


class ShortLeaseTests(HotCase):
    toml = 'lease = "59s"'

    async def test_where_leases_are_short_there_are_none(self) -> None:
        self.assertIsNone(self.registry.running.site.hot)


class GuardedHotTests(GuardedCase):
    async def test_only_what_everybody_may_have_is_repeated(self) -> None:
        await self.have("team/app", "public/app")
        kept = self.registry.running.site.hot
        assert kept is not None

        async def ask(path: str, who: str | None) -> Answer:
            for _ in range(4):
                # What closes its connection is never repeated.
                answer = await self.ask("GET", path, who, headers={"Connection": "keep-alive"})
            return answer

        self.assertEqual((await ask("/v2/team/app/manifests/v1", "bob")).status, 200)
        self.assertEqual((await ask("/v2/team/app/manifests/v1", None)).status, 401)
        self.assertEqual((await ask("/v2/public/app/manifests/v1", "bob")).status, 200)
        self.assertFalse(any(isinstance(each, Kept) for each in kept._kept.values()))
        answer = await ask("/v2/public/app/manifests/v1", None)
        self.assertEqual(answer.status, 200)
        self.assertTrue(any(isinstance(each, Kept) for each in kept._kept.values()))
        self.assertEqual(answer.header("Vary"), "Authorization")
