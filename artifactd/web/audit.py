"""The audit log: changes that were made or tried, logins, and requests that were refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionClosed

from artifactd.kit.lines import LineFile, OwnLog, moment, own_log
from artifactd.kit.printable import printable
from artifactd.oci.errors import (
    Denied,
    RegistryError,
    TooManyRequests,
    Unauthorized,
    Unsupported,
)
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.settings.access import Action
from artifactd.web.errors import expected_error
from artifactd.web.fields import parameter
from artifactd.web.gate import Need
from artifactd.web.server.protocol import RegistryRequest

AUDIT = "artifactd.audit"
"""The namespace of the audit log's lines in the daemon's own log."""

_own = own_log(AUDIT)

_encode = msgspec.json.Encoder().encode

_LONGEST = 255  # characters of what a client has sent
_NOBODY = ("-", "anonymous")  # the actors that have not logged in

Outcome = Literal["done", "refused", "failed"]


@frozen
class Change:
    """
    A tag or a manifest that a request has pushed or deleted, or a blob that it has deleted; or one
    that it has failed to change.

    :ivar digest: of the manifest or blob; ``None``: only the tag is deleted.
    :ivar size: bytes of the manifest that was pushed, and of the blobs and manifests that it lists.
    :ivar before: the digest that the tag pointed at until then; ``None``: there was no such tag.
    :ivar error: why it has not changed; ``None``: it has.
    """

    digest: Digest | None = None
    size: int = 0
    tag: Tag | None = None
    before: Digest | None = None
    error: RegistryError | None = None


@define
class Asked:
    """
    The parts of a request that the audit log names.

    :ivar needs: the permission that its route needs.
    :ivar parts: the variables of the path besides the name.
    :ivar changes: whether the request changes something if it is granted.
    :ivar part_of_push: whether it pushes a blob, or a part of one.
    :ivar admitted: whether the gate has let it pass.
    :ivar image: the canonical name, once it is known; ``None`` too where the request is about no
        image.
    """

    needs: Action | Need
    parts: Mapping[str, str]
    changes: bool
    part_of_push: bool = False
    admitted: bool = False
    image: ImageName | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One line of the audit log.

    ``who`` is the caller, ``claimed`` the name of a login that failed, ``address`` the client's
    address and ``agent`` its program; ``action`` is the permission that was needed, and ``login``
    or ``token`` for a login; ``method`` is the HTTP method; ``image`` is the canonical name.
    ``tag``, ``digest``, ``before`` and ``bytes`` are those of a :class:`Change`, or what a request
    names that failed; ``upload`` is the id of an upload session.  ``outcome`` is ``done``,
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
    tag: str = ""
    digest: str = ""
    before: str = ""
    bytes: int = 0
    upload: str = ""
    agent: str = ""
    claimed: str = ""


@define
class AuditLog:
    """
    Writes a JSON object per line: for each tag and manifest that is pushed or deleted or that was
    to be, for each login, and for each request that is refused.  Writing never raises; that a line
    can't be written is logged.

    :param path: the file to append to, or ``""`` for the daemon's own log, where the lines have the
        namespace ``artifactd.audit``.
    :param blobs: whether there is a line, too, for each request that pushes a blob.
    :param now: seconds since the epoch.
    :param own: writes to the daemon's own log.
    :param login_refused: called for each login with a name and a password that is refused, with
        ``wrong``, or ``too_many`` where it was not looked at.
    """

    path: str = ""
    blobs: bool = False
    now: Callable[[], float] = time.time
    own: OwnLog = _own
    login_refused: Callable[[str], object] = lambda reason: None
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

    def done(
        self, request: RegistryRequest, asked: Asked, status: int, changes: Sequence[Change]
    ) -> None:
        """
        Log each change that a request has made, or has failed to make.  A request without any is
        logged, too; one that pushes a blob only if :attr:`blobs` says so.
        """
        image = str(asked.image or "")
        for change in changes:
            error = change.error
            if error is None:
                self._write(request, asked, image, "done", status, change=change)
            else:
                self._write(request, asked, image, "failed", error.status, error.code, change)
        if not changes and (self.blobs or not asked.part_of_push):
            self._write(request, asked, image, "done", status)

    def logged_in(self, request: RegistryRequest, asked: Asked, status: int) -> None:
        """
        Log that a caller who asked ``/v2/`` or ``/token`` has logged in.  That is no login where
        the caller is anonymous, or has a token, which was logged when it was given.
        """
        if request.actor in _NOBODY or request.caller.scopes is not None:
            return
        self._write(request, asked, "", "done", status)

    def failed(
        self, request: RegistryRequest, asked: Asked, image: object, error: Exception
    ) -> None:
        """
        Log a request that was refused, or a change that failed; status 0 if the client has left.

        :param image: the canonical name as far as it is known, otherwise the name in the path.
        """
        if request.claimed and isinstance(error, Unauthorized | TooManyRequests):
            self.login_refused("wrong" if isinstance(error, Unauthorized) else "too_many")
        outcome: Outcome = "failed"
        if isinstance(error, Unauthorized) or (
            not asked.admitted and isinstance(error, Denied | TooManyRequests | Unsupported)
        ):
            if asked.needs is Need.IDENTITY and not request.requestHeaders.hasHeader(
                b"Authorization"
            ):
                return  # every client begins so, to learn how to log in
            outcome = "refused"
        elif not asked.changes or (asked.part_of_push and not self.blobs):
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
        code: str = "",
        change: Change | None = None,
    ) -> None:
        named = _named(request, asked) if change is None else _changed(change)
        agent = request.requestHeaders.getRawHeaders(b"User-Agent", (b"",))[0]
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
            bytes=0 if change is None else change.size,
            agent=agent.decode("utf-8", "backslashreplace")[:_LONGEST],
            claimed=request.claimed[:_LONGEST],
            **{key: value[:_LONGEST] for key, value in named.items()},
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
            part = event.tag or event.digest
            what = f"{image}:{part}" if part else image
            self.own(line, f"{event.who} {event.action} {what} {event.outcome}".replace("  ", " "))


def _changed(change: Change) -> dict[str, str]:
    return {
        "tag": str(change.tag or ""),
        "digest": str(change.digest or ""),
        "before": str(change.before or ""),
    }


def _named(request: RegistryRequest, asked: Asked) -> dict[str, str]:
    """Return what a request names, as the client wrote it."""
    reference = asked.parts.get("reference") or request.named or parameter(request, "reference")
    if reference is not None:
        return {"digest" if ":" in reference else "tag": reference}
    digest = (
        asked.parts.get("digest") or parameter(request, "digest") or parameter(request, "mount")
    )
    return {"digest": digest or "", "upload": asked.parts.get("upload_id", "")}
