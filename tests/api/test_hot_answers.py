"""Answers that are repeated from memory are those that the usual way gives."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.identity import Caller, Identity, Kind
from artifactd.kit.shared import SharedMemory
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from artifactd.settings.settings import LimitsSettings
from artifactd.web.server.accesslog import Access, Traffic
from artifactd.web.server.hot import SECONDS, Asked, HotAnswers, Kept, Peer, Repeated
from artifactd.web.server.limits import Rates
from artifactd.web.server.protocol import RegistryRequest
from tests.api.case import ApiTestCase, Connection
from tests.api.guarded import BLOB, RULES, GuardedCase, basic
from tests.api.served import Served, descriptor, image_manifest
from tests.programs import PATIENCE
from tests.tls.authority import CLIENT, ROOT
from tests.tls.case import Files

LAYER = b"layer" * 100
CONFIG = b"{}"
MANIFEST = image_manifest(CONFIG, LAYER)
OTHER = image_manifest(CONFIG, LAYER, annotations={"a": "b"})
REFERRER = image_manifest(CONFIG, LAYER, subject=descriptor(MANIFEST, OCI_MANIFEST))

HOUR = 3600.0

# Header fields that have a time.
TIMES = {"Date", "Server-Timing"}

TALLY = Traffic.apart().tally("/", b"GET", 200)

Request = tuple[str, str, Mapping[str, str]]


def shape(status: int, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    return status, sorted((n, v) for n, v in headers.items() if n not in TIMES), body


class HotCase(ApiTestCase):
    """
    :ivar usual: the requests that went the usual way.
    :ivar tls: what a client trusts; ``None``: it speaks plain HTTP.
    """

    tls: ssl.SSLContext | None = None

    def setUp(self) -> None:
        self.usual: list[RegistryRequest] = []
        process, usual = RegistryRequest.process, self.usual

        def noted(request: RegistryRequest) -> None:
            usual.append(request)
            process(request)

        self.patch(RegistryRequest, "process", noted)
        super().setUp()

    def hits(self, registry: Served) -> int:
        """How many answers are kept."""
        hot = registry.running.site.hot
        return 0 if hot is None else len(hot._kept)

    async def tell(
        self, registry: Served, requests: Sequence[Request], times: int = 3
    ) -> list[Any]:
        """The answers to requests of one connection, each made several times in a row."""

        port = registry.port_of(-1)

        def run() -> Iterator[Any]:
            if self.tls is None:
                connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            else:
                connection = HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=self.tls)
            for method, path, headers in requests:
                for _ in range(times):
                    connection.request(method, path, headers=dict(headers))
                    response = connection.getresponse()
                    yield shape(response.status, response.headers, response.read())
            connection.close()

        return await deferToThread(lambda: list(run()))

    def follow_log(self, registry: Served) -> list[str]:
        """The lines of the access log from now on, without their times and ids."""
        lines: list[str] = []

        def own(line: str, message: str = "", *, is_error: bool = False) -> None:
            words = line.split(" ")
            lines.append(" ".join(w for n, w in enumerate(words[1:-1]) if n != len(words) - 4))

        registry.running.access_log.own = own
        return lines

    def assert_same(self, got: list[list[Any]]) -> None:
        """The answers with hot answers, and those without, are the same, and so were all three."""
        for answers in got:
            for number in range(0, len(answers), 3):
                self.assertEqual(answers[number : number + 3], [answers[number]] * 3)
        self.assertEqual(got[0], got[1])


class CorpusTests(HotCase):
    """:cvar settings: of the registry."""

    settings = ""
    fields: Sequence[Mapping[str, str]] = ()

    def corpus(self) -> list[Request]:
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
            "/v2/local/hello/tags/list?n=1",
            "/v2/hello/tags/list?n=1&last=v1",
            "/v2/nothing/tags/list",
            f"/v2/hello/referrers/{manifest}",
            f"/v2/hello/referrers/{layer}",
            "/v2/hello/manifests/v1?ns=localhost",
            "/v2/HELLO/manifests/v1",
            "/nothing",
        ]
        headers: Sequence[Mapping[str, str]] = self.fields or [
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
        got, logged = [], []
        for hot in ("8MiB", "0"):
            registry = Served.start(self, f'hot_answers = "{hot}"\n{self.settings}')
            await registry.push_image("hello", "v1", LAYER)
            await registry.push_blob("hello", CONFIG)
            await registry.push_manifest("hello", "v1", MANIFEST)
            await registry.push_manifest("hello", "referrer", REFERRER)
            logged.append(self.follow_log(registry))
            corpus = self.corpus()
            self.usual.clear()
            got.append(await self.tell(registry, corpus))
            self.assertEqual(len(self.usual) < len(got[-1]), hot != "0")
        self.assert_same(got)
        self.assertEqual(logged[0], logged[1])


class ProxiedCorpusTests(CorpusTests):
    settings = 'trusted_proxies = ["127.0.0.1"]'
    fields = (
        {},
        {"X-Forwarded-For": "192.0.2.1"},
        {"X-Forwarded-For": "192.0.2.2, 127.0.0.1"},
        {"X-Forwarded-For": "nonsense"},
        {"X-Forwarded-Proto": "https"},
    )

    async def test_each_client_of_a_proxy_is_logged_by_its_address(self) -> None:
        registry = Served.start(self, self.settings)
        await registry.push_blob("hello", LAYER)
        lines = self.follow_log(registry)
        path = f"/v2/hello/blobs/{Digest.of(LAYER)}"
        for last in (1, 2):
            await self.tell(registry, [("GET", path, {"X-Forwarded-For": f"192.0.2.{last}"})])
        self.assertEqual(
            [line.split(" ")[0] for line in lines], ["192.0.2.1"] * 3 + ["192.0.2.2"] * 3
        )
        self.assertEqual(self.hits(registry), 2)


class LimitedCorpusTests(CorpusTests):
    settings = "[limits]\naddress_requests = 100000\nuser_requests = 100000\n"
    fields = ({}, {"Accept": OCI_MANIFEST})


class LoginCorpusTests(HotCase, GuardedCase):
    tokens = True
    PATHS: Sequence[str] = (
        "/v2/team/app/manifests/v1",
        "/v2/public/app/manifests/v1",
        "/v2/secret/app/manifests/v1",
        f"/v2/team/app/blobs/{Digest.of(BLOB)}",
        f"/v2/public/app/blobs/{Digest.of(BLOB)}",
        "/v2/team/app/tags/list",
    )

    def started(self, hot: str) -> Served:
        self.top = f'hot_answers = "{hot}"\n'
        return self.start()

    async def logins(self) -> list[dict[str, str]]:
        """What clients send: nothing, passwords, and tokens."""
        team = "repository:team/app:pull"
        tokens = [
            await self.token(team, who="bob"),
            await self.token(team, who="bob"),
            await self.token(team, "repository:public/app:pull", who="alice"),
            await self.token(who="bob"),
            await self.token("repository:public/app:pull"),
            "a.b.c",
        ]
        return [
            {},
            *(basic(name) for name in ("alice", "bob", "writer", "nobody")),
            {"Authorization": "Basic Og=="},
            {"Authorization": "Digest x"},
            *({"Authorization": f"Bearer {token}"} for token in tokens),
            {"authorization": f"bearer {tokens[0]}"},
        ]

    async def asked(self, registry: Served) -> list[Any]:
        self.registry = registry
        await self.have("team/app", "public/app", "secret/app")
        logins = await self.logins()
        # The realm of a challenge has the host that is asked for.
        host = {"Host": "registry.example"}
        return await self.tell(
            registry,
            [
                (method, path, {**host, **login})
                for path in self.PATHS
                for login in logins
                for method in ("GET", "HEAD")
            ],
        )

    async def test_with_hot_answers_and_without_every_byte_is_the_same(self) -> None:
        got, logged = [], []
        for hot in ("8MiB", "0"):
            registry = self.started(hot)
            lines = self.follow_log(registry)
            self.usual.clear()
            got.append(await self.asked(registry))
            logged.append([line for line in lines if "registry" not in line])
        self.assert_same(got)
        self.assertEqual(logged[0], logged[1])

    async def test_each_login_gets_its_own(self) -> None:
        await self.asked(self.registry)
        hot = self.registry.running.site.hot
        assert hot is not None
        kept = {(str(kept.caller.identity), kept.image) for kept in hot._kept.values()}
        team, public, secret = (f"local/{name}/app" for name in ("team", "public", "secret"))
        self.assertEqual(
            kept,
            {("alice", team), ("alice", public), ("alice", secret)}
            | {("bob", team), ("bob", public), ("writer", public), ("nobody", public)}
            | {("anonymous", public)},
        )

    async def test_a_wrong_password_is_refused_beside_the_right_one(self) -> None:
        await self.have("team/app")
        for _ in range(2):
            for password, status in (("bob!", 200), ("wrong", 401)):
                login = basic("bob", password)
                got = await self.tell(self.registry, [("GET", self.PATHS[0], login)], 2)
                self.assertEqual([each[0] for each in got], [status] * 2)

    async def test_a_fresh_token_for_the_same_is_answered_so_once_it_was_verified(self) -> None:
        await self.have("team/app")
        for number in range(5):
            token = await self.token("repository:team/app:pull", who="bob")
            self.usual.clear()
            answers = await self.tell(
                self.registry, [("GET", self.PATHS[0], {"Authorization": f"Bearer {token}"})]
            )
            self.assertEqual({status for status, _, _ in answers}, {200})
            if number > 1:
                self.assertEqual(len(self.usual), 1)


class TlsCorpusTests(LoginCorpusTests):
    PATHS = LoginCorpusTests.PATHS[:3]

    def setUp(self) -> None:
        here = Files(self)
        here.write(ROOT.sign("server"))
        tls = f"artifactd-tls:0:interface=127.0.0.1:key={here.key}:cert={here.cert}"
        self.listen = f"tcp:0:interface=127.0.0.1 {tls}"
        self.tls = ROOT.trusting()
        super().setUp()


class CertifiedTests(HotCase, GuardedCase):
    rules = RULES.replace("user:bob", "certificate:ci")

    def setUp(self) -> None:
        here = Files(self)
        here.write(ROOT.sign("server"))
        tls = f"artifactd-tls:0:interface=127.0.0.1:key={here.key}:cert={here.cert}"
        tls += f":client_ca={here.client_ca}:client_auth=optional"
        self.listen = f"tcp:0:interface=127.0.0.1 {tls}"
        super().setUp()

    async def test_what_a_certificate_gets_again_is_for_its_name_alone(self) -> None:
        await self.have("team/app")
        self.usual.clear()
        asked = [("GET", "/v2/team/app/manifests/v1", {"Host": "registry.example"})]
        for name, statuses, usual in (("ci", [200] * 3, 2), ("web", [403] * 3, 5)):
            shown = ROOT.sign(name, usage=CLIENT)
            self.tls = ROOT.trusting(shown, folder=self.mktemp())
            self.assertEqual(statuses, [a[0] for a in await self.tell(self.registry, asked)])
            self.assertEqual(usual, len(self.usual))
        self.tls = ROOT.trusting()
        self.assertEqual({401}, {a[0] for a in await self.tell(self.registry, asked)})


class EndTests(HotCase):
    async def setUpImage(self) -> list[Request]:
        for blob in (CONFIG, LAYER):
            await self.registry.push_blob("hello", blob)
        await self.registry.push_manifest("hello", "v1", MANIFEST)
        wanted: list[Request] = [("GET", "/v2/hello/manifests/v1", {"Accept": "*/*"})]
        answers = await self.tell(self.registry, wanted)
        self.assertEqual({(status, body) for status, _, body in answers}, {(200, MANIFEST)})
        self.assertEqual(self.hits(self.registry), 1)
        return wanted

    async def test_a_tag_that_is_moved_is_answered_anew_at_once(self) -> None:
        wanted = await self.setUpImage()
        await self.registry.push_manifest("hello", "v1", OTHER)
        for _, _, body in await self.tell(self.registry, wanted):
            self.assertEqual(body, OTHER)

    async def test_so_is_one_that_is_deleted(self) -> None:
        wanted = await self.setUpImage()
        await self.accepted(202, "DELETE", "/v2/hello/manifests/v1")
        for status, _, _ in await self.tell(self.registry, wanted):
            self.assertEqual(status, 404)

    async def test_a_list_of_tags_is_answered_anew_when_one_comes_or_goes(self) -> None:
        await self.setUpImage()
        wanted: list[Request] = [("GET", "/v2/hello/tags/list", {})]
        other = Served.start(self, data=self.registry.data)
        for registry, method, tags in (
            (self.registry, "PUT", ["v1", "v2"]),
            (self.registry, "DELETE", ["v1"]),
            (other, "PUT", ["v1", "v2"]),
        ):
            await self.tell(self.registry, wanted)
            self.assertEqual(self.hits(self.registry), 2)
            if method == "PUT":
                await registry.push_manifest("hello", "v2", MANIFEST)
            else:
                await self.accepted(202, "DELETE", "/v2/hello/manifests/v2")
            for _, _, body in await self.tell(self.registry, wanted):
                self.assertEqual(json.loads(body)["tags"], tags)

    async def test_a_list_of_referrers_is_answered_anew_when_one_comes_an_empty_one_always(
        self,
    ) -> None:
        await self.setUpImage()
        wanted: list[Request] = [("GET", f"/v2/hello/referrers/{Digest.of(MANIFEST)}", {})]
        await self.tell(self.registry, wanted)
        self.assertEqual(self.hits(self.registry), 1)
        for number in range(2):
            subject = descriptor(MANIFEST, OCI_MANIFEST)
            more = image_manifest(CONFIG, LAYER, subject=subject, annotations={"n": str(number)})
            await self.registry.push_manifest("hello", f"referrer{number}", more)
            for _, _, body in await self.tell(self.registry, wanted):
                self.assertEqual(len(json.loads(body)["manifests"]), number + 1)
            self.assertEqual(self.hits(self.registry), 2)

    async def test_and_one_that_another_process_has_moved(self) -> None:
        wanted = await self.setUpImage()
        other = Served.start(self, data=self.registry.data)
        await other.push_manifest("hello", "v1", OTHER)
        for _, _, body in await self.tell(self.registry, wanted):
            self.assertEqual(body, OTHER)

    async def test_a_login_that_another_reader_takes_for_several_lines_is_refused(self) -> None:
        await self.setUpImage()
        path = "GET /v2/hello/manifests/v1"
        connection = Connection(self, self.registry.port)
        for _ in range(3):
            await connection.head(path)
            self.assertEqual((await connection.answer()).status, 200)
        self.assertEqual(self.hits(self.registry), 2)
        for login in ("x\nContent-Length: 9", "x\rContent-Length: 9", "x\0", "x\n"):
            connection = Connection(self, self.registry.port)
            await connection.head(path, f"Authorization: {login}")
            self.assertEqual((await connection.answer()).status, 400)

    async def test_while_the_daemon_stops_there_are_none(self) -> None:
        wanted = await self.setUpImage()
        site = self.registry.running.site
        site.draining = True
        self.addCleanup(setattr, site, "draining", False)
        headers = (await self.tell(self.registry, wanted, 1))[0][1]
        self.assertIn(("Connection", "close"), headers)

    async def test_each_has_a_line_in_the_access_log_with_an_id_of_its_own(self) -> None:
        lines: list[str] = []
        self.registry.running.access_log.own = lambda line, *_, **__: lines.append(line)
        await self.setUpImage()
        gets = [line.split(" ", 1)[1] for line in lines if '"GET ' in line]
        self.assertEqual(len(gets), 3)
        self.assertEqual(len({line.rsplit(" ", 1)[1] for line in gets}), 3)
        start = f'127.0.0.1 - "GET /v2/hello/manifests/v1" 200 {len(MANIFEST)} 0.'
        for line in gets:
            self.assertTrue(line.startswith(start), line)


class FoundTests(SynchronousTestCase):
    """
    What is found of one answer, which is asked for in all ways.

    :ivar version: of its image.
    :ivar callers: by the values of ``Authorization``.
    """

    HEAD = b"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: a\r\n\r\n"
    ACCESS = Access("192.0.2.1", "-", "GET", "/", 200, 0, 0.0, "agent", "0")
    HERE = Peer(False, "")
    BOB = Caller(Identity(Kind.USER, "bob"))

    def setUp(self) -> None:
        self.version: int | None = 1
        self.callers: dict[bytes, Caller] = {b"Basic bob": self.BOB, b"Bearer bob": self.BOB}
        self.rules = object()
        self.clock = Clock()
        self.hot = HotAnswers(
            lambda _: self.version,
            lambda login, _: self.callers.get(login),
            lambda: self.rules,
            1 << 20,
            self.clock,
        )

    def login(self, value: bytes) -> bytes:
        return self.HEAD[:-2] + b"Authorization: " + value + b"\r\n\r\n"

    def find(
        self, head: bytes, peer: Peer = HERE, address: str | None = "192.0.2.1"
    ) -> Kept | Repeated | None:
        return self.hot.find(head, peer, address, Caller())

    def keep(
        self,
        head: bytes,
        caller: Caller = Caller(),  # noqa: B008 - it is frozen
        peer: Peer = HERE,
        address: str | None = "192.0.2.1",
    ) -> None:
        """Ask twice, as the usual way answers."""
        self.find(head, peer, address)
        asked = self.find(head, peer, address)
        assert isinstance(asked, Repeated)
        asked = self.hot.resting(asked, "local/app")
        self.hot.keep(asked, caller, b"HTTP/1.1 200 OK\r\n", b"", self.ACCESS, TALLY)

    def assert_kept(self, head: bytes, **of: Any) -> None:
        self.assertIsInstance(self.find(head, **of), Kept)

    def assert_not(self, head: bytes, **of: Any) -> None:
        self.assertNotIsInstance(self.find(head, **of), Kept)

    def test_it_ends_with_a_commit_that_touches_its_image(self) -> None:
        self.keep(self.HEAD)
        self.assert_kept(self.HEAD)
        self.version = None
        self.assert_not(self.HEAD)
        self.version = 2
        self.assert_not(self.HEAD)

    def test_while_a_commit_is_under_way_nothing_is_kept(self) -> None:
        self.version = None
        self.keep(self.HEAD)
        self.assert_not(self.HEAD)

    def test_what_was_read_before_a_commit_is_not_kept_after_it(self) -> None:
        self.find(self.HEAD)
        asked = self.find(self.HEAD)
        assert isinstance(asked, Repeated)
        asked = self.hot.resting(asked, "local/app")
        self.version = 2
        self.hot.keep(asked, Caller(), b"HTTP/1.1 200 OK\r\n", b"", self.ACCESS, TALLY)
        self.assert_not(self.HEAD)

    def test_it_ends_after_a_second(self) -> None:
        self.keep(self.HEAD)
        self.clock.advance(SECONDS)
        self.assert_not(self.HEAD)

    def test_it_ends_with_the_rules(self) -> None:
        self.keep(self.HEAD)
        self.rules = object()
        self.assert_not(self.HEAD)

    def test_it_ends_with_the_login_and_comes_back_with_it(self) -> None:
        head = self.login(b"Basic bob")
        self.keep(head, self.BOB)
        self.assert_kept(head)
        caller = self.callers.pop(b"Basic bob")
        self.assert_not(head)
        self.callers[b"Basic bob"] = caller
        self.assert_kept(head)

    def test_it_is_for_what_the_login_permits_not_for_its_bytes(self) -> None:
        self.keep(self.login(b"Bearer bob"), self.BOB)
        self.assert_kept(self.login(b"Basic bob"))
        self.assert_not(self.HEAD)
        scoped = Caller(Identity(Kind.USER, "bob"), {"other": frozenset()})
        self.callers[b"Bearer scoped"] = scoped
        self.assert_not(self.login(b"Bearer scoped"))
        grouped = Caller(Identity(Kind.USER, "bob", frozenset({"team"})))
        self.callers[b"Bearer grouped"] = grouped
        self.assert_not(self.login(b"Bearer grouped"))
        self.assert_not(self.login(b"Bearer nobody"))

    def test_what_anonymous_gets_is_for_no_login(self) -> None:
        self.keep(self.HEAD)
        self.assert_not(self.login(b"Basic bob"))
        self.assert_kept(self.HEAD)

    def test_a_login_that_is_not_recalled_as_the_usual_way_has_seen_it_is_not_kept(self) -> None:
        self.keep(self.login(b"Basic bob"), Caller(Identity(Kind.USER, "alice")))
        self.assert_not(self.login(b"Basic bob"))
        self.keep(self.login(b"Basic nobody"))
        self.assert_not(self.login(b"Basic nobody"))
        self.assert_not(self.HEAD)

    def test_it_is_for_peers_of_one_kind(self) -> None:
        self.keep(self.HEAD)
        self.assert_not(self.HEAD, peer=Peer(True, ""))
        self.assert_not(self.HEAD, peer=Peer(False, "192.0.2.9"))

    def test_behind_a_proxy_the_client_is_the_one_that_the_usual_way_has_seen(self) -> None:
        of = {"peer": Peer(False, "192.0.2.9"), "address": None}
        asked: list[str] = []

        def recall(login: bytes, address: str) -> Caller | None:
            asked.append(address)
            return self.callers.get(login)

        self.hot = HotAnswers(lambda _: 1, recall, lambda: 1, 1 << 20, self.clock)
        head = self.login(b"Basic bob")
        self.keep(head, self.BOB, **of)  # type: ignore[arg-type]  # of several types
        self.assert_kept(head, **of)
        self.assertEqual(set(asked), {"192.0.2.1"})

    def test_two_requests_at_once_and_a_second_login_are_left_to_the_usual_way(self) -> None:
        for head in (self.HEAD * 2, self.HEAD + self.login(b"Basic bob")):
            for _ in range(3):
                self.assertIsNone(self.find(head))
        twice = self.login(b"Basic bob\r\nAuthorization: Basic bob")
        self.keep(self.login(b"Basic bob"), self.BOB)
        self.assert_not(twice)

    def test_a_certificate_is_a_login(self) -> None:
        self.keep(self.HEAD)
        certified = Caller(Identity(Kind.CERTIFICATE, "ci"))
        found = self.hot.find(self.HEAD, self.HERE, "192.0.2.1", certified)
        self.assertNotIsInstance(found, Kept)


def hot_answers(limit: int) -> HotAnswers:
    return HotAnswers(lambda _: 1, lambda login, address: None, lambda: 1, limit, Clock())


def find(hot: HotAnswers, head: bytes) -> Kept | Repeated | None:
    return hot.find(head, Peer(False, ""), "::1", Caller())


class MemoryTests(SynchronousTestCase):
    ACCESS = Access("::1", "-", "GET", "/", 200, 0, 0.0, "agent", "0")

    def test_long_requests_count_by_their_size_with_an_answer_and_without(self) -> None:
        limit = 1 << 20
        hot = hot_answers(limit)
        for number in range(2000):
            head = f"GET /{number:04000} HTTP/1.1\r\n\r\n".encode()
            self.assertIsNone(find(hot, head))
            if number % 2:
                asked = find(hot, head)
                assert isinstance(asked, Repeated)
                agent = "agent" * 1000
                access = Access("::1", "-", "GET", "/", 200, 0, 0.0, agent, "0")
                asked = hot.resting(asked, "local/app")
                hot.keep(asked, Caller(), b"HTTP/1.1 200 OK\r\n", b"", access, TALLY)
                self.assertIsInstance(find(hot, head), Kept)
            else:
                self.assertIsInstance(find(hot, head), Repeated)
        held = sum(len(asked.head) for asked in hot._seen)
        held += sum(len(each.access.agent) for each in hot._kept.values())
        self.assertGreater(held, limit // 4)
        self.assertLess(held, limit)

    def test_where_there_is_hardly_any_nothing_is_kept_and_nothing_fails(self) -> None:
        head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        for limit in (1, 512, 1024, 1500, 65536):
            hot = hot_answers(limit)
            self.assertNotIsInstance(find(hot, head), Kept)
            asked = Repeated(Asked(head, Peer(False, "")), None, "local/app", 1)
            hot.keep(asked, Caller(), b"HTTP/1.1 200 OK\r\n", b"body", self.ACCESS, TALLY)
            self.assertNotIsInstance(find(hot, head), Kept)


class RatedTests(HotCase, GuardedCase):
    async def test_one_that_is_repeated_counts_as_any_other(self) -> None:
        await self.have("team/app")
        path = "/v2/team/app/manifests/v1"
        limits = LimitsSettings(user_requests=1, user_burst=8)
        self.registry.running.site.rates = Rates(limits, SharedMemory.create(), Clock().seconds)
        got = await self.tell(self.registry, [("GET", path, basic("bob"))], 10)
        self.assertEqual([status for status, _, _ in got], [200] * 8 + [429] * 2)
        self.assertEqual(self.hits(self.registry), 1)


class ShortLeaseTests(HotCase):
    toml = 'lease = "59s"'

    async def test_where_leases_are_short_there_are_none(self) -> None:
        self.assertIsNone(self.registry.running.site.hot)
