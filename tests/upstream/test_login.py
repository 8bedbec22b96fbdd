"""Login to upstreams: challenges, tokens, disclosure."""

from __future__ import annotations

import base64
from collections.abc import Callable
from itertools import product
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from artifactd.kit.shared import SharedMemory
from artifactd.oci.names import Tag
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.values import Url
from artifactd.upstream import patience
from artifactd.upstream.access import RegistryAccess
from artifactd.upstream.client import RegistryUpstream, ResponseBody
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import LoginRefused, Missing, Throttled
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
from artifactd.upstream.http.url import Target
from artifactd.upstream.login import Challenge, Token, TokenRequest, Tokens, parse_challenges
from artifactd.upstream.patience import Exchanges, Retries
from tests.upstream.fake import (
    BEARER,
    DIGEST,
    HUB,
    IMAGE,
    REALM,
    Answer,
    Answering,
    Asked,
    Hub,
    Reply,
    ScriptedHttp,
    UpstreamTestCase,
    Watch,
    in_turn,
    json,
)


class DisclosureTests(TestCase):
    def disclosure(self, upstream: str, *auth_hosts: str) -> Disclosure:
        return Disclosure(Target.parse(upstream), frozenset(auth_hosts))

    def assert_shown(self, shown: bool, upstream: str, realm: str, *auth_hosts: str) -> None:
        disclosure = self.disclosure(upstream, *auth_hosts)
        self.assertEqual(shown, disclosure.shows(Target.parse(realm)), (upstream, realm))

    def test_any_realm_with_tls_may_be_asked(self) -> None:
        disclosure = self.disclosure("https://reg.example")
        self.assertTrue(disclosure.asks(Target.parse("https://elsewhere.example/token")))

    def test_a_realm_without_tls_may_be_asked_for_an_upstream_without_tls_only(self) -> None:
        realm = Target.parse("http://reg.example/token")
        self.assertFalse(self.disclosure("https://reg.example").asks(realm))
        self.assertTrue(self.disclosure("http://reg.example").asks(realm))

    def test_the_upstreams_own_host_is_shown_them_on_any_port(self) -> None:
        self.assert_shown(True, "https://reg.example:5000", "https://REG.example/token")
        self.assert_shown(True, "https://reg.example", "https://reg.example:5001/auth")

    def test_docker_hubs_auth_host_is_shown_docker_hubs(self) -> None:
        for upstream in ("registry-1.docker.io", "docker.io", "index.docker.com"):
            self.assert_shown(True, f"https://{upstream}", "https://auth.docker.io/token")

    def test_docker_hubs_auth_host_is_not_shown_anybody_elses(self) -> None:
        for upstream in ("reg.example", "notdocker.io", "docker.io.example"):
            self.assert_shown(False, f"https://{upstream}", "https://auth.docker.io/token")

    def test_hosts_of_the_settings_are_shown_them(self) -> None:
        self.assert_shown(True, "https://reg.example", "https://auth.example/t", "auth.example")
        self.assert_shown(True, "https://reg.example", "https://a.example:8/t", "a.example:8")
        self.assert_shown(True, "https://reg.example", "https://a.example/t", "a.example:443")
        self.assert_shown(True, "https://reg.example", "https://[::1]:5/t", "[::1]:5")

    def test_nobody_else_is(self) -> None:
        for realm in (
            "https://evil.example/token",
            "https://reg.example.evil.example/token",
            "https://sub.reg.example/token",
            "https://a.example:9/token",
        ):
            self.assert_shown(False, "https://reg.example", realm, "auth.example", "a.example:8")

    def test_nobody_is_without_tls_unless_the_upstream_has_none(self) -> None:
        self.assert_shown(False, "https://reg.example", "http://reg.example/t", "reg.example")
        self.assert_shown(True, "http://reg.example:5000", "http://reg.example:5001/t")


class CredentialsTests(TestCase):
    def test_they_are_sent_as_utf_8(self) -> None:
        self.assertEqual("Basic dGVzdDoxMjPCow==", Credentials("test", "123£").basic())

    def test_their_text_does_not_tell_the_password(self) -> None:
        self.assertNotIn("hunter2", repr(Credentials("bob", "hunter2")))


nearly = st.text(alphabet='Basicrelm="\\, \t/:', max_size=60)


