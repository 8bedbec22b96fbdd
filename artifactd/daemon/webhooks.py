"""The deliveries to webhooks, put together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from artifactd.catalog.cache import WEBHOOKS
from artifactd.catalog.database import Database
from artifactd.catalog.webhooks import WebhookCatalog
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.names import ImageName
from artifactd.registry.metrics import Counters
from artifactd.settings.settings import Settings
from artifactd.store.files import DutyLock, FileOperations
from artifactd.upstream.http.proxy import Proxies
from artifactd.upstream.http.reach import Reach
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.transport import Transport
from artifactd.upstream.http.url import Target
from artifactd.webhooks.delivery import Deliveries, Receiver
from artifactd.webhooks.requests import Source

_LOCK = "webhooks.lock"


def wire_deliveries(
    settings: Settings,
    reactor: Any,
    folder: Path,
    files: FileOperations | None,
    run: RunInThread,
    database: Database,
    listed: Callable[[ImageName], str],
    counters: Counters,
) -> Deliveries:
    """
    Make what delivers events to the webhooks of ``settings``.

    :param listed: returns the name of an image as lists show it.
    :raises StartError: if the environment names a proxy that can't be used.
    """
    source = Source(str(settings.external_url), socket.gethostname(), str(uuid4()), listed)
    receivers = []
    for name, each in settings.webhook.items():
        transport = Transport(
            reactor=reactor,
            trust=Trust.load(each.ca_file),
            proxies=Proxies.from_environ(os.environ),
            # The operator has chosen the host, which may be a private one.
            reach=Reach(Target.parse(each.url).host, setting="the URL of a webhook"),
            connect_timeout=each.timeout,
            first_byte_timeout=each.timeout,
            idle_timeout=each.timeout,
        )
        receivers.append(Receiver(name, each, transport, source, database.now))
    return Deliveries(
        WebhookCatalog(database),
        DutyLock(folder, _LOCK, files),
        run,
        partial(database.versions, WEBHOOKS),
        reactor,
        database.now,
        counters.webhooks,
        receivers,
    )
