"""Forms that change images: what they do, for whom, and what the audit log tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest, Tag
from artifactd.web.audit import Change
from artifactd.web.page.page import Page
from tests.api.served import image_manifest
from tests.page.case import GuardedPageCase, PageCase, Visitor, links, text, words
from tests.page.test_images import tags_of
from tests.pull.mirrors import MirrorCase

APP = "local/team/app"
KIND = {"Content-Type": OCI_MANIFEST}
FORMS = [
    rule.rule.partition("<")[0]
    for rule in Page.app.url_map.iter_rules()
    if "POST" in (rule.methods or ())
]


class ChangeTests(GuardedPageCase):
    def setUp(self) -> None:
        self.audit = Path(self.mktemp())
        self.audit.parent.mkdir(parents=True, exist_ok=True)
        self.top = f'audit_log = "{self.audit}"'
        super().setUp()

    def lines(self) -> list[dict[str, Any]]:
        """What the audit log tells of the page's forms but logins."""
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [line for line in lines if line["method"] == "POST" and line["action"] != "session"]

    async def tags(self, browser: Visitor) -> list[str]:
        """The tags that the page lists."""
        return tags_of(text(await browser.get(f"/ui/image/{APP}")))

    async def tag(self, *tags: str) -> str:
        """Let alice push an image under each of ``tags``; its digest."""
        await self.have(APP)
        manifest = image_manifest(b"{}", b"layer")
        for tag in tags:
            path = f"/v2/{APP}/manifests/{tag}"
            answer = await self.ask("PUT", path, "alice", manifest, KIND)
            self.assertEqual(answer.status, 201)
        return str(Digest.of(manifest))

    async def test_many_tags_are_deleted_at_once_and_brought_back(self) -> None:
        digest = await self.tag("v2", "v3")
        browser = await self.as_user("alice")
        answer = await browser.post(f"/ui/delete/{APP}", [("tag", "v1"), ("tag", "v3")])
        where = f"/ui/image/{APP}?told=deleted&n=2"
        self.assertEqual((answer.status, answer.header("Location")), (303, where))
        self.assertEqual(await self.tags(browser), ["v2"])
        page = await browser.get(where)
        self.assertIn("2 tags are deleted. Bring back", words(page))
        told = [(line["tag"], line["before"], line["who"]) for line in self.lines()]
        self.assertEqual(told, [("v1", digest, "alice"), ("v3", digest, "alice")])

        answer = await browser.post(f"/ui/undelete/{APP}", {"reference": "v3"})
        self.assertEqual(answer.status, 303)
        self.assertEqual(await self.tags(browser), ["v2", "v3"])
        await browser.post(f"/ui/undelete/{APP}", {})
        self.assertEqual(await self.tags(browser), ["v1", "v2", "v3"])
        self.assertEqual({line["outcome"] for line in self.lines()}, {"done"})
        self.assertIn("alice@127.0.0.1", words(await browser.get(f"/ui/history/{APP}")))

    async def test_a_manifest_goes_with_its_tags(self) -> None:
        digest = await self.tag("v2")
        browser = await self.as_user("alice")
        answer = await browser.post(f"/ui/delete/{APP}", {"digest": digest})
        self.assertEqual(answer.status, 303)
        self.assertEqual(await self.tags(browser), [])
        self.assertEqual(self.lines()[-1]["digest"], digest)

    async def test_a_tag_is_copied_and_restored(self) -> None:
        old = await self.tag()
        browser = await self.as_user("alice")
        answer = await browser.post(f"/ui/copy/{APP}", {"tag": "v1", "to": "stable"})
        self.assertEqual(answer.status, 303)
        self.assertEqual(await self.tags(browser), ["stable", "v1"])
        other = image_manifest(b"{}", b"layer", annotations={"a": "b"})
        await self.ask("PUT", f"/v2/{APP}/manifests/v1", "alice", other, KIND)
        answer = await browser.post(f"/ui/restore/{APP}", {"tag": "v1", "digest": old})
        self.assertEqual(answer.status, 303, words(answer))
        manifest = await self.ask("GET", f"/v2/{APP}/manifests/v1", "alice")
        self.assertEqual(manifest.header("Docker-Content-Digest"), old)
        line = self.lines()[-1]
        self.assertEqual((line["tag"], line["digest"]), ("v1", old))
        self.assertEqual(line["before"], str(Digest.of(other)))

    async def test_what_can_not_be_done_is_told_and_changes_nothing(self) -> None:
        await self.tag()
        browser = await self.as_user("alice")
        token = await browser.token()
        before = self.state()
        for form, fields, status in (
            ("delete", {}, 400),
            ("delete", {"tag": "v9"}, 404),
            ("delete", {"tag": "no tag"}, 400),
            ("delete", {"digest": "sha256:x"}, 400),
            ("copy", {"tag": "v1", "to": ""}, 400),
            ("copy", {"tag": "v1", "to": "<b>"}, 400),
            ("copy", {"to": "v2"}, 400),
            ("copy", {"tag": "v9", "to": "v2"}, 404),
            ("restore", {"tag": "v1", "digest": str(Digest.of(b""))}, 404),
            ("undelete", {"reference": "v1"}, 404),
            ("undelete", {}, 404),
        ):
            answer = await browser.post(f"/ui/{form}/{APP}", fields, token=token)
            self.assertEqual(answer.status, status, (form, fields))
            self.assertIn("That did not work", words(answer))
        self.assertEqual(self.state(), before)

    async def test_the_audit_log_names_what_could_not_be_done(self) -> None:
        await self.tag("v2")
        browser = await self.as_user("alice")
        absent = str(Digest.of(b"absent"))
        for form, fields, named in (
            ("delete", [("tag", "v8"), ("tag", "v9")], ["v8", "v9"]),
            ("delete", [("digest", absent)], [absent]),
            ("copy", [("tag", "v9"), ("to", "new")], ["new"]),
            ("restore", [("tag", "v1"), ("digest", absent)], ["v1"]),
            ("undelete", [("reference", "v9")], ["v9"]),
        ):
            self.audit.write_text("")
            await browser.post(f"/ui/{form}/{APP}", fields)
            lines = self.lines()
            self.assertEqual([each.get("tag") or each["digest"] for each in lines], named, form)
            self.assertEqual({each["outcome"] for each in lines}, {"failed"})

    async def test_what_can_be_deleted_is_when_others_can_not(self) -> None:
        await self.tag("v2")
        browser = await self.as_user("alice")
        answer = await browser.post(f"/ui/delete/{APP}", [("tag", "v1"), ("tag", "v9")])
        self.assertEqual(answer.status, 404)
        self.assertIn("1 of 2 are deleted", words(answer))
        self.assertEqual(await self.tags(browser), ["v2"])
        told = [(line["tag"], line["outcome"], line["status"]) for line in self.lines()]
        self.assertEqual(told, [("v1", "done", 404), ("v9", "failed", 404)])

    async def test_each_tag_is_told_and_audited_when_the_deletion_of_one_fails_unexpectedly(
        self,
    ) -> None:
        await self.tag("v2", "v3")
        browser = await self.as_user("alice")
        delete = Page.delete

        async def failing(page: Page, *args: Any) -> Change:
            if args[-1] == Tag("v2"):
                raise ZeroDivisionError
            return await delete(page, *args)

        self.patch(Page, "delete", failing)
        for chosen, done in (["v1", "v2", "v3"], ["v1"]), (["v2", "v3"], []):
            self.audit.write_text("")
            answer = await browser.post(f"/ui/delete/{APP}", [("tag", tag) for tag in chosen])
            self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
            self.assertEqual(answer.status, 500)
            lines = self.lines()
            self.assertEqual([line["tag"] for line in lines], chosen)
            outcomes = {line["tag"]: line["outcome"] for line in lines}
            self.assertEqual([tag for tag in chosen if outcomes[tag] == "done"], done)
            self.assertIn(lines[0]["request"], words(answer))
            self.assertEqual(await self.tags(browser), ["v2", "v3"])
        self.assertIn("That did not work", words(answer))

    async def test_who_may_not_changes_nothing(self) -> None:
        await self.tag()
        fields = {"tag": "v1", "to": "v2", "digest": str(Digest.of(b"x")), "reference": "v1"}
        for who in ("bob", "nobody", None):
            browser = self.browser if who is None else await self.as_user(who)
            token = await browser.token()
            before = self.state()
            for form in ("delete", "copy", "restore", "undelete"):
                answer = await browser.post(f"/ui/{form}/{APP}", fields, token=token)
                self.assertEqual(answer.status, 403, (who, form))
            self.assertEqual(self.state(), before)
        self.assertEqual({line["outcome"] for line in self.lines()}, {"refused"})

    async def test_no_form_is_taken_from_another_page_or_without_its_token(self) -> None:
        self.assertIn("/ui/delete/", FORMS)
        self.assertEqual(len(FORMS), 6)
        await self.tag()
        browser = await self.as_user("alice")
        token = await browser.token()
        fields = {"tag": "v1", "to": "v2", "digest": str(Digest.of(b"x")), "user": "alice"}
        before = self.state()
        for form in FORMS:
            path = form + (APP if form.endswith("/") else "")
            for given, headers in (
                ("", {}),
                ("x" * 64, {}),
                (token, {"Sec_Fetch_Site": "cross-site"}),
                (token, {"Sec_Fetch_Site": "", "Origin": "null"}),
            ):
                answer = await browser.post(path, fields, token=given, **headers)
                self.assertEqual(answer.status, 403, (path, given, headers))
            answer = await browser.get(path)
            self.assertIn(answer.status, (405, 200), path)
        self.assertEqual(self.state(), before)


