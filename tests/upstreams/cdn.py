"""Where Docker Hub keeps its blobs: another host, whose URLs are signed."""

from __future__ import annotations

import secrets
from urllib.parse import urlencode

from twisted.internet.interfaces import IReactorTime

from artifactd.oci.names import Digest
from tests.upstreams.backing import Content
from tests.upstreams.reply import Reply
from tests.upstreams.requests import Asked

_ALGORITHM = "AWS4-HMAC-SHA256"


class Cdn:
    """
    Serves what it has signed a URL for.

    :ivar lifetime: how many seconds a signature is good for.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.lifetime = 1200
        self._clock = clock
        self._signed: dict[str, tuple[Digest, Content, float]] = {}

    def sign(self, digest: Digest, content: Content) -> str:
        """The path and query that ``content`` is to be had at for a while."""
        signature = secrets.token_hex(32)
        expires_at = self._clock.seconds() + self.lifetime
        self._signed[signature] = (digest, content, expires_at)
        query = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Expires": self.lifetime,
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": signature,
        }
        return f"{_path(digest)}?{urlencode(query)}"

    def answer(self, asked: Asked, reply: Reply) -> None:
        """Let ``reply`` be what ``asked`` gets."""
        if "authorization" in asked.headers:
            reply.fail(400, "InvalidArgument", "Only one auth mechanism allowed")
            return
        signed = self._signed.get(asked.parameter("X-Amz-Signature") or "")
        if signed is None or _path(signed[0]) != asked.path or self._clock.seconds() > signed[2]:
            reply.fail(403, "AccessDenied", "Request has expired, or was not signed")
            return
        digest, reply.content, _ = signed
        serve_blob(digest, reply)


def serve_blob(digest: Digest, reply: Reply) -> None:
    """Let ``reply``, which has the content, have the headers of a blob."""
    reply.etag, reply.ranges = f'"{digest.encoded[:32]}"', True
    reply.headers["Content-Type"] = "application/octet-stream"


def _path(digest: Digest) -> str:
    return f"/data/{digest}"
