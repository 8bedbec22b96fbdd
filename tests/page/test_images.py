"""What the page shows of images, to whom, in which order; names and labels that mean harm."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from artifactd.web.page import page as module
from tests.api.served import descriptor, image_manifest
from tests.page.case import GuardedPageCase, PageCase, links, text, words

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "{{ 7 * 7 }}",
    "\u202etxt.exe\x00\x1b[31m",
)
NAMES = re.compile(r'href="/ui/image/([^"?]+)"')


def shown(page: str) -> list[str]:
    """The images that a page lists."""
    return list(dict.fromkeys(NAMES.findall(page)))


def tags_of(page: str) -> list[str]:
    """The tags that a page lists, in its order."""
    return re.findall(r'scope="row" class="name"><a href="[^"]*">([^<]*)</a>', page)


class ListTests(PageCase):
    async def test_images_stand_under_the_paths_of_their_names(self) -> None:
        for name in ("team/web", "team/api", "hello"):
            await self.registry.push_image(name, "v1", b"layer")
        page = await self.browser.get("/")
        self.assertEqual(shown(text(page)), ["local/hello", "local/team/api", "local/team/web"])
        self.assertRegex(words(page), r"local/ local/ hello 1 .* local/team/ local/team/ api 1 ")

    async def test_a_search_finds_parts_of_names_and_patterns(self) -> None:
        for name in ("team/web", "team/api", "hello"):
            await self.registry.push_image(name, "v1", b"layer")
        for query, found in (
            ("eam/w", ["local/team/web"]),
            ("local/team/*", ["local/team/api", "local/team/web"]),
            ("*hello", ["local/hello"]),
            ("nothing", []),
        ):
            page = text(await self.browser.get(f"/?q={quote(query)}"))
            self.assertEqual(shown(page), found)
            self.assertIn(f'name="q" type="search" value="{query}"', page)
        for path in ("/", "/ui/image/hello"):
            self.assertEqual((await self.browser.get(f"{path}?q={513 * 'a'}")).status, 400)

    async def test_the_examples_of_a_search_find_something(self) -> None:
        await self.registry.push_image("team/api", "v1", b"layer")
        page = text(await self.browser.get("/"))
        (examples,) = re.findall(r'placeholder="Search, such as (\S+) or (\S+)"', page)
        for example in examples:
            found = await self.browser.get(f"/?q={quote(example)}")
            self.assertEqual(["local/team/api"], shown(text(found)))

    async def test_an_empty_registry_says_how_to_begin(self) -> None:
        page = words(await self.browser.get("/"))
        self.assertIn(f"docker push 127.0.0.1:{self.registry.port}/hello:1", page)

    async def test_a_long_list_has_pages(self) -> None:
        self.patch(module, "_ROWS", 2)
        names = ["a", "b", "c", "d", "e"]
        for name in names:
            await self.registry.push_image(name, "v1", b"layer")
        found, path = [], "/?q=local"
        while path:
            page = await self.browser.get(path)
            found += shown(text(page))
            path = next((each for each in links(page) if "after=" in each), "")
            if path:
                self.assertIn("q=local", path)
        self.assertEqual(found, [f"local/{name}" for name in names])
        self.assertEqual((await self.browser.get("/?after=x")).status, 400)


class TagTests(PageCase):
    async def test_tags_are_sorted_by_any_column_and_filtered(self) -> None:
        await self.registry.push_image("app", "b", b"x" * 10)
        await self.registry.push_image("app", "c", b"x" * 1000)
        await self.registry.push_image("app", "a", b"x" * 100)
        for query, found in (
            ("", "abc"),
            ("?sort=-name", "cba"),
            ("?sort=size", "bac"),
            ("?sort=-size", "cab"),
            ("?sort=-moved", "acb"),
            ("?sort=actor", "abc"),
            ("?sort=nonsense", "abc"),
            ("?q=a", "a"),
            ("?q=[bc]&sort=-name", "cb"),
            ("?q=z", ""),
        ):
            page = text(await self.browser.get(f"/ui/image/local/app{query}"))
            self.assertEqual("".join(tags_of(page)), found, query)
        self.assertIn(
            'aria-sort="descending"', text(await self.browser.get("/ui/image/app?sort=-size"))
        )
        for column in ("digest", "kind", "platforms", "pulled"):
            page = text(await self.browser.get(f"/ui/image/local/app?sort={column}"))
            self.assertEqual(sorted(tags_of(page)), ["a", "b", "c"])

    async def test_more_tags_than_can_be_sorted_are_sorted_by_name(self) -> None:
        self.patch(module, "SORTED_AT_ONCE", 2)
        for tag in "abc":
            await self.registry.push_image("app", tag, tag.encode())
        page = await self.browser.get("/ui/image/local/app?sort=-size")
        self.assertEqual(tags_of(text(page)), ["a", "b", "c"])
        self.assertIn("filter them to sort by size", words(page))

    async def test_one_that_is_not_there_is_told(self) -> None:
        for path in ("image/nothing", "history/nothing", "manifest/nothing", "image/UPPER"):
            answer = await self.browser.get(f"/ui/{path}")
            self.assertIn(answer.status, (400, 404), path)
            self.assertIn("That did not work", words(answer))
        await self.registry.push_image("app", "v1")
        for reference in ("v2", str(Digest.of(b"")), "sha256:x", "/"):
            answer = await self.browser.get(f"/ui/manifest/app?reference={reference}")
            self.assertIn(answer.status, (400, 404), reference)


class ManifestTests(PageCase):
    async def test_what_it_holds_what_keeps_it_and_how_to_pull_it(self) -> None:
        digest = await self.registry.push_image("team/app", "v1", b"x" * 3000, b"y" * 1000)
        page = await self.browser.get("/ui/manifest/local/team/app?reference=v1")
        told = words(page)
        host = f"127.0.0.1:{self.registry.port}"
        for expected in (
            str(digest),
            f"docker pull {host}/team/app:v1",
            f"podman pull --tls-verify=false {host}/team/app:v1",
            f"nerdctl --insecure-registry pull {host}/team/app:v1",
            f"ctr images pull --plain-http {host}/team/app:v1",
            "2.9 KiB",
            "1000 B",
            "layer 2",
            "Kind image application/vnd.oci.image.manifest.v1+json",
            "Pulled –",
        ):
            self.assertIn(expected, told)
        widths = [
            float(w) for w in re.findall(r'class="c\d" x="[^"]*" width="([^"]*)"', text(page))
        ]
        self.assertEqual(widths, [750, 250])
        page = await self.browser.get(f"/ui/manifest/team/app?reference={digest}")
        self.assertIn(f"docker pull {host}/team/app@{digest}", words(page))

    async def test_an_index_shows_the_images_of_its_platforms_and_its_referrers(self) -> None:
        children = []
        for architecture in ("amd64", "arm64"):
            config = json.dumps({"os": "linux", "architecture": architecture}).encode()
            for blob in (config, b"layer"):
                await self.registry.push_blob("app", blob)
            child = image_manifest(config, b"layer")
            await self.registry.push_manifest("app", str(Digest.of(child)), child)
            platform = {"os": "linux", "architecture": architecture}
            children.append(descriptor(child, OCI_MANIFEST, platform=platform))
        index = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
        ).encode()
        await self.registry.push_manifest("app", "v1", index, OCI_INDEX)
        signature = image_manifest(
            b"{}", subject=descriptor(index, OCI_INDEX), artifactType="application/x-signature"
        )
        await self.registry.push_blob("app", b"{}")
        await self.registry.push_manifest("app", str(Digest.of(signature)), signature)
        page = words(await self.browser.get("/ui/manifest/local/app?reference=v1"))
        for expected in ("linux/amd64 1 layer", "linux/arm64 1 layer", "x-signature"):
            self.assertIn(expected, page)

    async def test_history_and_deleted(self) -> None:
        first = await self.registry.push_image("app", "v1", b"1")
        second = await self.registry.push_image("app", "v1", b"2")
        await self.registry.request("DELETE", "/v2/app/manifests/v1")
        page = text(await self.browser.get("/ui/history/local/app"))
        rows = [re.findall(r'title="(sha256:\w{64})"', row) for row in page.split("<tr>")[2:]]
        old, new = str(first), str(second)
        self.assertEqual(rows, [[new], [old, new], [old]])
        self.assertEqual((await self.browser.get("/ui/history/app?tag=v2")).status, 200)
        page = words(await self.browser.get("/ui/deleted/local/app"))
        self.assertRegex(page, rf"tag v1 {str(second)[:19]} 20")


class RightsTests(GuardedPageCase):
    async def test_each_sees_what_they_may_pull_and_nobody_sees_more(self) -> None:
        await self.have("local/team/app", "local/public/app", "local/secret")
        everything = ["local/public/app", "local/secret", "local/team/app"]
        for who, may in (
            (None, ["local/public/app"]),
            ("bob", ["local/team/app", "local/public/app"]),
            ("alice", everything),
            ("nobody", ["local/public/app"]),
        ):
            browser = self.browser if who is None else await self.as_user(who)
            self.assertEqual(shown(text(await browser.get("/"))), sorted(may), who)
            self.assertEqual(
                shown(text(await browser.get("/?q=secret"))), sorted(set(may) & {"local/secret"})
            )
            for name in everything:
                for kind in ("image", "manifest", "history", "deleted"):
                    answer = await browser.get(f"/ui/{kind}/{name}?reference=v1")
                    if name in may:
                        self.assertEqual(answer.status, 200, (who, kind, name))
                    elif who is None:
                        self.assertEqual(answer.status, 303)
                        wanted = quote(f"/ui/{kind}/{name}?reference=v1", safe="")
                        self.assertEqual(answer.header("Location"), f"/ui/login?next={wanted}")
                    else:
                        self.assertEqual(answer.status, 403, (who, kind, name))

    async def test_what_images_have_in_common_is_for_callers_that_may_pull_them_all(self) -> None:
        await self.have("team/app", "other/app")
        for who, told in (("bob", False), ("alice", True)):
            browser = await self.as_user(who)
            for path, fact in (
                ("/", "Its own"),
                ("/ui/image/local/team/app", "that no other image has"),
                ("/ui/manifest/local/team/app?reference=v1", "1 image"),
            ):
                self.assertEqual(told, fact in text(await browser.get(path)), (who, path))

    async def test_who_has_changed_something_is_not_told_to_everybody(self) -> None:
        await self.have("public/app")
        await self.ask("DELETE", "/v2/public/app/manifests/v1", "alice")
        await self.have("public/app")
        bob = await self.as_user("bob")
        of = "local/public/app"
        for path in (f"image/{of}", f"image/{of}?sort=size", f"history/{of}", f"deleted/{of}"):
            self.assertIn("alice@", text(await bob.get(f"/ui/{path}")), path)
            self.assertNotIn("alice", text(await self.browser.get(f"/ui/{path}")), path)
        self.assertIn("alice@", text(await bob.get("/ui/deleted")))
        self.assertNotIn("alice", text(await self.browser.get("/ui/deleted")))

    async def test_a_refusal_does_not_tell_whether_an_image_exists(self) -> None:
        await self.have("local/secret")
        browser = await self.as_user("bob")
        pages = [await browser.get(f"/ui/image/local/{name}") for name in ("secret", "nothing")]
        self.assertEqual(*(each.body for each in pages))
        self.assertEqual(*(each.status for each in pages))

    async def test_buttons_are_for_those_who_may(self) -> None:
        await self.have("local/team/app")
        for who, count in (("bob", 0), ("alice", 1)):
            browser = await self.as_user(who)
            page = text(await browser.get("/ui/image/local/team/app"))
            self.assertEqual(page.count("Delete chosen"), count)
            page = text(await browser.get("/ui/history/local/team/app"))
            self.assertEqual(page.count('action="/ui/restore/local/team/app"'), count)


class HostileTests(PageCase):
    async def test_no_text_of_a_client_is_more_than_text(self) -> None:
        labels = {f"{each}{n}": each for n, each in enumerate(HOSTILE)}
        config = json.dumps(
            {
                "os": HOSTILE[0],
                "architecture": HOSTILE[1],
                "author": HOSTILE[1],
                "config": {"Labels": labels, "Env": list(HOSTILE), "Cmd": list(HOSTILE)},
                "history": [{"created_by": HOSTILE[0]}],
            }
        ).encode()
        for blob in (config, b"layer"):
            await self.registry.push_blob("app", blob)
        manifest = image_manifest(config, b"layer", annotations=labels, artifactType=HOSTILE[1])
        answer = await self.registry.request(
            "PUT", "/v2/app/manifests/v1", manifest, {"Content-Type": OCI_MANIFEST}
        )
        if answer.status != 201:  # a type that is none is refused before it is shown
            manifest = image_manifest(config, b"layer", annotations=labels)
            await self.registry.push_manifest("app", "v1", manifest)
        pages = [f"/?q={quote(each)}" for each in HOSTILE]
        pages += [f"/ui/image/app?q={quote(each)}&sort={quote(each)}" for each in HOSTILE]
        pages += [f"/ui/manifest/app?reference={quote(each)}" for each in HOSTILE]
        pages += [f"/ui/{quote(each, safe='')}" for each in HOSTILE]
        pages += [f"/ui/login?next={quote(each)}" for each in HOSTILE]
        for path in ("/ui/manifest/app?reference=v1", "/ui/image/app", *pages):
            page = text(await self.browser.get(path, Accept="text/html"))
            self.assertNotRegex(page, r"<script>|<img src=x|onerror=alert\(1\)>", path)
            self.assertNotRegex(page, r'(href|src|action)="javascript', path)
            self.assertNotIn("49", page.partition("<main")[2] if "7%20" in path else "")
        told = text(await self.browser.get("/ui/manifest/app?reference=v1"))
        self.assertIn("&lt;script&gt;alert(1)&lt;/script&gt;", told)

    async def test_a_config_that_is_none_is_shown_as_far_as_it_goes(self) -> None:
        for config in (b"{}", b"not JSON", b"[]", b'{"config": 1}', b"\xff" * 100):
            for blob in (config, b"layer"):
                await self.registry.push_blob("app", blob)
            digest = await self.registry.push_manifest(
                "app", "v1", image_manifest(config, b"layer")
            )
            answer = await self.browser.get("/ui/manifest/app?reference=v1")
            self.assertEqual(answer.status, 200, config)
            self.assertIn(str(digest), words(answer))
