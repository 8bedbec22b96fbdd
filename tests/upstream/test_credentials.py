"""Who may be asked for a token, and who is shown the credentials."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.http.url import Target


class DisclosureTests(TestCase):
    def disclosure(self, upstream: str, *auth_hosts: str) -> Disclosure:
        return Disclosure(Target.parse(upstream), frozenset(auth_hosts))

    def assert_shown(self, shown: bool, upstream: str, realm: str, *auth_hosts: str) -> None:
        disclosure = self.disclosure(upstream, *auth_hosts)
        self.assertEqual(shown, disclosure.shows(Target.parse(realm)), (upstream, realm))

    def test_any_realm_with_tls_may_be_asked(self) -> None:
        disclosure = self.disclosure("https://reg.example")
        self.assertTrue(disclosure.asks(Target.parse("https://elsewhere.example/token")))

    def test_a_realm_without_tls_may_be_asked_for_an_upstream_without_tls_only(self) -> None:
        realm = Target.parse("http://reg.example/token")
        self.assertFalse(self.disclosure("https://reg.example").asks(realm))
        self.assertTrue(self.disclosure("http://reg.example").asks(realm))

    def test_the_upstreams_own_host_is_shown_them_on_any_port(self) -> None:
        self.assert_shown(True, "https://reg.example:5000", "https://REG.example/token")
        self.assert_shown(True, "https://reg.example", "https://reg.example:5001/auth")

    def test_docker_hubs_auth_host_is_shown_docker_hubs(self) -> None:
        for upstream in ("registry-1.docker.io", "docker.io", "index.docker.com"):
            self.assert_shown(True, f"https://{upstream}", "https://auth.docker.io/token")

    def test_docker_hubs_auth_host_is_not_shown_anybody_elses(self) -> None:
        for upstream in ("reg.example", "notdocker.io", "docker.io.example"):
            self.assert_shown(False, f"https://{upstream}", "https://auth.docker.io/token")

    def test_hosts_of_the_settings_are_shown_them(self) -> None:
        self.assert_shown(True, "https://reg.example", "https://auth.example/t", "auth.example")
        self.assert_shown(True, "https://reg.example", "https://a.example:8/t", "a.example:8")
        self.assert_shown(True, "https://reg.example", "https://a.example/t", "a.example:443")
        self.assert_shown(True, "https://reg.example", "https://[::1]:5/t", "[::1]:5")

    def test_nobody_else_is(self) -> None:
        for realm in (
            "https://evil.example/token",
            "https://reg.example.evil.example/token",
            "https://sub.reg.example/token",
            "https://a.example:9/token",
        ):
            self.assert_shown(False, "https://reg.example", realm, "auth.example", "a.example:8")

    def test_nobody_is_without_tls_unless_the_upstream_has_none(self) -> None:
        self.assert_shown(False, "https://reg.example", "http://reg.example/t", "reg.example")
        self.assert_shown(True, "http://reg.example:5000", "http://reg.example:5001/t")


class CredentialsTests(TestCase):
    def test_they_are_sent_as_utf_8(self) -> None:
        self.assertEqual("Basic dGVzdDoxMjPCow==", Credentials("test", "123£").basic())

    def test_their_text_does_not_tell_the_password(self) -> None:
        self.assertNotIn("hunter2", repr(Credentials("bob", "hunter2")))
