"""Web pages of other origins (CORS), and absolute ``Location``s."""

from __future__ import annotations

import json

from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase
from tests.api.guarded import GuardedCase

PAGE = "https://ui.example.com"
OTHER = "https://evil.example"
BLOB = b"content" * 100_000
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}


class CorsTests(ApiTestCase):
    toml = f'cors_origins = ["{PAGE}"]'

    async def test_a_named_page_reads_answers_and_errors_and_uses_the_login(self) -> None:
        await self.registry.push_image("hello", "v1", BLOB)
        for status, path in (
            (200, "/v2/"),
            (200, "/v2/hello/manifests/v1"),
            (404, "/v2/hello/manifests/v2"),
            (404, "/nothing"),
        ):
            answer = await self.registry.request("GET", path, headers={"Origin": PAGE})
            self.assertEqual(answer.status, status)
            self.assertEqual(answer.header("Access-Control-Allow-Origin"), PAGE)
            self.assertEqual(answer.header("Access-Control-Allow-Credentials"), "true")
            exposed = answer.header("Access-Control-Expose-Headers") or ""
            self.assertLessEqual(
                {"Docker-Content-Digest", "Link", "WWW-Authenticate"}, set(exposed.split(", "))
            )
            self.assertEqual(answer.header("Vary"), "Origin")

    async def test_another_page_does_not_and_a_cache_tells_them_apart(self) -> None:
        for headers in ({"Origin": OTHER}, {"Origin": "null"}, {"Origin": PAGE + ":8443"}, {}):
            answer = await self.registry.request("GET", "/v2/", headers=headers)
            self.assertEqual(answer.status, 200)
            self.assertIsNone(answer.header("Access-Control-Allow-Origin"), headers)
            self.assertIsNone(answer.header("Access-Control-Allow-Credentials"))
            self.assertEqual(answer.header("Vary"), "Origin")

    async def test_its_browser_may_ask_first_what_it_may_send(self) -> None:
        for path in ("/v2/", "/v2/hello/manifests/v1", "/v2/hello/blobs/uploads/", "/token"):
            answer = await self.registry.request("OPTIONS", path, headers=PREFLIGHT)
            self.assertEqual((answer.status, answer.body), (204, b""), path)
            self.assertEqual(answer.header("Access-Control-Allow-Origin"), PAGE)
            methods = (answer.header("Access-Control-Allow-Methods") or "").split(", ")
            self.assertLessEqual({"GET", "HEAD", "PUT", "PATCH", "POST", "DELETE"}, set(methods))
            fields = (answer.header("Access-Control-Allow-Headers") or "").split(", ")
            self.assertLessEqual({"Authorization", "Content-Type", "Range"}, set(fields))
            self.assertEqual(answer.header("Access-Control-Max-Age"), "3600")

    async def test_that_of_another_page_is_refused_as_a_method_that_is_not_there(self) -> None:
        headers = {**PREFLIGHT, "Origin": OTHER}
        answer = await self.registry.request("OPTIONS", "/v2/", headers=headers)
        self.assert_error(answer, 405, "UNSUPPORTED")
        self.assertIsNone(answer.header("Access-Control-Allow-Origin"))

    async def test_without_authentication_a_page_changes_nothing(self) -> None:
        before = self.state()
        await self.refused(
            403, "DENIED", "POST", "/v2/hello/blobs/uploads/", None, {"Origin": PAGE}
        )
        self.assertEqual(self.state(), before)


class AnyPageTests(ApiTestCase):
    toml = 'cors_origins = ["*"]'

    async def test_every_page_reads_without_a_login(self) -> None:
        answer = await self.registry.request("GET", "/v2/", headers={"Origin": OTHER})
        self.assertEqual(answer.header("Access-Control-Allow-Origin"), "*")
        self.assertIsNone(answer.header("Access-Control-Allow-Credentials"))
        self.assertIsNone(answer.header("Vary"))


class NoPageTests(ApiTestCase):
    async def test_no_page_reads_unless_the_settings_name_it(self) -> None:
        answer = await self.registry.request("GET", "/v2/", headers={"Origin": PAGE})
        self.assertIsNone(answer.header("Access-Control-Allow-Origin"))
        self.assertIsNone(answer.header("Vary"))
        answer = await self.registry.request("OPTIONS", "/v2/", headers=PREFLIGHT)
        self.assert_error(answer, 405, "UNSUPPORTED")


