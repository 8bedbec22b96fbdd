"""Where redirects lead, and what goes along."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from artifactd.upstream.http.errors import Unreachable
from artifactd.upstream.http.url import LIMIT, Target, Trail

HEADERS = {"authorization": "Bearer t", "Range": "bytes=5-", "If-Range": '"e"', "Accept": "a/b"}
WITHOUT = {name: value for name, value in HEADERS.items() if name != "authorization"}


def trail(url: str = "https://registry.example/v2/") -> Trail:
    return Trail(Target.parse(url), HEADERS)


class TrailTests(TestCase):
    def test_authorization_goes_along_within_an_origin(self) -> None:
        for location in ("/other", "https://REGISTRY.example:443/other", "?page=2"):
            way = trail()
            way.follow(location)
            self.assertEqual(way.headers, HEADERS)

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
