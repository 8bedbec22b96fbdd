"""Names and routing: which image a path is about, and which paths are about none."""

from __future__ import annotations

import json

from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase, Connection
from tests.api.served import image_manifest

DIGEST = Digest.of(b"content")


class TwoNamesTests(ApiTestCase):
    """``hello`` and ``local/hello`` are one image."""

    async def test_what_is_pushed_by_one_name_is_pulled_by_the_other(self) -> None:
        for pushed, pulled in (("hello", "local/hello"), ("local/world", "world")):
            blob = await self.registry.push_blob(pushed, b"content")
            manifest = await self.registry.push_image(pushed, "v1")
            await self.accepted(200, "GET", f"/v2/{pulled}/blobs/{blob}")
            for reference in ("v1", manifest):
                await self.accepted(200, "GET", f"/v2/{pulled}/manifests/{reference}")

    async def test_answers_keep_the_name_that_was_asked_for(self) -> None:
        await self.registry.push_image("hello", "v1")
        for name in ("hello", "local/hello"):
            tags = await self.accepted(200, "GET", f"/v2/{name}/tags/list")
            self.assertEqual(json.loads(tags.body), {"name": name, "tags": ["v1"]})
            self.assertTrue((await self.start_upload(name)).startswith(f"/v2/{name}/blobs/"))

    async def test_a_session_of_one_name_goes_on_under_the_other(self) -> None:
        location = await self.start_upload("hello")
        other = location.replace("/hello/", "/local/hello/")
        await self.accepted(202, "PATCH", other, b"content")
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_a_name_of_one_component_is_never_a_repositorys(self) -> None:
        await self.registry.push_image("local", "v1")
        await self.accepted(200, "GET", "/v2/local/local/manifests/v1")


class NoDefaultTests(ApiTestCase):
    toml = '[repository.local]\nkind = "local"\n[default]\npush = ""'

    async def test_names_without_a_repository_are_unknown(self) -> None:
        await self.registry.push_image("local/hello", "v1")
        for name in ("hello", "team/hello", "local"):
            answer = await self.refused(404, "NAME_UNKNOWN", "GET", f"/v2/{name}/manifests/v1")
            self.assertIn(b"begin with one of local", answer.body)
            for method, path in (
                ("GET", f"blobs/{DIGEST}"),
                ("DELETE", f"blobs/{DIGEST}"),
                ("POST", "blobs/uploads/"),
                ("POST", f"blobs/uploads/?digest={DIGEST}"),
                ("POST", "blobs/uploads/?digest-algorithm=sha512"),
                ("POST", f"blobs/uploads/?mount={DIGEST}&from=local/hello"),
                ("PUT", "manifests/v1"),
                ("PUT", f"manifests/{DIGEST}?tag=v1"),
                ("DELETE", "manifests/v1"),
                ("GET", "tags/list"),
                ("GET", "tags/list?n=1&last=v0"),
            ):
                await self.refused(404, "NAME_UNKNOWN", method, f"/v2/{name}/{path}", b"")


class GrammarTests(ApiTestCase):
    async def test_names_of_the_grammar_are_accepted(self) -> None:
        for name in ("a", "0", "a.b_c__d---e/f", "a/b/c/d/e", "n" * 255, "/".join("a" * 128)):
            await self.registry.push_blob(name, b"content")
            await self.accepted(200, "GET", f"/v2/{name}/blobs/{DIGEST}")

    async def test_others_are_refused_whatever_is_asked(self) -> None:
        for name in ("A", "a..b", "a b", "n" * 256, "ä"):  # tests.oci has the whole grammar
            path = f"/v2/{_quoted(name)}"
            await self.refused(400, "NAME_INVALID", "GET", f"{path}/tags/list")
            await self.refused(400, "NAME_INVALID", "POST", f"{path}/blobs/uploads/")
            await self.refused(400, "NAME_INVALID", "GET", f"{path}/blobs/{DIGEST}")
            await self.refused(400, "NAME_INVALID", "PUT", f"{path}/manifests/v1", b"{}")
            await self.refused(400, "NAME_INVALID", "DELETE", f"{path}/manifests/v1")
            await self.refused(400, "NAME_INVALID", "GET", f"{path}/referrers/{DIGEST}")


