"""When blobs and manifests of remote repositories were last pulled, written down now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import define, field

from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName

_Key = tuple[ImageName, Digest]


@define(eq=False)
class Accesses:
    """
    Gathers what was pulled; :meth:`write` puts it into the catalog, many in one transaction.

    :param now: seconds since the epoch.
    """

    catalog: RemoteCatalog
    now: Callable[[], float] = time.time
    _used: dict[_Key, float] = field(factory=dict, init=False)
    _reading: dict[_Key, int] = field(factory=dict, init=False)

    def touch(self, image: ImageName, digest: Digest) -> None:
        """It was pulled now."""
        self._used[image, digest] = self.now()

    def begin(self, image: ImageName, digest: Digest) -> Callable[[], None]:
        """It is being read until what is returned is called, and counts as pulled all the time."""
        key = image, digest
        self._reading[key] = self._reading.get(key, 0) + 1

        def end() -> None:
            self._reading[key] -= 1
            if not self._reading[key]:
                del self._reading[key]
            self.touch(image, digest)

        return end

    async def write(self) -> None:
        """Write down what was pulled since the last time."""
        now = self.now()
        used, self._used = self._used, {}
        used |= dict.fromkeys(self._reading, now)
        if not used:
            return
        try:
            await self.catalog.touch(used)
        except BaseException:
            self._used = used | self._used
            raise
