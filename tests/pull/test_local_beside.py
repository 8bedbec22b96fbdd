"""What is pushed here beside what is pulled: neither disturbs the other, whatever goes wrong."""

from __future__ import annotations

import json
import math

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest, ImageName
from artifactd.registry import unprefixed
from artifactd.registry.metrics import RepositoryCounters
from tests.api.case import ApiTestCase
from tests.api.served import Served, image_manifest
from tests.pull.mirrors import FULL, HIT, MirrorCase, timings
from tests.upstreams.faulty import Silence, Status

LAYER = b"layer"
OTHER = Digest.of(b"nowhere")
FROM_HERE = ("local", HIT)


class UnreachableTests(ApiTestCase):
    """The settings that are in force by default, and an upstream that can't be reached."""

    async def statuses(self, name: str, *requests: tuple[str, str]) -> list[int]:
        return [
            (await self.registry.request(method, f"/v2/{name}/{path}")).status
            for method, path in requests
        ]

    async def test_of_an_unknown_name_nothing_is_there_for_a_client_that_may_push(self) -> None:
        manifests = [("GET", "manifests/latest"), ("HEAD", f"manifests/{OTHER}")]
        self.assertEqual(await self.statuses("unknown", *manifests), [404, 404])
        answer = await self.registry.request("GET", "/v2/unknown/manifests/latest")
        self.assertIn("reason", self.assert_error(answer, 404, "MANIFEST_UNKNOWN"))
        others = {
            ("GET", f"blobs/{OTHER}"): 404,
            ("HEAD", f"blobs/{OTHER}"): 404,
            ("GET", "tags/list"): 404,
            ("GET", f"referrers/{OTHER}"): 200,
            ("POST", "blobs/uploads/"): 202,
            ("POST", f"blobs/uploads/?mount={OTHER}&from=another"): 202,
            ("POST", f"blobs/uploads/?mount={OTHER}&from=docker.io/another"): 202,
            ("GET", "blobs/uploads/none"): 404,
            ("DELETE", f"blobs/{OTHER}"): 404,
            ("DELETE", f"manifests/{OTHER}"): 404,
            ("DELETE", "manifests/latest"): 404,
        }
        self.assertEqual(await self.statuses("unknown", *others), list(others.values()))

    async def test_of_an_unknown_name_a_manifest_needs_it_for_others(self) -> None:
        self.registry = Served.start(self, self.toml, read_only="true")
        manifests = [("GET", "manifests/latest"), ("HEAD", f"manifests/{OTHER}")]
        self.assertEqual(await self.statuses("unknown", *manifests), [502, 502])
        answer = await self.registry.request("GET", "/v2/unknown/manifests/latest")
        self.assertIn("reason", self.assert_error(answer, 502, "UNKNOWN"))

    async def test_of_a_known_name_nothing_does(self) -> None:
        digest = await self.registry.push_image("hello", "latest", LAYER)
        requests = {
            ("GET", "manifests/latest"): 200,
            ("HEAD", f"manifests/{digest}"): 200,
            ("GET", "manifests/missing"): 404,
            ("GET", f"manifests/{OTHER}"): 404,
            ("GET", f"blobs/{Digest.of(LAYER)}"): 200,
            ("HEAD", f"blobs/{OTHER}"): 404,
            ("GET", "tags/list"): 200,
            ("GET", f"referrers/{digest}"): 200,
            ("POST", "blobs/uploads/"): 202,
            ("DELETE", "manifests/latest"): 202,
            ("DELETE", f"manifests/{digest}"): 202,
        }
        self.assertEqual(await self.statuses("hello", *requests), list(requests.values()))
        # Emptied it is known still.
        emptied = [("GET", "manifests/latest"), ("GET", f"manifests/{digest}")]
        self.assertEqual(await self.statuses("hello", *emptied), [404, 404])
        self.assertEqual(await self.statuses("hello", ("GET", "tags/list")), [200])

    async def test_of_a_name_that_is_being_pushed_the_blobs_are_here(self) -> None:
        await self.registry.push_blob("hello", LAYER)
        present, absent = f"blobs/{Digest.of(LAYER)}", f"blobs/{OTHER}"
        self.assertEqual(
            await self.statuses("hello", ("HEAD", present), ("HEAD", absent), ("GET", absent)),
            [200, 404, 404],
        )

    async def test_an_image_of_an_upstream_needs_it_for_all(self) -> None:
        paths = ["manifests/latest", f"blobs/{OTHER}", "tags/list", f"referrers/{OTHER}"]
        requests = [("GET", path) for path in paths]
        self.assertEqual(await self.statuses("docker.io/alpine", *requests), [502] * 4)

    async def test_the_daemon_is_as_healthy_as_without(self) -> None:
        for path in ("/healthz", "/readyz", "/metrics", "/v2/", "/v2/_catalog"):
            self.assertEqual((await self.registry.request("GET", path)).status, 200)


