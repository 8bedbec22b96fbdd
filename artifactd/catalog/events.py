"""The events that webhooks are told, written in the transaction of what they tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from sqlite3 import Connection
from typing import Self
from uuid import uuid4

import msgspec
from attrs import frozen
from msgspec.structs import replace

from artifactd.catalog.records import ManifestPut
from artifactd.oci.names import Digest, ImageName, Patterns
from artifactd.settings.webhooks import EventKind, WebhookSettings

LONGEST = 255
"""Characters that are kept of a text that a client has sent."""


class RequestTold(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    The request that an event came from: CNCF distribution's ``RequestRecord``.

    :ivar addr: the client's address.
    :ivar host: the ``Host`` that the client has sent, which may be any text.
    """

    id: str = ""
    addr: str = ""
    host: str = ""
    method: str = ""
    useragent: str = ""


NO_REQUEST = RequestTold()


class Requester(str):
    """
    The actor of a change that a client has asked for: a text for the journal of tags, with the name
    and the request for webhooks.

    :ivar user: the name in a login; empty: there is none.
    """

    user: str
    request: RequestTold

    @classmethod
    def of(cls, journal: str, user: str, request: RequestTold) -> Self:
        """The actor whom the journal calls ``journal``."""
        actor = cls(journal)
        actor.user, actor.request = user, request
        return actor


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One event; what does not apply is empty.

    :ivar kind: an :class:`EventKind`, or ``ping``.
    :ivar repository: the name of a configured repository.
    :ivar image: the name within it; empty: the event is about the repository.
    :ivar before: the digest that the tag pointed at before.
    :ivar size: bytes of the manifest.
    :ivar actor: the user, or the part of artifactd, that has done it.
    :ivar reason: one sentence, of events that tell of a trouble.
    """

    kind: str
    repository: str = ""
    image: str = ""
    tag: str = ""
    digest: str = ""
    before: str = ""
    media_type: str = ""
    size: int = 0
    actor: str = ""
    request: RequestTold = NO_REQUEST
    reason: str = ""

    @property
    def subject(self) -> str:
        """The canonical name of the image, or the repository."""
        return f"{self.repository}/{self.image}" if self.image else self.repository


_OF_IMAGES = frozenset({EventKind.PUSH, EventKind.DELETE, EventKind.TAG_MOVED})


def event_of(kind: EventKind, image: ImageName, actor: str, *, digest: str = "") -> Event:
    """The event of an ``actor``, with the request if they are a :class:`Requester`."""
    user, request = actor, NO_REQUEST
    if isinstance(actor, Requester):
        user, request = actor.user, actor.request
    return Event(kind, image.repository, image.image, digest=digest, actor=user, request=request)


@frozen
class _Subscription:
    """
    The events that one webhook is told.

    :ivar repositories: patterns of the first components of the images' names.
    """

    webhook: str
    kinds: frozenset[EventKind]
    images: Patterns
    repositories: tuple[str, ...]

    def takes(self, event: Event) -> bool:
        if event.kind not in self.kinds:
            return False
        if event.image:
            return self.images.match(event.subject)
        return any(fnmatchcase(event.repository, each) for each in self.repositories)


@frozen
class Outbox:
    """
    Writes events for the webhooks that are to be told, inside a transaction.

    It costs nothing where no webhook is to be told of a kind of event.

    :ivar kinds: those that a webhook is told.
    """

    _subscriptions: tuple[_Subscription, ...] = ()
    kinds: frozenset[EventKind] = frozenset()

    @classmethod
    def of(cls, webhooks: Mapping[str, WebhookSettings]) -> Self:
        """The outbox for webhooks, by their names."""
        subscriptions = tuple(
            _Subscription(
                name,
                frozenset(each.events),
                Patterns(each.images),
                tuple(pattern.partition("/")[0] for pattern in each.images),
            )
            for name, each in webhooks.items()
        )
        kinds = frozenset[EventKind]().union(*(each.kinds for each in subscriptions))
        return cls(subscriptions, kinds)

    @contextmanager
    def telling(
        self,
        db: Connection,
        image: ImageName,
        actor: str,
        at: float,
        *,
        pushed: ManifestPut | None = None,
        deleted: Digest | None = None,
        back: bool = False,
    ) -> Iterator[None]:
        """
        Tell of the tags of ``image`` that the block moves or deletes, as the journal has them.

        :param pushed: the manifest that the block puts into the image.
        :param deleted: the manifest that it deletes.
        :param back: whether a tag that is new was there before, and so is worth telling.
        """
        if not self.kinds & _OF_IMAGES:
            yield
            return
        (since,) = db.execute("SELECT coalesce(max(id), 0) FROM tag_movement").fetchone()
        yield
        rows = db.execute(
            "SELECT tag, before, after FROM tag_movement WHERE id > ? ORDER BY id", (since,)
        )
        told = event_of(EventKind.PUSH, image, actor)
        events = []
        befores = {}
        for tag, before, after in rows:
            befores[tag] = before or ""
            if after is None:
                events.append(replace(told, kind=EventKind.DELETE, tag=tag, digest=before))
            elif before is not None or back:
                moved = {"tag": tag, "digest": after, "before": before or ""}
                events.append(replace(told, kind=EventKind.TAG_MOVED, **moved))
        if pushed is not None:
            manifest = pushed.manifest
            put = replace(
                told,
                digest=str(manifest.digest),
                media_type=manifest.media_type,
                size=len(manifest.content),
            )
            tags = [tag.text for tag in pushed.tags] or [""]
            events = [replace(put, tag=tag, before=befores.get(tag, "")) for tag in tags] + events
        if deleted is not None:
            events.append(replace(told, kind=EventKind.DELETE, digest=str(deleted)))
        self.write(db, at, events)

    def write(self, db: Connection, at: float, events: Iterable[Event]) -> None:
        """Write events that happened at ``at`` for each webhook that is to be told."""
        for event in events:
            takers = [each.webhook for each in self._subscriptions if each.takes(event)]
            if not takers:
                continue
            message, encoded = str(uuid4()), msgspec.json.encode(event).decode()
            for webhook in takers:
                db.execute(
                    "INSERT INTO webhook (name) VALUES (?) ON CONFLICT DO NOTHING", (webhook,)
                )
                db.execute(
                    "INSERT INTO webhook_event (webhook, subject, message, at, event)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (webhook, event.subject, message, at, encoded),
                )
                db.execute(
                    "INSERT INTO webhook_queue (webhook, subject, due_at) VALUES (?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    (webhook, event.subject, at),
                )
