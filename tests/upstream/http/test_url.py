"""URLs as they are put on the wire, and redirects."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from artifactd.upstream.http.errors import Unreachable
from artifactd.upstream.http.url import LIMIT, Target, Trail, is_loopback


class TargetTests(TestCase):
    def test_path_and_query_stay_as_they_were_written(self) -> None:
        for resource in (
            "/a%2fb//c/../%7e?X-Sig=a%2Bb%2F=&&z",
            "//docker/registry?",
            "/x;?a=[1]|2",
            "/?next=http://other.example/?q",
        ):
            target = Target.parse(f"https://cdn.example{resource}")
            self.assertEqual(target.resource, resource)
            self.assertEqual(target.url, f"https://cdn.example{resource}")

    def test_a_url_has_a_path_and_no_fragment(self) -> None:
        self.assertEqual(Target.parse("http://h").url, "http://h/")
        self.assertEqual(Target.parse("http://h?q#f").url, "http://h/?q")
        self.assertEqual(Target.parse("http://h/#?q").url, "http://h/")

    def test_the_host_is_in_lower_case_and_the_schemes_port_left_out(self) -> None:
        self.assertEqual(
            Target.parse("HTTPS://Registry.Example:443/V2/").authority, "registry.example"
        )
        self.assertEqual(Target.parse("http://h:8080/").authority, "h:8080")
        self.assertEqual(Target.parse("http://h:/").port, 80)
        self.assertEqual(Target.parse("https://h:80/").authority, "h:80")

    def test_an_ipv6_address_is_bracketed_where_a_port_may_follow(self) -> None:
        target = Target.parse("http://[0:0::1]:5000/v2/")
        self.assertEqual((target.host, target.port), ("::1", 5000))
        self.assertEqual(target.url, "http://[::1]:5000/v2/")

    def test_what_may_not_be_in_a_url_is_encoded(self) -> None:
        self.assertEqual(Target.parse(" http://h/a b\r\nc/é ").resource, "/a%20b%0D%0Ac/%C3%A9")

    def test_other_urls_are_refused_without_repeating_them(self) -> None:
        for url in (
            "",
            "/path",
            "ftp://secret/",
            "http:secret",
            "http:///secret",
            "http://user:secret@host/",
            "http://secret:0/",
            "http://secret:65536/",
            "http://secret:x/",
            "http://[secret]/",
            "http://[::1/secret",
            "http://-secret/",
            "http://sec\\ret@host/",
            "http://secrét/",
        ):
            error = self.assertRaises(ValueError, Target.parse, url)
            self.assertNotIn("secret", str(error))

    def test_a_location_may_be_relative(self) -> None:
        base = Target.parse("https://registry.example:5000/v2/blobs/1?token=x")
        for reference, url in (
            ("/other?q", "https://registry.example:5000/other?q"),
            ("2", "https://registry.example:5000/v2/blobs/2"),
            ("../x", "https://registry.example:5000/v2/x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("http://cdn.example//x?", "http://cdn.example//x?"),
            ("a b", "https://registry.example:5000/v2/blobs/a%20b"),
        ):
            self.assertEqual(base.join(reference).url, url)

    def test_a_location_beyond_ascii_keeps_its_bytes(self) -> None:
        base = Target.parse("https://registry.example/v2/")
        for text in ("/\xc3\xa9?\xff", "https://registry.example/\xc3\xa9?\xff"):  # ISO 8859-1
            self.assertEqual(base.join(text).url, "https://registry.example/%C3%A9?%FF")

    def test_loopback_is_known_by_address_and_by_name(self) -> None:
        for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "localhost."):
            self.assertTrue(is_loopback(host), host)
        for host in ("128.0.0.1", "::2", "localhost.example", "127.0.0.1.example"):
            self.assertFalse(is_loopback(host), host)


HEADERS = {"authorization": "Bearer t", "Range": "bytes=5-", "If-Range": '"e"', "Accept": "a/b"}
WITHOUT = {name: value for name, value in HEADERS.items() if name != "authorization"}


def trail(url: str = "https://registry.example/v2/") -> Trail:
    return Trail(Target.parse(url), HEADERS)


class TrailTests(TestCase):
    def test_authorization_goes_along_within_an_origin(self) -> None:
        for url, location in (
            ("/v2/", "/v2/other"),
            ("/v2/", "https://REGISTRY.example:443/v2/other"),
            ("/v2/", "?page=2"),
            ("/v2/x/tags/list", "/team/v2/x/tags/list?n=5&last=token"),
            ("/token", "/auth/token?scope=x"),
            ("/keys", "/other?sig=x"),
        ):
            way = trail(f"https://registry.example{url}")
            way.follow(location)
            self.assertEqual(way.headers, HEADERS, (url, location))

    def test_a_redirect_to_storage_loses_authorization_on_the_same_host_too(self) -> None:
        blob = "https://registry.example/v2/app/blobs/sha256:1"
        for location in (
            "/data/sha256:1",
            "/data/v2?x=/v2/",
            "https://registry.example/bucket/1?X-Amz-Algorithm=AWS4&X-Amz-Signature=abc",
            "?X-Amz-Signature=abc",
            "/v2/app/blobs/sha256:1?AWSAccessKeyId=x&Expires=1&Signature=abc",
            "/v2/app/blobs/sha256:1?se=2026&sig=abc",
            "/v2/app/blobs/sha256:1?X-Goog-Credential=x",
            "/v2/app/blobs/sha256:1?token=abc",
        ):
            way = trail(blob)
            way.follow(location)
            self.assertEqual(way.headers, WITHOUT, location)
            way.follow("/v2/app/blobs/again")
            self.assertEqual(way.headers, WITHOUT, location)

    def test_a_redirect_to_another_host_loses_authorization(self) -> None:
        for location in (
            "https://cdn.example/v2/",
            "https://registry.example:8443/v2/",
            "https://registry.example.evil.example/",
            "//cdn.registry.example/",
        ):
            way = trail()
            way.follow(location)
            self.assertEqual(way.headers, WITHOUT)

    def test_a_redirect_from_http_to_https_loses_authorization(self) -> None:
        way = trail("http://registry.example/")
        way.follow("https://registry.example/")
        self.assertEqual(way.headers, WITHOUT)

    def test_authorization_does_not_come_back(self) -> None:
        way = trail()
        way.follow("https://cdn.example/")
        way.follow("https://registry.example/back")
        self.assertEqual(way.headers, WITHOUT)

    def test_https_never_becomes_http(self) -> None:
        error = self.assertRaises(Unreachable, trail().follow, "http://registry.example/x?sig=1")
        self.assertEqual(error.reason, "registry.example redirects from https to http")

    def test_a_circle_ends(self) -> None:
        way = trail()
        way.follow("/a")
        way.follow("/b")
        error = self.assertRaises(Unreachable, way.follow, "/v2/")
        self.assertIn("in a circle", error.reason)

    def test_a_redirect_to_itself_ends(self) -> None:
        self.assertRaises(Unreachable, trail().follow, "")
        self.assertRaises(Unreachable, trail().follow, "https://registry.example/v2/#f")

    def test_there_is_an_end_to_redirects(self) -> None:
        way = trail()
        for number in range(LIMIT):
            way.follow(f"/{number}")
        error = self.assertRaises(Unreachable, way.follow, "/more")
        self.assertIn(f"more than {LIMIT} times", error.reason)

    def test_a_redirect_has_to_lead_somewhere(self) -> None:
        for location in (None, "", "ftp://x/", "http://", "https://u:p@cdn.example/"):
            error = self.assertRaises(Unreachable, trail().follow, location)
            self.assertTrue(error.reason.startswith("registry.example redirects "), error.reason)
