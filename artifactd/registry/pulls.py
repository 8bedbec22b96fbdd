"""When images that were pushed here were last pulled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from attrs import define, field
from cachetools import TTLCache
from twisted.logger import Logger

from artifactd.catalog.retention import HOUR, RetentionCatalog
from artifactd.kit.janitor import batches
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import ImageName, Reference

_log = Logger()

_REMEMBERED = 1 << 15  # tags and manifests
_BATCH = 256  # rows that one transaction changes: each is found by an index

_Pulled = tuple[ImageName, Reference]


@define(eq=False)
class Pulls:
    """
    Notes the pulls of tags and manifests, each at most once an hour in each process.

    Most are collected in memory, and :meth:`write` puts them into the catalog, many in one
    transaction.  Where retention asks for pulls, a pull is in the catalog before it is answered: no
    process drops the tag then, and no crash forgets it.

    :param prompt: the names of the repositories where that is so.
    :param now: seconds since the epoch.
    :ivar noted: what needs no note now: its last one was less than an hour ago.
    """

    catalog: RetentionCatalog
    prompt: Collection[str] = ()
    now: Callable[[], float] = time.time
    noted: TTLCache[_Pulled, None] = field(init=False)
    _waiting: dict[_Pulled, float] = field(factory=dict, init=False)

    @noted.default
    def _none_noted(self) -> TTLCache[_Pulled, None]:
        return TTLCache(_REMEMBERED, HOUR, self.now)

    async def note(self, image: ImageName, reference: Reference) -> bool:
        """
        Note a pull of a manifest that is about to be answered.

        :return: whether it is still there.
        """
        pulled = image, reference
        at = self.now()
        if image.repository in self.prompt:
            try:
                gone = await self.catalog.note_pulls({pulled: at})
            except Unavailable as error:
                # On a full disk, for example, where clients may go on to pull.
                _log.warn("a pull of {image} is noted later: {error}", image=image, error=error)
            else:
                self.noted[pulled] = None
                return not gone
        self.noted[pulled] = None
        self._waiting[pulled] = at
        return True

    async def write(self) -> None:
        """Put the pulls since the last call into the catalog."""
        waiting, self._waiting = self._waiting, {}
        try:
            for batch in batches(list(waiting.items()), _BATCH):
                await self.catalog.note_pulls(dict(batch))
                for pulled, _ in batch:
                    del waiting[pulled]
        finally:
            self._waiting = waiting | self._waiting
