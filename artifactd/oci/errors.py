"""
The errors of the distribution spec, one class per code.

distribution-spec, "Error Codes": a body is ``{"errors": [{"code", "message", "detail"}]}`` and the
code is one of code-1 to code-14.  Where the spec has no code for a status, the subclass here says
which one stands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec


class RegistryError(Exception):
    """
    A request that can't be answered as asked, by the client's fault or the registry's.

    :param message: one sentence that names the problem and the remedy.
    :param detail: JSON-serialisable facts about the case (digests, names, figures), or ``None``.
    :param headers: response headers that belong to this answer.
    :ivar beside: members of the JSON document besides those of the spec.
    """

    code: ClassVar[str] = "UNKNOWN"
    status: ClassVar[int] = 500

    def __init__(
        self, message: str, detail: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.headers = dict(headers or {})
        self.beside: dict[str, object] = {}

    def body(self) -> bytes:
        """The JSON document of the spec, as bytes."""
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        # A detail may hold values that JSON lacks: they are written as text.
        return msgspec.json.encode({**self.beside, "errors": [error]}, enc_hook=str)


class BlobUnknown(RegistryError):
    """code-1: blob unknown to registry."""

    code, status = "BLOB_UNKNOWN", 404


class BlobUploadInvalid(RegistryError):
    """code-2: blob upload invalid."""

    code, status = "BLOB_UPLOAD_INVALID", 400


class BlobUploadUnknown(RegistryError):
    """code-3: blob upload unknown to registry."""

    code, status = "BLOB_UPLOAD_UNKNOWN", 404


class DigestInvalid(RegistryError):
    """code-4: provided digest did not match uploaded content, or is no digest."""

    code, status = "DIGEST_INVALID", 400


class ManifestBlobUnknown(RegistryError):
    """code-5: manifest references a manifest or blob unknown to registry."""

    code, status = "MANIFEST_BLOB_UNKNOWN", 400


class ManifestInvalid(RegistryError):
    """code-6: manifest invalid."""

    code, status = "MANIFEST_INVALID", 400


class ManifestUnknown(RegistryError):
    """code-7: manifest unknown to registry."""

    code, status = "MANIFEST_UNKNOWN", 404


class NameInvalid(RegistryError):
    """code-8: invalid repository name."""

    code, status = "NAME_INVALID", 400


class NameUnknown(RegistryError):
    """code-9: repository name not known to registry; an unknown route answers it, too."""

    code, status = "NAME_UNKNOWN", 404


class SizeInvalid(RegistryError):
    """code-10: provided length did not match content length."""

    code, status = "SIZE_INVALID", 400


class Unauthorized(RegistryError):
    """code-11: authentication required."""

    code, status = "UNAUTHORIZED", 401


class Denied(RegistryError):
    """code-12: requested access to the resource is denied."""

    code, status = "DENIED", 403


class Unsupported(RegistryError):
    """code-13: the operation is unsupported."""

    code, status = "UNSUPPORTED", 405


class TooManyRequests(RegistryError):
    """code-14: too many requests."""

    code, status = "TOOMANYREQUESTS", 429


class ChunkOutOfOrder(BlobUploadInvalid):
    """
    A chunk does not start at the session's offset, or another is being written (end-5, end-6: 416).

    :ivar offset: bytes staged; where the next chunk has to start.
    """

    status = 416

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message, {"offset": offset})
        self.offset = offset


class QueryInvalid(Unsupported):
    """A query parameter makes no sense; the spec has no code for it."""

    status = 400


class ContentTooLarge(SizeInvalid):
    """A body exceeds the limit set for it (end-7a: 413)."""

    status = 413


class RangeNotSatisfiable(SizeInvalid):
    """No byte of the range exists."""  # RFC 9110, 15.5.17

    status = 416


class PreconditionFailed(Denied):
    """``If-Match`` or ``If-None-Match`` does not hold; the spec has no code."""  # RFC 9110, 13.1

    status = 412


class QuotaExceeded(Denied):
    """
    A push does not fit into the quota of its repository; the spec has no code for it.

    :param used: bytes that the repository holds.
    :param requested: bytes that the push would add.
    """

    def __init__(self, repository: str, quota: int, used: int, requested: int) -> None:
        super().__init__(
            f"the quota of {repository} is exceeded: delete images there, or ask its administrator"
            " for more",
            {"repository": repository, "quota": quota, "used": used, "requested": requested},
        )


class Unavailable(RegistryError):
    """The registry can't do this now (disk full, catalog locked); the spec has no code for it."""

    status = 503


class BadGateway(RegistryError):
    """An upstream can't be reached, or answers nonsense; the spec has no code for it."""

    status = 502


class GatewayTimeout(BadGateway):
    """An upstream takes too long."""

    status = 504
