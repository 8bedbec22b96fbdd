"""Requests that are framed in every wrong way there is, and some right ones."""

from __future__ import annotations

from attrs import frozen
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

HOST = b"Host: 127.0.0.1"

# What a body looks like: a request that must never be taken for one.
HIDDEN = "hidden"
_BODY = b"GET /v2/hidden/tags/list HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_SIZE = b"%d" % len(_BODY)

_CHUNKED = b"Transfer-Encoding: chunked"
_LENGTH = b"Content-Length: " + _SIZE


@frozen
class Framing:
    """
    Header lines and the bytes behind them; by one reading or another all these are a body.

    :ivar version: of HTTP.
    """

    fields: tuple[bytes, ...]
    body: bytes
    version: bytes = b"1.1"


def _chunks(first: bytes, *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    return first + extension + b"\r\n" + _BODY + b"\r\n0\r\n" + trailers + b"\r\n"


_HEX = b"%x" % len(_BODY)
_CODED = _chunks(_HEX)

SOUND = [
    Framing((_LENGTH,), _BODY),
    Framing((b"content-LENGTH:\t000" + _SIZE + b"\t ",), _BODY),
    Framing((_CHUNKED,), _CODED),
    Framing((b"transfer-ENCODING:ChUnKeD  ",), _chunks(_HEX.upper())),
    Framing((_CHUNKED,), _chunks(b"000" + _HEX, extension=b';a=b;c="d e"')),
    Framing((_CHUNKED, b"Trailer: X"), _chunks(_HEX, trailers=b"X: y\r\nContent-Length: 5\r\n")),
]

_TWISTED_LENGTHS = [
    b"Content-Length: " + _SIZE + b", " + _SIZE,
    b"Content-Length: +" + _SIZE,
    b"Content-Length: -" + _SIZE,
    b"Content-Length: 0x" + _HEX,
    b"Content-Length: " + _SIZE + b".0",
    b"Content-Length: " + b"9" * 5000,
    b"Content-Length: " + b"9" * 19,
    b"Content-Length: ",
    b"Content-Length: " + _SIZE + b"\x00",
    b"Content-Length: \x0b" + _SIZE,
    b"Content-Length : " + _SIZE,
    b"Content-Length\t: " + _SIZE,
    b"\tContent-Length: " + _SIZE,
    b"Content-Length:\r\n " + _SIZE,
    b"X: y\nContent-Length: " + _SIZE,
    b"X: y\rContent-Length: " + _SIZE,
    b"X: y\r\n Content-Length: " + _SIZE,
    b"Content-Length: \xd9\xa5",
]
_TWISTED_CODINGS = [
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunkedx",
    b"Transfer-Encoding: chunked;q=1",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: chun\x00ked",
    b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding: \xa0chunked",
    b"Transfer-Encoding:",
    b"Transfer-Encoding : chunked",
    b" Transfer-Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding\r\n: chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"Transfer-\x00Encoding: chunked",
]
_TWISTED_CHUNKS = [
    _chunks(first)
    for first in (
        b"",
        b" " + _HEX,
        _HEX + b" ",
        b"+" + _HEX,
        b"-" + _HEX,
        b"0x" + _HEX,
        _HEX + b"\n",
        _HEX + b"\r",
        _HEX + b"\x00",
        b"\xef\xbc\x95",
        b"1_0",
        b"0" * 2000 + _HEX,
    )
] + [
    _chunks(_HEX, extension=b";\n"),
    _chunks(_HEX, extension=b";" + b"a" * 5000),
    _HEX + b"\n" + _BODY + b"\r\n0\r\n\r\n",
    _HEX + b"\r\n" + _BODY + b"\n0\r\n\r\n",
    _HEX + b"\r\n" + _BODY + b"0\r\n\r\n",
    b"2\r\n" + _BODY + b"\r\n0\r\n\r\n",
    b"f" * 200 + b"\r\n" + _BODY,
    _chunks(_HEX, trailers=b"X: " + b"y" * 70_000 + b"\r\n"),
]

UNSOUND = [
    Framing((_LENGTH, _CHUNKED), _CODED),
    Framing((_CHUNKED, _LENGTH), _CODED),
    Framing((_CHUNKED, _LENGTH), _BODY),
    Framing((_CHUNKED, b"Content-Length: 0"), _CODED),
    Framing((b"Content-Length: 0", _CHUNKED), _CODED),
    Framing((_CHUNKED, _CHUNKED), _CODED),
    Framing((_CHUNKED, b"Transfer-Encoding: identity"), _CODED),
    Framing((b"Transfer-Encoding: identity", _CHUNKED), _CODED),
    Framing((b"Transfer-Encoding: identity", _LENGTH), _BODY),
    Framing((_LENGTH, _LENGTH), _BODY),
    Framing((_LENGTH, b"Content-Length: 0"), _BODY),
    Framing((b"Content-Length: 0", _LENGTH), _BODY),
    Framing((_CHUNKED,), _CODED, b"1.0"),
    *(Framing((field,), _BODY) for field in _TWISTED_LENGTHS),
    *(Framing((field, _LENGTH), _BODY) for field in _TWISTED_LENGTHS),
    *(Framing((field,), _CODED) for field in _TWISTED_CODINGS),
    *(Framing((field, _CHUNKED), _CODED) for field in _TWISTED_CODINGS),
    *(Framing((_LENGTH, field), _BODY) for field in _TWISTED_CODINGS),
    *(Framing((_CHUNKED,), body) for body in _TWISTED_CHUNKS),
]

_ALPHABET = st.sampled_from(
    [bytes([c]) for c in b'0123456789+-, \t\x00\x0b\x7f\x80\xff;"\r\nxchunked']
)


@st.composite
def made_up(draw: DrawFn) -> Framing:
    """A framing whose field has any value that is neither right nor that of an empty body."""
    value = b"".join(draw(st.lists(_ALPHABET, max_size=12)))
    field = draw(st.sampled_from([b"Content-Length:", b"Transfer-Encoding:"]))
    stripped = value.strip(b" \t")
    short = stripped.isdigit() and int(stripped) < len(_BODY)
    if short or b"\r\n" in value:
        value = _SIZE + b"\x0b"
    return Framing((field + value,), draw(st.sampled_from([_BODY, _CODED])))


FRAMINGS = st.sampled_from(SOUND) | st.sampled_from(UNSOUND) | made_up()

# Where a body is wanted, where it is refused before or after its first byte, where it is nobody's.
PLACES = [
    b"PUT /v2/fuzz/manifests/latest",
    b"PUT /v2/fuzz/manifests/-",
    b"POST /v2/fuzz/blobs/uploads/?digest=sha256:" + b"0" * 64,
    b"POST /v2/fuzz/blobs/uploads/?digest=no",
    b"PATCH /v2/fuzz/blobs/uploads/00000000-0000-0000-0000-000000000000",
    b"PUT /nowhere",
    b"GET /v2/",
    b"GET /v2/fuzz/tags/list",
    b"DELETE /v2/fuzz/manifests/latest",
    b"put /v2/fuzz/manifests/latest",
    b"OPTIONS *",
    b"PUT http://elsewhere.example/v2/fuzz/manifests/latest",
    b"CONNECT elsewhere.example:443",
]

_EXTRAS = [
    b"Connection: close",
    b"Connection: keep-alive, Close",
    b"Connection: Transfer-Encoding",
    b"Connection: upgrade, http2-settings",
    b"Connection: content-length",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAMAAABkAAQAAP__",
    b"Expect: 100-continue",
    b"Expect: 100-Continue",
    b"Expect: something",
    b"TE: trailers, chunked",
    b"X-Forwarded-For: 1.2.3.4",
    b"X-Original-URL: /v2/hidden/tags/list",
    b"X-HTTP-Method-Override: GET",
    b"Cookie: a=b; c",
    b"Range: bytes=0-0,-1",
    b"Content-Range: 0-1",
    b"Content-Type: application/vnd.oci.image.manifest.v1+json",
    b"Content-Type: multipart/form-data; boundary=hidden",
    b"Authorization: Basic Og==",
    b"If-None-Match: *",
]


def whole(place: bytes, framing: Framing, extras: list[bytes]) -> bytes:
    """A request with a body."""
    lines = [place + b" HTTP/" + framing.version, HOST, *extras, *framing.fields]
    return b"\r\n".join([*lines, b"", b""]) + framing.body


REQUESTS: SearchStrategy[bytes] = st.builds(
    whole,
    st.sampled_from(PLACES),
    FRAMINGS,
    st.lists(st.sampled_from(_EXTRAS), max_size=3, unique=True),
)

# Whole messages that are not as they should be in other ways.
LINES = [
    b"GET /v2/\r\n",
    b"GET /v2/\r\n\r\n",
    b"GET  /v2/ HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET /v2/ HTTP/1.1 \r\nHost: r\r\n\r\n",
    b"GET /v2/\tHTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET /v2/ HTTP/1.1\nHost: r\n\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r\n\r\n",
    b"GET /v2/ HTTP/1.1\rHost: r\r\r",
    b"GET /v2/ HTTP/1.1\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r\r\nHost: s\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r, s\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r/../\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\n Host: r\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r\r\n:\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r\r\nno colon\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r\r\nX\xff: y\r\n\r\n",
    b"GET /v2/ HTTP/2.0\r\nHost: r\r\n\r\n",
    b"GET /v2/ HTTP/0.9\r\n\r\n",
    b"GET /v2/ http/1.1\r\nHost: r\r\n\r\n",
    b"GET /v2/ HTTP/1.10\r\nHost: r\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"GET /v2/" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 100,
    b"\r\n\r\n\r\n",
    b"CONNECT r:443 HTTP/1.1\r\nHost: r:443\r\n\r\n",
    b"GET r:443 HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET file:///etc/passwd HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET http:///v2/ HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET http://a@b:c/v2/ HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET /v2/#x HTTP/1.1\r\nHost: r\r\n\r\n",
    b"get /v2/ HTTP/1.1\r\nHost: r\r\n\r\n",
    b"head /v2/ HTTP/1.1\r\nHost: r\r\n\r\n",
    b"G\x00T /v2/ HTTP/1.1\r\nHost: r\r\n\r\n",
    b"TRACE /v2/ HTTP/1.1\r\nHost: r\r\n\r\n",
    b"HEAD /v2/nothing/tags/list HTTP/1.1\r\nHost: r\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: r\r\nExpect: 100-continue\r\n\r\n",
    b"PUT /v2/fuzz/manifests/a HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\n\r\n",
    b"PUT /v2/fuzz/manifests/a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
]

_TARGETS = st.lists(
    st.sampled_from(
        [
            b"/",
            b"v2",
            b"a",
            b"..",
            b".",
            b"%2e",
            b"%2F",
            b"%5c",
            b"%00",
            b"%0d%0a",
            b"%",
            b"%zz",
            b"%ff",
            b"%C0%AF",
            b"%u002f",
            b"\x7f",
            b"\x80",
            b"?",
            b"&",
            b"=",
            b"n=-1",
            b"last=%00",
            b"n=99999999999999999999",
            b"%252f",
            b"tags/list",
            b"manifests",
            b"blobs",
            b"sha256:",
            b"uploads",
            b"_catalog",
            b"referrers",
            b";",
            b":",
            b"@",
            b"+",
            b"http://x",
            b"digest=%",
            b"mount=sha256:" + b"a" * 64,
            b"from=%2e%2e",
            b"ns=\x7f",
            b"artifactType=%00",
            b"#",
            b"*",
        ]
    ),
    max_size=8,
).map(lambda parts: b"/v2/" + b"".join(parts))

TARGETED: SearchStrategy[bytes] = st.builds(
    lambda method, target: method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n\r\n",
    st.sampled_from([b"GET", b"HEAD", b"DELETE", b"POST", b"PATCH", b"PUT", b"OPTIONS", b"BREW"]),
    _TARGETS,
)


@st.composite
def mutated(draw: DrawFn) -> bytes:
    """A request some of whose bytes are others, are doubled, or are left out."""
    message = bytearray(draw(REQUESTS | TARGETED | st.sampled_from(LINES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(len(message), 300) - 1)))
        kind = draw(st.sampled_from("rid"))
        if kind == "r":
            message[at : at + 1] = draw(st.binary(min_size=1, max_size=2))
        elif kind == "i":
            message[at:at] = message[at : at + draw(st.integers(1, 40))]
        else:
            del message[at : at + draw(st.integers(1, 20))]
    return bytes(message)
