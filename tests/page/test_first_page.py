"""What all pages have in common: who gets them, header fields, scripts and styles."""

from __future__ import annotations

import re

from tests.page.case import HTML, GuardedPageCase, PageCase, Visitor, text

JSON = {"Accept": "application/json"}


class NegotiationTests(PageCase):
    async def test_a_browser_gets_html_and_other_clients_what_they_always_got(self) -> None:
        answer = await self.browser.get("/")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.header("Content-Type"), "text/html; charset=utf-8")
        for accept in (
            "",
            "*/*",
            "application/json",
            "text/*",
            "text/html;q=0",
            "application/json, text/html;q=0.5",
        ):
            headers = {"Accept": accept} if accept else {}
            answer = await self.registry.request("GET", "/", headers=headers)
            self.assert_error(answer, 404, "NAME_UNKNOWN")

    async def test_the_api_answers_json_whatever_is_accepted(self) -> None:
        for status, path in ((200, "/v2/"), (404, "/v2/nothing/tags/list"), (404, "/nothing")):
            answer = await self.registry.request("GET", path, headers=HTML)
            self.assertEqual(answer.status, status)
            self.assertEqual(answer.header("Content-Type"), "application/json")

    async def test_a_page_that_is_not_there_is_told_in_html(self) -> None:
        answer = await self.browser.get("/ui/nothing")
        self.assertEqual(answer.status, 404)
        self.assertIn("there is no such page", text(answer))
        answer = await self.registry.request("PUT", "/ui/login", b"x")
        allowed = set((answer.header("Allow") or "").split(", "))
        self.assertEqual((answer.status, allowed), (405, {"GET", "HEAD", "POST"}))

    async def test_a_host_that_is_none_gets_it_too(self) -> None:
        for host in ("", "(a)", "[1]", "[::::]:5000", "[192.0.2.9]", "[v1.a]"):
            answer = await self.registry.request("GET", "/", headers={**HTML, "Host": host})
            self.assertEqual(answer.status, 200, host)

    async def test_head_has_no_body(self) -> None:
        answer = await self.registry.request("HEAD", "/", headers=HTML)
        self.assertEqual((answer.status, answer.body), (200, b""))


class OffTests(PageCase):
    toml = "page = false"

    async def test_without_the_page_everything_is_as_before(self) -> None:
        for path in ("/", "/ui/login", "/ui/static/page.css"):
            self.assert_error(await self.browser.get(path), 404, "NAME_UNKNOWN")


class HeaderTests(GuardedPageCase):
    top = 'cors_origins = ["https://ui.example.com"]'

    async def test_every_answer_of_the_page_forbids_what_it_does_not_need(self) -> None:
        style = re.findall(r'href="(/ui/static/[^"]*css)"', text(await self.browser.get("/")))[0]
        for path in ("/", "/ui/login", "/ui/nothing", style):
            answer = await self.browser.get(path, Origin="https://ui.example.com")
            policy = (answer.header("Content-Security-Policy") or "").split("; ")
            self.assertIn("default-src 'none'", policy)
            self.assertIn("frame-ancestors 'none'", policy)
            self.assertIn("base-uri 'none'", policy)
            self.assertNotIn("unsafe", str(policy))
            self.assertEqual(answer.header("X-Content-Type-Options"), "nosniff")
            self.assertEqual(answer.header("Referrer-Policy"), "same-origin")
            self.assertEqual(answer.header("Cross-Origin-Resource-Policy"), "same-origin")
            self.assertIsNone(answer.header("Access-Control-Allow-Origin"), path)

    async def test_no_other_page_may_ask_before_it_sends_a_form(self) -> None:
        asking = {"Origin": "https://ui.example.com", "Access-Control-Request-Method": "POST"}
        for path, status in (("/v2/", 204), ("/ui/login", 405)):
            answer = await self.registry.request("OPTIONS", path, headers=asking)
            self.assertEqual(answer.status, status)

    async def test_pages_are_not_kept_and_what_depends_on_the_cookie_says_so(self) -> None:
        answer = await self.browser.get("/")
        self.assertEqual(answer.header("Cache-Control"), "no-store")
        self.assertEqual(answer.header("Vary"), "Cookie")

    async def test_nothing_is_inline_and_nothing_comes_from_elsewhere(self) -> None:
        for path in ("/", "/ui/login", "/ui/nothing"):
            page = text(await self.browser.get(path))
            self.assertNotRegex(page, r"<style|\sstyle=|\son[a-z]+=|javascript:")
            for script in re.findall(r"<script[^>]*>[^<]*</script>", page):
                self.assertRegex(script, r'^<script src="/ui/static/[^"]+" defer></script>$')
            for link in re.findall(r'(?:href|src|action)="([^"]*)"', page):
                self.assertRegex(link, "^(/|#)")

    async def test_scripts_and_styles_are_named_by_their_content_and_kept_for_ever(self) -> None:
        page = text(await self.browser.get("/"))
        kinds = {
            "css": "text/css; charset=utf-8",
            "js": "text/javascript; charset=utf-8",
            "svg": "image/svg+xml",
        }
        for name, kind in kinds.items():
            (path,) = set(re.findall(rf'"(/ui/static/\w+\.[0-9a-f]{{16}}\.{name})"', page))
            answer = await self.browser.get(path)
            self.assertEqual((answer.status, answer.header("Content-Type")), (200, kind))
            self.assertIn("immutable", answer.header("Cache-Control") or "")
            self.assertIsNone(answer.header("Vary"))
            answer = await self.browser.get(path.replace(".", ".0", 1))
            self.assertEqual(answer.status, 404)

    async def test_one_on_another_name_is_asked_by_its_own(self) -> None:
        elsewhere = Visitor(self.registry, host="registry.example")
        self.assertEqual((await elsewhere.get("/")).status, 200)

    async def test_one_on_a_port_that_there_can_not_be_is_refused(self) -> None:
        for path in ("/", "/ui/login"):
            answer = await self.registry.request("GET", path, None, {**HTML, "Host": "a:65536"})
            self.assertEqual(answer.status, 400)
