"""What clients are told to write into their configuration."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import TestCase

from artifactd.commands.mirror_config import (
    ClientFile,
    containerd,
    docker,
    k3s,
    own_url,
    podman,
)
from artifactd.kit.start import StartError
from artifactd.settings.settings import Settings
from tests.upstreams.settings import without_embedded

URL = "http://127.0.0.1:5000"


def text_of(files: Iterator[ClientFile]) -> str:
    """The text of the one file of ``files``."""
    (file,) = files
    return file.text


class MirrorConfigTests(TestCase):
    def settings(self, toml: str = "", **environment: str) -> Settings:
        file = Path(self.mktemp())
        named = tomllib.loads(toml).get("repository")
        file.write_text(toml if named is None else f"{toml}\n{without_embedded(named)}")
        return Settings.load(file, {f"ARTIFACTD_{k.upper()}": v for k, v in environment.items()})

    def two(self) -> Settings:
        return self.settings(
            '[repository."docker.io"]\nkind = "remote"\nupstream = "https://registry-1.docker.io"\n'
            '[repository.github]\nkind = "remote"\nupstream = "https://ghcr.io"\n'
            'hosts = ["ghcr.io"]\n'
        )

    def test_docker_is_given_one_mirror(self) -> None:
        document = json.loads(text_of(docker(self.settings(), URL)))
        self.assertEqual(document, {"registry-mirrors": [URL]})

    def test_docker_is_told_of_plain_http_where_it_does_not_expect_it(self) -> None:
        document = json.loads(text_of(docker(self.settings(), "http://cache.example:5000")))
        self.assertEqual(document["insecure-registries"], ["cache.example:5000"])
        document = json.loads(text_of(docker(self.settings(), "https://cache.example")))
        self.assertNotIn("insecure-registries", document)

    def test_containerd_has_a_file_for_each_upstream(self) -> None:
        files = {file.name: file for file in containerd(self.two(), URL)}
        for host, upstream in (
            ("docker.io", "https://registry-1.docker.io"),
            ("ghcr.io", "https://ghcr.io"),
        ):
            file = files.pop(f"{host}/hosts.toml")
            self.assertEqual(file.path, f"/etc/containerd/certs.d/{host}/hosts.toml")
            document = tomllib.loads(file.text)
            self.assertEqual(document["server"], upstream)
            self.assertEqual(document["host"][URL]["capabilities"], ["pull", "resolve"])
        self.assertEqual(files, {})

    def test_containerd_asks_an_upstream_under_its_prefix_itself(self) -> None:
        settings = self.settings(
            '[repository."docker.io"]\nkind = "remote"\nupstream = "https://harbor.example"\n'
            'hosts = ["docker.io"]\nprefix = "hub"\n'
        )
        printed = text_of(containerd(settings, "http://cache:5000"))
        # containerd adds "/v2" to a path that does not end in it, unless it is told otherwise.
        server = 'server = "https://harbor.example/v2/hub"\noverride_path = true\n'
        self.assertIn(f"{server}\n[host.", printed)
        self.assertEqual(
            text_of(k3s(settings, "http://cache:5000")),
            'mirrors:\n  "docker.io":\n    endpoint:\n      - "http://cache:5000"\n'
            '      - "https://harbor.example/v2/hub"\n',
        )

    def test_k3s_has_an_endpoint_for_each_upstream(self) -> None:
        self.assertEqual(
            text_of(k3s(self.two(), URL)),
            'mirrors:\n  "docker.io":\n    endpoint:\n      - "http://127.0.0.1:5000"\n'
            '  "ghcr.io":\n    endpoint:\n      - "http://127.0.0.1:5000"\n',
        )

    def test_containerd_is_not_sent_where_its_ns_would_be_unknown(self) -> None:
        settings = self.settings(
            '[repository.mine]\nkind = "remote"\nupstream = "https://ghcr.io"\nhosts = []\n'
        )
        for client in (containerd, k3s, podman):
            self.assertEqual(list(client(settings, URL)), [])

    def test_podman_has_a_mirror_for_each_upstream_below_its_prefix_here(self) -> None:
        document = tomllib.loads(text_of(podman(self.two(), URL)))
        mirrors = {registry["prefix"]: registry["mirror"][0] for registry in document["registry"]}
        self.assertEqual(
            mirrors,
            {
                "docker.io": {"location": "127.0.0.1:5000/docker.io", "insecure": True},
                "ghcr.io": {"location": "127.0.0.1:5000/github", "insecure": True},
            },
        )

    def test_only_what_looks_like_a_host_is_told_as_a_registry(self) -> None:
        settings = self.settings(
            '[repository.hub]\nkind = "remote"\nupstream = "https://ghcr.io"\n'
            '[repository.corp]\nkind = "remote"\nupstream = "https://a.example:5000"\n'
            'hosts = ["localhost", "a.example:5000", "corp"]\n'
        )
        document = tomllib.loads(text_of(podman(settings, URL)))
        self.assertEqual(
            {
                registry["prefix"]: registry["mirror"][0]["location"]
                for registry in document["registry"]
            },
            {
                "ghcr.io": "127.0.0.1:5000/hub",
                "localhost": "127.0.0.1:5000/corp",
                "a.example:5000": "127.0.0.1:5000/corp",
            },
        )
        files = [file.name.partition("/")[0] for file in containerd(settings, URL)]
        self.assertEqual(files, ["ghcr.io", "localhost", "a.example:5000"])

    def test_docker_is_not_sent_here_for_what_is_not_answered(self) -> None:
        for toml in (
            '[repository."ghcr.io"]\nkind = "remote"\nupstream = "https://ghcr.io"\n',
            '[default]\npull = ["local"]\n',
        ):
            with self.assertRaisesRegex(StartError, "^default.pull: "):
                list(docker(self.settings(toml), URL))

    def test_podman_is_not_told_that_https_is_insecure(self) -> None:
        document = tomllib.loads(text_of(podman(self.settings(), "https://cache.example")))
        (registry,) = document["registry"]
        self.assertEqual(registry["mirror"], [{"location": "cache.example/docker.io"}])

    def test_the_daemon_is_where_it_listens(self) -> None:
        for listen, url in (
            ("tcp:5001:interface=127.0.0.2", "http://127.0.0.2:5001"),
            (r"tcp:5001:interface=\:\:1", "http://[::1]:5001"),
            ("unix:/run/a.sock tcp:port=5002:interface=10.0.0.1", "http://10.0.0.1:5002"),
            ("ssl:443:interface=10.0.0.1:privateKey=k:certKey=c", "https://10.0.0.1:443"),
            ("artifactd-tls:443:interface=10.0.0.1:cert=c", "https://10.0.0.1:443"),
        ):
            self.assertEqual(own_url(self.settings(listen=listen)), url)

    def test_without_an_interface_the_machines_name_stands_for_it(self) -> None:
        url = own_url(self.settings(listen="tcp:5001"))
        self.assertRegex(url, r"^http://[^:/]+:5001$")
        self.assertNotIn("0.0.0.0", url)
