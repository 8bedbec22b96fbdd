"""Tokens: fetched once, kept until they are of no use."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.upstream.credentials import Credentials
from artifactd.upstream.errors import LoginRefused, Missing, Throttled
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
from artifactd.upstream.http.url import Target
from artifactd.upstream.login import Token, TokenRequest, Tokens
from artifactd.upstream.patience import CircuitBreaker, Exchanges, Retries
from tests.upstream.fake import Answer, Answering, Reply, ScriptedHttp, Watch, in_turn, json

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
        breaker = CircuitBreaker("docker.io", "auth.docker.io", self.clock)
        self.tokens = Tokens(
            Exchanges(self.http, breaker, Watch()),
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
        """What a fetch is refused with that is answered by ``reply``."""
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

    # -- asking

    def test_service_and_scope_are_asked_for(self) -> None:
        self.fetched()
        (asked,) = self.http.asked
        self.assertEqual(
            "https://auth.docker.io/token?service=registry.docker.io"
            "&scope=repository%3Alibrary%2Falpine%3Apull",
            asked.url,
        )
        self.assertEqual(("GET", None), (asked.method, asked.authorization))

    def test_scopes_go_one_by_one_and_a_query_of_the_realms_stays(self) -> None:
        realm = Target.parse("https://gitlab.example/jwt/auth?x=1")
        self.fetched(TokenRequest(realm, None, "repository:a:pull repository:b:pull"))
        self.assertEqual(
            "https://gitlab.example/jwt/auth?x=1&scope=repository%3Aa%3Apull"
            "&scope=repository%3Ab%3Apull",
            self.http.asked[0].url,
        )

    def test_credentials_go_along(self) -> None:
        token = self.fetched(credentials=BOB)
        self.assertEqual(("bob", BOB.basic()), (token.user, self.http.asked[0].authorization))

    # -- what is answered

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

    # -- what goes wrong

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

    def test_a_dead_realm_is_soon_not_asked_any_more(self) -> None:
        self.answer_with(lambda asked: TimedOut("no answer"))
        for _ in range(7):
            self.failureResultOf(self.tokens.fetch(WANTED, None), LoginRefused)
        self.assertEqual(5, len(self.http.asked))

    # -- many who want one

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

    # -- what is kept

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
