"""The audit log: the changes that were made or tried, and the requests that were refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
from attrs import define, field
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionClosed

from artifactd.kit.printable import printable
from artifactd.oci.errors import Denied, TooManyRequests, Unauthorized, Unsupported
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action
from artifactd.web.errors import expected_error
from artifactd.web.fields import parameter
from artifactd.web.gate import Need
from artifactd.web.server.accesslog import LineFile, moment, own_log
from artifactd.web.server.protocol import RegistryRequest

AUDIT = "artifactd.audit"
"""The namespace of the audit log's lines in the daemon's own log."""

_own = own_log(AUDIT)

_encode = msgspec.json.Encoder().encode

_LONGEST = 255  # characters of what a client has sent

Outcome = Literal["done", "refused", "failed"]


@define
class Asked:
    """
    The parts of a request that the audit log names.

    :ivar needs: the permission that its route needs.
    :ivar parts: the variables of the path besides the name.
    :ivar changes: whether the request changes something if it is granted.
    :ivar admitted: whether the gate has let it pass.
    :ivar image: the canonical name, once it is known; ``None`` too where the request is about no
        image.
    """

    needs: Action | Need
    parts: Mapping[str, str]
    changes: bool
    admitted: bool = False
    image: ImageName | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One line of the audit log.

    ``who`` is the caller, ``claimed`` the name of a login that failed, ``address`` the client's
    address; ``action`` is the permission that was needed and ``method`` the HTTP method; ``image``
    is the canonical name, and ``reference`` a tag, a digest or an upload session.  ``outcome`` is
    ``done``, ``refused`` (the caller may not) or ``failed`` (it could not be done), the last two
    with the ``code`` of the error.  ``request`` is the request's id in the access log.
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
    Writes a JSON object per line: for each request that changes something or tries to, and for each
    one that is refused.  Writing never raises; that a line can't be written is logged.

    :param path: the file to append to, or ``""`` for the daemon's own log, where the lines have the
        namespace ``artifactd.audit``.
    :param now: seconds since the epoch.
    :param own: writes its argument ``line`` to the daemon's own log.
    """

    path: str = ""
    now: Callable[[], float] = time.time
    own: Callable[..., None] = _own
    _file: LineFile = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._file = LineFile(self.path, "audit log")

    def open(self) -> None:
        """Open the file.  :raises OSError: if it can't be opened."""
        if self.path:
            self._file.open()

    def close(self) -> None:
        """Close the file; lines are dropped until it is opened again."""
        self._file.close()

    def done(self, request: RegistryRequest, asked: Asked, status: int) -> None:
        """Log a change that has been made."""
        self._write(request, asked, str(asked.image or ""), "done", status, "")

    def failed(
        self, request: RegistryRequest, asked: Asked, image: object, error: Exception
    ) -> None:
        """
        Log a request that was refused, or a change that failed; status 0 if the client has left.

        :param image: the canonical name as far as it is known, otherwise the name in the path.
        """
        outcome: Outcome = "failed"
        if isinstance(error, Unauthorized) or (
            not asked.admitted and isinstance(error, Denied | TooManyRequests | Unsupported)
        ):
            if asked.needs is Need.IDENTITY and not request.requestHeaders.hasHeader(
                b"Authorization"
            ):
                return  # every client begins so, to learn how to log in
            outcome = "refused"
        elif not asked.changes:
            return
        told = expected_error(error)
        left = isinstance(error, ConnectionClosed | CancelledError)
        status, code = (0, "") if left else (told.status, told.code)
        self._write(request, asked, str(image), outcome, status, code)

    def _write(
        self,
        request: RegistryRequest,
        asked: Asked,
        image: str,
        outcome: Outcome,
        status: int,
        code: str,
    ) -> None:
        # The id of an upload session only where there is no digest that it became.
        reference = (
            asked.parts.get("reference")
            or asked.parts.get("digest")
            or parameter(request, "digest")
            or parameter(request, "mount")
            or asked.parts.get("upload_id", "")
        )
        event = Event(
            time=moment(self.now()),
            who=request.actor,
            address=request.address,
            action=str(asked.needs),
            method=request.method.decode("latin-1"),
            outcome=outcome,
            status=status,
            request=request.request_id,
            code=code,
            image=image[:_LONGEST],
            reference=reference[:_LONGEST],
            claimed=request.claimed[:_LONGEST],
        )
        # ASCII, so that no character of a client ends a line for any reader.
        encoded = _encode(event)
        ascii_only = encoded.isascii()
        line = encoded.decode() if ascii_only else json.dumps(msgspec.to_builtins(event))
        if not line.isprintable():
            line = printable(line)  # DEL is ASCII too
        if self.path:
            self._file.write(line)
        else:
            self.own(line=line)
