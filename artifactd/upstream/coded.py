"""
Blobs that an upstream sends with a ``Content-Encoding``, though it was asked for none.

Some servers compress what they send; others label a ``.tar.gz`` with what it is, and send it as it
is.  Only the digest tells which.
"""

from __future__ import annotations

import hashlib
from typing import Any

from attrs import define, field, frozen
from cachetools import LRUCache, TTLCache
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer, IReactorTime
from zope.interface import implementer

from artifactd.kit.streams import Bounded, PassThrough, Tallied
from artifactd.oci.names import Digest
from artifactd.upstream.http.coding import Decoding, can_be_undone, format_of, not_undone
from artifactd.upstream.http.errors import Unreachable
from artifactd.upstream.http.response import HttpResponse
from artifactd.upstream.interfaces import UpstreamWatch

KEPT = 64 << 10
"""Bytes up to which a blob is answered from what was read to look at its digest."""

MOST_READ = 64 << 20
"""Bytes that are read of a blob, as sent, to look at its digest."""

MOST_UNDONE = 1 << 30
"""Bytes, undone, that are made of it meanwhile."""

_REMEMBERED = 1024

# Seconds after which a blob that is asked for again was probably had, and has been evicted since.
_SECONDS_GUESSED = 3600.0

# A tar archive says so there (POSIX, "ustar Interchange Format").
_TAR, _TAR_AT = b"ustar", 257


@frozen
class Meaning:
    """
    What the coding of a blob means.

    :ivar undo: whether the blob is what comes out when the coding is undone, not what is sent.
    :ivar size: bytes of the blob, or ``None``.
    """

    undo: bool
    size: int | None = None


@implementer(IConsumer)
@define(eq=False)
class _Look:
    """
    Hashes bytes, counts them and keeps the first :data:`KEPT`.

    :ivar size: how many there were.
    """

    _hash: Any
    size: int = field(default=0, init=False)
    head: bytes = field(default=b"", init=False)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """They come as fast as they can."""

    def unregisterProducer(self) -> None:
        """The end is told otherwise."""

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        self.head += data[: max(0, KEPT - len(self.head))]

    def is_of(self, digest: Digest) -> bool:
        """Whether the bytes have ``digest``."""
        found: str = self._hash.hexdigest()
        return found == digest.encoded


@define(eq=False)
class _LookedAt(PassThrough):
    """Shows a look the bytes that it passes on."""

    _look: _Look

    def write(self, data: bytes) -> None:
        self._look.write(data)
        super().write(data)


@frozen
class Looked:
    """
    What was found by reading a blob.

    :ivar meaning: ``None``: it is too large to be read.
    :ivar undo: the likely meaning then.
    :ivar content: the blob, if it is small.
    """

    meaning: Meaning | None
    undo: bool
    content: bytes | None = None


async def look(
    response: HttpResponse, digest: Digest, clock: IReactorTime, watch: UpstreamWatch
) -> Looked:
    """
    Read a coded body, and see whether it has ``digest`` as it is sent, or undone.

    :raises Unreachable: if it has not, or breaks off.
    """
    sent, undone = _Look(hashlib.new(digest.algorithm)), _Look(hashlib.new(digest.algorithm))
    large = response.length is not None and response.length > MOST_READ
    bounded = Bounded(IConsumer(undone), lambda: undone.size, MOST_UNDONE)
    decoding = Decoding(IConsumer(bounded), response.coding, clock, response.host)
    looked_at = _LookedAt(IConsumer(decoding), sent)
    passing = Bounded(IConsumer(looked_at), lambda: sent.size, KEPT if large else MOST_READ)

    def deliver(_: IConsumer) -> Deferred[int]:
        return response.deliver_to(IConsumer(Tallied(IConsumer(passing), watch.received)))

    ended = True
    try:
        await decoding.start(deliver)
    except Unreachable:
        ended = sent.is_of(digest)
        if not (ended or passing.stopped or decoding.too_large):
            raise
    if not ended or passing.stopped or undone.size > MOST_UNDONE:
        # Layers are compressed already: a bare archive is most likely the inside of one.
        is_archive = undone.head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR
        return Looked(None, format_of(response.coding, sent.head) is not None and not is_archive)
    for found, undo in ((sent, False), (undone, True)):
        if found.is_of(digest):
            content = found.head if found.size <= KEPT else None
            return Looked(Meaning(undo, found.size), undo, content)
    problem = f"sends wrong bytes for {digest}, with their coding and without it"
    if not can_be_undone(response.coding):
        problem = not_undone(response.coding)
    raise Unreachable(f"{response.host} {problem}", response.status)


