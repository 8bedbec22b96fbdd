"""An answer of a test's upstream before it is sent, with whatever is to go wrong with it."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Literal

from attrs import Factory, define
from twisted.internet.defer import Deferred

from tests.programs import reactor
from tests.upstreams.backing import Bytes, Content
from tests.upstreams.tokens import error_body

# How it ends once its bytes are sent: as it should, by closing, or by resetting the connection.
Ending = Literal["finish", "close", "reset"]


def _raw_deflate(content: bytes) -> bytes:
    state = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return state.compress(content) + state.flush()


CODINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": _raw_deflate,
    "br": lambda content: b"\x1b" + content[::-1],  # nothing that reads it is here
}
"""How content is coded, by the name; ``deflate`` in both of its formats."""


class Gate:
    """
    Holds bodies back at an offset, until it lets them go on.

    :ivar reached: fires when the first of them has been sent so far and waits.
    """

    def __init__(self, limit: int) -> None:
        self.reached: Deferred[None] = Deferred()
        self._limit: int | None = limit
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self._told = False

    def release(self, to: int | None = None) -> None:
        """Let them go on up to offset ``to``, or to their end."""
        self._limit = to
        waiting, self._waiting = self._waiting, []
        for position, held in waiting:
            if to is None or to > position:
                held.callback(None)
            else:
                self._waiting.append((position, held))

    async def beyond(self, position: int) -> int | None:
        """The offset that may be sent up to, once it is beyond ``position``; ``None``: all."""
        while self._limit is not None and self._limit <= position:
            held: Deferred[None] = Deferred()
            self._waiting.append((position, held))
            if not self._told:
                self._told = True
                # Not from here: whoever is told may release what is not waiting yet.
                reactor.callLater(0, self.reached.callback, None)
            await held
        return self._limit


@define
class Reply:
    """
    A status, headers and the bytes ``first`` to ``stop`` (exclusive) of ``content``.

    :ivar uri: what was asked for.
    :ivar etag: a strong validator; with ``ranges`` it counts in ``If-Range``.
    :ivar ranges: whether ranges are served.
    :ivar silence: holds all of it back, the headers too.
    :ivar gates: hold the body back; offsets count in ``content``.
    :ivar relative: the same, counting from the first byte of this answer.
    :ivar corrupt: the offset in ``content`` of a byte that is sent wrong.
    :ivar after: with how many bytes of the body it ends; ``-1``: before the headers.
    :ivar excess: by how much ``Content-Length`` is too large.
    :ivar closing: the end of the connection is the body's.
    :ivar coding: what is said of how the bytes are coded; with ``coded`` they are.
    :ivar expired: there has been a token, and it is not good any more.
    """

    uri: str
    status: int = 200
    headers: dict[str, str] = Factory(dict)
    content: Content = Factory(lambda: Bytes(b""))
    etag: str | None = None
    ranges: bool = False
    first: int = 0
    stop: int = 0
    silence: Gate | None = None
    gates: list[Gate] = Factory(list)
    relative: list[Gate] = Factory(list)
    corrupt: int | None = None
    after: int | None = None
    ending: Ending = "finish"
    excess: int = 0
    chunked: bool = False
    closing: bool = False
    coding: str = ""
    coded: bool = False
    expired: bool = False

    def fail(self, status: int, code: str, message: str, detail: object = None) -> None:
        """Become an error of the distribution-spec."""
        self.status, self.ranges, self.etag = status, False, None
        self.content = Bytes(error_body(code, message, detail))
        self.headers["Content-Type"] = "application/json"

    async def resolve(self, headers: Mapping[str, str]) -> None:
        """Settle what is sent to a request with ``headers``; RFC 9110, 13.2.2 and 14.2."""
        if self.coding:
            self.headers["Content-Encoding"] = self.coding
        if self.coded:
            whole = await self.content.read(0, self.content.size)
            self.content = Bytes(CODINGS[self.coding](whole))
        if self.etag is not None:
            self.headers["ETag"] = self.etag
        self.first, self.stop = 0, self.content.size
        if self.etag is not None and headers.get("if-none-match") in (self.etag, "*"):
            self.status, self.stop = 304, 0
        elif self.ranges:
            self._resolve_range(headers)

    def _resolve_range(self, headers: Mapping[str, str]) -> None:
        self.headers["Accept-Ranges"] = "bytes"
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
        if asked is None or asked[0] == "bytes=-":
            return
        if headers.get("if-range", self.etag) != self.etag:
            return
        size = self.content.size
        if asked[1]:
            self.first = int(asked[1])
            self.stop = min(int(asked[2]) + 1, size) if asked[2] else size
        else:
            self.first = max(size - int(asked[2]), 0)
        if self.first < self.stop:
            self.status = 206
            self.headers["Content-Range"] = f"bytes {self.first}-{self.stop - 1}/{size}"
        else:
            self.fail(416, "SIZE_INVALID", "no such range")
            self.headers["Content-Range"] = f"bytes */{size}"
            self.first, self.stop = 0, self.content.size

    @property
    def length(self) -> int:
        """How many bytes of body it has to have."""
        return self.stop - self.first
