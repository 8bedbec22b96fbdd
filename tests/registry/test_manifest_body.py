"""The bytes of a manifest that was just found, and is gone when they are read."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from artifactd.catalog.records import ManifestPut
from artifactd.oci.errors import BadGateway, ManifestUnknown
from artifactd.oci.manifest import BOUNDS, OCI_INDEX, parse_manifest
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.registry.content import Contents, Lost, Stored
from artifactd.registry.local import LocalRepository
from artifactd.registry.mirror.eviction import LastUsed, forget
from artifactd.registry.mirror.manifests import RemoteManifests
from artifactd.registry.mirror.refusals import Refusals
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.model import ManifestFound
from artifactd.settings.remote import docker_hub
from artifactd.settings.settings import LimitsSettings, LocalSettings
from artifactd.upstream.http.errors import Unreachable
from artifactd.upstream.interfaces import UpstreamManifest
from tests.registry.fixture import ALPINE, Asked, RemoteTestCase, remote_settings

CONTENT = b'{"schemaVersion":2,"manifests":[]}'
DIGEST = Digest.of(CONTENT)
LATEST = Tag.parse("latest")
LOCAL = ImageName("local", "app")
SENT = UpstreamManifest(CONTENT, OCI_INDEX)


class ManifestBodyTests(RemoteTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.last_used = LastUsed(self.remote, lambda: self.time)
        self.use(offline=False)

    def use(self, *, offline: bool) -> None:
        """A registry whose memory is empty."""
        blobs = self.stores.blobs
        stored = Stored(blobs, Contents(blobs))
        self.manifests = RemoteManifests(
            self.upstream,
            self.catalog,
            self.remote,
            blobs,
            self.last_used,
            self.counters,
            remote_settings(offline=offline),
            Refusals(self.clock, 0.0),
            self.run_in_thread,
            BOUNDS,
            lambda: self.time,
        )
        nothing: Any = None
        self.mirror = RemoteRepository(
            "docker.io", docker_hub(), (), stored, nothing, self.manifests, nothing
        )
        self.local = LocalRepository(
            LocalSettings(), LimitsSettings(), self.catalog, stored, self.run_in_thread
        )

    async def asked(self) -> Asked:
        asked = await self.upstream.manifests.get()
        # Once round, so that who asks has come to wait for the answer.
        await self.remote.stored_size("docker.io", DIGEST)
        return asked

    async def pulled(self) -> ManifestFound:
        """A manifest that was found."""
        finding = Deferred.fromCoroutine(self.manifests.get(ALPINE, LATEST))
        (await self.asked()).answer.callback(SENT)
        return await finding

    def body(self, found: ManifestFound) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.mirror.body(found))

    async def test_what_is_evicted_in_this_moment_is_fetched_again(self) -> None:
        found = await self.pulled()
        held = await self.remote.least_used("docker.io", 1e12, 0, 10)
        await forget(await self.remote.drop(held), self.catalog, self.stores.blobs)
        body = self.body(found)
        asked = await self.asked()
        self.assertEqual(("library/alpine", DIGEST), (asked.image, asked.reference))
        asked.answer.callback(SENT)
        self.assertEqual(CONTENT, (await body).content)
        self.assertIsNotNone(await self.catalog.manifest(ALPINE, DIGEST))

    async def test_what_the_store_has_lost_is_fetched_again(self) -> None:
        found = await self.pulled()
        self.stores.blobs.remove(DIGEST)
        body = self.body(found)
        (await self.asked()).answer.callback(SENT)
        self.assertEqual(CONTENT, (await body).content)
        await self.assert_blob(CONTENT)

    async def test_the_upstreams_error_is_the_clients(self) -> None:
        found = await self.pulled()
        self.stores.blobs.remove(DIGEST)
        body = self.body(found)
        (await self.asked()).fail(Unreachable("it is gone"))
        await self.assert_raises(BadGateway, body)

    async def test_offline_it_is_not_there(self) -> None:
        found = await self.pulled()
        self.stores.blobs.remove(DIGEST)
        self.use(offline=True)
        await self.assert_raises(ManifestUnknown, self.body(found))
        self.assertEqual([], self.upstream.manifests.pending)

    async def test_what_a_local_image_has_lost_is_lost(self) -> None:
        found = await self.pulled()
        parsed = parse_manifest(CONTENT, OCI_INDEX, other_types=False)
        await self.catalog.put_manifest(ManifestPut(LOCAL, parsed), lambda: None)
        self.stores.blobs.remove(DIGEST)
        await self.assert_raises(Lost, self.local.body(evolve(found, image=LOCAL)))

    async def test_what_was_just_taken_out_of_a_local_image_is_unknown(self) -> None:
        found = await self.pulled()
        self.stores.blobs.remove(DIGEST)
        await self.assert_raises(ManifestUnknown, self.local.body(evolve(found, image=LOCAL)))
