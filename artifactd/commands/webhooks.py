"""``artifactd webhooks``: what waits for webhooks, how deliveries went, replay and test."""

from __future__ import annotations

import sys
from math import inf
from typing import ClassVar
from uuid import uuid4

import msgspec
from attrs import astuple, frozen
from twisted.python import usage

from artifactd.catalog.events import Event
from artifactd.catalog.webhooks import Message, WebhookCatalog, WebhookSeen
from artifactd.commands.offline import DataCommand
from artifactd.commands.table import JSON, Table, print_json, shown_time, utc
from artifactd.daemon.assemble import Assembly
from artifactd.kit.printable import printable
from artifactd.registry.seeing import instant
from artifactd.settings.settings import Settings
from artifactd.webhooks.delivery import Receiver
from artifactd.webhooks.requests import FORMATS, PING

_PAGE = 200


@frozen
class _Listed:
    """A webhook with how its deliveries went; ``url``: without path, ``-``: not in the settings."""

    webhook: str
    url: str
    waiting: int
    oldest: str
    delivered: int
    last_delivery: str
    last_failure: str
    error: str
    dropped: int
    last_dropped: str


@frozen
class _Told:
    """An event; ``delivered``: when, ``-``: it waits."""

    id: int
    at: str
    kind: str
    subject: str
    tag: str
    digest: str
    delivered: str


