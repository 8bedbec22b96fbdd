"""Between Klein and the routes: names in paths, answers as values, one way for errors."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any, Protocol, TypeVar

from klein import Klein, KleinRenderable
from klein.resource import KleinResource
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.server import NOT_DONE_YET
from werkzeug.routing import BaseConverter

from artifactd.kit.deferreds import uncancelled
from artifactd.oci.errors import NameInvalid, Unsupported
from artifactd.registry.mirror.proofs import NoProof
from artifactd.registry.registry import Registry
from artifactd.settings.access import Action
from artifactd.web.answer import Answer
from artifactd.web.audit import Asked, AuditLog
from artifactd.web.errors import registry_error
from artifactd.web.fields import mirrored_registry
from artifactd.web.gate import Gate, Need
from artifactd.web.server.framing import path_problem
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.sendfile import FileSender


class _NameConverter(BaseConverter):
    """
    The ``<name>`` of a path: any number of components.

    Takes as much as it can, so that the last ``/manifests/`` of a path is the endpoint's and all
    before it the image's.  Whether it is a name is for the handler to say, as ``NAME_INVALID``.
    """

    regex = ".+"
    part_isolating = False


class Routed(Protocol):
    """What a class with routes has to have."""

    @property
    def registry(self) -> Registry: ...

    @property
    def gate(self) -> Gate: ...

    @property
    def audit(self) -> AuditLog: ...

    @property
    def sender(self) -> FileSender: ...


_Handler = Callable[..., Coroutine[Deferred[Any], Any, Answer]]
_H = TypeVar("_H", bound=_Handler)


def new_app() -> Klein:
    """
    A Klein app whose routes may hold ``<name:name>``, and do without the slash that they end in;
    its every error is the spec's JSON.
    """
    app = Klein()
    app.url_map.converters["name"] = _NameConverter
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False

    @app.handle_errors(Exception)
    def answer_error(self: Routed, request: IRequest, failure: Failure) -> None:
        assert isinstance(request, RegistryRequest)
        error = registry_error(request, failure)
        if request.startedWriting:
            request.abort()  # too late to say anything: nobody may take this for a whole answer
        else:
            Answer.error(error).write(request)

    return app


def route(app: Klein, path: str, *methods: str, needs: Action | Need) -> Callable[[_H], _H]:
    """
    Register a method of a :class:`Routed` that returns an :class:`Answer`.

    ``<name:name>`` in ``path`` reaches it as ``target``.  What it has begun goes on to its end
    when the client leaves; nothing is sent then.

    :param needs: what its caller must be permitted: decided before the handler is called, and
        before anything is looked up.  Where that is to pull, ``ns=`` may say of which registry.
    """

    def register(handler: _H) -> _H:
        async def decided(self: Routed, request: RegistryRequest, asked: Asked) -> Answer:
            if needs is not Need.NOTHING:
                rates = request.site.rates
                if rates is not None:
                    rates.charge_address(request.address)
                await self.gate.identify(request, needs)
                if rates is not None:
                    rates.charge_user(request.caller.identity)
            if not isinstance(needs, Action):
                self.gate.admit(request, needs)
                # Whether a token is for him, the handler decides.
                asked.admitted = needs is not Need.TOKEN
                return await handler(self, request, **asked.parts)
            target = self.gate.target(request, needs, self.registry, asked.name, asked.namespace)
            asked.admitted, asked.image = True, str(target.image)
            if asked.namespace is not None:
                # Of this request alone: an error may be that of others too, who asked without.
                request.responseHeaders.setRawHeaders("OCI-Namespace", [asked.namespace])
            try:
                return await handler(self, request, target, **asked.parts)
            except NoProof as error:
                asked.admitted = False
                raise self.gate.unproved(request, error, target, needs) from None

        async def answer(self: Routed, request: RegistryRequest, parts: dict[str, str]) -> Answer:
            namespace = mirrored_registry(request) if needs is Action.PULL else None
            asked = Asked(needs, parts.pop("name", ""), namespace, parts)
            try:
                answered = await decided(self, request, asked)
            except Exception as error:
                if not asked.image:
                    asked.image = self.registry.named(asked.name, namespace)
                self.audit.failed(request, asked, error)
                raise
            self.audit.answered(request, asked, answered.status)
            return answered

        @app.route(path, methods=methods)
        @wraps(handler)
        async def serve(self: Routed, request: RegistryRequest, **parts: str) -> None:
            answered = await uncancelled(
                answer(self, request, parts),
                lambda unheard: unheard.close(),
                partial(_failed_unheard, request),
            )
            await answered.send(request, self.sender)

        return handler

    return register


def _failed_unheard(request: RegistryRequest, failure: Failure) -> None:
    """Log what went wrong in a handler whose client has disconnected."""
    if not failure.check(ConnectionClosed, CancelledError):
        registry_error(request, failure)


class ApiResource(KleinResource):
    """Klein's resource, which is asked only for paths that mean the same to it as to everybody."""

    def render(self, request: IRequest) -> KleinRenderable:
        """
        As ``Resource.render``.

        Klein routes the unquoted path, in which an encoded slash divides components, and answers
        what is not UTF-8 by itself.
        """
        assert isinstance(request, RegistryRequest)
        try:
            problem = path_problem(request.path)
            if problem is not None:
                raise NameInvalid(f"bad request path: {problem}")
            if request.method.upper() != request.method:
                # RFC 9110, 9.1: a method's case counts; for Werkzeug it does not.
                raise Unsupported("no such method here: methods are written in capitals")
            return super().render(request)
        except Exception:
            # Klein catches what goes wrong in a route, but not what goes wrong before it.
            error = registry_error(request, Failure())
        Answer.error(error).write(request)
        request.finish()
        return NOT_DONE_YET  # type: ignore[return-value]  # an int, which Klein returns too
