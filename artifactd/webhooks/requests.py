"""The request that tells an event: its body in two formats, and its signature."""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from attrs import frozen

from artifactd.catalog.events import Event
from artifactd.catalog.webhooks import Message
from artifactd.oci.names import ImageName

PING = "ping"
"""The kind of the event that ``artifactd webhooks test`` sends."""


@frozen
class Source:
    """
    The registry that events come from.

    :ivar external_url: the URL of the registry, as the settings have it; empty: it is not known.
    :ivar host: the name of the machine.
    :ivar instance: the id of this process.
    :ivar listed: returns the name of an image as lists show it, which clients pull it by.
    """

    external_url: str
    host: str
    instance: str
    listed: Callable[[ImageName], str]

    def name(self, event: Event) -> str:
        """The name of the event's image for clients; empty: it is about none."""
        return self.listed(ImageName(event.repository, event.image)) if event.image else ""

    def url(self, event: Event) -> str:
        """The URL of the event's manifest, or its path where the registry's URL is not known."""
        reference = event.digest or event.tag
        if not event.image or not reference:
            return ""
        return f"{self.external_url}/v2/{self.name(event)}/manifests/{reference}"


def time_of(at: float) -> str:
    """``at``, in seconds since the epoch, as RFC 3339 has it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _without_empty(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in ("", 0, {})}


def distribution(message: Message, source: Source) -> tuple[str, bytes]:
    """
    The event in the envelope of CNCF distribution, with what that has no field for in a member of
    our own; its media type first.
    """  # https://distribution.github.io/distribution/about/notifications
    event = message.event
    told = {
        "id": message.message,
        "timestamp": time_of(message.at),
        "action": event.kind,
        "target": _without_empty(
            mediaType=event.media_type,
            size=event.size,
            digest=event.digest,
            length=event.size,
            repository=source.name(event),
            url=source.url(event),
            tag=event.tag,
        ),
        # Go's decoders want these three, which distribution always sends.
        "request": {"id": "", "method": "", "useragent": "", **_builtins(event.request)},
        "actor": _without_empty(name=event.actor),
        "source": {"addr": source.host, "instanceID": source.instance},
        "artifactd": _without_empty(
            subject=event.subject, before=event.before, reason=event.reason
        ),
    }
    body = msgspec.json.encode({"events": [told]})
    return "application/vnd.docker.distribution.events.v2+json", body


def cloudevent(message: Message, source: Source) -> tuple[str, bytes]:
    """
    The event as a CloudEvent in the structured content mode; its media type first.
    """  # CloudEvents 1.0.2; its HTTP protocol binding, 3.2
    event = message.event
    subject = event.subject
    if event.tag or event.digest:
        subject += f":{event.tag}" if event.tag else f"@{event.digest}"
    told = {
        "specversion": "1.0",
        "id": message.message,
        "source": source.external_url or f"//{source.host}",
        "type": f"artifactd.{event.kind}",
        **_without_empty(subject=subject),
        "time": time_of(message.at),
        "datacontenttype": "application/json",
        "data": _without_empty(
            subject=event.subject,
            repository=source.name(event),
            tag=event.tag,
            digest=event.digest,
            before=event.before,
            mediaType=event.media_type,
            size=event.size,
            url=source.url(event),
            actor=event.actor,
            request=_builtins(event.request),
            reason=event.reason,
        ),
    }
    return "application/cloudevents+json", msgspec.json.encode(told)


FORMATS = {"distribution": distribution, "cloudevents": cloudevent}


def _builtins(value: object) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(value)
    return built


def signed(message_id: str, at: float, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """
    The header fields of a request by which its receiver knows who has sent it, and when.

    :param at: the time of the attempt, in seconds since the epoch.
    :param keys: of each there is a signature, so that a secret can be changed; none: there is no
        signature.
    """  # Standard Webhooks 1.0.0, "Webhook headers", "Signature scheme"
    fields = {"webhook-id": message_id, "webhook-timestamp": str(int(at))}
    content = f"{message_id}.{int(at)}.".encode() + body
    signatures = [b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys]
    if signatures:
        fields["webhook-signature"] = " ".join(f"v1,{each}" for each in signatures)
    return fields
