"""How a client is told to use this daemon as a mirror, in the client's own configuration."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from artifactd.config import Settings
from artifactd.config_remote import RemoteSettings

_LISTENING = re.compile(r"(?P<kind>tcp|ssl):(?:port=)?(?P<port>\d+)(?P<rest>.*)")
_INTERFACE = re.compile(r":interface=(?P<host>(?:\\:|[^:])+)")
_LOOPBACK = re.compile(r"localhost|127\..*|\[::1\]")


def own_url(settings: Settings) -> str:
    """
    Where clients on this machine reach the daemon: the first TCP listener of ``settings``, by the
    machine's name if it listens on all addresses.
    """
    for description in settings.listen:
        match = _LISTENING.match(description)
        if match is None:
            continue
        interface = _INTERFACE.search(match["rest"])
        host = interface["host"].replace("\\:", ":") if interface else ""
        if host in ("", "0.0.0.0", "::"):
            host = socket.getfqdn()
        scheme = "https" if match["kind"] == "ssl" else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{match['port']}"
    return "http://127.0.0.1:5000"


def docker(settings: Settings, url: str) -> str:
    """For ``/etc/docker/daemon.json``: Docker Engine asks mirrors for Docker Hub's images only."""
    document: dict[str, object] = {"registry-mirrors": [url]}
    if _is_insecure(url):
        document["insecure-registries"] = [urlsplit(url).netloc]
    return f"{json.dumps(document, indent=2)}\n"


def containerd(settings: Settings, url: str) -> str:
    """
    For ``/etc/containerd/certs.d/<registry>/hosts.toml``, one for each remote repository;
    that answers for a host: containerd adds ``ns=<registry>`` to what it asks for.
    """
    return "\n".join(_containerd(settings, url))


def _containerd(settings: Settings, url: str) -> Iterator[str]:
    for remote in _remotes(settings).values():
        if not remote.hosts:
            continue
        host = "docker.io" if "docker.io" in remote.hosts else remote.hosts[0]
        yield f"# /etc/containerd/certs.d/{host}/hosts.toml"
        yield f'server = "{remote.upstream}"'
        yield ""
        yield f'[host."{url}"]'
        yield '  capabilities = ["pull", "resolve"]'
        yield ""


def podman(settings: Settings, url: str) -> str:
    """For a file below ``/etc/containers/registries.conf.d/``: podman, buildah, skopeo, CRI-O."""
    return "\n".join(_podman(settings, url))


def _podman(settings: Settings, url: str) -> Iterator[str]:
    address = urlsplit(url).netloc
    for name, remote in _remotes(settings).items():
        host = "docker.io" if "docker.io" in remote.hosts else next(iter(remote.hosts), name)
        yield "[[registry]]"
        yield f'prefix = "{host}"'
        yield f'location = "{host}"'
        yield ""
        yield "[[registry.mirror]]"
        yield f'location = "{address}/{name}"'
        if url.startswith("http:"):
            yield "insecure = true"
        yield ""


CLIENTS: Mapping[str, Callable[[Settings, str], str]] = {
    "docker": docker,
    "containerd": containerd,
    "podman": podman,
}


def _remotes(settings: Settings) -> Mapping[str, RemoteSettings]:
    return {n: r for n, r in settings.repository.items() if isinstance(r, RemoteSettings)}


def _is_insecure(url: str) -> bool:
    """Whether Docker has to be told that this is plain HTTP, which it expects on loopback."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not _LOOPBACK.fullmatch(parts.netloc.rpartition(":")[0])
