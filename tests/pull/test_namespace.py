"""``ns=``, which says of which registry a name is; several upstreams side by side."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from artifactd.kit.deferreds import SingleFlight
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import Served, image_manifest
from tests.pull.mirrors import HIT, STORED, MirrorCase, digest_of, side_by_side
from tests.upstreams.faulty import MANIFESTS, Silence
from tests.upstreams.hub import Hub

LAYER = b"layer"
BLOB = f"blobs/{Digest.of(LAYER)}"


class NamespaceCase(MirrorCase):
    """``team/app`` is in both upstreams, as different images."""

    def setUp(self) -> None:
        super().setUp()
        self.quay = Hub.start(self)
        self.at_hub = self.hub.images.add_image("team/app", "latest", LAYER)
        self.at_quay = self.quay.images.add_image("team/app", "latest", LAYER, b"more")
        self.registry = Served.start(
            self, side_by_side({"docker.io": self.hub, "quay.io": self.quay})
        )


class NamespaceTests(NamespaceCase):
    async def test_it_says_which_upstream_is_asked(self) -> None:
        for ns, digest in (("docker.io", self.at_hub), ("quay.io", self.at_quay)):
            for cache in (STORED, HIT):
                answer = await self.registry.request(
                    "GET", f"/v2/team/app/manifests/latest?ns={ns}"
                )
                self.assertEqual(answer.header("Cache-Status"), cache)
                self.assertEqual(digest_of(answer), digest)
                self.assertEqual(answer.header("OCI-Namespace"), ns)

    async def test_each_upstream_is_asked_only_for_its_own(self) -> None:
        await self.registry.request("GET", "/v2/team/app/manifests/latest?ns=quay.io")
        self.assertEqual(self.hub.requests, [])
        self.quay.forget_requests()
        await self.registry.request("GET", "/v2/team/app/manifests/latest?ns=docker.io")
        self.assertEqual(self.quay.requests, [])

    async def test_it_is_the_same_image_as_under_the_prefix(self) -> None:
        await self.registry.request("GET", "/v2/team/app/manifests/latest?ns=quay.io")
        answer = await self.registry.request("GET", "/v2/quay.io/team/app/manifests/latest")
        self.assert_from(answer, "cache", HIT)
        self.assertIsNone(answer.header("OCI-Namespace"))

    async def test_it_counts_on_every_kind_of_read(self) -> None:
        referrer = self.quay.images.add_image("team/app", None, b"sig", subject=self.at_quay)
        for path, content in (
            (f"manifests/{self.at_quay}", b""),
            (BLOB, LAYER),
            ("tags/list", b'"latest"'),
            (f"referrers/{self.at_quay}", str(referrer).encode()),
        ):
            answer = await self.registry.request("GET", f"/v2/team/app/{path}?ns=quay.io")
            self.assertEqual(answer.status, 200, path)
            self.assertEqual(answer.header("OCI-Namespace"), "quay.io")
            self.assertIn(content, answer.body)
        self.assertEqual(self.hub.requests, [])

    async def test_the_library_is_added_as_under_the_prefix(self) -> None:
        digest = self.hub.images.add_image("library/alpine", "latest", LAYER)
        for name in ("alpine", "library/alpine"):
            answer = await self.registry.request("GET", f"/v2/{name}/manifests/latest?ns=docker.io")
            self.assertEqual(digest_of(answer), digest)

    async def test_a_host_is_written_in_any_case(self) -> None:
        answer = await self.registry.request("GET", "/v2/team/app/manifests/latest?ns=QUAY.io")
        self.assertEqual(digest_of(answer), self.at_quay)
        self.assertEqual(answer.header("OCI-Namespace"), "QUAY.io")

    async def test_other_hosts_of_the_settings_are_answered_for(self) -> None:
        toml = side_by_side({"docker.io": self.hub}, hosts=["docker.io", "registry-1.docker.io"])
        registry = Served.start(self, toml)
        for ns in ("docker.io", "registry-1.docker.io"):
            answer = await registry.request("GET", f"/v2/team/app/manifests/latest?ns={ns}")
            self.assertEqual(digest_of(answer), self.at_hub)

    async def test_one_that_nothing_answers_for_is_404(self) -> None:
        for ns in ("ghcr.io", "docker.io.evil.example", "docker.io:443", "local", "x" * 3000):
            for path in ("manifests/latest", BLOB, "tags/list", f"referrers/{self.at_hub}"):
                answer = await self.registry.request("GET", f"/v2/team/app/{path}?ns={ns}")
                self.assert_refused(answer, 404, "NAME_UNKNOWN", "hosts")
        self.assertEqual([*self.hub.requests, *self.quay.requests], [])

    async def test_an_error_says_it_to_those_alone_who_have_asked_with_it(self) -> None:
        original = SingleFlight.join
        joined: list[Deferred[None]] = [Deferred(), Deferred()]
        waiting = iter(joined)

        def join(flights: SingleFlight[Any, Any], key: Any, work: Any) -> Deferred[Any]:
            outcome = original(flights, key, work)
            next(waiting).callback(None)
            return outcome

        self.patch(SingleFlight, "join", join)
        held = Silence()
        self.quay.faults.add(held, on=MANIFESTS, times=None)
        self.quay.challenges = False
        paths = "/v2/team/app/manifests/none?ns=quay.io", "/v2/quay.io/team/app/manifests/none"
        answers = []
        for path, has_joined in zip(paths, joined, strict=True):
            answers.append(Deferred.fromCoroutine(self.registry.request("GET", path)))
            await has_joined
        held.release()
        for asked, namespace in zip(answers, ("quay.io", None), strict=True):
            answer = await asked
            self.assert_refused(answer, 404, "MANIFEST_UNKNOWN")
            self.assertEqual(answer.header("OCI-Namespace"), namespace)
        self.assertEqual(self.quay.count("GET", MANIFESTS), 1)

    async def test_an_empty_one_is_none(self) -> None:
        answer = await self.registry.request("GET", "/v2/team/app/manifests/latest?ns=")
        self.assertEqual(digest_of(answer), self.at_hub)
        self.assertIsNone(answer.header("OCI-Namespace"))

    async def test_this_very_host_is_ignored(self) -> None:
        pushed = await self.registry.push_image("team/app", "latest", b"mine")
        for ns, host in (
            (f"127.0.0.1:{self.registry.port}", None),
            ("127.0.0.1", None),
            ("registry.example:5000", "Registry.example:5000"),
            ("registry.example", "registry.example"),
        ):
            answer = await self.registry.request(
                "GET",
                f"/v2/team/app/manifests/latest?ns={ns}",
                headers={"Host": host} if host else {},
            )
            self.assertEqual(digest_of(answer), pushed, ns)
            self.assertIsNone(answer.header("OCI-Namespace"))

    async def test_what_is_pushed_here_does_not_answer_for_another_registry(self) -> None:
        await self.registry.push_image("team/app", "latest", b"mine")
        answer = await self.registry.request("GET", "/v2/team/app/manifests/latest?ns=docker.io")
        self.assertEqual(digest_of(answer), self.at_hub)
        answer = await self.registry.request("GET", "/v2/team/app/manifests/mine?ns=docker.io")
        self.assertEqual(answer.status, 404)

    async def test_it_does_not_open_the_name_without_it(self) -> None:
        await self.registry.request("GET", "/v2/team/app/manifests/latest?ns=quay.io")
        self.quay.forget_requests()
        answer = await self.registry.request("GET", f"/v2/team/app/{BLOB}")
        self.assertEqual(answer.status, 404)
        self.assertEqual([*self.hub.requests, *self.quay.requests], [])


class RegistryInThePathTests(NamespaceCase):
    """containerd's ``override_path``: the path names the registry, and ``ns`` does too."""

    async def test_every_kind_of_read_is_answered_as_with_ns_alone(self) -> None:
        referrer = self.quay.images.add_image("team/app", None, b"sig", subject=self.at_quay)
        for path, content in (
            ("manifests/latest", b""),
            (f"manifests/{self.at_quay}", b""),
            (BLOB, LAYER),
            ("tags/list", b'"latest"'),
            (f"referrers/{self.at_quay}", str(referrer).encode()),
        ):
            for method in ("HEAD", "GET") if path.startswith(("manifests", "blobs")) else ("GET",):
                answer = await self.registry.request(
                    method, f"/v2/quay.io/team/app/{path}?ns=quay.io"
                )
                self.assertEqual(answer.status, 200, f"{method} {path}")
                self.assertEqual(answer.header("OCI-Namespace"), "quay.io")
                if method == "GET":
                    self.assertIn(content, answer.body)
        self.assertEqual(self.hub.requests, [])

    async def test_it_is_the_image_that_is_cached_without_it(self) -> None:
        await self.registry.request("GET", "/v2/quay.io/team/app/manifests/latest?ns=quay.io")
        self.quay.forget_requests()
        for path in ("quay.io/team/app/manifests/latest", "team/app/manifests/latest?ns=quay.io"):
            answer = await self.registry.request("GET", f"/v2/{path}")
            self.assert_from(answer, "cache", HIT)
            self.assertEqual(digest_of(answer), self.at_quay)
        self.assertEqual(self.quay.requests, [])

    async def test_the_library_is_added_behind_the_registry(self) -> None:
        digest = self.hub.images.add_image("library/alpine", "latest", LAYER)
        for name in ("alpine", "library/alpine"):
            answer = await self.registry.request(
                "GET", f"/v2/docker.io/{name}/manifests/latest?ns=docker.io"
            )
            self.assertEqual(digest_of(answer), digest)

    async def test_another_registry_in_the_path_is_part_of_the_images_name(self) -> None:
        answer = await self.registry.request(
            "GET", "/v2/docker.io/team/app/manifests/latest?ns=quay.io"
        )
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN")
        self.assertEqual(self.hub.requests, [])
        name = "/v2/docker.io/team/app/"
        self.assertTrue(all(a.path.startswith(name) for a in self.quay.asked("*", "/v2/*")))