class AllDeletedTests(GuardedPageCase):
    async def delete(self, *names: str) -> None:
        """Let alice push images, and delete their tags."""
        await self.have(*names)
        for name in names:
            await self.ask("DELETE", f"/v2/{name}/manifests/v1", "alice")

    async def test_what_was_deleted_anywhere_is_listed_and_brought_back_from_there(self) -> None:
        await self.delete("local/a", "local/team/b")
        browser = await self.as_user("alice")
        page = await browser.get("/ui/deleted")
        self.assertRegex(words(page), "local/team/b tag v1 .* local/a tag v1 ")
        self.assertIn("/ui/deleted", links(await browser.get("/")))
        fields = {"reference": "v1", "list": "all"}
        answer = await browser.post("/ui/undelete/local/a", fields)
        where = "/ui/deleted?told=undeleted"
        self.assertEqual((answer.status, answer.header("Location")), (303, where))
        page = await browser.get(where)
        self.assertIn("What was deleted is back.", words(page))
        self.assertIn("/ui/deleted/local/team/b", links(page))
        self.assertNotIn("/ui/deleted/local/a", links(page))
        self.assertEqual(tags_of(text(await browser.get("/ui/image/local/a"))), ["v1"])

    async def test_a_page_has_a_hundred(self) -> None:
        await self.have("local/a")
        manifest = image_manifest(b"{}", b"layer")
        for number in range(101):
            await self.ask("PUT", f"/v2/local/a/manifests/t{number}", "alice", manifest, KIND)
            await self.ask("DELETE", f"/v2/local/a/manifests/t{number}", "alice")
        browser = await self.as_user("alice")
        first = await browser.get("/ui/deleted")
        (following,) = [each for each in links(first) if "after=" in each]
        second = await browser.get(following)
        self.assertEqual(
            (text(first).count("Bring tag"), text(second).count("Bring tag")), (100, 1)
        )

    async def test_callers_see_what_they_may_pull_and_buttons_for_what_they_may_change(
        self,
    ) -> None:
        await self.delete("local/secret", "local/team/b", "local/public/c")
        for who, listed, offered in (
            ("alice", {"local/secret", "local/team/b", "local/public/c"}, 3),
            ("bob", {"local/team/b", "local/public/c"}, 0),
            (None, {"local/public/c"}, 0),
        ):
            browser = self.browser if who is None else await self.as_user(who)
            page = await browser.get("/ui/deleted")
            images = {each.removeprefix("/ui/deleted/") for each in links(page)}
            self.assertEqual({each for each in images if each.startswith("local")}, listed)
            self.assertEqual(text(page).count("Bring tag"), offered)

    async def test_an_empty_list_says_so(self) -> None:
        self.assertIn("Log in to see more", words(await self.browser.get("/ui/deleted")))
        browser = await self.as_user("alice")
        self.assertIn("can be brought back", words(await browser.get("/ui/deleted")))


