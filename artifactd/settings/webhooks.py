"""The settings of webhooks."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta

from artifactd.kit.start import StartError
from artifactd.settings.accounts import check_images, check_name
from artifactd.settings.remote import read_secret
from artifactd.settings.toml import Section, key
from artifactd.settings.values import (
    Duration,
    Password,
    Pattern,
    Patterns,
    Receiver,
    Secret,
    Text,
    Timeout,
)


class EventKind(StrEnum):
    """What a webhook may be told."""

    PUSH = "push"
    """A manifest was pushed, by a tag or by its digest."""
    DELETE = "delete"
    """A tag or a manifest was deleted."""
    TAG_MOVED = "tag_moved"
    """A tag points at another manifest than before, or is back."""
    RETENTION = "retention"
    """A tag was dropped, since no rule of its repository's retention keeps it."""
    QUOTA = "quota"
    """A push was refused, since it did not fit into the quota of its repository."""
    DAMAGE = "damage"
    """A blob or manifest of an image was found gone, or with other bytes than its digest's."""
    UPSTREAM_DOWN = "upstream_down"
    """An upstream does not answer, and is not asked for a while."""


_KINDS = ", ".join(f'"{kind}"' for kind in EventKind)
Events = Annotated[tuple[EventKind, ...], Meta(min_length=1, description=f"a list of {_KINDS}")]
Format = Annotated[
    Literal["distribution", "cloudevents"], Meta(description='"distribution" or "cloudevents"')
]
Most = Annotated[int, Meta(ge=1, le=10**6, description="a whole number from 1 to 1000000")]

KEEP = Duration(7 * 24 * 3600)
"""Seconds for which an event is kept by default."""
MOST = 10_000
"""Events of a webhook that are kept by default."""

_PREFIX = "whsec_"
_LEAST = 24  # bytes of a key: Standard Webhooks, "Signature scheme"


class WebhookSettings(Section, frozen=True, kw_only=True):
    """
    ``[webhook.<name>]``; ``etc/artifactd.toml`` explains each setting.

    :ivar secret_file, ca_file: a path, or empty.
    :ivar keep: seconds that an event is kept, delivered or not.
    :ivar most: events that are kept.
    """

    url: Receiver
    secret: Password = Secret("")
    secret_file: Text = ""
    events: Events = (EventKind.PUSH, EventKind.DELETE)
    images: Patterns = (Pattern("*"),)
    format: Format = "distribution"
    ca_file: Text = ""
    timeout: Timeout = Duration(10)
    keep: Timeout = KEEP
    most: Most = MOST

    def read_keys(self) -> Sequence[bytes]:
        """
        Return the keys that requests are signed with, none if there is no secret.

        ``secret_file`` is read again each time, so that it can be changed.

        :raises ValueError: if a secret can't be read, or is too short; the message is one line that
            begins with the setting's name, and does not repeat the secret.
        """
        setting, texts = "secret", [str(self.secret)] if self.secret else []
        if self.secret_file:
            setting = "secret_file"
            texts = read_secret(setting, self.secret_file).split(" ")
        return [_key_of(text, setting) for text in texts]


def _key_of(text: str, setting: str) -> bytes:
    """The key in a secret: the bytes of a text, or those that ``whsec_`` and Base64 stand for."""
    key = text.encode()
    if text.startswith(_PREFIX):
        try:
            key = b64decode(text.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError(f"{setting}: expected Base64 behind {_PREFIX}") from None
    if len(key) < _LEAST:
        raise ValueError(f"{setting}: expected at least {_LEAST} bytes, got {len(key)}")
    return key


def check_webhooks(
    webhooks: Mapping[str, WebhookSettings], where: str, repositories: Collection[str]
) -> None:
    """
    :param where: names the table of all webhooks in an error.
    :param repositories: the names of those configured.
    :raises StartError: if a name, a secret or a pattern of images is wrong.
    """
    for name, webhook in webhooks.items():
        place = f"{where}.{key(name)}"
        check_name(name, place)
        check_images(webhook.images, f"{place}.images", repositories)
        if webhook.secret and webhook.secret_file:
            raise StartError(f"{place}.secret_file: expected one secret, got secret too")
        try:
            webhook.read_keys()
        except ValueError as error:
            raise StartError(f"{place}.{error}") from None
