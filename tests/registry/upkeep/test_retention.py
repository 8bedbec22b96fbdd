"""Which tags the rules keep, and what happens between judging and dropping one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.retention import HOUR
from artifactd.oci.names import Digest, Tag
from artifactd.registry.upkeep.retention import Retention, Verdict
from artifactd.settings.settings import LocalSettings, RetentionRule
from artifactd.settings.values import Duration, Pattern
from tests.catalog.fixture import APP, OTHER, V1, V2
from tests.catalog.test_retention import KeepingTestCase

DAY = 86_400.0


def rule(**settings: Any) -> RetentionRule:
    """A rule: patterns as texts, durations in days."""
    for name in ("images", "tags", "keep"):
        if name in settings:
            settings[name] = tuple(map(Pattern, settings[name]))
    for name in ("pushed", "pulled"):
        if name in settings:
            settings[name] = Duration(settings[name] * DAY)
    return RetentionRule(**settings)


class RetentionTestCase(KeepingTestCase):
    """:ivar time: begins after a hundred days."""

    def setUp(self) -> None:
        super().setUp()
        self.time = 100 * DAY
        self.rule(keep=["none"])

    def rule(self, **settings: Any) -> None:
        """Let there be one rule."""
        self.rules(rule(**settings))

    def rules(self, *rules: RetentionRule, immutable: Sequence[str] = ()) -> None:
        settings = LocalSettings(retention=rules, immutable_tags=tuple(map(Pattern, immutable)))
        self.policy = Retention(self.retention, {"local": settings}, lambda: self.time)

    async def push(self, *tags: str, days: float = 1, **more: Any) -> Digest:
        """Push a manifest of its own under ``tags``; then time passes."""
        digest = await self.put(f"{tags}".encode(), *tags, **more)
        self.time += days * DAY
        return digest

    async def judge(self) -> list[Verdict]:
        return [each async for page in self.policy.judged() for each in page]

    async def verdicts(self) -> dict[str, str]:
        """What is told of each tag."""
        return {each.use.name: each.why for each in await self.judge()}

    async def retain(self, between: Callable[[], Awaitable[object]] | None = None) -> set[str]:
        """
        Drop what no rule keeps, after ``between`` has happened; the tags that have gone.
        """
        gone = set[str]()
        pages = [page async for page in self.policy.judged()]
        if between is not None:
            await between()
        for page in pages:
            dropped = await self.policy.drop(page[0].image, page) if page else ()
            gone |= {use.name for use in dropped}
        return gone

    async def tags(self) -> list[str]:
        return await self.catalog.tags(APP, None, None) or []


class RuleTests(RetentionTestCase):
    async def test_the_newest_stay(self) -> None:
        for tag in ("a", "z", "m", "b"):
            await self.push(tag)
        self.rule(newest=2)
        told = "retention[0]: it is one of the 2 newest"
        gone = "retention[0]: nothing keeps it"
        self.assertEqual({"a": gone, "b": told, "m": told, "z": gone}, await self.verdicts())
        self.assertEqual({"a", "z"}, await self.retain())
        self.assertEqual(["b", "m"], await self.tags())
        self.assertEqual(set(), await self.retain())

    async def test_the_newest_are_counted_among_the_tags_of_the_rule(self) -> None:
        for tag in ("test-1", "test-2", "v1", "test-3", "v2"):
            await self.push(tag)
        self.rule(tags=["test-*"], newest=1)
        self.assertEqual({"test-1", "test-2"}, await self.retain())

    async def test_a_tag_that_is_pushed_again_where_it_is_is_a_new_one(self) -> None:
        for tag in ("a", "b", "c"):
            await self.push(tag)
        await self.put(b"('a',)", "a")
        self.rule(newest=1)
        self.assertEqual({"b", "c"}, await self.retain())

    async def test_those_pushed_within_a_time_stay(self) -> None:
        await self.push("old", days=3)
        await self.push("new", days=1)
        self.rule(pushed=2)
        self.assertEqual({"old"}, await self.retain())

    async def test_those_pulled_or_pushed_within_a_time_stay(self) -> None:
        by_digest = await self.push("digest")
        for tag in ("tag", "never", "long-ago"):
            await self.push(tag)
        await self.pull(Tag.parse("long-ago"))
        self.time += 5 * DAY
        await self.pull(by_digest)
        await self.pull(Tag.parse("tag"))
        await self.push("pushed")
        self.rule(pulled=2)
        self.assertEqual({"never", "long-ago"}, await self.retain())

    async def test_a_pull_that_comes_within_an_hour_of_another_counts_too(self) -> None:
        await self.push("other")
        await self.push("v1")
        await self.pull(V1)
        pulled = self.time
        self.time += HOUR - 1
        await self.pull(V1)  # nothing is written
        self.rules(rule(pulled=2), rule(keep=["other"]))
        self.time = pulled + 2 * DAY + HOUR - 1
        self.assertEqual(set(), await self.retain())
        self.time = pulled + 2 * DAY + HOUR
        self.assertEqual({"v1"}, await self.retain())

    async def test_of_a_tag_that_comes_again_within_the_hour_a_pull_may_not_be_noted(self) -> None:
        await self.push("other")
        await self.push("v1")
        await self.pull(V1)  # whatever noted it knows for an hour that it need not do so
        await self.catalog.delete_tag(APP, V1, actor="test")
        self.time += HOUR / 2
        pushed = self.time
        await self.push("v1")
        self.rules(rule(pulled=2), rule(keep=["other"]))
        self.time = pushed + 2 * DAY + HOUR - 1
        self.assertEqual(set(), await self.retain())
        self.time = pushed + 2 * DAY + HOUR
        self.assertEqual({"v1"}, await self.retain())

    async def test_what_was_here_before_pulls_were_known_may_have_been_pulled(self) -> None:
        await self.push("old", days=10)
        await self.push("v1", days=1)
        since = self.time
        await self.catalog.database.write(
            lambda db: db.execute("INSERT INTO pulls_known VALUES (?)", (since,))
        )
        self.rule(pulled=2)
        self.time = since + 2 * DAY - 1
        self.assertEqual(set(), await self.retain())
        self.time = since + 2 * DAY
        self.assertEqual({"old"}, await self.retain())

    async def test_those_that_match_stay(self) -> None:
        for tag in ("v1", "v2", "edge"):
            await self.push(tag)
        self.rule(keep=["v*"])
        self.assertEqual({"edge"}, await self.retain())

    async def test_a_tag_that_no_rule_is_for_stays(self) -> None:
        for tag in ("v1", "test"):
            await self.push(tag)
            await self.push(tag, image=OTHER)
        self.rule(images=["app"], tags=["t*"], pushed=1)
        verdicts = await self.judge()
        self.assertEqual({APP}, {each.image for each in verdicts})
        self.assertEqual("no rule is for it", (await self.verdicts())["v1"])
        self.assertEqual({"test"}, await self.retain())

    async def test_one_rule_that_keeps_it_is_enough(self) -> None:
        for tag in ("a", "b", "c"):
            await self.push(tag)
        self.rules(rule(newest=1), rule(keep=["a"]), rule(tags=["[xy]"], keep=["x"]))
        told = await self.verdicts()
        self.assertEqual("retention[1]: it matches keep", told["a"])
        self.assertEqual("retention[0], retention[1]: nothing keeps it", told["b"])
        self.assertEqual({"b"}, await self.retain())

    async def test_an_immutable_tag_stays_whatever_the_rules_say(self) -> None:
        for tag in ("v1", "edge", "test"):
            await self.push(tag)
        self.rules(rule(newest=1), immutable=["app:v*"])
        self.assertIn('immutable_tags: it matches "app:v*"', (await self.verdicts())["v1"])
        self.assertEqual({"edge"}, await self.retain())

    async def test_the_last_tag_of_an_image_stays_unless_the_rules_say_so(self) -> None:
        for tag in ("z", "a"):
            await self.push(tag)
        self.rule(pushed=1)
        self.assertEqual("it is the last tag of its image", (await self.verdicts())["a"])
        self.assertEqual({"z"}, await self.retain())
        self.assertEqual(set(), await self.retain())
        self.rules(rule(pushed=1, drop_last=True), rule(keep=["b"]))
        self.assertEqual(set(), await self.retain(), "both rules are for it")
        self.rule(pushed=1, drop_last=True)
        self.assertEqual({"a"}, await self.retain())
        self.assertEqual([], await self.tags())

    async def test_other_tags_of_the_same_manifest_stay(self) -> None:
        digest = await self.push("v1", "test")
        await self.push("edge")
        self.rule(tags=["test"], pushed=1)
        self.assertEqual({"test"}, await self.retain())
        found = await self.catalog.manifest(APP, V1)
        assert found is not None
        self.assertEqual(digest, found.digest)

    async def test_more_tags_than_a_page(self) -> None:
        tags = [f"t{number:04}" for number in range(1203)]
        for tag in tags:
            await self.put(tag.encode(), tag)
            self.time += 1
        await self.put(b"t0700", "t0700")
        self.rule(newest=3)
        gone = await self.retain()
        self.assertEqual(["t0700", "t1201", "t1202"], await self.tags())
        self.assertEqual(1200, len(gone))

    async def test_images_without_tags_and_unknown_ones_are_passed_over(self) -> None:
        digest = await self.push("v1")
        await self.catalog.delete_tag(APP, V1, actor="test")
        await self.blob(b"loose", OTHER)
        self.rule(newest=1)
        self.assertEqual([], await self.judge())
        self.assertIsNotNone(await self.catalog.manifest(APP, digest))


class BetweenTests(RetentionTestCase):
    """What happens between judging and dropping counts."""

    async def old(self) -> None:
        for tag in ("v1", "v2", "v3"):
            await self.push(tag)
        self.rule(newest=1)

    async def assert_stays(self, between: Callable[[], Awaitable[object]], *also: str) -> None:
        await self.old()
        self.assertEqual({"v2", *also} - {"v1"}, await self.retain(between))

    async def test_a_push_keeps_it(self) -> None:
        await self.assert_stays(lambda: self.put(b"new", "v1"))

    async def test_a_push_of_the_same_manifest_keeps_it(self) -> None:
        await self.assert_stays(lambda: self.put(b"('v1',)", "v1"))

    async def test_a_pull_keeps_it(self) -> None:
        await self.assert_stays(lambda: self.pull(V1))

    async def test_a_pull_by_digest_keeps_it(self) -> None:
        await self.assert_stays(lambda: self.pull(Digest.of(b"('v1',)")))

    async def test_what_was_deleted_and_came_again_stays(self) -> None:
        async def again() -> None:
            await self.catalog.delete_tag(APP, V1, actor="test")
            await GarbageCatalog(self.catalog.database).undelete(APP, V1, "test")

        await self.assert_stays(again)

    async def test_when_a_newer_one_goes_all_stay(self) -> None:
        await self.old()
        v3 = Tag.parse("v3")
        gone = await self.retain(lambda: self.catalog.delete_tag(APP, v3, actor="test"))
        self.assertEqual(set(), gone)
        self.assertEqual({"v1"}, await self.retain(), "judged anew, v2 is the newest")

    async def test_when_all_others_go_the_last_one_stays(self) -> None:
        await self.push("v1")
        await self.push("v2")
        self.rules(rule(tags=["v1"], pushed=1))
        gone = await self.retain(lambda: self.catalog.delete_tag(APP, V2, actor="test"))
        self.assertEqual((set(), ["v1"]), (gone, await self.tags()))

    async def test_a_tag_that_is_created_while_images_are_judged_stays(self) -> None:
        await self.old()
        judged = self.policy.judged()
        tags = self.retention.tags

        async def later(*args: Any) -> Any:
            """The first page is read, and then a tag is pushed; the second pass sees it."""
            self.patch(self.retention, "tags", tags)
            found = await tags(*args)
            await self.put(b"new", "v1")
            return found

        self.patch(self.retention, "tags", later)
        gone = set[str]()
        async for page in judged:
            gone |= {use.name for use in await self.policy.drop(APP, page)}
        self.assertNotIn("v1", gone)


class JournalTests(RetentionTestCase):
    async def test_it_names_the_rules_and_undelete_brings_back(self) -> None:
        for tag in ("v1", "v2", "v3"):
            await self.push(tag)
        self.rules(rule(newest=2), rule(tags=["v1"], keep=["x"]))
        self.assertEqual({"v1"}, await self.retain())
        moved = await self.catalog.tag_movements(APP, V1)
        self.assertEqual(("retention[0], retention[1]", None), (moved[-1].actor, moved[-1].after))
        restored = await GarbageCatalog(self.catalog.database).undelete(APP, V1, "undelete")
        self.assertEqual(("v1",), restored.tags)
        # It counts as pushed when it was brought back.
        self.assertEqual({"v2"}, await self.retain())
