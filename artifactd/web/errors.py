"""One mapping from what went wrong to what the client reads."""

from __future__ import annotations

import errno

from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from artifactd.oci.errors import NameUnknown, RegistryError, Unavailable, Unsupported
from artifactd.web.request import RegistryRequest

_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

_log = Logger()


def registry_error(request: RegistryRequest, failure: Failure) -> RegistryError:
    """
    The error to answer with.  Logs it in one line, an unexpected one with its traceback and the
    request id that the client is told.
    """
    error = failure.value
    if isinstance(error, MethodNotAllowed):
        error = Unsupported(
            "this method is not supported here",
            None,
            {"Allow": ", ".join(error.valid_methods or ())},
        )
    elif isinstance(error, HTTPException):
        error = NameUnknown("no such endpoint: expected /v2/<name>/… as the distribution spec says")
    elif isinstance(error, OSError) and error.errno in _OUT_OF_SPACE:
        error = Unavailable(
            "the registry is out of disk space: nothing was stored; try again later"
        )
    if not isinstance(error, RegistryError):
        return _unexpected(request, failure)
    if error.status >= 500:
        _log.error("{method} {path}: {error}", **_described(request, error))
    elif error.status != 404 or request.method not in (b"GET", b"HEAD"):
        # A 404 to a read is an answer like any other: clients ask before they push.
        _log.info("refused {method} {path}: {code} {error} {detail}", **_described(request, error))
    return error


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


def _described(request: RegistryRequest, error: RegistryError) -> dict[str, object]:
    return {
        "method": request.method.decode("latin-1"),
        "path": request.path.decode("latin-1"),
        "code": error.code,
        "error": error.message,
        "detail": error.detail or "",
    }