class ChallengeTests(TestCase):
    """RFC 9110, 11.6.1, and what registries send."""

    def assert_parsed(self, *fields: str, to: list[tuple[str, dict[str, str]]]) -> None:
        self.assertEqual([Challenge(*one) for one in to], parse_challenges(fields))

    def test_docker_hubs(self) -> None:
        self.assert_parsed(
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
            'scope="repository:samalba/my-app:pull,push"',
            to=[
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:samalba/my-app:pull,push",
                    },
                )
            ],
        )

    def test_several_in_one_field(self) -> None:
        self.assert_parsed(
            'Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"',
            to=[
                ("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
                ("basic", {"realm": "simple"}),
            ],
        )

    def test_several_fields(self) -> None:
        self.assert_parsed(
            "Negotiate",
            'Basic realm="a"',
            to=[("negotiate", {}), ("basic", {"realm": "a"})],
        )

    def test_names_are_read_in_any_case_and_values_as_they_are(self) -> None:
        self.assert_parsed('BEARER Realm="HTTPS://A/T"', to=[("bearer", {"realm": "HTTPS://A/T"})])

    def test_a_token68_is_no_parameter(self) -> None:
        self.assert_parsed(
            'Negotiate YII=, Custom a/b==, Bearer realm="r"',
            to=[("negotiate", {}), ("custom", {}), ("bearer", {"realm": "r"})],
        )

    def test_space_where_the_grammar_lets_it_be(self) -> None:
        self.assert_parsed(
            ' , Bearer  realm = "r" ,\tservice="s", ,Basic',
            to=[("bearer", {"realm": "r", "service": "s"}), ("basic", {})],
        )

    def test_a_url_without_quotes_is_read(self) -> None:
        self.assert_parsed(
            "Bearer realm=https://a/t?x=1,service=s",
            to=[("bearer", {"realm": "https://a/t?x=1", "service": "s"})],
        )

    def test_the_first_of_two_parameters_of_a_name_counts(self) -> None:
        self.assert_parsed('Bearer realm="a",realm="b"', to=[("bearer", {"realm": "a"})])

    def test_what_follows_something_malformed_is_left_out(self) -> None:
        self.assert_parsed('Basic realm="a", @@, Bearer realm="b"', to=[("basic", {"realm": "a"})])
        self.assert_parsed('Bearer realm="never ends', to=[("bearer", {}), ("realm", {})])

    @given(st.lists(nearly | st.text(), max_size=3))
    def test_any_fields_can_be_read(self, fields: list[str]) -> None:
        for challenge in parse_challenges(fields):
            self.assertTrue(challenge.scheme)
            self.assertEqual(challenge.scheme.lower(), challenge.scheme)


SCOPE = "repository:library/alpine:pull"
WANTED = TokenRequest(Target.parse("https://auth.docker.io/token"), "registry.docker.io", SCOPE)
BOB = Credentials("bob", "hunter2")
DATE = "Tue, 10 Nov 2009 23:01:40 GMT"


class TokensTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.answer_with(lambda asked: json({"token": f"t{len(self.http.asked)}"}))

    def answer_with(self, answering: Answering, limit: int = 1024) -> None:
        self.http = ScriptedHttp(answering)
        memory = SharedMemory.create()
        self.tokens = Tokens(
            Exchanges(self.http, "docker.io", "auth.docker.io", self.clock, Watch(), memory),
            Retries(self.clock, Random(1)),
            self.clock,
            limit,
        )

    def fetched(
        self, wanted: TokenRequest = WANTED, credentials: Credentials | None = None
    ) -> Token:
        return self.successResultOf(self.tokens.fetch(wanted, credentials))

    def refused(
        self, reply: Reply, kind: type[UpstreamError], credentials: Credentials | None = None
    ) -> UpstreamError:
        """Return the error of a fetch that is answered by ``reply``."""
        self.answer_with(lambda asked: reply)
        waiting = self.tokens.fetch(WANTED, credentials)
        self.clock.pump([5, 5])
        error = self.failureResultOf(waiting, kind).value
        assert isinstance(error, kind)
        return error

    def assert_good_for(self, seconds: float, token: dict[str, Any], date: str = "") -> None:
        """A token is used for so long and no longer."""
        self.answer_with(in_turn(json({"token": "t", **token}, Date=date)))
        self.fetched()
        self.clock.advance(seconds - 0.5)
        self.assertIsNotNone(self.tokens.kept(WANTED), token)
        self.clock.advance(0.5)
        self.assertIsNone(self.tokens.kept(WANTED), token)

    def test_service_and_scope_are_asked_for(self) -> None:
        self.fetched()
        (asked,) = self.http.asked
        self.assertEqual(
            "https://auth.docker.io/token?service=registry.docker.io"
            "&scope=repository%3Alibrary%2Falpine%3Apull",
            asked.url,
        )
        self.assertEqual(("GET", None), (asked.method, asked.authorization))

    def test_a_query_of_the_realms_stays(self) -> None:
        realm = Target.parse("https://gitlab.example/jwt/auth?x=1")
        self.fetched(TokenRequest(realm, None, "repository:a:pull"))
        self.assertEqual(
            "https://gitlab.example/jwt/auth?x=1&scope=repository%3Aa%3Apull",
            self.http.asked[0].url,
        )

    def test_credentials_go_along(self) -> None:
        token = self.fetched(credentials=BOB)
        self.assertEqual(("bob", BOB.basic()), (token.user, self.http.asked[0].authorization))

    def test_a_token_has_either_name(self) -> None:
        for answer in ({"access_token": "t"}, {"token": "t", "access_token": "u"},
                       {"token": None, "access_token": "t"}):  # fmt: skip
            self.answer_with(in_turn(json(answer)))
            self.assertEqual("t", self.fetched().text)

    def test_it_is_used_until_shortly_before_it_expires(self) -> None:
        self.assert_good_for(90, {"expires_in": 100})
        self.assert_good_for(270, {"expires_in": 300})
        self.assert_good_for(3570, {"expires_in": 3600})

    def test_it_lives_for_a_minute_at_least(self) -> None:
        for token in ({}, {"expires_in": None}, {"expires_in": 1}, {"expires_in": -5},
                      {"expires_in": 0}, {"expires_in": "60"}, {"expires_in": "nan"}):  # fmt: skip
            self.assert_good_for(54, token)

    def test_it_is_used_for_a_day_at_most(self) -> None:
        self.assert_good_for(86370, {"expires_in": 10**12})

    def test_the_time_since_it_was_issued_counts(self) -> None:
        issued = {"expires_in": 300, "issued_at": "2009-11-10T23:00:00Z"}
        self.assert_good_for(170, issued, date=DATE)
        issued["issued_at"] = "2009-11-10T23:00:00.000000001"
        self.assert_good_for(170, issued, date=DATE)

    def test_a_time_of_issue_that_makes_no_sense_does_not(self) -> None:
        for issued in ("2009-11-11T23:00:00Z", "yesterday", "", 7, None):
            self.assert_good_for(270, {"expires_in": 300, "issued_at": issued}, date=DATE)
        self.assert_good_for(270, {"expires_in": 300, "issued_at": "2009-11-10T23:00:00Z"})

    def test_nonsense_is_a_refused_login(self) -> None:
        for body in (b"", b"<html>", b"[]", b"{}", b'{"token":7}', b'{"token":""}', b"\xff\xfe",
                     b'{"token":"a b"}', b'{"token":"a\\r\\nHost: evil"}', b'{"token":"\xc3\xa9"}',
                     b'{"token":"t","expires_in":"soon"}', b'{"token":"t","expires_in":[1]}',
                     b"[" * 60_000, b'{"a":' + b"[" * 60_000,
                     b'{"token":"' + b"t" * (64 << 10) + b'"}'):  # fmt: skip
            self.refused(Answer(200, body), LoginRefused)
            self.assertIsNone(self.tokens.kept(WANTED))

    def test_its_text_does_not_tell_it(self) -> None:
        self.answer_with(in_turn(json({"token": "s3cr3t"})))
        self.assertNotIn("s3cr3t", repr(self.fetched()))

    def test_a_realm_that_cant_be_reached_is_a_refused_login_with_the_reason(self) -> None:
        error = self.refused(Unreachable("auth.docker.io: no route to it"), LoginRefused)
        self.assertEqual(
            f"no token for {SCOPE} can be had: auth.docker.io: no route to it", error.reason
        )
        self.refused(TimedOut("no answer"), LoginRefused)

    def test_so_is_one_that_fails(self) -> None:
        error = self.refused(json({"message": "down"}, 503), LoginRefused)
        self.assertEqual(503, error.status)
        self.assertIn("answers 503: down", error.reason)

    def test_so_is_one_that_answers_something_else(self) -> None:
        for status in (204, 302, 400, 404, 410, 416, 501):
            error = self.refused(Answer(status), LoginRefused, BOB)
            self.assertEqual(status, error.status)

    def test_a_failure_that_may_pass_is_tried_again(self) -> None:
        self.answer_with(in_turn(Answer(503), Unreachable("reset"), json({"token": "t"})))
        waiting = self.tokens.fetch(WANTED, None)
        self.clock.pump([1, 1])
        self.assertEqual("t", self.successResultOf(waiting).text)

    def test_refused_credentials_are_a_refused_login(self) -> None:
        for status in (401, 403):
            error = self.refused(Answer(status), LoginRefused, BOB)
            self.assertIn("login refused to user bob", error.reason)

    def test_a_token_that_nobody_is_given_means_that_it_is_missing(self) -> None:
        for status in (401, 403):
            error = self.refused(Answer(status), Missing)
            self.assertIn("anonymously", error.reason)

    def test_a_login_that_is_throttled_is_not_asked_for_again_before_its_time(self) -> None:
        self.answer_with(in_turn(Answer(429, fields={"Retry-After": "30"}), json({"token": "t"})))
        for left in (30, 20):
            error = self.failureResultOf(self.tokens.fetch(WANTED, None), Throttled).value
            assert isinstance(error, Throttled)
            self.assertEqual(left, error.retry_after)
            self.clock.advance(10)
        self.clock.advance(10)
        self.assertEqual("t", self.fetched().text)

    def test_a_token_ends_what_429_without_a_time_has_begun(self) -> None:
        replies = [Answer(429), json({"token": "t"})]
        self.answer_with(in_turn(*replies, *replies, json({"token": "other"})))
        other = TokenRequest(WANTED.realm, WANTED.service, "repository:other:pull")
        for wanted in (WANTED, other):
            error = self.failureResultOf(self.tokens.fetch(wanted, None), Throttled).value
            assert isinstance(error, Throttled)
            self.assertEqual(1, error.retry_after)
            if wanted is other:
                self.assertEqual("t", self.fetched().text)  # one image's answer holds no other back
            self.clock.advance(1)
            self.fetched(wanted)

    def test_a_dead_realm_is_soon_not_asked_any_more(self) -> None:
        self.answer_with(lambda asked: TimedOut("no answer"))
        for _ in range(7):
            self.failureResultOf(self.tokens.fetch(WANTED, None), LoginRefused)
        self.assertEqual(5, len(self.http.asked))

    def test_many_who_want_the_same_wait_for_one_fetch(self) -> None:
        coming: Deferred[Answer] = Deferred()
        self.answer_with(lambda asked: coming)
        waiting = [self.tokens.fetch(WANTED, None) for _ in range(20)]
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        coming.callback(json({"token": "t"}))
        self.assertEqual({"t"}, {self.successResultOf(one).text for one in waiting[1:]})
        self.assertEqual(1, len(self.http.asked))

    def test_when_all_have_left_the_fetch_ends(self) -> None:
        ended: list[Deferred[Answer]] = []
        coming: Deferred[Answer] = Deferred(ended.append)
        self.answer_with(lambda asked: coming)
        waiting = self.tokens.fetch(WANTED, None)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual([coming], ended)

    def test_what_was_fetched_is_kept_per_scope(self) -> None:
        token = self.fetched()
        self.assertIs(token, self.tokens.kept(WANTED))
        other = TokenRequest(WANTED.realm, WANTED.service, "repository:library/debian:pull")
        self.assertIsNone(self.tokens.kept(other))

    def test_one_that_is_refused_is_dropped(self) -> None:
        self.tokens.drop(WANTED, self.fetched())
        self.assertIsNone(self.tokens.kept(WANTED))

    def test_one_that_took_its_place_stays(self) -> None:
        first, second = self.fetched(), self.fetched()
        self.tokens.drop(WANTED, first)
        self.assertIs(second, self.tokens.kept(WANTED))

    def test_the_longest_unused_goes_when_there_are_too_many(self) -> None:
        self.answer_with(lambda asked: json({"token": "t"}), limit=2)
        a, b, c = (TokenRequest(WANTED.realm, None, scope) for scope in "abc")
        self.fetched(a)
        self.fetched(b)
        self.tokens.kept(a)
        self.fetched(c)
        self.assertEqual(
            [True, False, True], [self.tokens.kept(one) is not None for one in (a, b, c)]
        )


LATEST = Tag("latest")
BOB = Credentials("bob", "hunter2")
MANIFEST = f"/v2/{IMAGE}/manifests/latest"
UNAUTHORIZED = json({"errors": [{"message": "authentication required"}]}, 401).body


def challenged(*challenges: str, **settings: Any) -> Answer:
    return Answer(401, UNAUTHORIZED, {"WWW-Authenticate": list(challenges)}, **settings)


class LoginTestCase(UpstreamTestCase):
    def manifest(self, upstream: RegistryUpstream, image: str = IMAGE) -> Deferred[object]:
        return Deferred.fromCoroutine(upstream.manifest(image, LATEST))

    def error(self, upstream: RegistryUpstream, image: str = IMAGE) -> UpstreamError:
        """Ask for a manifest and return the error."""
        error = self.failureResultOf(self.manifest(upstream, image), UpstreamError).value
        assert isinstance(error, UpstreamError)
        return error


class RefusedLoginTests(LoginTestCase):
    """A token service that refuses our login, also for what everybody may have, as nvcr.io."""

    def service(
        self, *, status: int = 401, anonymous: bool = True, private: str = "org/private"
    ) -> RegistryUpstream:
        """
        :param status: what a login is answered.
        :param anonymous: whether tokens are given without one.
        :param private: the image that needs a login.
        """
        self.right = ""

        def answer(asked: Asked) -> Reply:
            if asked.url.startswith(REALM):
                if asked.authorization is None:
                    return json({"token": "anonymous"}) if anonymous else Answer(401)
                if asked.authorization == self.right:
                    return json({"token": "bobs"})
                return json({"message": "wrong password"}, status)
            if asked.authorization is None:
                return challenged(BEARER)
            if private in asked.path and asked.authorization != "Bearer bobs":
                return Answer(403, b"{}")
            return Answer(404, b"{}") if "org/none" in asked.path else Answer(200, b"{}")

        return self.upstream(answer, credentials=lambda: BOB, retries=0)

    def tokens(self) -> list[str | None]:
        """The logins that the token service was shown."""
        return [asked.authorization for asked in self.http.asked if asked.url.startswith(REALM)]

    def test_public_images_are_asked_for_anonymously_and_the_log_says_so_once(self) -> None:
        for status in (401, 403):
            logged = self.logged()
            upstream = self.service(status=status)
            for image in ("org/a", "org/b", "org/a"):
                self.successResultOf(self.manifest(upstream, image))
            self.assertEqual([BOB.basic(), None] * 2, self.tokens())
            (line,) = [line for line in logged if "anonymously" in line]
            self.assertIn("registry-1.docker.io: login refused to user bob: ", line)
            self.assertIn("wrong password", line)
            self.assertNotIn(BOB.password, line)

    def logged(self) -> list[str]:
        """The lines of the log from now on."""
        lines: list[str] = []

        @implementer(ILogObserver)
        def note(event: LogEvent) -> None:
            lines.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        return lines

    def test_what_needs_the_login_is_no_image_that_is_not_there(self) -> None:
        upstream = self.service()
        error = self.error(upstream, "org/private")
        self.assertIsInstance(error, LoginRefused)
        self.assertIn("login refused to user bob", error.reason)
        self.assertIn("wrong password", error.reason)
        self.assertIsInstance(self.error(upstream, "org/none"), Missing)

    def test_without_anonymous_tokens_the_refusal_of_the_login_is_the_answer(self) -> None:
        upstream = self.service(anonymous=False)
        error = self.error(upstream)
        self.assertIsInstance(error, LoginRefused)
        self.assertIn("login refused to user bob", error.reason)

    def test_nor_while_another_request_asks_for_a_token_without_the_login(self) -> None:
        anonymous: Deferred[Answer] = Deferred()

        def answer(asked: Asked) -> Reply:
            if not asked.url.startswith(REALM):
                return challenged(BEARER)
            return anonymous if asked.authorization is None else Answer(401)

        upstream = self.upstream(answer, credentials=lambda: BOB, retries=0)
        waiting = [self.manifest(upstream) for _ in range(2)]
        anonymous.callback(Answer(401))
        for each in waiting:
            error = self.failureResultOf(each, UpstreamError).value
            self.assertIsInstance(error, LoginRefused)
            self.assertIn("login refused to user bob", error.reason)

    def test_a_failure_of_the_service_is_no_refusal(self) -> None:
        for status in (400, 404, 429, 500):
            upstream = self.service(status=status)
            self.error(upstream)
            self.assertNotIn(None, self.tokens(), status)

    def test_a_login_that_is_right_again_is_used(self) -> None:
        upstream = self.service()
        self.successResultOf(self.manifest(upstream))
        self.assertIsInstance(self.error(upstream, "org/private"), LoginRefused)
        self.right = BOB.basic()
        self.successResultOf(self.manifest(upstream, "org/private"))
        self.clock.advance(3600)
        self.successResultOf(self.manifest(upstream))
        self.assertEqual("Bearer bobs", self.http.asked[-1].authorization)

    def test_a_clients_own_login_that_is_refused_is_refused(self) -> None:
        def answer(asked: Asked) -> Reply:
            if asked.url.startswith(REALM):
                return json({"token": "t"}) if asked.authorization is None else Answer(401)
            return challenged(BEARER) if asked.authorization is None else Answer(200, b"{}")

        http = ScriptedHttp(answer)
        settings = RemoteSettings(upstream=Url(HUB), retries=0)
        memory = SharedMemory.create()
        access = RegistryAccess("docker.io", settings, http, self.clock, self.watch, memory)
        for work in (access.logs_in(BOB), access.may_pull(IMAGE, BOB, LATEST)):
            self.failureResultOf(Deferred.fromCoroutine(work), LoginRefused)
        self.assertNotIn("Bearer t", [asked.authorization for asked in http.asked])


class RedirectedTests(LoginTestCase):
    """The upstream redirects to another registry, which wants a token of its own."""

    URL = f"https://back.example/v2/moved/{IMAGE}/manifests/latest?x=1"
    ORIGIN = ("https", "back.example", 443)
    CHALLENGE = 'Bearer realm="https://auth.back.example/token",service="back"'

    def back(self, status: int = 200, **settings: Any) -> Answer:
        """An answer of the other registry."""
        return Answer(status, b"{}", host="back.example", url=self.URL, **settings)

    def challenge(self, text: str = CHALLENGE) -> Answer:
        return self.back(401, fields={"WWW-Authenticate": text})

    def test_it_gets_an_anonymous_token_for_the_name_there(self) -> None:
        upstream = self.upstream(
            in_turn(self.challenge(), json({"token": "t"}), self.back(), self.back()),
            credentials=lambda: BOB,
            auth_hosts=["auth.back.example"],
        )
        self.successResultOf(self.manifest(upstream))
        first, token, second = self.http.asked
        self.assertEqual(
            ("auth.back.example", None), (urlsplit(token.url).netloc, token.authorization)
        )
        scope = f"repository:moved/{IMAGE}:pull"
        self.assertEqual({"service": ["back"], "scope": [scope]}, token.query)
        self.assertEqual((first.url, {}), (second.url, first.others))
        self.assertEqual({self.ORIGIN: "Bearer t"}, second.others)
        self.assertIsNone(second.authorization)
        self.successResultOf(self.manifest(upstream))
        self.assertEqual({self.ORIGIN: "Bearer t"}, self.http.asked[-1].others)

    def test_neither_registry_gets_the_others_token_though_one_service_gives_both(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged(BEARER),
                json({"token": "ours"}),
                self.challenge(BEARER),
                json({"token": "theirs"}),
                self.back(),
            ),
            credentials=lambda: BOB,
        )
        self.successResultOf(self.manifest(upstream))
        _, ours, _, theirs, last = self.http.asked
        self.assertEqual((BOB.basic(), None), (ours.authorization, theirs.authorization))
        self.assertEqual("Bearer ours", last.authorization)
        self.assertEqual({self.ORIGIN: "Bearer theirs"}, last.others)

    def test_a_dead_token_is_replaced_once(self) -> None:
        for status, fields in ((401, {"WWW-Authenticate": self.CHALLENGE}), (401, {}), (403, {})):
            upstream = self.upstream(
                in_turn(
                    self.challenge(),
                    json({"token": "t"}),
                    self.back(),
                    self.back(status, fields=fields),
                    json({"token": "u"}),
                    self.back(),
                    self.back(status, fields=fields),
                    json({"token": "v"}),
                    self.back(status, fields=fields),
                )
            )
            self.successResultOf(self.manifest(upstream))
            self.successResultOf(self.manifest(upstream))
            self.assertEqual({self.ORIGIN: "Bearer u"}, self.http.asked[-1].others)
            self.assertIsInstance(self.error(upstream), Missing)

    def test_what_it_refuses_in_spite_of_a_token_is_not_there(self) -> None:
        upstream = self.upstream(in_turn(self.challenge(), json({"token": "t"}), self.challenge()))
        self.assertIsInstance(self.error(upstream), Missing)
        upstream = self.upstream(in_turn(self.challenge(), Answer(401)))
        self.assertIsInstance(self.error(upstream), Missing)

    def test_a_head_that_it_refuses_is_one_for_get_to_decide(self) -> None:
        for refusals in (
            (self.challenge(), Answer(403)),
            (self.challenge(), Answer(500)),
            (self.challenge(), json({"token": "t"}), self.challenge()),
            (self.back(403),),
        ):
            upstream = self.upstream(in_turn(*refusals), retries=0)
            head = Deferred.fromCoroutine(upstream.manifest_head(IMAGE, LATEST, None))
            self.assertIsNone(self.successResultOf(head))

    def test_a_realm_that_may_not_be_asked_is_not(self) -> None:
        for realm in ("http://auth.back.example/token", "ftp://x/", "https://u:p@x/"):
            upstream = self.upstream(in_turn(self.challenge(f'Bearer realm="{realm}"')))
            self.assertNotIsInstance(self.error(upstream), Missing)
            self.assertEqual(1, len(self.http.asked))

    def test_its_dead_token_service_closes_nobody_elses(self) -> None:
        def answer(asked: Asked) -> Reply:
            if asked.url.startswith(REALM):
                return json({"token": "t"})
            if "auth.back" in asked.url:
                return Unreachable("dead")
            if "moved" in asked.url:
                return self.challenge()
            return Answer(200, b"{}") if asked.authorization else challenged(BEARER)

        upstream = self.upstream(answer, retries=0)
        for number in range(8):
            self.error(upstream, f"moved/{number}")
        self.successResultOf(self.manifest(upstream))


