"""A client for tests of the upstreams: it follows nothing, and takes what it gets as it is."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from urllib.parse import urlencode, urlsplit

from twisted.internet.threads import deferToThread

from artifactd.oci.digest import Digest
from artifactd.oci.manifest import MANIFEST_TYPES
from tests.process import Answer
from tests.upstreams.hub import Hub

ACCEPT = {"Accept": ", ".join(sorted(MANIFEST_TYPES))}


def brief(content: bytes) -> str:
    """What to compare instead of ``content``, whose difference would take minutes to be shown."""
    return f"{len(content)} bytes, {Digest.of(content)}"


async def ask(url: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    """
    Ask for ``url`` on a connection of its own.

    :raises IncompleteRead: with the part that came, if the body is shorter than it should be.
    """

    def exchange() -> Answer:
        connection, response = _begin(url, method, headers or {})
        try:
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    return await deferToThread(exchange)


async def cut_off(url: str, headers: Mapping[str, str] | None = None) -> tuple[bytes, str]:
    """
    What comes of the body at ``url``, and how it ends: ``closed``, ``reset`` or ``complete``.
    """

    def exchange() -> tuple[bytes, str]:
        connection, response = _begin(url, "GET", headers or {})
        received = bytearray()
        try:
            while piece := response.read1(1 << 16):
                received += piece
        except ConnectionResetError:
            return bytes(received), "reset"
        except IncompleteRead:
            return bytes(received), "closed"
        finally:
            connection.close()
        return bytes(received), "closed" if response.length else "complete"

    return await deferToThread(exchange)


def _begin(
    url: str, method: str, headers: Mapping[str, str]
) -> tuple[HTTPConnection, HTTPResponse]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=60)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers=dict(headers))
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


async def token(hub: Hub, name: str, user: str = "", password: str = "") -> dict[str, str]:
    """The ``Authorization`` of a fresh token for pulling ``name``, as headers."""
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    query = urlencode({"service": "registry.docker.io", "scope": f"repository:{name}:pull"})
    answer = await ask(
        f"{hub.realm}?{query}", headers={"Authorization": f"Basic {login}"} if user else {}
    )
    assert answer.status == 200, answer
    return {"Authorization": f"Bearer {json.loads(answer.body)['token']}"}


async def pull_manifest(hub: Hub, name: str, reference: str, method: str = "GET") -> Answer:
    """Ask for a manifest with a fresh token."""
    headers = await token(hub, name) | ACCEPT
    return await ask(f"{hub.url}/v2/{name}/manifests/{reference}", method, headers)


async def blob_url(hub: Hub, name: str, digest: Digest) -> str:
    """Where the hub redirects to for a blob."""
    headers = await token(hub, name)
    answer = await ask(f"{hub.url}/v2/{name}/blobs/{digest}", headers=headers)
    assert answer.status == 307, answer
    location = answer.header("Location")
    assert location is not None
    return location
