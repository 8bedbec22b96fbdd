"""The list of all images, on a real catalog."""

from __future__ import annotations

from itertools import product

from artifactd.oci.names import ImageName
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