class TokenTests(LoginTestCase):
    """A registry with a token service: Docker Hub."""

    def hub(self, **settings: Any) -> tuple[Hub, RegistryUpstream]:
        hub = Hub()
        hub.resources[MANIFEST] = self.fresh(b"{}")
        hub.resources[f"/v2/{IMAGE}/blobs/{DIGEST}"] = self.fresh(b"01234")
        return hub, self.upstream(self.copying(hub), **settings)

    def fresh(self, body: bytes) -> Answer:
        return Answer(200, body)

    def copying(self, hub: Hub) -> Callable[[Asked], Reply]:
        """``hub``, every answer of which is a new one."""

        def answer(asked: Asked) -> Reply:
            reply = hub(asked)
            if isinstance(reply, Answer):
                return Answer(reply.status, reply.body, reply.fields, length=reply.length)
            return reply

        return answer

    def assert_asked(self, *urls: str) -> None:
        self.assertEqual(list(urls), [asked.url.partition("?")[0] for asked in self.http.asked])
        self.http.asked.clear()

    def test_the_challenge_is_answered_with_a_token_for_the_image(self) -> None:
        hub, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        self.assert_asked(HUB + MANIFEST, REALM, HUB + MANIFEST)
        self.assertEqual(
            {"service": ["registry.docker.io"], "scope": [f"repository:{IMAGE}:pull"]},
            hub.fetches[0].query,
        )

    def test_the_connection_of_a_401_can_be_used_again(self) -> None:
        _, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        self.assertEqual(["read"], self.http.answers[0].ended)

    def test_what_storage_refuses_is_no_challenge(self) -> None:
        for refusing in (
            lambda: Answer(403, host="cdn.example"),
            lambda: Answer(401, host="cdn.example"),
            lambda: challenged('Basic realm="cdn"', host="cdn.example"),
            lambda: challenged(BEARER, host="cdn.example", url=f"{HUB}/data"),
        ):
            upstream = self.upstream(
                in_turn(
                    challenged(BEARER),
                    json({"token": "t"}),
                    Answer(200, b"{}"),
                    refusing(),
                    Answer(200, b"{}"),
                ),
                credentials=lambda: BOB,
            )
            self.successResultOf(self.manifest(upstream))
            error = self.error(upstream)
            self.assertEqual("cdn.example answers 40", error.reason[:22])
            self.assertNotIsInstance(error, Missing)
            self.successResultOf(self.manifest(upstream))
            self.assertEqual("Bearer t", self.http.asked[-1].authorization)
            self.assertEqual({}, self.http.asked[-1].others)

    def test_every_exchange_is_told_to_the_watch(self) -> None:
        _, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        self.assertEqual([("GET", 401), ("GET", 200), ("GET", 200)], self.watch.requests)

    def test_a_token_is_for_the_image_whatever_scope_the_challenge_names(self) -> None:
        for scope in (
            "",
            ',scope="registry:catalog:*"',
            ',scope="repository:library/alpine:pull,push,delete"',
            ',scope="repository:other/private:pull repository:library/alpine:pull"',
        ):
            upstream = self.upstream(
                in_turn(challenged(BEARER + scope), json({"token": "t"}), Answer(200, b"{}"))
            )
            self.successResultOf(self.manifest(upstream))
            query = self.http.asked[1].query
            self.assertEqual([f"repository:{IMAGE}:pull"], query["scope"], scope)
            self.assertEqual(["registry.docker.io"], query["service"])

    def test_a_pull_costs_one_401(self) -> None:
        _, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        self.http.asked.clear()
        self.successResultOf(self.manifest(upstream))
        self.successResultOf(upstream.open_blob(IMAGE, DIGEST)).abort()
        self.assert_asked(HUB + MANIFEST, f"{HUB}/v2/{IMAGE}/blobs/{DIGEST}")

    def test_another_image_has_a_token_of_its_own(self) -> None:
        hub, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        self.assertIsInstance(self.error(upstream, "library/debian"), Missing)
        self.assertEqual(2, len(hub.fetches))

    def test_a_token_is_not_used_when_it_is_about_to_expire(self) -> None:
        _, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        self.clock.advance(270)
        self.http.asked.clear()
        self.successResultOf(self.manifest(upstream))
        self.assert_asked(HUB + MANIFEST, REALM, HUB + MANIFEST)

    def test_one_that_is_refused_before_its_time_is_replaced_once(self) -> None:
        hub, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        hub.accepted.clear()
        self.http.asked.clear()
        self.successResultOf(self.manifest(upstream))
        self.assert_asked(HUB + MANIFEST, REALM, HUB + MANIFEST)

    def test_so_is_one_that_has_become_forbidden(self) -> None:
        hub, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        reply = hub.resources.pop(MANIFEST)
        hub.resources[MANIFEST] = Answer(403)
        self.http.asked.clear()
        self.assertIsInstance(self.error(upstream), Missing)
        self.assert_asked(HUB + MANIFEST, REALM, HUB + MANIFEST)
        hub.resources[MANIFEST] = reply
        self.successResultOf(self.manifest(upstream))

    DEAD: tuple[tuple[int, dict[str, str | list[str]]], ...] = (
        (401, {"WWW-Authenticate": BEARER + ',error="invalid_token"'}),
        (401, {"WWW-Authenticate": 'Basic realm="registry"'}),
        (401, {"WWW-Authenticate": "Negotiate"}),
        (401, {}),
        (400, {}),
        (403, {}),
    )
    """What registries answer to a token that has expired."""

    def test_a_dead_token_is_replaced_at_once_whatever_refuses_it(self) -> None:
        for status, fields in self.DEAD:
            upstream = self.upstream(
                in_turn(
                    challenged(BEARER),
                    json({"token": "t"}),
                    Answer(200, b"{}"),
                    Answer(status, UNAUTHORIZED, fields),
                    json({"token": "u"}),
                    Answer(200, b"{}"),
                    Answer(200, b"{}"),
                ),
                credentials=lambda: BOB,
            )
            for _ in range(3):
                self.successResultOf(self.manifest(upstream))
            _, refused, token, again, last = self.http.asked[2:]
            self.assertEqual("Bearer t", refused.authorization, (status, fields))
            self.assertEqual((REALM, BOB.basic()), (token.url[: len(REALM)], token.authorization))
            self.assertEqual(["Bearer u"] * 2, [again.authorization, last.authorization])

    def test_it_is_replaced_once_and_a_second_refusal_is_the_answer(self) -> None:
        for status, fields in self.DEAD:

            def answer(
                asked: Asked,
                status: int = status,
                fields: dict[str, str | list[str]] = fields,
            ) -> Reply:
                if asked.url.startswith(REALM):
                    return json({"token": f"t{self.clock.seconds()}"})
                if asked.authorization is None:
                    return challenged(BEARER)
                if asked.authorization == "Bearer t0.0" and "bad" not in asked.path:
                    return Answer(200, b"{}")
                return Answer(status, b"{}", fields)

            self.setUp()
            upstream = self.upstream(answer)
            self.successResultOf(self.manifest(upstream))
            self.clock.advance(1)
            self.successResultOf(self.manifest(upstream))
            # Nor does it open a circuit breaker, whatever is asked for again and again.
            for number in range(8):
                error = self.error(upstream, f"org/bad{number % 4}")
                self.assertEqual(status, error.status, error.reason)
                self.assertNotIn("in a row", error.reason)
            self.successResultOf(self.manifest(upstream))

    def test_without_a_token_400_costs_no_login(self) -> None:
        upstream = self.upstream(in_turn(Answer(400)), credentials=lambda: BOB)
        self.assertEqual(400, self.error(upstream).status)

    def test_many_at_once_fetch_one_token(self) -> None:
        hub, upstream = self.hub()
        coming: Deferred[Answer] = Deferred()
        hub.token_reply = coming
        waiting = [self.manifest(upstream) for _ in range(20)]
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        hub.accepted.add(token := f"late-repository:{IMAGE}:pull")
        coming.callback(json({"token": token}))
        for one in waiting[1:]:
            self.successResultOf(one)
        self.assertEqual(1, len(hub.fetches))

    def test_many_whose_token_is_refused_fetch_one_too(self) -> None:
        refusals: list[Deferred[Answer]] = []
        tokens: list[Asked] = []

        def answer(asked: Asked) -> Reply:
            if asked.url.startswith(REALM):
                tokens.append(asked)
                return json({"token": f"token{len(tokens)}"})
            if asked.authorization is None:
                return challenged(BEARER)
            if len(tokens) == 1 and len(self.http.asked) > 3:
                refusals.append(Deferred())
                return refusals[-1]
            return Answer(200, b"{}")

        upstream = self.upstream(answer)
        self.successResultOf(self.manifest(upstream))
        waiting = [self.manifest(upstream) for _ in range(3)]
        for refused in refusals:
            refused.callback(challenged(BEARER))
        for one in waiting:
            self.successResultOf(one)
        self.assertEqual((3, 2), (len(refusals), len(tokens)))

    def test_401_in_spite_of_a_fresh_token_means_that_it_is_missing(self) -> None:
        upstream = self.upstream(
            in_turn(challenged(BEARER), json({"token": "t0ken"}), challenged(BEARER))
        )
        error = self.error(upstream)
        self.assertIsInstance(error, Missing)
        self.assertEqual(
            "registry-1.docker.io answers 401: authentication required"
            " (anonymously: it is not there, or not for us)",
            error.reason,
        )

    def test_the_reason_names_the_user(self) -> None:
        upstream = self.upstream(
            in_turn(challenged(BEARER), json({"token": "t"}), Answer(403)), credentials=lambda: BOB
        )
        self.assertIn("(as user bob: it is not there, or not for us)", self.error(upstream).reason)

    def test_a_token_that_does_not_do_is_not_sent_again(self) -> None:
        upstream = self.upstream(
            in_turn(challenged(BEARER), json({"token": "t"}), Answer(403), Answer(200, b"{}"))
        )
        self.error(upstream)
        self.successResultOf(self.manifest(upstream))
        self.assertIsNone(self.http.asked[-1].authorization)

    def test_nor_is_it_when_the_upstream_asks_again(self) -> None:
        for refusal in (challenged(BEARER), Answer(403)):
            upstream = self.upstream(
                in_turn(
                    *(challenged(BEARER), json({"token": "bad"}), refusal),
                    *(challenged(BEARER), json({"token": "good"}), Answer(200, b"{}")),
                )
            )
            self.error(upstream)
            self.successResultOf(self.manifest(upstream))
            self.assertEqual("Bearer good", self.http.asked[-1].authorization)

    def test_a_token_that_cant_be_had_is_a_refused_login(self) -> None:
        for reply in (Unreachable("no route"), Answer(500), Answer(200, b"<html>"), Answer(404)):
            hub, upstream = self.hub(retries=0)
            hub.token_reply = reply
            self.assertIs(LoginRefused, type(self.error(upstream)))

    def test_a_throttled_login_is_no_missing_image(self) -> None:
        hub, upstream = self.hub()
        hub.token_reply = Answer(429, fields={"Retry-After": "30"})
        error = self.error(upstream)
        assert isinstance(error, Throttled)
        self.assertEqual(30, error.retry_after)

    def test_a_throttled_login_holds_nothing_back_that_has_a_token(self) -> None:
        hub, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        hub.token_reply = Answer(429)
        self.assertIsInstance(self.error(upstream, "library/debian"), Throttled)
        self.successResultOf(self.manifest(upstream))

    def test_storage_that_refuses_head_says_nothing_of_the_token(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged(BEARER),
                json({"token": "short"}),
                Answer(403, host="cdn.example"),
                challenged(BEARER),
                json({"token": "next"}),
                Answer(200, b"{}"),
            )
        )
        head = Deferred.fromCoroutine(upstream.manifest_head(IMAGE, LATEST, None))
        self.assertIsNone(self.successResultOf(head))
        self.successResultOf(self.manifest(upstream))
        self.assertEqual("Bearer next", self.http.asked[-1].authorization)

    def test_a_dead_token_service_does_not_count_against_the_registry(self) -> None:
        hub, upstream = self.hub(retries=0)
        hub.token_reply = Unreachable("no route")
        for _ in range(7):
            self.assertIsInstance(self.error(upstream), LoginRefused)
        self.assertEqual(5, len(hub.fetches))
        self.assertIn("is not asked again", self.error(upstream).reason)
        self.assertEqual(HUB + MANIFEST, self.http.asked[-1].url)

    def test_bearer_is_chosen_before_basic(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged('Basic realm="x"', BEARER), json({"token": "t"}), Answer(200, b"{}")
            ),
            credentials=lambda: BOB,
        )
        self.successResultOf(self.manifest(upstream))
        self.assertEqual("Bearer t", self.http.asked[-1].authorization)


