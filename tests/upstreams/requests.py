"""What an upstream was asked."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from attrs import Factory, define
from twisted.internet.defer import Deferred
from twisted.web.server import Request

Role = Literal["registry", "token", "cdn"]


@define(eq=False)
class Asked:
    """
    A request.

    :ivar role: which of the hosts was asked.
    :ivar headers: their names in lower case.
    :ivar status: of the answer, once there is one.
    :ivar sent: bytes of its body written so far.
    """

    role: Role
    method: str
    uri: str
    headers: Mapping[str, str]
    status: int | None = None
    sent: int = 0

    @classmethod
    def read(cls, role: Role, request: Request) -> Asked:
        """What ``request`` asks."""
        headers = {
            name.decode().lower(): b", ".join(values).decode()
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        return cls(role, request.method.decode(), request.uri.decode(), headers)

    @property
    def path(self) -> str:
        return urlsplit(self.uri).path

    @property
    def query(self) -> Mapping[str, list[str]]:
        return parse_qs(urlsplit(self.uri).query, keep_blank_values=True)

    def parameter(self, name: str) -> str | None:
        """The last value of a query parameter."""
        return self.query.get(name, [None])[-1]

    def wrote(self, count: int) -> None:
        """So much more of the answer's body was written."""
        self.sent += count

    def matches(self, method: str, pattern: str) -> bool:
        """Whether it has that method (``*``: any), and ``pattern`` is all of its path."""
        return method in ("*", self.method) and fnmatchcase(self.path, pattern)


@define
class Requests:
    """All that were asked, in order."""

    _all: list[Asked] = Factory(list)
    _awaited: list[tuple[str, str, int, Deferred[Asked]]] = Factory(list)

    def add(self, asked: Asked) -> None:
        """One has come."""
        self._all.append(asked)
        awaited, self._awaited = self._awaited, []
        for method, pattern, times, coming in awaited:
            matching = self.matching(method, pattern)
            if len(matching) >= times:
                coming.callback(matching[times - 1])
            else:
                self._awaited.append((method, pattern, times, coming))

    def matching(self, method: str = "*", pattern: str = "*") -> list[Asked]:
        """Those that :meth:`Asked.matches`."""
        return [asked for asked in self._all if asked.matches(method, pattern)]

    def coming(self, method: str, pattern: str, times: int) -> Deferred[Asked]:
        """Fires when there are so many, with the last of them."""
        coming: Deferred[Asked] = Deferred()
        matching = self.matching(method, pattern)
        if len(matching) >= times:
            coming.callback(matching[times - 1])
        else:
            self._awaited.append((method, pattern, times, coming))
        return coming

    def clear(self) -> None:
        """Forget them."""
        self._all.clear()
