"""What the page shows of the registry itself, and to whom."""

from __future__ import annotations

from tests.api.guarded import ABSENT
from tests.page.case import GuardedPageCase, PageCase, Visitor, links, text, words

PARTS = ("upstreams", "storage", "upkeep")


class OpenOperationsTests(PageCase):
    async def test_on_this_machine_everybody_sees_how_it_does(self) -> None:
        await self.registry.push_image("app", "v1", b"x" * 5000)
        expected = {
            "upstreams": "docker.io well",
            "storage": "local 1 1 ",
            "upkeep": "Nothing that is known to be here is lost",
        }
        for part in PARTS:
            page = await self.browser.get(f"/ui/{part}")
            self.assertEqual(page.status, 200, part)
            self.assertIn(expected[part], words(page))
            self.assertIn(f"/ui/{part}", links(await self.browser.get("/")))

    async def test_by_another_name_nobody_does(self) -> None:
        rebound = Visitor(self.registry, host="rebound.example")
        for part in PARTS:
            self.assertEqual((await rebound.get(f"/ui/{part}")).status, 403)
            self.assertNotIn(f"/ui/{part}", links(await rebound.get("/")))

    async def test_what_is_lost_is_told_with_the_images_that_hold_it(self) -> None:
        digest = await self.registry.push_image("app", "v1", b"x" * 5000)
        await self.registry.parts.repairs.lose_blob(digest, lambda: True)
        await self.registry.parts.repairs.lose_blob(ABSENT, lambda: True)
        page = words(await self.browser.get("/ui/upkeep"))
        self.assertIn("1 blob lost", page)
        self.assertRegex(page, rf"{str(digest)[:19]} .* local/app")


class GuardedOperationsTests(GuardedPageCase):
    top = 'trusted_proxies = ["127.0.0.1"]'

    async def test_from_afar_an_administrator_of_all_images_does(self) -> None:
        far = {"X_Forwarded_For": "192.0.2.7"}
        for who, status in ((None, 303), ("bob", 403), ("alice", 200)):
            browser = self.browser if who is None else await self.as_user(who)
            for part in PARTS:
                answer = await browser.get(f"/ui/{part}", **far)
                self.assertEqual(answer.status, status, (who, part))
            home = await browser.get("/", **far)
            self.assertEqual("/ui/storage" in text(home), status == 200)


class QuotaTests(PageCase):
    toml = '[repository.local]\nkind = "local"\nquota = "100KiB"\n'

    async def test_the_share_of_a_quota_is_shown(self) -> None:
        await self.registry.push_image("app", "v1", b"x" * 50_000)
        page = await self.browser.get("/ui/storage")
        self.assertIn("100 KiB 49 %", words(page))
        self.assertIn('aria-label="49 % of the quota is used"', text(page))