class ChallengedDisclosureTests(LoginTestCase):
    """Which hosts are shown the credentials."""

    def sent(self, url: str, realm: str, **settings: Any) -> list[str | None]:
        """Return the Authorization of the first request, of the realm's, and of the second."""
        upstream = self.upstream(
            in_turn(
                challenged(f'Bearer realm="{realm}"'), json({"token": "t"}), Answer(200, b"{}")
            ),
            url,
            credentials=lambda: BOB,
            **settings,
        )
        self.successResultOf(self.manifest(upstream))
        self.assertEqual(realm, self.http.asked[1].url.partition("?")[0])
        return [asked.authorization for asked in self.http.asked]

    def test_the_upstreams_own_token_service_is_shown_the_credentials(self) -> None:
        for url, realm in (
            ("https://reg.example", "https://reg.example/token"),
            ("https://registry-1.docker.io", "https://auth.docker.io/token"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"),
        ):
            self.assertEqual([None, BOB.basic(), "Bearer t"], self.sent(url, realm))

    def test_any_other_is_asked_anonymously(self) -> None:
        for url, realm in (
            ("https://reg.example", "https://evil.example/token"),
            ("https://reg.example", "https://auth.docker.io/token"),
            ("http://127.0.0.1:5000", "https://evil.example/token"),
        ):
            self.assertEqual([None, None, "Bearer t"], self.sent(url, realm))

    def test_the_settings_may_name_others(self) -> None:
        sent = self.sent(
            "https://reg.example", "https://auth.example/token", auth_hosts=("AUTH.example",)
        )
        self.assertEqual([None, BOB.basic(), "Bearer t"], sent)

    def test_who_is_not_shown_them_and_gives_no_token_is_named(self) -> None:
        upstream = self.upstream(
            in_turn(challenged('Bearer realm="https://auth.example/token"'), Answer(401)),
            "https://reg.example",
            credentials=lambda: BOB,
        )
        error = self.error(upstream)
        self.assertIsInstance(error, LoginRefused)
        self.assertIn("not shown to auth.example: list it in auth_hosts", error.reason)

    def test_so_is_who_gives_one_without_that_is_of_no_use(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged('Bearer realm="https://auth.example/token"'),
                json({"token": "t"}),
                Answer(403),
            ),
            "https://reg.example",
            credentials=lambda: BOB,
        )
        error = self.error(upstream)
        self.assertIs(Missing, type(error))
        self.assertIn("anonymously", error.reason)
        self.assertIn("not shown to auth.example: list it in auth_hosts", error.reason)

    def test_a_realm_that_is_not_to_be_trusted_is_not_asked(self) -> None:
        for realm in (
            "http://reg.example/token",
            "ftp://reg.example/",
            "/token",
            "reg.example",
            "https://reg.example@evil.example/",
            "https://evil.example\\\\@reg.example/",
            "https://",
            "https://[reg.example]/",
            "https://reg.example:99999/",
        ):
            upstream = self.upstream(
                in_turn(challenged(f'Bearer realm="{realm}"')),
                "https://reg.example",
                credentials=lambda: BOB,
            )
            self.assertIsInstance(self.error(upstream), LoginRefused)
            self.assertEqual(1, len(self.http.asked), realm)

    def said(self, answering: Answering) -> list[str]:
        """All that is said and logged of one request after another, none of which succeeds."""
        self.patch(patience, "BREAKER_FAILURES", 1)
        upstream = self.upstream(
            answering,
            credentials=lambda: BOB,
            retries=0,
        )
        said = []
        for _ in range(4):
            error: BaseException | None = self.error(upstream)
            while error is not None:
                said += [str(error), repr(error)]
                error = error.__cause__
            self.clock.advance(3600)
        return said

    def test_nothing_secret_is_said_or_logged(self) -> None:
        """Also if an upstream or a token service repeats it."""
        log: list[str] = []

        @implementer(ILogObserver)
        def observer(event: LogEvent) -> None:
            log.append(eventAsText(event) + repr(event))

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        said: list[str] = []
        for status in (400, 401, 403, 404, 429, 500):

            def service(asked: Asked, status: int = status) -> Reply:
                return repeating(asked, status) if asked.authorization else challenged(BEARER)

            def bearer(asked: Asked, status: int = status) -> Reply:
                if asked.url.startswith(REALM):
                    return json({"token": "s3cr3t"})
                return repeating(asked, status) if asked.authorization else challenged(BEARER)

            def basic(asked: Asked, status: int = status) -> Reply:
                return repeating(asked, status) if asked.authorization else challenged("Basic")

            for answering in (service, bearer, basic):
                said += self.said(answering)
        secrets = ("hunter2", BOB.basic().partition(" ")[2], "s3cr3t")
        self.assertEqual([], [t for t in said + log if any(secret in t for secret in secrets)])
        self.assertTrue(any("is not asked for" in text for text in log), log)


