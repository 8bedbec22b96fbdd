"""How the C library keeps memory that Python has freed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

# <malloc.h>; sizes are in bytes.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8

_SETTINGS = (
    # Each arena keeps what was freed in it.  Threads that hold the interpreter's lock allocate one
    # after the other, and need no arena each.
    (_ARENA_MAX, 2),
    # Larger blocks are pages of their own, and are given back when they are freed.  Without a value
    # glibc raises the threshold to the largest block freed, up to 32 MiB.  It is above the pieces
    # of 1 MiB in which bodies are written: each would cost new pages.
    (_MMAP_THRESHOLD, 2 << 20),
    # Free memory at the end of an arena is given back beyond this.  It is above what a large push
    # has in its hands, six pieces of 1 MiB or so: each would cost new pages.
    (_TRIM_THRESHOLD, 16 << 20),
)


def give_back_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """
    Let glibc give the pages of freed memory back to the system; call it before threads start.

    Without it, the documents and lists of one busy minute stay in the process's memory for good,
    once for each arena in which a thread has decoded some.

    :param environment: where it has settings for glibc's allocator, those hold.
    :returns: whether the allocator was set: it is glibc's, and the environment leaves it alone.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in environment):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, as musl
        return False
    taken = [mallopt(which, value) for which, value in _SETTINGS]  # 0 where it fails
    return all(taken)
