"""What the log says when the daemon has started."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.logger import Logger

from artifactd import __version__
from artifactd.settings.settings import Settings

_log = Logger()

_ANY = ("0.0.0.0", "::")


def greet(
    settings: Settings, source: Path | None, addresses: Sequence[Any], *, read_only: bool
) -> None:
    """Log where the daemon listens, and :func:`greeting`, whose parameters it has."""
    for address in addresses:
        _log.info("listening on {address}", address=shown(address))
    for line in greeting(settings, source, addresses, read_only=read_only):
        _log.info("{line}", line=line)


def shown(address: Any) -> str:
    """An address that the daemon listens on, for the log."""
    if hasattr(address, "port"):
        return f"{address.type.lower()} {address.host}:{address.port}"
    return f"unix {os.fsdecode(address.name)}"


def greeting(
    settings: Settings, source: Path | None, addresses: Sequence[Any], *, read_only: bool
) -> Iterator[str]:
    """
    Lines for an operator: what runs, where clients reach it, who may do what, and what to do next.

    :param source: the file of the settings; ``None`` for the embedded ones.
    :param addresses: where the daemon listens, in the order of ``settings.listen``.
    :param read_only: whether the read-only mode is on.
    """
    told = "embedded settings" if source is None else f"settings of {source}"
    yield f"artifactd {__version__} with the {told}; data in {settings.data.absolute()}"
    urls = [
        url_of(description, address)
        for description, address in zip(settings.listen, addresses, strict=True)
    ]
    if settings.external_url:
        urls = [str(settings.external_url), *urls]
    yield f"clients reach it at {', '.join(urls)}"
    yield _access(settings, read_only)
    hosts = [urlsplit(url).netloc for url in urls if url.startswith("http")]
    if hosts:
        yield f"next: {_next(settings, hosts[0])}"


def url_of(description: str, address: Any) -> str:
    """The URL of a listener, with this machine's name if it listens on all addresses."""
    if not hasattr(address, "port"):
        return f"unix:{os.fsdecode(address.name)}"
    scheme = "https" if description.startswith(("artifactd-tls:", "ssl:")) else "http"
    host = socket.gethostname() if address.host in _ANY else address.host
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"


def _access(settings: Settings, read_only: bool) -> str:
    if settings.authentication:
        told = f"[[access]] says who may pull or push; its rules: {len(settings.access)}"
    else:
        told = (
            "everybody who reaches it may pull, and clients on this machine may push and delete:"
            " [auth] and [[access]] in the settings let others"
        )
    if read_only:
        told += "; the read-only mode is on: nobody may push or delete"
    return told


def _next(settings: Settings, host: str) -> str:
    if settings.authentication:
        return f"docker login {host}"
    if settings.default.push:
        return f"docker tag IMAGE {host}/IMAGE, then docker push {host}/IMAGE"
    return "artifactd mirror-config docker, containerd, k3s, podman or crio"