def repeating(asked: Asked, status: int) -> Answer:
    """An error whose message repeats the request."""
    sent = asked.authorization or ""
    scheme, _, value = sent.partition(" ")
    plain = base64.b64decode(value).decode() if scheme == "Basic" else ""
    return json({"errors": [{"message": f"you sent {sent} {plain}"}]}, status)


class BasicTests(LoginTestCase):
    """A registry that wants the credentials themselves."""

    def test_it_is_shown_them_and_after_that_unasked(self) -> None:
        upstream = self.upstream(
            in_turn(challenged('Basic realm="x"'), Answer(200, b"{}"), Answer(200, b"{}")),
            credentials=lambda: BOB,
        )
        self.successResultOf(self.manifest(upstream))
        self.successResultOf(self.manifest(upstream, "another"))
        self.assertEqual(
            [None, BOB.basic(), BOB.basic()], [asked.authorization for asked in self.http.asked]
        )

    def test_it_is_shown_nothing_without_asking(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, b"{}")), credentials=lambda: BOB)
        self.successResultOf(self.manifest(upstream))
        self.assertIsNone(self.http.asked[0].authorization)

    def test_without_credentials_the_login_is_refused(self) -> None:
        error = self.error(self.upstream(in_turn(challenged("Basic"))))
        self.assertIsInstance(error, LoginRefused)
        self.assertIn("none are set", error.reason)

    def test_refused_credentials_are_a_refused_login(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged("Basic"), challenged("Basic"), Answer(200, b"{}"), challenged("Basic")
            ),
            credentials=lambda: BOB,
        )
        first = self.error(upstream)
        self.successResultOf(self.manifest(upstream))
        second = self.error(upstream)
        for error in first, second:
            self.assertIsInstance(error, LoginRefused)
            self.assertIn("bob", error.reason)

    def test_a_password_that_has_expired_is_a_login_refused(self) -> None:
        told = json({"message": "Your authorization token has expired. Reauthenticate."}, 403)
        upstream = self.upstream(in_turn(challenged("Basic"), told), credentials=lambda: BOB)
        error = self.error(upstream)
        self.assertIsInstance(error, LoginRefused)
        self.assertIn("has expired. Reauthenticate", error.reason)

    def test_what_they_may_not_see_is_missing(self) -> None:
        upstream = self.upstream(in_turn(challenged("Basic"), Answer(403)), credentials=lambda: BOB)
        self.assertIsInstance(self.error(upstream), Missing)

    def test_credentials_that_were_changed_meanwhile_are_tried(self) -> None:
        alice = Credentials("alice", "swordfish")
        read = [BOB, BOB, alice]
        upstream = self.upstream(
            in_turn(
                challenged("Basic"), Answer(200, b"{}"), challenged("Basic"), Answer(200, b"{}")
            ),
            credentials=lambda: read.pop(0),
        )
        self.successResultOf(self.manifest(upstream))
        self.successResultOf(self.manifest(upstream))
        self.assertEqual(
            [None, BOB.basic(), BOB.basic(), alice.basic()],
            [asked.authorization for asked in self.http.asked],
        )

    def test_credentials_that_cant_be_read_are_a_refused_login(self) -> None:
        for problem in (FileNotFoundError(2, "No such file", "/etc/password"), ValueError("no")):

            def credentials(problem: Exception = problem) -> Credentials | None:
                raise problem

            upstream = self.upstream(in_turn(challenged("Basic")), credentials=credentials)
            error = self.error(upstream)
            self.assertIsInstance(error, LoginRefused)
            self.assertNotIn("/etc", error.reason)

    def test_an_upstream_with_a_prefix_is_asked_for_the_name_under_it_alone(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged(BEARER), json({"token": "t"}), *(Answer(200, b"{}") for _ in range(4))
            ),
            prefix="group/hub",
        )
        self.successResultOf(self.manifest(upstream))
        for asking in (
            upstream.open_blob(IMAGE, DIGEST),
            upstream.tags(IMAGE, {"n": "5"}),
            upstream.referrers(IMAGE, DIGEST, {}),
        ):
            found = self.successResultOf(Deferred.fromCoroutine(asking))
            if isinstance(found, ResponseBody):
                found.abort()
        self.assertEqual(self.http.asked[1].query["scope"], [f"repository:group/hub/{IMAGE}:pull"])
        for asked in (self.http.asked[0], *self.http.asked[2:]):
            self.assertTrue(asked.path.startswith(f"/v2/group/hub/{IMAGE}/"), asked.path)

    def test_another_scheme_is_a_refused_login(self) -> None:
        for fields in (("Negotiate", 'Digest realm="x"'), (), ("Bearer",), ("\0",)):
            error = self.error(self.upstream(in_turn(challenged(*fields)), credentials=lambda: BOB))
            self.assertIsInstance(error, LoginRefused)