class EvictedTests(MirrorCase):
    async def test_each_tag_that_is_evicted_is_in_the_audit_log(self) -> None:
        audit = Path(self.mktemp())
        audit.parent.mkdir(parents=True, exist_ok=True)
        digests = []
        for tag in ("v1", "v2"):
            digests.append(self.hub.images.add_image("library/alpine", tag, tag.encode()))
        registry = self.mirror_with(f'audit_log = "{audit}"\n')
        for tag in ("v1", "v2"):
            await registry.request("GET", f"/v2/docker.io/alpine/manifests/{tag}")
        image = "docker.io/library/alpine"
        chosen = [("tag", "v1"), ("tag", "v2"), ("tag", "v3")]
        visitor = Visitor(registry)
        token = await visitor.token(f"/ui/image/{image}")
        answer = await visitor.post(f"/ui/delete/{image}", chosen, token=token)
        self.assertIn("2 of 3 are deleted", words(answer))
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        told = [(each["tag"], each["outcome"], each.get("before")) for each in lines]
        done = [("v1", "done", str(digests[0])), ("v2", "done", str(digests[1]))]
        self.assertEqual(told, [*done, ("v3", "failed", None)])


class ImmutableTests(GuardedPageCase):
    toml = '[repository.local]\nkind = "local"\nimmutable_tags = ["v*"]\n'
    rules = '[[access]]\nwho = ["user:alice"]\nmay = ["pull", "push", "delete"]\nimages = ["*"]\n'

    async def test_a_tag_that_stays_is_neither_deleted_nor_moved(self) -> None:
        await self.have(APP)
        browser = await self.as_user("alice")
        other = image_manifest(b"{}", b"layer", annotations={"a": "b"})
        await self.ask("PUT", f"/v2/{APP}/manifests/new", "alice", other, KIND)
        for form, fields in (
            ("delete", {"tag": "v1"}),
            ("copy", {"tag": "new", "to": "v1"}),
            ("restore", {"tag": "v1", "digest": str(Digest.of(other))}),
        ):
            answer = await browser.post(f"/ui/{form}/{APP}", fields)
            self.assertEqual(answer.status, 403, form)
            self.assertIn("v1", words(answer))


