"""Logging in to an upstream, seen from outside: what it asks, and what goes to whom."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from zope.interface import implementer

from artifactd.oci.names import Tag
from artifactd.upstream import patience
from artifactd.upstream.client import RegistryUpstream
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.errors import LoginRefused, Missing, Throttled
from artifactd.upstream.http.errors import Unreachable, UpstreamError
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
    UpstreamTestCase,
    in_turn,
    json,
)

LATEST = Tag("latest")
MANIFEST = f"/v2/{IMAGE}/manifests/latest"
BOB = Credentials("bob", "hunter2")
UNAUTHORIZED = json({"errors": [{"message": "authentication required"}]}, 401).body


def challenged(*challenges: str, **settings: Any) -> Answer:
    return Answer(401, UNAUTHORIZED, {"WWW-Authenticate": list(challenges)}, **settings)


class LoginTestCase(UpstreamTestCase):
    def manifest(self, upstream: RegistryUpstream, image: str = IMAGE) -> Deferred[object]:
        return Deferred.fromCoroutine(upstream.manifest(image, LATEST))

    def error(self, upstream: RegistryUpstream, image: str = IMAGE) -> UpstreamError:
        """What asking for a manifest ends with."""
        error = self.failureResultOf(self.manifest(upstream, image), UpstreamError).value
        assert isinstance(error, UpstreamError)
        return error


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

    def test_a_challenge_of_where_a_redirect_led_is_not_answered(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged(BEARER),
                json({"token": "t"}),
                Answer(200, b"{}"),
                challenged(BEARER, host="cdn.example"),
                Answer(403, host="cdn.example"),
                Answer(200, b"{}"),
            )
        )
        self.successResultOf(self.manifest(upstream))
        for status in (401, 403):
            self.assertEqual(f"cdn.example answers {status}", self.error(upstream).reason[:23])
        self.successResultOf(self.manifest(upstream))
        self.assertEqual("Bearer t", self.http.asked[-1].authorization)

    def test_every_exchange_is_told_to_the_watch(self) -> None:
        _, upstream = self.hub()
        self.successResultOf(self.manifest(upstream))
        self.assertEqual([("GET", 401), ("GET", 200), ("GET", 200)], self.watch.requests)

    def test_a_challenge_without_a_scope_means_the_image(self) -> None:
        upstream = self.upstream(
            in_turn(challenged(BEARER), json({"token": "t"}), Answer(200, b"{}"))
        )
        self.successResultOf(self.manifest(upstream))
        self.assertEqual([f"repository:{IMAGE}:pull"], self.http.asked[1].query["scope"])

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

    def test_a_401_without_a_challenge_is_answered_as_the_one_before(self) -> None:
        upstream = self.upstream(
            in_turn(
                challenged(BEARER),
                json({"token": "t"}),
                Answer(200, b"{}"),
                Answer(401),
                json({"token": "u"}),
                Answer(200, b"{}"),
            )
        )
        self.successResultOf(self.manifest(upstream))
        self.successResultOf(self.manifest(upstream))
        self.assertEqual("Bearer u", self.http.asked[-1].authorization)

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


class DisclosureTests(LoginTestCase):
    """What goes to whom."""

    def sent(self, url: str, realm: str, **settings: Any) -> list[str | None]:
        """What was sent with the first request, to the realm, and with the second request."""
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
        """Not even what an upstream or a token service repeats of it."""
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
    """An error whose message is what was sent."""
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
            self.assertIs(LoginRefused, type(error))
            self.assertIn("bob", error.reason)

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

    def test_another_scheme_is_a_refused_login(self) -> None:
        for fields in (("Negotiate", 'Digest realm="x"'), (), ("Bearer",), ("\0",)):
            error = self.error(self.upstream(in_turn(challenged(*fields)), credentials=lambda: BOB))
            self.assertIsInstance(error, LoginRefused)