class NamePrefixTests(MirrorCase):
    """Another cache is the upstream: it has Docker Hub's images under ``hub/proxy``."""

    def setUp(self) -> None:
        super().setUp()
        self.digest = self.hub.images.add_image("hub/proxy/library/alpine", "latest", LAYER)
        self.referrer = self.hub.images.add_image(
            "hub/proxy/library/alpine", None, b"sig", subject=self.digest
        )
        self.hub.images.add_image("library/alpine", "latest", b"another", b"image")
        self.registry = Served.start(
            self, side_by_side({"docker.io": self.hub}, prefix="hub/proxy")
        )

    async def assert_answered(self, before: str, query: str = "") -> None:
        """All of the image is answered under that beginning of the path; nothing is cached yet."""
        for method, path, content in (
            ("HEAD", BLOB, b""),
            ("GET", BLOB, LAYER),
            ("HEAD", "manifests/latest", b""),
            ("GET", "manifests/latest", b""),
            ("GET", f"manifests/{self.digest}", b""),
            ("GET", "tags/list", b'"latest"'),
            ("GET", f"referrers/{self.digest}", str(self.referrer).encode()),
        ):
            answer = await self.registry.request(method, f"/v2/{before}alpine/{path}{query}")
            self.assertEqual(answer.status, 200, f"{method} {path}: {answer.body!r}")
            self.assertIn(content, answer.body)
            if "manifests" in path:
                self.assertEqual(digest_of(answer), self.digest)
        await self.filled(self.registry, Digest.of(LAYER))
        asked = {(a.method, a.path.removeprefix("/v2/")) for a in self.hub.asked("*", "/v2/*")}
        self.assertEqual({path for _, path in asked if not path.startswith("hub/proxy/")}, set())
        there = "hub/proxy/library/alpine"
        self.assertLessEqual(
            {
                ("HEAD", f"{there}/{BLOB}"),
                ("GET", f"{there}/{BLOB}"),
                ("GET", f"{there}/manifests/latest"),
                ("GET", f"{there}/tags/list"),
                ("GET", f"{there}/referrers/{self.digest}"),
            },
            asked,
        )

    async def test_all_of_an_image_is_had_under_the_registrys_name(self) -> None:
        await self.assert_answered("docker.io/")

    async def test_and_with_ns(self) -> None:
        await self.assert_answered("", "?ns=docker.io")

    async def test_and_with_both(self) -> None:
        await self.assert_answered("docker.io/", "?ns=docker.io")

    async def test_names_without_it_are_shown(self) -> None:
        answer = await self.registry.request("GET", "/v2/docker.io/alpine/tags/list")
        self.assertEqual(json.loads(answer.body)["name"], "docker.io/alpine")
        await self.registry.request("GET", "/v2/docker.io/alpine/manifests/latest")
        answer = await self.registry.request("GET", "/v2/_catalog")
        self.assertNotIn(b"hub/proxy", answer.body)
        self.assertIn(b"docker.io/library/alpine", answer.body)

    async def test_a_client_that_names_it_too_asks_for_another_image(self) -> None:
        answer = await self.registry.request(
            "GET", "/v2/docker.io/hub/proxy/library/alpine/manifests/latest"
        )
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN")


