"""What clients were told is here, of a name that was an upstream's and may become a local one."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from attrs import define, field

from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName

# Seconds in which whoever asks before a push has pushed what refers to it.
_HOLDS = 3600.0
_REMEMBERED = 8192


@define(eq=False)
class Promises:
    """
    Blobs and manifests that were answered for from upstream under a name without prefix.

    A client that pushes several manifests asks for all they refer to before it pushes the first of
    them, which makes the name a local one; it does not push what it was told is here.

    :param now: seconds since the epoch.
    """

    now: Callable[[], float] = time.time
    _until: OrderedDict[tuple[ImageName, Digest], float] = field(factory=OrderedDict, init=False)

    def give(self, image: ImageName, digest: Digest) -> None:
        """Somebody was told that ``image`` has it."""
        self._until[image, digest] = self.now() + _HOLDS
        self._until.move_to_end((image, digest))
        if len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)

    def holds(self, image: ImageName, digest: Digest) -> bool:
        """Whether somebody was, within the last hour."""
        return self.now() < self._until.get((image, digest), 0.0)
