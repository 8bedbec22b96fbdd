"""The dashboard for Grafana and the alerts for Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase, TestCase

import artifactd
from artifactd.daemon.listen import measure_certificates
from tests.api.case import ApiTestCase
from tests.programs import require, run

ROOT = Path(artifactd.__file__).parents[1]
DASHBOARD = ROOT / "etc/grafana/artifactd.json"
ALERTS = ROOT / "etc/prometheus/alerts.yml"


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a dashboard, as Grafana 10 writes it, that has no other fields."""


class Source(Strict):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class Place(Strict):
    h: int
    w: int
    x: int
    y: int


class Target(Strict):
    refId: str  # noqa: N815 - Grafana's name, as those below
    datasource: Source
    expr: str
    legendFormat: str  # noqa: N815
    instant: bool = False


class Panel(Strict):
    id: int
    type: Literal["row", "timeseries", "stat", "bargauge"]
    title: str
    gridPos: Place  # noqa: N815
    description: str = ""
    datasource: Source | None = None
    fieldConfig: dict[str, Any] = {}  # noqa: N815
    options: dict[str, Any] = {}
    targets: list[Target] = []
    collapsed: bool = False
    panels: list[Any] = []


class Variable(Strict):
    name: str
    label: str
    type: Literal["datasource", "query"]
    query: str | dict[str, str]
    hide: int
    refresh: int
    current: dict[str, Any]
    multi: bool
    includeAll: bool  # noqa: N815
    datasource: Source | None = None
    sort: int = 0


class Dashboard(Strict):
    title: str
    uid: str
    description: str
    tags: list[str]
    schemaVersion: int  # noqa: N815
    version: int
    editable: bool
    graphTooltip: int  # noqa: N815
    timezone: str
    refresh: str
    time: dict[Literal["from", "to"], str]
    links: list[Any]
    annotations: dict[Literal["list"], list[Any]]
    templating: dict[Literal["list"], list[Variable]]
    panels: list[Panel]


def dashboard() -> Dashboard:
    """:raises msgspec.ValidationError: if the file has not the shape of a dashboard."""
    return msgspec.json.decode(DASHBOARD.read_bytes(), type=Dashboard)


def expressions() -> list[str]:
    """The expressions of the dashboard, with values for its variables."""
    return [
        target.expr.replace("$__rate_interval", "5m")
        .replace("$job", "artifactd")
        .replace("$instance", ".*")
        for panel in dashboard().panels
        for target in panel.targets
    ]


def named(text: str) -> set[str]:
    """The metrics that a text names."""
    return set(re.findall(r"\b(?:artifactd|process)_[a-z_]+", text))


class DashboardTests(TestCase):
    def test_it_has_the_shape_of_a_dashboard_of_grafana(self) -> None:
        shown = dashboard()
        self.assertGreaterEqual(shown.schemaVersion, 38)  # Grafana 10
        numbers = [panel.id for panel in shown.panels]
        self.assertEqual(len(set(numbers)), len(numbers))
        taken: set[tuple[int, int]] = set()
        for panel in shown.panels:
            place = panel.gridPos
            self.assertLessEqual(place.x + place.w, 24, panel.title)
            squares = {
                (place.x + dx, place.y + dy) for dx in range(place.w) for dy in range(place.h)
            }
            self.assertEqual(squares & taken, set(), f"{panel.title} lies on another one")
            taken |= squares
            self.assertEqual(panel.type == "row", not panel.targets, panel.title)
            letters = [target.refId for target in panel.targets]
            self.assertEqual(len(set(letters)), len(letters), panel.title)
        variables = {variable.name for variable in shown.templating["list"]}
        used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text("utf-8")))
        self.assertEqual(used - {"__rate_interval"}, variables)

    def test_each_expression_asks_for_the_chosen_instances(self) -> None:
        for panel in dashboard().panels:
            for target in panel.targets:
                selectors = re.findall(r"(?:artifactd|process|up)[a-z_]*\{([^}]*)", target.expr)
                self.assertGreater(len(selectors), 0, target.expr)
                for selector in selectors:
                    self.assertIn('job="$job",instance=~"$instance"', selector)

    async def test_prometheus_can_parse_each_expression(self) -> None:
        require("promtool")
        rules = [
            {"record": f"shown:{number}", "expr": expression}
            for number, expression in enumerate(expressions())
        ]
        file = Path(self.mktemp()).absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        # JSON is YAML, too.
        file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        result = await run(self, "promtool", "check", "rules", str(file))
        self.assertIn(f"{len(rules)} rules found", result.out + result.err)