class WriteTests(NamespaceCase):
    async def test_on_a_write_it_is_ignored_whatever_it_names(self) -> None:
        for number, ns in enumerate(("docker.io", "ghcr.io", "localhost")):
            name, layer = f"mine{number}", b"%d" % number
            blob = Digest.of(layer)
            base = f"/v2/{name}/blobs"
            started = await self.registry.request("POST", f"{base}/uploads/?ns={ns}")
            location = started.header("Location") or ""
            chunk = await self.registry.request("PATCH", f"{location}&ns={ns}", layer)
            location = chunk.header("Location") or ""
            status = await self.registry.request("GET", f"{location}&ns={ns}")
            self.assertEqual(status.status, 204)
            closed = await self.registry.request("PUT", f"{location}&digest={blob}&ns={ns}", b"")
            self.assertEqual(closed.status, 201)
            answer = await self.registry.request(
                "PUT",
                f"/v2/{name}/manifests/latest?ns={ns}",
                image_manifest(layer),
                {"Content-Type": OCI_MANIFEST},
            )
            self.assertEqual(answer.status, 201)
            digest = digest_of(answer)
            pulled = await self.registry.request("GET", f"/v2/{name}/manifests/latest")
            self.assert_from(pulled, "local", HIT)
            gone = await self.registry.request("DELETE", f"/v2/{name}/manifests/{digest}?ns={ns}")
            self.assertEqual(gone.status, 202)
            gone = await self.registry.request("DELETE", f"{base}/{blob}?ns={ns}")
            self.assertEqual(gone.status, 202)
        self.assertEqual([*self.hub.requests, *self.quay.requests], [])