@implementer(IPushProducer)
class _Ended:
    def pauseProducing(self) -> None:
        """Nothing more comes."""

    resumeProducing = stopProducing = pauseProducing


@define(eq=False)
class KeptBody:
    """A :class:`artifactd.upstream.interfaces.BlobBody` whose bytes are here."""

    first: int
    length: int | None
    size: int | None
    validator: str | None
    host: str
    _content: bytes

    @classmethod
    def of(cls, content: bytes, host: str) -> KeptBody:
        """Make the body of a whole blob, which ``host`` has sent."""
        return cls(0, len(content), len(content), None, host, content)

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        consumer.registerProducer(_Ended(), True)
        consumer.write(self._content)
        consumer.unregisterProducer()
        return succeed(len(self._content))

    def abort(self) -> None:
        """No connection is open."""


@define(eq=False)
class UndoneBody:
    """
    A :class:`artifactd.upstream.interfaces.BlobBody` whose coding is undone as it comes: all of the
    blob, whatever part was asked for.
    """

    first: int
    length: int | None
    size: int | None
    validator: str | None
    host: str
    _response: HttpResponse
    _clock: IReactorTime
    _watch: UpstreamWatch

    @classmethod
    def of(
        cls, response: HttpResponse, size: int | None, clock: IReactorTime, watch: UpstreamWatch
    ) -> UndoneBody:
        """Make the body of a 200 for a blob of ``size`` bytes, if that is known."""
        return cls(0, size, size, None, response.host, response, clock, watch)

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        def deliver(decoding: IConsumer) -> Deferred[int]:
            return self._response.deliver_to(IConsumer(Tallied(decoding, self._watch.received)))

        decoding = Decoding(consumer, self._response.coding, self._clock, self.host)
        return decoding.start(deliver)

    def abort(self) -> None:
        self._response.abort()


@define(eq=False)
class Meanings:
    """
    Knows what the codings of one upstream's blobs mean.

    What the digest has said of one blob is taken to hold for the others of its host; a blob that is
    asked for again within an hour, since that was wrong, is looked at by itself.
    """

    clock: IReactorTime
    watch: UpstreamWatch
    _blobs: LRUCache[Digest, Meaning] = field(factory=lambda: LRUCache(_REMEMBERED), init=False)
    _hosts: LRUCache[tuple[str, str], bool] = field(
        factory=lambda: LRUCache(_REMEMBERED), init=False
    )
    _guessed: TTLCache[Digest, bool] = field(init=False)

    @_guessed.default
    def _none_guessed(self) -> TTLCache[Digest, bool]:
        return TTLCache(_REMEMBERED, _SECONDS_GUESSED, self.clock.seconds)

    def size(self, digest: Digest) -> int | None:
        """Return the bytes of a blob, if it has been looked at."""
        meaning = self._blobs.get(digest)
        return None if meaning is None else meaning.size

    async def find(
        self, response: HttpResponse, digest: Digest, *, goes_on: bool, unread: bool = False
    ) -> Meaning | KeptBody | None:
        """
        Find out what the coding of ``response``, a 200 or 206, means for a blob.

        :param goes_on: whether the blob was asked for before, and what was guessed then holds on.
        :param unread: whether only the size is wanted: nothing will show a guess to be wrong.
        :returns: a body if the blob was read and is small.  ``None``: the response has ended, and
            the whole blob has to be asked for again.
        :raises Unreachable: if neither what is sent, nor what that is undone, has ``digest``.
        """
        meaning = self._blobs.get(digest) or self._guess(
            response, digest, goes_on=goes_on or unread
        )
        if response.status == 206 and (meaning is None or meaning.undo):
            response.abort()  # a part of what may be coded is no part of the blob
            return None
        if meaning is not None:
            if not (unread or digest in self._blobs):
                self._guessed[digest] = meaning.undo
            return meaning
        found = await look(response, digest, self.clock, self.watch)
        if found.meaning is None:
            if unread:
                return Meaning(undo=True)  # its size is not known
            before = self._guessed.get(digest)
            self._guessed[digest] = found.undo if before is None else not before
            return None
        self._blobs[digest] = found.meaning
        self._hosts[response.host, response.coding] = found.meaning.undo
        return None if found.content is None else KeptBody.of(found.content, response.host)

    def _guess(self, response: HttpResponse, digest: Digest, *, goes_on: bool) -> Meaning | None:
        if digest in self._guessed:
            return Meaning(self._guessed[digest]) if goes_on else None
        undo = self._hosts.get((response.host, response.coding))
        is_small = response.length is not None and response.length <= KEPT
        return None if undo is None or (is_small and response.status != 206) else Meaning(undo)
