"""
Whatever is done when the power fails, and whatever of it the disk has kept: all that was promised
is there.  docs/durability.md

``DURABILITY_SEED`` sets what is picked where there are too many states to look at all of them, and
``DURABILITY_OPENED`` on how many a daemon is started in each scenario.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from random import Random, SystemRandom

from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.catalog import migrations
from artifactd.commands.backup import Backup
from artifactd.daemon.assemble import Assembly
from artifactd.oci.names import Digest
from artifactd.store.folder import DataFolder
from tests.api.served import image_manifest
from tests.catalog.fixture import schema_folder
from tests.durability.client import Recorded, blob_key, manifest_key
from tests.durability.disk import Disk, State
from tests.durability.old import LATER, RELEASED, make_version_1
from tests.durability.recording import Recording
from tests.durability.replay import DATA, Broken, Replay, latest
from tests.programs import wait_for
from tests.pull.case import noise
from tests.upstreams.faulty import CDN
from tests.upstreams.hub import Hub
from tests.upstreams.settings import beside_no_upstream, settings_for

_LOOKED = 48  # states of one crash point
_OPENED = int(os.environ.get("DURABILITY_OPENED", "28"))
_SEED = int(os.environ.get("DURABILITY_SEED") or SystemRandom().getrandbits(32))


class PowerLossTestCase(TestCase):
    async def assert_survives(
        self, recorded: Recorded, since: int = 0, oldest: int | None = None
    ) -> None:
        """
        Every crash point from event ``since`` on leaves what was promised.

        :param oldest: the schema that the catalog had at first, if not the latest.
        """
        await recorded.restart()
        await self.assert_replays(recorded.recording, recorded.toml, since, oldest)

    async def assert_replays(
        self, recording: Recording, toml: str, since: int = 0, oldest: int | None = None
    ) -> None:
        """As :meth:`assert_survives`, for a recording."""
        events = list(recording.events)
        random = Random(_SEED)
        disk = Disk(recording.root)
        replay = Replay(self, beside_no_upstream(toml), oldest or latest())
        points, seen, found = 0, set(), []
        try:
            for position in range(len(events) + 1):
                if position >= since:
                    points += 1
                    promised = {key: set(contents) for key, contents in disk.promised.items()}
                    for chosen, state in disk.states(_LOOKED, random):
                        replay.look(state, promised)
                        identity = _identity(state, promised)
                        if identity not in seen:
                            seen.add(identity)
                            found.append((position, chosen, state, promised, [*disk.sessions]))
                if position < len(events):
                    disk.apply(events[position], events[position + 1 :])
            # Most of them those that differ in one thing from what a process saw, or in all.
            random.shuffle(found)
            opened = sorted(found, key=lambda f: not f[1])[: _OPENED * 3 // 4]
            rest = [f for f in found if not any(f is each for each in opened)]
            for each in (opened + rest)[:_OPENED]:
                position, _, state, promised, sessions = each
                await replay.open(state, promised, sessions)
        except Broken as error:
            last = "\n".join(f"  {event!r:.160}" for event in events[:position][-8:])
            raise AssertionError(
                f"{error}\nDURABILITY_SEED={_SEED}; after event {position}:\n{last}"
            ) from error
        print(
            f"\n    {points} crash points, {replay.looked} states of the disk looked at"
            f" ({len(seen)} different), a daemon started on {replay.opened}; seed {_SEED}",
            file=sys.stderr,
        )


def _identity(state: State, promised: Mapping[str, Iterable[bytes | None]]) -> object:
    names = frozenset((name, number, file) for name, (number, file) in state.names.items())
    told = frozenset((key, frozenset(contents)) for key, contents in promised.items())
    return names, tuple(state.folders), state.catalog, told


class PushTests(PowerLossTestCase):
    async def test_a_first_start(self) -> None:
        await self.assert_survives(Recorded.start(self))

    async def test_a_push_in_one_request_and_of_the_same_bytes_again(self) -> None:
        recorded = Recorded.start(self)
        since = len(recorded.recording.events)
        await recorded.push_image("app", "v1", b"a layer")
        await recorded.push_image("other", "v1", b"a layer")
        await self.assert_survives(recorded, since)

    async def test_a_push_in_chunks_that_is_resumed_after_a_restart(self) -> None:
        recorded = Recorded.start(self)
        since = len(recorded.recording.events)
        layer = noise(30_000)
        session = await recorded.begin("app")
        await recorded.ask("PATCH", session, 202, layer[:10_000])
        await recorded.ask("PATCH", session, 202, layer[10_000:20_000])
        await recorded.restart()
        await recorded.finish("app", session, layer, layer[20_000:])
        cancelled = await recorded.begin("app")
        await recorded.ask("PATCH", cancelled, 202, layer[:5_000])
        await recorded.ask("DELETE", cancelled, 204)
        await self.assert_survives(recorded, since)

    async def test_a_mount_and_a_tag_that_moves(self) -> None:
        recorded = Recorded.start(self)
        await recorded.push_image("app", "v1", b"one")
        since = len(recorded.recording.events)
        await recorded.mount("other", b"one", "app")
        config = b"{}"
        await recorded.push_blob("other", config)
        await recorded.put("other", "latest", image_manifest(config, b"one"))
        other = image_manifest(config, b"one", annotations={"number": "2"})
        await recorded.put("other", "latest", other)
        await self.assert_survives(recorded, since)


class GoingTests(PowerLossTestCase):
    async def test_deletion_collection_and_pushing_it_anew(self) -> None:
        recorded = Recorded.start(self)
        manifest = await recorded.push_image("app", "v1", b"deleted")
        await recorded.push_image("app", "v2", b"stays")
        since = len(recorded.recording.events)
        await recorded.delete(manifest_key("app", "v1"))
        digest = manifest_key("app", Digest.of(manifest))
        await recorded.delete(digest, manifest_key("app", "v1"))
        await recorded.delete(blob_key("app", b"deleted"))
        recorded.recording.released(blob_key("app", b'{"tag": "v1", "name": "app"}'))
        await recorded.collect()
        await recorded.push_image("app", "v3", b"deleted")
        await self.assert_survives(recorded, since)

    async def test_what_is_deleted_and_brought_back(self) -> None:
        recorded = Recorded.start(self)
        manifest = await recorded.push_image("app", "v1", b"deleted")
        since = len(recorded.recording.events)
        keys = [manifest_key("app", Digest.of(manifest)), manifest_key("app", "v1")]
        await recorded.delete(*keys)
        await self._undelete(recorded, manifest, keys)
        await recorded.collect()
        await self.assert_survives(recorded, since)

    async def _undelete(self, recorded: Recorded, manifest: bytes, keys: list[str]) -> None:
        for key in keys:
            recorded.recording.asked(key, manifest)
        parts: Assembly = recorded.parts
        image = parts.registry.target("app").image
        await parts.garbage.undelete(image, None, "test")
        for key in keys:
            recorded.recording.answered(key)


class PullThroughTests(PowerLossTestCase):
    def setUp(self) -> None:
        self.hub = Hub.start(self)
        self.layer = noise(150_000)
        self.hub.images.add_image("library/app", "latest", self.layer)
        self.toml = settings_for(self.hub, retries=0, resumes=1, size_cap="1B")
        self.path = f"/v2/docker.io/library/app/blobs/{Digest.of(self.layer)}"

    async def test_a_fill_that_is_cut_and_goes_on_after_a_restart(self) -> None:
        recorded = Recorded.start(self, self.toml)
        since = len(recorded.recording.events)
        held = self.hub.withhold(CDN, 70_000)
        digest = Digest.of(self.layer)
        pulling = ensureDeferred(recorded.served.request("GET", self.path))
        pulling.addErrback(lambda failure: failure.trap(HTTPException, OSError))  # cut off
        await wait_for(
            lambda: (
                (fill := recorded.parts.remotes.fills["docker.io"].find(digest)) is not None
                and fill.progress.written >= 70_000
            )
        )
        await recorded.restart()
        held.release()
        await pulling
        await recorded.pull(self.path, self.layer)
        await recorded.parts.remotes.fills["docker.io"].ended(digest)
        await self.assert_survives(recorded, since)

    async def test_a_range_that_comes_before_the_rest(self) -> None:
        recorded = Recorded.start(self, self.toml)
        since = len(recorded.recording.events)
        answer = await recorded.served.request(
            "GET", self.path, headers={"Range": "bytes=100000-120000"}
        )
        self.assertEqual(answer.status, 206)
        await recorded.pull(self.path, self.layer)
        await recorded.parts.remotes.fills["docker.io"].ended(Digest.of(self.layer))
        await self.assert_survives(recorded, since)

    async def test_an_eviction(self) -> None:
        recorded = Recorded.start(self, self.toml)
        await recorded.push_image("app", "v1", b"pushed here")
        latest = "/v2/docker.io/library/app/manifests/latest"
        await recorded.pull(latest, (await recorded.ask("GET", latest, 200)).body)
        await recorded.pull(self.path, self.layer)
        await recorded.parts.remotes.fills["docker.io"].ended(Digest.of(self.layer))
        since = len(recorded.recording.events)
        await recorded.parts.last_used.write()
        for eviction in recorded.parts.remotes.evictions:
            eviction.now = lambda: time.time() + 86400.0
            await eviction.run()
        self.assertNotIn(Digest.of(self.layer).encoded, " ".join(recorded.served.files()))
        await self.assert_survives(recorded, since)


class BackupTests(PowerLossTestCase):
    async def test_a_backup_and_another_in_its_place(self) -> None:
        recorded = Recorded.start(self)
        base = Path(self.mktemp()).absolute()
        base.mkdir(parents=True)
        recording = Recording()
        self.addCleanup(recording.close)

        def back_up() -> None:
            with (
                closing(DataFolder.open(recorded.data)) as source,
                closing(DataFolder.open(base / DATA, files=recording)) as target,
                target.exclusive(),
            ):
                Backup(source, target, lambda _: None, operations=recording).run()

        for tag in ("v1", "v2"):
            key, manifest = manifest_key("app", tag), await recorded.push_image("app", tag, b"one")
            recording.asked(key, manifest)
            await deferToThread(back_up)
            recording.answered(key)
        await self.assert_replays(recording, recorded.toml)


class UpgradeTests(PowerLossTestCase):
    async def test_an_upgrade_from_the_first_schema(self) -> None:
        recorded = Recorded.prepare(self)
        contents = make_version_1(self, recorded.data)
        self.patch(migrations, "SCHEMA", schema_folder(self, *RELEASED, *LATER))
        recorded.recording.adopt(recorded.data)
        for key, content in contents.items():
            recorded.recording.asked(key, content)
            recorded.recording.answered(key)
        since = len(recorded.recording.events)
        recorded.run()
        await recorded.push_image("app", "v2", b"new")
        await self.assert_survives(recorded, since, oldest=1)
