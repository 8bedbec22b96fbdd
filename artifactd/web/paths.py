"""Request targets: their one form, and paths that no route should see."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

_ABSOLUTE = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def origin_form(target: bytes) -> bytes:
    """
    A request target without scheme and authority: RFC 9112, 3.2.2, "a server MUST accept the
    absolute-form", although only clients of forward proxies send it.
    """
    if target == b"*":
        return b"/*"  # the server as a whole, of which Twisted would tell by itself
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def path_problem(raw_path: bytes) -> str | None:
    """
    Why no route can be asked for ``raw_path``, as a sentence for the client; ``None`` if one can.

    Klein splits a path after unquoting it, so that an encoded slash would divide components.

    :param raw_path: the path as received, without the query.
    """
    unquoted = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
    if b"\\" in unquoted or unquoted.count(b"/") != raw_path.count(b"/"):
        return "the path contains an encoded slash or a backslash"
    if b"//" in unquoted:
        return "the path contains an empty component"
    if any(component in (b".", b"..") for component in unquoted.split(b"/")):
        return "the path contains a component that is . or .."
    try:
        text = unquoted.decode()
    except UnicodeDecodeError:
        return "the path is not UTF-8"
    return "the path contains a control character" if _CONTROL.search(text) else None
