"""What a person does with the page in a browser, and what of it shuts nobody out."""

from __future__ import annotations

import json
from collections.abc import Sequence

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.guarded import basic
from tests.api.served import descriptor, image_manifest
from tests.browser.chromium import LARGE, SMALL, Chromium, Scheme
from tests.page.case import GuardedPageCase
from tests.page.test_images import HOSTILE

KIND = {"Content-Type": OCI_MANIFEST}
TAGS = "tbody th.name"
MARK = "window.harmed = true"
# The rules of axe-core that depend on colors, sizes and what there is room for.
LOOKS = ("color-contrast", "link-in-text-block", "target-size", "scrollable-region-focusable")


class BrowserCase(GuardedPageCase):
    """A registry with some images, and Chromium."""

    async def open(self) -> Chromium:
        """Start the browser, at first with a large window and light colors."""
        chromium = await Chromium.start(self, self.registry.port)
        await chromium.do(lambda it: it.look(LARGE, "light"))
        return chromium

    async def push(self, name: str, tag: str, *layers: bytes, **more: object) -> Digest:
        """Let alice push an image with labels; its digest."""
        config = json.dumps(
            {
                "os": "linux",
                "architecture": "amd64",
                "created": "2026-11-20T10:00:00Z",
                "config": {
                    "Entrypoint": ["/app/server"],
                    "Env": ["PATH=/usr/bin:/bin"],
                    "Labels": {"org.opencontainers.image.version": tag},
                },
                "history": [{"created_by": "RUN apt-get install -y app"} for _ in layers],
            }
        ).encode()
        return await self.put(name, tag, config, *layers, **more)

    async def put(
        self, name: str, tag: str, config: bytes, *layers: bytes, **more: object
    ) -> Digest:
        """Let alice push an image with any config; its digest."""
        for blob in (config, *layers):
            path = f"/v2/{name}/blobs/uploads/?digest={Digest.of(blob)}"
            self.assertEqual(await self.status("POST", path, "alice", body=blob), 201)
        return await self.put_manifest(name, tag, image_manifest(config, *layers, **more))

    async def put_manifest(
        self, name: str, tag: str, manifest: bytes, kind: str = OCI_MANIFEST
    ) -> Digest:
        """Let alice push a manifest; its digest."""
        path = f"/v2/{name}/manifests/{tag or Digest.of(manifest)}"
        headers = {**basic("alice"), "Content-Type": kind}
        answer = await self.registry.request("PUT", path, manifest, headers)
        self.assertEqual(answer.status, 201, answer.body)
        return Digest.of(manifest)

    def assert_quiet(self, chromium: Chromium) -> None:
        """The console has shown nothing wrong, and nobody but the registry was asked."""
        self.assertEqual(chromium.complaints(), [])
        self.assertEqual(chromium.hosts(), {chromium.origin.partition("//")[2]})


