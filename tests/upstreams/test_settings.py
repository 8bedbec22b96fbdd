"""The settings of a daemon that pulls from a test's upstream, or from none."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace
from twisted.trial.unittest import TestCase

from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import Settings
from artifactd.settings.values import Url
from tests.upstreams.hub import Hub
from tests.upstreams.settings import UNREACHABLE, beside_no_upstream, settings_for


class SettingsCase(TestCase):
    def load(self, toml: str) -> Settings:
        path = Path(self.mktemp())
        path.write_text(toml)
        return Settings.load(path, {})

    def remote(self, settings: Settings, name: str = "docker.io") -> RemoteSettings:
        remote = settings.repository[name]
        assert isinstance(remote, RemoteSettings)
        return remote


class HubSettingsTests(SettingsCase):
    def test_bare_names_are_pulled_from_the_hub(self) -> None:
        hub = Hub.start(self)
        settings = self.load(settings_for(hub))
        self.assertEqual(list(settings.repository), ["local", "docker.io"])
        self.assertEqual(self.remote(settings).upstream, hub.url)
        self.assertEqual(self.remote(settings).library, "library/")
        self.assertEqual(
            (settings.default.push, settings.default.pull[1:]), ("local", ("docker.io",))
        )

    def test_every_setting_can_be_another(self) -> None:
        toml = settings_for(
            "http://127.0.0.1:1",
            "quay.io",
            freshness="0s",
            library="",
            allow=["a/*"],
            retries=0,
            offline=True,
        )
        settings = self.load(toml)
        remote = self.remote(settings, "quay.io")
        self.assertEqual((remote.freshness, remote.library, remote.allow), (0, "", ("a/*",)))
        self.assertEqual((remote.retries, remote.offline), (0, True))
        self.assertEqual(settings.default.pull, ("local", "quay.io"))


class NoUpstreamTests(SettingsCase):
    def test_docker_hub_is_never_asked(self) -> None:
        for toml in ("", "threads = 3\n", '[default]\npush = ""\n', "# nothing"):
            remote = self.remote(self.load(beside_no_upstream(toml)))
            self.assertEqual(remote.upstream, UNREACHABLE)

    def test_all_else_is_as_by_default(self) -> None:
        settings = self.load(beside_no_upstream("threads = 3\n"))
        remote = replace(self.remote(settings), upstream=Url("https://registry-1.docker.io"))
        same = replace(remote, hosts=self.remote(Settings()).hosts)
        expected = replace(Settings(), threads=3)
        self.assertEqual(settings.default, expected.default)
        self.assertEqual(same, self.remote(expected))
        self.assertEqual(settings.threads, 3)

    def test_a_test_with_repositories_of_its_own_has_no_other(self) -> None:
        toml = '[repository.team]\nkind = "local"\n'
        self.assertEqual(beside_no_upstream(toml), toml)
