"""Tags and referrers through an upstream: its pages, and what is cached while it is down."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from twisted.internet.defer import Deferred, gatherResults

from artifactd.catalog.remote import CachedPage, RemoteCatalog
from artifactd.oci.manifest import OCI_INDEX
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.mirror import lists
from artifactd.registry.mirror.refusals import Refusals
from artifactd.upstream.http.errors import UpstreamError
from tests.api.served import Served
from tests.api.test_listings import next_page, pages
from tests.process import Answer
from tests.pull.mirrors import HIT, STORED, Instead, MirrorCase, Without
from tests.upstreams.faulty import REFERRERS, TAGS, Fault, Garbage, Status

NAME = "library/alpine"
PATH = "/v2/docker.io/alpine"
LIST = f"{PATH}/tags/list"
ALL = ["1", "2", "3", "edge", "latest"]
DAY = 86_400.0


def tags_of(answer: Answer) -> list[str]:
    found: list[str] = json.loads(answer.body)["tags"]
    return found


def listed(answer: Answer) -> list[str]:
    """The digests that an index lists."""
    return [each["digest"] for each in json.loads(answer.body)["manifests"]]


class ListCase(MirrorCase):
    def setUp(self) -> None:
        super().setUp()
        for tag in ALL:
            self.digest = self.hub.images.add_image(NAME, tag, tag.encode())

    async def get(self, registry: Served, path: str = LIST) -> Answer:
        return await registry.request("GET", path)

    def break_down(self, fault: Fault) -> None:
        self.hub.faults.add(fault, times=None)


class TagListTests(ListCase):
    async def test_it_is_the_upstreams(self) -> None:
        registry = self.mirror()
        answer = await self.get(registry)
        self.assert_from(answer, "remote", STORED)
        self.assertEqual(json.loads(answer.body), {"name": "docker.io/alpine", "tags": ALL})
        self.assertIsNone(answer.header("Link"))
        self.assertEqual(self.hub.asked("GET", TAGS)[-1].path, f"/v2/{NAME}/tags/list")

    async def test_a_large_page_is_in_the_hands_of_few_requests_at_a_time(self) -> None:
        tags = [f"release-{n:08d}" for n in range(10_000)]
        sent = json.dumps({"name": NAME, "tags": tags}).encode()
        self.hub.faults.add(Instead(sent, "application/json"), on=TAGS)
        registry = self.mirror(freshness="10m")
        self.assertEqual(tags_of(await self.get(registry)), tags)
        under_way: list[None] = []
        counts: list[int] = []
        cached_page = RemoteCatalog.cached_page

        async def read(*args: Any) -> CachedPage | None:
            under_way.append(None)
            counts.append(len(under_way))
            page = await cached_page(*args)
            under_way.pop()
            return page

        def decoded(*args: Any, **more: Any) -> Any:
            raise AssertionError("a page that is kept need not be decoded")

        self.patch(RemoteCatalog, "cached_page", read)
        self.patch(lists, "decode_foreign", decoded)
        asked = [Deferred.fromCoroutine(self.get(registry)) for _ in range(12)]
        for answer in await gatherResults(asked):
            self.assertEqual(tags_of(answer), tags)
        self.assertGreaterEqual(len(counts), 12)
        self.assertEqual(max(counts), 2)

    async def test_it_goes_page_by_page_by_links_of_our_own(self) -> None:
        registry = self.mirror()
        for n in (1, 2, 5, 100):
            expected = [ALL[first : first + n] for first in range(0, len(ALL), n)]
            self.assertEqual(await pages(registry, f"{LIST}?n={n}", "tags"), expected)
        first = await self.get(registry, f"{LIST}?n=2")
        link = urlsplit(next_page(first.header("Link")) or "")
        self.assertEqual((link.netloc, link.path), ("", LIST))
        self.assertEqual(parse_qs(link.query), {"n": ["2"], "last": ["2"]})

    async def test_a_clients_query_goes_upstream_only_as_it_is_understood(self) -> None:
        registry = self.mirror(freshness="0s", negative_freshness="0s")
        for query, sent in (
            ("n=0002&last=1", {"n": ["2"], "last": ["1"]}),
            ("next_page=x&limit=9&page=7&service=z&account=root", {}),
            ("last=1%26account%3Droot", None),
            ("last=-", None),
            ("next=account%3Droot%26n%3D-1", {}),
            ("continuation=account%3Droot%26n%3D-1", None),
            ("continuation=", None),
            ("continuation=%C3%A9", None),
            ("artifactType=a%2Fb", {}),
        ):
            self.hub.forget_requests()
            answer = await self.get(registry, f"{LIST}?{query}")
            self.assertEqual(answer.status, 400 if sent is None else 200, query)
            asked = [each.query for each in self.hub.asked("GET", TAGS)]
            self.assertEqual(asked[-1:], [] if sent is None else [sent], query)

    async def test_a_continuation_is_for_its_list_alone_and_lasts_over_a_restart(self) -> None:
        link = {"Link": '<https://elsewhere.example/p?cursor=secret&account=ours>; rel="next"'}
        registry = self.mirror()
        self.hub.faults.add(Instead(b'{"tags": []}', headers=link), on=TAGS)
        following = next_page((await self.get(registry)).header("Link")) or ""
        self.assertNotIn("secret", following)
        sealed = parse_qs(urlsplit(following).query)["continuation"][0]
        other = "y" if sealed[8] == "x" else "x"
        for path, text in (
            (LIST, f"{sealed[:8]}{other}{sealed[9:]}"),
            (LIST, sealed[:-4]),
            ("/v2/docker.io/other/tags/list", sealed),
            (f"{PATH}/referrers/{self.digest}", sealed),
        ):
            self.hub.forget_requests()
            answer = await self.get(registry, f"{path}?continuation={text}")
            self.assert_refused(answer, 400, "UNSUPPORTED", "list it from the beginning")
            self.assertEqual(self.hub.requests, [])
        await registry.service.stopService()
        registry.service.startService()
        self.assertEqual((await self.get(registry, following)).status, 200)
        asked = self.hub.asked("GET", TAGS)[-1].query
        self.assertEqual(asked, {"cursor": ["secret"], "account": ["ours"]})

    async def test_pages_that_the_upstream_makes_shorter_are_as_short(self) -> None:
        self.hub.answers.page = 2
        registry = self.mirror()
        expected = [["1", "2"], ["3", "edge"], ["latest"]]
        self.assertEqual(await pages(registry, LIST, "tags"), expected)
        self.assertEqual(await pages(registry, f"{LIST}?n=100", "tags"), expected)

    async def test_an_upstream_may_have_any_words_for_its_pages(self) -> None:
        registry = self.mirror()
        for path, on in ((LIST, TAGS), (f"{PATH}/referrers/{self.digest}", REFERRERS)):
            for more in ("cursor=a%3D%26b%20c&n=1", "next=2", "last=1&ns=x&nextToken=", "page=2"):
                link = {"Link": f'<https://elsewhere.example/p?{more}>; rel="next"'}
                self.hub.faults.add(Instead(b'{"manifests": []}', headers=link), on=on)
                first = await self.get(registry, f"{path}?n=1")
                following = next_page(first.header("Link")) or ""
                self.assertEqual(urlsplit(following).path, path)
                await self.get(registry, following)
                asked = self.hub.asked("GET", on)[-1].query
                self.assertEqual(asked, parse_qs(more, keep_blank_values=True))
                self.age(registry, 2 * DAY)

    async def test_a_link_that_asks_for_0_entries_leads_to_all_of_them(self) -> None:
        everything = json.dumps({"tags": ALL[:2]}).encode()
        for query in ("last=2&n=0", "n=0&last=2"):
            link = {"Link": f'<{LIST}?{query}>; rel="next"'}
            self.hub.faults.add(Instead(everything, headers=link), on=TAGS)
            self.hub.faults.add(Instead(b'{"tags": ["3", "edge", "latest"]}'), on=TAGS)
            found = await pages(self.mirror(), LIST, "tags")
            self.assertEqual(found, [ALL[:2], ALL[2:]])
            self.assertEqual(self.hub.asked("GET", TAGS)[-1].query, {"n": ["0"], "last": ["2"]})

    async def test_none_is_listed_where_none_is_wanted(self) -> None:
        registry = self.mirror(freshness="0s")
        everything = json.dumps({"tags": ALL}).encode()
        link = {"Link": f'<{LIST}?last=1>; rel="next"'}
        self.hub.faults.add(Instead(everything, headers=link), on=TAGS)
        for fault in (None, Status(503)):
            if fault is not None:
                await registry.request("GET", f"{PATH}/manifests/latest")
                self.break_down(fault)
            answer = await self.get(registry, f"{LIST}?n=0")
            self.assertEqual((answer.status, tags_of(answer)), (200, []))
            self.assertIsNone(answer.header("Link"))

    async def test_each_old_one_is_counted(self) -> None:
        registry = self.mirror(freshness="0s")
        await self.get(registry)
        await registry.request("GET", f"{PATH}/manifests/latest")
        signature = self.hub.images.add_image(NAME, None, b"sig", subject=self.digest)
        await registry.request("GET", f"{PATH}/manifests/{signature}")
        self.break_down(Status(503))
        # One that was said, and two of what is cached.
        for path in (LIST, f"{LIST}?n=3", f"{PATH}/referrers/{self.digest}"):
            self.assertEqual((await self.get(registry, path)).status, 200)
        metrics = await registry.request("GET", "/metrics")
        self.assertIn(b'artifactd_stale_total{repository="docker.io"} 3.0', metrics.body)

    async def test_it_begins_behind_the_last_one(self) -> None:
        registry = self.mirror()
        self.assertEqual(tags_of(await self.get(registry, f"{LIST}?last=3")), ["edge", "latest"])
        self.assertEqual(tags_of(await self.get(registry, f"{LIST}?last=2&n=1")), ["3"])

    async def test_the_pages_of_a_bare_name_stay_with_it(self) -> None:
        registry = self.mirror()
        await registry.request("GET", "/v2/alpine/manifests/latest")
        bare = "/v2/alpine/tags/list"
        first = await self.get(registry, f"{bare}?n=2")
        self.assertEqual(urlsplit(next_page(first.header("Link")) or "").path, bare)
        self.assertEqual(json.loads(first.body)["name"], "alpine")
        expected = [["1", "2"], ["3", "edge"], ["latest"]]
        self.assertEqual(await pages(registry, f"{bare}?n=2", "tags"), expected)

    async def test_a_mirrors_pages_stay_in_its_namespace(self) -> None:
        registry = self.mirror()
        bare = f"/v2/{NAME}/tags/list?ns=docker.io&n=2"
        expected = [["1", "2"], ["3", "edge"], ["latest"]]
        self.assertEqual(await pages(registry, bare, "tags"), expected)
        self.assertNotIn("ns", {name for asked in self.hub.requests for name in asked.query})

    async def test_a_page_is_fresh_as_long_as_a_tag_is(self) -> None:
        registry = self.mirror()
        for path in (LIST, f"{LIST}?n=2"):
            first = await self.get(registry, path)
            self.hub.forget_requests()
            again = await self.get(registry, path)
            self.assert_from(again, "cache", HIT)
            self.assertEqual((again.body, again.header("Link")), (first.body, first.header("Link")))
            self.assertEqual(self.hub.requests, [])
            self.age(registry, 2 * DAY)
            self.assert_from(await self.get(registry, path), "remote", STORED)
            self.assertEqual(self.hub.count("GET", TAGS), 1)

    async def test_a_page_that_is_served_is_used_whether_fresh_or_stale(self) -> None:
        registry = self.mirror()
        for fault in (None, Status(503)):
            await self.get(registry)
            self.execute(registry, "UPDATE upstream_page SET used_at = 0")
            if fault is not None:
                self.age(registry, 2 * DAY)
                self.break_down(fault)
            self.assertEqual((await self.get(registry)).status, 200)
            await registry.parts.last_used.write()
            self.assertNotEqual(self.execute(registry, "SELECT used_at FROM upstream_page"), [(0,)])

    async def test_no_more_bytes_of_pages_are_kept_than_the_cache_may_have(self) -> None:
        registry = self.mirror(size_cap="100B")
        for n in range(1, 6):
            self.assertEqual((await self.get(registry, f"{LIST}?n={n}")).status, 200)
        ((held,),) = self.execute(registry, "SELECT sum(size) FROM upstream_page")
        self.assertLessEqual(held, 100)

    async def test_the_budget_is_for_manifests_alone(self) -> None:
        registry = self.mirror()
        await registry.request("GET", f"{PATH}/manifests/latest")
        self.hub.answers.remaining = 0
        await registry.request("GET", f"{PATH}/manifests/edge")
        self.assertEqual(tags_of(await self.get(registry)), ALL)

    async def test_pages_that_make_no_sense_are_502(self) -> None:
        registry = self.mirror()
        bomb = b'{"tags": [], "x": ' + b"[" * 101 + b"]" * 101 + b"}"
        for page in (b"<html>", b"[]", b'{"tags": [1]}', b'{"tags": "1"}', b"[" * 100_000, bomb):
            self.hub.faults.add(Garbage(page), on=TAGS)
            self.assert_refused(await self.get(registry), 502, "UNKNOWN", "not this list")
        self.assert_from(await self.get(registry), "remote", STORED)

    async def test_an_image_without_tags_has_none(self) -> None:
        self.hub.images.add_image("library/none", None, b"layer")
        for page in (None, b'{"name": "library/none", "tags": null}', b"{}"):
            if page is not None:
                self.hub.faults.add(Garbage(page), on=TAGS)
            answer = await self.get(self.mirror(), "/v2/docker.io/none/tags/list")
            self.assertEqual((answer.status, tags_of(answer)), (200, []))

    async def test_bad_pages_are_refused_without_asking(self) -> None:
        registry = self.mirror()
        for query in ("n=-1", "n=x", "n=1.5"):
            answer = await self.get(registry, f"{LIST}?{query}")
            self.assertEqual(answer.status, 400)
        self.assertEqual(self.hub.requests, [])


class StaleTagListTests(ListCase):
    async def test_what_was_said_last_is_merged_with_what_is_cached(self) -> None:
        registry = self.mirror(freshness="0s")
        await self.get(registry)
        self.hub.images.add_image(NAME, "0", b"0")
        self.hub.images.add_image(NAME, "later", b"0")
        for tag in ("0", "later", "latest"):
            await registry.request("GET", f"{PATH}/manifests/{tag}")
        for fault in (Status(503), Status(404), Garbage()):
            self.hub.faults.clear()
            self.break_down(fault)
            answer = await self.get(registry)
            self.assertEqual(tags_of(answer), sorted([*ALL, "0", "later"]))
            self.assert_stale(answer, answer.body)
            self.age(registry, DAY)

    async def test_a_page_gets_what_belongs_on_it(self) -> None:
        registry = self.mirror(freshness="0s")
        for tag in ("0", "11", "later"):
            self.hub.images.add_image(NAME, tag, b"0")
            await registry.request("GET", f"{PATH}/manifests/{tag}")
            self.hub.images.remove(NAME, tag)
        expected = ["1", "2"], ["3", "edge"], ["latest"]
        self.assertEqual(await pages(registry, f"{LIST}?n=2", "tags"), list(expected))
        self.break_down(Status(503))
        found = await pages(registry, f"{LIST}?n=2", "tags")
        self.assertEqual(found, [["0", "1", "11", "2"], ["3", "edge"], ["later", "latest"]])

    async def test_what_is_cached_does_where_nothing_was_said(self) -> None:
        registry = self.mirror(freshness="0s")
        for tag in ALL:
            await registry.request("GET", f"{PATH}/manifests/{tag}")
        self.break_down(Status(503))
        answer = await self.get(registry)
        self.assertEqual(tags_of(answer), ALL)
        self.assert_stale(answer, answer.body, "503")
        metrics = await registry.request("GET", "/metrics")
        self.assertIn(b'artifactd_stale_total{repository="docker.io"} 1.0', metrics.body)
        for n in (1, 2, 5):
            expected = [ALL[first : first + n] for first in range(0, len(ALL), n)]
            self.assertEqual(await pages(registry, f"{LIST}?n={n}", "tags"), expected)

    async def test_beyond_max_stale_what_was_said_last_does_not_count(self) -> None:
        registry = self.mirror(max_stale="1d")
        await self.get(registry)
        self.break_down(Status(503))
        self.age(registry, 1.9 * DAY)
        self.assertEqual(tags_of(await self.get(registry)), ALL)
        self.age(registry, 0.2 * DAY)
        self.assert_refused(await self.get(registry), 502, "UNKNOWN", "503")

    async def test_asking_again_and_again_does_not_prolong_a_negative_answer(self) -> None:
        remembered: list[object] = []
        original = Refusals.remember

        def remember(self: Refusals, image: ImageName, asked: Any, error: UpstreamError) -> None:
            remembered.append(asked)
            original(self, image, asked, error)

        self.patch(Refusals, "remember", remember)
        registry = self.mirror(negative_freshness="1d")
        for path in ("tags/list", "tags/list", "manifests/x", "manifests/x"):
            answer = await self.get(registry, f"/v2/docker.io/nothing/{path}")
            self.assertEqual(answer.status, 404)
        self.assertEqual(len(remembered), 2)


class ReferrerTests(ListCase):
    def setUp(self) -> None:
        super().setUp()
        self.signatures = [self.refer(f"sig{n}", "application/vnd.sig") for n in range(3)]
        self.sbom = self.refer("sbom", "application/vnd.sbom")
        self.path = f"{PATH}/referrers/{self.digest}"

    def refer(self, what: str, kind: str) -> str:
        """Let something refer to the image upstream; its digest."""
        more: dict[str, Any] = {"artifactType": kind, "annotations": {"is": what}}
        return str(
            self.hub.images.add_image(NAME, None, what.encode(), subject=self.digest, **more)
        )

    @property
    def everything(self) -> list[str]:
        return sorted([*self.signatures, self.sbom])

    async def test_they_are_the_upstreams(self) -> None:
        registry = self.mirror()
        answer = await self.get(registry, self.path)
        self.assert_from(answer, "remote", STORED)
        self.assertEqual(answer.header("Content-Type"), OCI_INDEX)
        self.assertEqual(listed(answer), self.everything)
        self.assertIsNone(answer.header("OCI-Filters-Applied"))
        self.hub.forget_requests()
        self.assert_from(await self.get(registry, self.path), "cache", HIT)
        self.assertEqual(self.hub.requests, [])

    async def test_they_are_encoded_anew_from_their_descriptors(self) -> None:
        known = {
            "mediaType": OCI_INDEX,
            "digest": f"sha256:{'b' * 64}",
            "size": 7,
            "artifactType": "a/b",
            "annotations": {"a": "b"},
            "platform": {"architecture": "arm64", "os": "linux", "os.version": "1"},
        }
        more = {"secret": "hunter2", "access_token": [1]}
        sent = {"schemaVersion": 1, "manifests": [{**known, **more}], **more}
        registry = self.mirror()
        self.hub.faults.add(Instead(json.dumps(sent).encode()), on=REFERRERS)
        for cache in (STORED, HIT):
            answer = await self.get(registry, self.path)
            self.assertEqual(answer.header("Cache-Status"), cache)
            document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [known]}
            self.assertEqual(json.loads(answer.body), document)

    async def test_one_that_another_program_wrote_does_not_spoil_the_list(self) -> None:
        """Go's programs read all of these."""
        usual = {"mediaType": OCI_INDEX, "digest": f"sha256:{'b' * 64}", "size": 7}
        manifests = [
            {**usual, "annotations": {"a": None}},
            {**usual, "platform": {}},
            {**usual, "platform": {"os": "linux"}},
            {"digest": usual["digest"], "size": 7},
        ]
        registry = self.mirror()
        self.hub.faults.add(Instead(json.dumps({"manifests": manifests}).encode()), on=REFERRERS)
        answer = await self.get(registry, self.path)
        self.assertEqual(json.loads(answer.body)["manifests"], manifests)

    async def test_what_is_no_index_is_none(self) -> None:
        descriptor = {"mediaType": OCI_INDEX, "digest": f"sha256:{'b' * 64}", "size": 7}
        registry = self.mirror(freshness="0s")
        for document in (
            {"access_token": "INTERNAL", "password": "hunter2"},
            {"manifests": "INTERNAL"},
            {"manifests": [{"INTERNAL": 1}]},
            {"manifests": [{**descriptor, "digest": "INTERNAL\n"}]},
            {"manifests": [{**descriptor, "size": -1}]},
            {"manifests": [{**descriptor, "artifactType": "INTERNAL" * 100}]},
        ):
            self.hub.faults.add(Instead(json.dumps(document).encode()), on=REFERRERS)
            answer = await self.get(registry, self.path)
            self.assert_refused(answer, 502, "UNKNOWN", "not this list")
            self.assertNotIn(b"INTERNAL", answer.body)

    async def test_only_a_media_type_is_asked_for(self) -> None:
        registry = self.mirror()
        for given, sent in (("a%2Fb%2Bjson", ["a/b+json"]), ("a%26n%3D1", None), ("x%20y", None)):
            await self.get(registry, f"{self.path}?artifactType={given}&n=9&page=2")
            asked = self.hub.asked("GET", REFERRERS)[-1].query
            self.assertEqual(asked, {"n": ["9"], **({"artifactType": sent} if sent else {})})

    async def test_they_go_page_by_page_by_links_of_our_own(self) -> None:
        self.hub.answers.page = 3
        registry = self.mirror()
        first = await self.get(registry, self.path)
        following = next_page(first.header("Link")) or ""
        self.assertEqual(urlsplit(following).path, self.path)
        second = await self.get(registry, following)
        self.assertEqual([*listed(first), *listed(second)], self.everything)
        self.assertIsNone(second.header("Link"))

    async def test_they_are_filtered_where_the_upstream_filters(self) -> None:
        registry = self.mirror()
        query = "artifactType=application/vnd.sbom"
        for cache in (STORED, HIT):
            answer = await self.get(registry, f"{self.path}?{query}")
            self.assertEqual(answer.header("Cache-Status"), cache)
            self.assertEqual(listed(answer), [self.sbom])
            self.assertEqual(answer.header("OCI-Filters-Applied"), "artifactType")
        self.assertEqual(len(listed(await self.get(registry, self.path))), 4)

    async def test_nothing_says_so_where_it_does_not(self) -> None:
        everything = (await self.get(self.mirror(), self.path)).body
        self.hub.faults.add(Instead(everything), on=REFERRERS)
        self.hub.faults.add(Without("OCI-Filters-Applied"), on=REFERRERS)
        answer = await self.get(self.mirror(), f"{self.path}?artifactType=application/vnd.sbom")
        self.assertEqual(listed(answer), self.everything)
        self.assertIsNone(answer.header("OCI-Filters-Applied"))

    async def test_what_has_none_has_an_empty_list(self) -> None:
        other = Digest.of(b"nothing")
        for path in (f"{PATH}/referrers/{other}", f"/v2/docker.io/none/referrers/{other}"):
            answer = await self.get(self.mirror(), path)
            self.assertEqual((answer.status, listed(answer)), (200, []))
            self.assertEqual(answer.header("Content-Type"), OCI_INDEX)

    async def test_what_was_said_last_is_merged_with_what_is_cached(self) -> None:
        registry = self.mirror(freshness="0s")
        await self.get(registry, self.path)
        late = self.refer("late", "application/vnd.sbom")
        await registry.request("GET", f"{PATH}/manifests/{late}")
        await registry.request("GET", f"{PATH}/manifests/{self.sbom}")
        self.break_down(Status(503))
        answer = await self.get(registry, self.path)
        self.assertEqual(sorted(listed(answer)), sorted([*self.everything, late]))
        self.assert_stale(answer, answer.body, "503")

    async def test_what_was_said_last_holds_where_nothing_is_given_any_more(self) -> None:
        registry = self.mirror(freshness="0s", negative_freshness="0s")
        await self.get(registry, f"{PATH}/manifests/latest")
        await self.get(registry, self.path)
        for status in (401, 403, 404, 410):
            self.hub.faults.clear()
            self.hub.tokens.forget()
            self.hub.faults.add(Status(status), on="/v2/*", method="*", times=None)
            for _ in range(2):
                answer = await self.get(registry, self.path)
                self.assertEqual(sorted(listed(answer)), self.everything, status)
                self.assert_stale(answer, answer.body)

    async def test_what_is_cached_does_where_nothing_was_said(self) -> None:
        registry = self.mirror(freshness="0s", negative_freshness="0s")
        for digest in (*self.signatures, self.sbom):
            await registry.request("GET", f"{PATH}/manifests/{digest}")
        for status in (401, 403):
            self.hub.faults.add(Status(status), on="/v2/*", method="*", times=None)
            answer = await self.get(registry, self.path)
            self.assertEqual(listed(answer), self.everything)
            self.assert_stale(answer, answer.body, str(status))
            self.hub.faults.clear()
        await self.hub.stop()
        answer = await self.get(registry, self.path)
        self.assertEqual(listed(answer), self.everything)
        self.assert_stale(answer, answer.body, "refused")
        (each,) = [e for e in json.loads(answer.body)["manifests"] if e["digest"] == self.sbom]
        self.assertEqual(
            (each["artifactType"], each["annotations"]), ("application/vnd.sbom", {"is": "sbom"})
        )
        answer = await self.get(registry, f"{self.path}?artifactType=application/vnd.sbom")
        self.assertEqual(listed(answer), [self.sbom])
        self.assertEqual(answer.header("OCI-Filters-Applied"), "artifactType")
        first = await self.get(registry, f"{self.path}?n=3")
        second = await self.get(registry, next_page(first.header("Link")) or "")
        self.assertEqual([len(listed(first)), len(listed(second))], [3, 1])
        self.assertEqual([*listed(first), *listed(second)], self.everything)