class CreateOnlyTests(GuardedPageCase):
    rules = (
        '[[access]]\nwho = ["user:alice"]\nmay = ["pull", "push"]\nimages = ["*"]\n'
        '[[access]]\nwho = ["user:bob"]\nmay = ["pull", "create"]\nimages = ["*"]\n'
    )

    async def test_who_may_only_create_copies_to_a_new_tag_and_moves_none(self) -> None:
        await self.have(APP)
        browser = await self.as_user("bob")
        page = text(await browser.get(f"/ui/image/{APP}"))
        self.assertIn("Copy chosen", page)
        self.assertNotIn("Delete chosen", page)
        answer = await browser.post(f"/ui/copy/{APP}", {"tag": "v1", "to": "v2"})
        self.assertEqual(answer.status, 303)
        other = image_manifest(b"{}", b"layer", annotations={"a": "b"})
        await self.ask("PUT", f"/v2/{APP}/manifests/v3", "alice", other, KIND)
        answer = await browser.post(f"/ui/copy/{APP}", {"tag": "v3", "to": "v1"})
        self.assertEqual(answer.status, 403)


class ReadOnlyTests(GuardedPageCase):
    async def test_nothing_is_changed_and_no_button_offers_it(self) -> None:
        await self.have(APP)
        browser = await self.as_user("alice")
        (self.registry.data / "read-only").touch()
        page = text(await browser.get(f"/ui/image/{APP}"))
        self.assertIn("read-only", page)
        self.assertNotIn("Delete chosen", page)
        answer = await browser.post(f"/ui/delete/{APP}", {"tag": "v1"})
        self.assertEqual(answer.status, 405)


class OpenTests(PageCase):
    async def test_without_accounts_a_browser_on_this_machine_changes_things(self) -> None:
        await self.registry.push_image("app", "v1")
        token = await self.browser.token("/ui/image/app")
        answer = await self.browser.post("/ui/delete/local/app", {"tag": "v1"}, token=token)
        self.assertEqual(answer.status, 303)
        self.assertEqual(tags_of(text(await self.browser.get("/ui/image/app"))), [])

    async def test_one_elsewhere_or_by_another_name_does_not(self) -> None:
        await self.registry.push_image("app", "v1")
        token = await self.browser.token("/ui/image/app")
        for host, headers in (
            ("rebound.example", {}),
            ("127.0.0.1", {"X_Forwarded_For": "192.0.2.7"}),
            ("127.0.0.1", {"Via": "1.1 proxy"}),
        ):
            visitor = Visitor(self.registry, host=host, cookies=dict(self.browser.cookies))
            page = text(await visitor.get("/ui/image/app", **headers))
            self.assertNotIn("Delete chosen", page)
            answer = await visitor.post(
                "/ui/delete/local/app", {"tag": "v1"}, token=token, **headers
            )
            self.assertEqual(answer.status, 403, (host, headers))
        self.assertEqual(tags_of(text(await self.browser.get("/ui/image/app"))), ["v1"])
