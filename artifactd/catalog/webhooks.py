"""What waits for webhooks, and how their deliveries went."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection
from typing import Any

import msgspec
from attrs import frozen

from artifactd.catalog.database import OnDatabase, read, write
from artifactd.catalog.events import Event

_event = msgspec.json.Decoder(Event)


@frozen
class Message:
    """
    An event for one webhook.

    :ivar id: ascends in the order in which events happened.
    :ivar webhook: the webhook's name.
    :ivar subject: the image or repository it is about: its events are delivered in order.
    :ivar message: the id that the receiver sees, the same at each delivery.
    :ivar at: when it happened, in seconds since the epoch.
    :ivar delivered_at: ``None``: it waits.
    """

    id: int
    webhook: str
    subject: str
    message: str
    at: float
    event: Event
    delivered_at: float | None


@frozen
class Head:
    """
    The subject of a webhook that has events waiting, with the first of them.

    :ivar due_at: when it is to be tried, in seconds since the epoch.
    :ivar attempts: how many have failed since its last delivery.
    """

    message: Message
    due_at: float
    attempts: int


@frozen
class WebhookSeen:
    """
    How deliveries to a webhook went; times are in seconds since the epoch.

    :ivar waiting: events that wait.
    :ivar oldest_at: when the first of them happened.
    :ivar delivered: deliveries, replays among them.
    :ivar error: why the last attempt that failed did.
    :ivar dropped: events that were not delivered in time, and are gone.
    """

    name: str
    waiting: int
    oldest_at: float | None
    delivered: int
    delivered_at: float | None
    failed_at: float | None
    error: str
    dropped: int
    dropped_at: float | None


_COLUMNS = "id, webhook, subject, message, at, event, delivered_at"
HEADS = (
    f"SELECT {', '.join('event.' + each for each in _COLUMNS.split(', '))}, due_at, attempts"
    " FROM webhook_queue AS queue CROSS JOIN webhook_event AS event ON event.id = ("
    "SELECT min(id) FROM webhook_event AS waiting WHERE waiting.webhook = queue.webhook"
    " AND waiting.subject = queue.subject AND delivered_at IS NULL)"
    " WHERE queue.webhook = ? ORDER BY due_at LIMIT ?"
)
_SEEN = (
    "SELECT name,"
    " (SELECT count(*) FROM webhook_event WHERE webhook = name AND delivered_at IS NULL),"
    " (SELECT min(at) FROM webhook_event WHERE webhook = name AND delivered_at IS NULL),"
    " delivered, delivered_at, failed_at, error, dropped, dropped_at FROM webhook ORDER BY name"
)
_WAITING = "webhook = :webhook AND delivered_at IS NULL"
_DELIVERED = "webhook = :webhook AND delivered_at IS NOT NULL"
# One row too few where there are no more than :most.
_OLDEST = (
    f"SELECT id FROM webhook_event WHERE {_DELIVERED} ORDER BY id DESC LIMIT 1 OFFSET max(:most, 0)"
)
# A client that makes events without end loses its own: those that have the most newer ones of their
# subject behind them.
_DROP_WAITING = f"""
    DELETE FROM webhook_event WHERE id IN (SELECT id FROM (
        SELECT id, row_number() OVER (PARTITION BY subject ORDER BY id DESC) AS newer
        FROM webhook_event WHERE {_WAITING}
    ) ORDER BY newer DESC, id LIMIT :excess)
