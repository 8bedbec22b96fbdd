"""Clients of a daemon that is killed again and again: what they do, and what they were told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from random import Random
from threading import Lock

from attrs import define, field, frozen

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import image_manifest
from tests.programs import PATIENCE

TAGS = ("one", "two", "three")


@define
class Progress:
    """
    Does something to the daemon when so many requests have been answered; of all clients.

    :ivar events: what is done, each after so many more answers.
    :ivar settled: whether what was done last has had its effect, where the next one waits for it.
    :ivar fails: whether a request may fail, or be answered 503.
    """

    events: list[tuple[int, Callable[[], None]]]
    fails: bool = True
    settled: Callable[[], bool] = lambda: True
    _answers: int = 0
    _lock: Lock = field(factory=Lock)

    def answered(self) -> None:
        """One more was."""
        with self._lock:
            self._answers += 1
            due = bool(self.events) and self._answers >= self.events[0][0]
            if due and self.settled():
                self._answers = 0
                _, event = self.events.pop(0)
                event()


@frozen
class Answer:
    status: int
    body: bytes
    location: str


@define
class Worker:
    """
    A client that pushes, pulls, mounts and deletes images of one name, in a thread.

    :ivar told: by tag, what it may point at: the manifest, or ``None``.
    :ivar upstream: blobs of an upstream, by path.
    :ivar counts: how many of its requests were answered, by method.
    """

    name: str
    random: Random
    upstream: Mapping[str, bytes]
    shared: bytes
    told: dict[str, set[bytes | None]] = field(factory=lambda: {tag: {None} for tag in TAGS})
    counts: dict[str, int] = field(factory=dict)

    def work(self, port: int, progress: Progress) -> None:
        """Go on until the daemon is no more: until a connection is refused."""
        while True:
            connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

            def ask(
                method: str,
                path: str,
                body: bytes | None = None,
                connection: HTTPConnection = connection,
            ) -> Answer:
                answer = _ask(connection, method, path, body)
                self.counts[method] = self.counts.get(method, 0) + 1
                progress.answered()
                if answer.status == 503:
                    raise HTTPException("not now")
                assert answer.status < 500, (method, path, answer)
                return answer

            with closing(connection):
                try:
                    connection.connect()
                    while True:
                        pushes = self.push, self.push, self.push_in_chunks
                        self.random.choice((*pushes, self.delete, self.pull, self.fill))(ask)
                except ConnectionRefusedError:
                    assert progress.fails, "a connection was refused"
                    return
                except (OSError, HTTPException) as error:
                    assert progress.fails, f"a request has failed: {error!r}"

    def push(self, ask: Callable[..., Answer]) -> None:
        self._push(ask, self._post)

    def push_in_chunks(self, ask: Callable[..., Answer]) -> None:
        self._push(ask, self._patch)

    def _push(self, ask: Callable[..., Answer], upload: Callable[..., bool]) -> None:
        layer = self.random.randbytes(self.random.choice((200, 20_000, 150_000)))
        config = json.dumps({"number": self.random.random()}).encode()
        manifest = image_manifest(config, layer, self.shared)
        tag = self.random.choice(TAGS)
        digest = Digest.of(self.shared)
        path = f"/v2/{self.name}/blobs/uploads/?mount={digest}&from=kill/shared"
        if ask("POST", path).status != 201:
            return
        if not (upload(ask, layer) and self._post(ask, config)):
            return
        before = self.told[tag]
        self.told[tag] = before | {manifest}
        if ask("PUT", f"/v2/{self.name}/manifests/{tag}", manifest).status == 201:
            self.told[tag] = {manifest}
        else:
            self.told[tag] = before  # a blob's lease was over

    def _post(self, ask: Callable[..., Answer], blob: bytes) -> bool:
        path = f"/v2/{self.name}/blobs/uploads/?digest={Digest.of(blob)}"
        return bool(ask("POST", path, blob).status == 201)

    def _patch(self, ask: Callable[..., Answer], blob: bytes) -> bool:
        session = ask("POST", f"/v2/{self.name}/blobs/uploads/").location
        half = len(blob) // 2
        if ask("PATCH", session, blob[:half]).status != 202:
            return False
        return bool(ask("PUT", f"{session}?digest={Digest.of(blob)}", blob[half:]).status == 201)

    def delete(self, ask: Callable[..., Answer]) -> None:
        tag = self.random.choice(TAGS)
        before = self.told[tag]
        self.told[tag] = before | {None}
        answer = ask("DELETE", f"/v2/{self.name}/manifests/{tag}")
        assert answer.status in (202, 404) and (answer.status == 202 or None in before), answer
        self.told[tag] = {None}

    def pull(self, ask: Callable[..., Answer]) -> None:
        tag = self.random.choice(TAGS)
        self.check_tag(ask, tag)

    def fill(self, ask: Callable[..., Answer]) -> None:
        path, content = self.random.choice(sorted(self.upstream.items()))
        answer = ask("GET", path)
        assert (answer.status, answer.body == content) == (200, True), (path, answer.status)

    def check_tag(self, ask: Callable[..., Answer], tag: str) -> None:
        """All of an image is there, and it is one that may be."""
        answer = ask("GET", f"/v2/{self.name}/manifests/{tag}")
        found = answer.body if answer.status == 200 else None
        assert found in self.told[tag], f"{self.name}:{tag} is answered {answer}"
        self.told[tag] = {found}
        if found is None:
            return
        document = json.loads(found)
        for blob in (document["config"], *document["layers"]):
            got = ask("GET", f"/v2/{self.name}/blobs/{blob['digest']}")
            assert str(Digest.of(got.body)) == blob["digest"], f"{self.name}:{tag} lacks {blob}"

    def check(self, port: int) -> None:
        """All that it was told is so."""
        with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            for tag in TAGS:
                self.check_tag(lambda *asked: _ask(connection, *asked), tag)


def _ask(connection: HTTPConnection, method: str, path: str, body: bytes | None = None) -> Answer:
    connection.request(method, path, body, {"Content-Type": OCI_MANIFEST})
    answer = connection.getresponse()
    return Answer(answer.status, answer.read(), answer.getheader("Location") or "")
