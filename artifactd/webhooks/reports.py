"""Events that no transaction of the catalog tells: refusals by a quota, upstreams that are down."""

from __future__ import annotations

from attrs import define, field
from cachetools import TTLCache
from msgspec.structs import replace
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.catalog.events import LONGEST, Event
from artifactd.catalog.webhooks import WebhookCatalog
from artifactd.kit.printable import printable
from artifactd.oci.errors import Unavailable

_EVERY = 60.0  # seconds
_REMEMBERED = 1000

_log = Logger()


@define(eq=False)
class Reports:
    """
    Writes such events for webhooks, at most one of a kind for a repository in a minute: a client
    that is refused all the time must not fill the catalog.

    :param clock: measures the minute.
    """

    catalog: WebhookCatalog
    clock: IReactorTime
    _told: TTLCache[tuple[str, str], None] = field(init=False)
    _writing: set[Deferred[None]] = field(factory=set, init=False)

    @_told.default
    def _(self) -> TTLCache[tuple[str, str], None]:
        return TTLCache(_REMEMBERED, _EVERY, self.clock.seconds)

    def tell(self, event: Event) -> None:
        """Write ``event`` in the background, if a webhook is to be told of its kind."""
        told = (event.kind, event.repository)
        if event.kind not in self.catalog.database.outbox.kinds or told in self._told:
            return
        self._told[told] = None
        # A reason may quote what an upstream has sent.
        event = replace(event, reason=printable(event.reason)[:LONGEST])

        async def write() -> None:
            try:
                await self.catalog.tell(event)
            except Unavailable as error:
                _log.error("an event for webhooks is lost: {error}", error=error.message)

        writing = Deferred.fromCoroutine(write())
        if not writing.called:
            self._writing.add(writing)
            writing.addBoth(lambda _: self._writing.discard(writing))

    async def written(self) -> None:
        """Wait until what was told is written."""
        await DeferredList(list(self._writing))
