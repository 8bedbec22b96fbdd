"""
The errors of the distribution spec ("Error Codes"), one class per code.

The body of such an answer is ``{"errors": [{"code", "message", "detail"}]}``.  Where the spec has
no code for a status, a subclass takes the code of its base class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from artifactd.oci.sizes import exact_bytes


class RegistryError(Exception):
    """
    A request that can't be answered as asked, by the client's fault or the registry's.

    :param message: one sentence that names the problem and the remedy.
    :param detail: JSON-serialisable facts about the case (digests, names, figures), or ``None``.
    :param headers: response headers that belong to this answer.
    :param stored: members of ``detail`` that tell what is stored: only a client that may pull the
        image gets them.
    :ivar beside: further members of the JSON document, beside ``errors``.
    """

    code: ClassVar[str] = "UNKNOWN"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        detail: object = None,
        headers: Mapping[str, str] | None = None,
        stored: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.headers = dict(headers or {})
        self.stored = stored
        self.beside: dict[str, object] = {}

    @property
    def full_detail(self) -> object:
        """``detail`` with the members of ``stored``."""
        if self.stored is None:
            return self.detail
        return {**self.detail, **self.stored} if isinstance(self.detail, dict) else self.stored

    @property
    def full_message(self) -> str:
        """``message``, perhaps with figures of ``stored``."""
        return self.message

    def body(self, *, sees_stored: bool = False) -> bytes:
        """
        The JSON document of the spec, as bytes.

        :param sees_stored: whether the client may learn what is stored.
        """
        message = self.full_message if sees_stored else self.message
        error: dict[str, object] = {"code": self.code, "message": message}
        detail = self.full_detail if sees_stored else self.detail
        if detail is not None:
            error["detail"] = detail
        # A detail may hold values that JSON lacks: they are written as text.
        return msgspec.json.encode({**self.beside, "errors": [error]}, enc_hook=str)


class BlobUnknown(RegistryError):
    """The image has no such blob."""  # code-1

    code, status = "BLOB_UNKNOWN", 404


class BlobUploadInvalid(RegistryError):
    """A chunk or the end of an upload is malformed, or does not fit the session."""  # code-2

    code, status = "BLOB_UPLOAD_INVALID", 400


class BlobUploadUnknown(RegistryError):
    """There is no such upload session."""  # code-3

    code, status = "BLOB_UPLOAD_UNKNOWN", 404


class DigestInvalid(RegistryError):
    """A digest is malformed, unsupported, or not that of the bytes sent."""  # code-4

    code, status = "DIGEST_INVALID", 400


class ManifestBlobUnknown(RegistryError):
    """A manifest refers to blobs or manifests that the image does not have."""  # code-5

    code, status = "MANIFEST_BLOB_UNKNOWN", 400


class ManifestInvalid(RegistryError):
    """A manifest or a reference is malformed, or a manifest exceeds a bound."""  # code-6

    code, status = "MANIFEST_INVALID", 400


class ManifestUnknown(RegistryError):
    """The image has no such manifest or tag."""  # code-7

    code, status = "MANIFEST_UNKNOWN", 404


class NameInvalid(RegistryError):
    """A name breaks the spec's grammar, or a path could be read in two ways."""  # code-8

    code, status = "NAME_INVALID", 400


class NameUnknown(RegistryError):
    """There is no image of that name; also the answer to an unknown route."""  # code-9

    code, status = "NAME_UNKNOWN", 404


class SizeInvalid(RegistryError):
    """A body does not have the length that the client stated."""  # code-10

    code, status = "SIZE_INVALID", 400


class Unauthorized(RegistryError):
    """The client has to log in, or its credentials are wrong."""  # code-11

    code, status = "UNAUTHORIZED", 401


class Denied(RegistryError):
    """The client may not do this."""  # code-12

    code, status = "DENIED", 403


