"""Settings: what is accepted, what is refused and how the refusal reads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields
from twisted.trial.unittest import TestCase

from artifactd.kit import machine
from artifactd.kit.start import StartError
from artifactd.settings.accounts import (
    AccessSettings,
    AuthSettings,
    IssuerSettings,
    RobotSettings,
    TokenServiceSettings,
)
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import (
    DefaultSettings,
    LimitsSettings,
    LocalSettings,
    RetentionRule,
    Settings,
)
from artifactd.settings.values import Duration, Size
from artifactd.settings.webhooks import WebhookSettings
from tests.upstreams.settings import without_embedded

SHIPPED = Path(__file__).parents[2] / "etc" / "artifactd.toml"


class SettingsCase(TestCase):
    def load(self, toml: str, **environ: str) -> Settings:
        path = Path(self.mktemp())
        path.write_text(toml, "utf-8")
        return Settings.load(path, environ)

    def assert_refused(self, toml: str, expected: str, **environ: str) -> None:
        """``toml`` is refused with a line that says what was ``expected``."""
        path = Path(self.mktemp())
        path.write_text(toml, "utf-8")
        with self.assertRaises(StartError) as caught:
            Settings.load(path, environ)
        self.assertEqual(str(caught.exception), f"{path}: {expected}")


class DefaultsTests(SettingsCase):
    def test_nothing_at_all_means_the_embedded_defaults(self) -> None:
        self.assertEqual(Settings.load(None, {}), Settings())

    def test_the_daemon_listens_on_loopback_alone(self) -> None:
        self.assertEqual(Settings().listen, ("tcp:5000:interface=127.0.0.1",))

    def test_the_shipped_file_is_the_defaults(self) -> None:
        self.assertEqual(Settings.load(SHIPPED, {}), Settings())

    def test_the_shipped_file_shows_every_setting(self) -> None:
        text = SHIPPED.read_text("utf-8")
        # Of these tables there is none by default; they are shown in comments.
        text = re.sub(r"# \[\[repository\.local\.retention\]\]\n(#.*\n)*", _uncommented, text)
        plain, mark, shown = text.partition("# [[access]]")
        shown = _uncommented(mark + shown)
        shipped: dict[str, Any] = tomllib.loads(plain + shown)
        for kind, table in (
            (Settings, shipped),
            (LocalSettings, shipped["repository"]["local"]),
            (RetentionRule, shipped["repository"]["local"]["retention"][0]),
            (RemoteSettings, shipped["repository"]["docker.io"]),
            (LimitsSettings, shipped["limits"]),
            (DefaultSettings, shipped["default"]),
            (AuthSettings, shipped["auth"]),
            (TokenServiceSettings, shipped["token_service"]),
            (AccessSettings, shipped["access"][0]),
            (RobotSettings, shipped["robot"]["ci"]),
            (IssuerSettings, shipped["issuer"]["github"]),
            (WebhookSettings, shipped["webhook"]["ci"]),
        ):
            self.assertEqual(list(table), [setting.name for setting in fields(kind)])


def _uncommented(shown: str | re.Match[str]) -> str:
    """A table that is shown in comments, with its own comments."""
    text = shown if isinstance(shown, str) else shown[0]
    return re.sub("^# (?=# |\\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)


class FileTests(SettingsCase):
    def test_a_file_changes_what_it_says_and_nothing_else(self) -> None:
        settings = self.load('data = "/srv"\nidle_timeout = "15m"\nmin_chunk = "5MiB"\n')
        self.assertEqual(settings.data, Path("/srv"))
        self.assertEqual(settings.idle_timeout, 900.0)
        self.assertEqual(settings.min_chunk, 5 * 1024 * 1024)
        self.assertEqual(settings.listen, Settings().listen)

    def test_one_endpoint_needs_no_list(self) -> None:
        self.assertEqual(self.load('listen = "tcp:5000"').listen, ("tcp:5000",))

    def test_addresses_are_endpoints_too(self) -> None:
        for address, endpoint in (
            (":5000", "tcp:5000"),
            ("0.0.0.0:5000", "tcp:5000:interface=0.0.0.0"),
            ("127.0.0.1:5000", "tcp:5000:interface=127.0.0.1"),
            ("localhost:5000", "tcp:5000:interface=127.0.0.1"),
            ("[::1]:5000", "tcp:5000:interface=\\:\\:1"),
            ("tcp:5000", "tcp:5000"),
            ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
        ):
            settings = self.load(f"listen = ['{address}']")
            self.assertEqual(settings.listen, (endpoint,))
            self.assertEqual(self.load(str(settings)), settings)
            self.assertEqual(Settings.load(None, {"ARTIFACTD_LISTEN": address}), settings)

    def test_the_embedded_repositories_stay_beside_others(self) -> None:
        settings = self.load(QUAY)
        self.assertEqual(set(settings.repository), {"local", "docker.io", "quay.io"})
        embedded = Settings()
        for name in "local", "docker.io":
            self.assertEqual(settings.repository[name], embedded.repository[name])
        self.assertEqual(settings.default, embedded.default)

    def test_a_table_of_its_name_replaces_an_embedded_one(self) -> None:
        settings = self.load('[repository.local]\nkind = "local"\nsparse = "images"\n')
        self.assertEqual(settings.repository["local"], LocalSettings(sparse="images"))
        self.assertIn("docker.io", settings.repository)

    def test_which_manifests_may_lack_something_is_one_of_three(self) -> None:
        for value in ('"yes"', "true", '"Images"'):
            told = f'repository.local.sparse: expected "no", "indexes" or "images", got {value}'
            self.assert_refused(f'[repository.local]\nkind = "local"\nsparse = {value}\n', told)

    def test_a_repository_that_is_not_enabled_does_not_exist(self) -> None:
        off = '[repository.local]\nenabled = false\n[repository."docker.io"]\nenabled = false\n'
        self.assertEqual(self.load(off).repository, {})
        self.assertEqual(set(self.load(off + QUAY).repository), {"quay.io"})
        self.assertEqual(
            set(self.load(f"{QUAY}enabled = false").repository), {"local", "docker.io"}
        )
        self.assertEqual(set(self.load(f"{HUB}enabled = false").repository), {"local"})
        unread = f'{QUAY}enabled = false\nusername = "a"\npassword_file = "/absent"\n'
        self.assertNotIn("quay.io", self.load(unread).repository)

    def test_whether_it_is_enabled_alone_says_no_more_than_that(self) -> None:
        on = '[repository.local]\nenabled = true\n[repository."docker.io"]\nenabled = true\n'
        self.assertEqual(self.load(on), Settings())

    def test_a_name_that_is_not_embedded_is_not_switched(self) -> None:
        for table in ('"docker-io"]\nenabled = false', "foo]\nenabled = true"):
            name = table.partition("]")[0]
            self.assert_refused(
                f"[repository.{table}",
                f'repository.{name.strip(chr(34))}.kind: expected "local" or "remote", got nothing',
            )

    def test_what_is_wrong_in_a_repository_that_is_not_enabled_is_told(self) -> None:
        self.assert_refused(
            f"{QUAY}enabled = false\nfreshnes = 3",
            'repository."quay.io".freshnes: no such setting; did you mean freshness?',
        )
        self.assert_refused(
            f'{QUAY}enabled = "no"',
            'repository."quay.io".enabled: expected true or false, got "no"',
        )

    def test_the_embedded_docker_hub_leaves_hosts_to_a_table_that_has_them(self) -> None:
        settings = self.load(
            '[repository.hub]\nkind = "remote"\nupstream = "https://registry-1.docker.io"\n'
            'hosts = ["docker.io", "hub"]\n'
        )
        hub = settings.repository["docker.io"]
        assert isinstance(hub, RemoteSettings)
        self.assertEqual(hub.hosts, ("index.docker.io", "registry-1.docker.io"))

    def test_what_it_prints_it_reads_again(self) -> None:
        settings = self.load(
            'listen = ["tcp:80", "unix:/run/a\\"b"]\naccess_log = "json"\nidle_timeout = "250ms"\n'
            'upload_timeout = "7d"\n[repository.a]\nkind = "local"\ndelete_held = true\n'
        )
        self.assertEqual(self.load(str(settings)), settings)
        without = self.load(without_embedded())
        self.assertEqual(self.load(str(without)), without)


TEAM = '[repository.team]\nkind = "local"\n'
HUB = '[repository."docker.io"]\nkind = "remote"\nupstream = "https://registry-1.docker.io"\n'
QUAY = '[repository."quay.io"]\nkind = "remote"\nupstream = "https://quay.io"\n'


class DefaultRepositoryTests(SettingsCase):
    def default(self, toml: str) -> tuple[str, tuple[str, ...]]:
        chosen = self.load(toml).default
        return chosen.push, chosen.pull

    def test_bare_names_are_pushed_to_local_and_pulled_from_docker_hub_too(self) -> None:
        self.assertEqual(self.default(""), ("local", ("local", "docker.io")))

    def test_of_these_only_those_count_that_there_are(self) -> None:
        no_local, no_hub = without_embedded(["docker.io"]), without_embedded(["local"])
        self.assertEqual(self.default(TEAM + without_embedded()), ("", ()))
        self.assertEqual(self.default(TEAM + no_local), ("", ("docker.io",)))
        self.assertEqual(self.default(no_hub), ("local", ("local",)))

    def test_another_local_repository_can_be_chosen_and_is_pulled_from(self) -> None:
        chosen = '[default]\npush = "team"'
        alone = without_embedded() + TEAM + chosen
        self.assertEqual(self.default(alone), ("team", ("team",)))
        self.assertEqual(self.default(HUB + TEAM + chosen), ("team", ("team", "docker.io")))

    def test_it_can_be_done_without_one_to_push_to(self) -> None:
        self.assertEqual(self.default('[default]\npush = ""'), ("", ("docker.io",)))

    def test_the_upstreams_of_bare_names_can_be_chosen(self) -> None:
        chosen = '[default]\npull = ["quay.io", "docker.io"]'
        self.assertEqual(self.default(f'{QUAY}{chosen}\npush = ""'), ("", ("quay.io", "docker.io")))
        self.assertEqual(self.default('[default]\npull = ["local"]'), ("local", ("local",)))

    def test_names_can_be_kept_from_the_upstreams(self) -> None:
        settings = self.load('[default]\nlocal_only = ["mycompany/*"]')
        self.assertEqual(settings.default.local_only, ("mycompany/*",))


class WorkersTests(SettingsCase):
    def processes(self, cores: int, gibibytes: float, toml: str) -> int:
        """How many processes serve on such a machine."""
        self.patch(machine, "cores", lambda: cores)
        self.patch(machine, "memory", lambda: int(gibibytes * (1 << 30)))
        return self.load(toml).processes

    def test_a_number_is_that_number(self) -> None:
        self.assertEqual(self.processes(1, 0.5, "workers = 20"), 20)

    def test_auto_is_one_a_core_up_to_eight(self) -> None:
        for cores, expected in ((1, 1), (2, 2), (8, 8), (64, 8)):
            self.assertEqual(self.processes(cores, 64, 'workers = "auto"'), expected)

    def test_auto_leaves_each_its_memory(self) -> None:
        for gibibytes, expected in ((0.125, 1), (0.5, 1), (1, 4)):
            self.assertEqual(self.processes(8, gibibytes, 'workers = "auto"'), expected)
        buffers = 'workers = "auto"\ntransfer_buffers = "888MiB"\n'
        self.assertEqual(self.processes(8, 2.125, buffers), 2)


class UntaggedTests(SettingsCase):
    def untagged(self, text: str) -> float | None:
        repository = self.load(f'{TEAM}untagged = "{text}"').repository["team"]
        assert isinstance(repository, LocalSettings)
        return repository.untagged.seconds

    def test_untagged_manifests_stay_or_have_their_time(self) -> None:
        self.assertEqual(
            [self.untagged(text) for text in ("keep", "30d", "0")], [None, 30 * 86400.0, 0.0]
        )

    def test_it_is_shown_as_it_is_written(self) -> None:
        settings = self.load(f'{TEAM}untagged = "30d"')
        self.assertIn('untagged = "30d"', str(settings).splitlines())
        self.assertEqual(self.load(str(settings)), settings)


_PUSH = 'default.push: expected a configured local repository ("local") or "", got '
_FIRST = 'default.pull: expected "local", which is push, first, got '

REFUSED = (
    # A setting that is unknown, with the one that was probably meant.
    ("thread = 8", "thread: no such setting; did you mean threads?"),
    (f"{TEAM}private = true", "repository.team.private: no such setting"),
    # Tables.
    ("repository = 3", "repository: expected a table, got 3"),
    ("limits = 1", "limits: expected a table, got 1"),
    # Bounds.
    ('lease = "0"', 'lease: expected at least 1ms, got "0"'),
    ('stall_timeout = "0"', 'stall_timeout: expected at least 1ms, got "0"'),
    ('transfer_buffers = "1MiB"', 'transfer_buffers: expected at least 4MiB, got "1MiB"'),
    ("threads = 65", "threads: expected a whole number from 1 to 64, got 65"),
    ("workers = 0", 'workers: expected "auto" or a whole number from 1 to 64, got 0'),
    ('workers = "all"', 'workers: expected "auto" or a whole number from 1 to 64, got "all"'),
    (
        f'{TEAM}retention = ["v*"]',
        'repository.team.retention[0]: expected a table, got "v*"',
    ),
    (
        f"{TEAM}[[repository.team.retention]]\nnewest = 1001",
        "repository.team.retention[0].newest: expected a whole number from 0 to 1000, got 1001",
    ),
    (
        f'{TEAM}[[repository.team.retention]]\npuled = "1d"',
        "repository.team.retention[0].puled: no such setting; did you mean pulled?",
    ),
    (
        f'{TEAM}[[repository.team.retention]]\ntags = ["test-*"]',
        "repository.team.retention[0]: expected newest, pushed, pulled or keep: without one of them"
        " it keeps no tag",
    ),
    (
        '[repository.hub]\nkind = "remote"\nupstream = "https://hub.example"\n'
        "[[repository.hub.retention]]\nnewest = 1",
        "repository.hub.retention: expected it for kind local alone: images of an upstream are"
        " evicted by size_cap and max_age",
    ),
    (
        'uncounted_pulls = ["group:dev"]',
        'uncounted_pulls: expected a list of "user:<name>", "robot:<name>", "certificate:<name>",'
        ' "agent:<pattern>", got ["group:dev"]',
    ),
    (
        f'{TEAM}untagged = "soon"',
        'repository.team.untagged: expected "keep" or a number with unit such as "30d", got "soon"',
    ),
    # The kind of a repository; a wrong one is reported before settings that it does not have.
    (
        '[repository.local]\nkind = "lokal"',
        'repository.local.kind: expected "local" or "remote", got "lokal"',
    ),
    (
        "[repository.local]",
        'repository.local.kind: expected "local" or "remote", got nothing',
    ),
    (
        '[repository.hub]\nupstream = "https://quay.io"\nkind = "mirror"',
        'repository.hub.kind: expected "local" or "remote", got "mirror"',
    ),
    (
        "[repository.hub]\nkind = 3",
        'repository.hub.kind: expected "local" or "remote", got 3',
    ),
    # The name of a repository is one component of the grammar.
    (
        '[repository."a/b"]\nkind = "local"',
        'repository."a/b": expected a name of one component, without /',
    ),
    # Files are named after it.
    (
        f'[repository.{"a" * 65}]\nkind = "local"',
        f"repository.{'a' * 65}: expected at most 64 characters",
    ),
    # Pushes without a prefix go to a local repository that is configured.
    ('[default]\npush = "other"', f'{_PUSH}"other"'),
    ('[default]\npush = "docker.io"', f'{_PUSH}"docker.io"'),
    # Pulls without a prefix ask configured repositories, each once, that of push first.
    (
        '[default]\npull = ["local", "quay.io"]',
        'default.pull: expected configured repositories ("docker.io", "local"), got "quay.io"',
    ),
    (
        TEAM + HUB + '[default]\npull = ["docker.io", "team"]',
        'default.pull: expected none of kind local but push, got "team"',
    ),
    (
        HUB + '[default]\npull = ["docker.io", "docker.io"]',
        'default.pull: expected each once, got "docker.io" twice',
    ),
    ('[default]\npull = ["docker.io", "local"]', f'{_FIRST}["docker.io", "local"]'),
    ('[default]\npull = ["docker.io"]', f'{_FIRST}["docker.io"]'),
    ("[default]\npull = []", f"{_FIRST}[]"),
)


class RefusalTests(SettingsCase):
    def test_what_is_wrong_is_named_with_what_was_expected(self) -> None:
        for toml, expected in REFUSED:
            self.assert_refused(toml, expected)

    def test_a_repository_name_is_one_of_the_grammar(self) -> None:
        with self.assertRaisesRegex(StartError, r"repository\.Team: invalid repository name"):
            self.load('[repository.Team]\nkind = "local"')

    def test_limits_are_numbers_that_make_sense(self) -> None:
        for setting, expected in (
            (
                "connections = -1",
                "connections: expected a whole number from 0 to 1000000000, got -1",
            ),
            (
                'connections = "1"',
                'connections: expected a whole number from 0 to 1000000000, got "1"',
            ),
            ("user_burst = 0", "user_burst: expected a whole number from 1 to 1000000000, got 0"),
            ("header_count = 9", "header_count: expected a whole number from 10 to 10000, got 9"),
            ('header_size = "1000B"', 'header_size: expected at least 1KiB, got "1000B"'),
            ('header_timeout = "0"', 'header_timeout: expected at least 1ms, got "0"'),
            ("index_depth = 0", "index_depth: expected a whole number from 1 to 100, got 0"),
            ("json_depth = 501", "json_depth: expected a whole number from 8 to 500, got 501"),
            ("uploads = 1", "uploads: no such setting; did you mean user_uploads?"),
        ):
            self.assert_refused(f"[limits]\n{setting}\n", f"limits.{expected}")

    def test_a_quantity_needs_its_unit(self) -> None:
        expected = 'expected a number with unit such as "60s", "15m", "24h"'
        for value in ("60", '"60"', '"60 s"', '"-1s"', '"1.5h"', '"60S"', "true", "[]"):
            self.assert_refused(f"idle_timeout = {value}", f"idle_timeout: {expected}, got {value}")

    def test_something_must_be_listened_on(self) -> None:
        expected = (
            'listen: expected addresses such as "127.0.0.1:5000", or Twisted endpoint strings such'
            ' as "tcp:5000", got '
        )
        for value in ("[]", '["5000"]', '[":70000"]', '["127.0.0.1"]', '[""]', "[5000]", "5000"):
            self.assert_refused(f"listen = {value}", expected + value)
        for value in ('["http://127.0.0.1:5000"]', '["tcp://127.0.0.1:5000"]', '["tcp:65536"]',
                      '["ssl:port=70000:interface=::1"]'):  # fmt: skip
            self.assert_refused(f"listen = {value}", expected + value)

    def test_an_origin_of_web_pages_is_one_that_browsers_send(self) -> None:
        loaded = self.load('cors_origins = ["*", "HTTPS://ui.example", "http://localhost:8080"]')
        self.assertEqual(loaded.cors_origins, ("*", "https://ui.example", "http://localhost:8080"))
        for value in ("ui.example", "https://ui.example/", "https://ui.example:443", "null", ""):
            self.assert_refused(
                f'cors_origins = ["{value}"]',
                'cors_origins: expected "*" or origins such as "https://ui.example.com", without a'
                f' path or the port of the scheme, got ["{value}"]',
            )

    def test_a_file_that_is_no_toml_tells_where(self) -> None:
        with self.assertRaisesRegex(StartError, r"not TOML: .*line 1"):
            self.load("data =\n")
        path = Path(self.mktemp())
        path.write_bytes(b'data = "\xff"')
        with self.assertRaisesRegex(StartError, "not TOML"):
            Settings.load(path, {})

    def test_a_file_that_others_may_write_is_named(self) -> None:
        path = Path(self.mktemp())
        path.write_text("")
        path.chmod(0o666)
        refused = self.assertRaises(StartError, Settings.load, path, {})
        self.assertEqual(str(refused), f"{path}: others may write it (mode 0666): chmod go-w")

    def test_a_file_that_is_not_there_is_named(self) -> None:
        with self.assertRaises(StartError) as caught:
            Settings.load(Path("absent.toml"), {})
        self.assertEqual(
            str(caught.exception), "absent.toml: can't be read: No such file or directory"
        )


class EnvironmentTests(SettingsCase):
    def test_it_overrides_the_file(self) -> None:
        settings = self.load(
            'data = "/file"\nthreads = 2\n',
            ARTIFACTD_DATA="/environment",
            ARTIFACTD_SWEEP_INTERVAL="5m",
            ARTIFACTD_THREADS="3",
            PATH="/bin",
        )
        self.assertEqual(settings.data, Path("/environment"))
        self.assertEqual(settings.sweep_interval, 300.0)
        self.assertEqual(settings.threads, 3)

    def test_spaces_separate_what_is_listened_on(self) -> None:
        settings = Settings.load(None, {"ARTIFACTD_LISTEN": "tcp:5000  unix:/run/artifactd"})
        self.assertEqual(settings.listen, ("tcp:5000", "unix:/run/artifactd"))

    def assert_variable_refused(self, variable: str, value: str, expected: str) -> None:
        with self.assertRaises(StartError) as caught:
            Settings.load(None, {variable: value})
        self.assertEqual(str(caught.exception), expected)

    def test_a_wrong_value_is_named_by_its_variable(self) -> None:
        self.assert_variable_refused(
            "ARTIFACTD_THREADS",
            "many",
            'ARTIFACTD_THREADS: expected a whole number from 1 to 64, got "many"',
        )

    def test_a_value_that_is_no_utf8_is_refused_on_one_line(self) -> None:
        self.assert_variable_refused(
            "ARTIFACTD_ACCESS_LOG",
            "\udcff",
            'ARTIFACTD_ACCESS_LOG: expected "text", "json" or "off", got "\\udcff"',
        )

    def test_an_unknown_variable_stops_the_start(self) -> None:
        self.assert_variable_refused(
            "ARTIFACTD_LISTN",
            "tcp:5000",
            "ARTIFACTD_LISTN: no such setting; did you mean listen?",
        )

    def test_tables_come_from_the_file_only(self) -> None:
        for name in ("REPOSITORY", "AUTH", "ACCESS", "ROBOT"):
            self.assert_variable_refused(
                f"ARTIFACTD_{name}",
                "x",
                f"ARTIFACTD_{name}: no such setting; tables are set in the file",
            )

    def test_what_kubernetes_and_the_tests_set_is_none_of_ours(self) -> None:
        foreign = {
            "ARTIFACTD_SERVICE_HOST": "10.0.0.1",
            "ARTIFACTD_SERVICE_PORT": "5000",
            "ARTIFACTD_SERVICE_PORT_HTTP": "5000",
            "ARTIFACTD_PORT": "tcp://10.0.0.1:5000",
            "ARTIFACTD_PORT_5000_TCP_ADDR": "10.0.0.1",
            "ARTIFACTD_REQUIRE_PROGRAMS": "1",
        }
        self.assertEqual(Settings.load(None, foreign), Settings())


class QuantityTests(TestCase):
    @given(st.integers(0, 10**12))
    def test_a_size_reads_as_it_is_written(self, size: int) -> None:
        self.assertEqual(Size.parse(str(Size(size))), size)

    @given(st.integers(0, 10**12))
    def test_a_duration_reads_as_it_is_written(self, milliseconds: int) -> None:
        duration = Duration(milliseconds / 1000)
        self.assertEqual(Duration.parse(str(duration)), duration)

    @given(st.text())
    def test_any_text_is_a_quantity_or_refused(self, text: str) -> None:
        for kind in (Duration, Size):
            try:
                quantity = kind.parse(text)
            except ValueError:
                continue
            self.assertGreaterEqual(quantity, 0)

    def test_the_largest_fitting_unit_is_written(self) -> None:
        self.assertEqual([str(Size(n)) for n in (0, 1000, 1 << 20)], ["0", "1000B", "1MiB"])
        self.assertEqual([str(Duration(s)) for s in (0.25, 90, 86400)], ["250ms", "90s", "1d"])