class NamesTests(ApiTestCase):
    async def test_the_dashboard_and_the_alerts_name_metrics_that_there_are(self) -> None:
        measure_certificates(self.registry.parts.counters, [])
        answer = await self.registry.request("GET", "/metrics")
        there: set[str] = set()
        for family in text_string_to_metric_families(answer.body.decode()):
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            there |= {family.name + ending for ending in endings.get(family.type, [""])}
        for file in (DASHBOARD, ALERTS):
            missing = named(file.read_text("utf-8")) - there
            self.assertEqual(missing, set(), file.name)

    async def test_the_dashboard_shows_each_metric_but_for_a_few(self) -> None:
        answer = await self.registry.request("GET", "/metrics")
        shown = DASHBOARD.read_text("utf-8")
        left_out = {
            family.name
            for family in text_string_to_metric_families(answer.body.decode())
            if family.name not in shown
        }
        self.assertEqual(
            left_out,
            {
                "artifactd_revalidated",
                "artifactd_scrubbed_bytes",
                "process_start_time_seconds",
            },
        )


# By alert: the series on which it fires at the eighth hour, one sample a minute.
Series = Mapping[str, str]
OF = 'job="artifactd",instance="a"'
SLOW = f'route="/v2/{{name}}/manifests/{{reference}}",method="GET",{OF}'
FIRING: Mapping[str, Series] = {
    "ArtifactdDown": {f"up{{{OF}}}": "0x600"},
    "ArtifactdRestarts": {f"process_start_time_seconds{{{OF}}}": "0+60x600"},
    "ArtifactdErrors": {
        f'artifactd_http_requests_total{{code="500",{OF}}}': "0+2x600",
        f'artifactd_http_requests_total{{code="200",{OF}}}': "0+98x600",
    },
    "ArtifactdSlow": {
        f'artifactd_http_request_seconds_bucket{{le="2.5",{SLOW}}}': "0+95x600",
        f'artifactd_http_request_seconds_bucket{{le="5",{SLOW}}}': "0+100x600",
        f'artifactd_http_request_seconds_bucket{{le="+Inf",{SLOW}}}': "0+100x600",
    },
    "ArtifactdReactorLag": {
        f'artifactd_reactor_lag_seconds_bucket{{le="0.25",{OF}}}': "0+50x600",
        f'artifactd_reactor_lag_seconds_bucket{{le="0.5",{OF}}}': "0+60x600",
        f'artifactd_reactor_lag_seconds_bucket{{le="+Inf",{OF}}}': "0+60x600",
    },
    "ArtifactdThreadsBusy": {f'artifactd_threads_queued{{pool="store",{OF}}}': "51x600"},
    "ArtifactdCatalogSlow": {
        f'artifactd_catalog_seconds_bucket{{kind="transaction",le="1",{OF}}}': "0+8x600",
        f'artifactd_catalog_seconds_bucket{{kind="transaction",le="5",{OF}}}': "0+10x600",
        f'artifactd_catalog_seconds_bucket{{kind="transaction",le="+Inf",{OF}}}': "0+10x600",
    },
    "ArtifactdDiskAlmostFull": {
        f'artifactd_disk_free_bytes{{folder="data",{OF}}}': "4x600",
        f'artifactd_disk_size_bytes{{folder="data",{OF}}}': "100x600",
    },
    "ArtifactdDiskFills": {
        f'artifactd_disk_free_bytes{{folder="data",{OF}}}': "1000-1x600",
        f'artifactd_disk_size_bytes{{folder="data",{OF}}}': "1000x600",
    },
    "ArtifactdQuotaAlmostUsed": {
        f'artifactd_repository_bytes{{repository="local",{OF}}}': "91x600",
        f'artifactd_repository_quota_bytes{{repository="local",{OF}}}': "100x600",
    },
    "ArtifactdDamage": {f"artifactd_damaged_total{{{OF}}}": "0x450 1x150"},
    "ArtifactdCollectionStopped": {
        f"artifactd_gc_runs_total{{{OF}}}": "1x600",
        f"process_start_time_seconds{{{OF}}}": "0x600",
    },
    "ArtifactdRetentionDropsMuch": {
        f'artifactd_retention_dropped_total{{repository="local",{OF}}}': "0x400 50x200",
        f'artifactd_repository_tags{{repository="local",{OF}}}': "40x600",
    },
    "ArtifactdUpstreamDown": {f'artifactd_upstream_available{{repository="hub",{OF}}}': "0x600"},
    "ArtifactdUpstreamBudgetLow": {
        f'artifactd_upstream_budget_ratio{{repository="hub",{OF}}}': "0.05x600"
    },
    "ArtifactdStale": {f'artifactd_stale_total{{repository="hub",{OF}}}': "0+1x600"},
    "ArtifactdLoginsRefused": {
        f'artifactd_logins_refused_total{{reason="wrong",{OF}}}': "0+90x600"
    },
    "ArtifactdCertificateExpires": {
        f'artifactd_tls_certificate_expiry_timestamp_seconds{{listener="5443",{OF}}}': "99999x600"
    },
    "ArtifactdCertificateUnreadable": {
        f'artifactd_tls_reload_failing{{listener="5443",{OF}}}': "1x600"
    },
    "ArtifactdWebhookFails": {
        f'artifactd_webhook_failed_total{{webhook="ci",{OF}}}': "0+1x600",
        f'artifactd_webhook_delivered_total{{webhook="ci",{OF}}}': "7x600",
    },
    "ArtifactdWebhookDrops": {f'artifactd_webhook_dropped_total{{webhook="ci",{OF}}}': "0+1x600"},
    "ArtifactdFilesAlmostUsed": {
        f"process_open_fds{{{OF}}}": "81x600",
        f"process_max_fds{{{OF}}}": "100x600",
    },
}

