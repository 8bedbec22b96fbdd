"""What the daemon is asked about itself."""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field
from klein import Klein

from artifactd.auth.token_service import TokenService
from artifactd.oci.errors import NameUnknown
from artifactd.registry.metrics import CONTENT_TYPE, Counters, Health
from artifactd.registry.registry import Registry
from artifactd.web.answer import Answer
from artifactd.web.audit import AuditLog
from artifactd.web.gate import Gate, Need
from artifactd.web.request import RegistryRequest
from artifactd.web.routing import new_app, route
from artifactd.web.sendfile import FileSender
from artifactd.web.token import answer_get, answer_post


@define(slots=False)  # Klein hangs the bound app onto the instance
class OwnApi:
    """
    Endpoints that are about no image; :class:`artifactd.web.api.Api` adds those that are.

    :param service: gives tokens; ``None``: nobody does.
    """

    registry: Registry
    gate: Gate
    audit: AuditLog
    sender: FileSender
    health: Health
    counters: Counters
    service: TokenService | None = field(kw_only=True)

    app: ClassVar[Klein] = new_app()

    @route(app, "/healthz", "GET", needs=Need.NOTHING)
    async def healthz(self, request: RegistryRequest) -> Answer:
        """200 while the process answers at all."""
        return Answer.json({"status": "ok"})

    @route(app, "/readyz", "GET", needs=Need.NOTHING)
    async def readyz(self, request: RegistryRequest) -> Answer:
        """
        200 while the store takes bytes and the catalog answers, otherwise 503.  Reading goes on in
        the read-only mode, so it is no reason to send nobody here any more.
        """
        await self.health.check()
        mode = {"mode": "read-only"} if self.gate.read_only() else {}
        return Answer.json({"status": "ok", **mode})

    @route(app, "/metrics", "GET", needs=Need.METRICS)
    async def metrics(self, request: RegistryRequest) -> Answer:
        """The counters, in Prometheus' text format."""
        return Answer(headers={"Content-Type": CONTENT_TYPE}, body=self.counters.exposition())

    @route(app, "/v2/", "GET", needs=Need.IDENTITY)
    async def version(self, request: RegistryRequest) -> Answer:
        """end-1: says that the spec is implemented here."""
        return Answer.json({})

    @route(app, "/token", "GET", needs=Need.TOKEN)
    async def token(self, request: RegistryRequest) -> Answer:
        """registry-auth-token, "Requesting a Token"."""
        return await answer_get(self._service(), request, request.caller)

    @route(app, "/token", "POST", needs=Need.TOKEN)
    async def token_by_form(self, request: RegistryRequest) -> Answer:
        """registry-auth-oauth, "Getting a token"."""
        return await answer_post(self._service(), request, request.address)

    def _service(self) -> TokenService:
        if self.service is None:
            raise NameUnknown("no tokens are given here: log in by Basic")
        return self.service
