"""
The framing of a request, checked before anything is done about it: RFC 9112, read strictly.

A request that two readers could take for two different things is refused.  A proxy in front of the
registry may be the other reader, and then one client's bytes become another client's request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from twisted.web.http_headers import Headers

# RFC 9112, 5: no white space before the colon.  RFC 9110, 5.5: of the control characters only tabs.
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*")
_LENGTH = re.compile(rb"content-length:[ \t]*([0-9]*)", re.IGNORECASE)

# No body is so large.  More digits only cost time, and other readers take them modulo something.
MOST_BYTES = 10**18 - 1
_DIGITS = len(str(MOST_BYTES))

# RFC 9110, 7.2: uri-host [ ":" port ], or nothing; with the zone of RFC 6874.
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-fv:.]+(?:%[A-Za-z0-9._~%-]+)?\])(?::[0-9]{0,5})?"
)

# RFC 9112, 3.2: origin-form, absolute-form, asterisk-form.  CONNECT's is for proxies.
_TARGET = re.compile(rb"(?:/|https?://[^/?#@]+(?:[/?]|$))[^#]*|\*", re.IGNORECASE)


def field_problem(line: bytes) -> str | None:
    """
    Return why ``line`` can't stand in a request's header section (RFC 9112, 5), as a sentence for
    the client; ``None`` if it can.
    """
    if _FIELD.fullmatch(line) is None:
        if line[:1] in (b" ", b"\t"):
            return "a header line begins with white space"
        return "a header line is malformed"
    if len(line) > _DIGITS:
        length = _LENGTH.match(line)
        if length is not None and len(length[1]) > _DIGITS:
            return "Content-Length is too large"
    return None


def request_problem(target: bytes, version: bytes, headers: Headers) -> str | None:
    """
    Return why a request with this request line and these headers is refused, as a sentence for the
    client; ``None`` if it is not.

    Checks the rules of RFC 9112, 3.2 (target, ``Host``) and 6.1 (``Transfer-Encoding``) that
    Twisted's channel does not check.
    """
    if _TARGET.fullmatch(target) is None:
        return "the request target is neither a path nor an http URL"
    hosts = headers.getRawHeaders(b"Host", ())
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        return "a request has exactly one Host header"
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        return "the Host header is malformed"
    codings = headers.getRawHeaders(b"Transfer-Encoding")
    if codings is not None:
        if version != b"HTTP/1.1":
            return "Transfer-Encoding in a request of HTTP/1.0"
        if [coding.lower() for coding in codings] != [b"chunked"]:
            return "Transfer-Encoding may be chunked alone"
        if headers.hasHeader(b"Content-Length"):
            return "Content-Length beside Transfer-Encoding"
    return None


def closes(values: Sequence[bytes]) -> bool:
    """Whether the values of a ``Connection`` header end the connection (RFC 9112, 9.3)."""
    return any(token.strip().lower() == b"close" for v in values for token in v.split(b","))


_ABSOLUTE = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def origin_form(target: bytes) -> bytes:
    """
    Remove scheme and authority from a request target.

    "A server MUST accept the absolute-form" (RFC 9112, 3.2.2), although only clients of forward
    proxies send it.
    """
    if target == b"*":
        return b"/*"  # Twisted would answer "*", the server as a whole, by itself
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def path_problem(raw_path: bytes) -> str | None:
    """
    Return why ``raw_path`` is refused before any route sees it, as a sentence for the client;
    ``None`` if it is not.

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
