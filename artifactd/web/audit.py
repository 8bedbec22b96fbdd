"""The audit log: who has changed what, or tried to; and who was refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec
from attrs import define, field
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionClosed
from twisted.logger import Logger

from artifactd.oci.errors import Denied, TooManyRequests, Unauthorized, Unsupported
from artifactd.settings.access import Action
from artifactd.web.errors import expected_error
from artifactd.web.fields import parameter
from artifactd.web.gate import Need
from artifactd.web.server.accesslog import LineFile
from artifactd.web.server.protocol import RegistryRequest

_log = Logger(namespace="artifactd.audit")

_LONGEST = 255  # characters of what a client has sent

Outcome = Literal["done", "refused", "failed"]


@define
class Asked:
    """
    What a request is about.

    :ivar needs: what its route needs.
    :ivar name: of the image, as in the path; empty where it is about none.
    :ivar namespace: of a mirror's request.
    :ivar parts: the other variables of the path.
    :ivar admitted: whether the gate has let it pass.
    :ivar image: the canonical name, once it is known.
    """

    needs: Action | Need
    name: str
    namespace: str | None
    parts: Mapping[str, str]
    admitted: bool = False
    image: str = ""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One line.

    ``who`` is the caller, ``claimed`` the name of a login that failed, ``address`` the client's;
    ``action`` is what was needed and ``method`` how it was asked for; ``image`` and ``reference``
    are the canonical name, and a tag, a digest or an upload session.  ``outcome`` is ``done``,
    ``refused`` (the caller may not) or ``failed`` (it could not be done), the last two with the
    ``code`` of the error.  ``request`` is the request's id in the access log.
    """

    time: str
    who: str
    address: str
    action: str
    method: str
    outcome: Outcome
    status: int
    request: str
    code: str = ""
    image: str = ""
    reference: str = ""
    claimed: str = ""


@define
class AuditLog:
    """
    Writes a JSON object per line: for every request that changes something or tries to, and for
    every one that is refused.  Never raises; what keeps a line from being written is logged.

    :param path: the file to append to, or ``""`` for the daemon's own log, where the lines have the
        namespace ``artifactd.audit``.
    :param now: seconds since the epoch.
    """

    path: str = ""
    now: Callable[[], float] = time.time
    _file: LineFile = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._file = LineFile(self.path, "audit log")

    def open(self) -> None:
        """:raises OSError: if the file can't be opened."""
        if self.path:
            self._file.open()

    def close(self) -> None:
        """Lines are dropped until it is opened again."""
        self._file.close()

    def answered(self, request: RegistryRequest, asked: Asked, status: int) -> None:
        """What was asked has been done."""
        if _changes(request, asked):
            self._write(request, asked, "done", status, "")

    def failed(self, request: RegistryRequest, asked: Asked, error: Exception) -> None:
        """What was asked has not been done; status 0 where the client has left meanwhile."""
        told = expected_error(error)
        left = isinstance(error, ConnectionClosed | CancelledError)
        status, code = (0, "") if left else (told.status, told.code)
        if _is_refusal(error, asked):
            if not _asks_how_to_log_in(request, asked):
                self._write(request, asked, "refused", status, code)
        elif _changes(request, asked):
            self._write(request, asked, "failed", status, code)

    def _write(
        self, request: RegistryRequest, asked: Asked, outcome: Outcome, status: int, code: str
    ) -> None:
        at = datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="milliseconds")
        event = Event(
            time=at.replace("+00:00", "Z"),
            who=request.actor,
            address=request.address,
            action=str(asked.needs),
            method=request.method.decode("latin-1"),
            outcome=outcome,
            status=status,
            request=request.request_id,
            code=code,
            image=asked.image[:_LONGEST],
            reference=_reference(request, asked.parts),
            claimed=request.claimed[:_LONGEST],
        )
        # ASCII, so that nothing a client has sent ends a line for any reader.
        line = json.dumps(msgspec.to_builtins(event))
        if self.path:
            self._file.write(line)
        else:
            _log.info("{line}", line=line)


def _changes(request: RegistryRequest, asked: Asked) -> bool:
    """Whether the request is one that changes something, if it is granted."""
    writes = isinstance(asked.needs, Action) and asked.needs is not Action.PULL
    return writes and request.method not in (b"GET", b"HEAD")


def _is_refusal(error: Exception, asked: Asked) -> bool:
    if isinstance(error, Unauthorized):
        return True
    return not asked.admitted and isinstance(error, Denied | TooManyRequests | Unsupported)


def _reference(request: RegistryRequest, parts: Mapping[str, str]) -> str:
    """A session is known by what has become of it."""
    given = parts.get("reference") or parts.get("digest")
    asked = given or parameter(request, "digest") or parameter(request, "mount")
    return (asked or parts.get("upload_id", ""))[:_LONGEST]


def _asks_how_to_log_in(request: RegistryRequest, asked: Asked) -> bool:
    """With that every client begins: it has said nothing that could be refused."""
    return asked.needs is Need.IDENTITY and not request.requestHeaders.hasHeader(b"Authorization")