class PersonTests(BrowserCase):
    """One browser for all, since its start takes longer than what is done in it."""

    async def test_people_find_what_they_may_see_and_change_what_they_may_change(self) -> None:
        for name in ("team/api", "team/web", "other", "public/app"):
            await self.push(f"local/{name}", "v1", name.encode())
        self.old = await self.push("local/team/api", "v2", b"old")
        await self.push("local/team/api", "v2", b"new")
        for tag in ("a", "b", "c"):
            await self.push("local/app", tag, tag.encode())
        chromium = await self.open()
        await chromium.do(self.delete_bring_back_and_restore)
        answer = await self.ask("GET", "/v2/local/team/api/manifests/stable", "alice")
        self.assertEqual(answer.header("Docker-Content-Digest"), str(self.old))
        for steps in (
            self.choose_all_with_one_click,
            self.see_little,
            self.have_a_keyboard_alone,
            self.have_no_scripts,
        ):
            await chromium.do(Chromium.forget)
            await chromium.do(steps)

    def delete_bring_back_and_restore(self, it: Chromium) -> None:
        it.log_in("alice")
        # The list follows what is typed, and so does the address.
        it.find("#q").send_keys("team/a")
        it.wait(lambda: it.texts("td.name") == ["local/team/api"])
        self.assertTrue(it.driver.current_url.endswith("/?q=team%2Fa"))
        it.find("td.name a").click()
        it.wait(lambda: it.texts(TAGS) == ["v1", "v2"])

        self.assertFalse(it.find("button.danger").is_enabled())
        it.find("input[value=v1]").click()
        it.press("Delete chosen")
        it.sees("1 tag or manifest is deleted.")
        self.assertEqual(it.texts(TAGS), ["v2"])
        it.press("Bring back")
        it.wait(lambda: it.texts(TAGS) == ["v1"])
        it.press("Bring back")
        it.sees("What was deleted is back.")
        self.assertEqual(it.texts(TAGS), ["v1", "v2"])

        it.press("History")
        it.find(f'[aria-label="Restore v2 to {str(self.old)[:19]}"]').click()
        it.sees("The tag points at that manifest now.")
        it.find("input[value=v2]").click()
        it.find("#to").send_keys("stable")
        it.press("Copy")
        it.wait(lambda: it.texts(TAGS) == ["stable", "v1", "v2"])

        it.press("stable")
        it.sees(str(self.old))
        commands = it.texts(".commands code")
        host = it.origin.partition("//")[2]
        self.assertEqual(commands[0], f"docker pull {host}/team/api:stable")
        it.press("Log out")
        it.wait(lambda: it.texts(".who") == [])
        self.assert_quiet(it)

    def choose_all_with_one_click(self, it: Chromium) -> None:
        it.log_in("alice")
        it.open("/ui/image/local/app")
        it.find("th.check input").click()
        it.find("input[value=b]").click()
        it.press("Delete chosen")
        it.sees("2 tags are deleted.")
        self.assertEqual(it.texts(TAGS), ["b"])
        self.assert_quiet(it)

    def see_little(self, it: Chromium) -> None:
        it.open("/")
        it.sees("local/public/")
        self.assertEqual(it.texts("td.name"), ["local/public/app"])
        self.assertEqual(it.texts("nav[aria-label='Parts of the page'] a")[:1], ["Images"])
        # A page that a login may open leads there, and back.
        it.open("/ui/image/local/team/web")
        it.find("#user").send_keys("bob")
        it.find("#password").send_keys("bob!")
        it.press("Log in", "main button")
        it.wait(lambda: it.texts(TAGS) == ["v1"])
        self.assertEqual(it.all("button.danger"), [])
        self.assertEqual(it.all("input[type=checkbox]"), [])
        it.open("/")
        self.assertEqual(
            it.texts("td.name"), ["local/public/app", "local/team/api", "local/team/web"]
        )
        self.assert_quiet(it)
        it.open("/ui/image/local/other")
        it.sees("bob may not pull here")

    def have_a_keyboard_alone(self, it: Chromium) -> None:
        it.open("/")
        keys = it.find("body").send_keys
        keys("\ue004")  # Tab
        it.wait(lambda: it.driver.switch_to.active_element.text == "Skip to the content")
        keys("/")
        it.wait(lambda: it.driver.switch_to.active_element.get_attribute("id") == "q")
        it.driver.switch_to.active_element.send_keys("public\ue007")  # Enter
        it.wait(lambda: it.texts("td.name") == ["local/public/app"])
        self.assert_quiet(it)

    def have_no_scripts(self, it: Chromium) -> None:
        it.without_scripts()
        it.log_in("alice")
        it.find("#q").send_keys("web")
        it.press("Search")
        it.wait(lambda: it.texts("td.name") == ["local/team/web"])
        it.find("td.name a").click()
        it.find("input[value=v1]").click()
        it.press("Delete chosen")
        it.sees("1 tag or manifest is deleted.")
        it.press("Log out")
        it.wait(lambda: it.texts(".who") == [])


