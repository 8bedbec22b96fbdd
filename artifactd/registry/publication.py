"""The one order in which bytes and rows come into being; architecture.md, "Publication"."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.logger import Logger

from artifactd.catalog.records import Catalog
from artifactd.oci.errors import Unavailable
from artifactd.store.interfaces import StagedBlob

_TRIES = 3  # each of them waits for the lock

_log = Logger()


async def publish(
    staged: StagedBlob, catalog: Catalog, insert: Callable[[], Awaitable[None]]
) -> None:
    """
    Bytes before rows, and the staged copy kept until the row is committed.

    :param insert: writes the row in one transaction, calling ``staged.confirm`` inside it and
        ``staged.release`` after it.
    :raises Exception: whatever failed; then neither row nor bytes are left by this call.
    """
    try:
        await staged.publish()
        await _persistently(insert)
    except BaseException:
        await staged.withdraw(catalog.forget_blob)
        raise


async def _persistently(insert: Callable[[], Awaitable[None]]) -> None:
    """The catalog may be locked for a while by another process: a whole upload is at stake."""
    for _ in range(_TRIES - 1):
        try:
            return await insert()
        except Unavailable as error:
            _log.warn("tried again: {error}", error=error.message)
    return await insert()