class AbsoluteLocationTests(ApiTestCase):
    toml = "absolute_locations = true"

    async def test_each_location_is_a_url_that_the_client_can_use(self) -> None:
        here = f"http://127.0.0.1:{self.registry.port}"
        started = await self.accepted(202, "POST", "/v2/hello/blobs/uploads/", b"")
        where = started.header("Location") or ""
        self.assertTrue(where.startswith(f"{here}/v2/hello/blobs/uploads/"), where)
        path = where.removeprefix(here)
        status = await self.accepted(204, "GET", path)
        self.assertTrue((status.header("Location") or "").startswith(here))
        late = await self.registry.request(
            "PATCH", path, b"late", headers={"Content-Range": "5-8", "Content-Length": "4"}
        )
        self.assertEqual(late.status, 416)
        self.assertTrue((late.header("Location") or "").startswith(here))
        digest = Digest.of(BLOB)
        closed = await self.accepted(201, "PUT", f"{path}&digest={digest}", BLOB)
        self.assertEqual(closed.header("Location"), f"{here}/v2/hello/blobs/{digest}")

    async def test_it_has_the_host_that_the_client_has_asked(self) -> None:
        headers = {"Host": "registry.example:5000", "X-Forwarded-Proto": "https"}
        answer = await self.registry.request("GET", "/v2/", headers=headers)
        self.assertEqual(answer.status, 200)
        headers = {"Host": "registry.example:5000"}
        answer = await self.registry.request("POST", "/v2/a/blobs/uploads/", b"", headers)
        location = answer.header("Location") or ""
        self.assertTrue(location.startswith("http://registry.example:5000/v2/a/"), location)


class ExternalUrlLocationTests(GuardedCase):
    top = 'absolute_locations = true\nexternal_url = "https://registry.example"'

    async def test_it_is_under_the_url_of_the_settings(self) -> None:
        answer = await self.ask("POST", "/v2/team/app/blobs/uploads/", "alice", b"")
        self.assertEqual(answer.status, 202, answer)
        location = answer.header("Location") or ""
        self.assertTrue(location.startswith("https://registry.example/v2/team/app/"), location)


class GuardedPageTests(GuardedCase):
    top = f'cors_origins = ["{PAGE}"]'

    async def test_a_cache_tells_logins_and_pages_apart(self) -> None:
        await self.have("public/app")
        for status, path in ((200, "/v2/public/app/manifests/v1"), (401, "/v2/secret/tags/list")):
            answer = await self.ask("GET", path, None)
            self.assertEqual(answer.status, status)
            varies = answer.headers.get_all("Vary", [])
            self.assertEqual(sorted(varies), ["Authorization", "Origin"])

    async def test_another_page_changes_nothing_by_the_login_that_the_browser_has(self) -> None:
        await self.have("team/app")
        await self.ask("DELETE", "/api/v1/images/team/app/tags/v1", "alice")
        path = f"/v2/team/app/blobs/uploads/?digest={Digest.of(b'forged')}"
        changes = [("/api/v1/images/team/app/deleted", None), (path, b"forged")]
        before = self.state()
        for headers in (
            {"Origin": OTHER},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": OTHER},
        ):
            for path, body in changes:
                answer = await self.ask("POST", path, "alice", body, headers)
                self.assert_error(answer, 403, "DENIED")
        self.assertEqual(self.state(), before)
        own = f"http://127.0.0.1:{self.registry.port}"
        for headers in (
            {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"},
            {"Origin": own},
            {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        ):
            answer = await self.ask("POST", "/v2/team/app/blobs/uploads/", "alice", b"", headers)
            self.assertEqual(answer.status, 202, answer.body)


class GuardedAnyPageTests(GuardedCase):
    top = 'cors_origins = ["*"]'
    tokens = True

    async def test_a_page_that_is_not_named_has_to_bring_a_token(self) -> None:
        path, page = "/v2/team/app/blobs/uploads/", {"Origin": OTHER}
        self.assert_error(await self.ask("POST", path, "alice", b"", page), 403, "DENIED")
        asked = "/token?service=artifactd&scope=repository:team/app:pull,push"
        given = json.loads((await self.ask("GET", asked, "alice")).body)["token"]
        headers = {**page, "Authorization": f"Bearer {given}"}
        self.assertEqual((await self.ask("POST", path, None, b"", headers)).status, 202)