class HostileTests(BrowserCase):
    async def test_no_text_of_a_client_runs_or_asks_for_anything(self) -> None:
        texts = [
            *HOSTILE,
            f"<script>{MARK}</script>",
            f"<img src=http://evil.example/x onerror='{MARK}'>",
            f"'\"></title></style></textarea><svg onload='{MARK}'>",
        ]
        labels = {f"{text}{number}": text for number, text in enumerate(texts)}
        config = json.dumps(
            {
                "os": texts[-1],
                "architecture": texts[-2],
                "author": texts[-3],
                "config": {"Labels": labels, "Env": texts, "Cmd": texts, "User": texts[-1]},
                "history": [{"created_by": texts[-1]}],
            }
        ).encode()
        await self.put("local/app", "v1", config, b"layer", annotations=labels)
        chromium = await self.open()

        def steps(it: Chromium) -> None:
            it.log_in("alice")
            for path in ("/", "/ui/image/local/app", "/ui/manifest/local/app?reference=v1"):
                it.open(path)
                self.assertIsNone(it.driver.execute_script("return window.harmed"))
            it.wait(lambda: texts[-1] in it.texts("dd"))
            it.open("/")
            for number, text in enumerate(texts[5:], 1):
                field = it.find("#q")
                field.clear()
                field.send_keys(f"{text}{number}")
                it.sees(f"No image matches {text}{number}.")
                self.assertIsNone(it.driver.execute_script("return window.harmed"))
            self.assert_quiet(it)

        await chromium.do(steps)


class AccessibilityTests(BrowserCase):
    async def fill(self) -> None:
        """Have every kind of thing that the page shows."""
        for name in ("local/team/api", "local/team/web", "local/base/python", "local/hello"):
            for tag in ("v1.0.0", "v1.1.0", "v1.2.0"):
                await self.push(name, tag, name.encode() * 4000, tag.encode() * 9000, b"x" * 20_000)
        children = []
        for architecture in ("amd64", "arm64"):
            child = image_manifest(b"{}", b"x" * 20_000, annotations={"for": architecture})
            for blob in (b"{}", b"x" * 20_000):
                path = f"/v2/local/team/api/blobs/uploads/?digest={Digest.of(blob)}"
                await self.status("POST", path, "alice", body=blob)
            await self.put_manifest("local/team/api", "", child)
            platform = {"os": "linux", "architecture": architecture}
            children.append(descriptor(child, OCI_MANIFEST, platform=platform))
        index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children})
        await self.put_manifest("local/team/api", "latest", index.encode(), OCI_INDEX)
        await self.put_manifest(
            "local/team/api",
            "",
            image_manifest(
                b"{}",
                subject=descriptor(index.encode(), OCI_INDEX),
                artifactType="application/vnd.dev.cosign.signature",
            ),
        )
        await self.push("local/team/api", "v1.1.0", b"another")
        await self.ask("DELETE", "/v2/local/team/api/manifests/v1.2.0", "alice")
        await self.registry.parts.repairs.lose_blob(Digest.of(b"another"), lambda: True)

    async def test_every_page_is_for_everybody_large_and_small_light_and_dark(self) -> None:
        await self.fill()
        api = "local/team/api"
        pages = {
            "login": "/ui/login",
            "images": "/",
            "search": "/?q=nothing",
            "tags": f"/ui/image/{api}?sort=-size",
            "index": f"/ui/manifest/{api}?reference=latest",
            "manifest": f"/ui/manifest/{api}?reference=v1.0.0",
            "history": f"/ui/history/{api}",
            "deleted": f"/ui/deleted/{api}?told=deleted&n=1",
            "all-deleted": "/ui/deleted",
            "stale": "/ui/stale",
            "upstreams": "/ui/upstreams",
            "storage": "/ui/storage",
            "upkeep": "/ui/upkeep",
            "error": "/ui/nothing",
        }
        # The rules of axe-core that are asked: all, those that depend on how it looks, or none.
        looks: Sequence[tuple[str, tuple[int, int], Scheme, Sequence[str] | None]] = (
            ("large-light", LARGE, "light", ()),
            ("large-dark", LARGE, "dark", None),
            ("small-light", SMALL, "light", None),
            ("small-dark", SMALL, "dark", LOOKS),
        )
        chromium = await self.open()
        barriers: list[str] = []

        def steps(it: Chromium) -> None:
            it.log_in("alice")
            for page, path in pages.items():
                it.open(path)
                for name, size, scheme, rules in looks:
                    it.look(size, scheme)
                    it.photograph(f"{page}-{name}")
                    found = it.barriers(*rules) if rules is not None else []
                    barriers.extend(f"{page}, {name}: {each}" for each in found)
                    width = it.driver.execute_script("return document.documentElement.scrollWidth")
                    self.assertLessEqual(width, size[0], f"{page} is wider than {name}")

        await chromium.do(steps)
        self.maxDiff = None
        self.assertEqual(barriers, [])
