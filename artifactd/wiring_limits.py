"""What one client may take, put together as the settings say."""

from __future__ import annotations

from typing import Self

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.kit.budget import BufferBudget
from artifactd.oci.manifest import ManifestBounds
from artifactd.registry.uploads import UploadLimits
from artifactd.settings.settings import LimitsSettings, LocalSettings, Settings
from artifactd.web.server.limits import ConnectionLimits, Rates, TokenBuckets


@frozen
class Budgets:
    """
    The buffers of ``transfer_buffers``, dealt out.

    :ivar transfers: of all that passes through.
    :ivar manifests: of those that are pushed: a quarter, or as much as one of ``max_manifest``
        takes, but no more than half.
    """

    transfers: BufferBudget
    manifests: BufferBudget

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those that ``settings`` say."""
        buffers = int(settings.transfer_buffers)
        manifests = min(max(buffers // 4, int(settings.max_manifest)), buffers // 2)
        return cls(BufferBudget(buffers - manifests), BufferBudget(manifests))


def connection_limits(settings: LimitsSettings) -> ConnectionLimits:
    """Those of ``[limits]`` that are of a connection."""
    return ConnectionLimits(
        connections=settings.connections,
        address_connections=settings.address_connections,
        header_size=int(settings.header_size),
        header_count=settings.header_count,
        header_timeout=settings.header_timeout,
        body_rate=int(settings.body_rate),
        body_window=settings.body_window,
    )


def rates(settings: LimitsSettings, clock: IReactorTime) -> Rates:
    """How often somebody may ask."""
    return Rates(
        TokenBuckets(settings.address_requests, settings.address_burst, clock),
        TokenBuckets(settings.user_requests, settings.user_burst, clock),
    )


def upload_limits(settings: Settings) -> UploadLimits:
    """What may be pushed."""
    return UploadLimits(
        blob_size=int(settings.limits.blob_size),
        sessions=settings.limits.user_uploads,
        quotas={
            name: int(each.quota)
            for name, each in settings.repository.items()
            if isinstance(each, LocalSettings) and each.quota
        },
    )


def manifest_bounds(settings: LimitsSettings) -> ManifestBounds:
    """Those of ``[limits]`` that are of a manifest."""
    return ManifestBounds(
        nesting=settings.json_depth,
        entries=settings.manifest_entries,
        annotations=settings.manifest_annotations,
    )
