"""The client, on scripted HTTP."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.oci.names import Digest, Tag
from artifactd.upstream.client import RegistryUpstream, ResponseBody, next_page
from artifactd.upstream.errors import LoginRefused, Missing, RangeRefused, Throttled
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
from artifactd.upstream.interfaces import BlobBody, Upstream, UpstreamHead, UpstreamState
from tests.upstream.fake import (
    BEARER,
    DIGEST,
    HUB,
    IMAGE,
    Answer,
    Asked,
    Hub,
    Reply,
    Sink,
    UpstreamTestCase,
    Watch,
    in_turn,
    json,
)

LATEST = Tag("latest")
NAMED: dict[str, str | list[str]] = {"Docker-Content-Digest": str(DIGEST)}
INDEX = "application/vnd.oci.image.index.v1+json"

Operation = Callable[[RegistryUpstream], Coroutine[Any, Any, object]]
OPERATIONS: dict[str, Operation] = {
    "manifest": lambda upstream: upstream.manifest(IMAGE, LATEST),
    "manifest_head": lambda upstream: upstream.manifest_head(IMAGE, LATEST, DIGEST),
    "blob": lambda upstream: upstream.blob(IMAGE, DIGEST),
    "open_blob": lambda upstream: upstream.open_blob(IMAGE, DIGEST, 5, 9),
    "tags": lambda upstream: upstream.tags(IMAGE, {}),
    "referrers": lambda upstream: upstream.referrers(IMAGE, DIGEST, {}),
}

BY_GET = {
    name: operation
    for name, operation in OPERATIONS.items()
    if name not in ("manifest_head", "blob")  # GET decides where HEAD is refused
}


class ManifestTests(UpstreamTestCase):
    """end-3."""

    def test_it_is_asked_for_with_all_types_that_we_know(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, b"{}")))
        self.successResultOf(upstream.manifest(IMAGE, LATEST))
        (asked,) = self.http.asked
        self.assertEqual(("GET", f"{HUB}/v2/{IMAGE}/manifests/latest"), (asked.method, asked.url))
        self.assertEqual(
            {
                "Accept": f"{INDEX}, application/vnd.docker.distribution.manifest.list.v2+json,"
                " application/vnd.oci.image.manifest.v1+json,"
                " application/vnd.docker.distribution.manifest.v2+json"
            },
            asked.headers,
        )

    def test_its_bytes_and_type_are_as_sent(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, b'{ "a":1}', {"content-type": INDEX})))
        got = self.successResultOf(upstream.manifest(IMAGE, DIGEST))
        self.assertEqual((b'{ "a":1}', INDEX), (got.content, got.content_type))
        self.assertEqual(8, self.watch.bytes)
        self.assertEqual(f"{HUB}/v2/{IMAGE}/manifests/{DIGEST}", self.http.asked[0].url)

    def test_it_may_be_sent_without_a_type(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, b"{}")))
        self.assertIsNone(self.successResultOf(upstream.manifest(IMAGE, LATEST)).content_type)

    def test_one_of_too_many_bytes_is_refused(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, b"x" * 11)), max_manifest=10)
        self.failureResultOf(upstream.manifest(IMAGE, LATEST), Unreachable)
        self.assertEqual(1, len(self.http.asked))

    def test_one_that_breaks_off_is_asked_for_again(self) -> None:
        broken = Answer(200, b"{", broken=Unreachable("broke off"))
        upstream = self.upstream(in_turn(broken, Answer(200, b"{}")))
        waiting = Deferred.fromCoroutine(upstream.manifest(IMAGE, LATEST))
        self.clock.advance(1)
        self.assertEqual(b"{}", self.successResultOf(waiting).content)

    def test_names_are_quoted(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, b"{}")), url="http://127.0.0.1:5000/base/")
        self.successResultOf(upstream.manifest("a/b?c#d e", LATEST))
        self.assertEqual(
            "http://127.0.0.1:5000/base/v2/a/b%3Fc%23d%20e/manifests/latest",
            self.http.asked[0].url,
        )


class ManifestHeadTests(UpstreamTestCase):
    """end-3 by HEAD."""

    def told(self, answer: Answer, known: Digest | None = None) -> UpstreamHead | None:
        upstream = self.upstream(in_turn(answer))
        told: UpstreamHead | None = self.successResultOf(
            upstream.manifest_head(IMAGE, LATEST, known)
        )
        return told

    def test_it_is_what_the_upstream_says(self) -> None:
        fields = {"Content-Type": f"{INDEX}; charset=utf-8", "Content-Length": "123"}
        told = self.told(Answer(200, fields={**NAMED, **fields}))
        self.assertEqual(UpstreamHead(DIGEST, INDEX, 123), told)
        (asked,) = self.http.asked
        self.assertEqual("HEAD", asked.method)
        self.assertNotIn("If-None-Match", asked.headers)
        self.assertIn(INDEX, asked.headers["Accept"])

    def test_the_known_one_is_told_and_confirmed(self) -> None:
        self.assertEqual(UpstreamHead(DIGEST), self.told(Answer(304), DIGEST))
        self.assertEqual(f'"{DIGEST}"', self.http.asked[0].headers["If-None-Match"])

    def test_another_one_replaces_it(self) -> None:
        other = Digest.of(b"another manifest")
        answer = Answer(200, fields={"Docker-Content-Digest": str(other)})
        self.assertEqual(UpstreamHead(other), self.told(answer, DIGEST))

    def test_some_upstreams_do_not_say(self) -> None:
        for answer in (Answer(200), Answer(405), Answer(501), Answer(400), Answer(401), Answer(403),
                       Answer(404), Answer(406), Answer(500), Answer(403, host="cdn.example"),
                       Answer(200, fields={"Docker-Content-Digest": "sha256:nonsense"}),
                       Answer(200, fields={"Docker-Content-Digest": "md5:abc"}),
                       Answer(200, fields={**NAMED, "Content-Type": "text/html"}),
                       Answer(200, fields={**NAMED, "Content-Length": str(4 << 30)}),
                       Answer(302), Answer(410), Answer(204)):  # fmt: skip
            self.assertIsNone(self.told(answer, DIGEST), answer)
            self.assertEqual(1, len(self.http.asked))

    def test_a_304_that_nothing_was_told_for_is_no_answer(self) -> None:
        self.assertIsNone(self.told(Answer(304)))

    def test_what_get_could_not_better_is_raised(self) -> None:
        for answer, error in ((TimedOut("slow"), TimedOut), (Answer(429), Throttled)):
            upstream = self.upstream(in_turn(answer), retries=0)
            self.failureResultOf(upstream.manifest_head(IMAGE, LATEST, DIGEST), error)


class HeadRefusedTests(UpstreamTestCase):
    """HEAD is refused where GET is answered."""

    def refusing(self, refusal: Callable[[], Reply]) -> RegistryUpstream:
        """A registry with a token service that refuses every HEAD, after its challenge."""
        self.hub = Hub(expires_in=None)
        content = f"/v2/{IMAGE}/manifests/latest", f"/v2/{IMAGE}/blobs/{DIGEST}"

        def answer(asked: Asked) -> Reply:
            if asked.path in content and asked.authorization:
                token = (asked.authorization or "").removeprefix("Bearer ")
                if token in self.hub.accepted:
                    return refusal() if asked.method == "HEAD" else Answer(200, b"{}")
            return self.hub(asked)

        return self.upstream(answer, retries=0)

    def denied(self) -> Answer:
        return Answer(401, fields={"WWW-Authenticate": BEARER})

    def test_a_login_is_made_once_for_both(self) -> None:
        for refusal in (self.denied, lambda: Answer(401), lambda: Answer(403)):
            upstream = self.refusing(refusal)
            for _ in range(3):
                self.assertIsNone(
                    self.successResultOf(upstream.manifest_head(IMAGE, LATEST, DIGEST))
                )
                self.successResultOf(upstream.manifest(IMAGE, LATEST))
                self.assertEqual(2, self.successResultOf(upstream.blob(IMAGE, DIGEST)).size)
            self.assertEqual(1, len(self.hub.fetches))

    def test_a_token_that_is_refused_to_get_too_is_replaced_by_the_next_request(self) -> None:
        upstream = self.refusing(self.denied)
        self.successResultOf(upstream.manifest_head(IMAGE, LATEST, DIGEST))
        self.hub.accepted.clear()
        self.failureResultOf(upstream.manifest(IMAGE, LATEST), Missing)
        self.assertEqual(1, len(self.hub.fetches))
        self.successResultOf(upstream.manifest(IMAGE, LATEST))
        self.assertEqual(2, len(self.hub.fetches))

    def test_a_token_service_that_gives_none_is_not_asked_for_get_again(self) -> None:
        for status, error in ((401, Missing), (500, LoginRefused), (429, Throttled)):
            upstream = self.refusing(self.denied)
            for operation in ("manifest_head", "blob"):
                self.hub.token_reply = Answer(status)
                self.failureResultOf(OPERATIONS[operation](upstream), error)
            self.assertLessEqual(len(self.hub.fetches), 2)

    def test_a_head_that_always_fails_closes_nothing_else(self) -> None:
        def answer(asked: Asked) -> Reply:
            return Answer(500) if asked.method == "HEAD" else Answer(200, b"{}")

        upstream = self.upstream(answer, retries=0)
        for number in range(12):
            image = f"org/app{number % 4}"
            self.assertIsNone(self.successResultOf(upstream.manifest_head(image, LATEST, DIGEST)))
        self.successResultOf(upstream.manifest("org/app0", LATEST))
        for _ in range(8):  # the breaker of the URL opens meanwhile
            self.assertIsNone(
                self.successResultOf(upstream.manifest_head("org/app0", LATEST, DIGEST))
            )
        self.assertLessEqual(len(self.http.asked), 12 + 1 + 5)
        self.successResultOf(upstream.manifest("org/app0", LATEST))

    def test_a_429_to_get_holds_no_head_back(self) -> None:
        upstream = self.upstream(in_turn(Answer(429), Answer(200, fields=NAMED), Answer(429)))
        self.failureResultOf(upstream.manifest(IMAGE, LATEST), Throttled)
        told = self.successResultOf(upstream.manifest_head(IMAGE, LATEST, None))
        self.assertEqual(UpstreamHead(DIGEST), told)
        for _ in range(2):
            self.failureResultOf(upstream.manifest_head(IMAGE, LATEST, None), Throttled)
        self.assertEqual(3, len(self.http.asked))


class BlobTests(UpstreamTestCase):
    """end-2."""

    def open(
        self, answer: Answer, first: int = 0, last: int | None = None, validator: str | None = None
    ) -> BlobBody:
        upstream = self.upstream(in_turn(answer))
        body: BlobBody = self.successResultOf(
            upstream.open_blob(IMAGE, DIGEST, first, last, validator)
        )
        return body

    def test_its_size_is_asked_for_by_head(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, fields={"Content-Length": "123"})))
        self.assertEqual(123, self.successResultOf(upstream.blob(IMAGE, DIGEST)).size)
        (asked,) = self.http.asked
        self.assertEqual(("HEAD", f"{HUB}/v2/{IMAGE}/blobs/{DIGEST}"), (asked.method, asked.url))

    def test_where_head_is_refused_one_byte_is_asked_for(self) -> None:
        part: dict[str, str | list[str]] = {"Content-Range": "bytes 0-0/300"}
        page: dict[str, str | list[str]] = {"Content-Length": "300", "Content-Type": "text/html"}
        for head in (
            *(Answer(status) for status in (400, 401, 403, 404, 405, 406, 500, 501, 503)),
            Answer(403, host="cdn.example"),
            Answer(200, fields=page),
            Answer(200),
            Answer(200, fields={"Content-Length": "0"}),
            Answer(200, fields={"Content-Length": "299"}),
        ):
            upstream = self.upstream(in_turn(head, Answer(206, b"x", part)))
            self.assertEqual(300, self.successResultOf(upstream.blob(IMAGE, DIGEST, 300)).size)
            asked, get = self.http.asked
            self.assertEqual(("HEAD", "GET"), (asked.method, get.method), head)
            self.assertEqual("bytes=0-0", get.headers["Range"])

    def test_a_page_for_people_is_no_blob(self) -> None:
        page: dict[str, str | list[str]] = {"Content-Type": "text/html; charset=utf-8"}
        upstream = self.upstream(in_turn(Answer(405), Answer(200, b"<html>", page)))
        failure = self.failureResultOf(upstream.blob(IMAGE, DIGEST), Unreachable)
        self.assertIn("a page for people", failure.value.reason)

    def test_an_empty_one_has_no_byte(self) -> None:
        empty = Digest.of(b"")
        upstream = self.upstream(in_turn(Answer(200, fields={"Content-Length": "0"})))
        self.assertEqual(0, self.successResultOf(upstream.blob(IMAGE, empty)).size)
        upstream = self.upstream(in_turn(Answer(404), Answer(416), Answer(200)))
        self.assertEqual(0, self.successResultOf(upstream.blob(IMAGE, empty)).size)

    def test_what_get_says_counts_where_head_is_refused(self) -> None:
        upstream = self.upstream(in_turn(Answer(405), Answer(404)))
        self.failureResultOf(upstream.blob(IMAGE, DIGEST), Missing)

    def test_the_size_may_be_unknown(self) -> None:
        for length in (None, "", "-1", "1e3", "²", "9" * 5000):
            fields: dict[str, str | list[str]] = {"Content-Length": length} if length else {}
            whole = Answer(200, b"all of it", length=None)
            upstream = self.upstream(in_turn(Answer(200, fields=fields), whole))
            self.assertIsNone(self.successResultOf(upstream.blob(IMAGE, DIGEST)).size)

    def test_all_of_it_is_asked_for_without_a_range(self) -> None:
        body = self.open(Answer(200, b"01234", {"ETag": '"x"'}), validator='"y"')
        self.assertEqual({}, self.http.asked[0].headers)
        self.assertEqual(
            (0, 5, 5, '"x"', "registry-1.docker.io"),
            (body.first, body.length, body.size, body.validator, body.host),
        )
        sink = Sink()
        self.assertEqual(5, self.successResultOf(body.deliver_to(sink)))
        self.assertEqual((b"01234", 5), (sink.content, self.watch.bytes))

    def test_a_part_is_asked_for_with_range_and_validator(self) -> None:
        for first, last, value in (5, None, "bytes=5-"), (5, 9, "bytes=5-9"), (0, 0, "bytes=0-0"):
            self.open(Answer(200), first, last, '"y"').abort()
            self.assertEqual({"Range": value, "If-Range": '"y"'}, self.http.asked[0].headers)

    def test_a_part_says_what_comes(self) -> None:
        answer = Answer(206, b"01234", {"Content-Range": "bytes 5-9/100"}, host="cdn.example")
        body = self.open(answer, 5, 9)
        self.assertEqual(
            (5, 5, 100, "cdn.example"), (body.first, body.length, body.size, body.host)
        )
        body.abort()
        self.assertEqual(["aborted"], answer.ended)

    def test_less_than_was_asked_for_is_called_so(self) -> None:
        body = self.open(Answer(206, b"012", {"Content-Range": "bytes 5-7/100"}), 5, 9)
        self.assertEqual((5, 3, 100), (body.first, body.length, body.size))
        body.abort()

    def test_all_instead_of_a_part_begins_at_the_first_byte(self) -> None:
        body = self.open(Answer(200, b"0123456789"), 5, 9)
        self.assertEqual((0, 10, 10), (body.first, body.length, body.size))
        body.abort()

    def test_a_part_that_nobody_asked_for_is_no_answer(self) -> None:
        answer = Answer(206, b"01234", {"Content-Range": "bytes 0-4/5"})
        upstream = self.upstream(in_turn(answer))
        self.failureResultOf(upstream.open_blob(IMAGE, DIGEST), Unreachable)

    def test_a_part_that_does_not_say_which_is_no_answer(self) -> None:
        upstream = self.upstream(in_turn(Answer(206, b"01234")))
        self.failureResultOf(upstream.open_blob(IMAGE, DIGEST, 5), Unreachable)

    def test_there_may_be_no_such_bytes(self) -> None:
        upstream = self.upstream(in_turn(Answer(416)))
        self.failureResultOf(upstream.open_blob(IMAGE, DIGEST, 5), RangeRefused)


class ListTests(UpstreamTestCase):
    """end-8 and end-12."""

    def test_tags_are_asked_for_with_what_the_query_says(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, b'{"tags":[]}')))
        page = self.successResultOf(upstream.tags(IMAGE, {"n": "2", "last": "a&b"}))
        self.assertEqual(f"{HUB}/v2/{IMAGE}/tags/list?n=2&last=a%26b", self.http.asked[0].url)
        self.assertEqual((b'{"tags":[]}', None, None), (page.body, page.next, page.filtered))

    def test_without_a_query_there_is_none(self) -> None:
        upstream = self.upstream(in_turn(Answer(200, b"{}")))
        self.successResultOf(upstream.tags(IMAGE, {}))
        self.assertEqual(f"{HUB}/v2/{IMAGE}/tags/list", self.http.asked[0].url)

    def test_the_next_page_is_found(self) -> None:
        link = f'</v2/{IMAGE}/tags/list?last=b&n=2>; rel="next"'
        upstream = self.upstream(in_turn(Answer(200, b"{}", {"Link": link})))
        page = self.successResultOf(upstream.tags(IMAGE, {"n": "2"}))
        self.assertEqual({"last": "b", "n": "2"}, page.next)

    def test_a_page_has_8_mib_at_most(self) -> None:
        for length in (-1, None):
            answer = Answer(200, b"x" * (8 << 20) + b"x", length=length)
            upstream = self.upstream(in_turn(answer), retries=0)
            self.failureResultOf(upstream.tags(IMAGE, {}), Unreachable)

    def test_a_page_that_is_refused_for_its_length_is_asked_for_shorter(self) -> None:
        query = {"n": "10000", "last": "a"}
        for status in (400, 405, 406, 413, 416, 422):
            for operation in (
                lambda upstream: upstream.tags(IMAGE, query),
                lambda upstream: upstream.referrers(IMAGE, DIGEST, query),
            )[: 1 if status in (405, 406) else 2]:
                upstream = self.upstream(
                    in_turn(Answer(status), Answer(status), Answer(200, b"{}", {"Link": ""}))
                )
                self.http.asked.clear()
                self.successResultOf(operation(upstream))
                asked = [each.url.partition("?")[2] for each in self.http.asked]
                self.assertEqual(["n=10000&last=a", "n=1000&last=a", "n=100&last=a"], asked, status)

    def test_no_shorter_page_is_asked_for_than_every_upstream_allows(self) -> None:
        for query in ({}, {"n": "100"}, {"n": "x"}, {"last": "b"}):
            upstream = self.upstream(in_turn(Answer(400)))
            self.http.asked.clear()
            failure = self.failureResultOf(upstream.tags(IMAGE, query), Unreachable)
            self.assertEqual((400, 1), (failure.value.status, len(self.http.asked)))

    def test_referrers_are_asked_for_by_subject(self) -> None:
        fields: dict[str, str | list[str]] = {
            "Content-Type": f"{INDEX}; charset=utf-8",
            "OCI-Filters-Applied": "artifactType",
        }
        upstream = self.upstream(in_turn(Answer(200, b"{}", fields)))
        page = self.successResultOf(upstream.referrers(IMAGE, DIGEST, {"artifactType": "a/b"}))
        self.assertEqual((b"{}", "artifactType"), (page.body, page.filtered))
        (asked,) = self.http.asked
        self.assertEqual(f"{HUB}/v2/{IMAGE}/referrers/{DIGEST}?artifactType=a%2Fb", asked.url)
        self.assertIn(INDEX, asked.headers["Accept"])

    def test_an_upstream_that_does_not_know_referrers_has_none(self) -> None:
        login = Answer(200, b"<html>", {"Content-Type": "text/html"}, host="accounts.example")
        page = Answer(404, b"<html>", {"Content-Type": "text/html"})
        for answer in (Answer(404), Answer(405), Answer(406), Answer(501), login, page):
            upstream = self.upstream(in_turn(answer))
            self.failureResultOf(upstream.referrers(IMAGE, DIGEST, {}), Missing)

    def test_an_upstream_that_does_not_know_referrers_is_asked_once_in_a_while(self) -> None:
        for status in (405, 406, 501):
            upstream = self.upstream(in_turn(Answer(status), Answer(200, b"{}")))
            self.http.asked.clear()
            for image, query in ((IMAGE, {"n": "10000"}), (IMAGE, {}), ("other", {})):
                failure = self.failureResultOf(upstream.referrers(image, DIGEST, query), Missing)
                self.assertEqual(failure.value.status, status)
                self.assertEqual(len(self.http.asked), 1)
            self.assertFalse(failure.value.asked)
            self.clock.advance(600)
            self.successResultOf(upstream.referrers(IMAGE, DIGEST, {}))

    def test_that_one_image_has_no_referrers_says_nothing_of_another(self) -> None:
        upstream = self.upstream(in_turn(Answer(404), Answer(200, b"{}")))
        self.failureResultOf(upstream.referrers(IMAGE, DIGEST, {}), Missing)
        self.successResultOf(upstream.referrers("other", DIGEST, {}))


class StatusTests(UpstreamTestCase):
    """Whatever is asked for."""

    def outcome(self, operation: Operation, *replies: Reply, **settings: Any) -> UpstreamError:
        """The error that an operation ends with."""
        upstream = self.upstream(in_turn(*replies), **settings)
        failing = Deferred.fromCoroutine(operation(upstream))
        self.clock.pump([1] * 3)
        error = self.failureResultOf(failing, UpstreamError).value
        assert isinstance(error, UpstreamError)
        return error

    def test_what_is_not_there_is_missing(self) -> None:
        for name, operation in BY_GET.items():
            for status in (404, 410, 403):
                error = self.outcome(operation, Answer(status))
                self.assertEqual((Missing, status), (type(error), error.status), name)

    def test_a_page_for_people_does_not_say_what_is_there(self) -> None:
        for status in (403, 404, 410):
            for media_type in ("text/html", "Text/HTML; charset=utf-8"):
                for name in ("manifest", "tags", "open_blob"):
                    answer = Answer(status, b"<html>", {"Content-Type": media_type})
                    error = self.outcome(OPERATIONS[name], answer)
                    self.assertIsInstance(error, Unreachable)
                    self.assertIn("a page for people", error.reason)
        for page in (b"<!DOCTYPE html>\n<html>", b"\n <HTML lang='en'>"):
            error = self.outcome(OPERATIONS["manifest"], Answer(404, page))
            self.assertIn("a page for people", error.reason)
        for text in (b"404 page not found", b"<?xml version='1.0'?><Error/>", b"<htmlx>", b"{}"):
            error = self.outcome(OPERATIONS["manifest"], Answer(404, text))
            self.assertIsInstance(error, Missing, text)
        empty = Answer(404, fields={"Content-Type": "text/html"})
        self.assertIsInstance(self.outcome(OPERATIONS["manifest"], empty), Missing)

    def test_a_failure_is_tried_again_twice(self) -> None:
        for name, operation in BY_GET.items():
            error = self.outcome(operation, Answer(500), Unreachable("reset"), Answer(503))
            self.assertEqual((Unreachable, 503), (type(error), error.status), name)
            self.assertEqual(3, len(self.http.asked))

    def test_a_failure_that_passes_is_not_seen(self) -> None:
        upstream = self.upstream(in_turn(Answer(500), Unreachable("reset"), Answer(200, b"{}")))
        waiting = Deferred.fromCoroutine(upstream.manifest(IMAGE, LATEST))
        self.clock.pump([1, 1])
        self.assertEqual(b"{}", self.successResultOf(waiting).content)
        self.assertEqual([("GET", 500), ("GET", None), ("GET", 200)], self.watch.requests)

    def test_a_timeout_is_one(self) -> None:
        for operation in BY_GET.values():
            self.assertIs(TimedOut, type(self.outcome(operation, TimedOut("slow"))))

    def test_an_unexpected_status_is_called_so(self) -> None:
        for name, operation in BY_GET.items():
            for status in (201, 204, 302, 400, 418, 505):
                error = self.outcome(operation, Answer(status))
                self.assertEqual((Unreachable, status), (type(error), error.status), name)
                self.assertIn("(unexpected status)" if status < 500 else "505", error.reason)

    def test_the_upstreams_own_words_are_passed_on(self) -> None:
        answer = json({"errors": [{"message": "manifest unknown"}]}, 404)
        error = self.outcome(OPERATIONS["manifest"], answer)
        self.assertEqual("registry-1.docker.io answers 404: manifest unknown", error.reason)

    def test_cancelling_leaves_nothing_behind(self) -> None:
        for operation in BY_GET.values():
            ended: list[Deferred[Answer]] = []
            coming: Deferred[Answer] = Deferred(ended.append)
            waiting = Deferred.fromCoroutine(operation(self.upstream(in_turn(coming))))
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)
            self.assertEqual(([coming], []), (ended, self.clock.getDelayedCalls()))

    @given(st.data())
    def test_hostile_answers_raise_errors_of_the_upstreams_and_nothing_else(
        self, data: st.DataObject
    ) -> None:
        """Nothing that an upstream answers is a mistake of ours."""
        self.setUp()
        names = ("WWW-Authenticate", "Content-Range", "Link", "Retry-After", "RateLimit-Limit",
                 "RateLimit-Remaining", "Docker-Content-Digest", "ETag", "Date",
                 "Content-Length", "Content-Type")  # fmt: skip
        value = st.text(max_size=20) | st.sampled_from(
            ['Bearer realm="https://a.example/t"', "bytes 5-9/10", '<?n=1>; rel="next"', "1;w=2"]
        )
        fields = st.dictionaries(st.sampled_from(names), value | st.lists(value, max_size=2))
        statuses = st.sampled_from((200, 206, 304, 401, 403, 404, 405, 416, 429, 500, 999))
        body = st.binary(max_size=50) | st.sampled_from((b'{"token":"t"}', b'{"errors":[{}]}'))

        def answer(asked: Asked) -> Reply:
            return Answer(data.draw(statuses), data.draw(body), data.draw(fields))

        upstream = self.upstream(answer)
        operation = OPERATIONS[data.draw(st.sampled_from(sorted(OPERATIONS)))]
        outcome = Deferred.fromCoroutine(operation(upstream))
        self.clock.pump([5] * 10)
        outcome.addErrback(lambda failure: failure.trap(UpstreamError))
        result = self.successResultOf(outcome)
        if hasattr(result, "abort"):
            result.abort()
        self.doCleanups()


class PatienceTests(UpstreamTestCase):
    """The circuit breaker, 429 and the budget."""

    def manifest(self, upstream: RegistryUpstream) -> Deferred[object]:
        return Deferred.fromCoroutine(upstream.manifest(IMAGE, LATEST))

    def test_a_dead_upstream_costs_the_second_request_no_third_timeout(self) -> None:
        upstream = self.upstream(lambda asked: Unreachable("connection refused"))
        first, second = self.manifest(upstream), self.manifest(upstream)
        self.clock.pump([1] * 4)
        self.failureResultOf(first, Unreachable)
        self.failureResultOf(second, Unreachable)
        self.assertEqual(5, len(self.http.asked))
        self.assertEqual(["connection refused"], self.watch.downs)
        for operation in OPERATIONS.values():
            failure = self.failureResultOf(operation(upstream), Unreachable)
            self.assertIn("is not asked again for", failure.value.reason)
            self.assertIn("connection refused", failure.value.reason)
        self.assertEqual(5, len(self.http.asked))

    def test_one_that_lives_again_is_asked_again(self) -> None:
        upstream = self.upstream(in_turn(*[TimedOut("slow")] * 5, Answer(404), Answer(200, b"{}")))
        for _ in range(6):
            self.failureResultOf(self.manifest(upstream), Unreachable)
        self.clock.advance(5)
        self.failureResultOf(self.manifest(upstream), Missing)
        self.successResultOf(self.manifest(upstream))

    def failing_for(self, *failing: str, reply: Callable[[], Reply]) -> RegistryUpstream:
        """An upstream that fails where the URL has one of these texts."""

        def answer(asked: Asked) -> Reply:
            return reply() if any(text in asked.url for text in failing) else Answer(200, b"{}")

        return self.upstream(answer, retries=0)

    def test_an_image_that_fails_closes_no_other_one(self) -> None:
        def slow() -> TimedOut:
            error = TimedOut("slow")
            error.connected = True
            return error

        def elsewhere() -> Unreachable:
            error = Unreachable("the storage is down")
            error.led_elsewhere = True
            return error

        def storage() -> Answer:
            return Answer(503, host="cdn.example", redirected=True)

        for reply in (lambda: Answer(500), slow, elsewhere, storage,
                      lambda: Unreachable("coded", 200)):  # fmt: skip
            upstream = self.failing_for("org/bad", reply=reply)
            for tag in range(8):
                for _ in range(2):
                    self.failureResultOf(upstream.manifest("org/bad", Tag(str(tag))), Unreachable)
            self.successResultOf(upstream.manifest("org/good", LATEST))

    def test_a_url_that_fails_is_not_asked_at_all_but_its_neighbour_is(self) -> None:
        upstream = self.failing_for("latest", reply=lambda: Answer(500))
        for _ in range(8):
            self.failureResultOf(upstream.manifest(IMAGE, LATEST), Unreachable)
        self.assertEqual(5, len(self.http.asked))
        failure = self.failureResultOf(upstream.manifest(IMAGE, LATEST), Unreachable)
        self.assertIn("for this URL, has failed 5 times in a row", failure.value.reason)
        self.successResultOf(upstream.manifest(IMAGE, Tag("edge")))
        self.clock.advance(5)
        self.failureResultOf(upstream.manifest(IMAGE, LATEST), Unreachable)
        self.assertEqual(7, len(self.http.asked))

    def test_a_host_that_fails_for_several_images_is_not_asked_at_all(self) -> None:
        upstream = self.failing_for("/", reply=lambda: Answer(503))
        for number in range(5):
            image = f"org/app{number}"
            self.failureResultOf(upstream.manifest(image, LATEST), Unreachable)
        failure = self.failureResultOf(upstream.manifest("org/other", LATEST), Unreachable)
        self.assertIn("registry-1.docker.io has failed 5 times in a row", failure.value.reason)
        self.assertEqual(5, len(self.http.asked))

    def test_every_answer_shows_that_it_lives(self) -> None:
        for status in (400, 401, 403, 404, 416, 501):
            upstream = self.upstream(
                in_turn(*[TimedOut("slow")] * 4, Answer(status), TimedOut("slow"), Answer(404))
            )
            for _ in range(6):
                self.failureResultOf(self.manifest(upstream), UpstreamError)
            self.failureResultOf(self.manifest(upstream), Missing)

    def test_429_counts_as_an_answer(self) -> None:
        upstream = self.upstream(
            in_turn(*[TimedOut("")] * 4, Answer(429), TimedOut(""), Answer(404))
        )
        for _ in range(5):
            self.failureResultOf(self.manifest(upstream), UpstreamError)
        self.clock.advance(60)
        self.failureResultOf(self.manifest(upstream), TimedOut)
        self.failureResultOf(self.manifest(upstream), Missing)

    def test_a_trial_that_is_cancelled_leaves_it_to_the_next(self) -> None:
        coming: Deferred[Answer] = Deferred()
        upstream = self.upstream(in_turn(*[TimedOut("slow")] * 5, coming, Answer(200, b"{}")))
        for _ in range(5):
            self.failureResultOf(self.manifest(upstream), TimedOut)
        self.clock.advance(5)
        trial = self.manifest(upstream)
        self.failureResultOf(self.manifest(upstream), Unreachable)
        trial.cancel()
        self.failureResultOf(trial, CancelledError)
        self.successResultOf(self.manifest(upstream))

    def test_after_429_manifests_are_not_asked_for_before_its_time(self) -> None:
        limited = Answer(429, fields={"Retry-After": "30"})
        upstream = self.upstream(in_turn(limited, Answer(404)))
        for left in (30, 20):
            failure = self.failureResultOf(self.manifest(upstream), Throttled)
            self.assertEqual((left, 429), (failure.value.retry_after, failure.value.status))
            self.clock.advance(10)
        self.clock.advance(10)
        self.failureResultOf(self.manifest(upstream), Missing)

    def test_429_on_manifests_holds_no_blob_back(self) -> None:
        upstream = self.upstream(
            in_turn(Answer(429), Answer(404), Answer(404), Answer(404), Answer(429))
        )
        self.failureResultOf(self.manifest(upstream), Throttled)
        self.failureResultOf(OPERATIONS["blob"](upstream), Missing)
        self.failureResultOf(OPERATIONS["tags"](upstream), Missing)
        self.failureResultOf(OPERATIONS["blob"](upstream), Throttled)
        self.failureResultOf(OPERATIONS["open_blob"](upstream), Throttled)
        self.assertEqual(5, len(self.http.asked))

    def test_429_without_a_readable_retry_after_holds_no_other_image_back(self) -> None:
        for told in ({}, {"Retry-After": "985.86\xb5s"}):
            upstream = self.upstream(
                in_turn(Answer(429, fields=told), Answer(200, b"{}"), Answer(200, b"{}"))
            )
            self.failureResultOf(upstream.manifest("org/hot", LATEST), Throttled)
            self.successResultOf(upstream.manifest("org/other", LATEST))
            self.failureResultOf(upstream.manifest("org/hot", LATEST), Throttled)
            self.clock.advance(1)
            self.successResultOf(upstream.manifest("org/hot", LATEST))

    def test_429_is_not_tried_again(self) -> None:
        upstream = self.upstream(in_turn(Answer(429)))
        self.failureResultOf(self.manifest(upstream), Throttled)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_manifests_tell_of_the_budget(self) -> None:
        told: dict[str, str | list[str]] = {
            "ratelimit-limit": "100;w=21600",
            "ratelimit-remaining": "10;w=21600",
        }
        for operation, answer in (
            ("manifest", Answer(200, b"{}", told)),
            ("manifest_head", Answer(304, fields=told)),
            ("manifest", Answer(429, fields=told)),
        ):
            upstream = self.upstream(in_turn(answer))
            self.assertEqual(1, upstream.frugality())
            Deferred.fromCoroutine(OPERATIONS[operation](upstream)).addErrback(lambda _: None)
            self.assertAlmostEqual(5, upstream.frugality())

    def test_its_state_is_told_without_asking_it(self) -> None:
        told: dict[str, str | list[str]] = {
            "ratelimit-limit": "100;w=21600",
            "ratelimit-remaining": "25;w=21600",
            "retry-after": "30",
        }
        upstream = self.upstream(in_turn(Answer(429, fields=told)))
        host = upstream.state().host
        self.assertEqual(UpstreamState(host, "", 0.0, 0.0, None), upstream.state())
        self.failureResultOf(self.manifest(upstream), Throttled)
        self.assertEqual(UpstreamState(host, "", 0.0, 30.0, 0.25), upstream.state())
        self.clock.advance(21600)
        self.assertEqual(UpstreamState(host, "", 0.0, 0.0, None), upstream.state())

    def test_blobs_do_not(self) -> None:
        told: dict[str, str | list[str]] = {"RateLimit-Limit": "100", "RateLimit-Remaining": "0"}
        upstream = self.upstream(in_turn(Answer(200, fields={**told, "Content-Length": "9"})))
        self.successResultOf(upstream.blob(IMAGE, DIGEST))
        self.assertEqual(1, upstream.frugality())


def _satisfies_the_protocol(upstream: RegistryUpstream) -> Upstream:
    """For the type checker."""
    return upstream


class BodyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.watch = Watch()

    def body(self, answer: Answer) -> ResponseBody:
        return ResponseBody.of(answer, self.watch)

    def part(self, content_range: str, body: bytes = b"01234", length: int | None = -1) -> Answer:
        return Answer(206, body, {"Content-Range": content_range}, length=length)

    def assert_span(self, answer: Answer, first: int, length: int | None, size: int | None) -> None:
        body = self.body(answer)
        self.assertEqual((first, length, size), (body.first, body.length, body.size))

    def test_a_whole_blob_begins_at_its_first_byte(self) -> None:
        self.assert_span(Answer(200, b"01234"), 0, 5, 5)
        self.assert_span(Answer(200, b"01234", length=None), 0, None, None)

    def test_a_part_says_where_it_begins_and_of_how_much_it_is(self) -> None:
        self.assert_span(self.part("bytes 10-14/100"), 10, 5, 100)
        self.assert_span(self.part("Bytes 10-14/*"), 10, 5, None)
        self.assert_span(self.part("bytes 95-99/100", length=None), 95, 5, 100)

    def test_a_part_that_does_not_say_clearly_which_is_refused(self) -> None:
        for value in ("", "bytes", "bytes 10-14", "bytes */100", "bytes 14-10/100", "lines 0-4/9",
                      "bytes 96-100/100", "bytes -5/100", "bytes 10-14/x", "bytes 0-4/5, 0-4/5",
                      "bytes 10-15/100", "bytes ١-٥/9", f"bytes 0-4/{'9' * 5000}"):  # fmt: skip
            answer = self.part(value)
            error = self.assertRaises(Unreachable, self.body, answer)
            self.assertEqual((206, ["aborted"]), (error.status, answer.ended), value)
        self.assertRaises(Unreachable, self.body, self.part("bytes 14-10/100", length=None))

    def test_a_strong_entity_tag_is_a_validator(self) -> None:
        for tag, validator in (('"abc"', '"abc"'), ('W/"abc"', None), ("abc", None), ("", None),
                               ('"a"b"', None), ('"a b"', None)):  # fmt: skip
            body = self.body(Answer(200, fields={"ETag": tag}))
            self.assertEqual(validator, body.validator, tag)
        self.assertIsNone(self.body(Answer(200)).validator)

    def test_its_bytes_are_delivered_and_counted(self) -> None:
        sink = Sink()
        self.assertEqual(5, self.successResultOf(self.body(Answer(200, b"01234")).deliver_to(sink)))
        self.assertEqual((b"01234", 5, None), (sink.content, self.watch.bytes, sink.producer))

    def test_those_of_a_body_that_breaks_off_are_counted(self) -> None:
        body = self.body(Answer(200, b"01234", broken=TimedOut("stalled")))
        self.failureResultOf(body.deliver_to(Sink()), TimedOut)
        self.assertEqual(5, self.watch.bytes)

    def test_a_part_without_a_length_is_held_to_its_range(self) -> None:
        for content in (b"0123", b"012345"):
            body = self.body(self.part("bytes 10-14/100", content, length=None))
            error = self.failureResultOf(body.deliver_to(Sink()), Unreachable).value
            self.assertIn(f"sent {len(content)} bytes where it said 5", error.reason)

    def test_nobody_wants_it(self) -> None:
        answer = Answer(200, b"01234")
        self.body(answer).abort()
        self.assertEqual((["aborted"], 0), (answer.ended, self.watch.bytes))

    @given(st.text(alphabet="bytes 0123456789-/*", max_size=30) | st.text(), st.integers(0, 10))
    def test_any_range_is_one_that_can_be_or_refused(self, value: str, length: int) -> None:
        try:
            body = self.body(self.part(value, b"x" * length))
        except Unreachable:
            return
        assert body.length is not None
        self.assertTrue(body.length >= 1 and body.length == length)
        self.assertTrue(body.size is None or body.first + body.length <= body.size)


nearly = st.text(alphabet='<>;,=" \\relnxt?a&', max_size=60)


class LinkTests(TestCase):
    def assert_next(self, expected: dict[str, str] | None, *fields: str) -> None:
        self.assertEqual(expected, next_page(fields, {}), fields)

    def test_a_relative_one(self) -> None:
        self.assert_next({"n": "2", "last": "b"}, '</v2/a/tags/list?n=2&last=b>; rel="next"')

    def test_an_absolute_one_gives_its_parameters_and_nothing_else(self) -> None:
        self.assert_next({"last": "b"}, "<http://evil.example/elsewhere?last=b>; rel=next")

    def test_one_with_a_query_only(self) -> None:
        self.assert_next({"last": "b"}, '<?last=b>;rel="next"')

    def test_parameters_are_decoded(self) -> None:
        self.assert_next({"last": "a b/ü", "x": ""}, '<?last=a%20b%2F%C3%BC&x=>; rel="next"')

    def test_the_next_one_is_found_among_others(self) -> None:
        self.assert_next({"n": "3"}, '<?n=1>; rel="first", <?n=2>; rel=prev, <?n=3>; rel="next"')
        self.assert_next({"n": "3"}, '<?n=1>; rel="first"', '<?n=3>; rel="next"')

    def test_rel_is_a_list_in_any_case(self) -> None:
        self.assert_next({"n": "3"}, '<?n=3>; title="a, <b>; rel=c"; REL="Last NEXT"')

    def test_the_first_rel_counts(self) -> None:
        self.assert_next(None, '<?n=3>; rel="prev"; rel="next"')

    def test_others_are_none(self) -> None:
        for value in ("", "?n=3", '<?n=3>; rel="nextish"', "<?n=3>", '<?n=3>; title="rel=next"',
                      '</v2/a/tags/list>; rel="next"', '<http://[?n=3>; rel="next"'):  # fmt: skip
            self.assert_next(None, value)

    def test_a_page_is_not_followed_by_itself(self) -> None:
        self.assertIsNone(next_page(['<?n=2&last=b>; rel="next"'], {"last": "b", "n": "2"}))

    def test_a_page_without_parameters_is_the_first_one(self) -> None:
        self.assertIsNone(next_page(['</v2/a/tags/list>; rel="next"'], {"n": "2"}))

    @given(nearly | st.text(), st.integers(1, 4))
    def test_any_field_can_be_read(self, value: str, times: int) -> None:
        found = next_page([value * times], {})
        self.assertTrue(found is None or found)
