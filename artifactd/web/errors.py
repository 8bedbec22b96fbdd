"""Maps every exception to the error that the client reads."""

from __future__ import annotations

import errno

from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from artifactd.oci.errors import NameUnknown, RegistryError, Unavailable, Unsupported
from artifactd.web.server.protocol import RegistryRequest

_FULL = "the registry is out of disk space: nothing was stored; try again later"
_BROKEN = "the registry's disk fails to read or write: try again later; its system's log has more"
_DESCRIPTORS = "the registry is out of file descriptors: try again later, or raise its limit"

# Conditions of the machine; any other OSError is a bug, or our files were changed from outside.
_CONDITIONS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EIO: _BROKEN,
    errno.EROFS: _BROKEN,
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
}

_log = Logger()


def registry_error(request: RegistryRequest, failure: Failure) -> RegistryError:
    """
    Return the error to answer with, and log it.

    An expected error takes one line in the log; a bug is logged with its traceback and the request
    id, which the client gets too.
    """
    error = expected_error(failure.value)
    if type(error) is RegistryError:
        return _unexpected(request, failure)
    if error.status >= 500:
        _log.error("{method} {path}: {error}{cause}", **_described(request, error))
    elif not _is_ordinary(request, error):
        _log.info("refused {method} {path}: {code} {error} {detail}", **_described(request, error))
    return error


def expected_error(error: BaseException | None) -> RegistryError:
    """Return ``error`` as the client reads it; a bare :class:`RegistryError` if it is a bug."""
    if isinstance(error, RegistryError):
        return error
    if isinstance(error, MethodNotAllowed):
        return Unsupported(
            "this method is not supported here",
            None,
            {"Allow": ", ".join(error.valid_methods or ())},
        )
    if isinstance(error, HTTPException):
        return NameUnknown(
            "no such endpoint: expected /v2/<name>/… as the distribution spec says, or /api/v1/… as"
            " /api/v1/openapi.json says"
        )
    if isinstance(error, OSError) and error.errno in _CONDITIONS:
        unavailable = Unavailable(_CONDITIONS[error.errno])
        unavailable.__cause__ = error
        return unavailable
    return RegistryError("the registry failed")


def _unexpected(request: RegistryRequest, failure: Failure) -> RegistryError:
    _log.failure(
        "{method} {path} failed, request {request_id}",
        failure,
        method=request.method.decode("latin-1"),
        path=request.path.decode("latin-1"),
        request_id=request.request_id,
    )
    return RegistryError(
        "the registry failed; its log has the cause under this request id",
        {"requestId": request.request_id},
    )


def _is_ordinary(request: RegistryRequest, error: RegistryError) -> bool:
    """
    Whether an error is not worth a line in the log: a 404 to a read, since clients ask before they
    push, or a 401 to a request without credentials, since every login begins with that.
    """
    if error.status == 401:
        return not request.requestHeaders.hasHeader(b"Authorization")
    return error.status == 404 and request.method in (b"GET", b"HEAD")


def _described(request: RegistryRequest, error: RegistryError) -> dict[str, object]:
    return {
        "method": request.method.decode("latin-1"),
        "path": request.path.decode("latin-1"),
        "request_id": request.request_id,
        "who": request.actor,
        "code": error.code,
        "error": error.full_message,
        "detail": error.full_detail or "",
        "cause": "" if error.__cause__ is None else f" ({error.__cause__})",
    }
