"""``artifactd purge`` and ``artifactd release``."""

from __future__ import annotations

import os
from http.client import HTTPException
from pathlib import Path

from artifactd.oci.names import Digest, ImageName
from artifactd.store.fills import blob_name, fill_owner
from tests.commands.maintaining import NAME, OTHER, MaintenanceTestCase
from tests.commands.test_main import process
from tests.crash.pulling import MIB, Pull, content
from tests.crash.test_sweep import listed, stored
from tests.programs import wait_for
from tests.pull.case import Later
from tests.upstreams.faulty import BLOBS, CDN, MANIFESTS, Status, Truncate

LAYER, ARM_LAYER, SHARED = (os.urandom(100_000) for _ in range(3))


class PurgeTests(MaintenanceTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.one = self.hub.images.add_image(NAME, "1", LAYER, SHARED)
        self.two = self.hub.images.add_image(NAME, "2", ARM_LAYER, SHARED)
        for tag in ("1", "2"):
            await self.pull(tag)
        self.hub.forget_requests()

    async def asks_anew(self, reference: str) -> bool:
        """Whether a pull makes the daemon ask the upstream, for the manifest or for a blob."""
        self.hub.forget_requests()
        await self.pull(reference)
        return bool(self.hub.asked("*", MANIFESTS) or self.hub.asked("*", BLOBS))

    async def test_a_tag_goes_with_what_only_it_needs(self) -> None:
        said = await self.do("purge", f"docker.io/{NAME}:1")
        self.assertIn(f"purged docker.io/{NAME}:1: 2 ", said)  # the manifest and its layer
        self.assertEqual((self.here(LAYER), self.here(SHARED)), (False, True))
        self.assertFalse(await self.asks_anew("2"))
        self.assertTrue(await self.asks_anew("1"))
        self.assertTrue(self.here(LAYER))

    async def test_a_digest_goes_and_so_do_its_tags(self) -> None:
        await self.do("purge", f"docker.io/{NAME}@{self.one}")
        self.assertFalse(self.here(LAYER))
        self.assertFalse(await self.asks_anew("2"))
        self.assertTrue(await self.asks_anew("1"))

    async def test_a_blob_goes_by_its_digest(self) -> None:
        await self.do("purge", f"docker.io/{NAME}@{Digest.of(LAYER)}")
        self.assertFalse(self.here(LAYER))
        self.assertFalse(await self.asks_anew("2"))
        self.assertTrue(await self.asks_anew("1"))
        self.assertEqual(self.hub.count("*", MANIFESTS), 0)

    async def test_a_name_goes_with_all_that_it_has(self) -> None:
        await self.do("purge", f"docker.io/{NAME}")
        self.assertEqual(stored(self.daemon.data), {})
        self.assertTrue(await self.asks_anew("1"))
        self.assertTrue(await self.asks_anew("2"))
        self.assertEqual(stored(self.daemon.data), listed(self.daemon.data))

    async def test_a_bare_name_that_came_from_upstream_goes_as_well(self) -> None:
        await self.pull("1", "app")
        await self.do("purge", "app:1")
        self.assertFalse(self.here(LAYER))

    async def test_what_an_image_of_our_own_has_too_stays(self) -> None:
        pushed = await self.push("mine", LAYER)
        await self.do("purge", f"docker.io/{NAME}")
        self.assertEqual((self.here(LAYER), self.here(SHARED)), (True, False))
        self.hub.forget_requests()
        self.assertEqual((await self.pull(str(pushed), "mine"))[str(Digest.of(LAYER))], LAYER)
        self.assertEqual(self.hub.requests, [])

    async def test_what_another_image_of_the_upstream_has_too_stays_its_own(self) -> None:
        self.hub.images.add_image(OTHER, "1", SHARED)
        await self.pull("1", f"docker.io/{OTHER}")
        await self.do("purge", f"docker.io/{NAME}")
        self.assertTrue(self.here(SHARED))
        self.hub.forget_requests()
        await self.pull("1", f"docker.io/{OTHER}")
        self.assertEqual(self.hub.requests, [])

    async def test_what_is_not_there_is_one_line(self) -> None:
        for absent in (
            f"docker.io/{NAME}:3",
            f"docker.io/{NAME}@{Digest.of(b'absent')}",
            "docker.io/library/absent",
            "docker.io/library/absent:1",
            "absent",
        ):
            await self.assert_refused("purge", absent)
        for wrong in ("docker.io/UPPER", f"docker.io/{NAME}@short", ""):
            await self.assert_refused("purge", wrong)
        self.assertFalse(await self.asks_anew("1"))

    async def test_without_a_data_folder_none_is_made(self) -> None:
        absent = Path(self.mktemp()).absolute()
        for name in ("purge", "release"):
            result = await process(self, name, "app", ARTIFACTD_DATA=str(absent))
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertRegex(result.err, rf"\Aartifactd: {absent}: there is no [^\n]+\n\Z")
        self.assertFalse(absent.exists())

    async def test_an_image_of_an_upstream_is_not_what_gc_frees(self) -> None:
        for argv in (["--now"], ["--now", "--dry-run"]):
            said = await self.assert_refused("gc", *argv, f"docker.io/{NAME}")
            self.assertIn("artifactd purge frees an image of an upstream", said)

    async def test_an_image_of_our_own_is_not_purged(self) -> None:
        digest = await self.push("mine", b"only here")
        for name in ("mine", "mine:1", f"mine@{digest}", "local/mine:1"):
            self.assertIn("not an image of an upstream", await self.assert_refused("purge", name))
        self.assertTrue(self.here(b"only here"))


class PurgeBegunTests(MaintenanceTestCase):
    """What has come in part goes too, by whatever name the image is purged."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.digest = Digest.of(LAYER)
        self.blob = f"docker.io/{NAME}/blobs/{self.digest}"
        self.hub.images.add_image(NAME, "1", LAYER)

    def begun(self) -> list[str]:
        """The kinds of files that are kept of the layer."""
        name = blob_name("docker.io", self.digest)
        names = (path.name for path in (self.daemon.data / "fills").iterdir())
        return sorted({each.removeprefix(name).rpartition(".")[2] for each in names})

    async def begin(self) -> None:
        """Let a part of the layer come, and a fill of it break off."""
        self.hub.faults.clear()
        part = await self.daemon.request(
            "GET", f"/v2/{self.blob}", headers={"Range": "bytes=90000-90999"}
        )
        self.assertEqual(part.status, 206)
        self.hub.faults.add(Truncate(after=50_000), on=CDN)
        self.hub.faults.add(Later(Status(404)), on=CDN, times=None)
        with self.assertRaises((HTTPException, OSError)):
            await self.get(self.blob)
        await wait_for(lambda: self.begun() == ["", "extents", "info", "map"])

    async def test_by_its_own_digest(self) -> None:
        await self.begin()
        said = await self.do("purge", f"docker.io/{NAME}@{self.digest}")
        self.assertIn("0 blobs and manifests that nothing else needs, and 1 blobs", said)
        self.assertEqual(self.begun(), [])
        self.hub.faults.clear()
        self.hub.forget_requests()
        self.assertEqual((await self.get(self.blob)).body, LAYER)
        self.assertEqual([asked.sent for asked in self.hub.asked("GET", CDN)], [len(LAYER)])

    async def test_by_a_tag_and_by_the_name(self) -> None:
        for reference in (":1", ""):
            self.assertEqual((await self.get(f"docker.io/{NAME}/manifests/1")).status, 200)
            await self.begin()
            await self.do("purge", f"docker.io/{NAME}{reference}")
            self.assertEqual(self.begun(), [])


class PurgeForeignTests(MaintenanceTestCase):
    async def test_a_part_of_a_foreign_layer_goes_too(self) -> None:
        digest = Digest.of(b"foreign")
        fills = self.daemon.data / "fills"
        for image in (NAME, OTHER):
            owner = fill_owner(ImageName("docker.io", image))
            (fills / blob_name(owner, digest)).write_bytes(b"fore")
        said = await self.do("purge", f"docker.io/{NAME}@{digest}")
        self.assertIn("1 blobs that had come in part", said)
        owner = fill_owner(ImageName("docker.io", OTHER))
        self.assertEqual([each.name for each in fills.iterdir()], [blob_name(owner, digest)])


class PurgeInUseTests(MaintenanceTestCase):
    """What is purged while a client of the daemon gets it, the client gets to its end."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.layer = content(32 * MIB)  # more than the sockets take
        self.digest = Digest.of(self.layer)
        self.hub.images.add_image(NAME, "1", self.layer)

    async def test_what_is_being_read(self) -> None:
        await self.pull("1")
        reader = await Pull.start(self, self.daemon, self.digest)
        await reader.reached(1)
        reader.transport.pauseProducing()  # type: ignore[attr-defined]
        await self.do("purge", f"docker.io/{NAME}")
        self.assertEqual(stored(self.daemon.data), {})
        reader.transport.resumeProducing()  # type: ignore[attr-defined]
        await reader.ended()
        self.assertEqual((reader.whole, reader.digest), (True, self.digest))

    async def test_what_is_coming(self) -> None:
        held = self.hub.withhold(CDN, len(self.layer) // 2)
        reader = await Pull.start(self, self.daemon, self.digest)
        await reader.reached(1)
        await self.assert_refused("purge", f"docker.io/{NAME}@{self.digest}")
        held.release()
        await reader.ended()
        self.assertEqual((reader.whole, reader.digest), (True, self.digest))


class ReleaseTests(MaintenanceTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.hub.images.add_image(NAME, "1", LAYER)
        self.pushed = await self.push("app", b"ours")

    async def empty(self) -> None:
        answer = await self.daemon.request("DELETE", f"/v2/app/manifests/{self.pushed}")
        self.assertEqual(answer.status, 202)

    async def test_an_emptied_name_goes_upstream_again(self) -> None:
        await self.empty()
        self.assertEqual((await self.get("app/manifests/1")).status, 404)
        self.assertEqual(self.hub.requests, [])
        await self.do("release", "app")
        self.assertEqual((await self.pull("1", "app"))[str(Digest.of(LAYER))], LAYER)

    async def test_a_name_that_has_manifests_is_not_released(self) -> None:
        await self.assert_refused("release", "app")
        self.assertEqual((await self.pull("1", "app"))[str(Digest.of(b"ours"))], b"ours")
        self.assertEqual(self.hub.requests, [])

    async def test_a_released_name_can_be_pushed_again_and_is_ours_then(self) -> None:
        await self.empty()
        await self.do("release", "app")
        await self.push("app", b"ours again")
        self.assertIn(str(Digest.of(b"ours again")), await self.pull("1", "app"))
        self.assertEqual(self.hub.requests, [])

    async def test_a_name_that_is_not_here_is_one_line(self) -> None:
        for name in ("absent", "docker.io/library/absent", "UPPER", ""):
            await self.assert_refused("release", name)
