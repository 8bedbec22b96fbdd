"""Logging in and out of the page, its cookie, and its forms."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import bcrypt
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactd.auth.bearer import Account, Directory
from artifactd.auth.identity import Identity, Kind
from artifactd.auth.sessions import LIFETIME, Sessions
from artifactd.catalog import sessions as ended
from artifactd.catalog.database import Database
from artifactd.catalog.sessions import SessionCatalog
from artifactd.oci.errors import Unauthorized
from tests.api.guarded import basic
from tests.api.served import Served
from tests.catalog.fixture import REACTOR, new_catalog
from tests.page.case import GuardedPageCase, Visitor, text, words
from tests.process import Answer
from tests.programs import wait_for

KEY = bytes(32)


def users_of(registry: Served) -> Path:
    """The htpasswd file of ``registry``."""
    return Path(registry.service._settings.auth.htpasswd)


def links_of_form(answer: Answer) -> str:
    """Where the login form of a page leads afterwards."""
    (action,) = re.findall(r'action="(/ui/login[^"]*)"', text(answer))
    return parse_qs(urlsplit(unescape(action)).query)["next"][0]


class LoginTests(GuardedPageCase):
    async def test_a_user_logs_in_and_out(self) -> None:
        browser = await self.as_user("alice")
        self.assertIn("alice", words(await browser.get("/")))
        before = dict(browser.cookies)
        answer = await browser.post("/ui/logout", {})
        self.assertEqual((answer.status, answer.header("Location")), (303, "/"))
        self.assertEqual(browser.cookies, {})
        self.assertNotIn("alice", words(await browser.get("/")))
        # The cookie of before is worth nothing, here and in another process.
        thief = Visitor(self.registry, cookies=before)
        self.assertNotIn("alice", words(await thief.get("/")))
        self.assertIn("alice", words(await (await self.as_user("alice")).get("/")))

    async def test_the_cookie_is_for_this_page_alone(self) -> None:
        answer = await self.browser.log_in("alice")
        cookie = answer.header("Set-Cookie") or ""
        name, _, rest = cookie.partition("=")
        self.assertEqual(name, f"artifactd-{self.registry.port}")
        self.assertEqual(
            rest.split("; ")[1:], ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Lax"]
        )
        self.assertNotIn("alice", rest)

    async def test_a_login_makes_a_new_session(self) -> None:
        await self.browser.get("/ui/login")
        before, token = dict(self.browser.cookies), await self.browser.token()
        await self.browser.log_in("alice")
        self.assertNotEqual(self.browser.cookies, before)
        self.assertNotEqual(await self.browser.token(), token)

    async def test_a_wrong_password_and_an_unknown_name_are_told_alike(self) -> None:
        pages = []
        for name in ("alice", "mallory"):
            answer = await self.browser.log_in(name, "wrong")
            self.assertEqual(answer.status, 403)
            self.assertIsNone(answer.header("WWW-Authenticate"))
            pages.append(words(answer))
        self.assertEqual(*pages)
        self.assertIn("wrong name or password", pages[0])

    async def test_what_basic_can_not_carry_is_wrong(self) -> None:
        for name, password in (("", "x"), ("a:b", "x"), ("alice", "al\0ice"), ("a" * 300, "x")):
            answer = await self.browser.log_in(name, password)
            self.assertEqual(answer.status, 403, (name, password))

    async def test_failures_count_as_those_by_basic_do(self) -> None:
        statuses = []
        for _ in range(12):
            answer = await self.browser.log_in("alice", "wrong")
            statuses.append(answer.status)
        self.assertEqual(statuses[0], 403)
        self.assertEqual(statuses[-1], 429)
        self.assertIsNotNone(answer.header("Retry-After"))
        self.assertIn("too many failed logins", words(answer))
        self.assertEqual(await self.status("GET", "/v2/", "alice"), 429)
        self.assertEqual((await self.browser.log_in("alice")).status, 429)

    async def test_a_login_leads_to_where_it_was_asked_for_and_nowhere_else(self) -> None:
        for wanted, location in (
            ("/ui/image/local/team/app", "/ui/image/local/team/app"),
            ("/?q=x", "/?q=x"),
            ("https://evil.example/", "/"),
            ("//evil.example/", "/"),
            ("/\\evil.example/", "/"),
            ("/ui/\\evil", "/"),
            ("/ui/a\r\nSet-Cookie: x=y", "/"),
            ("/v2/", "/"),
        ):
            browser = Visitor(self.registry)
            answer = await browser.log_in("alice", following=wanted)
            self.assertEqual((answer.status, answer.header("Location")), (303, location))
            answer = await browser.get(f"/ui/login?next={quote(wanted)}")
            self.assertNotIn("evil", text(answer))
            # A mistyped password does not make forget it.
            answer = await browser.log_in("alice", "wrong", following=wanted)
            self.assertEqual(links_of_form(answer), location)

    async def test_a_robot_logs_in_by_its_name_and_secret(self) -> None:
        self.assertEqual((await self.browser.log_in("robot+ci", "x")).status, 403)


class CookieTests(GuardedPageCase):
    async def test_no_api_knows_the_cookie(self) -> None:
        browser = await self.as_user("alice")
        await self.have("local/team/app")
        for path in (
            "/v2/",
            "/v2/local/team/app/tags/list",
            "/v2/_catalog",
            "/token?service=artifactd",
        ):
            answer = await browser.get(path)
            self.assertIn(answer.status, (401, 404), path)

    async def test_the_page_does_not_know_a_login_by_basic(self) -> None:
        answer = await self.browser.get("/", **basic("alice"))
        self.assertEqual(answer.status, 200)
        self.assertNotIn("alice", words(answer))

    async def test_one_that_was_changed_is_nobodys(self) -> None:
        browser = await self.as_user("alice")
        ((name, sealed),) = browser.cookies.items()
        for wrong in (sealed[:-1], sealed[1:], sealed.swapcase(), "", "x", "x" * 5000, "ü"):
            browser.cookies = {name: wrong}
            answer = await browser.get("/")
            self.assertEqual(answer.status, 200)
            self.assertNotIn("alice", words(answer))

    async def test_another_process_on_the_data_knows_it_and_another_registry_does_not(self) -> None:
        browser = await self.as_user("alice")
        (sealed,) = browser.cookies.values()
        other = self.start()
        stranger = Visitor(other, cookies={f"artifactd-{other.port}": sealed})
        self.assertNotIn("alice", words(await stranger.get("/")))
        toml = f"[auth]\nhtpasswd = {json.dumps(str(users_of(self.registry)))}\n{self.rules}"
        same = Served.start(self, toml, data=self.registry.data)
        friend = Visitor(same, cookies={f"artifactd-{same.port}": sealed})
        self.assertIn("alice", words(await friend.get("/")))

    async def test_a_session_ends_when_the_password_changes_or_the_user_goes(self) -> None:
        users = users_of(self.registry)
        before = users.read_text()
        others = "".join(
            each for each in before.splitlines(keepends=True) if not each.startswith("alice:")
        )
        changed = f"alice:{bcrypt.hashpw(b'new', bcrypt.gensalt(4)).decode()}\n"
        for after in (others + changed, others):
            browser = await self.as_user("alice")
            users.write_text(after)

            async def is_over(browser: Visitor = browser) -> bool:
                return "alice" not in words(await browser.get("/"))

            await wait_for(is_over)
            users.write_text(before)
            await wait_for(self.alice_is_back)

    async def alice_is_back(self) -> bool:
        return await self.status("GET", "/v2/", "alice") == 200


class ProxiedTests(GuardedPageCase):
    top = 'trusted_proxies = ["127.0.0.1"]'

    async def test_behind_tls_the_cookie_goes_by_tls_alone(self) -> None:
        self.browser.host = "registry.example"
        answer = await self.browser.get("/ui/login", X_Forwarded_Proto="https")
        cookie = answer.header("Set-Cookie") or ""
        self.assertTrue(cookie.startswith(f"__Host-artifactd-{self.registry.port}="), cookie)
        self.assertTrue(cookie.endswith("; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax; Secure"))
        answer = await self.browser.get("/ui/login")
        self.assertNotIn("Secure", answer.header("Set-Cookie") or "")


class FormTests(GuardedPageCase):
    async def test_a_form_of_another_page_does_nothing(self) -> None:
        browser = await self.as_user("alice")
        token = await browser.token()
        before = self.state()
        for headers in (
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Sec_Fetch_Site": "none"},
            {"Sec_Fetch_Site": "", "Origin": "https://evil.example"},
            {"Sec_Fetch_Site": "", "Origin": "null"},
            {"Sec_Fetch_Site": "", "Origin": f"http://127.0.0.1:{self.registry.port + 1}"},
        ):
            answer = await browser.post("/ui/logout", {}, token=token, **headers)
            self.assertEqual(answer.status, 403, headers)
            self.assertIn("another web page", words(answer))
            self.assertIsNone(answer.header("Set-Cookie"))
        self.assertEqual(self.state(), before)
        self.assertIn("alice", words(await browser.get("/")))

    async def test_a_form_without_the_token_of_the_session_does_nothing(self) -> None:
        browser, other = await self.as_user("alice"), await self.as_user("bob")
        for token in ("", "x", "ü", await other.token(), await self.browser.token()):
            answer = await browser.post("/ui/logout", {}, token=token)
            self.assertEqual(answer.status, 403)
            self.assertIn("out of date", words(answer))
        self.assertIn("alice", words(await browser.get("/")))
        answer = await Visitor(self.registry).post("/ui/login", {"user": "alice"}, token="x")
        self.assertEqual(answer.status, 403)

    async def test_an_old_browser_that_sends_neither_header_has_the_token(self) -> None:
        browser = await self.as_user("alice")
        answer = await browser.post("/ui/logout", {}, Sec_Fetch_Site="", Origin="")
        self.assertEqual(answer.status, 303)

    async def test_what_is_no_form_is_refused(self) -> None:
        browser = await self.as_user("alice")
        answer = await browser.post("/ui/logout", {}, Content_Type="text/plain")
        self.assertEqual(answer.status, 400)
        answer = await browser.post("/ui/logout", [("x", "y")] * 600)
        self.assertEqual(answer.status, 400)
        answer = await browser.post("/ui/logout", {"x": "y" * 70_000})
        self.assertEqual(answer.status, 413)


class SealTests(TestCase):
    def setUp(self) -> None:
        self.now = 1_000_000.0
        self.database = Database(new_catalog(self), REACTOR, now=lambda: self.now)
        self.addCleanup(self.database.close)
        self.sessions = self.sessions_of(None)

    def sessions_of(self, accounts: Directory | None) -> Sessions:
        return Sessions(KEY, accounts, SessionCatalog(self.database), lambda: self.now)

    def test_a_session_ends_by_itself(self) -> None:
        sealed = self.sessions.seal(self.sessions.visitor())
        self.now += LIFETIME - 1
        self.assertIsNotNone(self.sessions.open(sealed))
        self.now += 1
        self.assertIsNone(self.sessions.open(sealed))
        self.now -= LIFETIME + 1  # a clock that was set back makes none longer
        self.assertIsNone(self.sessions.open(sealed))

    def test_nobody_begins_one_without_an_account(self) -> None:
        beginning = Deferred.fromCoroutine(self.sessions.begin(Identity(Kind.USER, "alice")))
        self.failureResultOf(beginning, Unauthorized)

    async def test_those_that_were_ended_are_forgotten_when_they_would_have_ended(self) -> None:
        first, second = self.sessions.visitor(), self.sessions.visitor()
        await self.sessions.end(first)
        self.assertTrue(await self.sessions.ended.is_ended(first.id, first.until))
        self.now += LIFETIME
        await self.sessions.end(second)
        self.assertFalse(await self.sessions.ended.is_ended(first.id, first.until))
        self.assertTrue(await self.sessions.ended.is_ended(second.id, second.until))

    async def test_who_logs_in_and_out_again_and_again_leaves_few_rows_and_no_session(self) -> None:
        self.patch(ended, "MOST", 5)
        sessions = self.sessions_of(_Everybody())
        alice, bob = (Identity(Kind.USER, name) for name in ("alice", "bob"))
        other = await sessions.begin(bob)
        before = []
        for _ in range(20):
            before.append(await sessions.begin(alice))
            self.now += 1
            await sessions.end(before[-1])
        (rows,) = await self.database.read(
            lambda db: db.execute("SELECT count(*) FROM ended_session").fetchone()
        )
        self.assertLessEqual(rows, 6)
        self.assertEqual([await sessions.identity(each) for each in before], [None] * 20)
        self.assertEqual(await sessions.identity(other), bob)
        self.assertEqual(await sessions.identity(await sessions.begin(alice)), alice)


class _Everybody(Directory):
    """A directory in which everybody has an account."""

    def __init__(self) -> None:
        pass

    async def current(self, identity: Identity) -> Account:
        return Account(identity)