class Unsupported(RegistryError):
    """The registry, its settings or its present state don't allow this operation."""  # code-13

    code, status = "UNSUPPORTED", 405


class TooManyRequests(RegistryError):
    """The client exceeds a limit and has to wait."""  # code-14

    code, status = "TOOMANYREQUESTS", 429


class ChunkOutOfOrder(BlobUploadInvalid):
    """
    A chunk does not start at the session's offset, or another chunk is being written.

    :ivar offset: bytes staged: the offset at which the next chunk has to start.
    """  # end-5, end-6

    status = 416

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message, {"offset": offset})
        self.offset = offset


class QueryInvalid(Unsupported):
    """A query parameter makes no sense; the spec has no code for it."""

    status = 400


class ContentTooLarge(SizeInvalid):
    """A body exceeds the limit set for it."""  # end-7a

    status = 413


class RangeNotSatisfiable(SizeInvalid):
    """No byte of the range exists."""  # RFC 9110, 15.5.17

    status = 416


class PreconditionFailed(Denied):
    """``If-Match`` or ``If-None-Match`` does not hold; the spec has no code."""  # RFC 9110, 13.1

    status = 412


class TagImmutable(Denied):
    """
    A tag may not be moved or deleted; the spec has no code for it.

    :ivar rule: the pattern of the settings that says so.
    :param current: the digest that the tag points at.
    """

    def __init__(self, tag: str, rule: str, current: object) -> None:
        self.rule = rule
        self._tag, self._current = tag, current
        super().__init__(
            self._told(""),
            {"tag": tag, "immutable_tags": rule},
            stored={"current": str(current)},
        )

    def _told(self, at: str) -> str:
        return (
            f"the tag {self._tag} is there{at} and is neither moved nor deleted: immutable_tags of"
            f' the settings has "{self.rule}"; push under another tag'
        )

    @property
    def full_message(self) -> str:
        return self._told(f", at {self._current},")


class TagExists(Denied):
    """
    A client that may only push what is not there would move a tag, or give a manifest another media
    type; the spec has no code for it.

    :param reference: the tag or digest.
    :param rule: what allows the client no more.
    :param current: the digest that the reference points at.
    """

    def __init__(self, reference: object, rule: str, current: object) -> None:
        self._reference, self._rule, self._current = reference, rule, current
        super().__init__(
            self._told(""),
            {"reference": str(reference), "rule": rule},
            stored={"current": str(current)},
        )

    def _told(self, at: str) -> str:
        return (
            f"{self._reference} is there{at} and {self._rule} allows to push only what is not: push"
            ' under another tag, or ask for the right "push"'
        )

    @property
    def full_message(self) -> str:
        return self._told(f", at {self._current},")


class QuotaExceeded(Denied):
    """
    A push does not fit into the quota of its repository; the spec has no code for it.

    :param quota: bytes that the repository may hold.
    :param used: bytes that the repository holds.
    :param requested: bytes that the push would add; where a body has no declared length, as far as
        it was read.
    """

    _remedy = "delete images there, or ask its administrator for more"

    def __init__(self, repository: str, quota: int, used: int, requested: int) -> None:
        self._excess = (
            f"the quota of {repository} is exceeded: {exact_bytes(requested)} more do not fit into"
            f" its {exact_bytes(quota)}"
        )
        self._used = used
        super().__init__(
            f"{self._excess}: {self._remedy}",
            {"repository": repository, "quota": quota, "requested": requested},
            stored={"used": used},
        )

    @property
    def full_message(self) -> str:
        return f"{self._excess}, of which {exact_bytes(self._used)} are used: {self._remedy}"


class Unavailable(RegistryError):
    """The registry can't do this now (disk full, catalog locked); the spec has no code for it."""

    status = 503


class BadGateway(RegistryError):
    """An upstream can't be reached, or answers nonsense; the spec has no code for it."""

    status = 502


class GatewayTimeout(BadGateway):
    """An upstream takes too long."""

    status = 504
