"""What the log says when the daemon has started."""

from __future__ import annotations

import socket
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from artifactd import __version__
from artifactd.daemon.greeting import greeting, url_of
from artifactd.settings.accounts import AccessSettings
from artifactd.settings.settings import DefaultSettings, Settings
from artifactd.settings.values import Origin

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 5000)


class GreetingTests(SynchronousTestCase):
    def test_as_it_comes_it_says_how_to_push(self) -> None:
        what, where, who, then = greeting(Settings(), None, [LOOPBACK], read_only=False)
        self.assertEqual(
            what,
            f"artifactd {__version__} with the embedded settings; data in {Path('var').absolute()}",
        )
        self.assertEqual(where, "clients reach it at http://127.0.0.1:5000")
        self.assertIn("everybody who reaches it may pull, and clients on this machine may", who)
        self.assertEqual(
            then,
            "next: docker tag IMAGE 127.0.0.1:5000/IMAGE, then docker push 127.0.0.1:5000/IMAGE",
        )

    def test_with_rules_it_says_that_they_decide_and_how_to_log_in(self) -> None:
        settings = Settings(
            access=(AccessSettings(who=(), may=(), images=()),),
            external_url=Origin("https://registry.example.com"),
        )
        file = Path("/srv/artifactd.toml")
        what, where, who, then = greeting(settings, file, [LOOPBACK], read_only=True)
        self.assertIn("settings of /srv/artifactd.toml", what)
        self.assertIn("https://registry.example.com, http://127.0.0.1:5000", where)
        self.assertIn("[[access]] says who may pull or push; its rules: 1", who)
        self.assertIn("the read-only mode is on: nobody may push", who)
        self.assertEqual(then, "next: docker login registry.example.com")

    def test_a_cache_alone_says_how_clients_are_set_up(self) -> None:
        settings = Settings(default=DefaultSettings(push="", pull=("docker.io",)))
        *_, then = greeting(settings, None, [LOOPBACK], read_only=False)
        self.assertEqual(
            then, "next: artifactd mirror-config docker, containerd, k3s, podman or crio"
        )

    def test_urls_are_such_that_clients_can_use_them(self) -> None:
        name = socket.gethostname()
        for description, address, url in (
            ("tcp:5000", IPv4Address("TCP", "0.0.0.0", 5000), f"http://{name}:5000"),
            ("artifactd-tls:5443", IPv6Address("TCP", "::", 5443), f"https://{name}:5443"),
            ("tcp:80", IPv6Address("TCP", "::1", 80), "http://[::1]:80"),
            ("unix:/run/a", UNIXAddress("/run/a"), "unix:/run/a"),
        ):
            self.assertEqual(url_of(description, address), url)
