"""What ``/metrics`` tells of the daemon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import defer

from artifactd.daemon.listen import measure_certificates
from artifactd.oci.names import Digest
from artifactd.web.server.accesslog import SECONDS
from tests.api.case import ApiTestCase, Connection
from tests.api.guarded import BLOB, GuardedCase, basic
from tests.api.served import Served, image_manifest
from tests.api.test_hot_answers import HotCase

MANIFESTS = "/v2/{name}/manifests/{reference}"
BLOBS = "/v2/{name}/blobs/{digest}"
UPLOAD = "/v2/{name}/blobs/uploads/{upload_id}"

Labels = frozenset[tuple[str, str]]


async def scraped(registry: Served) -> dict[str, dict[Labels, float]]:
    """By name and labels, the samples of ``/metrics``."""
    answer = await registry.request("GET", "/metrics")
    samples: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return samples


class MetricsCase(ApiTestCase):
    async def value(self, name: str, **labels: str) -> float:
        """The sample of ``/metrics`` of that name and of these labels; 0 if there is none."""
        samples = await scraped(self.registry)
        return samples.get(f"artifactd_{name}", {}).get(frozenset(labels.items()), 0)

    async def push_small(self) -> None:
        """Push app:v1, an image of a config of two bytes."""
        await self.registry.push_blob("app", b"{}")
        await self.registry.push_manifest("app", "v1", image_manifest(b"{}"))


class RequestTests(MetricsCase):
    async def test_they_are_counted_by_route_method_and_status(self) -> None:
        digest = await self.registry.push_blob("team/app", BLOB)
        for _ in range(3):
            await self.registry.request("GET", f"/v2/team/app/blobs/{digest}")
        await self.registry.request("HEAD", f"/v2/other/blobs/{digest}")
        count = self.value
        self.assertEqual(
            await count("http_requests_total", route=BLOBS, method="GET", code="200"), 3
        )
        self.assertEqual(
            await count("http_requests_total", route=BLOBS, method="HEAD", code="404"), 1
        )
        times = {"route": BLOBS, "method": "GET"}
        self.assertEqual(await count("http_request_seconds_count", **times), 3)
        self.assertEqual(await count("http_request_seconds_bucket", le="+Inf", **times), 3)
        self.assertGreater(await count("http_request_seconds_sum", **times), 0)
        self.assertEqual(await count("http_sent_bytes_total", **times), 3 * len(BLOB))

    async def test_those_to_the_page_and_the_api_are_counted_by_their_routes(self) -> None:
        await self.push_small()
        html = {"Accept": "text/html"}
        for path, route in (
            ("/", "/"),
            ("/ui/image/app", "/ui/image/{name}"),
            ("/ui/storage", "/ui/storage"),
            ("/api/v1/images", "/api/v1/images"),
            ("/api/v1/images/app/tags/v1", "/api/v1/images/{name}/tags/{reference}"),
        ):
            await self.registry.request("GET", path, headers=html)
            counted = self.value("http_requests_total", route=route, method="GET", code="200")
            self.assertEqual(await counted, 1, path)

    async def test_no_client_makes_time_series(self) -> None:
        for method, path in (
            ("GET", "/nothing/here"),
            ("GET", "/v2/team%2fapp/tags/list"),
            ("BREW", "/v2/"),
            ("get", "/v2/"),
        ):
            await self.registry.request(method, path)
        found = (await scraped(self.registry))["artifactd_http_requests_total"]
        labels = {(dict(each)["route"], dict(each)["method"]) for each in found}
        self.assertEqual(labels - {("/metrics", "GET")}, {("other", "GET"), ("other", "other")})

    async def test_a_transfer_is_told_of_while_it_goes_on(self) -> None:
        location = await self.start_upload("hello")
        connection = await Connection.begin_body(self, self.registry.port, "PATCH", location, 100)
        await connection.send(b"some")
        of = {"route": UPLOAD, "method": "PATCH"}
        while await self.value("http_received_bytes_total", **of) < 4:
            pass  # its bytes are on their way
        self.assertEqual(await self.value("http_requests_in_flight", **of), 1)
        self.assertEqual(await self.value("transfers_in_flight", way="in"), 1)
        connection.leave()
        while await self.value("http_requests_in_flight", **of):
            pass
        self.assertEqual(await self.value("http_requests_total", code="0", **of), 1)
        self.assertEqual(await self.value("http_received_bytes_total", **of), 4)
        self.assertEqual(await self.value("transfers_in_flight", way="in"), 0)

    def test_the_classes_of_the_histogram_rise(self) -> None:
        self.assertEqual(sorted(set(SECONDS)), list(SECONDS))


class HotAnswerTests(HotCase, MetricsCase):
    async def test_they_are_counted_as_all_others_are(self) -> None:
        await self.push_small()
        answers = await self.tell(self.registry, [("GET", "/v2/app/manifests/v1", {})], 5)
        size = len(answers[0][2])
        hits = await self.value("hot_answers_hits_total")
        self.assertGreater(hits, 0)
        self.assertLessEqual(hits + await self.value("hot_answers_misses_total"), 5)
        times = {"route": MANIFESTS, "method": "GET"}
        self.assertEqual(await self.value("http_requests_total", code="200", **times), 5)
        self.assertEqual(await self.value("http_request_seconds_count", **times), 5)
        self.assertEqual(await self.value("http_sent_bytes_total", **times), 5 * size)


class LookedAtTests(MetricsCase):
    toml = '[repository.local]\nkind = "local"\nquota = "1GiB"\n'

    async def test_storage_and_quota_by_repository(self) -> None:
        await self.push_small()
        size = len(image_manifest(b"{}")) + 2
        self.assertEqual(await self.value("repository_bytes", repository="local"), size)
        self.assertEqual(await self.value("repository_images", repository="local"), 1)
        self.assertEqual(await self.value("repository_tags", repository="local"), 1)
        self.assertEqual(await self.value("repository_quota_bytes", repository="local"), 1 << 30)
        self.assertGreater(await self.value("disk_size_bytes", folder="data"), 0)

    async def test_a_catalog_that_fails_costs_its_figures_alone(self) -> None:
        self.patch(self.registry.parts.seeing.overview, "usage", _unavailable)
        self.assertGreater(await self.value("connections"), 0)

    async def test_the_process_and_the_reactor(self) -> None:
        await self.registry.running.pulse.beat()
        samples = await scraped(self.registry)
        (nothing,) = [frozenset[tuple[str, str]]()]
        for name in (
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_start_time_seconds",
            "artifactd_processes",
        ):
            self.assertGreater(samples[name][nothing], 0, name)
        self.assertGreater(samples["artifactd_reactor_lag_seconds_count"][nothing], 0)
        read = frozenset({("kind", "read")})
        self.assertGreater(samples["artifactd_catalog_seconds_count"][read], 0)


def _unavailable() -> defer.Deferred[object]:
    return defer.fail(OSError(5, "Input/output error"))


class LoginTests(GuardedCase):
    async def test_logins_that_are_refused(self) -> None:
        await self.ask("GET", "/v2/", "alice")
        for _ in range(6):
            await self.ask("GET", "/v2/", headers=basic("alice", "wrong"))
        refused = (await scraped(self.registry))["artifactd_logins_refused_total"]
        by_reason = {dict(labels)["reason"]: value for labels, value in refused.items()}
        self.assertEqual(by_reason["wrong"] + by_reason["too_many"], 6)
        self.assertGreater(by_reason["too_many"], 0)


ROW = re.compile(
    r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \| ([^|]*) \| (.*) \|$", re.MULTILINE
)


class PageTests(MetricsCase):
    """docs/metrics.md and ``/metrics`` tell the same."""

    async def test_each_metric_has_a_row_with_its_type_its_labels_and_its_help(self) -> None:
        metrics = self.registry.parts.counters.metrics
        measure_certificates(self.registry.parts.counters, [])
        answer = await self.registry.request("GET", "/metrics")
        exposed = {}
        for family in text_string_to_metric_families(answer.body.decode()):
            known = metrics.families.get(family.name)
            labels: Sequence[str] = () if known is None else known.label_names
            if known is None:
                labels = sorted({label for each in family.samples for label in each.labels})
            name = f"{family.name}_total" if family.type == "counter" else family.name
            exposed[name] = (family.type, tuple(labels), family.documentation)
        text = Path(__file__).parents[2].joinpath("docs/metrics.md").read_text("utf-8")
        rows = {
            name: (kind, tuple(re.findall("`(.*?)`", labels)), told)
            for name, kind, labels, told in ROW.findall(text)
        }
        for name, (kind, labels, told) in exposed.items():
            self.assertIn(name, rows, f"| `{name}` | {kind} | {labels} | {told} |")
            self.assertEqual(rows[name][0::2], (kind, told), name)
            if labels:
                self.assertEqual(rows[name][1], labels, name)
        self.assertEqual(sorted(rows), sorted(exposed))

    async def test_names_follow_the_conventions_of_prometheus(self) -> None:
        answer = await self.registry.request("GET", "/metrics")
        for family in text_string_to_metric_families(answer.body.decode()):
            self.assertRegex(family.name, r"\A(artifactd|process)_[a-z_]+\Z")
            self.assertRegex(family.documentation, r"\A[A-Z1].*[^.]\Z")

    async def test_no_label_has_a_name_a_tag_or_a_digest(self) -> None:
        digest = await self.registry.push_image("team/secret-app", "v1", BLOB)
        await self.registry.request("GET", "/v2/team/secret-app/manifests/v1")
        text = (await self.registry.request("GET", "/metrics")).body.decode()
        for each in ("secret-app", str(digest), str(Digest.of(BLOB))):
            self.assertNotIn(each, text)
