"""``artifactd mirror-config``: the configuration that makes a client pull through this daemon."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar
from urllib.parse import urlsplit

from twisted.python import usage

from artifactd.commands.options import SettingsOptions
from artifactd.kit.start import StartError
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import Settings
from artifactd.settings.toml import shown
from artifactd.settings.values import Url
from artifactd.upstream.http.url import bracketed

_HUB = "docker.io"
_LISTENING = re.compile(r"(?P<kind>tcp|ssl|artifactd-tls):(?:port=)?(?P<port>\d+)(?P<rest>.*)")
_INTERFACE = re.compile(r":interface=(?P<host>(?:\\:|[^:])+)")
_LOOPBACK = re.compile(r"localhost|127\..*|\[::1\]")


def own_url(settings: Settings) -> str:
    """
    The URL of the first TCP listener of ``settings``, with the machine's name if it listens on all
    addresses.
    """
    for scheme, interface, port in listeners(settings):
        host = socket.getfqdn() if interface in ("", "0.0.0.0", "::") else interface
        return f"{scheme}://{bracketed(host)}:{port}"
    return "http://127.0.0.1:5000"


def listeners(settings: Settings) -> Iterator[tuple[str, str, int]]:
    """
    The TCP listeners of ``settings``: ``http`` or ``https``, the address, and the port.  The
    address is empty for all of IPv4.
    """
    for description in settings.listen:
        match = _LISTENING.match(description)
        if match is not None:
            interface = _INTERFACE.search(match["rest"])
            host = interface["host"].replace("\\:", ":") if interface else ""
            yield "http" if match["kind"] == "tcp" else "https", host, int(match["port"])


def docker(settings: Settings, url: str) -> str:
    """
    The text of ``/etc/docker/daemon.json``.

    :raises StartError: if no image of Docker Hub can be pulled here by its bare name: Docker Engine
        asks mirrors for nothing else.
    """
    pulled = [each for name, each in _remotes(settings).items() if name in settings.default.pull]
    if not any(each.library or _HUB in each.hosts for each in pulled):
        raise StartError(
            "default.pull: expected a repository of Docker Hub: Docker asks for its images by their"
            " bare names"
        )
    document: dict[str, object] = {"registry-mirrors": [url]}
    if _is_insecure(url):
        document["insecure-registries"] = [urlsplit(url).netloc]
    return f"{json.dumps(document, indent=2)}\n"


def containerd(settings: Settings, url: str) -> str:
    """
    The texts of ``/etc/containerd/certs.d/<registry>/hosts.toml``, one for each registry that a
    remote repository answers for; containerd adds ``ns=<registry>`` to its requests.
    """
    return "\n".join(_containerd(settings, url))


def _containerd(settings: Settings, url: str) -> Iterator[str]:
    for host, _, remote in _registries(settings):
        yield f"# /etc/containerd/certs.d/{host}/hosts.toml"
        if remote.prefix:
            # What containerd asks while the daemon is down stands under the prefix, too.
            yield f'server = "{remote.upstream}/v2/{remote.prefix}"'
            yield "override_path = true"
        else:
            yield f'server = "{remote.upstream}"'
        yield ""
        yield f'[host."{url}"]'
        yield '  capabilities = ["pull", "resolve"]'
        yield ""


def podman(settings: Settings, url: str) -> str:
    """The text of a file below ``/etc/containers/registries.conf.d/``: podman, skopeo, CRI-O."""
    return "\n".join(_podman(settings, url))


def _podman(settings: Settings, url: str) -> Iterator[str]:
    address = urlsplit(url).netloc
    for host, name, _ in _registries(settings):
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


def _registries(settings: Settings) -> Iterator[tuple[str, str, RemoteSettings]]:
    """The hosts in image references, each with the repository that answers for it."""
    for name, remote in _remotes(settings).items():
        for host in remote.hosts:
            # The first part of a reference is a host only if it has a dot or a colon; clients
            # turn each of Docker Hub's hosts into "docker.io".
            if re.search("[.:]|^localhost$", host) and (host == _HUB or _HUB not in remote.hosts):
                yield host, name, remote


def _is_insecure(url: str) -> bool:
    """Whether Docker needs a setting to use plain HTTP; on loopback it does not."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not _LOOPBACK.fullmatch(parts.netloc.rpartition(":")[0])


class MirrorConfig(SettingsOptions):
    """``artifactd mirror-config``: print a client's configuration."""

    longdesc = (
        "Print the configuration that lets CLIENT (docker, containerd or podman) pull through this"
        " daemon, as the settings are."
    )
    synopsis = "[options] CLIENT"
    optParameters: ClassVar = [
        ["url", "u", None, "Where clients reach the daemon (default: the first TCP listener)."]
    ]

    # Options declares this without arguments, and calls it with those left over.
    def parseArgs(self, client: str) -> None:  # type: ignore[override]
        if client not in CLIENTS:
            raise usage.UsageError(f"expected {', '.join(CLIENTS)}, got {client}")
        self.client = client

    def run(self) -> int:
        settings = self.load()
        url = own_url(settings) if self["url"] is None else _base_url(self["url"])
        print(CLIENTS[self.client](settings, url), end="")
        return 0


def _base_url(text: str) -> str:
    """:raises UsageError: if ``text`` is no URL of a host alone."""
    try:
        url = Url.parse(text)
        if urlsplit(url).path:
            raise ValueError(text)
    except ValueError:
        raise usage.UsageError(
            f'--url: expected one such as "http://cache.example:5000", got {shown(text)}'
        ) from None
    return url
