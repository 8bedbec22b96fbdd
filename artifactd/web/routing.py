"""Between Klein and the handlers: names in paths, the gate, answers as values, errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any, ClassVar, TypeVar, cast
from urllib.parse import unquote_to_bytes

from attrs import define, field
from klein import Klein
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionClosed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from werkzeug.routing import BaseConverter

from artifactd.kit.deferreds import uncancelled
from artifactd.oci.errors import NameInvalid, QuotaExceeded, RegistryError, Unsupported
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import NoProof
from artifactd.registry.registry import Registry, Target
from artifactd.settings.access import Action
from artifactd.web.answer import Answer
from artifactd.web.audit import Asked, AuditLog
from artifactd.web.errors import registry_error
from artifactd.web.fields import mirrored_registry, wants_html
from artifactd.web.gate import Gate, Need
from artifactd.web.server.framing import path_problem
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.sendfile import SMALL, FileSender


class _NameConverter(BaseConverter):
    """
    The ``<name>`` of a path: any number of components.

    It takes as much of the path as it can, so that the last ``/manifests/`` is the endpoint's and
    all before it the image's.  Whether the text is a name is decided later, as ``NAME_INVALID``.
    """

    regex = ".+"
    part_isolating = False


def _nothing(request: RegistryRequest, image: ImageName, error: QuotaExceeded) -> None:
    """Tell nobody."""


@define(slots=False)  # Klein hangs the bound app onto the instance
class Routed:
    """
    The base of a class with routes.

    :ivar registry: resolves the names in paths.
    :ivar gate: decides about each request before its handler is called.
    :ivar audit: is told of changes and of refusals.
    :ivar sender: sends blobs.
    :ivar over_quota: is told of each push that a quota refuses.
    :cvar app: the routes, and the methods that they lead to.
    :cvar mirrors: whether the query ``ns=`` of a read names the registry that it is meant for.
    """

    app: ClassVar[Klein]
    mirrors: ClassVar[bool] = True

    registry: Registry
    gate: Gate
    audit: AuditLog
    sender: FileSender
    over_quota: Callable[[RegistryRequest, ImageName, QuotaExceeded], None] = field(
        default=_nothing, kw_only=True
    )

    def answer_to(self, request: RegistryRequest, error: RegistryError) -> Answer:
        """Make the answer to an error: the spec's JSON."""
        return Answer.error(error, sees_stored=request.sees_stored)


_Handler = Callable[..., Coroutine[Deferred[Any], Any, Answer]]
_H = TypeVar("_H", bound=_Handler)


def new_app() -> Klein:
    """
    Make a Klein app whose routes may hold ``<name:name>``, and may be asked for without the slash
    that they end in.
    """
    app = Klein()
    app.url_map.converters["name"] = _NameConverter
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    return app


def route(app: Klein, path: str, *methods: str, needs: Action | Need) -> Callable[[_H], _H]:
    """
    Register a method of a :class:`Routed` that returns an :class:`Answer`.

    The method gets the image that ``<name:name>`` in ``path`` stands for as ``target``.  If the
    client disconnects, it still runs to completion; its answer is dropped.

    :param needs: what the caller must be permitted.  It is decided before the method is called, and
        before anything is looked up.  Where that is to pull, the query ``ns=`` may name a registry.
    """
    name_of_route = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)
    part_of_push = "/blobs/uploads/" in path
    logs_in = needs in (Need.IDENTITY, Need.TOKEN)
    writes = needs is Need.SESSION or (isinstance(needs, Action) and needs is not Action.PULL)

    def register(handler: _H) -> _H:
        def unproved(
            self: Routed, request: RegistryRequest, asked: Asked, target: Target, error: NoProof
        ) -> NoProof:
            assert isinstance(needs, Action)
            asked.admitted = False
            return self.gate.unproved(request, error, target, needs)

        async def again(
            self: Routed,
            request: RegistryRequest,
            asked: Asked,
            target: Target,
            parts: dict[str, str],
        ) -> Answer:
            try:
                return await handler(self, request, target, **parts)
            except NoProof as error:
                raise unproved(self, request, asked, target, error) from None

        async def answer(self: Routed, request: RegistryRequest, parts: dict[str, str]) -> Answer:
            name, namespace = parts.pop("name", ""), None
            if request.args and needs is Action.PULL and self.mirrors:
                namespace = mirrored_registry(request)
            changes = writes and request.method not in (b"GET", b"HEAD")
            told = Action.PUSH if needs is Action.CREATE else needs
            asked = Asked(told, parts, changes, part_of_push)
            try:
                if needs is not Need.NOTHING:
                    rates = request.site.rates
                    if rates is not None:
                        rates.charge_address(request.address)
                    await self.gate.identify(request, needs, self.registry, name, namespace)
                    if rates is not None:
                        rates.charge_user(request.caller.identity)
                if isinstance(needs, Action):
                    target = self.gate.target(request, needs, self.registry, name, namespace)
                    asked.admitted, asked.image = True, target.image
                    if request.repeated is not None:
                        request.rests_on(str(target.image))
                    if namespace is not None:
                        # Only in this answer: other requests may share the error without it.
                        request.responseHeaders.setRawHeaders("OCI-Namespace", [namespace])
                    try:
                        answered = await handler(self, request, target, **parts)
                    except NoProof as error:
                        raise unproved(self, request, asked, target, error) from None
                    if len(answered.body) > SMALL and request.method == b"GET":
                        answered.again = partial(again, self, request, asked, target, parts)
                else:
                    self.gate.admit(request, needs)
                    # Whether the caller gets a token or a session is decided by the handler.
                    asked.admitted = needs not in (Need.TOKEN, Need.SESSION)
                    answered = await handler(self, request, **parts)
            except Exception as error:
                self.audit.failed(
                    request, asked, asked.image or self.registry.named(name, namespace), error
                )
                if isinstance(error, QuotaExceeded) and asked.image is not None:
                    self.over_quota(request, asked.image, error)
                raise
            if changes:
                self.audit.done(request, asked, answered.status, answered.changes)
            elif logs_in:
                self.audit.logged_in(request, asked, answered.status)
            return answered

        @app.route(path, methods=methods)
        @wraps(handler)
        def serve(self: Routed, request: RegistryRequest, **parts: str) -> Deferred[Any]:
            request.route = name_of_route
            answering = Deferred.fromCoroutine(answer(self, request, parts))
            if not answering.called:
                # The request cancels what it waits for when the client disconnects.
                answering = uncancelled(
                    answering, Answer.close, lambda failure: _log_dropped(request, failure)
                )
            return answering.addCallback(Answer.send, request, self.sender)

        return handler

    return register


