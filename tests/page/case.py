"""A browser without a screen: it keeps cookies, and sends forms as a browser does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

from attrs import define, field

from tests.api.case import ApiTestCase
from tests.api.guarded import GuardedCase
from tests.api.served import Served
from tests.process import Answer

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@define
class Visitor:
    """
    A browser that has the registry open.

    :ivar cookies: by their names.
    :ivar host: the name by which it reaches the registry.
    """

    registry: Served
    host: str = "127.0.0.1"
    cookies: dict[str, str] = field(factory=dict)

    @property
    def origin(self) -> str:
        """The origin of the registry's page."""
        return f"http://{self.host}:{self.registry.port}"

    async def get(self, path: str, **headers: str) -> Answer:
        """Load a page; nothing is followed."""
        return await self._ask("GET", path, None, headers)

    async def post(
        self,
        path: str,
        fields: Sequence[tuple[str, str]] | dict[str, str],
        *,
        token: str | None = None,
        **headers: str,
    ) -> Answer:
        """
        Send a form as the page's own, with a fresh token, or the one given.

        :param headers: in place of those that a browser sends, with ``_`` for ``-``; ``""``: none.
        """
        if token is None:
            token = await self.token()
        pairs = list(fields.items()) if isinstance(fields, dict) else list(fields)
        body = urlencode([("token", token), *pairs]).encode()
        usual = {
            "Origin": self.origin,
            "Sec_Fetch_Site": "same-origin",
            "Content_Type": "application/x-www-form-urlencoded",
        }
        return await self._ask("POST", path, body, {**usual, **headers})

    async def token(self, *paths: str) -> str:
        """The token of the first form on one of these pages, or on those that everybody sees."""
        for path in paths or ("/", "/ui/login"):
            found = re.search(r'name="token" value="(\w+)"', text(await self.get(path)))
            if found is not None:
                return found[1]
        raise AssertionError(f"no form on {paths}")

    async def log_in(self, name: str, password: str | None = None, following: str = "") -> Answer:
        """Log in by the form, to get to ``following``."""
        given = f"{name}!" if password is None else password
        query = f"?next={quote(following, safe='')}" if following else ""
        return await self.post(f"/ui/login{query}", {"user": name, "password": given})

    async def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> Answer:
        sent = {"Host": f"{self.host}:{self.registry.port}", **HTML}
        sent |= {name.replace("_", "-"): each for name, each in headers.items()}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={each}" for name, each in self.cookies.items())
        wanted = {name: each for name, each in sent.items() if each}
        answer = await self.registry.request(method, path, body, wanted)
        for each in answer.headers.get_all("Set-Cookie", []):
            name, _, rest = each.partition("=")
            content = rest.partition(";")[0]
            if content:
                self.cookies[name] = content
            else:
                self.cookies.pop(name, None)
        return answer


def text(answer: Answer) -> str:
    """The HTML of an answer."""
    return answer.body.decode()


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def words(answer: Answer) -> str:
    """What a person reads of an answer, with single spaces."""
    parser = _Words()
    parser.feed(text(answer))
    return " ".join(" ".join(parser.words).split())


def links(answer: Answer) -> list[str]:
    """Where the links of an answer lead."""
    return [unescape(each) for each in re.findall(r'<a [^>]*href="([^"]*)"', text(answer))]


class PageCase(ApiTestCase):
    """A registry without accounts, with a browser on the same machine."""

    def setUp(self) -> None:
        super().setUp()
        self.browser = Visitor(self.registry)


class GuardedPageCase(GuardedCase):
    """The users of :class:`GuardedCase`, with a browser that nobody has logged in with yet."""

    def setUp(self) -> None:
        super().setUp()
        self.browser = Visitor(self.registry)

    async def as_user(self, name: str) -> Visitor:
        """A browser in which ``name`` has logged in."""
        browser = Visitor(self.registry)
        answer = await browser.log_in(name)
        self.assertEqual((answer.status, answer.header("Location")), (303, "/"), answer.body)
        return browser
