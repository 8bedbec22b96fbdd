"""A registry that wants proof of access, behind a hub with private images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from twisted.logger import formatEvent, globalLogPublisher

from artifactd.oci.names import Digest
from tests.api.case import LogLines
from tests.api.guarded import basic, htpasswd
from tests.api.served import Served
from tests.process import Answer
from tests.pull.mirrors import FULL, MirrorCase
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

APP, PUBLIC, ABSENT = "corp/app", "library/alpine", "corp/nothing"
LAYER = b"the layer of a private image"
PASSWORDS = {"alice": "alice's own, 7f3a", "bob": "bob's own, 91cc", "builder": "ours, 55d0"}
ANYBODY = """
[[access]]
who = ["anonymous"]
may = ["pull"]
images = ["docker.io/*"]
"""


def as_user(name: str, password: str | None = None) -> dict[str, str]:
    """Log in with what the upstream knows."""
    user = name.rpartition("/")[2]
    return basic(name, PASSWORDS[user] if password is None else password)


class ProofCase(MirrorCase):
    """
    ``corp/app`` is private, and alice and builder may have it; bob is known, and may not.  What is
    fetched is fetched as builder.

    :cvar tokens: whether the token service is on.
    :cvar rules: the access rules, and what else is in the settings.
    :ivar digest: of the private image's manifest.
    :ivar log: what is logged, but for the access log.
    """

    tokens = False
    rules = ANYBODY

    def setUp(self) -> None:
        super().setUp()
        self.hub.tokens.users.update(PASSWORDS)
        self.digest = self.hub.images.add_image(APP, "1", LAYER)
        self.blob = Digest.of(LAYER)
        self.hub.images.add_image(PUBLIC, "3", b"a public layer")
        self.hub.private.add(APP)
        self.hub.readers[APP] = {"alice", "builder"}
        self.log = LogLines()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)

    def settings(self, hub: Hub | None = None, **settings: Any) -> str:
        """The settings file; ``settings`` are of the repository."""
        merged: dict[str, Any] = {
            "freshness": "1d",
            "retries": 0,
            "username": "builder",
            "password": PASSWORDS["builder"],
            "proof_of_access": True,
            "negative_freshness": "0s",
            **settings,
        }
        service = f"[token_service]\nenabled = {json.dumps(self.tokens)}\n"
        return f"{service}\n{self.rules}\n{settings_for(hub or self.hub, **merged)}"

    def proving(self, data: Path | None = None, **settings: Any) -> Served:
        """Start the registry."""
        return Served.start(self, self.settings(**settings), data=data)

    def users(self) -> str:
        """The table of an htpasswd file in which are alice, bob, writer and nobody."""
        path = Path(self.mktemp())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(htpasswd())
        return f"[auth]\nhtpasswd = {json.dumps(str(path))}\n"

    async def manifest(
        self, registry: Served, who: Mapping[str, str], name: str = f"docker.io/{APP}:1"
    ) -> Answer:
        """Pull a manifest."""
        image, _, reference = name.rpartition(":")
        return await registry.request(
            "GET", f"/v2/{image}/manifests/{reference}", headers={**FULL, **who}
        )

    async def cached(self, registry: Served) -> None:
        """Let alice pull all of the private image, so that it is here."""
        answer = await self.manifest(registry, as_user("docker.io/alice"))
        self.assertEqual(answer.status, 200, answer.body)
        path = f"/v2/docker.io/{APP}/blobs/{self.blob}"
        answer = await registry.request("GET", path, headers=as_user("docker.io/alice"))
        self.assertEqual((answer.status, answer.body), (200, LAYER))
        await self.filled(registry, self.blob)

    async def token(
        self, registry: Served, who: Mapping[str, str], *names: str, **more: str
    ) -> Answer:
        """What /token answers, for pulls of ``names``."""
        scopes = [("scope", f"repository:{name}:pull") for name in names]
        query = urlencode([("service", "artifactd"), *scopes, *more.items()])
        return await registry.request("GET", f"/token?{query}", headers=who)

    async def bearer(self, registry: Served, who: Mapping[str, str], *names: str) -> dict[str, str]:
        """The header with a token for pulls of ``names``."""
        answer = await self.token(registry, who, *names)
        self.assertEqual(answer.status, 200, answer.body)
        return {"Authorization": f"Bearer {json.loads(answer.body)['token']}"}

    def outlive(self, registry: Served) -> None:
        """Let every proof in the catalog be as old as it gets."""
        self.execute(registry, "UPDATE access_proof SET expires_at = 1")

    def logged(self) -> str:
        """All that has been logged."""
        return "\n".join(formatEvent(event) or "" for event in self.log.events)

    def refused(self, answer: Answer) -> tuple[int, str]:
        """The status and the code of an error."""
        return answer.status, json.loads(answer.body)["errors"][0]["code"]
