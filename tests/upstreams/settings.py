"""Settings of a daemon in the tests: whom it asks for what it does not have."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.upstreams.hub import Hub

# Nothing listens there: a connection is refused at once.
UNREACHABLE = "http://127.0.0.1:9"


def settings_for(hub: Hub | str, name: str = "docker.io", **more: object) -> str:
    """
    The settings file of a daemon with a local repository, and ``hub`` as the upstream of bare
    names, where ``alpine`` is ``library/alpine``.  Clients wait for it as long as it takes.

    :param hub: or the URL of an upstream.
    :param name: of the remote repository.
    :param more: settings of it, e.g. ``freshness="0s"``; lists and numbers as they are.
    """
    upstream = hub if isinstance(hub, str) else hub.url
    remote = {
        "kind": "remote",
        "upstream": upstream,
        "library": "library/",
        "stale_after": "0s",
        **more,
    }
    tables: dict[str, dict[str, Any]] = {
        "repository.local": {"kind": "local"},
        f'repository."{name}"': remote,
        "default": {"pull": ["local", name]},
    }
    return "\n".join(_lines(table, settings) for table, settings in tables.items())


def beside_no_upstream(toml: str) -> str:
    """
    ``toml``, a settings file, so that no test goes to the network: if it has no repositories, with
    the embedded ones, but that Docker Hub is :data:`UNREACHABLE`; otherwise with those alone.
    """
    repositories = tomllib.loads(toml).get("repository")
    if repositories is not None:
        return "\n".join((toml, without_embedded(repositories)))
    hub = {"kind": "remote", "upstream": UNREACHABLE, "library": "library/"}
    local = {"kind": "local"}
    tables = (_lines("repository.local", local), _lines('repository."docker.io"', hub))
    return "\n".join((toml, *tables))


def without_embedded(but: Iterable[str] = ()) -> str:
    """The tables of a settings file that switch the embedded repositories off, except ``but``."""
    off = [name for name in ("local", "docker.io") if name not in but]
    return "\n".join(_lines(f'repository."{name}"', {"enabled": False}) for name in off)


def _lines(table: str, settings: dict[str, Any]) -> str:
    written = (f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    return f"[{table}]\n{''.join(written)}"