@define(eq=False)
class Helper:
    """
    A source of logins: the next one follows when one is refused.

    :ivar refusals: the logins that were refused.
    """

    logins: list[Credentials | LoginRefused]
    refusals: list[Credentials] = field(factory=list)

    async def get(self) -> Credentials:
        login = self.logins[0]
        if isinstance(login, LoginRefused):
            raise login
        return login

    def refused(self, credentials: Credentials) -> None:
        self.refusals.append(credentials)
        if len(self.logins) > 1:
            del self.logins[0]


ALICE = Credentials("alice", "swordfish")
OCI = "application/vnd.oci.image.manifest.v1+json"
EXPIRED = json({"message": "Your authorization token has expired. Reauthenticate."}, 403).body


class RenewedTests(LoginTestCase):
    """A login that is refused is asked for again, once."""

    def asked(self, *replies: Reply) -> list[str | None]:
        """The Authorization of each request for a manifest that is answered by ``replies``."""
        self.helper = Helper([BOB, ALICE])
        upstream = self.upstream(in_turn(*replies), credentials=self.helper)
        for _ in range(sum(isinstance(r, Answer) and r.body == b"{}" for r in replies)):
            self.successResultOf(self.manifest(upstream))
        self.assertEqual(self.helper.refusals, [BOB])
        return [asked.authorization for asked in self.http.asked]

    def test_where_the_token_service_refuses_it(self) -> None:
        for status in (401, 403):
            asked = self.asked(
                challenged(BEARER), Answer(status), json({"token": "t"}), Answer(200, b"{}")
            )
            self.assertEqual(asked, [None, BOB.basic(), ALICE.basic(), "Bearer t"])

    def test_before_the_token_service_is_asked_anonymously(self) -> None:
        helper = Helper([BOB, ALICE, Credentials("carol", "third")])
        upstream = self.upstream(
            in_turn(
                challenged(BEARER),
                Answer(401),
                Answer(401),
                json({"token": "t"}),
                Answer(200, b"{}"),
            ),
            credentials=helper,
        )
        self.successResultOf(self.manifest(upstream))
        sent = [asked.authorization for asked in self.http.asked]
        self.assertEqual(sent, [None, BOB.basic(), ALICE.basic(), None, "Bearer t"])
        self.assertEqual(helper.refusals, [BOB])

    def test_where_the_registry_refuses_it_at_once(self) -> None:
        basic = challenged("Basic")
        asked = self.asked(basic, challenged("Basic"), Answer(200, b"{}"))
        self.assertEqual(asked, [None, BOB.basic(), ALICE.basic()])

    def test_where_the_registry_refuses_it_later(self) -> None:
        asked = self.asked(
            challenged("Basic"), Answer(200, b"{}"), challenged("Basic"), Answer(200, b"{}")
        )
        self.assertEqual(asked, [None, BOB.basic(), BOB.basic(), ALICE.basic()])

    def test_where_it_has_expired(self) -> None:
        asked = self.asked(challenged("Basic"), Answer(403, EXPIRED), Answer(200, b"{}"))
        self.assertEqual(asked, [None, BOB.basic(), ALICE.basic()])

    def test_of_head_too(self) -> None:
        for replies in (
            (challenged(BEARER), Answer(401), json({"token": "t"})),
            (challenged("Basic"), challenged("Basic")),
            (challenged("Basic"), Answer(403, EXPIRED)),
        ):
            named = Answer(200, b"", {"Docker-Content-Digest": str(DIGEST), "Content-Type": OCI})
            upstream = self.upstream(in_turn(*replies, named), credentials=Helper([BOB, ALICE]))
            head = upstream.manifest_head(IMAGE, LATEST, None)
            self.assertIsNotNone(self.successResultOf(Deferred.fromCoroutine(head)))
            methods = {asked.method for asked in self.http.asked if "/v2/" in asked.url}
            self.assertEqual(methods, {"HEAD"})

    def test_the_second_refusal_counts(self) -> None:
        helper = Helper([BOB, ALICE, Credentials("carol", "third")])
        upstream = self.upstream(
            in_turn(challenged("Basic"), challenged("Basic"), challenged("Basic")),
            credentials=helper,
        )
        error = self.error(upstream)
        self.assertIsInstance(error, LoginRefused)
        self.assertIn("alice", error.reason)
        self.assertEqual(helper.refusals, [BOB])

    def test_the_same_one_is_not_tried_again(self) -> None:
        upstream = self.upstream(
            in_turn(challenged("Basic"), challenged("Basic")), credentials=Helper([BOB])
        )
        self.assertIsInstance(self.error(upstream), LoginRefused)

    def test_where_there_is_none_any_more_that_is_the_error(self) -> None:
        gone = LoginRefused("the helper is out of order")
        upstream = self.upstream(
            in_turn(challenged("Basic"), challenged("Basic")), credentials=Helper([BOB, gone])
        )
        self.assertIs(self.error(upstream), gone)

    def test_no_image_that_is_missing_is_a_reason_to_ask(self) -> None:
        for last in (Answer(403), Answer(404)):
            helper = Helper([BOB, ALICE])
            upstream = self.upstream(in_turn(challenged("Basic"), last), credentials=helper)
            self.assertIsInstance(self.error(upstream), Missing)
            self.assertEqual(helper.refusals, [])


