"""What one client may take, put together as the settings say."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from artifactd.config import LocalSettings, Settings
from artifactd.config_limits import LimitsSettings
from artifactd.oci.bounds import ManifestBounds
from artifactd.registry.upload_limits import UploadLimits
from artifactd.web.connections import ConnectionLimits
from artifactd.web.rates import Rates, TokenBuckets


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