class Webhooks(DataCommand):
    """``artifactd webhooks``: look at webhooks, and have them told again."""

    longdesc = (
        "ls lists the webhooks, and ls NAME the events of one.  show prints what a receiver is sent"
        " for an event.  replay lets events be delivered again that were delivered: one, all, or"
        " those since a time; a running daemon does it within a second.  test sends a ping now."
    )
    synopsis = "[options] ls [NAME] | show ID | replay [ID] | test NAME"
    optFlags: ClassVar = [JSON, ["all", "a", "Replay all events that are kept."]]
    optParameters: ClassVar = [
        ["since", "s", None, "Replay events since then, such as 2026-11-05T14:00:00Z (UTC)."],
        ["webhook", "w", None, "Replay the events of this webhook alone."],
    ]

    # Options declares this without arguments, and calls it with those left over.
    def parseArgs(self, verb: str, *words: str) -> None:  # type: ignore[override]
        counts = {"ls": (0, 1), "show": (1,), "replay": (0, 1), "test": (1,)}
        if verb not in counts:
            raise usage.UsageError(f"webhooks: expected ls, show, replay or test, got {verb}")
        if len(words) not in counts[verb]:
            raise usage.UsageError(f"webhooks {verb}: wrong number of arguments; {self._usage}")
        self.verb, self.word = verb, "".join(words)

    async def work(self, parts: Assembly, settings: Settings) -> int:
        catalog = WebhookCatalog(parts.catalog.database)
        match self.verb:
            case "ls" if not self.word:
                return await self._list(catalog, settings)
            case "ls":
                return await self._events(catalog)
            case "show":
                return await self._show(catalog, parts)
            case "replay":
                return await self._replay(catalog)
        return await self._test(parts)

    async def _list(self, catalog: WebhookCatalog, settings: Settings) -> int:
        seen = {each.name: each for each in await catalog.seen()}
        table = Table(
            *("WEBHOOK", "URL", "WAITING", "OLDEST", "DELIVERED", "LAST DELIVERY"),
            *("LAST FAILURE", "ERROR", "DROPPED", "LAST DROPPED"),
            as_json=bool(self["json"]),
        )
        rows = []
        for name in sorted({*settings.webhook, *seen}):
            each = seen.get(name, WebhookSeen(name, 0, None, 0, None, None, "", 0, None))
            configured = settings.webhook.get(name)
            listed = _Listed(
                name,
                "-" if configured is None else configured.url.origin,
                each.waiting,
                shown_time(each.oldest_at),
                each.delivered,
                shown_time(each.delivered_at),
                shown_time(each.failed_at),
                each.error or "-",
                each.dropped,
                shown_time(each.dropped_at),
            )
            rows.append((listed, _cells(listed)))
        if rows:
            table.add(rows)
        return 0 if rows else 1

    async def _events(self, catalog: WebhookCatalog) -> int:
        table = Table(
            *("ID", "AT", "EVENT", "SUBJECT", "TAG", "DIGEST", "DELIVERED"),
            as_json=bool(self["json"]),
        )
        after = 0
        while page := await catalog.messages(self.word, after, _PAGE):
            after = page[-1].id
            told = [
                _Told(
                    each.id,
                    utc(each.at),
                    each.event.kind,
                    each.subject,
                    each.event.tag or "-",
                    each.event.digest or "-",
                    shown_time(each.delivered_at),
                )
                for each in page
            ]
            table.add([(each, _cells(each)) for each in told])
        return 0 if after else 1

    async def _message(self, catalog: WebhookCatalog) -> Message | None:
        is_number = self.word.isdecimal() and len(self.word) < 19  # SQLite has no larger ones
        message = await catalog.message(int(self.word)) if is_number else None
        if message is None:
            print(
                f"artifactd: no event {printable(self.word)} is kept:"
                " artifactd webhooks ls NAME lists them",
                file=sys.stderr,
            )
        return message

    async def _show(self, catalog: WebhookCatalog, parts: Assembly) -> int:
        message = await self._message(catalog)
        if message is None:
            return 1
        receiver = _receiver(parts, message.webhook)
        body = b"null"
        if receiver is not None:
            _, body = FORMATS[receiver.settings.format](message, receiver.source)
        if self["json"]:
            told = {"id": message.id, "webhook": message.webhook, "message": message.message}
            delivered = shown_time(message.delivered_at)
            print_json({**told, "delivered": delivered, "body": msgspec.Raw(body)})
            return 0
        print(f"webhook {message.webhook}, event {message.id}, message {message.message}")
        print(f"happened {utc(message.at)}, delivered {shown_time(message.delivered_at)}")
        print("\n".join(map(printable, msgspec.json.format(body, indent=2).decode().split("\n"))))
        return 0

    async def _replay(self, catalog: WebhookCatalog) -> int:
        chosen = [bool(self.word), bool(self["all"]), self["since"] is not None]
        if sum(chosen) != 1:
            raise usage.UsageError("webhooks replay: say ID, --all or --since TIME")
        since, only = -inf, None
        names = [each.name for each in await catalog.seen()]
        if self["webhook"] is not None:
            names = [name for name in names if name == self["webhook"]]
        if self.word:
            message = await self._message(catalog)
            if message is None:
                return 1
            names, only = [message.webhook], message.id
        elif self["since"] is not None:
            try:
                since = instant(self["since"])
            except ValueError as error:
                raise usage.UsageError(f"--since: {error}") from None
        count = 0
        for name in names:
            count += await catalog.replay(name, since, only)
        if self["json"]:
            print_json({"replayed": count})
        else:
            print(f"{count} events are delivered again")
        return 0 if count else 1

    async def _test(self, parts: Assembly) -> int:
        receiver = _receiver(parts, self.word)
        if receiver is None:
            raise usage.UsageError(
                f"webhooks test: the settings have no [webhook.{printable(self.word)}]"
            )
        ping = Message(0, self.word, "", str(uuid4()), receiver.now(), Event(kind=PING), None)
        problem = await receiver.send(ping)
        error = "" if problem is None else problem.text
        if self["json"]:
            print_json({"webhook": self.word, "delivered": not error, "error": error})
        elif error:
            print(f"artifactd: {self.word}: {printable(error)}", file=sys.stderr)
        else:
            print(f"{self.word}: {receiver.settings.url.origin} has taken a ping")
        return 1 if error else 0


def _cells(row: _Listed | _Told) -> list[str]:
    return [str(value) for value in astuple(row)]


def _receiver(parts: Assembly, name: str) -> Receiver | None:
    return next((each for each in parts.deliveries.receivers if each.name == name), None)
