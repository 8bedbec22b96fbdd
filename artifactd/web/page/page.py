"""The routes of the page at ``/``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

from attrs import define, evolve, field
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from artifactd.auth.identity import Kind
from artifactd.auth.logins import Logins
from artifactd.auth.passwords import fits_basic
from artifactd.auth.sessions import Session
from artifactd.catalog.overview import TagOrder
from artifactd.oci.errors import (
    ManifestUnknown,
    NameUnknown,
    QueryInvalid,
    RegistryError,
    TooManyRequests,
    Unauthorized,
)
from artifactd.oci.names import Digest, ImageName, Reference, Tag, parse_reference
from artifactd.registry.registry import Target
from artifactd.registry.seeing import Page as Entries
from artifactd.registry.seeing import TagShown, found_in
from artifactd.registry.upkeep.state import Upkeep
from artifactd.settings.access import Action
from artifactd.web.answer import Answer
from artifactd.web.api import deletion
from artifactd.web.audit import Change
from artifactd.web.errors import registry_error
from artifactd.web.fields import form_fields, parameter
from artifactd.web.gate import Need
from artifactd.web.operated import Operated
from artifactd.web.page.browser import SECURITY, Browser, Form, value
from artifactd.web.page.rendering import STATIC, Rendering, short_digest
from artifactd.web.page.views import (
    COLUMNS,
    SORTED_AT_ONCE,
    Sorting,
    grouped,
    pictures,
    pull_commands,
    strip,
)
from artifactd.web.routing import new_app, route
from artifactd.web.server.protocol import RegistryRequest

_FIELDS = 500  # of a form
_NAMES = ("to", "tag", "digest", "reference")  # the fields of a tag or digest that is to change
_ROWS = 100  # of a list on one page

_FOR_EVER = "public, max-age=31536000, immutable"

_Posted = Callable[..., Coroutine[Deferred[Any], Any, Answer]]
_P = TypeVar("_P", bound=_Posted)


@define
class _Token:
    """
    What the forms of one page send back, made when a template first asks for it.

    :ivar fresh: a session that the browser does not have yet, and needs for that.
    """

    browser: Browser
    session: Session | None
    fresh: Session | None = None

    def __str__(self) -> str:
        session = self.session or self.fresh
        if session is None:
            session = self.fresh = self.browser.sessions.visitor()
        return self.browser.sessions.form_token(session)


def _post(app: Klein, path: str, needs: Action | Need) -> Callable[[_P], _P]:
    """
    Register a method that takes a form, as :func:`route` does.  The form is checked before the
    method is called with it as ``form``.
    """

    def register(handler: _P) -> _P:
        @wraps(handler)
        async def checked(self: Page, request: RegistryRequest, *args: Any, **parts: Any) -> Answer:
            fields: dict[str, list[str]] = {}
            for name, each in await form_fields(request, _FIELDS):
                fields.setdefault(name, []).append(each)
            self.browser.check_form(request, value(fields, "token"))
            given = (value(fields, name) for name in _NAMES)
            request.named = next((each for each in given if each), "")
            return await handler(self, request, *args, form=fields, **parts)

        route(app, path, "POST", needs=needs)(checked)
        return handler

    return register


_LOGIN = "/ui/login"
_PARTS = [
    ("/", "Images"),
    ("/ui/deleted", "Deleted"),
    ("/ui/upstreams", "Upstreams"),
    ("/ui/storage", "Storage"),
    ("/ui/upkeep", "Upkeep"),
]


@define(slots=False)  # as its base
class Page(Operated):
    """
    The page.  It is made on the server, and readable without scripts.

    :param browser: keeps the sessions of browsers.
    :param logins: checks names and passwords; ``None``: there are no accounts.
    """

    browser: Browser = field(kw_only=True)
    logins: Logins | None = field(kw_only=True)
    rendering: Rendering = field(kw_only=True)
    upkeep: Upkeep = field(kw_only=True)

    app: ClassVar[Klein] = new_app()

    def answer_to(self, request: RegistryRequest, error: RegistryError) -> Answer:
        """Answer an error in HTML; a reader that may see more after a login is sent to log in."""
        is_login = request.path == _LOGIN.encode()
        if isinstance(error, Unauthorized) and not is_login and request.method in (b"GET", b"HEAD"):
            return _see(_LOGIN, next=request.uri.decode("latin-1"))
        message = error.full_message if request.sees_stored else error.message
        headers = {k: v for k, v in error.headers.items() if k in ("Allow", "Retry-After")}
        # A 401 has a challenge (RFC 9110, 15.5.2), at which a browser opens its own login window.
        status = 403 if isinstance(error, Unauthorized) else error.status
        if is_login and isinstance(error, Unauthorized | TooManyRequests):
            following = _own_path(parameter(request, "next") or "/")
            values = {"user": request.claimed, "problem": message, "section": _LOGIN}
            answer = self.rendered(request, "login.html", status, next=following, **values)
        else:
            if isinstance(error, NameUnknown) and error.message.startswith("no such endpoint"):
                message = "there is no such page"
            request_id = request.request_id if status == 500 else ""
            answer = self.rendered(
                request, "error.html", status, message=message, request_id=request_id
            )
        return evolve(answer, headers={**answer.headers, **headers})

    # -- what all pages share

    def rendered(
        self, request: RegistryRequest, template: str, status: int = 200, **values: object
    ) -> Answer:
        """Answer with a small page, made in the reactor's thread."""
        token = self._token(request)
        body = self.rendering.render(template, self._values(request, token, values))
        return self._answer(request, body, status, token)

    async def _rendered(self, request: RegistryRequest, template: str, **values: object) -> Answer:
        """Answer with a page, made in a thread: a list takes milliseconds."""
        token = self._token(request)
        everything = self._values(request, token, values)
        body = await self.run(self.rendering.render, template, everything)
        return self._answer(request, body, 200, token)

    def _token(self, request: RegistryRequest) -> _Token:
        return _Token(self.browser, self.browser.session(request))

    def _values(
        self, request: RegistryRequest, token: _Token, values: Mapping[str, object]
    ) -> dict[str, object]:
        identity = request.caller.identity
        return {
            "who": None if identity.kind is Kind.ANONYMOUS else str(identity),
            "has_session": token.session is not None and token.session.account is not None,
            "accounts": self.logins is not None,
            "read_only": self.gate.read_only(),
            "here": request.uri.decode("latin-1"),
            "parts": self._parts(request),
            "section": "",
            "token": token,
            "told": "",
            "undo": "",
            **values,
        }

    def _parts(self, request: RegistryRequest) -> list[tuple[str, str]]:
        """The parts of the page that the caller may see: their paths and titles."""
        try:
            self.gate.admit(request, Need.STATUS)
        except RegistryError:
            return _PARTS[:2]
        return _PARTS

    def _answer(self, request: RegistryRequest, body: bytes, status: int, token: _Token) -> Answer:
        headers = {**SECURITY, "Content-Type": "text/html; charset=utf-8"}
        headers["Cache-Control"] = "no-store"
        if token.fresh is not None:
            headers["Set-Cookie"] = self.browser.keep(request, token.fresh)
        return Answer(status, headers, body, shared=False)

    @route(app, STATIC + "<name>", "GET", needs=Need.NOTHING)
    async def asset(self, request: RegistryRequest, name: str = "") -> Answer:
        """A script or style, for ever: its name changes with its content."""
        asset = self.rendering.assets.get(request.path.decode("latin-1"))
        if asset is None:
            raise NameUnknown("no such endpoint")
        headers = {**SECURITY, "Content-Type": asset.media_type, "Cache-Control": _FOR_EVER}
        return Answer(200, headers, asset.content, shared=False)

    # -- logging in and out

    @route(app, _LOGIN, "GET", needs=Need.PAGE)
    async def login_form(self, request: RegistryRequest) -> Answer:
        """The form to log in."""
        if self.logins is None:
            raise NameUnknown("there are no accounts here: everybody may read without a login")
        following = _own_path(parameter(request, "next") or "/")
        empty = {"user": "", "problem": "", "section": _LOGIN}
        return await self._rendered(request, "login.html", next=following, **empty)

    @_post(app, _LOGIN, needs=Need.SESSION)
    async def log_in(self, request: RegistryRequest, form: Form) -> Answer:
        """Begin a session for a name and a password, counted and slowed down as by Basic."""
        name, password = value(form, "user"), (form.get("password") or [""])[0]
        if self.logins is None or not name or not fits_basic(name, password):
            raise Unauthorized("wrong name or password: log in again")
        request.claimed = name
        caller = await self.logins.log_in(name, password, request.address)
        session = await self.browser.sessions.begin(caller.identity)
        request.claimed, request.actor = "", caller.identity.label
        answer = _see(_own_path(parameter(request, "next") or "/"))
        return self._keeping(request, answer, session)

    @_post(app, "/ui/logout", needs=Need.SESSION)
    async def log_out(self, request: RegistryRequest, form: Form) -> Answer:
        """End the session, also for a thief of its cookie."""
        session = self.browser.session(request)
        if session is not None and session.account is not None:
            await self.browser.sessions.end(session)
        return self._keeping(request, _see("/"), None)

    def _keeping(self, request: RegistryRequest, answer: Answer, session: Session | None) -> Answer:
        cookie = self.browser.keep(request, session)
        return evolve(answer, headers={**answer.headers, "Set-Cookie": cookie})

    # -- images

    @route(app, "/", "GET", needs=Need.PAGE)
    async def home(self, request: RegistryRequest) -> Answer:
        """The images that the caller may pull, under the paths of their names; a search in them."""
        query, sees_all = _query(request, "q", "after"), self.sees_all(request)
        page = await self.seeing.images(
            query["after"] or None,
            _ROWS,
            pattern=found_in(query["q"]),
            shown=self.gate.listed(request),
            asker=self.gate.asker(request),
            sees_all=sees_all,
        )
        host = self.browser.origin(request).partition("://")[2]
        return await self._rendered(
            request,
            "images.html",
            section="/",
            groups=grouped(page.entries),
            sees_all=sees_all,
            after=page.after,
            query=query,
            host=host,
        )

    @route(app, "/ui/image/<name:name>", "GET", needs=Action.PULL)
    async def image(self, request: RegistryRequest, target: Target) -> Answer:
        """An image's tags."""
        image = await self.readable(target)
        query = _query(request, "q", "sort", "after")
        sorting = Sorting.parse(query["sort"])
        tags, note = await self._tags(request, image, query, sorting)
        return await self._about(
            request,
            "tags.html",
            image,
            shown="image",
            tags=tags.entries,
            after=tags.after,
            query=query,
            sorting=sorting,
            columns=COLUMNS,
            note=note,
        )

    async def _tags(
        self, request: RegistryRequest, image: ImageName, query: Mapping[str, str], sorting: Sorting
    ) -> tuple[Entries[TagShown], str]:
        """A page of tags in the order that is wanted, and what has to be said of it."""
        pattern, order, note = found_in(query["q"]), sorting.order, ""
        if order is None:
            page = await self.seeing.tags(image, None, SORTED_AT_ONCE, pattern=pattern)
            if page.after is None:
                page = await self.told(request, page)
                return Entries(await self.run(sorting.sort, page.entries), None), ""
            order = TagOrder.NAME
            note = (
                f"More than {SORTED_AT_ONCE} tags are sorted by name or time alone: filter them to"
                f" sort by {sorting.column.title.lower()}."
            )
        after = query["after"] or None
        page = await self.seeing.tags(image, after, _ROWS, pattern=pattern, order=order)
        return await self.told(request, page), note

    @route(app, "/ui/manifest/<name:name>", "GET", needs=Action.PULL)
    async def manifest(self, request: RegistryRequest, target: Target) -> Answer:
        """A manifest: what it holds, what keeps it, and how to pull it."""
        image = await self.readable(target)
        reference = parse_reference(parameter(request, "reference") or "latest")
        sees_all = self.sees_all(request)
        manifest = await self.seeing.manifest(image, reference, sees_all=sees_all)
        named = f"{'@' if isinstance(reference, Digest) else ':'}{reference}"
        commands = pull_commands(
            self.browser.origin(request), self.registry.names.listed(image), named
        )
        absent = [e for e in manifest.entries if e.kind == "manifest" and e.manifest is None]
        return await self._rendered(
            request,
            "manifest.html",
            **self._rights(request, image),
            manifest=manifest,
            named=named if isinstance(reference, Tag) else f"@{short_digest(reference)}",
            commands=commands,
            pictures=pictures(manifest),  # made as the template goes through them, in its thread
            absent=absent,
            sees_all=sees_all,
        )

    @route(app, "/ui/history/<name:name>", "GET", needs=Action.PULL)
    async def history(self, request: RegistryRequest, target: Target) -> Answer:
        """Where the tags of an image have pointed."""
        image = await self.readable(target)
        query = _query(request, "tag", "after")
        tag = Tag.parse(query["tag"]) if query["tag"] else None
        page = await self.seeing.history(image, tag, query["after"] or None, _ROWS)
        return await self._about(
            request,
            "history.html",
            image,
            shown="history",
            moved=(await self.told(request, page)).entries,
            after=page.after,
            query=query,
        )

    @route(app, "/ui/deleted/<name:name>", "GET", needs=Action.PULL)
    async def deleted(self, request: RegistryRequest, target: Target) -> Answer:
        """What was deleted from an image and can be brought back."""
        image = await self.readable(target)
        query = _query(request, "after")
        page = await self.seeing.deleted(image, query["after"] or None, _ROWS)
        return await self._about(
            request,
            "deleted.html",
            image,
            shown="deleted",
            deleted=(await self.told(request, page)).entries,
            after=page.after,
            query=query,
        )

    @route(app, "/ui/deleted", "GET", needs=Need.PAGE)
    async def all_deleted(self, request: RegistryRequest) -> Answer:
        """What was deleted from all images that the caller may pull, and can be brought back."""
        query, shown = _query(request, "after"), self.gate.listed(request)
        page = await self.seeing.deleted(None, query["after"] or None, _ROWS, shown)
        images = {each.image: ImageName.of(each.image) for each in page.entries}
        told, undo = _told(request, "")
        return await self._rendered(
            request,
            "all_deleted.html",
            section="/ui/deleted",
            deleted=(await self.told(request, page)).entries,
            may_create={n for n, i in images.items() if self.gate.may(request, Action.CREATE, i)},
            after=page.after,
            query=query,
            told=told,
            undo=undo,
        )

    @route(app, "/ui/stale", "GET", needs=Need.PAGE)
    async def stale(self, request: RegistryRequest) -> Answer:
        """The tags of upstreams that are answered past their freshness."""
        query = _query(request, "q", "after")
        page = await self.seeing.stale(
            await self.daemon.stale_tags(),
            query["after"] or None,
            _ROWS,
            pattern=found_in(query["q"]),
            shown=self.gate.listed(request),
            asker=self.gate.asker(request),
        )
        return await self._rendered(
            request,
            "stale.html",
            section="/ui/upstreams",
            tags=page.entries,
            after=page.after,
            query=query,
        )

    async def _about(
        self, request: RegistryRequest, template: str, image: ImageName, **values: object
    ) -> Answer:
        seen = await self.seeing.image(image, sees_all=self.sees_all(request))
        told, undo = _told(request, image)
        return await self._rendered(
            request,
            template,
            **self._rights(request, image),
            seen=seen,
            told=told,
            undo=undo,
            **values,
        )

    def _rights(self, request: RegistryRequest, image: ImageName) -> dict[str, object]:
        """The name of an image, and what the caller may do to it."""
        is_cached = self.is_remote(image)
        path = str(image).split("/")[:-1]
        return {
            "section": "/",
            "image": str(image),
            "crumbs": [("/".join(path[: n + 1]), name) for n, name in enumerate(path)],
            "is_cached": is_cached,
            "may_create": not is_cached and self.gate.may(request, Action.CREATE, image),
            "may_push": not is_cached and self.gate.may(request, Action.PUSH, image),
            "may_delete": self.gate.may(request, Action.DELETE, image),
        }

    # -- changes

    @_post(app, "/ui/delete/<name:name>", needs=Action.DELETE)
    async def remove(self, request: RegistryRequest, target: Target, form: Form) -> Answer:
        """Delete the chosen tags, or a manifest with its tags."""
        digest = value(form, "digest")
        references: list[Reference] = [Tag.parse(tag) for tag in dict.fromkeys(form.get("tag", ()))]
        if digest:
            references.append(Digest.parse(digest))
        if not references:
            raise QueryInvalid("choose the tags to delete first")
        changes: list[Change] = []
        failed: list[tuple[Reference, RegistryError]] = []
        for number, reference in enumerate(references):
            try:
                changes.append(await self.delete(request, target, reference))
            except Exception:
                error = registry_error(request, Failure())
                if error.status >= 500:  # a fault of ours, which the others would meet, too
                    failed += [(each, error) for each in references[number:]]
                    break
                failed.append((reference, error))
        image = str(target.image)
        if len(failed) == len(references):
            answer = self.answer_to(request, failed[0][1])
        elif failed:
            answer = self.rendered(
                request,
                "some.html",
                failed[0][1].status,
                image=image,
                done=len(references) - len(failed),
                failed=failed,
                request_id=request.request_id,
            )
        elif self.is_remote(target.image):
            answer = _see(f"/ui/image/{image}", told="evicted")
        else:
            answer = _see(f"/ui/image/{image}", told="deleted", n=str(len(references)))
        changes += [deletion(reference, None, error) for reference, error in failed]
        return evolve(answer, changes=changes)

    @_post(app, "/ui/copy/<name:name>", needs=Action.CREATE)
    async def copy(self, request: RegistryRequest, target: Target, form: Form) -> Answer:
        """Point a new tag at the manifest of the one that is chosen."""
        chosen = list(form.get("tag", ()))
        if len(chosen) != 1:
            raise QueryInvalid("choose the one tag that is to be copied")
        tag = Tag.parse(chosen[0])
        record = await self.registry.catalog.manifest(target.pushed, tag)
        if record is None:
            raise ManifestUnknown("this image has no such tag", {"tag": str(tag)})
        return await self._pointed(request, target, Tag.parse(value(form, "to")), record.digest)

    @_post(app, "/ui/restore/<name:name>", needs=Action.CREATE)
    async def restore(self, request: RegistryRequest, target: Target, form: Form) -> Answer:
        """Point a tag at a manifest of the image, such as one that it had before."""
        tag, digest = Tag.parse(value(form, "tag")), Digest.parse(value(form, "digest"))
        return await self._pointed(request, target, tag, digest)

    async def _pointed(
        self, request: RegistryRequest, target: Target, tag: Tag, digest: Digest
    ) -> Answer:
        change = await self.point(request, target, tag, digest)
        answer = _see(f"/ui/image/{target.image}", told="pointed")
        return evolve(answer, changes=[change])

    @_post(app, "/ui/undelete/<name:name>", needs=Action.CREATE)
    async def undelete(self, request: RegistryRequest, target: Target, form: Form) -> Answer:
        """Bring back a tag, a manifest or a blob that was deleted, or all that was."""
        text = value(form, "reference")
        reference = parse_reference(text) if text else None
        restored, changes = await self.bring_back(request, target, reference)
        told = "occupied" if restored.occupied else "undeleted"
        following = "/ui/deleted" if value(form, "list") == "all" else f"/ui/image/{target.image}"
        return evolve(_see(following, told=told), changes=changes)

    # -- the registry itself

    @route(app, "/ui/upstreams", "GET", needs=Need.STATUS)
    async def upstreams(self, request: RegistryRequest) -> Answer:
        """What is asked of other registries, and how they do."""
        remotes = (await self.daemon.status(request)).remotes
        return await self._rendered(
            request, "upstreams.html", section="/ui/upstreams", remotes=remotes
        )

    @route(app, "/ui/storage", "GET", needs=Need.STATUS)
    async def storage(self, request: RegistryRequest) -> Answer:
        """What each repository holds, and how much of its quota that is."""
        usage = await self.seeing.usage()
        parts = [each for each in usage if each.size]
        return await self._rendered(
            request,
            "storage.html",
            section="/ui/storage",
            usage=usage,
            total=sum(each.size for each in usage),
            strip=strip((each.size, each.repository) for each in parts),
            colors={each.repository: n for n, each in enumerate(parts)},
        )

    @route(app, "/ui/upkeep", "GET", needs=Need.STATUS)
    async def keeping(self, request: RegistryRequest) -> Answer:
        """What runs by itself: collection and scrubbing; and what is damaged."""
        state = await self.upkeep.state()
        return await self._rendered(request, "upkeep.html", section="/ui/upkeep", state=state)


