"""``ns=``: the registry that a mirror is asked for; distribution-spec, "Registry Proxying"."""

from __future__ import annotations

from twisted.web.server import Request

from artifactd.web.headers import header
from artifactd.web.query import parameter


def mirrored_registry(request: Request) -> str | None:
    """The host that ``ns`` names; ``None`` if there is none, or it is this very one."""
    namespace = parameter(request, "ns")
    if not namespace:
        return None
    host = (header(request, "Host") or "").lower()
    ours = {host, host.rpartition(":")[0]}
    return None if namespace.lower() in ours else namespace
