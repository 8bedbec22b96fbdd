"""The clock of a reactor."""

from __future__ import annotations

import time
from typing import Any


def keep_steady(reactor: Any) -> None:
    """
    Let ``reactor`` go by a clock that nobody sets; call it before anything is to be called later.

    Twisted's goes by the time of day.  If that is set back by an hour, nothing that waits for its
    time is called for an hour, be it the next turn of large transfers; if it is set forward, all
    deadlines expire at once, and each transfer under way is cut off.
    """
    reactor.seconds = time.monotonic