# A registry that is well: no alert fires.
WELL: Series = {
    f"up{{{OF}}}": "1x600",
    f"process_start_time_seconds{{{OF}}}": "0x600",
    f'artifactd_http_requests_total{{code="404",{OF}}}': "0+50x600",
    f'artifactd_http_requests_total{{code="200",{OF}}}': "0+50x600",
    f'artifactd_http_requests_total{{code="503",{OF}}}': "0x600",
    f'artifactd_http_request_seconds_bucket{{le="2.5",{SLOW}}}': "0+100x600",
    f'artifactd_http_request_seconds_bucket{{le="+Inf",{SLOW}}}': "0+100x600",
    f'artifactd_reactor_lag_seconds_bucket{{le="0.25",{OF}}}': "0+60x600",
    f'artifactd_reactor_lag_seconds_bucket{{le="+Inf",{OF}}}': "0+60x600",
    f'artifactd_threads_queued{{pool="store",{OF}}}': "3x600",
    f'artifactd_catalog_seconds_bucket{{kind="transaction",le="1",{OF}}}': "0+10x600",
    f'artifactd_catalog_seconds_bucket{{kind="transaction",le="+Inf",{OF}}}': "0+10x600",
    f'artifactd_disk_free_bytes{{folder="data",{OF}}}': "500x600",
    f'artifactd_disk_size_bytes{{folder="data",{OF}}}': "1000x600",
    f'artifactd_repository_bytes{{repository="local",{OF}}}': "50x600",
    f'artifactd_repository_bytes{{repository="hub",{OF}}}': "99x600",
    f'artifactd_repository_quota_bytes{{repository="local",{OF}}}': "100x600",
    f'artifactd_repository_size_cap_bytes{{repository="hub",{OF}}}': "100x600",
    f"artifactd_damaged_total{{{OF}}}": "1x600",
    f"artifactd_gc_runs_total{{{OF}}}": "0+1x600",
    f'artifactd_retention_dropped_total{{repository="local",{OF}}}': "0x400 50x200",
    f'artifactd_repository_tags{{repository="local",{OF}}}': "60x600",
    f'artifactd_upstream_available{{repository="hub",{OF}}}': "1x600",
    f'artifactd_upstream_budget_ratio{{repository="hub",{OF}}}': "0.5x600",
    f'artifactd_stale_total{{repository="hub",{OF}}}': "3x600",
    f'artifactd_logins_refused_total{{reason="wrong",{OF}}}': "0+1x600",
    f'artifactd_tls_certificate_expiry_timestamp_seconds{{listener="5443",{OF}}}': "9999999x600",
    f'artifactd_tls_reload_failing{{listener="5443",{OF}}}': "0x600",
    f'artifactd_webhook_failed_total{{webhook="ci",{OF}}}': "3x600",
    f'artifactd_webhook_delivered_total{{webhook="ci",{OF}}}': "0+1x600",
    f'artifactd_webhook_dropped_total{{webhook="ci",{OF}}}': "0x600",
    f"process_open_fds{{{OF}}}": "20x600",
    f"process_max_fds{{{OF}}}": "100x600",
}


