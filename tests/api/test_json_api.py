"""The API for operators: answers are what openapi.json says, for those who may have them."""

from __future__ import annotations

import json
import re
import shlex
from base64 import urlsafe_b64encode
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import artifactd
from artifactd.oci.errors import RegistryError
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from artifactd.web.json_api import JsonApi
from tests.api.case import ApiTestCase
from tests.api.described import document, operations, problems
from tests.api.guarded import CONFIG, RULES, GuardedCase, basic
from tests.api.served import descriptor, image_index, image_manifest
from tests.process import Answer

API = "/api/v1"
IMAGES = f"{API}/images"
ABSENT = Digest.of(b"absent")


class DocumentTests(ApiTestCase):
    async def test_every_route_is_described_and_nothing_else(self) -> None:
        routes = {
            (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
            for rule in JsonApi.app.url_map.iter_rules()
            for method in (rule.methods or ())
            if method not in ("HEAD", "OPTIONS")
        }
        self.assertEqual(operations(), routes)

    async def test_it_is_served_to_everybody_once(self) -> None:
        answer = await self.accepted(200, "GET", f"{API}/openapi.json")
        self.assertEqual("3.1.0", json.loads(answer.body)["openapi"])
        headers = {"If-None-Match": answer.header("ETag") or ""}
        await self.accepted(304, "GET", f"{API}/openapi.json", None, headers)


class PageTests(ApiTestCase):
    """docs/api.md."""

    async def test_every_example_is_answered(self) -> None:
        one = str(await self.registry.push_image("app", "v1", b"one"))
        two = str(await self.registry.push_image("app", "old", b"two"))
        page = Path(artifactd.__file__).parents[1] / "docs" / "api.md"
        examples = re.findall(r"^curl .+$", page.read_text("utf-8"), re.MULTILINE)
        self.assertGreater(len(examples), 20)
        for example in examples:
            words = shlex.split(example, comments=True)
            method, headers = "GET", {}
            uri = words[-1].removeprefix("http://127.0.0.1:5000")
            for option, value in pairwise(words):
                if option == "-X":
                    method = value
                elif option == "-H":
                    name, _, text = value.partition(": ")
                    headers[name] = text.replace("sha256:…", one)
            uri = uri.replace("sha256:…", two if method == "DELETE" else one)
            answer = await self.registry.request(method, uri, None, headers)
            self.assertIn(answer.status, (200, 204), (example, answer.body))
            self.assertEqual([], problems(method, uri, answer), example)

    def test_its_table_of_errors_is_that_of_the_document(self) -> None:
        page = Path(artifactd.__file__).parents[1] / "docs" / "api.md"
        rows = re.findall(r"^\| (\d+) \| (`\w+`(?:, `\w+`)*) \|", page.read_text("utf-8"), re.M)
        described = {int(each) for each in document()["components"]["responses"]}
        self.assertEqual({each for each in described if each >= 400}, {int(n) for n, _ in rows})
        kinds = {(each.status, each.code) for each in errors(RegistryError)}
        for status, codes in rows:
            for code in re.findall(r"\w+", codes):
                self.assertIn((int(status), code), kinds)

    def test_every_operation_names_the_errors_that_any_request_may_get(self) -> None:
        for method, path in operations() - {("GET", f"{API}/openapi.json")}:
            responses = document()["paths"][path][method.lower()]["responses"]
            for status in ("400", "401", "403", "429", "500", "502", "503"):
                self.assertEqual(
                    {"$ref": f"#/components/responses/{status}"}, responses.get(status), path
                )


def errors(kind: type[RegistryError]) -> list[type[RegistryError]]:
    """A class of errors, and all its subclasses."""
    return [kind, *(each for below in kind.__subclasses__() for each in errors(below))]


class JsonApiCase(ApiTestCase):
    """Validates every answer."""

    async def call(self, status: int, method: str, path: str, **headers: str) -> Any:
        """Ask; the JSON of an answer that is as the document says."""
        answer = await self.answer(status, method, path, **headers)
        return json.loads(answer.body) if answer.body else None

    async def answer(self, status: int, method: str, path: str, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.registry.request(method, f"{API}{path}", None, named)
        self.assertEqual(status, answer.status, answer.body)
        self.assertEqual([], problems(method, f"{API}{path}", answer))
        return answer

    async def pages(self, path: str, name: str) -> list[Any]:
        """The entries of all pages, by both ways to the next one."""
        found: list[Any] = []
        mark = "&" if "?" in path else "?"
        following: str | None = path
        while following is not None:
            answer = await self.answer(200, "GET", following)
            page = json.loads(answer.body)
            found += page[name]
            link, following = answer.header("Link"), None
            self.assertEqual(page["next"] is None, link is None)
            if page["next"] is not None:
                following = f"{path}{mark}after={page['next']}"
                self.assertEqual(f'<{API}{following}>; rel="next"', unquote(link or ""))
        return found


class ReadingTests(JsonApiCase):
    async def test_images(self) -> None:
        self.assertEqual({"images": [], "next": None}, await self.call(200, "GET", "/images"))
        for name in ("app", "team/app", "team/b", "other"):
            await self.registry.push_image(name, "v1", b"layer")
        everything = await self.pages("/images?limit=1", "images")
        names = ["local/app", "local/other", "local/team/app", "local/team/b"]
        self.assertEqual(names, [each["image"] for each in everything])
        for query, expected in (
            ("search=app&limit=1", [names[0], names[2]]),
            ("search=*/team/[b]&limit=2", [names[3]]),
            ("prefix=local/team/&limit=1", names[2:]),
            ("search=nothing", []),
        ):
            found = await self.pages(f"/images?{query}", "images")
            self.assertEqual(expected, [each["image"] for each in found])

    async def test_tags_of_an_image_whose_name_has_the_words_of_endpoints(self) -> None:
        name = "images/tags/history/manifests/deleted"
        for tag in ("v1", "v2", "w"):
            await self.registry.push_image(name, tag, b"layer")
        for given in (name, f"local/{name}"):
            tags = await self.pages(f"/images/{given}/tags?sort=-moved&search=v*&limit=1", "tags")
            self.assertEqual(["v2", "v1"], [each["tag"] for each in tags])
            await self.call(200, "GET", f"/images/{given}/tags/v1")
            await self.call(200, "GET", f"/images/{given}/manifests/v1")
            self.assertEqual(3, len(await self.pages(f"/images/{given}/history", "history")))
            await self.call(200, "GET", f"/images/{given}/deleted")

    async def test_a_manifest_as_a_tree(self) -> None:
        config = json.dumps({"os": "linux", "config": {"Labels": {"a": "<script>"}}}).encode()
        for blob in (config, b"layer"):
            await self.registry.push_blob("app", blob)
        child = image_manifest(config, b"layer", annotations={"x": "y"})
        await self.registry.push_manifest("app", "v1", child)
        index = image_index(child)
        answer = await self.registry.request(
            "PUT", "/v2/app/manifests/all", index, {"Content-Type": OCI_INDEX}
        )
        self.assertEqual(201, answer.status)
        subject = descriptor(index, OCI_INDEX)
        for number in range(3):
            signature = image_manifest(
                config, artifactType="text/sig", subject=subject, annotations={"n": str(number)}
            )
            await self.registry.push_manifest("app", str(Digest.of(signature)), signature)
        shown = await self.call(200, "GET", "/images/app/manifests/all")
        (entry,) = shown["entries"]
        self.assertEqual({"a": "<script>"}, entry["manifest"]["config"]["labels"])
        self.assertEqual(3, len(shown["referrers"]))
        path = f"/images/app/referrers/{Digest.of(index)}"
        listed = await self.pages(f"{path}?limit=1&artifactType=text/sig", "referrers")
        self.assertEqual({"0", "1", "2"}, {each["annotations"]["n"] for each in listed})
        self.assertEqual([], await self.pages(f"{path}?artifactType=text/x", "referrers"))
        await self.call(200, "HEAD", "/images/app/manifests/all")

    async def test_long_annotations_shorten_the_pages_of_referrers(self) -> None:
        await self.registry.push_blob("app", b"{}")
        subject = descriptor(b"nothing", OCI_INDEX)
        for number in range(5):
            signature = image_manifest(
                b"{}", subject=subject, annotations={"long": f"{number}" + 1_200_000 * "a"}
            )
            await self.registry.push_manifest("app", str(Digest.of(signature)), signature)
        path = f"/images/app/referrers/{Digest.of(b'nothing')}"
        listed = await self.pages(path, "referrers")
        self.assertEqual(5, len({each["digest"] for each in listed}))
        page = await self.call(200, "GET", path)
        self.assertLess(len(page["referrers"]), 5)

    async def test_the_registry_itself(self) -> None:
        await self.registry.push_image("app", "v1", b"layer")
        usage = await self.call(200, "GET", "/usage")
        (local,) = [each for each in usage["repositories"] if each["repository"] == "local"]
        self.assertEqual((1, 1), (local["images"], local["tags"]))
        status = await self.call(200, "GET", "/status")
        self.assertEqual(0, status["requests"])
        upstreams = (await self.call(200, "GET", "/upstreams"))["upstreams"]
        self.assertEqual(status["remotes"], upstreams)
        self.assertNotEqual([], upstreams)
        told = await self.call(200, "GET", "/access?who=anyone&action=pull&image=app")
        self.assertTrue(all(each["granted"] for each in told["decisions"]))

    async def test_what_the_client_has_is_not_sent_again(self) -> None:
        digest = await self.registry.push_image("app", "v1", b"layer")
        paths = (
            *("/images", "/images/app/tags", "/images/app/tags/v1", "/images/app/manifests/v1"),
            *("/images/app/history", "/images/app/deleted", "/deleted", "/usage"),
            f"/images/app/referrers/{digest}",
        )
        tags = {path: (await self.answer(200, "GET", path)).header("ETag") or "" for path in paths}
        for path, tag in tags.items():
            answer = await self.answer(304, "GET", path, If_None_Match=f"W/{tag}")
            self.assertEqual((b"", "no-cache"), (answer.body, answer.header("Cache-Control")))
        await self.registry.push_image("app", "v2", b"layer")
        await self.call(204, "DELETE", "/images/app/tags/v1")
        for path in ("/images", "/images/app/tags", "/images/app/history", "/deleted", "/usage"):
            await self.call(200, "GET", path, If_None_Match=tags[path])

    async def test_what_makes_no_sense_is_refused(self) -> None:
        await self.registry.push_image("app", "v1", b"layer")
        for path in (
            *("/images?limit=0", "/images?limit=1001", "/images?limit=x", "/images?limit=%C2%B2"),
            *("/images?after=x", "/deleted?after=x", "/images/app/tags?after=x"),
            *("/images/app/tags?sort=size", "/images/app/history?after=x"),
            *("/access", "/access?who=a&action=fly&image=app", "/images/app/deleted?after=WzFd"),
            *(f"/images?search={513 * '%5B'}", f"/images/app/tags?search={513 * 'a'}"),
        ):
            await self.refused(400, "UNSUPPORTED", "GET", f"{API}{path}")
        for path, place in (
            ("/deleted", [1.0, 10**30, "a", "tag"]),
            ("/images/app/deleted", [1.0, -(10**30), "a", "tag"]),
            ("/images/app/history", [10**30]),
        ):
            after = urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")
            await self.refused(400, "UNSUPPORTED", "GET", f"{API}{path}?after={after}")
        for text in ("%00", "%00*", "%01", "%C3%A9", "%EE%80%80", "%FF", "%ED%A0%80", "[", "[%5D"):
            for query in (f"prefix=local/{text}", f"search=local/{text}"):
                found = await self.call(200, "GET", f"/images?{query}")
                self.assertEqual([], found["images"])
            await self.call(200, "GET", f"/images/app/tags?search={text}")
        for path in ("/images/app/tags/-", "/images/app/history?tag=-", "/images/app/manifests/x:"):
            await self.refused(400, "MANIFEST_INVALID", "GET", f"{API}{path}")
        await self.refused(400, "NAME_INVALID", "GET", f"{IMAGES}/APP/tags")
        for path in ("absent/tags", "absent/tags/v1", "absent/manifests/v1", "absent/history"):
            await self.refused(404, "NAME_UNKNOWN", "GET", f"{IMAGES}/{path}")
        for path in ("app/tags/v2", "app/manifests/v2", f"app/manifests/{ABSENT}"):
            await self.refused(404, "MANIFEST_UNKNOWN", "GET", f"{IMAGES}/{path}")
        await self.refused(404, "NAME_UNKNOWN", "GET", f"{API}/nothing")
        await self.refused(405, "UNSUPPORTED", "DELETE", f"{IMAGES}/app/tags")


class ChangingTests(JsonApiCase):
    toml = """
        [repository.local]
        kind = "local"

        [repository."docker.io"]
        kind = "remote"
        upstream = "http://127.0.0.1:1"

        [repository.kept]
        kind = "local"
        immutable_tags = ["v*"]
        """

    async def tag(self, name: str, tag: str) -> str:
        shown: dict[str, str] = await self.call(200, "GET", f"/images/{name}/tags/{tag}")
        return shown["digest"]

    async def test_a_tag_is_pointed_back_and_copied(self) -> None:
        old = str(await self.registry.push_image("app", "v1", b"old"))
        new = str(await self.registry.push_image("app", "v1", b"new"))
        told = await self.call(200, "PUT", f"/images/app/tags/v1?digest={old}")
        self.assertEqual({"image": "local/app", "tag": "v1", "digest": old, "before": new}, told)
        await self.call(200, "PUT", f"/images/app/tags/v2?digest={new}")
        self.assertEqual((old, new), (await self.tag("app", "v1"), await self.tag("app", "v2")))
        await self.call(200, "PUT", "/images/app/tags/v1?at=2999-01-01T00:00:00Z")
        self.assertEqual(old, await self.tag("app", "v1"))

    async def test_a_tag_is_pointed_where_it_was(self) -> None:
        old = str(await self.registry.push_image("app", "v1", b"old"))
        await self.call(204, "DELETE", "/images/app/tags/v1")
        path = "/images/app/tags/v1"
        await self.call(404, "PUT", f"{path}?at=2000-01-01")
        await self.call(404, "PUT", f"{path}?at=2999-01-01T00:00:00Z")
        await self.call(404, "PUT", f"{path}?digest={ABSENT}")
        await self.call(404, "PUT", f"/images/absent/tags/v1?digest={old}")
        for query in ("", "?at=now", f"?at=2000-01-01&digest={old}", "?digest=x"):
            await self.call(400, "PUT", path + query)
        moved = await self.pages("/images/app/history?tag=v1", "history")
        self.assertEqual([None, old], [each["after"] for each in moved])
        told = await self.call(200, "PUT", f"{path}?digest={old}")
        self.assertIsNone(told["before"])
        self.assertEqual(old, await self.tag("app", "v1"))

    async def test_only_what_the_client_has_seen_is_changed(self) -> None:
        old = str(await self.registry.push_image("app", "v1", b"old"))
        new = str(await self.registry.push_image("app", "v1", b"new"))
        seen = (await self.answer(200, "GET", "/images/app/tags/v1")).header("ETag") or ""
        self.assertEqual(f'"{new}"', seen)
        path, wrong = "/images/app/tags/v1", f'"{old}"'
        before = self.state()
        for method, target in (("DELETE", path), ("PUT", f"{path}?digest={old}")):
            await self.call(412, method, target, If_Match=wrong)
            await self.call(412, method, target, If_None_Match="*")
        await self.call(412, "DELETE", f"/images/app/manifests/{new}", If_Match=wrong)
        answer = await self.registry.request(
            "DELETE", "/v2/app/manifests/v1", None, {"If-Match": wrong}
        )
        self.assert_error(answer, 412, "DENIED")
        self.assertEqual(before, self.state())
        await self.call(200, "PUT", f"{path}?digest={old}", If_Match=seen)
        await self.call(204, "DELETE", path, If_Match=wrong)
        await self.call(204, "DELETE", f"/images/app/manifests/{new}", If_Match=seen)

    async def test_what_was_deleted_is_listed_and_brought_back(self) -> None:
        one = str(await self.registry.push_image("app", "v1", b"one"))
        two = str(await self.registry.push_image("app", "v2", b"two"))
        await self.call(204, "DELETE", "/images/app/tags/v1")
        await self.call(204, "DELETE", f"/images/local/app/manifests/{two}")
        await self.call(404, "DELETE", "/images/app/tags/v1")
        await self.call(400, "DELETE", "/images/app/manifests/v1")
        of_image = await self.pages("/images/app/deleted?limit=1", "deleted")
        self.assertEqual(of_image, await self.pages("/deleted?limit=1", "deleted"))
        self.assertEqual(
            {("tag", "v1", one), ("tag", "v2", two), ("manifest", two, two)},
            {(each["kind"], each["name"], each["digest"]) for each in of_image},
        )
        told = await self.call(200, "POST", "/images/app/deleted?reference=v1")
        self.assertEqual((["v1"], []), (told["tags"], told["manifests"]))
        told = await self.call(200, "POST", "/images/app/deleted")
        self.assertEqual((["v2"], [two]), (told["tags"], told["manifests"]))
        await self.call(404, "POST", "/images/app/deleted")
        await self.call(404, "POST", "/images/absent/deleted?reference=v1")
        await self.call(400, "POST", "/images/app/deleted?reference=-")
        self.assertEqual([], await self.pages("/deleted", "deleted"))

    async def test_immutable_tags_are_neither_moved_nor_deleted(self) -> None:
        old = str(await self.registry.push_image("kept/app", "v1", b"old"))
        new = str(await self.registry.push_image("kept/app", "latest", b"new"))
        path = "/images/kept/app/tags/v1"
        for method, target in (
            ("PUT", f"{path}?digest={new}"),
            ("DELETE", path),
            ("DELETE", f"/images/kept/app/manifests/{old}"),
        ):
            told = await self.call(403, method, target)
            self.assertEqual("v*", told["errors"][0]["detail"]["immutable_tags"])
        await self.call(200, "PUT", f"{path}?digest={old}")
        await self.call(200, "PUT", f"/images/kept/app/tags/v2?digest={old}")

    async def test_a_name_without_a_repository_never_means_an_upstream(self) -> None:
        for path in ("docker.io/library/app/tags/v1", f"docker.io/library/app/manifests/{ABSENT}"):
            told = await self.call(404, "DELETE", f"/images/{path}")
            self.assertEqual("MANIFEST_UNKNOWN", told["errors"][0]["code"])
        for method, path in (("PUT", f"tags/v1?digest={ABSENT}"), ("POST", "deleted")):
            await self.call(405, method, f"/images/docker.io/library/app/{path}")

    async def test_a_change_needs_a_client_on_this_machine_without_accounts(self) -> None:
        digest = await self.registry.push_image("app", "v1", b"layer")
        for method, path in (
            ("DELETE", "/images/app/tags/v1"),
            ("DELETE", f"/images/app/manifests/{digest}"),
            ("PUT", f"/images/app/tags/v1?digest={digest}"),
            ("POST", "/images/app/deleted"),
        ):
            await self.call(403, method, path, Origin="http://evil.example")
        for path in ("/status", "/upstreams", "/access?who=a&action=pull&image=app"):
            await self.call(403, "GET", path, X_Forwarded_For="192.0.2.1")


class AccessTests(GuardedCase):
    """alice may do everything; bob may pull what the team has, writer push there."""

    async def told(self, status: int, who: str | None, method: str, path: str) -> Any:
        answer = await self.ask(method, f"{API}{path}", who)
        self.assertEqual(status, answer.status, answer.body)
        self.assertEqual([], problems(method, f"{API}{path}", answer))
        return json.loads(answer.body) if answer.body else None

    async def names(self, who: str | None) -> list[str]:
        return [each["image"] for each in (await self.told(200, who, "GET", "/images"))["images"]]

    async def test_lists_show_what_the_caller_may_pull(self) -> None:
        await self.have("team/app", "other/app", "public/app")
        for name in ("team/app", "other/app", "public/app"):
            await self.told(204, "alice", "DELETE", f"/images/{name}/tags/v1")
        everything = ["local/other/app", "local/public/app", "local/team/app"]
        self.assertEqual(everything, await self.names("alice"))
        self.assertEqual(everything[1:], await self.names("bob"))
        self.assertEqual(everything[1:2], await self.names(None))
        for who, count in (("alice", 3), ("bob", 2), (None, 1)):
            listed = (await self.told(200, who, "GET", "/deleted"))["deleted"]
            self.assertEqual(count, len(listed))
        found = await self.told(200, "bob", "GET", "/images?search=other")
        self.assertEqual([], found["images"])
        await self.told(401, None, "GET", "/images?search=team")

    async def test_who_has_changed_something_is_not_told_to_everybody(self) -> None:
        await self.have("public/app")
        await self.told(204, "alice", "DELETE", "/images/public/app/tags/v1")
        await self.have("public/app")
        of = "/images/public/app"
        for path in (f"{of}/tags", f"{of}/tags/v1", f"{of}/history", f"{of}/deleted", "/deleted"):
            self.assertIn("'actor': 'alice@", str(await self.told(200, "bob", "GET", path)))
            told = str(await self.told(200, None, "GET", path))
            self.assertIn("'actor': ''", told, path)
            self.assertNotIn("alice", told, path)

    async def test_what_images_have_in_common_is_for_callers_that_may_pull_them_all(self) -> None:
        await self.have("team/app", "other/app")
        for who, own, shared in (("alice", 0, [1, 1]), ("bob", None, [None, None])):
            (seen,) = (await self.told(200, who, "GET", "/images?search=team/app"))["images"]
            self.assertEqual(own, seen["own"], who)
            tree = await self.told(200, who, "GET", "/images/team/app/manifests/v1")
            self.assertEqual(shared, [each["shared"] for each in tree["entries"]], who)

    async def test_an_image_that_the_caller_may_not_pull_is_as_good_as_absent(self) -> None:
        await self.have("other/app", "team/app")
        for path in (
            "tags",
            "tags/v1",
            "manifests/v1",
            "history",
            "deleted",
            f"referrers/{ABSENT}",
        ):
            for name in ("other/app", "other/absent"):
                await self.told(401, None, "GET", f"/images/{name}/{path}")
                await self.told(403, "bob", "GET", f"/images/{name}/{path}")
            await self.told(200, "bob", "GET", f"/images/team/app/{path}")

    async def test_a_right_at_an_upstream_is_none_at_the_local_image_of_the_same_name(self) -> None:
        await self.have("library/app")
        answer = await self.ask("GET", f"{IMAGES}/library/app/tags", "bob")
        self.assertEqual(403, answer.status)

    async def test_changes_need_their_rights(self) -> None:
        await self.have("team/app")
        digest = json.loads((await self.ask("GET", f"{IMAGES}/team/app/tags/v1", "bob")).body)
        point = f"/images/team/app/tags/v2?digest={digest['digest']}"
        for who, status in ((None, 401), ("bob", 403), ("writer", 200)):
            told = await self.told(status, who, "PUT", point)
            self.assertNotIn("before", told)  # writer may not pull
        told = await self.told(403, "writer", "PUT", "/images/team/app/tags/v1?at=2999-01-01")
        self.assertNotIn("sha256", str(told))
        self.assertIn("before", await self.told(200, "alice", "PUT", point))
        for who, status in ((None, 401), ("bob", 403), ("writer", 403), ("alice", 204)):
            await self.told(status, who, "DELETE", "/images/team/app/tags/v2")
        back = "/images/team/app/deleted?reference=v2"
        for who, status in ((None, 401), ("bob", 403), ("writer", 200)):
            told = await self.told(status, who, "POST", back)
        self.assertEqual({"image": "local/team/app"}, told)

    async def test_a_tag_that_is_taken_is_not_told_to_a_caller_that_may_not_pull(self) -> None:
        await self.have("team/app")
        await self.told(204, "alice", "DELETE", "/images/team/app/tags/v1")
        other = image_manifest(CONFIG)
        pushed = {"Content-Type": OCI_MANIFEST}
        await self.ask("PUT", "/v2/team/app/manifests/v1", "alice", other, pushed)
        back = "/images/team/app/deleted?reference=v1"
        self.assertNotIn("sha256", str(await self.told(405, "writer", "POST", back)))
        told = await self.told(405, "alice", "POST", back)
        self.assertEqual(str(Digest.of(other)), told["errors"][0]["detail"]["current"])

    async def test_the_registry_itself_is_for_administrators(self) -> None:
        for path in ("/usage", "/status", "/upstreams", "/access?who=bob&action=pull&image=a"):
            afar = {"X-Forwarded-For": "192.0.2.1"}
            for who, status in ((None, 401), ("bob", 403), ("alice", 200)):
                answer = await self.ask("GET", f"{API}{path}", who, headers=afar)
                self.assertEqual(status, answer.status, path)
                self.assertEqual([], problems("GET", f"{API}{path}", answer))

    async def test_which_rule_grants_something(self) -> None:
        path = "/access?who=bob&action=pull&image="
        (decision,) = (await self.told(200, "alice", "GET", f"{path}local/team/app"))["decisions"]
        self.assertEqual(
            (True, [False, True, False, False]),
            (
                decision["granted"],
                [each["who"] and each["may"] and each["images"] for each in decision["rules"]],
            ),
        )
        several = (await self.told(200, "alice", "GET", f"{path}team/app"))["decisions"]
        self.assertIn("local/team/app", [each["image"] for each in several])
        (decision,) = (await self.told(200, "alice", "GET", f"{path}*"))["decisions"]
        self.assertFalse(decision["granted"])
        told = await self.told(400, "alice", "GET", "/access?who=carol&action=pull&image=a")
        self.assertIn("no such user", told["errors"][0]["message"])

    async def test_a_cookie_is_no_login(self) -> None:
        await self.have("team/app")
        headers = {"Cookie": "session=alice; artifactd=alice"}
        for method, path in (
            ("DELETE", "/images/team/app/tags/v1"),
            ("GET", "/images/team/app/tags"),
        ):
            answer = await self.ask(method, f"{API}{path}", headers=headers)
            self.assertEqual(401, answer.status)

    async def test_caches_keep_an_answer_for_one_login_alone(self) -> None:
        await self.have("team/app")
        answer = await self.ask("GET", f"{IMAGES}/team/app/tags", "bob")
        self.assertEqual("private, no-cache", answer.header("Cache-Control"))
        self.assertEqual("Authorization", answer.header("Vary"))


class ProofAccessTests(GuardedCase):
    """alice may pull everything, but has no proof of access at an upstream that wants it."""

    toml = """
        [repository.local]
        kind = "local"

        [repository."docker.io"]
        kind = "remote"
        upstream = "http://127.0.0.1:1"
        username = "us"
        password = "secret"
        proof_of_access = true
        """

    async def test_what_images_have_in_common_is_told_to_nobody(self) -> None:
        await self.have("team/app")
        (seen,) = json.loads((await self.ask("GET", IMAGES, "alice")).body)["images"]
        self.assertIsNone(seen["own"])

    async def test_a_login_that_an_upstream_can_not_check_fails(self) -> None:
        login = basic("docker.io/us", "secret")
        answer = await self.registry.request("GET", IMAGES, None, login)
        self.assertEqual([], problems("GET", IMAGES, answer))
        self.assertEqual(502, answer.status, answer.body)


class CreatingTests(GuardedCase):
    """writer may only create."""

    rules = RULES.replace('may = ["push"]', 'may = ["create"]')

    async def test_a_tag_that_is_there_is_not_moved(self) -> None:
        await self.have("team/app")
        answer = await self.ask("GET", f"{IMAGES}/team/app/tags/v1", "alice")
        digest = json.loads(answer.body)["digest"]
        path = f"{IMAGES}/team/app/tags"
        self.assertEqual(200, await self.status("PUT", f"{path}/v2?digest={digest}", "writer"))
        other = image_manifest(CONFIG)
        pushed = f"/v2/team/app/manifests/{Digest.of(other)}"
        answer = await self.ask("PUT", pushed, "alice", other, {"Content-Type": OCI_MANIFEST})
        self.assertEqual(201, answer.status, answer.body)
        uri = f"{path}/v2?digest={Digest.of(other)}"
        answer = await self.ask("PUT", uri, "writer")
        self.assertEqual([], problems("PUT", uri, answer))
        self.assertEqual("v2", self.assert_error(answer, 403, "DENIED")["reference"])
        self.assertEqual(200, await self.status("PUT", uri, "alice"))


class NoDefaultTests(JsonApiCase):
    toml = '[repository.local]\nkind = "local"\n[default]\npush = ""'

    async def test_a_name_that_belongs_to_no_repository_is_unknown(self) -> None:
        for method, path in (
            ("GET", "/access?who=anyone&action=push&image=app"),
            ("GET", "/images/app/tags"),
            ("GET", "/images/app/tags/v1"),
            ("PUT", f"/images/app/tags/v1?digest={ABSENT}"),
            ("DELETE", "/images/app/tags/v1"),
            ("GET", "/images/app/manifests/v1"),
            ("DELETE", f"/images/app/manifests/{ABSENT}"),
            ("GET", f"/images/app/referrers/{ABSENT}"),
            ("GET", "/images/app/history"),
            ("GET", "/images/app/deleted"),
            ("POST", "/images/app/deleted"),
        ):
            answer = await self.answer(404, method, path)
            self.assert_error(answer, 404, "NAME_UNKNOWN")


class QuotaTests(JsonApiCase):
    toml = """
        [default]
        push = "small"

        [repository.small]
        kind = "local"
        quota = "2KiB"
        """

    async def test_what_does_not_fit_any_more_is_not_brought_back(self) -> None:
        await self.registry.push_image("small/app", "v1", 1000 * b"a")
        digest = (await self.call(200, "GET", "/images/small/app/tags/v1"))["digest"]
        await self.call(204, "DELETE", f"/images/small/app/manifests/{digest}")
        blob = Digest.of(1000 * b"a")
        await self.accepted(202, "DELETE", f"/v2/small/app/blobs/{blob}")
        await self.registry.push_image("small/app", "v2", 1200 * b"b")
        told = await self.call(403, "POST", "/images/small/app/deleted?reference=v1")
        self.assertEqual("DENIED", told["errors"][0]["code"])
        await self.call(404, "GET", "/images/small/app/tags/v1")
