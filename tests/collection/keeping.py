"""
Clients that push, pull, delete and bring back at random, where rules of a retention drop tags and
some tags are immutable.
"""

from __future__ import annotations

import json
import sqlite3
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from threading import Event

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorCore

from artifactd.auth.passwords import hash_secret, make_secret
from artifactd.daemon.assemble import Assembly, assemble
from artifactd.oci.names import Digest
from artifactd.settings.settings import Settings
from tests.collection.clock import SharedClock
from tests.collection.registry import image, media_type
from tests.programs import PATIENCE

CONNECTIONS = 6
HOUR = 3600.0
NEWEST, PULLED, PUSHED = 2, 1.5 * HOUR, 1.5 * HOUR
TAGS = [f"{kind}{number}" for kind in "tbxv" for number in range(3)]
SHARED = "local/shared"

ALL, CREATING = make_secret(), make_secret()
"""Secrets of robots: one may do everything, the other one creates what is not there."""

# Of the tags t..., the newest stay and those that are used; of b..., those that were just pushed,
# and b0; no rule is for x...; and v... are immutable.
TOML = f"""
lease = "24h"
grace = "10000h"
gc_interval = "20ms"
gc_rate = 0

[repository.local]
kind = "local"
immutable_tags = ["v*"]
untagged = "30h"
retention = [
  {{ tags = ["[tv]*"], newest = {NEWEST} }},
  {{ tags = ["t*"], pulled = "{PULLED:.0f}s" }},
  {{ tags = ["b*"], pushed = "{PUSHED:.0f}s", keep = ["b0"] }},
]

[default]
push = "local"
pull = ["local"]

[[access]]
who = ["robot:all"]
may = ["pull", "push", "delete"]
images = ["*"]

[[access]]
who = ["robot:creating"]
may = ["pull", "create"]
images = ["*"]

[robot.all]
secret_hash = "{hash_secret(ALL)}"
may = ["pull", "push", "delete"]
images = ["*"]

[robot.creating]
secret_hash = "{hash_secret(CREATING)}"
may = ["pull", "create"]
images = ["*"]
"""


@contextmanager
def opened(data: Path, clock: SharedClock, reactor: IReactorCore) -> Iterator[Assembly]:
    """The registry without a daemon; to be closed by whoever asks."""
    file = data.with_name("opened.toml")
    file.write_text(TOML)
    settings = Settings.load(file, {"ARTIFACTD_DATA": str(data)})
    with ExitStack() as stack:
        parts = assemble(settings, reactor, stack, clock)
        parts.threads.start()
        stack.pop_all()
    yield parts


@define
class Known:
    """
    What a client knows of a tag that nobody else pushes.

    :ivar pushed: the clock before and after its last push.
    :ivar used: the clock before its last pull or push.
    """

    digest: str
    pushed: tuple[float, float]
    used: float


@define
class Model:
    """
    :ivar doubtful: tags that the rules may have let go at some time since they were last seen.
    """

    name: str
    tags: dict[str, Known] = field(factory=dict)
    doubtful: set[str] = field(factory=set)

    def is_kept(self, tag: str, now: float) -> bool:
        """Whether a rule certainly keeps it, or none is for it."""
        known = self.tags[tag]
        if tag[0] in "vx" or tag == "b0":
            return True
        if tag[0] == "b":
            return now < known.pushed[0] + PUSHED
        newer = [
            other
            for other, each in self.tags.items()
            # The first rule is for tags of two kinds.
            if other[0] in "tv" and other != tag and each.pushed[1] >= known.pushed[0]
        ]
        return len(newer) < NEWEST or now < known.used + PULLED

    def look(self, now: float) -> None:
        """Time has passed, or a tag has come: others may have to go."""
        self.doubtful |= {tag for tag in self.tags if not self.is_kept(tag, now)}

    def forget(self, tag: str) -> None:
        del self.tags[tag]
        self.doubtful.discard(tag)