class AlertsTests(TestCase):
    def alerts(self) -> Sequence[str]:
        return re.findall(r"- alert: (\w+)", ALERTS.read_text("utf-8"))

    async def test_prometheus_accepts_them(self) -> None:
        require("promtool")
        result = await run(self, "promtool", "check", "rules", str(ALERTS))
        self.assertIn(f"{len(self.alerts())} rules found", result.out + result.err)

    async def test_each_fires_when_it_should_and_none_when_all_is_well(self) -> None:
        require("promtool")
        self.assertEqual(sorted(FIRING), sorted(self.alerts()))
        tests = [self.case(name, series) for name, series in FIRING.items()]
        document = {
            "rule_files": [str(ALERTS)],
            # Every minute, as by default, takes seven times as long.
            "evaluation_interval": "10m",
            "tests": [*tests, self.case(None, WELL)],
        }
        file = Path(self.mktemp()).absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))
        await run(self, "promtool", "test", "rules", str(file))

    def case(self, name: str | None, series: Series) -> dict[str, Any]:
        """A test for promtool: that the alert ``name``, or none, fires at the eighth hour."""
        fired = [] if name is None else [{"labels": f'{{alertname="{name}"}}', "value": 1}]
        # A disk that is almost full fills, too.
        only = "" if name is None else f',alertname="{name}"'
        return {
            "name": name or "all is well",
            "interval": "1m",
            "input_series": [{"series": key, "values": value} for key, value in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count by (alertname) (ALERTS{{alertstate="firing"{only}}})',
                    "eval_time": "8h",
                    "exp_samples": fired,
                }
            ],
        }


class PageTests(SynchronousTestCase):
    def test_each_alert_has_a_section_that_says_what_to_do(self) -> None:
        text = ALERTS.read_text("utf-8")
        alerts = re.findall(r"- alert: (\w+)", text)
        page = (ROOT / "docs/alerts.md").read_text("utf-8")
        sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
        self.assertEqual([section.split("\n", 1)[0] for section in sections], alerts)
        for section in sections:
            for part in ("**What it means.**", "**Where to look.**", "**What to do.**"):
                self.assertIn(part, section)
        runbooks = re.findall(r"runbook: (\S+)", text)
        self.assertEqual(runbooks, [f"docs/alerts.md#{name.lower()}" for name in alerts])
        self.assertEqual(
            len(re.findall(r"severity: (?:critical|warning)$", text, re.M)), len(alerts)
        )
