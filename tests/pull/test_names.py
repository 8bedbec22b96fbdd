"""Which names go upstream: those with a prefix always, those without only as long as they may."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from time import time
from typing import Any

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest, ImageName
from artifactd.store.publication import StagedBlob
from tests.api.served import Served, descriptor, image_index, image_manifest
from tests.process import Answer
from tests.pull.mirrors import HIT, STORED, MirrorCase, digest_of, side_by_side
from tests.upstreams.faulty import CDN, MANIFESTS, Page, Status
from tests.upstreams.hub import Hub
from tests.upstreams.settings import settings_for

NAME = "library/hello"
LOCAL = "artifactd; hit"


class PrefixTests(MirrorCase):
    async def test_one_component_is_of_the_library(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        for name in ("docker.io/hello", "docker.io/library/hello"):
            answer = await registry.request("GET", f"/v2/{name}/manifests/latest")
            self.assertEqual(digest_of(answer), digest)
        self.assertEqual(self.hub.count("GET", f"/v2/{NAME}/manifests/latest"), 2)  # one refused

    async def test_two_components_are_as_they_are(self) -> None:
        digest = self.hub.images.add_image("team/hello", "latest", b"layer")
        registry = self.mirror()
        for name in ("docker.io/team/hello", "team/hello"):
            answer = await registry.request("GET", f"/v2/{name}/manifests/latest")
            self.assertEqual(digest_of(answer), digest)

    async def test_what_is_pushed_under_the_same_name_is_another_image(self) -> None:
        there = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        here = await registry.push_image("hello", "latest", b"another")
        for name, digest in (("hello", here), ("local/hello", here), ("docker.io/hello", there)):
            answer = await registry.request("GET", f"/v2/{name}/manifests/latest")
            self.assertEqual(digest_of(answer), digest, name)

    async def test_the_local_repository_under_its_name_asks_no_upstream(self) -> None:
        digest = self.hub.images.add_image(NAME, "latest", b"layer")
        registry = self.mirror()
        await registry.request("GET", "/v2/hello/manifests/latest")
        self.hub.forget_requests()
        for path in ("manifests/latest", f"manifests/{digest}", "tags/list"):
            answer = await registry.request("GET", f"/v2/local/hello/{path}")
            self.assertEqual(answer.status, 404, path)
        self.assertEqual(self.hub.requests, [])


class NamesCase(MirrorCase):
    """``hello`` is in the upstream and, unless a test pushes it, not here."""

    def setUp(self) -> None:
        super().setUp()
        self.layer = b"layer"
        self.upstream = self.hub.images.add_image(NAME, "latest", self.layer)
        self.manifest = self.hub.images.manifest_of(NAME, "latest")

    async def status(
        self, registry: Served, path: str, method: str = "GET", name: str = "hello"
    ) -> int:
        return (await registry.request(method, f"/v2/{name}/{path}")).status

    def reads(self) -> Mapping[str, str]:
        """Paths to read below a name, of what the upstream has of ``hello``, but for manifests."""
        return {
            "blob": f"blobs/{Digest.of(self.layer)}",
            "tags": "tags/list",
            "referrers": f"referrers/{self.upstream}",
        }


class LocalFirstTests(NamesCase):
    async def test_a_name_pushed_here_is_never_asked_for_upstream(self) -> None:
        registry = self.mirror(freshness="0s")
        pushed = await registry.push_image("hello", "1", b"pushed")
        self.assertEqual(await self.status(registry, "manifests/1"), 200)
        for path in (
            "manifests/latest",
            f"manifests/{self.upstream}",
            self.reads()["blob"],
            f"blobs/{Digest.of(b'x')}",
        ):
            for method in ("GET", "HEAD"):
                self.assertEqual(await self.status(registry, path, method), 404, path)
        tags = await registry.request("GET", "/v2/hello/tags/list")
        self.assert_from(tags, "local", LOCAL)
        self.assertEqual(tags.body, b'{"name":"hello","tags":["1"]}')
        referrers = await registry.request("GET", f"/v2/hello/referrers/{pushed}")
        self.assert_from(referrers, "local", LOCAL)
        self.assertEqual(self.hub.requests, [])

    async def test_not_even_when_it_is_empty_again_or_after_a_restart(self) -> None:
        registry = self.mirror()
        pushed = await registry.push_image("hello", "latest", b"pushed")
        self.assertEqual(await self.status(registry, f"manifests/{pushed}", "DELETE"), 202)
        for _ in range(2):
            self.assertEqual(await self.status(registry, "manifests/latest"), 404)
            self.assertEqual(await self.status(registry, f"manifests/{self.upstream}"), 404)
            for path in self.reads().values():
                await self.status(registry, path)
            await registry.service.stopService()
            registry.service.startService()
        self.assertEqual(self.hub.requests, [])

    async def test_an_emptied_name_that_is_released_is_asked_for_upstream_again(self) -> None:
        registry = self.mirror()
        pushed = await registry.push_image("hello", "latest", b"pushed")
        await registry.request("DELETE", f"/v2/hello/manifests/{pushed}")
        self.assertEqual(await self.status(registry, "manifests/latest"), 404)
        await self.release(registry, "hello")
        answer = await registry.request("GET", "/v2/hello/manifests/latest")
        self.assert_from(answer, "remote", STORED)
        self.assertEqual(digest_of(answer), self.upstream)

    async def test_an_upload_alone_does_not_make_it_local(self) -> None:
        registry = self.mirror()
        await registry.push_blob("hello", b"pushed")
        await registry.request("POST", "/v2/hello/blobs/uploads/")
        self.assertEqual(self.hub.requests, [])
        answer = await registry.request("GET", "/v2/hello/manifests/latest")
        self.assertEqual(digest_of(answer), self.upstream)
        # What was uploaded is still answered for.
        mine = await registry.request("GET", f"/v2/hello/blobs/{Digest.of(b'pushed')}")
        self.assert_from(mine, "local", LOCAL)

    async def test_a_manifest_that_was_refused_does_not_either(self) -> None:
        registry = self.mirror()
        headers = {"Content-Type": OCI_MANIFEST}
        body = image_manifest(b"no such config")
        refused = await registry.request("PUT", "/v2/hello/manifests/latest", body, headers)
        self.assertEqual(refused.status, 400)
        self.assertEqual(self.hub.requests, [])
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)


class NewImageTests(NamesCase):
    async def test_pushing_one_as_docker_does_asks_no_upstream(self) -> None:
        registry = self.mirror()
        config, layer = b"{}", b"a new layer"
        for blob in (layer, config):
            path = f"/v2/hello/blobs/{Digest.of(blob)}"
            self.assertEqual((await registry.request("HEAD", path)).status, 404)
            started = await registry.request("POST", "/v2/hello/blobs/uploads/")
            location = started.header("Location") or ""
            appended = await registry.request("PATCH", location, blob, chunked=True)
            location = appended.header("Location") or ""
            closed = await registry.request("PUT", f"{location}?digest={Digest.of(blob)}", b"")
            self.assertEqual(closed.status, 201)
            self.assertEqual((await registry.request("HEAD", path)).status, 200)
        digest = await registry.push_manifest("hello", "latest", image_manifest(config, layer))
        answer = await registry.request("GET", "/v2/hello/manifests/latest")
        self.assert_from(answer, "local", LOCAL)
        self.assertEqual(digest_of(answer), digest)
        self.assertEqual(self.hub.requests, [])

    async def test_neither_does_what_a_client_may_ask_besides(self) -> None:
        registry = self.mirror()
        for path, method, expected in (
            (self.reads()["blob"], "HEAD", 404),
            (self.reads()["blob"], "GET", 404),
            ("tags/list", "GET", 404),
            (self.reads()["referrers"], "GET", 200),
            (f"blobs/uploads/?mount={Digest.of(self.layer)}&from=other", "POST", 202),
            (f"blobs/uploads/?mount={Digest.of(self.layer)}&from={NAME}", "POST", 202),
            (f"blobs/uploads/?mount={Digest.of(self.layer)}", "POST", 202),
            ("manifests/latest", "DELETE", 404),
            (self.reads()["blob"], "DELETE", 404),
        ):
            self.assertEqual(await self.status(registry, path, method), expected, path)
        self.assertEqual(self.hub.requests, [])


class OpenedTests(NamesCase):
    async def test_after_a_manifest_the_rest_comes_from_there_too(self) -> None:
        registry = self.mirror()
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 404)
        self.assertEqual(await self.status(registry, "manifests/latest", "HEAD"), 200)
        for what, path in self.reads().items():
            answer = await registry.request("GET", f"/v2/hello/{path}")
            self.assertEqual(answer.status, 200, what)
            self.assertEqual(answer.header("X-Artifact-Source"), "remote", what)
        tags = await registry.request("GET", "/v2/hello/tags/list")
        self.assertEqual(tags.body, b'{"name":"hello","tags":["latest"]}')
        path = self.reads()["blob"]
        await self.filled(registry, Digest.parse(path.rpartition("/")[2]))
        blob = await registry.request("GET", f"/v2/hello/{path}")
        self.assert_from(blob, "cache", HIT)

    async def test_it_opens_no_other_name(self) -> None:
        registry = self.mirror()
        self.hub.images.add_image("library/other", "latest", self.layer)
        await self.status(registry, "manifests/latest")
        self.hub.forget_requests()
        for path in self.reads().values():
            await self.status(registry, path, name="other")
        self.assertEqual(self.hub.requests, [])

    async def test_a_manifest_that_was_not_there_opens_nothing(self) -> None:
        registry = self.mirror()
        self.assertEqual(await self.status(registry, "manifests/missing"), 404)
        self.hub.forget_requests()
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 404)
        self.assertEqual(await self.status(registry, "tags/list"), 404)
        self.assertEqual(self.hub.requests, [])

    async def test_pulling_it_with_its_prefix_does_not_open_it_without(self) -> None:
        registry = self.mirror()
        await self.status(registry, "manifests/latest", name="docker.io/hello")
        self.hub.forget_requests()
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 404)
        self.assertEqual(self.hub.requests, [])

    async def test_once_it_is_pushed_here_it_is_local_in_all_respects(self) -> None:
        registry = self.mirror()
        for path in ("manifests/latest", *self.reads().values()):
            await self.status(registry, path)
        self.hub.forget_requests()
        await registry.push_image("hello", "mine", b"mine")
        self.assertEqual(await self.status(registry, "manifests/latest"), 404)
        self.assertEqual(await self.status(registry, f"manifests/{self.upstream}"), 404)
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 404)
        tags = await registry.request("GET", "/v2/hello/tags/list")
        self.assertEqual(tags.body, b'{"name":"hello","tags":["mine"]}')
        self.assertEqual(self.hub.requests, [])


class AdoptTests(NamesCase):
    """After a pull, a push of the same name whose blobs its client was told are here."""

    def setUp(self) -> None:
        super().setUp()
        self.config = b'{"mine": true}'
        self.mine = image_manifest(self.config, self.layer)

    async def put(self, registry: Served) -> Answer:
        headers = {"Content-Type": OCI_MANIFEST}
        return await registry.request("PUT", "/v2/hello/manifests/mine", self.mine, headers)

    async def skipping(self) -> Served:
        """A registry to which a client has pushed what it was not told is here."""
        registry = self.mirror()
        await self.status(registry, "manifests/latest")
        self.assertEqual(await self.status(registry, self.reads()["blob"], "HEAD"), 200)
        await registry.push_blob("hello", self.config)
        return registry

    async def test_it_succeeds_and_the_name_is_local_then(self) -> None:
        registry = await self.skipping()
        self.assertEqual((await self.put(registry)).status, 201)
        await self.hub.stop()
        blob = await registry.request("GET", f"/v2/hello/{self.reads()['blob']}")
        self.assert_from(blob, "local", LOCAL)
        self.assertEqual(blob.body, self.layer)
        answer = await registry.request("GET", "/v2/hello/manifests/mine")
        self.assert_from(answer, "local", LOCAL)
        self.assertEqual(await self.status(registry, "manifests/latest"), 404)

    async def test_it_succeeds_where_the_blob_had_been_pulled(self) -> None:
        registry = await self.skipping()
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 200)
        await self.filled(registry, Digest.of(self.layer))
        await self.hub.stop()
        self.assertEqual((await self.put(registry)).status, 201)
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 200)

    async def test_bytes_that_can_not_be_had_are_the_blob_that_is_missing(self) -> None:
        registry = await self.skipping()
        self.hub.faults.add(Status(404), on=CDN, times=None)
        answer = await self.put(registry)
        self.assert_refused(answer, 400, "MANIFEST_BLOB_UNKNOWN")
        self.hub.faults.clear()
        self.assertEqual((await self.put(registry)).status, 201)

    async def test_they_are_missing_also_where_an_image_may_lack_blobs(self) -> None:
        local, settings = 'kind = "local"\n', settings_for(self.hub, freshness="1d", retries=0)
        toml = settings.replace(local, f'{local}sparse = "images"\n')
        registry = Served.start(self, toml)
        await self.status(registry, "manifests/latest")
        self.assertEqual(await self.status(registry, self.reads()["blob"], "HEAD"), 200)
        self.hub.faults.add(Status(404), on=CDN, times=None)
        answer = await self.put(registry)
        self.assert_refused(answer, 400, "MANIFEST_BLOB_UNKNOWN")
        self.assertNotIn(str(Digest.of(self.config)).encode(), answer.body)
        self.hub.faults.clear()
        self.assertEqual((await self.put(registry)).status, 201)
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 200)

    async def test_what_the_upstream_does_not_have_is_missing(self) -> None:
        registry = await self.skipping()
        self.mine = image_manifest(self.config, b"nowhere")
        self.assert_refused(await self.put(registry), 400, "MANIFEST_BLOB_UNKNOWN")
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)

    async def test_nothing_is_adopted_for_a_name_that_was_never_pulled(self) -> None:
        registry = self.mirror()
        await registry.push_blob("hello", self.config)
        self.assert_refused(await self.put(registry), 400, "MANIFEST_BLOB_UNKNOWN")
        self.assertEqual(self.hub.requests, [])


class AdoptChildrenTests(NamesCase):
    """After a pull, a push of an index whose manifests its client was told are here."""

    def setUp(self) -> None:
        super().setUp()
        self.child = self.hub.images.manifest_of(NAME, "latest")
        self.mine = image_index(self.child, annotations={"is": "mine"})

    async def skipping(self, *there: bytes) -> Served:
        """A registry that has said of ``there``, and of what ``latest`` is, that they are here."""
        registry = self.mirror()
        await self.status(registry, "manifests/latest", "HEAD")
        for each in (self.child, *there):
            self.assertEqual(await self.status(registry, f"manifests/{Digest.of(each)}"), 200)
        return registry

    async def put(self, registry: Served, **headers: str) -> Answer:
        fields = {"Content-Type": OCI_INDEX, **{k.replace("_", "-"): v for k, v in headers.items()}}
        return await registry.request("PUT", "/v2/hello/manifests/mine", self.mine, fields)

    async def assert_upstreams(self, registry: Served) -> None:
        """The name is still not one of here."""
        answer = await registry.request("GET", "/v2/hello/manifests/latest")
        self.assertEqual(digest_of(answer), self.upstream)
        self.assertEqual(answer.header("X-Artifact-Source"), "cache")

    async def test_it_succeeds_and_all_of_it_is_local_then(self) -> None:
        registry = await self.skipping()
        self.assertEqual((await self.put(registry)).status, 201)
        await self.hub.stop()
        for path in ("manifests/mine", f"manifests/{self.upstream}", self.reads()["blob"]):
            answer = await registry.request("GET", f"/v2/hello/{path}")
            self.assert_from(answer, "local", LOCAL)
        tags = await registry.request("GET", "/v2/hello/tags/list")
        self.assertEqual(tags.body, b'{"name":"hello","tags":["mine"]}')

    async def test_an_index_in_an_index_comes_with_what_it_lists(self) -> None:
        inner = self.hub.images.add_index(NAME, "inner", self.upstream)
        content = self.hub.images.manifest_of(NAME, "inner")
        self.mine = image_index(self.child, manifests=[descriptor(content, OCI_INDEX)])
        registry = await self.skipping(content)
        self.assertEqual((await self.put(registry)).status, 201)
        await self.hub.stop()
        for digest in (inner, self.upstream):
            self.assertEqual(await self.status(registry, f"manifests/{digest}"), 200)

    async def test_one_that_can_not_be_had_whole_leaves_the_name_to_the_upstream(self) -> None:
        registry = await self.skipping()
        whole = self.mine
        self.mine = image_index(self.child, image_manifest(b"nowhere"))
        self.assert_refused(await self.put(registry), 400, "MANIFEST_BLOB_UNKNOWN")
        await self.assert_upstreams(registry)
        self.mine = whole
        self.hub.faults.add(Status(404), on=CDN, times=None)
        self.assert_refused(await self.put(registry), 400, "MANIFEST_BLOB_UNKNOWN")
        await self.assert_upstreams(registry)
        self.hub.faults.clear()
        refused = await self.put(registry, If_Match='"sha256:none"')
        self.assert_refused(refused, 412, "DENIED")
        await self.assert_upstreams(registry)
        self.assertEqual((await self.put(registry)).status, 201)

    async def test_nothing_is_adopted_for_a_name_that_was_never_pulled(self) -> None:
        registry = self.mirror()
        self.assert_refused(await self.put(registry), 400, "MANIFEST_BLOB_UNKNOWN")
        self.assertEqual(self.hub.requests, [])


class RefusedPushTests(NamesCase):
    """A refused push under a name that has been pulled leaves the name and the repository alone."""

    def setUp(self) -> None:
        super().setUp()
        self.child = self.hub.images.manifest_of(NAME, "latest")
        self.mine = image_index(self.child, annotations={"is": "mine"})

    async def assert_unchanged(self, registry: Served) -> None:
        answer = await registry.request("GET", "/v2/hello/manifests/latest")
        self.assertEqual((answer.status, digest_of(answer)), (200, self.upstream))
        self.assertEqual(await registry.parts.catalog.repository_size("local"), 0)
        self.assertFalse(await registry.parts.remote.is_known(ImageName("local", "hello")))
        blobs = registry.data / "blobs"
        stored = {Digest.parse(f"sha256:{path.name}") for path in blobs.glob("*/*/*")}
        self.assertNotIn(Digest.of(self.mine), stored)

    async def refused(self, registry: Served, reference: str, **headers: str) -> Answer:
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)
        fields = {"Content-Type": OCI_INDEX, **{k.replace("_", "-"): v for k, v in headers.items()}}
        path = f"/v2/hello/manifests/{reference}"
        return await registry.request("PUT", path, self.mine, fields)

    async def test_over_the_quota(self) -> None:
        toml = settings_for(self.hub, freshness="1d", retries=0)
        registry = Served.start(self, toml.replace('"local"\n', '"local"\nquota = "100B"\n', 1))
        for reference in ("mine", str(Digest.of(self.mine))):
            self.assert_refused(await self.refused(registry, reference), 403, "DENIED")
            await self.assert_unchanged(registry)

    async def test_over_the_depth_of_indexes_with_what_is_adopted(self) -> None:
        self.hub.images.add_index(NAME, "inner", self.upstream)
        inner = self.hub.images.manifest_of(NAME, "inner")
        self.mine = image_index(self.child, manifests=[descriptor(inner, OCI_INDEX)])
        registry = self.mirror_with("[limits]\nindex_depth = 1\n")
        refused = await self.refused(registry, "mine")
        self.assert_refused(refused, 400, "MANIFEST_INVALID")
        await self.assert_unchanged(registry)

    async def test_by_its_precondition(self) -> None:
        registry = self.mirror()
        refused = await self.refused(registry, "mine", If_Match='"sha256:none"')
        self.assert_refused(refused, 412, "DENIED")
        await self.assert_unchanged(registry)

    async def test_by_a_disk_that_fails(self) -> None:
        registry = self.mirror()
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)

        usual = StagedBlob.confirm

        def fail(staged: StagedBlob) -> None:
            if staged.digest == Digest.of(self.mine):
                raise OSError(errno.ENOSPC, "no space left on device")
            usual(staged)

        self.patch(StagedBlob, "confirm", fail)
        put = {"Content-Type": OCI_INDEX}
        refused = await registry.request("PUT", "/v2/hello/manifests/mine", self.mine, put)
        self.assert_refused(refused, 503, "UNKNOWN")
        await self.assert_unchanged(registry)

    async def test_a_push_in_between_counts_before_what_is_adopted(self) -> None:
        registry = self.mirror()
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)
        catalog = registry.parts.catalog
        usual = catalog.put_manifest
        other = image_manifest(b"{}", b"other")
        for blob in (b"{}", b"other"):
            await registry.push_blob("hello", blob)

        async def overtaken(*args: Any) -> None:
            self.patch(catalog, "put_manifest", usual)
            await registry.push_manifest("hello", "latest", other)
            await usual(*args)

        # The name is local before the adopting push is judged, and nobody was told of the child.
        registry.parts.registry.unprefixed.promises._given.clear()
        self.patch(catalog, "put_manifest", overtaken)
        put = {"Content-Type": OCI_INDEX}
        refused = await registry.request("PUT", "/v2/hello/manifests/mine", self.mine, put)
        self.assert_refused(refused, 400, "MANIFEST_BLOB_UNKNOWN")
        self.assertEqual(await self.status(registry, f"manifests/{self.upstream}"), 404)
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)


class PromisedTests(NamesCase):
    """A client that pushes several manifests asks for everything before it pushes the first."""

    def setUp(self) -> None:
        super().setUp()
        self.config = b'{"mine": true}'
        self.first = image_manifest(self.config, b"mine")
        self.second = image_manifest(self.config, self.layer)
        self.child = self.hub.images.manifest_of(NAME, "latest")

    async def pushed(self, *told: str) -> Served:
        """A registry to which the first was pushed, when ``told`` had been said to be here."""
        registry = self.mirror()
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)
        for path in told:
            self.assertEqual(await self.status(registry, path, "HEAD"), 200)
        for blob in (self.config, b"mine"):
            await registry.push_blob("hello", blob)
        await registry.push_manifest("hello", str(Digest.of(self.first)), self.first)
        return registry

    async def put(self, registry: Served, content: bytes, kind: str = OCI_MANIFEST) -> Answer:
        path = f"/v2/hello/manifests/{Digest.of(content)}"
        return await registry.request("PUT", path, content, {"Content-Type": kind})

    async def test_blobs_that_were_said_to_be_here_before_are_adopted_still(self) -> None:
        registry = await self.pushed(self.reads()["blob"])
        self.assertEqual((await self.put(registry, self.second)).status, 201)
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 200)

    async def test_so_are_manifests_with_what_they_list(self) -> None:
        registry = await self.pushed(f"manifests/{self.upstream}")
        index = image_index(self.first, self.child)
        self.assertEqual((await self.put(registry, index, OCI_INDEX)).status, 201)
        await self.hub.stop()
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 200)

    async def test_nothing_else_is_asked_for_upstream_any_more(self) -> None:
        registry = await self.pushed()
        self.hub.forget_requests()
        refused = await self.put(registry, self.second)
        self.assert_refused(refused, 400, "MANIFEST_BLOB_UNKNOWN")
        other = self.hub.images.add_image(NAME, "other", b"other")
        index = image_index(self.first, self.hub.images.manifest_of(NAME, str(other)))
        refused = await self.put(registry, index, OCI_INDEX)
        self.assert_refused(refused, 400, "MANIFEST_BLOB_UNKNOWN")
        self.assertEqual(self.hub.requests, [])

    async def test_not_even_that_once_an_hour_has_passed(self) -> None:
        registry = await self.pushed(self.reads()["blob"])
        later = time() + 3601
        self.patch(registry.parts.registry.unprefixed.promises, "now", lambda: later)
        self.hub.forget_requests()
        refused = await self.put(registry, self.second)
        self.assert_refused(refused, 400, "MANIFEST_BLOB_UNKNOWN")
        self.assertEqual(self.hub.requests, [])


class MountTests(NamesCase):
    async def pull(self, registry: Served) -> None:
        """Let ``docker.io/hello`` have the blob."""
        await self.status(registry, self.reads()["blob"], name="docker.io/hello")
        await self.filled(registry, Digest.of(self.layer))

    async def mount(self, registry: Served, source: str | None, name: str = "mine") -> int:
        query = f"mount={Digest.of(self.layer)}" + (f"&from={source}" if source else "")
        return await self.status(registry, f"blobs/uploads/?{query}", "POST", name)

    async def test_a_blob_of_a_remote_image_that_is_here_can_be_mounted(self) -> None:
        registry = self.mirror()
        await self.pull(registry)
        for source in ("docker.io/hello", f"docker.io/{NAME}"):
            self.assertEqual(await self.mount(registry, source), 201)
        await self.hub.stop()
        self.assertEqual(await self.status(registry, self.reads()["blob"], name="mine"), 200)

    async def test_what_is_not_here_is_not_fetched_to_be_mounted(self) -> None:
        registry = self.mirror()
        self.assertEqual(await self.mount(registry, "docker.io/hello"), 202)
        self.assertEqual(self.hub.requests, [])

    async def test_no_other_image_lends_it(self) -> None:
        registry = self.mirror()
        await self.pull(registry)
        for source in (None, "hello", "docker.io/other", "local/hello", "quay.io/hello"):
            self.assertEqual(await self.mount(registry, source), 202, source)
        self.assertEqual(await self.status(registry, self.reads()["blob"], name="mine"), 404)

    async def test_an_image_that_is_denied_lends_it_no_longer(self) -> None:
        first = self.mirror()
        await self.pull(first)
        for rules in ({"deny": [NAME]}, {"allow": ["team/*"]}):
            registry = self.mirror(first.data, **rules)
            self.assertEqual(await self.mount(registry, "docker.io/hello"), 202)
        self.assertEqual(await self.mount(first, "docker.io/hello"), 201)


class RulesTests(NamesCase):
    async def test_what_is_not_allowed_is_403_and_not_asked_for(self) -> None:
        registry = self.mirror(allow=["library/*"], deny=["library/h*"])
        for name in ("docker.io/hello", f"docker.io/{NAME}", "docker.io/team/app"):
            for path in ("manifests/latest", *self.reads().values()):
                answer = await registry.request("GET", f"/v2/{name}/{path}")
                self.assert_refused(answer, 403, "DENIED", "allow")
                mirrored = name.removeprefix("docker.io/")
                answer = await registry.request("GET", f"/v2/{mirrored}/{path}?ns=docker.io")
                self.assert_refused(answer, 403, "DENIED", "allow")
        self.assertEqual(self.hub.requests, [])

    async def test_without_its_prefix_it_is_not_there(self) -> None:
        registry = self.mirror(deny=[NAME])
        answer = await registry.request("GET", "/v2/hello/manifests/latest")
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN", "no upstream is asked")
        self.assertEqual(self.hub.requests, [])

    async def test_what_was_pulled_before_it_was_denied_is_denied(self) -> None:
        first = self.mirror()
        await self.status(first, "manifests/latest")
        registry = self.mirror(first.data, deny=["library/*"])
        self.assertEqual(await self.status(registry, "manifests/latest"), 404)
        self.assertEqual(await self.status(registry, self.reads()["blob"]), 404)
        self.assertEqual(
            await self.status(registry, "manifests/latest", name="docker.io/hello"), 403
        )

    async def test_others_are_allowed(self) -> None:
        registry = self.mirror(allow=["library/hel*"], deny=["library/help"])
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)


class LocalOnlyTests(NamesCase):
    def local_only(self, *patterns: str) -> Served:
        toml = side_by_side({"docker.io": self.hub}, {"local_only": list(patterns)})
        return Served.start(self, toml)

    async def test_such_names_go_nowhere_whoever_asks(self) -> None:
        self.hub.images.add_image("mycorp/app", "latest", self.layer)
        registry = self.local_only("mycorp/*", "hello")
        for name in ("mycorp/app", "hello"):
            for path in ("manifests/latest", *self.reads().values()):
                answer = await registry.request("GET", f"/v2/{name}/{path}")
                self.assertIn(answer.status, (404, 200), path)  # no referrers
                self.assertNotIn(b"vnd.oci.image.config", answer.body)
                answer = await registry.request("GET", f"/v2/docker.io/{name}/{path}")
                self.assert_refused(answer, 403, "DENIED", "local_only")
                answer = await registry.request("GET", f"/v2/{name}/{path}?ns=docker.io")
                self.assert_refused(answer, 403, "DENIED", "local_only")
        self.assertEqual(self.hub.requests, [])

    async def test_a_name_of_one_component_has_two_spellings_of_which_each_counts(self) -> None:
        for pattern in ("hello", "library/hello", "hell?"):
            registry = self.local_only(pattern)
            for name in ("hello", NAME, "docker.io/hello", f"docker.io/{NAME}"):
                status = await self.status(registry, "manifests/latest", name=name)
                self.assertIn(status, (403, 404), f"{name} {pattern}")
        self.assertEqual(self.hub.requests, [])

    async def test_they_are_pushed_and_pulled_as_others(self) -> None:
        registry = self.local_only("mycorp/*")
        digest = await registry.push_image("mycorp/app", "latest", b"mine")
        answer = await registry.request("GET", "/v2/mycorp/app/manifests/latest")
        self.assertEqual(digest_of(answer), digest)
        self.assertEqual(self.hub.requests, [])

    async def test_others_go_upstream(self) -> None:
        registry = self.local_only("mycorp/*", "hell")
        self.assertEqual(await self.status(registry, "manifests/latest"), 200)


class SeveralTests(NamesCase):
    """Two upstreams; ``hello`` is in the second one too, as another image."""

    def setUp(self) -> None:
        super().setUp()
        self.second = Hub.start(self)
        self.other = self.second.images.add_image("hello", "latest", b"other")

    def both(self, **more: Any) -> Served:
        hubs = {"docker.io": self.hub, "quay.io": self.second}
        return Served.start(self, side_by_side(hubs, **more))

    async def pulled(self, registry: Served, name: str = "hello") -> Digest:
        return digest_of(await registry.request("GET", f"/v2/{name}/manifests/latest"))

    async def test_each_has_its_own_names(self) -> None:
        registry = self.both()
        self.assertEqual(await self.pulled(registry, "docker.io/hello"), self.upstream)
        self.assertEqual(await self.pulled(registry, "quay.io/hello"), self.other)

    async def test_the_first_that_has_it_answers_and_is_remembered(self) -> None:
        registry = self.both(freshness="0s", negative_freshness="0s")
        self.assertEqual(await self.pulled(registry), self.upstream)
        self.hub.images.remove(NAME, "latest")
        self.assertEqual(await self.status(registry, "manifests/gone"), 404)
        self.assertEqual(await self.status(registry, f"manifests/{self.other}"), 404)
        self.assertEqual(await self.pulled(registry), self.upstream)
        self.assertEqual(self.second.requests, [])

    async def test_a_definite_no_leads_on_to_the_next(self) -> None:
        for refusal in (None, Status(404), Status(403), Status(410)):
            registry = self.both()
            if refusal is None:
                self.hub.images.remove(NAME)
            else:
                self.hub.faults.add(refusal, on=MANIFESTS, method="*", times=None)
            self.assertEqual(await self.pulled(registry), self.other)
            # It is that one's from now on, whatever the first one has.
            self.hub.faults.clear()
            self.hub.images.add_image(NAME, "latest", self.layer)
            self.hub.images.add_image(NAME, "more", self.layer)
            self.hub.forget_requests()
            self.assertEqual(await self.pulled(registry), self.other)
            self.assertEqual(await self.status(registry, "manifests/more"), 404)
            tags = await registry.request("GET", "/v2/hello/tags/list")
            self.assertEqual(tags.body, b'{"name":"hello","tags":["latest"]}')
            blob = await registry.request("GET", f"/v2/hello/blobs/{Digest.of(b'other')}")
            self.assertEqual((blob.status, blob.body), (200, b"other"))
            self.assertEqual(self.hub.requests, [])

    async def test_an_error_stops_there(self) -> None:
        registry = self.both()
        # 404 for a client that may push, as this one: nobody is known to have the name.
        for fault in (Status(503), Status(429, retry_after="1")):
            self.hub.faults.add(fault, on=MANIFESTS, method="*", times=None)
            self.assertEqual(await self.status(registry, "manifests/latest"), 404)
            self.hub.faults.clear()
        await self.hub.stop()
        fresh = self.both()
        self.assertEqual(await self.status(fresh, "manifests/latest"), 404)
        self.assertEqual(self.second.requests, [])

    async def test_a_page_for_people_gives_the_name_to_nobody(self) -> None:
        for status in (403, 404, 410):
            for media_type in ("text/html", "text/plain"):
                registry = self.both()
                self.hub.faults.add(Page(status, media_type), on=MANIFESTS, method="*", times=None)
                # 404 for a client that may push, as this one; it is not remembered.
                self.assertEqual(await self.status(registry, "manifests/latest"), 404)
                self.hub.faults.clear()
                self.assertEqual(await self.pulled(registry), self.upstream)
        self.assertEqual(self.second.requests, [])

    async def test_one_that_is_not_asked_has_not_said_no(self) -> None:
        hubs = {"docker.io": self.hub, "quay.io": self.second}
        toml = side_by_side(hubs).replace("retries", "offline = true\nretries", 1)
        registry = Served.start(self, toml)
        answer = await registry.request("GET", "/v2/hello/manifests/latest")
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN", "offline")
        self.assertEqual([*self.hub.requests, *self.second.requests], [])

    async def test_nobody_takes_over_a_name_of_one_that_is_pulled_from_no_longer(self) -> None:
        first = self.both()
        self.assertEqual(await self.pulled(first), self.upstream)
        hubs = {"docker.io": self.hub, "quay.io": self.second}
        toml = side_by_side(hubs, {"pull": ["local", "quay.io"]})
        registry = Served.start(self, toml, data=first.data)
        answer = await registry.request("GET", "/v2/hello/manifests/latest")
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN")
        self.assertEqual(self.second.requests, [])

    async def test_one_that_is_denied_in_the_first_is_looked_for_in_the_second(self) -> None:
        toml = side_by_side({"docker.io": self.hub, "quay.io": self.second}, deny=[NAME])
        registry = Served.start(self, toml)
        self.assertEqual(await self.pulled(registry), self.other)
        self.assertEqual(self.hub.requests, [])

    async def test_what_neither_has_is_404(self) -> None:
        registry = self.both()
        answer = await registry.request("GET", "/v2/nothing/manifests/latest")
        self.assert_refused(answer, 404, "MANIFEST_UNKNOWN")
        self.assertGreater(min(self.hub.count("GET"), self.second.count("GET")), 0)

    async def test_each_upstream_has_to_send_what_it_says_it_has(self) -> None:
        registry = self.both()
        path = f"blobs/{Digest.of(self.layer)}"
        self.assertEqual(await self.status(registry, path, name="docker.io/hello"), 200)
        await self.filled(registry, Digest.of(self.layer))
        self.assertEqual(await self.status(registry, path, name="quay.io/hello"), 404)
        self.second.images.add_blob(self.layer, "hello")
        self.second.forget_requests()
        answer = await registry.request("GET", f"/v2/quay.io/hello/{path}")
        self.assertEqual((answer.status, answer.body), (200, self.layer))
        self.assertEqual(self.second.count("GET", CDN), 1)