class Refused(Exception):
    """An answer that is an error.  :ivar status: of it."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, body)
        self.status = status


@frozen
class Client:
    """Requests to a daemon, each on a connection of its own, so that they come to all workers."""

    port: int

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        kind: str = "application/octet-stream",
        robot: str = "all",
    ) -> bytes:
        """
        Send a request, and return the body of its answer.

        :raises Refused: if that is 403 or 404.
        """
        secret = ALL if robot == "all" else CREATING
        login = b64encode(f"robot+{robot}:{secret}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": kind}
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        if answer.status in (403, 404):
            raise Refused(answer.status, content)
        assert answer.status < 300, (method, path, answer.status, content)
        return content

    def put(self, name: str, tag: str, content: bytes, robot: str = "all") -> str:
        """Push a manifest whose config is ``{}``; its digest."""
        config = b"{}"
        uploads = f"/v2/{name}/blobs/uploads/?digest={Digest.of(config)}"
        self.ask("POST", uploads, config, robot=robot)
        manifest = f"/v2/{name}/manifests/{tag}"
        self.ask("PUT", manifest, content, kind=media_type(content), robot=robot)
        return str(Digest.of(content))

    def get(self, name: str, reference: str) -> str:
        """Pull a manifest; its digest."""
        return str(Digest.of(self.ask("GET", f"/v2/{name}/manifests/{reference}")))

    def delete(self, name: str, reference: str) -> None:
        self.ask("DELETE", f"/v2/{name}/manifests/{reference}")

    def undelete(self, name: str, tag: str) -> list[str]:
        """Bring a tag back; the tags that have come back."""
        path = f"/api/v1/images/{name}/deleted?reference={tag}"
        tags: list[str] = json.loads(self.ask("POST", path))["tags"]
        return tags

    def last_mover(self, name: str, tag: str) -> str:
        """What has moved a tag last."""
        path = f"/api/v1/images/{name}/history?tag={tag}"
        history = json.loads(self.ask("GET", path))["history"]
        return str(history[0]["actor"])


@define
class Connection:
    """One client, in an image that nobody else changes but the collection, and in a shared one."""

    client: Client
    catalog: Path
    clock: SharedClock
    random: Random
    number: int
    model: Model
    done: Counter[str] = field(factory=Counter)
    seen: dict[str, str] = field(factory=dict)  # immutable and created tags of the shared image

    def work(self, operations: int, stop: Event) -> None:
        """Do so many steps, in a thread, unless it shall stop before."""
        steps = [
            (self.push, 30),
            (self.pull, 30),
            (self.pull_digest, 8),
            (self.delete, 6),
            (self.move_immutable, 8),
            (self.shared, 10),
        ]
        names, weights = zip(*steps, strict=True)
        for _ in range(operations):
            if stop.is_set():
                return
            [step] = self.random.choices(names, weights)
            self.model.look(self.clock())
            step()
            self.model.look(self.clock())
            if self.number < 3 and self.random.random() < 0.04:
                self.advance(self.random.uniform(0, 0.5 * HOUR))

    def advance(self, seconds: float) -> None:
        """Advance the clock while no process writes, as each transaction takes one time."""
        with closing(sqlite3.connect(self.catalog, timeout=60, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            self.clock.advance(seconds)

    def content(self) -> bytes:
        return image(b"{}", [], self.random.randrange(6))

    # -- steps

    def push(self) -> None:
        tag, content, before = self.random.choice(TAGS), self.content(), self.clock()
        known = self.model.tags.get(tag)
        digest = str(Digest.of(content))
        try:
            self.client.put(self.model.name, tag, content)
        except Refused as refused:
            assert refused.status == 403, refused
            assert tag[0] == "v", (tag, refused)
            assert known is not None, (tag, refused)
            assert known.digest != digest, f"{tag} may be pushed again as it is"
            self.done["push, immutable"] += 1
            return
        assert tag[0] != "v" or known is None or known.digest == digest, f"{tag} has moved"
        self.model.tags[tag] = Known(digest, (before, self.clock()), before)
        self.model.doubtful.discard(tag)
        self.done["push"] += 1

    def pull(self) -> None:
        if not self.model.tags:
            return
        tag, before = self.random.choice(list(self.model.tags)), self.clock()
        known = self.model.tags[tag]
        try:
            digest = self.client.get(self.model.name, tag)
        except Refused:
            self.model.look(self.clock())
            assert tag in self.model.doubtful, f"{self.model.name}:{tag} was kept by a rule"
            self.done["pull, dropped"] += 1
            self.bring_back(tag)
            return
        assert digest == known.digest, f"{self.model.name}:{tag} is something else"
        self.used(tag, before)

    def used(self, tag: str, before: float) -> None:
        """It was there, and pulled, at ``before`` or later."""
        self.done["pull"] += 1
        self.model.tags[tag].used = before
        self.model.doubtful.discard(tag)

    def pull_digest(self) -> None:
        """A pull by digest counts for every tag of the manifest."""
        certain = [tag for tag in self.model.tags if tag not in self.model.doubtful]
        if not certain:
            return
        digest, before = self.model.tags[self.random.choice(certain)].digest, self.clock()
        self.model.look(before)
        try:
            self.client.get(self.model.name, digest)
        except Refused:
            raise AssertionError(f"{self.model.name}@{digest} was kept by a tag") from None
        for tag, known in self.model.tags.items():
            if known.digest == digest and tag not in self.model.doubtful:
                known.used = before
        self.done["pull by digest"] += 1

    def bring_back(self, tag: str) -> None:
        known, before = self.model.tags[tag], self.clock()
        self.model.forget(tag)
        mover = self.client.last_mover(self.model.name, tag)
        assert mover.startswith("retention["), mover
        if self.random.random() < 0.5:
            restored = self.client.undelete(self.model.name, tag)
            assert restored == [tag], restored
            self.model.tags[tag] = Known(known.digest, (before, self.clock()), before)
            self.done["undelete"] += 1

    def delete(self) -> None:
        if not self.model.tags:
            return
        tag = self.random.choice(list(self.model.tags))
        known = self.model.tags[tag]
        by_digest = self.random.random() < 0.3
        try:
            self.client.delete(self.model.name, known.digest if by_digest else tag)
        except Refused as refused:
            if refused.status == 403:
                its = [t for t, each in self.model.tags.items() if each.digest == known.digest]
                assert any(t[0] == "v" for t in its), f"{tag} is not immutable"
                self.done["delete, immutable"] += 1
                return
            self.model.look(self.clock())
            assert tag in self.model.doubtful, f"{self.model.name}:{tag} was kept by a rule"
            self.model.forget(tag)
        else:
            assert tag[0] != "v", f"{tag} was deleted"
            for other in list(self.model.tags) if by_digest else [tag]:
                if self.model.tags[other].digest == known.digest:
                    self.model.forget(other)
            self.done["delete"] += 1

    def move_immutable(self) -> None:
        tag = self.random.choice([tag for tag in TAGS if tag[0] == "v"])
        known = self.model.tags.get(tag)
        if known is not None:
            digest = self.client.get(self.model.name, tag)
            assert digest == known.digest, f"{self.model.name}:{tag} has moved"
            self.model.tags[tag].used = self.clock()

    def shared(self) -> None:
        """Several create a tag at the same time: an immutable one, or with the right to create."""
        tag = self.random.choice(("v0", "v1", "x0", "x1", "x2"))
        content = self.content()
        try:
            digest = self.client.put(SHARED, tag, content, "all" if tag[0] == "v" else "creating")
        except Refused as refused:
            assert refused.status == 403, refused
            digest = self.client.get(SHARED, tag)
            self.done["create, refused"] += 1
        assert self.seen.setdefault(tag, digest) == digest, f"{SHARED}:{tag} has moved"
