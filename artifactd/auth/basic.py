"""What a user and a password may be made of: RFC 7617, 2."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def fits_basic(user: str, password: str) -> bool:
    """
    Whether they arrive by Basic as they are: a ``:`` would end the user early, and control
    characters are not allowed.  Others that Basic is spoken to, upstreams, are shown no such ones.
    """
    return ":" not in user and not _CONTROL.search(user + password)
