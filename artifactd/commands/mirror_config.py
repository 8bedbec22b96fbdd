"""``artifactd mirror-config``: the configuration that makes a client pull through this daemon."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from attrs import frozen
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


@frozen
class ClientFile:
    """
    A file of a client's configuration.

    :ivar folder: where the client looks for it.
    :ivar name: its path below ``folder``.
    :ivar text: what it has to hold.
    """

    folder: str
    name: str
    text: str

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"


def docker(settings: Settings, url: str) -> Iterator[ClientFile]:
    """
    The settings of Docker Engine.

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
    yield ClientFile("/etc/docker", "daemon.json", f"{json.dumps(document, indent=2)}\n")


def containerd(settings: Settings, url: str) -> Iterator[ClientFile]:
    """
    A ``hosts.toml`` for each registry that a remote repository answers for; containerd adds
    ``ns=<registry>`` to its requests.
    """
    for host, _, remote in _registries(settings):
        lines = [f'server = "{_fallback(remote)}"']
        if remote.prefix:
            lines.append("override_path = true")
        lines += ["", f'[host."{url}"]', '  capabilities = ["pull", "resolve"]', ""]
        yield ClientFile("/etc/containerd/certs.d", f"{host}/hosts.toml", "\n".join(lines))


def k3s(settings: Settings, url: str) -> Iterator[ClientFile]:
    """
    The ``registries.yaml`` of k3s and RKE2, of which they make containerd's files.  They ask the
    registry itself after the endpoints that are listed.
    """
    lines = ["mirrors:"]
    for host, _, remote in _registries(settings):
        lines += [f'  "{host}":', "    endpoint:", f'      - "{url}"']
        if remote.prefix:
            lines.append(f'      - "{_fallback(remote)}"')
    if len(lines) > 1:
        yield ClientFile("/etc/rancher/k3s", "registries.yaml", "\n".join([*lines, ""]))


def podman(settings: Settings, url: str) -> Iterator[ClientFile]:
    """A drop-in of ``registries.conf``, which podman, buildah, skopeo and CRI-O read."""
    text = "\n".join(_containers(settings, url))
    if text:
        yield ClientFile("/etc/containers/registries.conf.d", "artifactd.conf", text)


def _containers(settings: Settings, url: str) -> Iterator[str]:
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


CLIENTS: Mapping[str, Callable[[Settings, str], Iterator[ClientFile]]] = {
    "docker": docker,
    "containerd": containerd,
    "k3s": k3s,
    "podman": podman,
    "crio": podman,
}


def _fallback(remote: RemoteSettings) -> str:
    """What a client asks while the daemon is down: the upstream, under the prefix if it has one."""
    return f"{remote.upstream}/v2/{remote.prefix}" if remote.prefix else str(remote.upstream)


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
    """``artifactd mirror-config``: print a client's configuration, or write it."""

    longdesc = (
        f"Print the configuration that lets CLIENT ({', '.join(CLIENTS)}) pull through this daemon,"
        " as the settings are, each file under a line with its path."
    )
    synopsis = "[options] CLIENT"
    optParameters: ClassVar = [
        ["url", "u", None, "Where clients reach the daemon (default: the first TCP listener)."],
        ["write", "w", None, "Write the files below this folder instead, and print their paths."],
    ]

    # Options declares this without arguments, and calls it with those left over.
    def parseArgs(self, client: str) -> None:  # type: ignore[override]
        if client not in CLIENTS:
            raise usage.UsageError(f"expected {', '.join(CLIENTS)}, got {client}")
        self.client = client

    def run(self) -> int:
        settings = self.load()
        url = own_url(settings) if self["url"] is None else _base_url(self["url"])
        files = list(CLIENTS[self.client](settings, url))
        if self["write"] is None:
            for file in files:
                # JSON has no comments.
                print(file.text if file.name.endswith(".json") else f"# {file.path}\n{file.text}")
        else:
            for file in files:
                print(_write(file, Path(self["write"])))
        return 0


def _write(file: ClientFile, folder: Path) -> Path:
    """
    Write ``file`` below ``folder`` if it is not there.

    :returns: its path.
    :raises StartError: if it is there with another text, which is left as it is: it may hold what
        has nothing to do with this daemon.
    """
    path = folder / file.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as new:
            new.write(file.text)
    except FileExistsError:
        if path.read_text(encoding="utf-8") != file.text:
            raise StartError(
                f"{path}: it is there with other settings: merge them by hand with what this"
                " command prints without --write, or remove the file first"
            ) from None
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    return path


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