def _log_dropped(request: RegistryRequest, failure: Failure) -> None:
    if not failure.check(ConnectionClosed, CancelledError):
        registry_error(request, failure)


_log = Logger()


class _Routes:
    """
    Has requests handled by the methods that the routes of ``routed`` lead to.

    Klein matches a request, and calls the method.  What its own resource does beside that, for
    whatever a method might return or look at, would cost more than all of a small request's own.
    """

    def __init__(self, routed: Routed) -> None:
        self._routed, self._app = routed, routed.app
        # Its name stands in no answer: no route depends on the host, and none redirects.
        self._map = self._app.url_map.bind("localhost")

    def render(self, request: RegistryRequest) -> None:
        """Handle ``request``, whose path is UTF-8, and finish it some time."""
        path = request.path
        if b"%" in path:
            path = unquote_to_bytes(path)
        try:
            endpoint, parts = self._map.match(path.decode(), request.method.decode("latin-1"))
            # The method is ``serve``, above.
            handling = cast(Deferred[Any], self._app.execute_endpoint(endpoint, request, **parts))
        except Exception:
            handling = fail()
        request.handling = handling
        handling.addErrback(self._answer_error, request)
        handling.addCallback(_finish, request)
        handling.addErrback(_give_up, request)

    def _answer_error(self, failure: Failure, request: RegistryRequest) -> None:
        if request.gone:
            _log_dropped(request, failure)
            return
        error = registry_error(request, failure)
        if request.startedWriting:
            request.abort()  # too late for an answer: the client must not take this for a whole one
        else:
            self._routed.answer_to(request, error).send(request)


def _finish(_: object, request: RegistryRequest) -> None:
    request.handling = None
    if not (request.finished or request.gone):
        request.finish()


def _give_up(failure: Failure, request: RegistryRequest) -> None:
    _log.failure("{path} could not be answered", failure, path=request.path.decode("latin-1"))
    request.abort()


class ApiResource(Resource):
    """
    Sees to it that routes get only paths that mean the same to them as to every proxy.

    :param json: the JSON API, which answers below ``/api/``.
    :param page: the page for people with a browser; ``None``: there is none.  It answers below
        ``/ui/``, and at ``/`` where HTML is wanted; no page of another origin may ask it.
    """

    isLeaf = True

    def __init__(self, api: Routed, json: Routed, page: Routed | None = None) -> None:
        super().__init__()
        self._api, self._json = _Routes(api), _Routes(json)
        self._page = None if page is None else _Routes(page)

    def render(self, request: Request) -> int:
        assert isinstance(request, RegistryRequest)
        try:
            routes = self._routes_for(request)
        except Exception:
            Answer.error(registry_error(request, Failure())).send(request)
            request.finish()
        else:
            if routes is not None:
                routes.render(request)
        return NOT_DONE_YET

    def _routes_for(self, request: RegistryRequest) -> _Routes | None:
        """
        Return the routes that handle ``request``; ``None`` if it is answered.

        :raises RegistryError: if it is refused.
        """
        # Routes match the unquoted path, in which an encoded slash divides components.
        problem = path_problem(request.path)
        if problem is not None:
            raise NameInvalid(f"bad request path: {problem}")
        if request.method.upper() != request.method:
            # RFC 9110, 9.1: a method's case counts; for Werkzeug it does not.
            raise Unsupported("no such method here: methods are written in capitals")
        path = request.path
        if self._page is not None and (
            path.startswith(b"/ui/") or (path == b"/" and wants_html(request))
        ):
            return self._page
        cors = request.site.cors
        if cors is None or request.method != b"OPTIONS" or not cors.allows(request):
            return self._json if path.startswith(b"/api/") else self._api
        # A browser asks without the login of the user, who may then send the real request.
        if request.site.rates is not None:
            request.site.rates.charge_address(request.address)
        Answer(204, cors.preflight()).send(request)
        request.finish()
        return None
