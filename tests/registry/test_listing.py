"""The list of all images, on a real catalog."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from threading import get_ident
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock, gatherResults

from artifactd.auth.rules import Allowed
from artifactd.oci.names import ImageName, Patterns
from artifactd.registry.registry import Names, listed_images
from tests.catalog.fixture import CatalogTestCase

# Names that sort on both sides of each other's slash: "-" and "." before it, digits behind.
REPOSITORIES = ("local", "a", "a-b", "a.c", "a0")
IMAGES = ("x", "a", "a-b", "a/x", "a-b/x", "a.c/x", "a0/x", "a1", "a/b/x", "local/x", "z/a/x")


class ListedImagesTests(CatalogTestCase):
    async def fill(self) -> None:
        """Put every one of ``IMAGES`` into every one of ``REPOSITORIES``."""
        for repository, image in product(REPOSITORIES, IMAGES):
            await self.put(b"{}", "v1", image=ImageName(repository, image))

    def expected(self, names: Names) -> list[str]:
        """What the list has to be, by the rule for one image."""
        return sorted(
            names.listed(ImageName(repository, image))
            for repository, image in product(names.repositories, IMAGES)
        )

    async def test_each_image_is_listed_once_by_a_name_that_means_it(self) -> None:
        await self.fill()
        for count, default in product(range(1, len(REPOSITORIES) + 1), ("local", None)):
            names = Names(REPOSITORIES[:count], default)
            listed = await listed_images(self.catalog, names, "", 1000)
            self.assertEqual(listed, self.expected(names))

    async def test_pages_add_up_to_the_list(self) -> None:
        await self.fill()
        for default, limit in product(("local", "a-b", None), (1, 7)):
            names = Names(REPOSITORIES, default)
            listed: list[str] = []
            while page := await listed_images(
                self.catalog, names, listed[-1] if listed else "", limit
            ):
                self.assertLessEqual(len(page), limit)
                listed += page
            self.assertEqual(listed, self.expected(names))

    async def test_a_page_may_begin_behind_any_text(self) -> None:
        await self.fill()
        names = Names(REPOSITORIES, "local")
        expected = self.expected(names)
        for after in (*expected, "", "a/", "a-", "local", "local/a/", "~", "\x7f", "a/\x7f"):
            listed = await listed_images(self.catalog, names, after, 3)
            self.assertEqual(listed, [name for name in expected if name > after][:3], after)

    async def test_images_of_a_repository_that_is_not_configured_are_not_listed(self) -> None:
        await self.put(b"{}", "v1", image=ImageName("gone", "x"))
        names = Names(["local"], "local")
        self.assertEqual(await listed_images(self.catalog, names, "", 10), [])

    async def test_for_some_it_is_what_they_may_see(self) -> None:
        await self.fill()
        for default, patterns in product(
            ("local", None),
            (
                ("local/a*",),
                ("*/x",),
                ("a/x", "local/a", "local/a/x"),
                ("a*", "a-b/a/*"),
                ("loc[a]l/z*", "a.c/?"),
                ("local/local/*", "local/a0/*"),
                ("nowhere/*",),
                (),
            ),
        ):
            names = Names(REPOSITORIES, default)
            shown = Allowed(None, [Patterns(patterns)])
            expected = sorted(
                names.listed(image)
                for image in (ImageName(r, i) for r, i in product(REPOSITORIES, IMAGES))
                if shown(image)
            )
            for after in ("", *expected, "a-", "local/"):
                listed = await listed_images(self.catalog, names, after, 3, shown)
                rest = [name for name in expected if name > after]
                self.assertEqual(listed, rest[:3], (patterns, after))


class Watched(Allowed):
    """:ivar looked: the images that were looked at, and in which threads."""

    looked: list[tuple[ImageName, int]]

    def __call__(self, image: ImageName) -> bool:
        self.looked.append((image, get_ident()))
        return super().__call__(image)


def watched(*patterns: str) -> Watched:
    """A test for the images that patterns allow."""
    shown = Watched(None, [Patterns(patterns)])
    object.__setattr__(shown, "looked", [])  # attrs keeps it from being set otherwise
    return shown


class ManyImagesTests(CatalogTestCase):
    """Three batches of images, and two more that are listed behind them."""

    names = Names(["local"], "local")

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        super().setUp()
        rows = [("local", f"crowd/{number:04}") for number in range(3000)]
        rows += [("local", "team/a"), ("local", "team/b")]

        def insert(db: Any) -> None:
            db.executemany("INSERT INTO image (repository, name, known_at) VALUES (?, ?, 1)", rows)

        await self.catalog.database.write(insert)

    async def listed(self, limit: int, shown: Allowed | None = None, **how: Any) -> list[str]:
        return await listed_images(self.catalog, self.names, "", limit, shown, **how)

    async def test_all_of_them(self) -> None:
        listed = await self.listed(10_000)
        self.assertEqual(len(listed), 3002)
        self.assertEqual(listed, sorted(set(listed)))
        self.assertEqual(await self.listed(1500), listed[:1500])

    async def test_the_last_ones_are_found_behind_three_batches_in_a_readers_thread(self) -> None:
        shown = watched("*/[a]", "*/[b]", "*/[0]000")
        self.assertEqual(await self.listed(10, shown), ["crowd/0000", "team/a", "team/b"])
        self.assertEqual(len(shown.looked), 3002)
        self.assertNotIn(get_ident(), {thread for _, thread in shown.looked})

    async def test_pages_go_on_where_the_last_one_ended(self) -> None:
        shown = Allowed(None, [Patterns(["*9"]), Patterns(["*/team/*"])])
        listed: list[str] = []
        while True:
            after = listed[-1] if listed else ""
            page = await listed_images(self.catalog, self.names, after, 125, shown)
            listed += page
            if len(page) < 125:
                break
        self.assertEqual(
            listed, [f"crowd/{n:04}" for n in range(9, 3000, 10)] + ["team/a", "team/b"]
        )

    async def test_names_that_nothing_allows_are_not_read(self) -> None:
        for patterns in (("local/team/*",), ("*/t?am/*", "*/nothing")):
            shown = watched(*patterns)
            self.assertEqual(await self.listed(10, shown), ["team/a", "team/b"])
            self.assertEqual(len(shown.looked), 2)

    async def test_patterns_that_are_too_many_to_try_on_each_name_leave_none_out(self) -> None:
        shown = watched("*/a", *(f"*/{number}" for number in range(100)))
        self.assertEqual(await self.listed(10, shown), ["team/a"])
        self.assertEqual(len(shown.looked), 3002)

    async def test_what_a_repository_does_not_show_is_made_up_for_in_later_batches(self) -> None:
        async def choose(images: Sequence[ImageName]) -> Collection[ImageName]:
            return [image for image in images if image.image > "crowd/2998"]

        self.assertEqual(await self.listed(2, choose=choose), ["crowd/2999", "team/a"])

    async def test_lists_take_turns_batch_by_batch(self) -> None:
        reading: list[int] = []
        most = 0
        between = self.catalog.images_between

        async def counted(*args: Any) -> Any:
            nonlocal most
            reading.append(1)
            most = max(most, len(reading))
            try:
                return await between(*args)
            finally:
                reading.pop()

        self.patch(self.catalog, "images_between", counted)
        turn = DeferredLock()
        lists = [
            Deferred.fromCoroutine(self.listed(10, watched("*/[a]"), turn=turn)) for _ in range(5)
        ]
        self.assertEqual(await gatherResults(lists), [["team/a"]] * 5)
        self.assertEqual(most, 1)