class GrantedTests(MirrorCase):
    """What the rules grant decides whether a name is there to be pushed."""

    async def status(self, *may: str) -> int:
        self.hub.faults.add(Status(500), method="*", times=None)
        rule = f'who = ["anonymous"]\nmay = {json.dumps(may)}\nimages = ["*"]\n'
        registry = self.mirror_with(f"[[access]]\n{rule}[auth]\n")
        return (await registry.request("HEAD", "/v2/unknown/manifests/latest")).status

    async def test_a_client_that_may_only_pull_is_told_the_error(self) -> None:
        self.assertEqual(await self.status("pull"), 502)

    async def test_a_client_that_may_push_may_go_on(self) -> None:
        self.assertEqual(await self.status("pull", "push"), 404)


class FirstPushTests(MirrorCase):
    """A client asks for the manifest before it pushes a name that no repository has yet."""

    def setUp(self) -> None:
        super().setUp()
        self.registry = self.mirror()

    async def statuses(self, name: str = "hello", method: str = "HEAD") -> list[int]:
        """The answers to what a client asks before the first push."""
        return [
            (await self.registry.request(method, f"/v2/{name}/manifests/{reference}")).status
            for reference in ("latest", str(OTHER))
        ]

    async def test_it_goes_on_whatever_the_upstream_answers(self) -> None:
        for status in (401, 403, 429, 500, 503):
            self.hub.faults.add(Status(status), method="*", times=None)
            name = f"after-{status}"
            for method in ("HEAD", "GET"):
                self.assertEqual(await self.statuses(name, method), [404, 404], status)
            await self.registry.push_image(name, "latest", LAYER)
            self.assertEqual((await self.statuses(name))[0], 200, status)
            self.hub.faults.clear()

    async def test_it_waits_for_a_silent_upstream_once_and_not_for_long(self) -> None:
        self.patch(unprefixed, "PATIENCE", 0.01)
        for challenges in (True, False):
            self.hub.challenges = challenges
            self.hub.faults.add(Silence(), method="*", times=None)
            name = f"hello-{challenges:d}"
            self.assertEqual(await self.statuses(name), [404, 404])
            await self.registry.push_image(name, "latest", LAYER)
            self.assertEqual((await self.statuses(name))[0], 200)
            self.hub.faults.clear()

    async def test_it_waits_less_than_two_seconds_in_all_once_the_upstream_is_silent(self) -> None:
        clock, silence = Clock(), Silence()
        self.registry.parts.registry.unprefixed.patience.clock = clock
        self.upstreams_counters().seconds = clock.seconds
        self.hub.faults.add(silence, method="*", times=None)
        asking = Deferred.fromCoroutine(self.statuses())
        # The upstream has answered with a challenge, and its token service answers nothing.
        await silence.reached
        clock.advance(1.4)
        self.assertNoResult(asking)
        clock.advance(0.5)
        # No later HEAD waits, though the upstream goes on to answer with challenges.
        self.assertEqual(await asking, [404, 404])
        self.assertEqual([await self.statuses() for _ in range(2)], [[404, 404]] * 2)

    async def test_an_upstream_that_answers_about_other_images_is_silent_all_the_same(self) -> None:
        counters = self.upstreams_counters()
        counters.requested("GET", 200, "library/other")
        counters.requested("GET", 500, "library/hello")
        repository = self.registry.parts.registry.unprefixed.remotes[0]
        self.assertEqual(repository.answered(repository.unprefixed("hello")), -math.inf)
        counters.requested("GET", 401, "library/hello")
        self.assertGreater(repository.answered(repository.unprefixed("hello")), -math.inf)

    async def test_an_upstream_that_is_gone_is_waited_for_no_longer(self) -> None:
        spent = []
        patience = self.registry.parts.registry.unprefixed.patience
        await self.hub.stop()
        for _ in range(3):
            self.assertEqual(await self.statuses(), [404, 404])
            spent.append(patience.left(ImageName("local", "hello")))
        self.assertEqual(spent, sorted(spent, reverse=True))
        self.assertLess(spent[0], unprefixed.PATIENCE)

    async def test_it_goes_on_as_crane_oras_and_containerd_do(self) -> None:
        self.hub.faults.add(Status(500), method="*", times=None)
        config, manifest = Digest.of(b"config"), image_manifest(b"config", LAYER)
        digest = Digest.of(manifest)
        for client, name in (("latest", "crane"), (str(digest), "oras"), ("latest", "containerd")):
            path = f"/v2/{name}"
            heads = [f"manifests/{client}", f"blobs/{config}", f"blobs/{Digest.of(LAYER)}"]
            asked = [(await self.registry.request("HEAD", f"{path}/{each}")) for each in heads]
            self.assertEqual([each.status for each in asked], [404] * 3, name)
            for content in (b"config", LAYER):
                mount = f"?mount={Digest.of(content)}&from=elsewhere" if name == "crane" else ""
                begun = await self.registry.request("POST", f"{path}/blobs/uploads/{mount}")
                self.assertEqual(begun.status, 202, name)
                location = f"{begun.header('Location')}&digest={Digest.of(content)}"
                ended = await self.registry.request("PUT", location, content)
                self.assertEqual(ended.status, 201, name)
            for reference in (str(digest), "latest") if name == "oras" else ("latest",):
                put = await self.registry.request(
                    "PUT", f"{path}/manifests/{reference}", manifest, {"Content-Type": OCI_MANIFEST}
                )
                self.assertEqual(put.status, 201, name)
            answer = await self.registry.request("HEAD", f"{path}/manifests/latest")
            self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))

    def upstreams_counters(self) -> RepositoryCounters:
        return self.registry.parts.registry.unprefixed.remotes[0].manifests.counters

    async def test_a_pull_waits_as_long_as_ever(self) -> None:
        self.patch(unprefixed, "PATIENCE", 0.0)
        self.hub.images.add_image("library/alpine", "latest", LAYER)
        answer = await self.registry.request("GET", "/v2/alpine/manifests/latest", headers=FULL)
        self.assertEqual(answer.status, 200)

    async def test_a_name_of_the_upstream_is_not_said_to_be_absent(self) -> None:
        self.patch(unprefixed, "PATIENCE", 0.0)
        self.hub.images.add_image("library/alpine", "latest", LAYER)
        await self.registry.request("GET", "/v2/alpine/manifests/latest", headers=FULL)
        answer = await self.registry.request("HEAD", "/v2/alpine/manifests/latest")
        self.assertEqual(answer.status, 200)
        self.hub.faults.add(Status(500), method="*", times=None)
        answer = await self.registry.request("HEAD", f"/v2/alpine/manifests/{OTHER}")
        self.assertEqual(answer.status, 502)


