"""A registry with users and access rules."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import bcrypt

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase
from tests.api.served import Served, image_manifest
from tests.process import Answer

RULES = """
[[access]]
who = ["user:alice"]
may = ["pull", "push", "delete", "administer"]
images = ["*"]

[[access]]
who = ["user:bob"]
may = ["pull"]
images = ["local/team/*", "docker.io/*"]

[[access]]
who = ["user:writer"]
may = ["push"]
images = ["local/team/*"]

[[access]]
who = ["anonymous"]
may = ["pull"]
images = ["local/public/*"]
"""

BLOB = b"layer"
CONFIG = b"{}"
ABSENT = Digest.of(b"nowhere")


@cache
def htpasswd() -> str:
    """Everybody's password is the name and ``!``; as cheap to check as bcrypt can be."""
    names = ("alice", "bob", "writer", "nobody")
    return "".join(
        f"{name}:{bcrypt.hashpw(f'{name}!'.encode(), bcrypt.gensalt(4)).decode()}\n"
        for name in names
    )


def basic(name: str, password: str | None = None) -> dict[str, str]:
    """The header by which ``name`` logs in, by default with the right password."""
    credentials = f"{name}:{f'{name}!' if password is None else password}"
    return {"Authorization": f"Basic {b64encode(credentials.encode()).decode()}"}


class GuardedCase(ApiTestCase):
    """
    Users alice, who may do everything; bob, who may pull what the team has; writer, who may push
    there; and nobody, who may do nothing.

    :cvar tokens: whether the token service is on.
    :cvar top: settings above all tables.
    :cvar rules: the tables of rules, and others.
    :ivar listen: where it listens; by default on a port of 127.0.0.1.
    """

    tokens = False
    top = ""
    rules = RULES
    listen = "tcp:0:interface=127.0.0.1"

    def start(self) -> Served:
        """Start the registry with what the class says."""
        users = Path(self.mktemp())
        users.parent.mkdir(parents=True, exist_ok=True)
        users.write_text(htpasswd())
        service = f"[token_service]\nenabled = {json.dumps(self.tokens)}\n"
        auth = f"[auth]\nhtpasswd = {json.dumps(str(users))}\n"
        toml = f"{self.top}\n{auth}\n{service}\n{self.rules}\n{self.toml}"
        return Served.start(self, toml, listen=self.listen)

    async def ask(
        self,
        method: str,
        path: str,
        who: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask as ``who``, with Basic."""
        login = {} if who is None else basic(who)
        return await self.registry.request(method, path, body, {**login, **(headers or {})})

    async def status(self, method: str, path: str, who: str | None = None, **more: Any) -> int:
        """The status of what is answered."""
        return (await self.ask(method, path, who, **more)).status

    async def have(self, *names: str) -> None:
        """Let alice push an image to each of ``names``, tagged v1."""
        manifest = image_manifest(CONFIG, BLOB)
        for name in names:
            for blob in (CONFIG, BLOB):
                path = f"/v2/{name}/blobs/uploads/?digest={Digest.of(blob)}"
                self.assertEqual(await self.status("POST", path, "alice", body=blob), 201)
            answer = await self.ask(
                "PUT",
                f"/v2/{name}/manifests/v1",
                "alice",
                manifest,
                {"Content-Type": OCI_MANIFEST},
            )
            self.assertEqual(answer.status, 201, answer.body)

    async def token(self, *scopes: str, who: str | None = None, **headers: str) -> str:
        """A token for ``scopes``, which ``who`` gets, or anybody."""
        query = urlencode([("service", "artifactd"), *(("scope", scope) for scope in scopes)])
        answer = await self.ask("GET", f"/token?{query}", who, headers=headers)
        self.assertEqual(answer.status, 200, answer.body)
        token: str = json.loads(answer.body)["token"]
        return token

    async def with_token(self, token: str, method: str, path: str, **more: Any) -> Answer:
        """Ask with a Bearer token."""
        more["headers"] = {**more.get("headers", {}), "Authorization": f"Bearer {token}"}
        return await self.ask(method, path, **more)


def shape(answer: Answer, name: str) -> tuple[int, object, bytes]:
    """What of ``answer`` may not tell whether ``name`` exists: all of it but the name."""
    headers = sorted((k, v.replace(name, "?")) for k, v in answer.headers.items() if k != "Date")
    lengths = [(k, v) for k, v in headers if k != "Content-Length"]
    return answer.status, lengths, answer.body.replace(name.encode(), b"?")
