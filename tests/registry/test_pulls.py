"""Pulls are collected in memory and written in batches; where retention needs them, at once."""

from __future__ import annotations

from artifactd.catalog.retention import HOUR
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Tag
from artifactd.registry.pulls import Pulls
from tests.catalog.fixture import APP, V1, V2
from tests.catalog.test_retention import KeepingTestCase


class CollectedTests(KeepingTestCase):
    prompt: tuple[str, ...] = ()

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        super().setUp()
        self.pulls = Pulls(self.retention, self.prompt, lambda: self.time)
        await self.put(b"1", "v1", "v2")

    async def test_many_are_one_write(self) -> None:
        for tag in V1, V2:
            self.assertTrue(await self.pulls.note(APP, tag))
            self.assertIn((APP, tag), self.pulls.noted)
        self.assertEqual({"v1": None, "v2": None}, await self.pulled())
        await self.pulls.write()
        self.assertEqual({"v1": 1000.0, "v2": 1000.0}, await self.pulled())

    async def test_more_than_a_batch(self) -> None:
        tags = [f"t{number}" for number in range(300)]
        await self.put(b"2", *tags)
        for tag in tags:
            await self.pulls.note(APP, Tag.parse(tag))
        await self.pulls.write()
        pulled = {each.tag: each.pulled for each in await self.overview.tags(APP, None, 1000)}
        self.assertEqual({1000.0}, {pulled[tag] for tag in tags})

    async def test_after_an_hour_the_next_is_noted(self) -> None:
        await self.pulls.note(APP, V1)
        self.time += HOUR - 1
        self.assertIn((APP, V1), self.pulls.noted)
        self.time += 1
        self.assertNotIn((APP, V1), self.pulls.noted)

    async def test_what_could_not_be_written_is_written_later(self) -> None:
        await self.pulls.note(APP, V1)
        note = self.retention.note_pulls

        async def fail(_: object) -> None:
            raise Unavailable("the disk is full")

        self.patch(self.retention, "note_pulls", fail)
        await self.assert_raises(Unavailable, self.pulls.write())
        self.patch(self.retention, "note_pulls", note)
        await self.pulls.write()
        self.assertEqual({"v1": 1000.0, "v2": None}, await self.pulled())


class PromptTests(CollectedTests):
    """With a retention that asks for pulls."""

    prompt = ("local",)

    async def test_many_are_one_write(self) -> None:
        """Each is in the catalog before it is answered."""
        self.assertTrue(await self.pulls.note(APP, V1))
        self.assertEqual({"v1": 1000.0, "v2": None}, await self.pulled())
        self.assertIn((APP, V1), self.pulls.noted)

    async def test_of_what_has_gone_it_is_told(self) -> None:
        await self.catalog.delete_tag(APP, V1, actor="test")
        self.assertFalse(await self.pulls.note(APP, V1))

    async def test_what_could_not_be_written_is_written_later(self) -> None:
        note = self.retention.note_pulls

        async def fail(_: object) -> None:
            raise Unavailable("the disk is full")

        self.patch(self.retention, "note_pulls", fail)
        self.assertTrue(await self.pulls.note(APP, V1), "the pull is answered")
        self.patch(self.retention, "note_pulls", note)
        await self.pulls.write()
        self.assertEqual({"v1": 1000.0, "v2": None}, await self.pulled())
