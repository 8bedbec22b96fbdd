"""``artifactd warm``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from twisted.internet.defer import Deferred

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import descriptor
from tests.commands import test_main
from tests.commands.maintaining import NAME, OTHER, MaintenanceTestCase
from tests.crash.pulling import MIB, fill_file
from tests.crash.test_sweep import listed, stored
from tests.programs import Process, wait_for
from tests.upstreams.faulty import BLOBS, CDN, MANIFESTS, Corrupt, Silence, Status
from tests.upstreams.settings import settings_for

LAYER, ARM_LAYER, SHARED = (os.urandom(100_000) for _ in range(3))


class WarmTests(MaintenanceTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        images = self.hub.images
        self.amd = images.add_image(NAME, None, LAYER, SHARED, platform="amd64")
        self.arm = images.add_image(NAME, None, ARM_LAYER, SHARED, platform="arm64")
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": str(digest),
                    "size": len(images.manifest_of(NAME, str(digest))),
                    "platform": {"os": "linux", "architecture": architecture},
                }
                for digest, architecture in ((self.amd, "amd64"), (self.arm, "arm64"))
            ],
        }
        self.index = images.add_manifest(NAME, "1", json.dumps(index).encode(), OCI_INDEX)

    async def test_of_an_index_only_the_platform_asked_for_comes(self) -> None:
        said = await self.do("warm", "--platform", "linux/arm64", f"docker.io/{NAME}:1")
        self.assertEqual(said, f"docker.io/{NAME}:1: 3 blobs are here\n")
        self.assertEqual((self.here(ARM_LAYER), self.here(SHARED)), (True, True))
        self.assertFalse(self.here(LAYER))
        asked = {each.path.rpartition("/")[2] for each in self.hub.asked("*", MANIFESTS)}
        self.assertEqual(asked, {"1", str(self.arm)})

    async def test_a_tag_that_is_here_is_asked_for_however_long_that_takes(self) -> None:
        self.config.write_text(settings_for(self.hub, freshness="0s", stale_after="1ms"))
        self.hub.images.add_image(NAME, "moving", LAYER)
        await self.do("warm", f"docker.io/{NAME}:moving")
        self.hub.images.add_image(NAME, "moving", ARM_LAYER)
        held = Silence()
        self.hub.faults.add(held, on=MANIFESTS, method="HEAD", times=None)
        warming = Deferred.fromCoroutine(self.do("warm", f"docker.io/{NAME}:moving"))
        await self.hub.coming("HEAD", MANIFESTS)
        held.release()
        await warming
        self.assertTrue(self.here(ARM_LAYER))

    async def test_each_blob_has_a_bar_to_its_end_whether_it_is_here_or_comes(self) -> None:
        self.patch(test_main, "StringIO", test_main.Terminal)
        for _ in range(2):
            result = await self.command("warm", f"docker.io/{NAME}@{self.amd}")
            self.assertEqual(result.status, 0, result.err)
            for blob in (LAYER, SHARED):
                bar = f"{Digest.of(blob).encoded[:12]}: 100%"
                self.assertEqual(result.err.count(bar), 1, result.err)

    async def test_foreign_layers_come_where_the_settings_say_so(self) -> None:
        foreign = b"a foreign layer"
        digest = self.hub.images.add_blob(foreign, "owner/base")
        self.hub.challenges = False
        url = f"{self.hub.url}/v2/owner/base/blobs/{digest}"
        usual = json.loads(self.hub.images.manifest_of(NAME, str(self.amd)))
        usual["layers"].append({**descriptor(foreign), "urls": [url]})
        content = json.dumps(usual).encode()
        self.hub.images.add_manifest(NAME, "foreign", content, OCI_MANIFEST)
        await self.do("warm", f"docker.io/{NAME}:foreign")
        self.assertFalse(self.here(foreign))
        hosts = [self.hub.host, self.hub.cdn_host]
        toml = settings_for(self.hub, foreign_layers=True, private_hosts=hosts)
        self.config.write_text(toml)
        said = await self.do("warm", f"docker.io/{NAME}:foreign")
        self.assertEqual(said, f"docker.io/{NAME}:foreign: 4 blobs are here\n")
        self.assertTrue(self.here(foreign))

    async def test_an_index_that_another_program_wrote_is_read_as_well(self) -> None:
        document = json.loads(self.hub.images.manifest_of(NAME, str(self.index)))
        amd, arm = document["manifests"]
        amd["platform"] = {"os": "linux", "architecture": 64}
        arm["Platform"] = arm.pop("platform")
        document["Manifests"] = [amd, arm, {"size": 1}]
        del document["manifests"]
        content = b"\xef\xbb\xbf" + json.dumps(document).encode()
        self.hub.images.add_manifest(NAME, "other", content, OCI_INDEX)
        said = await self.do("warm", "--platform", "linux/arm64", f"docker.io/{NAME}:other")
        self.assertEqual(said, f"docker.io/{NAME}:other: 6 blobs are here\n")
        listed = json.loads(await self.do("tags", "--json", f"docker.io/{NAME}"))
        self.assertEqual(["linux/arm64"], listed["platforms"])

    async def test_a_private_image_comes_with_the_login_that_a_command_prints(self) -> None:
        self.hub.private.add(NAME)
        self.hub.tokens.users["alice"] = "secret"
        login = json.dumps({"ServerURL": "", "Username": "alice", "Secret": "secret"})
        command = [sys.executable, "-c", f"print({login!r})"]
        self.config.write_text(settings_for(self.hub, credential_command=command))
        said = await self.do("warm", "--platform", "linux/arm64", f"docker.io/{NAME}:1")
        self.assertEqual(said, f"docker.io/{NAME}:1: 3 blobs are here\n")

    async def test_a_platform_that_it_does_not_have_is_told(self) -> None:
        said = await self.assert_refused("warm", "--platform", "linux/amd46", f"docker.io/{NAME}:1")
        self.assertIn("it has nothing for linux/amd46", said)

    async def test_without_a_platform_all_of_them_come(self) -> None:
        await self.do("warm", f"docker.io/{NAME}:1")
        self.assertTrue(all(map(self.here, (LAYER, ARM_LAYER, SHARED))))
        self.assertEqual(stored(self.daemon.data), listed(self.daemon.data))

    async def test_the_daemon_beside_serves_it_without_asking(self) -> None:
        await self.do("warm", f"docker.io/{NAME}:1")
        asked = len(self.hub.requests)
        self.assertEqual((await self.get(f"docker.io/{NAME}/manifests/1")).status, 200)
        for digest in (self.amd, self.arm):
            self.assertEqual(len(await self.pull(str(digest))), 3)
        self.assertEqual(self.hub.requests[asked:], [])

    async def test_a_second_time_it_fetches_nothing(self) -> None:
        await self.do("warm", f"docker.io/{NAME}:1")
        asked = len(self.hub.requests)
        said = await self.do("warm", f"docker.io/{NAME}:1")
        self.assertEqual(said, f"docker.io/{NAME}:1: 6 blobs are here\n")
        self.assertEqual(self.hub.requests[asked:], [])

    async def test_a_file_lists_images_and_a_bare_name_is_docker_hubs(self) -> None:
        self.hub.images.add_image(OTHER, "latest", b"another layer")
        file = Path(self.mktemp()).absolute()
        file.write_text(f"# what we need\ndocker.io/{NAME}@{self.amd}\n\nother  # the newest\n")
        said = await self.do("warm", "--file", str(file))
        self.assertEqual(
            said, f"docker.io/{NAME}@{self.amd}: 3 blobs are here\nother: 2 blobs are here\n"
        )
        self.assertEqual((self.here(LAYER), self.here(b"another layer")), (True, True))
        self.assertFalse(self.here(ARM_LAYER))
        asked = len(self.hub.requests)
        await self.pull("latest", "other")
        self.assertEqual(self.hub.requests[asked:], [])

    async def test_an_image_that_is_not_there_is_one_line_and_the_others_come(self) -> None:
        result = await self.command("warm", "absent:1", f"docker.io/{NAME}@{self.amd}")
        self.assertEqual(result.status, 1)
        told = [line for line in result.err.splitlines() if line.startswith("artifactd: ")]
        self.assertEqual(len(told), 1)
        self.assertIn("absent:1: the upstream does not have it", told[0])
        self.assertNotIn("Traceback", result.err)
        self.assertTrue(self.here(LAYER))
        await self.assert_refused("warm", "absent:1")

    async def test_what_is_no_image_is_one_line(self) -> None:
        for wrong in ("docker.io/UPPER:1", "app:no/tag", "app@sha256:short", "", ":1", "@"):
            await self.assert_refused("warm", wrong)
        await self.assert_refused("warm")
        await self.assert_refused("warm", "--file", "absent")
        file = Path(self.mktemp()).absolute()
        file.write_bytes(b"app\xff\n")
        self.assertIn("not UTF-8", await self.assert_refused("warm", "--file", str(file)))
        self.assertEqual(self.hub.requests, [])

    async def test_a_blob_that_fails_is_told_and_status_1(self) -> None:
        name = f"docker.io/{NAME}@{self.amd}"
        for fault, on in ((Corrupt(99_999), CDN), (Corrupt(1), CDN), (Status(404), BLOBS)):
            self.hub.faults.add(fault, on=on, times=None)
            result = await self.command("warm", name)
            self.assertEqual((result.status, result.out), (1, ""))
            self.assertNotIn("Traceback", result.err)
            self.assertIn(f"artifactd: {name}: ", result.err)
            self.hub.faults.clear()
        self.assertEqual(await self.do("warm", name), f"{name}: 3 blobs are here\n")
        self.assertEqual(stored(self.daemon.data), listed(self.daemon.data))

    async def test_a_name_of_our_own_is_not_looked_for_upstream(self) -> None:
        await self.push("app", b"ours")
        self.assertEqual(await self.do("warm", "app:1"), "app:1: 2 blobs are here\n")
        self.assertEqual(self.hub.requests, [])


class ResumedWarmTests(MaintenanceTestCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.layer = os.urandom(8 * MIB)
        self.digest = Digest.of(self.layer)
        self.hub.images.add_image(NAME, "1", self.layer)
        self.half = len(self.layer) // 2
        self.held = self.hub.withhold(CDN, self.half)

    async def half_warmed(self) -> Process:
        """The command, when it has got the layer to its middle."""
        argv = ("warm", "--config", str(self.config), f"docker.io/{NAME}:1")
        environment = {"ARTIFACTD_DATA": str(self.daemon.data)}
        warming = Process.fork(self, "artifactd.commands.main", *argv, env=os.environ | environment)
        file = fill_file(self.daemon.data, self.digest)
        await wait_for(lambda: file.exists() and file.stat().st_size == self.half)
        return warming

    async def test_killed_in_the_middle_it_goes_on_there_the_next_time(self) -> None:
        warming = await self.half_warmed()
        self.assertEqual(await warming.kill(signal.SIGKILL), -signal.SIGKILL)
        self.held.release()
        await self.do("warm", f"docker.io/{NAME}:1")
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * len(self.layer))
        asked = len(self.hub.requests)
        self.assertEqual((await self.pull("1"))[str(self.digest)] == self.layer, True)
        self.assertEqual(self.hub.requests[asked:], [])

    async def test_interrupted_from_the_keyboard_it_leaves_what_has_come(self) -> None:
        warming = await self.half_warmed()
        self.assertEqual(await warming.kill(signal.SIGINT), 1)
        self.assertNotIn("Traceback", warming.output)
        self.assertEqual(warming.err.splitlines()[-1], b"artifactd: interrupted")
        self.held.release()
        await self.do("warm", f"docker.io/{NAME}:1")
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * len(self.layer))

    async def test_a_client_of_the_daemon_gets_the_rest_when_it_is_killed(self) -> None:
        warming = await self.half_warmed()
        coming = self.hub.coming("GET", CDN, times=3)  # config, layer, the layer's rest
        await warming.kill(signal.SIGKILL)
        self.held.release()
        blobs = await self.pull("1")
        self.assertTrue(blobs[str(self.digest)] == self.layer)
        self.assertEqual((await coming).headers.get("range"), f"bytes={self.half}-")
        self.assertLessEqual(self.hub.bytes_sent, 1.1 * len(self.layer))