class TagSchemaTests(ListCase):
    """distribution-spec, "Referrers Tag Schema": an upstream without the endpoint."""

    def setUp(self) -> None:
        super().setUp()
        self.path = f"{PATH}/referrers/{self.digest}"
        self.tag = f"sha256-{self.digest.encoded}"
        self.signature = self.hub.images.add_image(NAME, None, b"sig", artifactType="a/sig")

    async def test_they_are_found_by_the_tag(self) -> None:
        self.hub.images.add_index(NAME, self.tag, self.signature)
        for fault in (Status(404), Status(405), Status(501), Garbage()):
            self.hub.faults.clear()
            self.hub.faults.add(fault, on=REFERRERS, times=None)
            answer = await self.get(self.mirror(), self.path)
            self.assert_from(answer, "remote", STORED)
            self.assertEqual(listed(answer), [str(self.signature)])
            self.assertEqual(answer.header("Content-Type"), OCI_INDEX)

    async def test_the_children_of_the_subject_itself_are_none(self) -> None:
        subject = self.hub.images.add_index(NAME, None, self.signature)
        tag = f"sha256-{subject.encoded}"
        self.assertEqual(self.hub.images.add_index(NAME, tag, self.signature), subject)
        self.hub.faults.add(Status(404), on=REFERRERS, times=None)
        answer = await self.get(self.mirror(), f"{PATH}/referrers/{subject}")
        self.assertEqual((answer.status, listed(answer)), (200, []))

    async def test_without_the_tag_there_are_none(self) -> None:
        self.hub.faults.add(Status(404), on=REFERRERS, times=None)
        answer = await self.get(self.mirror(), self.path)
        self.assertEqual((answer.status, listed(answer)), (200, []))

    async def test_that_there_were_none_stands_in_for_an_error_at_the_tag(self) -> None:
        self.hub.faults.add(Status(404), on=REFERRERS, times=None)
        registry = self.mirror(freshness="0s", negative_freshness="0s")
        await self.get(registry, f"{PATH}/manifests/latest")
        await self.get(registry, self.path)
        self.hub.faults.add(Status(503), on=f"*/manifests/{self.tag}")
        answer = await self.get(registry, self.path)
        self.assertEqual(listed(answer), [])
        self.assert_stale(answer, answer.body, "503")

    async def test_nothing_is_kept_of_a_name_of_which_there_is_nothing(self) -> None:
        registry = self.mirror(negative_freshness="1d")
        path = f"/v2/docker.io/none/referrers/{self.digest}"
        for _ in range(2):
            answer = await self.get(registry, path)
            self.assertEqual((answer.status, listed(answer)), (200, []))
            self.assertEqual(self.execute(registry, "SELECT name FROM image"), [])
        self.assertEqual(self.hub.count("GET", "/v2/library/none/referrers/*"), 2)  # a challenge

    async def test_an_old_tag_that_stands_in_is_an_old_list(self) -> None:
        self.hub.images.add_index(NAME, self.tag, self.signature)
        self.hub.faults.add(Status(404), on=REFERRERS, times=None)
        registry = self.mirror(freshness="0s")
        self.assert_from(await self.get(registry, self.path), "remote", STORED)
        self.hub.faults.add(Status(503), on=f"*/manifests/{self.tag}", method="*", times=2)
        answer = await self.get(registry, self.path)
        self.assertEqual(listed(answer), [str(self.signature)])
        self.assert_stale(answer, answer.body, "503")
        self.assertIsNone((await self.get(registry, self.path)).header("Warning"))

    async def test_a_tag_whose_bytes_were_lost_is_fetched_again(self) -> None:
        index = self.hub.images.add_index(NAME, self.tag, self.signature)
        self.hub.faults.add(Status(404), on=REFERRERS, times=None)
        registry = self.mirror(freshness="0s")
        await self.get(registry, f"{PATH}/manifests/{self.tag}")
        blobs = registry.data / "blobs" / index.algorithm
        (blobs / index.encoded[:2] / index.encoded).unlink()
        answer = await self.get(registry, self.path)
        self.assertEqual(listed(answer), [str(self.signature)])

    async def test_a_tag_that_is_no_index_lists_none(self) -> None:
        self.hub.faults.add(Status(404), on=REFERRERS, times=None)
        self.hub.images.add_image(NAME, self.tag, b"an image")
        answer = await self.get(self.mirror(), self.path)
        self.assertEqual((answer.status, listed(answer)), (200, []))

    async def test_an_upstream_that_fails_at_the_tag_has_not_said_that_there_are_none(self) -> None:
        self.hub.images.add_index(NAME, self.tag, self.signature)
        self.hub.faults.add(Status(404), on=REFERRERS, times=None)
        registry = self.mirror(freshness="0s")
        self.hub.faults.add(Status(503), on=f"*/manifests/{self.tag}")
        self.assert_refused(await self.get(registry, self.path), 502, "UNKNOWN", "503")
        self.assertEqual(listed(await self.get(registry, self.path)), [str(self.signature)])
        await self.hub.stop()
        answer = await self.get(registry, self.path)
        self.assertEqual(listed(answer), [str(self.signature)])
        self.assert_stale(answer, answer.body, "refused")
