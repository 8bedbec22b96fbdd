"""The id of an upload session, which says all that there is to know before its first byte."""

from __future__ import annotations

from functools import partial
from hmac import digest
from secrets import token_bytes
from uuid import UUID

from attrs import field, frozen
from cachetools import LRUCache

from artifactd.kit.sealed import seal, unseal
from artifactd.oci.names import Algorithm, ImageName
from artifactd.store.uploads import UPLOAD_ID


@frozen
class UploadId:
    """
    The id of a session.

    :ivar text: as clients have it, and the store.
    :ivar algorithm: hashes the bytes of the session.
    :ivar until: when it expires, in seconds since the epoch: a session without bytes ends then.
    """

    text: str
    algorithm: Algorithm
    until: float


@frozen
class UploadIds:
    """
    Makes the ids of sessions, so that every process on the data folder knows them again, also after
    a restart, although nothing is stored.

    An id is ``<UUID>.<owner>.<seal>``, of 102 characters at most.  The UUID (RFC 9562, 5.7) has the
    time, and a random number.  The owner is a keyed hash; where sessions are not counted it is
    left out, with its dot.  The seal has the algorithm, and is bound to the rest and to the image.

    :param key: 32 bytes, of the data folder.
    :param lifetime: seconds after which a session without bytes ends.
    """

    _key: bytes = field(repr=False)
    lifetime: float
    # Those that were made or opened here lately, by their texts and images.
    _known: LRUCache[tuple[str, ImageName], UploadId] = field(
        factory=partial(LRUCache, 1024), init=False, repr=False
    )

    def make(
        self, image: ImageName, algorithm: Algorithm, owner: str | None, now: float
    ) -> UploadId:
        """
        Return the id of a new session.

        :param owner: the client whose sessions are counted; ``None``: they are not.
        :param now: seconds since the epoch.
        """
        known = str(_uuid(now))
        if owner is not None:
            known += "." + digest(self._key, owner.encode(), "sha256")[:8].hex()
        text = f"{known}.{seal(self._key, algorithm.encode(), *_bound(image, known))}"
        upload = self._known[text, image] = UploadId(text, algorithm, now + self.lifetime)
        return upload

    def open(self, text: str, image: ImageName) -> UploadId | None:
        """Return the id that :meth:`make` has made for ``image``; ``None``: it has made none."""
        known = self._known.get((text, image))
        if known is not None:
            return known
        match = UPLOAD_ID.fullmatch(text)
        if match is None or match["seal"] is None:
            return None
        begin, _, sealed = text.rpartition(".")
        content = unseal(self._key, sealed, *_bound(image, begin))
        if content is None:
            return None
        started = (UUID(match["uuid"]).int >> 80) / 1000
        upload = UploadId(text, Algorithm(content.decode()), started + self.lifetime)
        self._known[text, image] = upload
        return upload


def _bound(image: ImageName, known: str) -> tuple[bytes, bytes, bytes]:
    return image.repository.encode(), image.image.encode(), known.encode()


def _uuid(now: float) -> UUID:
    number = int(now * 1000) << 80 | int.from_bytes(token_bytes(10))
    version, variant = 0xF << 76, 0x3 << 62
    return UUID(int=number & ~(version | variant) | 7 << 76 | 2 << 62)