class IdentityTokenTests(LoginTestCase):
    """Docker Registry v2 authentication using OAuth2."""

    TOKEN = Credentials("<token>", "s3+cr/3t", identity_token=True)

    def test_it_is_posted_to_the_token_service(self) -> None:
        upstream = self.upstream(
            in_turn(challenged(BEARER), json({"access_token": "t"}), Answer(200, b"{}")),
            credentials=lambda: self.TOKEN,
        )
        self.successResultOf(self.manifest(upstream))
        _, posted, last = self.http.asked
        self.assertEqual((posted.method, posted.url, posted.authorization), ("POST", REALM, None))
        self.assertEqual(posted.headers["Content-Type"], "application/x-www-form-urlencoded")
        self.assertEqual(
            parse_qs((posted.body or b"").decode(), strict_parsing=True),
            {
                "grant_type": ["refresh_token"],
                "service": ["registry.docker.io"],
                "client_id": ["artifactd"],
                "scope": [f"repository:{IMAGE}:pull"],
                "refresh_token": [self.TOKEN.password],
            },
        )
        self.assertEqual(last.authorization, "Bearer t")

    def test_one_that_is_refused_is_replaced_once(self) -> None:
        refused = json({"error": "invalid_grant"}, 400)  # RFC 6749, 5.2
        upstream = self.upstream(
            in_turn(
                challenged(BEARER),
                refused,
                json({"access_token": "t"}),
                Answer(200, b"{}"),
            ),
            credentials=Helper([self.TOKEN, ALICE]),
        )
        self.successResultOf(self.manifest(upstream))
        sent = [(asked.method, asked.authorization) for asked in self.http.asked]
        self.assertEqual(sent[2:], [("GET", ALICE.basic()), ("GET", "Bearer t")])

    def test_the_refusal_calls_it_by_what_it_is(self) -> None:
        for status in (400, 401, 403):
            upstream = self.upstream(
                in_turn(challenged(BEARER), Answer(status), Answer(status)),
                credentials=lambda: self.TOKEN,
            )
            self.assertIn("login refused to the identity token: ", self.error(upstream).reason)

    def test_it_is_not_shown_to_a_stranger(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged('Bearer realm="https://auth.example/token"'),
                json({"token": "t"}),
                Answer(200, b"{}"),
            ),
            "https://reg.example",
            credentials=lambda: self.TOKEN,
        )
        self.successResultOf(self.manifest(upstream))
        asked = self.http.asked[1]
        self.assertEqual((asked.method, asked.body, asked.authorization), ("GET", None, None))

    def test_it_is_no_password(self) -> None:
        upstream = self.upstream(in_turn(challenged("Basic")), credentials=lambda: self.TOKEN)
        error = self.error(upstream)
        self.assertIsInstance(error, LoginRefused)
        self.assertIn("there is an identity token instead", error.reason)

    def test_a_service_that_repeats_it_does_not_make_it_known(self) -> None:
        for status, repeated in product((400, 401, 403, 404, 429), ("token", "form")):

            def service(asked: Asked, status: int = status, repeated: str = repeated) -> Reply:
                if asked.body is None:
                    return challenged(BEARER)
                said = self.TOKEN.password if repeated == "token" else asked.body.decode()
                return json({"message": f"you sent {said}"}, status)

            error = self.error(self.upstream(service, credentials=lambda: self.TOKEN))
            for secret in ("s3+cr/3t", "s3%2Bcr%2F3t"):
                self.assertNotIn(secret, str(error) + repr(error) + repr(vars(error)))
