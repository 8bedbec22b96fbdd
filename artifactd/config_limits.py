"""Settings that bound what one client may take."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from artifactd.config_tables import as_table, read_values
from artifactd.config_types import Bytes, Timeout
from artifactd.quantity import Duration, Size

_MOST = 10**9

_Count = Annotated[int, Meta(ge=0, le=_MOST, description=f"a whole number from 0 to {_MOST}")]
_Some = Annotated[int, Meta(ge=1, le=_MOST, description=f"a whole number from 1 to {_MOST}")]
_Headers = Annotated[int, Meta(ge=10, le=10_000, description="a whole number from 10 to 10000")]
_HeaderSize = Annotated[Bytes, Meta(extra={"least": Size(1 << 10)})]
_Depth = Annotated[int, Meta(ge=1, le=100, description="a whole number from 1 to 100")]
_Nesting = Annotated[int, Meta(ge=8, le=500, description="a whole number from 8 to 500")]


class LimitsSettings(Struct, frozen=True, kw_only=True):
    """``[limits]``: ``etc/artifactd.toml`` tells what each means; 0 is none, where it may be."""

    connections: _Count = 4096
    address_connections: _Count = 512
    header_size: _HeaderSize = Size(16 << 10)
    header_count: _Headers = 100
    header_timeout: Timeout = Duration(20)
    body_rate: Bytes = Size(512)
    body_window: Timeout = Duration(60)
    address_requests: _Count = 0
    address_burst: _Some = 1000
    user_requests: _Count = 0
    user_burst: _Some = 1000
    user_uploads: _Count = 10_000
    blob_size: Bytes = Size(0)
    manifest_entries: _Count = 10_000
    manifest_annotations: _Count = 1000
    index_depth: _Depth = 4
    json_depth: _Nesting = 100

    @classmethod
    def read(cls, table: object, where: str) -> LimitsSettings:
        """:raises StartError: naming the first setting that is wrong."""
        return cls(**read_values(cls, as_table(table, where), lambda name: f"{where}.{name}"))
