"""
The framing of a request, checked before anything is done about it: RFC 9112, read strictly.

A request that two readers could take for two different things is refused.  A proxy in front of the
registry may be the other reader, and then one client's bytes become another client's request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote_to_bytes

from twisted.web.http_headers import Headers

CONTROLS = bytes((*range(9), *range(10, 32), 127))
"""The bytes that no value of a field may have: the control characters but tabs (RFC 9110, 5.5)."""

# RFC 9112, 5: no white space before the colon.
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^" + re.escape(CONTROLS) + rb"]*")
_LENGTH = re.compile(rb"content-length:[ \t]*([0-9]*)", re.IGNORECASE)

# No body is so large.  More digits only cost time, and other readers take them modulo something.
MOST_BYTES = 10**18 - 1
_DIGITS = len(str(MOST_BYTES))

# RFC 9110, 7.2: uri-host [ ":" port ], or nothing; with the zone of RFC 6874.  A port is 65535 at
# most.
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-fv:.]+(?:%[A-Za-z0-9._~%-]+)?\])"
    rb"(?::(?:[0-9]{0,4}|[0-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
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


class FramingError(Exception):
    """A body that is framed wrong; its text is a sentence for the client."""


# RFC 9112, 7.1 and 7.1.1: the size of a chunk in hexadecimal digits, and extensions, which are
# ignored.
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:;[\t !-\[\]-~\x80-\xff]*)?")
_LONGEST_LINE = 1024

# What stands between two chunks, as clients send it: most bodies have it thousands of times.
_BETWEEN = re.compile(rb"\r\n([1-9A-Fa-f][0-9A-Fa-f]{0,13})\r\n")

# The last chunk, without trailers.
_LAST_CHUNK = b"0\r\n\r\n"

FREE_FRAMING = 16 << 10
"""
Bytes of framing that a chunked body may have, however small its chunks are: some 3,000 of a byte
each, which may come in one read and take about 10 ms.
"""


class ChunkedDecoder:
    """
    Decodes a body in the chunked transfer coding (RFC 9112, 7.1).

    All chunks that arrive in one read are delivered as one piece, so that their number costs the
    receiver nothing.  Beyond :data:`FREE_FRAMING` a body may not have more bytes of framing (sizes,
    extensions, ends of lines) than of content: chunks have to have six bytes or so on the average.

    Trailers are held to the bounds of headers, and dropped.

    :param deliver: takes the content of each read.
    :param finish: called at the end of the body, with the bytes behind it.
    :param trailer_size: the most bytes of trailers, without the ends of lines.
    :param trailer_count: the most trailers.
    """

    def __init__(
        self,
        deliver: Callable[[bytes], None],
        finish: Callable[[bytes], None],
        trailer_size: int,
        trailer_count: int,
    ) -> None:
        self._deliver, self._finish = deliver, finish
        self._trailer_size, self._trailer_count = trailer_size, trailer_count
        self._rest = b""  # the beginning of a line
        self._left = 0  # bytes missing of the chunk that is being received
        self._within = False  # whether a chunk is being received, up to the end of line behind it
        self._content = self._framing = 0
        self._skipping = False
        self.in_trailers = False

    def skip(self) -> None:
        """
        Parse nothing from now on: deliver what arrives as it is, framing and all.

        The body ends with the first read that ends as a body ends, which is when the client waits.
        A chunk may happen to have these bytes there; the body is of no use to anybody by then.
        """
        self._skipping = True
        self._rest = (_LAST_CHUNK[:3] if self.in_trailers else b"") + self._rest
        self.in_trailers = False

    def dataReceived(self, data: bytes) -> None:
        """
        Take the bytes of one read, at least one.

        :raises FramingError: if they are framed wrong; what comes before is delivered.
        """
        if self._skipping:
            tail = self._rest + data[-len(_LAST_CHUNK) :]
            self._rest = tail[1 - len(_LAST_CHUNK) :]
            self._deliver(data)
            if tail.endswith(_LAST_CHUNK):
                self._finish(b"")
            return
        data = self._rest + data if self._rest else data
        spans: list[slice] = []
        end = None
        try:
            end = self._parse(data, spans)
        finally:
            if spans:
                self._deliver(_joined(data, spans))
        if end is not None:
            self._finish(data[end:])

    def _parse(self, data: bytes, spans: list[slice]) -> int | None:
        """Note in ``spans`` where content is; return where the body ends, ``None``: not yet."""
        at = 0
        while True:
            if self._left:
                size = min(self._left, len(data) - at)
                spans.append(slice(at, at + size))
                at += size
                self._left -= size
                self._content += size
                between = None if self._left else _BETWEEN.match(data, at)
                if between is not None:
                    self._left = int(between[1], 16)
                    self._add_framing(between.end() - at)
                    at = between.end()
                    continue
            if self._left or at == len(data):
                self._rest = b""
                return None
            end = data.find(b"\r\n", at, at + _LONGEST_LINE + 2)
            if self._within:
                if end != at and data[at:] != b"\r":
                    raise FramingError("a chunk is not as long as it says")
            elif self.in_trailers:
                if end == at:
                    return at + 2
                end = data.find(b"\r\n", at)
                self._trailer(data[at:end] if end >= 0 else data[at:], whole=end >= 0)
            elif end < 0 and len(data) - at > _LONGEST_LINE:
                raise FramingError(f"the size of a chunk takes more than {_LONGEST_LINE} bytes")
            if end < 0:
                self._rest = data[at:]
                return None
            if self._within:
                self._within = False
            elif not self.in_trailers:
                self._begin(data[at:end])
            self._add_framing(end + 2 - at)
            at = end + 2

    def _add_framing(self, size: int) -> None:
        self._framing += size
        if self._framing > FREE_FRAMING and self._framing > self._content + self._left:
            raise FramingError("its chunks are too small: they are framing more than content")

    def _begin(self, line: bytes) -> None:
        """Begin the chunk, or the trailers, that ``line`` announces."""
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise FramingError("the size of a chunk is malformed")
        size = int(match[1], 16)  # of a thousand digits at most, which costs nothing in this base
        if size > MOST_BYTES:
            raise FramingError("the size of a chunk is too large")
        self._left = size
        self._within = self._left > 0
        self.in_trailers = not self._within

    def _trailer(self, line: bytes, *, whole: bool) -> None:
        """Check a trailer, or the beginning of one."""
        if len(line) - line.endswith(b"\r") > self._trailer_size:
            raise FramingError("its trailers are too large")
        if not whole:
            return
        problem = field_problem(line)
        if problem is not None:
            raise FramingError(f"in its trailers, {problem}")
        self._trailer_size -= len(line)
        self._trailer_count -= 1
        if self._trailer_count < 0:
            raise FramingError("it has too many trailers")


def _joined(data: bytes, spans: list[slice]) -> bytes:
    """The parts of ``data`` that ``spans`` name, in one piece; copied once, or not at all."""
    if len(spans) == 1:
        return data[spans[0]]
    view = memoryview(data)
    return b"".join([view[span] for span in spans])


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
        return b"/*"  # the server as a whole: a path, as any other, that no route has
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def path_problem(raw_path: bytes) -> str | None:
    """
    Return why ``raw_path`` is refused before any route sees it, as a sentence for the client;
    ``None`` if it is not.

    Routes match the unquoted path, in which an encoded slash would divide components.

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
