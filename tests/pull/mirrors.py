"""What the tests of manifests, tags, lists and names have in common: a registry behind a hub."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from attrs import Factory, frozen
from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import MANIFEST_TYPES
from artifactd.oci.names import Digest, ImageName
from tests.api.served import Served
from tests.process import Answer
from tests.rows import writing
from tests.upstreams.backing import Bytes
from tests.upstreams.hub import Hub
from tests.upstreams.reply import Reply
from tests.upstreams.settings import settings_for

FULL = {"Accept": ", ".join(sorted(MANIFEST_TYPES))}
HIT = "artifactd; hit"
STORED = "artifactd; fwd=miss; fwd-status=200; stored"
CONFIRMED = "artifactd; fwd=stale; detail=confirmed"


@frozen
class Instead:
    """A fault: other bytes, perhaps called something else; other headers stay as they are."""

    content: bytes
    media_type: str | None = None
    headers: Mapping[str, str] = Factory(dict)

    def change(self, reply: Reply) -> None:
        """Let ``reply`` have them."""
        reply.content = Bytes(self.content)
        if self.media_type is not None:
            reply.headers["Content-Type"] = self.media_type
        reply.headers.update(self.headers)


@frozen
class Without:
    """A fault: a header is missing, and there is no validator."""

    header: str

    def change(self, reply: Reply) -> None:
        """Let ``reply`` lack it."""
        reply.headers.pop(self.header, None)
        reply.etag = None


def side_by_side(
    hubs: Mapping[str, Hub], default: Mapping[str, object] | None = None, **more: Any
) -> str:
    """
    The settings of a registry in front of several upstreams.

    :param hubs: by the names of their repositories, in the order of ``pull``.
    :param default: what else is in ``[default]``.
    :param more: settings of each of them.
    """
    tables: dict[str, dict[str, object]] = {"repository.local": {"kind": "local"}}
    for name, hub in hubs.items():
        remote = {"kind": "remote", "upstream": hub.url, "freshness": "1d", "retries": 0}
        remote["library"] = "library/" if name == "docker.io" else ""
        tables[f'repository."{name}"'] = {**remote, **more}
    tables["default"] = {"pull": ["local", *hubs], **(default or {})}
    return "\n".join(
        f"[{table}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items())
        for table, settings in tables.items()
    )


class MirrorCase(TestCase):
    """:ivar hub: the upstream, in which there is nothing yet."""

    def setUp(self) -> None:
        self.hub = Hub.start(self)

    def mirror(self, data: Path | None = None, **settings: Any) -> Served:
        """
        A registry in front of the hub, which asks again for nothing that it has, and asks once.

        :param settings: of ``docker.io``, other than that.
        """
        merged: dict[str, Any] = {"freshness": "1d", "retries": 0, **settings}
        return Served.start(self, settings_for(self.hub, **merged), data=data)

    def mirror_with(self, toml: str, **settings: Any) -> Served:
        """As :meth:`mirror`, with settings of the whole registry."""
        merged: dict[str, Any] = {"freshness": "1d", "retries": 0, **settings}
        return Served.start(self, toml + settings_for(self.hub, **merged))

    def asked(self) -> list[tuple[str, str, int | None]]:
        """What the registry behind the hub was asked lately, and how it answered."""
        return [(a.method, a.path, a.status) for a in self.hub.asked("*", "/v2/*")]

    async def filled(self, registry: Served, digest: Digest) -> None:
        """Wait until nothing of a blob is still on its way into the store."""
        for fills in registry.parts.remotes.fills.values():
            await fills.ended(digest)

    async def release(self, registry: Served, name: str) -> None:
        """What ``artifactd release`` does."""
        await registry.parts.remote.release_image(ImageName("local", name))

    def age(self, registry: Served, seconds: float) -> None:
        """Let everything be checked so much longer ago."""
        self.execute(registry, "UPDATE tag SET checked_at = checked_at - ?", seconds)
        self.execute(registry, "UPDATE tag SET candidate_at = candidate_at - ?", seconds)
        self.execute(registry, "UPDATE upstream_page SET fetched_at = fetched_at - ?", seconds)

    def execute(self, registry: Served, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What another process does to the catalog."""
        with writing(registry.data / "catalog.sqlite3") as db:
            return db.execute(statement, values).fetchall()

    def state(self, registry: Served) -> tuple[list[str], list[str]]:
        """Every file of the store and every row of the catalog."""
        with closing(sqlite3.connect(registry.data / "catalog.sqlite3")) as db:
            return registry.files(), list(db.iterdump())

    def assert_from(self, answer: Answer, source: str, cache: str, status: int = 200) -> None:
        """``answer`` says that it comes from there, and how."""
        self.assertEqual(answer.status, status, answer.body)
        told = answer.header("X-Artifact-Source"), answer.header("Cache-Status")
        self.assertEqual(told, (source, cache))
        self.assertTrue(timings(answer)["total"] >= 0)

    def assert_stale(self, answer: Answer, body: bytes, reason: str = "") -> None:
        """``answer`` is an old one, and says so and why."""
        self.assertEqual((answer.status, answer.body), (200, body))
        self.assertRegex(
            answer.header("Cache-Status") or "",
            r"^artifactd; fwd=stale(; fwd-status=\d+)?; detail=stale$",
        )
        self.assertEqual(answer.header("X-Artifact-Source"), "cache")
        self.assertRegex(answer.header("Warning") or "", f'^299 - "stale: .*{reason}.*"$')

    def assert_refused(self, answer: Answer, status: int, code: str, reason: str = "") -> Any:
        """``answer`` is one error of the spec, and no challenge; its ``detail``."""
        self.assertEqual(answer.status, status, answer.body)
        (error,) = json.loads(answer.body)["errors"]
        self.assertEqual(error["code"], code)
        self.assertIsNone(answer.header("WWW-Authenticate"))
        self.assertTrue((answer.header("Cache-Status") or "").startswith("artifactd"))
        self.assertIn("total", timings(answer))
        detail = error.get("detail")
        if reason:
            self.assertRegex(json.dumps(error), reason)
        return detail


def timings(answer: Answer) -> Mapping[str, float]:
    """What ``Server-Timing`` says, in milliseconds."""
    fields = answer.headers.get_all("Server-Timing") or []
    found = {}
    for each in ", ".join(fields).split(", "):
        match = re.fullmatch(r"(\w+);dur=([\d.]+)", each)
        if match is not None:
            found[match[1]] = float(match[2])
    return found


def digest_of(answer: Answer) -> Digest:
    """What an answer says that its digest is."""
    return Digest.parse(answer.header("Docker-Content-Digest") or "")