class PullOnlyTests(MirrorCase):
    """A daemon that is a mirror and nothing else."""

    def setUp(self) -> None:
        super().setUp()
        self.digest = self.hub.images.add_image("library/alpine", "latest", LAYER)
        default = {"push": "", "pull": ["docker.io"]}
        self.registry = Served.start(self, side_by_side({"docker.io": self.hub}, default))

    async def test_bare_names_are_pulled_as_docker_does(self) -> None:
        for name in ("library/alpine", "alpine"):
            answer = await self.registry.request("GET", f"/v2/{name}/{BLOB}")
            self.assert_refused(answer, 404, "BLOB_UNKNOWN")
            answer = await self.registry.request("GET", f"/v2/{name}/tags/list")
            self.assert_refused(answer, 404, "NAME_UNKNOWN")
            answer = await self.registry.request("GET", f"/v2/{name}/manifests/latest")
            self.assertEqual((answer.status, digest_of(answer)), (200, self.digest))
            blob = await self.registry.request("GET", f"/v2/{name}/{BLOB}")
            self.assertEqual((blob.status, blob.body), (200, LAYER))
            tags = await self.registry.request("GET", f"/v2/{name}/tags/list")
            self.assertEqual(json.loads(tags.body), {"name": name, "tags": ["latest"]})
            referrers = await self.registry.request("GET", f"/v2/{name}/referrers/{self.digest}")
            self.assertEqual(referrers.status, 200)

    async def test_what_is_not_there_is_404(self) -> None:
        answer = await self.registry.request("GET", "/v2/nothing/manifests/latest")
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN")

    async def test_nothing_can_be_pushed_to_them(self) -> None:
        before = self.state(self.registry)
        for name in ("alpine", "mine"):
            for method, path in (
                ("POST", "blobs/uploads/"),
                ("PUT", f"blobs/uploads/?digest={Digest.of(b'x')}"),
                ("PUT", "manifests/latest"),
                ("DELETE", "manifests/latest"),
            ):
                body = b"x" if method == "PUT" else None
                answer = await self.registry.request(method, f"/v2/{name}/{path}", body)
                self.assertEqual(answer.status, 405, f"{method} {path}")
        self.assertEqual(self.state(self.registry), before)
        self.assertEqual(self.hub.requests, [])

    async def test_a_local_repository_beside_takes_pushes_under_its_name(self) -> None:
        digest = await self.registry.push_image("local/mine", "latest", b"mine")
        answer = await self.registry.request("GET", "/v2/local/mine/manifests/latest")
        self.assertEqual(digest_of(answer), digest)
        self.assertEqual(self.hub.requests, [])