def _told(request: RegistryRequest, image: ImageName | str) -> tuple[str, str]:
    """What the form before has done, and where that can be undone; by the query, not its words."""
    number = parameter(request, "n") or ""
    match parameter(request, "told"):
        case "deleted" if number.isdecimal() and len(number) < 5:
            what = "1 tag or manifest is" if number == "1" else f"{number} tags are"
            return f"{what} deleted.", f"/ui/deleted/{image}"
        case "evicted":
            return "It is out of the cache: a pull fetches it again.", ""
        case "pointed":
            return "The tag points at that manifest now.", ""
        case "undeleted":
            return "What was deleted is back.", ""
        case "occupied":
            return "It is back, but for tags that point at other manifests now.", ""
    return "", ""


def _query(request: RegistryRequest, *names: str) -> dict[str, str]:
    """Parameters of the query; those that are missing are empty."""
    return {name: parameter(request, name) or "" for name in names}


def _see(path: str, **query: str) -> Answer:
    """Answer that another page follows (RFC 9110, 15.4.4)."""
    location = f"{path}?{urlencode(query)}" if query else path
    return Answer(
        303, {**SECURITY, "Location": location, "Cache-Control": "no-store"}, shared=False
    )


def _own_path(text: str) -> str:
    """``text`` if it is the path of a page here, otherwise that of the first page."""
    is_own = text == "/" or text.startswith(("/?", "/ui/"))
    return text if is_own and text.isascii() and text.isprintable() and "\\" not in text else "/"
