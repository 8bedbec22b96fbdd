"""What the environment says of proxies."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from artifactd.kit.start import StartError
from artifactd.upstream.http.proxy import NoProxy, Proxies, Proxy
from artifactd.upstream.http.url import Target


class ProxiesTests(TestCase):
    def assert_proxy(self, environ: dict[str, str], url: str, proxy: str | None) -> None:
        found = Proxies.from_environ(environ).for_target(Target.parse(url))
        self.assertEqual(found and found.address.authority, proxy)

    def test_each_scheme_has_its_own_variable(self) -> None:
        environ = {"http_proxy": "http://plain:1", "https_proxy": "http://secure:2"}
        self.assert_proxy(environ, "http://h.example/", "plain:1")
        self.assert_proxy(environ, "https://h.example/", "secure:2")

    def test_without_variables_there_is_no_proxy(self) -> None:
        for environ in ({}, {"https_proxy": "", "all_proxy": ""}):
            self.assert_proxy(environ, "https://h.example/", None)

    def test_upper_case_counts_for_https_only(self) -> None:
        self.assert_proxy({"HTTPS_PROXY": "p:1"}, "https://h.example/", "p:1")
        self.assert_proxy({"HTTP_PROXY": "p:1"}, "http://h.example/", None)

    def test_lower_case_goes_before_upper_case_and_both_before_all(self) -> None:
        environ = {"https_proxy": "a", "HTTPS_PROXY": "b", "all_proxy": "c", "ALL_PROXY": "d"}
        for name, proxy in (("https_proxy", "a"), ("HTTPS_PROXY", "b"), ("all_proxy", "c")):
            self.assert_proxy(environ, "https://h.example/", proxy)
            del environ[name]
        self.assert_proxy(environ, "https://h.example/", "d")
        self.assert_proxy(environ, "http://h.example/", "d")

    def test_an_empty_variable_is_as_good_as_none(self) -> None:
        self.assert_proxy({"https_proxy": "", "all_proxy": "p"}, "https://h.example/", "p")

    def test_loopback_is_never_proxied(self) -> None:
        for host in ("127.0.0.1:5000", "127.1.2.3", "[::1]:5000", "localhost:5000"):
            self.assert_proxy({"all_proxy": "p:1"}, f"http://{host}/", None)

    def test_what_no_proxy_covers_is_not_proxied(self) -> None:
        for name in ("no_proxy", "NO_PROXY"):
            environ = {"all_proxy": "p:1", name: "internal.example"}
            self.assert_proxy(environ, "https://r.internal.example/", None)
            self.assert_proxy(environ, "https://r.example/", "p:1")

    def test_a_proxy_that_is_not_understood_stops_the_start_without_naming_its_password(
        self,
    ) -> None:
        for url in (
            "socks5://u:secret@p:1",
            "https://u:secret@p:1",
            "http://u:secret@",
            "http://u:secret@p:port",
            "http://u:secret@p q",
        ):
            error = self.assertRaises(StartError, Proxies.from_environ, {"https_proxy": url})
            self.assertIn("https_proxy", str(error))
            self.assertNotIn("secret", str(error))

    def test_a_variable_that_is_not_used_may_be_anything(self) -> None:
        environ = {"http_proxy": "p", "https_proxy": "p", "all_proxy": "socks5://p:1"}
        self.assert_proxy(environ, "http://h.example/", "p")


class ProxyTests(TestCase):
    def test_port_and_scheme_may_be_left_out(self) -> None:
        for url in ("p.example", "http://p.example", "http://p.example/", "P.example:80"):
            address = Proxy.parse(url).address
            self.assertEqual((address.host, address.port), ("p.example", 80))

    def test_user_and_password_become_basic_credentials(self) -> None:
        # The example of RFC 7617, 2.
        proxy = Proxy.parse("http://Aladdin:open%20sesame@p.example:3128")
        self.assertEqual(proxy.authorization, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
        self.assertEqual(proxy.address.authority, "p.example:3128")

    def test_a_password_may_hold_what_ends_a_login_if_it_is_encoded(self) -> None:
        self.assertEqual(Proxy.parse("u:p%40h@p.example").authorization, "Basic dTpwQGg=")

    def test_credentials_do_not_show(self) -> None:
        self.assertNotIn("QWxh", repr(Proxy.parse("http://Aladdin:open%20sesame@p.example")))


class NoProxyTests(TestCase):
    def assert_covers(self, rules: str, *hosts: str, port: int = 443) -> None:
        for host in hosts:
            self.assertTrue(NoProxy.parse(rules).covers(host, port), (rules, host))

    def assert_leaves(self, rules: str, *hosts: str, port: int = 443) -> None:
        for host in hosts:
            self.assertFalse(NoProxy.parse(rules).covers(host, port), (rules, host))

    def test_a_domain_is_it_and_all_below_it(self) -> None:
        for rule in ("corp.example", ".corp.example", "*.corp.example", "CORP.example."):
            self.assert_covers(rule, "corp.example", "r.corp.example", "a.b.corp.example")
            self.assert_leaves(rule, "mycorp.example", "corp.example.org", "example")

    def test_rules_are_separated_by_commas_or_spaces(self) -> None:
        self.assert_covers(
            "a.example, b.example  c.example,,", "a.example", "b.example", "c.example"
        )
        self.assert_leaves("a.example, b.example  c.example,,", "d.example", "10.0.0.1")

    def test_a_star_is_every_host(self) -> None:
        self.assert_covers("x,*", "a.example", "10.0.0.1", "fd00::1")

    def test_nothing_covers_nothing(self) -> None:
        self.assert_leaves("", "a.example", "10.0.0.1")
        self.assert_leaves(" , ", "a.example")

    def test_what_cant_be_understood_covers_nothing(self) -> None:
        for rule in (".", "*.", ":443", "http://a.example", "[fd00::1", "10.0.0.0/99"):
            self.assert_leaves(rule, "a.example", "10.0.0.1", "fd00::1")

    def test_addresses_and_networks_cover_addresses(self) -> None:
        self.assert_covers("10.0.0.1", "10.0.0.1")
        self.assert_covers("10.1.2.3/8", "10.255.0.1")
        self.assert_covers("fd00::/8", "fd12::1")
        self.assert_covers("[fd00::1]", "fd00::1")
        self.assert_covers("fd00::1", "fd00::1")
        self.assert_leaves("10.0.0.1,10.1.0.0/16,fd00::/8", "10.0.0.2", "10.2.0.1", "fe80::1")

    def test_an_address_is_not_the_end_of_a_name(self) -> None:
        self.assert_leaves("0.0.1", "10.0.0.1")
        self.assert_leaves("10.0.0.1", "x.10.0.0.1.example", "a.10.0.0.1")

    def test_a_port_narrows_a_rule(self) -> None:
        for rule, host in (
            ("r.example:5000", "r.example"),
            ("10.0.0.0/8:5000", "10.0.0.1"),
            ("[fd00::1]:5000", "fd00::1"),
            ("*:5000", "any.example"),
        ):
            self.assert_covers(rule, host, port=5000)
            self.assert_leaves(rule, host, port=443)

    def test_a_name_may_end_in_a_dot(self) -> None:
        self.assert_covers("corp.example", "r.corp.example.")