class ComponentTests(ApiTestCase):
    """Images may be named like the endpoints."""

    async def test_each_endpoint_works_for_each_of_them(self) -> None:
        words = ("blobs", "manifests", "uploads", "tags", "referrers", "list", "v2", "_catalog")
        names = [f"{prefix}{word}" for word in words[:-1] for prefix in ("", "a/")]
        names += ["blobs/uploads", "a/blobs/uploads", "tags/list", "a/manifests/tags", "v2/blobs/a"]
        for name in names:
            await self.assert_works(name)
        answer = await self.accepted(200, "GET", "/v2/_catalog")
        self.assertEqual(json.loads(answer.body)["repositories"], sorted(names))

    async def assert_works(self, name: str) -> None:
        location = await self.start_upload(name)
        self.assertTrue(location.startswith(f"/v2/{name}/blobs/uploads/"), location)
        await self.accepted(202, "PATCH", location, b"con")
        await self.accepted(204, "GET", location)
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}", b"tent")
        await self.accepted(204, "DELETE", await self.start_upload(name))
        await self.accepted(200, "GET", f"/v2/{name}/blobs/{DIGEST}")
        await self.accepted(202, "DELETE", f"/v2/{name}/blobs/{DIGEST}")
        for tag in ("list", "uploads"):
            digest = await self.registry.push_image(name, tag)
            await self.accepted(200, "GET", f"/v2/{name}/manifests/{tag}")
            await self.accepted(202, "DELETE", f"/v2/{name}/manifests/{tag}")
            await self.accepted(200, "GET", f"/v2/{name}/manifests/{digest}")
        answer = await self.accepted(200, "GET", f"/v2/{name}/tags/list")
        self.assertEqual(json.loads(answer.body), {"name": name, "tags": []})
        await self.accepted(200, "GET", f"/v2/{name}/referrers/{DIGEST}")


class PathTests(ApiTestCase):
    """What never reaches a route, and so no file."""

    async def test_odd_paths_are_refused(self) -> None:
        await self.registry.push_image("hello", "v1")
        for path in (
            "/v2//tags/list",
            "/v2/hello//tags/list",
            "//v2/hello/tags/list",
            "/v2/hello/../hello/tags/list",
            "/v2/./hello/tags/list",
            "/v2/../../etc/passwd",
            "/v2/%2e%2e/tags/list",
            "/v2/hello/%2E/tags/list",
            "/v2/team%2Fhello/tags/list",
            "/v2/hello%2ftags/list",
            "/v2/hello/manifests/..%2f..%2fv1",
            "/v2/hello/manifests/a%5Cb",
            "/v2/hello/manifests/v1%00",
            "/v2/hello/manifests/%0d%0aX: y",
            "/v2/hello/manifests/%ff",
            "/v2/hello/blobs/uploads/%2e%2e",
        ):
            await self.refused(400, "NAME_INVALID", "GET", path.replace(" ", "%20"))

    async def test_bytes_that_no_client_should_send_are_refused(self) -> None:
        for path in (
            b"/v2/hell\xc3\xb6/tags/list",
            b"/v2/\xff/tags/list",
            b"/v2/a\x01/tags/list",
            b"/v2/a b/tags/list",
        ):
            connection = Connection(self, self.registry.port)
            await connection.send(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path)
            self.assert_error(await connection.answer(), 400, "UNSUPPORTED")

    async def test_a_target_may_name_scheme_and_host(self) -> None:
        await self.registry.push_image("hello", "v1", b"layer")
        target = f"http://127.0.0.1:{self.registry.port}/v2/hello/manifests/v1"
        self.assertEqual(200, (await self.registry.request("GET", target)).status)

    async def test_any_host_is_answered(self) -> None:
        for host in ("a..b", "x" * 80, "", "example.org:65535"):
            answer = await self.registry.request("GET", "/v2/", headers={"Host": host})
            self.assertEqual(200, answer.status)

    async def test_what_is_no_host_is_refused(self) -> None:
        for host in ("\xff", "a/b", "a b", "a@b", "a, b", "example.org:65536"):
            await self.refused(400, "UNSUPPORTED", "GET", "/v2/", None, {"Host": host})

    async def test_the_server_as_a_whole_is_no_endpoint(self) -> None:
        for method in ("OPTIONS", "GET"):
            answer = await self.registry.request(method, "*")
            self.assert_error(answer, 404, "NAME_UNKNOWN")

    async def test_an_encoded_letter_is_that_letter(self) -> None:
        await self.registry.push_image("hello", "v1")
        await self.accepted(200, "GET", "/v2/h%65llo/manifests/v%31")

    async def test_a_slash_too_many_at_the_end_leads_nowhere(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        location = await self.start_upload()
        hello = "/v2/hello"
        for path in (f"{hello}/tags/list", f"{hello}/manifests/v1", f"{hello}/manifests/{digest}"):
            await self.accepted(200, "GET", path)
            await self.refused(404, "NAME_UNKNOWN", "GET", f"{path}/")
            await self.refused(404, "NAME_UNKNOWN", "DELETE", f"{path}/")
        await self.refused(404, "NAME_UNKNOWN", "GET", f"{location}/")

    async def test_a_manifest_has_no_path_into_the_store(self) -> None:
        await self.registry.push_blob("hello", b"{}")
        for reference in ("..", "%2e%2e", "..%2fv1", "."):
            path = f"/v2/hello/manifests/{reference}"
            await self.refused(400, "NAME_INVALID", "PUT", path, image_manifest(b"{}"))


def _quoted(name: str) -> str:
    return name.replace(" ", "%20").replace("ä", "%C3%A4")