class PatienceTests(SynchronousTestCase):
    """How long HEADs of a name wait in silence, all together."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patience = unprefixed.Patience(self.clock)
        self.hello = ImageName("local", "hello")

    def test_all_requests_of_one_name_share_it_until_one_is_answered(self) -> None:
        self.assertLess(unprefixed.PATIENCE, 2)
        self.assertEqual(self.patience.left(self.hello), unprefixed.PATIENCE)
        self.patience.spend(self.hello, 0.5)
        self.patience.spend(self.hello, 0.25)
        self.assertEqual(self.patience.left(self.hello), unprefixed.PATIENCE - 0.75)
        self.assertEqual(self.patience.left(ImageName("local", "other")), unprefixed.PATIENCE)
        self.patience.restore(self.hello)
        self.assertEqual(self.patience.left(self.hello), unprefixed.PATIENCE)

    def test_it_is_restored_after_a_minute(self) -> None:
        self.patience.spend(self.hello, unprefixed.PATIENCE)
        for _ in range(2):
            self.clock.advance(29)
            self.assertLessEqual(self.patience.left(self.hello), 0)
            self.patience.spend(self.hello, 0.0)
        self.clock.advance(3)
        self.assertEqual(self.patience.left(self.hello), unprefixed.PATIENCE)


class WriteTests(MirrorCase):
    async def test_nothing_of_an_upstream_can_be_written_to(self) -> None:
        digest = self.hub.images.add_image("library/alpine", "latest", LAYER)
        blob = Digest.of(LAYER)
        registry = self.mirror()
        for path in ("manifests/latest", f"blobs/{blob}"):
            await registry.request("GET", f"/v2/docker.io/alpine/{path}")
        await self.filled(registry, blob)
        started = await registry.request("POST", "/v2/mine/blobs/uploads/")
        upload = (started.header("Location") or "").removeprefix("/v2/mine/")
        await registry.push_blob("mine", b"config")
        before = self.state(registry)
        self.hub.forget_requests()
        manifest = image_manifest(b"config", LAYER)
        for method, path, body in (
            ("POST", "blobs/uploads/", None),
            ("POST", f"blobs/uploads/?digest={Digest.of(b'x')}", b"x"),
            ("POST", f"blobs/uploads/?mount={blob}&from=mine", None),
            ("POST", f"blobs/uploads/?mount={Digest.of(b'config')}", None),
            ("PUT", f"blobs/uploads/?digest={Digest.of(b'x')}", b"x"),
            ("PATCH", upload, b"x"),
            ("PUT", f"{upload}?digest={Digest.of(b'x')}", b"x"),
            ("GET", upload, None),
            ("DELETE", upload, None),
            ("DELETE", f"blobs/{blob}", None),
            ("DELETE", f"blobs/{OTHER}", None),
            ("PUT", "manifests/latest", manifest),
            ("PUT", f"manifests/{Digest.of(manifest)}?tag=a", manifest),
            ("PUT", "manifests/latest", b"no manifest"),
            ("DELETE", "manifests/latest", None),
            ("DELETE", f"manifests/{digest}", None),
        ):
            for name in ("docker.io/alpine", "docker.io/library/alpine", "docker.io/new"):
                answer = await registry.request(
                    method,
                    f"/v2/{name}/{path}",
                    body,
                    {"Content-Type": OCI_MANIFEST} if "manifests" in path else None,
                )
                self.assert_refused(answer, 405, "UNSUPPORTED", "upstream")
                self.assertEqual(answer.header("Allow"), "GET, HEAD")
                self.assertEqual(self.state(registry), before, f"{method} {path}")
        self.assertEqual(self.hub.requests, [])

    async def test_a_large_body_for_it_is_not_kept_either(self) -> None:
        registry = self.mirror()
        before = self.state(registry)
        body = bytes(1 << 20)
        for chunked in (False, True):
            answer = await registry.request(
                "POST",
                f"/v2/docker.io/alpine/blobs/uploads/?digest={Digest.of(body)}",
                body,
                chunked=chunked,
            )
            self.assert_refused(answer, 405, "UNSUPPORTED")
        self.assertEqual(self.state(registry), before)


class SourceTests(MirrorCase):
    """``X-Artifact-Source``, ``Cache-Status`` and ``Server-Timing`` on every kind of answer."""

    async def test_every_answer_says_where_it_comes_from(self) -> None:
        there = self.hub.images.add_image("library/alpine", "latest", LAYER)
        registry = self.mirror()
        here = await registry.push_image("hello", "latest", b"mine")
        blob, mine = Digest.of(LAYER), Digest.of(b"mine")
        cold = {
            f"/v2/docker.io/alpine/{path}": (
                "remote",
                "artifactd; fwd=miss; fwd-status=200; stored",
            )
            for path in (
                "manifests/latest",
                f"blobs/{blob}",
                "tags/list",
                f"referrers/{there}",
            )
        }
        local = {
            f"/v2/hello/{path}": FROM_HERE
            for path in ("manifests/latest", f"blobs/{mine}", "tags/list", f"referrers/{here}")
        }
        for path, expected in (cold | local).items():
            answer = await registry.request("GET", path)
            told = answer.header("X-Artifact-Source"), answer.header("Cache-Status")
            self.assertEqual((answer.status, *told), (200, *expected), path)
            self.assertEqual("upstream" in timings(answer), path in cold, path)
            self.assertIn("total", timings(answer))
        await self.filled(registry, blob)
        for path in cold:
            answer = await registry.request("GET", path)
            told = answer.header("X-Artifact-Source"), answer.header("Cache-Status")
            self.assertEqual((answer.status, *told), (200, "cache", HIT), path)
            self.assertEqual(set(timings(answer)), {"total"}, path)

    async def test_every_other_answer_has_a_cache_status_and_a_time(self) -> None:
        registry = self.mirror()
        for method, path, status in (
            ("GET", "/v2/", 200),
            ("GET", "/v2/_catalog", 200),
            ("GET", "/v2/hello/manifests/x", 404),
            ("GET", f"/v2/hello/blobs/{OTHER}", 404),
            ("GET", "/v2/docker.io/hello/manifests/x", 404),
            ("GET", f"/v2/docker.io/hello/blobs/{OTHER}", 404),
            ("GET", "/v2/docker.io/hello/tags/list", 404),
            ("POST", "/v2/hello/blobs/uploads/", 202),
            ("POST", "/v2/docker.io/hello/blobs/uploads/", 405),
            ("GET", "/v2/HELLO/manifests/x", 400),
            ("GET", "/nowhere", 404),
        ):
            answer = await registry.request(method, path)
            self.assertEqual(answer.status, status, path)
            self.assertRegex(answer.header("Cache-Status") or "", r"^artifactd(;|$)", path)
            self.assertIn("total", timings(answer), path)
            self.assertIsNone(answer.header("WWW-Authenticate"))

    async def test_images_of_both_are_listed_under_their_names(self) -> None:
        self.hub.images.add_image("library/alpine", "latest", LAYER)
        registry = self.mirror()
        await registry.push_image("hello", "latest", b"mine")
        await registry.request("GET", "/v2/alpine/manifests/latest")
        answer = await registry.request("GET", "/v2/_catalog")
        self.assertEqual(
            json.loads(answer.body), {"repositories": ["docker.io/library/alpine", "hello"]}
        )