"""


class WebhookCatalog(OnDatabase):
    """The events that webhooks are told; they are written by the catalog's ``Outbox``."""

    @write
    def tell(self, db: Connection, event: Event) -> None:
        """Write an event that is told by no other transaction."""
        self.database.outbox.write(db, self.database.now(), [event])

    @read
    def heads(self, db: Connection, webhook: str, limit: int) -> Sequence[Head]:
        """The subjects that have events waiting for a webhook, those first that are due first."""
        return [
            Head(_message(row), due_at, attempts)
            for *row, due_at, attempts in db.execute(HEADS, (webhook, limit))
        ]

    @write
    def delivered(self, db: Connection, message: Message) -> None:
        """Note a delivery: the next event of its subject is due, behind those of other ones."""
        at = self.database.now()
        db.execute("UPDATE webhook_event SET delivered_at = ? WHERE id = ?", (at, message.id))
        _settle(db, message.webhook, at, message.subject)
        db.execute(
            "INSERT INTO webhook (name, delivered, delivered_at) VALUES (?, 1, ?)"
            " ON CONFLICT DO UPDATE SET delivered = delivered + 1,"
            " delivered_at = excluded.delivered_at",
            (message.webhook, at),
        )

    @write
    def failed(self, db: Connection, message: Message, error: str, due_at: float) -> None:
        """Note an attempt that failed: the subject waits until ``due_at``."""
        db.execute(
            "UPDATE webhook_queue SET attempts = attempts + 1, due_at = ?, error = ?"
            " WHERE webhook = ? AND subject = ?",
            (due_at, error, message.webhook, message.subject),
        )
        db.execute(
            "INSERT INTO webhook (name, failed_at, error) VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET failed_at = excluded.failed_at, error = excluded.error",
            (message.webhook, self.database.now(), error),
        )

    @write
    def drop(self, db: Connection, webhook: str, before: float, most: int) -> int:
        """
        Remove the events of a webhook that happened before ``before``, and as many as are more than
        ``most``: those that are delivered before those that wait, and of these the oldest of the
        subjects that have the most of them.

        :return: how many were not delivered.
        """
        values = {"webhook": webhook, "before": before}
        (waiting,) = db.execute(
            f"SELECT count(*) FROM webhook_event WHERE {_WAITING}", values
        ).fetchone()
        db.execute(
            f"DELETE FROM webhook_event WHERE {_DELIVERED} AND (at < :before OR id <= ({_OLDEST}))",
            {**values, "most": most - waiting},
        )
        gone = db.execute(
            f"DELETE FROM webhook_event WHERE {_WAITING} AND at < :before", values
        ).rowcount
        excess = waiting - gone - most
        if excess > 0:
            gone += db.execute(_DROP_WAITING, {**values, "excess": excess}).rowcount
        if gone:
            at = self.database.now()
            _settle(db, webhook, at)
            db.execute(
                "INSERT INTO webhook (name, dropped, dropped_at) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET dropped = dropped + excluded.dropped,"
                " dropped_at = excluded.dropped_at",
                (webhook, gone, at),
            )
        return gone

    @read
    def seen(self, db: Connection) -> Sequence[WebhookSeen]:
        """How deliveries went, of each webhook that has been told of anything."""
        return [WebhookSeen(*row) for row in db.execute(_SEEN)]

    @read
    def message(self, db: Connection, message_id: int) -> Message | None:
        """One event."""
        row = db.execute(
            f"SELECT {_COLUMNS} FROM webhook_event WHERE id = ?", (message_id,)
        ).fetchone()
        return None if row is None else _message(row)

    @read
    def messages(self, db: Connection, webhook: str, after: int, limit: int) -> Sequence[Message]:
        """At most ``limit`` events of a webhook whose ids come after ``after``, in their order."""
        rows = db.execute(
            f"SELECT {_COLUMNS} FROM webhook_event"
            " WHERE webhook = ? AND id > ? ORDER BY id LIMIT ?",
            (webhook, after, limit),
        )
        return [_message(row) for row in rows]

    @write
    def replay(self, db: Connection, webhook: str, since: float, only: int | None = None) -> int:
        """
        Let events of a webhook that were delivered wait again, in their old order.

        :param since: those that happened then or later, in seconds since the epoch.
        :param only: the id of the one event that is replayed.
        :return: how many there are.
        """
        at = self.database.now()
        again = db.execute(
            f"UPDATE webhook_event SET delivered_at = NULL WHERE {_DELIVERED} AND at >= :since"
            " AND id = coalesce(:only, id) RETURNING subject",
            {"webhook": webhook, "since": since, "only": only},
        ).fetchall()
        db.executemany(
            "INSERT INTO webhook_queue (webhook, subject, due_at) VALUES (?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            [(webhook, subject, at) for (subject,) in set(again)],
        )
        return len(again)


def _message(row: Sequence[Any]) -> Message:
    number, webhook, subject, message, at, event, delivered_at = row
    return Message(number, webhook, subject, message, at, _event.decode(event), delivered_at)


def _settle(db: Connection, webhook: str, at: float, subject: str | None = None) -> None:
    """
    Bring the queues of a webhook up to date after events were delivered or dropped: those of
    ``subject``, or all (``None``).  The next event is due at ``at``.
    """
    named = {"webhook": webhook, "subject": subject, "at": at}
    where = "webhook = :webhook" + ("" if subject is None else " AND subject = :subject")
    db.execute(
        f"DELETE FROM webhook_queue WHERE {where} AND NOT EXISTS ("
        "SELECT 1 FROM webhook_event AS waiting WHERE waiting.webhook = webhook_queue.webhook"
        " AND waiting.subject = webhook_queue.subject AND delivered_at IS NULL)",
        named,
    )
    if subject is not None:
        db.execute(
            f"UPDATE webhook_queue SET due_at = :at, attempts = 0, error = '' WHERE {where}", named
        )
