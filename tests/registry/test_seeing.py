"""What is in the registry, as commands, the API and pages show it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, cast

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactd.auth.rules import Allowed
from artifactd.catalog.catalog import Catalog
from artifactd.catalog.overview import ENTRIES, LISTED, Overview, TagOrder, TagSeen
from artifactd.oci import names
from artifactd.oci.errors import ManifestUnknown, NameUnknown, QueryInvalid
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest, ImageName, Patterns, Tag
from artifactd.registry.seeing import Page, Seeing, found_in
from tests.api.served import Served, descriptor, image_index, image_manifest

_T = TypeVar("_T")

APP = ImageName("local", "app")
CONFIG = {
    "os": "linux",
    "architecture": "arm",
    "variant": "v7",
    "created": "2026-11-05T14:00:00Z",
    "author": "anne",
    "config": {
        "User": "nobody",
        "Cmd": ["-v"],
        "Entrypoint": ["/app"],
        "Env": ["A=1"],
        "WorkingDir": "/srv",
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "Labels": {"org.example": "<b>"},
    },
    "history": [
        {"created_by": "ADD rootfs"},
        {"created_by": "ENV A=1", "empty_layer": True},
        {"created_by": "RUN make"},
    ],
}
# Configs that are JSON, and that a decoder without bounds takes long for, or fails at.
HUGE = (
    b'{"os":"linux","a":' + 5000 * b"[" + 5000 * b"]" + b"}",
    b'{"os":"linux","config":{"ExposedPorts":{"a":[' + 20_000 * b"[]," + b"[]]}}}",
)


class SeeingTestCase(TestCase):
    def setUp(self) -> None:
        self.registry = Served.start(self)

    @property
    def seeing(self) -> Seeing:
        return self.registry.parts.seeing

    async def push(self, name: str, tag: str, config: object, *layers: bytes) -> Digest:
        """Push an image whose config is ``config``."""
        content = config if isinstance(config, bytes) else json.dumps(config).encode()
        for blob in (content, *layers):
            await self.registry.push_blob(name, blob)
        return await self.registry.push_manifest(name, tag, image_manifest(content, *layers))

    async def all(self, read: Callable[[str | None], Awaitable[Page[_T]]]) -> list[_T]:
        """The entries of all pages."""
        found: list[_T] = []
        after: str | None = None
        for _ in range(100):
            page = await read(after)
            found += page.entries
            after = page.after
            if after is None:
                return found
        raise AssertionError("the list has no end")


class ImageTests(SeeingTestCase):
    NAMES = ("a/x", "a-b/x", "app", "team/app", "team/other")

    async def names(self, limit: int = 100, **how: Any) -> list[str]:
        entries = await self.all(lambda after: self.seeing.images(after, limit, **how))
        return [each.image for each in entries]

    async def test_pages_add_up_to_the_list(self) -> None:
        self.assertEqual([], await self.names())
        for name in self.NAMES:
            await self.push(name, "v1", {})
        expected = sorted(f"local/{name}" for name in self.NAMES)
        for limit in (1, 2, 5, 100):
            self.assertEqual(expected, await self.names(limit))
        self.assertEqual(([], None), _told(await self.seeing.images(limit=0)))

    async def test_images_are_found_by_a_part_of_their_names_a_pattern_or_a_prefix(self) -> None:
        for name in self.NAMES:
            await self.push(name, "v1", {})
        apps = ["local/app", "local/team/app"]
        self.assertEqual(apps, await self.names(1, pattern=found_in("app")))
        self.assertEqual(["local/app"], await self.names(pattern="local/[!t]*p"))
        self.assertEqual(["local/team/app"], await self.names(pattern=found_in("*/team/a?p")))
        self.assertEqual(["local/a/x"], await self.names(prefix="local/a/"))
        self.assertEqual(
            ["local/team/app"], await self.names(prefix="local/team/", pattern=found_in("app"))
        )
        self.assertEqual([], await self.names(prefix="local/team/", pattern="local/app*"))

    async def test_what_is_searched_for_has_a_bound_and_is_not_compiled_meanwhile(self) -> None:
        # Of 16,000 brackets that took 17 seconds, in which the daemon did nothing else.
        compiled: list[str] = []
        self.patch(names, "translate", compiled.append)
        self.assertEqual([], await self.names(pattern=found_in("[" * 512)))
        self.assertEqual([], compiled)
        self.assertRaises(QueryInvalid, found_in, "[" * 513)

    async def test_only_what_may_be_seen_is_shown(self) -> None:
        for name in self.NAMES:
            await self.push(name, "v1", {})
        shown = Allowed(None, [Patterns(("local/team/*", "*/x"))])
        expected = ["local/a-b/x", "local/a/x", "local/team/app", "local/team/other"]
        self.assertEqual(expected, await self.names(3, shown=shown))
        self.assertEqual(expected[2:], await self.names(prefix="local/team", shown=shown))

    async def test_a_page_begins_behind_what_was_told_and_nothing_else(self) -> None:
        for after in ("", "local/app", "WyJh", "bnVsbA", "é", "W10", "WzFd"):
            reading: list[Coroutine[Any, Any, Page[Any]]] = [
                self.seeing.images(after),
                self.seeing.deleted(None, after),
                self.seeing.tags(APP, after),
            ]
            if after != "WzFd":  # [1] is a place in a history
                reading.append(self.seeing.history(APP, None, after))
            for each in reading:
                await self.assertFailure(_started(each), QueryInvalid)


def _started(coroutine: Any) -> Any:
    return Deferred.fromCoroutine(coroutine)


def _told(page: Page[Any]) -> tuple[list[Any], str | None]:
    return list(page.entries), page.after


class TagTests(SeeingTestCase):
    async def names(self, limit: int = 100, **how: Any) -> list[str]:
        entries = await self.all(lambda after: self.seeing.tags(APP, after, limit, **how))
        return [each.tag for each in entries]

    async def test_pages_in_every_order_add_up_to_the_list(self) -> None:
        pushed = ["v2", "v10", "latest", "v1", "a"]
        for tag in pushed:
            await self.push("app", tag, {"tag": tag})
        for limit in (1, 2, 5):
            self.assertEqual(sorted(pushed), await self.names(limit))
            for order, expected in (
                (TagOrder.NAME_REVERSED, sorted(pushed, reverse=True)),
                (TagOrder.MOVED, pushed),
                (TagOrder.MOVED_REVERSED, pushed[::-1]),
            ):
                self.assertEqual(expected, await self.names(limit, order=order))
        self.assertEqual(["v1", "v10"], await self.names(1, pattern="v1*"))
        await self.assertFailure(
            _started(self.seeing.tags(ImageName("local", "absent"))), NameUnknown
        )

    async def test_a_tag_with_its_platforms(self) -> None:
        digest = await self.push("app", "v1", CONFIG, b"layer")
        for _ in range(2):  # the second time they are known
            seen = await self.seeing.tag(APP, Tag.parse("v1"))
            self.assertEqual((str(digest), ["linux/arm/v7"]), (seen.digest, list(seen.platforms)))
        await self.assertFailure(_started(self.seeing.tag(APP, Tag.parse("v2"))), ManifestUnknown)

    async def test_a_config_that_is_none_has_no_platforms(self) -> None:
        for number, config in enumerate((b"", b"\xff", b"[]", b'{"os": 1}', b"[" * 1000, *HUGE)):
            await self.push("app", f"v{number}", config, b"layer")
            seen = await self.seeing.tag(APP, Tag.parse(f"v{number}"))
            self.assertEqual([], list(seen.platforms))


class LargeTests(SeeingTestCase):
    async def test_few_documents_of_a_list_are_in_memory_at_a_time(self) -> None:
        long = 200_000
        await self.registry.push_blob("app", b"{}")
        for number in range(40):
            content = image_manifest(b"{}", annotations={"long": f"{number}" + long * "a"})
            await self.registry.push_manifest("app", f"v{number}", content)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        page = await self.seeing.tags(APP)
        _, most = tracemalloc.get_traced_memory()
        self.assertEqual(40, len(page.entries))
        self.assertLess(most, 20 * long)

    async def test_lists_of_tags_take_one_reader_of_the_catalog_at_most(self) -> None:
        asked: list[Deferred[None]] = []

        class Slow:
            async def tags(self, *args: object) -> list[TagSeen]:
                asked.append(Deferred())
                await asked[-1]
                return []

        seeing = evolve(self.seeing, overview=cast(Overview, Slow()))
        listing = [_started(seeing.tags(APP)) for _ in range(3)]
        for number in range(1, 4):
            self.assertEqual(number, len(asked))
            asked[-1].callback(None)
        for each in listing:
            self.assertEqual([], (await each).entries)

    async def test_searches_and_sums_take_one_reader_of_the_catalog_at_most(self) -> None:
        asked: list[Deferred[None]] = []

        async def slow(*args: object, **named: object) -> Any:
            asked.append(Deferred())
            await asked[-1]
            return ([], None) if len(args) > 1 else []

        self.patch(Catalog, "images_between", lambda _, *args: slow(*args))
        self.patch(Overview, "images", lambda _, *args, **named: slow(*args, **named))
        listing = [_started(self.seeing.images(pattern="*a*")) for _ in range(2)]
        for number in range(1, 5):
            self.assertEqual(number, len(asked))
            asked[-1].callback(None)
        for each in listing:
            self.assertEqual([], (await each).entries)

    async def test_so_many_platforms_of_a_manifest_are_told_and_so_much_of_each(self) -> None:
        await self.push("app", "v1", CONFIG, b"base")
        answer = await self.registry.request("GET", "/v2/app/manifests/v1")
        index = json.loads(image_index(answer.body))
        (entry,) = index["manifests"]
        index["manifests"] = [
            {**entry, "platform": {"os": f"{number}" + 500 * "a", "architecture": "arm"}}
            for number in range(200)
        ]
        await self.registry.request(
            "PUT", "/v2/app/manifests/all", json.dumps(index).encode(), {"Content-Type": OCI_INDEX}
        )
        seen = await self.seeing.tag(APP, Tag.parse("all"))
        self.assertEqual([100] * 100, [len(each) for each in seen.platforms])


class ManifestTests(SeeingTestCase):
    async def test_an_image_with_its_config_and_the_commands_of_its_layers(self) -> None:
        await self.push("app", "v1", CONFIG, b"base", b"made")
        await self.push("other", "v1", {}, b"base")
        seen = await self.seeing.manifest(APP, Tag.parse("v1"))
        self.assertEqual(
            [
                ("config", None, 0),
                ("layer", "ADD rootfs", 1),
                ("layer", "RUN make", 0),
            ],
            [(each.role, each.created_by, each.shared) for each in seen.entries],
        )
        self.assertEqual([len(json.dumps(CONFIG)), 4, 4], [each.size for each in seen.entries])
        config = seen.config
        assert config is not None
        self.assertEqual({"org.example": "<b>"}, config.labels)
        self.assertEqual(
            ("anne", "nobody", "/srv", ["/app"], ["-v"], ["A=1"], ["80/tcp"], ["/data"]),
            (
                *(config.author, config.user, config.working_dir, config.entrypoint),
                *(config.command, config.environment, config.ports, config.volumes),
            ),
        )
        self.assertEqual(["linux/arm/v7"], list(seen.platforms))
        self.assertEqual((["v1"], False), (seen.tags, seen.is_cut))

    async def test_an_index_with_its_images_and_their_referrers(self) -> None:
        digest = await self.push("app", "v1", CONFIG, b"base")
        answer = await self.registry.request("GET", "/v2/app/manifests/v1")
        index = json.loads(image_index(answer.body, annotations={"a": "1"}))
        absent = {**descriptor(b"absent"), "mediaType": OCI_MANIFEST}
        index["manifests"][0]["platform"] = {"os": "linux", "architecture": "arm"}
        index["manifests"].append({**index["manifests"][0], "platform": "nonsense"})
        content = json.dumps(index).encode()
        answer = await self.registry.request(
            "PUT", "/v2/app/manifests/all", content, {"Content-Type": OCI_INDEX}
        )
        self.assertEqual(201, answer.status)
        signature = image_manifest(
            b"{}",
            subject=descriptor(content, OCI_INDEX),
            artifactType="application/x-signature",
            annotations={"b": "2"},
        )
        await self.registry.push_blob("app", b"{}")
        referrer = await self.registry.push_manifest("app", str(Digest.of(signature)), signature)
        seen = await self.seeing.manifest(APP, Tag.parse("all"))
        (entry,) = seen.entries
        self.assertEqual(
            ("manifest", "linux/arm", str(digest)), (entry.role, entry.platform, entry.digest)
        )
        self.assertEqual(["linux/arm"], list(seen.platforms))
        self.assertEqual({"a": "1"}, seen.annotations)
        assert entry.manifest is not None
        self.assertEqual(["config", "layer"], [each.role for each in entry.manifest.entries])
        self.assertEqual([seen.digest], entry.manifest.indexes)
        (told,) = seen.referrers
        self.assertEqual(
            (str(referrer), "application/x-signature", len(signature)),
            (told.digest, told.kind, told.size),
        )
        seen = await self.seeing.manifest(APP, Tag.parse("all"), most=0)
        self.assertIsNone(seen.entries[0].manifest)
        self.assertNotIn(absent["digest"], [each.digest for each in seen.entries])

    async def test_an_index_of_many_images_is_told_in_part(self) -> None:
        config = b'{"config": {"Labels": {"a": "%b"}}}' % (500_000 * b"a")
        await self.registry.push_blob("app", config)
        children = [image_manifest(config, annotations={"n": str(number)}) for number in range(12)]
        for child in children:
            await self.registry.push_manifest("app", str(Digest.of(child)), child)
        answer = await self.registry.request(
            "PUT", "/v2/app/manifests/all", image_index(*children), {"Content-Type": OCI_INDEX}
        )
        self.assertEqual(201, answer.status)
        for most, told in ((100, 3), (2, 2)):  # three exceed 1 MiB
            seen = await self.seeing.manifest(APP, Tag.parse("all"), most)
            self.assertEqual(12, len(seen.entries))
            self.assertEqual(told, sum(each.manifest is not None for each in seen.entries))

    async def test_a_config_of_another_image_is_not_looked_into(self) -> None:
        self.registry = Served.start(
            self, '[repository.local]\nkind = "local"\nsparse = "images"\n'
        )
        await self.push("private", "v1", CONFIG, b"secret")
        content = image_manifest(json.dumps(CONFIG).encode(), b"secret")
        await self.registry.push_manifest("app", "v1", content)
        seen = await self.seeing.manifest(APP, Tag.parse("v1"))
        self.assertEqual((None, []), (seen.config, list(seen.platforms)))
        self.assertEqual([(None, 0)] * 2, [(each.size, each.shared) for each in seen.entries])
        tag = await self.seeing.tag(APP, Tag.parse("v1"))
        self.assertEqual(([], len(content)), (list(tag.platforms), tag.size))

    async def test_of_many_entries_some_are_told(self) -> None:
        self.registry = Served.start(
            self, '[repository.local]\nkind = "local"\nsparse = "images"\n'
        )
        layers = [str(number).encode() for number in range(ENTRIES + 5)]
        await self.registry.push_blob("app", b"{}")
        content = image_manifest(b"{}", *layers)
        await self.registry.push_manifest("app", "v1", content)
        seen = await self.seeing.manifest(APP, Tag.parse("v1"))
        self.assertEqual((ENTRIES, True), (len(seen.entries), seen.is_cut))

    async def test_of_many_tags_some_are_told(self) -> None:
        await self.registry.push_blob("app", b"{}")
        content = image_manifest(b"{}")
        for number in range(LISTED + 1):
            await self.registry.push_manifest("app", f"v{number:03}", content)
        seen = await self.seeing.manifest(APP, Digest.of(content))
        self.assertEqual((LISTED, True), (len(seen.tags), seen.is_cut))


class HistoryTests(SeeingTestCase):
    async def test_movements_in_pages_in_either_direction(self) -> None:
        digests = [str(await self.push("app", "v1", {"n": n})) for n in range(3)]
        await self.push("app", "v2", {})
        for newest_first in (True, False):
            history = partial(self.seeing.history, APP, newest_first=newest_first)
            self.assertEqual(4, len(await self.all(partial(history, None, limit=1))))
            moved = await self.all(partial(history, Tag.parse("v1"), limit=2))
            told = [each.after for each in moved]
            self.assertEqual(digests[::-1] if newest_first else digests, told)
        await self.assertFailure(
            _started(self.seeing.history(ImageName("local", "absent"))), NameUnknown
        )
        self.assertEqual(([], None), _told(await self.seeing.history(APP, Tag.parse("absent"))))


class DeletedTests(SeeingTestCase):
    async def deleted(self, *what: Any, limit: int = 100, **how: Any) -> list[tuple[str, str]]:
        image = what[0] if what else None
        entries = await self.all(lambda after: self.seeing.deleted(image, after, limit, **how))
        self.assertEqual(
            sorted((each.at for each in entries), reverse=True), [each.at for each in entries]
        )
        self.assertTrue(all(each.until == each.at + 7 * 24 * 3600 for each in entries))
        return [(each.image, each.name) for each in entries]

    async def test_what_was_deleted_in_pages_the_newest_first(self) -> None:
        self.assertEqual([], await self.deleted(APP))
        one = await self.push("app", "v1", {})
        await self.push("app", "v2", {})
        await self.push("team/other", "v1", {})
        blob = await self.registry.push_blob("app", b"loose")
        for path in (
            "app/manifests/v1",
            "team/other/manifests/v1",
            f"app/blobs/{blob}",
            f"app/manifests/{one}",
        ):
            answer = await self.registry.request("DELETE", f"/v2/{path}")
            self.assertEqual(202, answer.status)
        # The manifest goes with the tag v2, at the same time.
        newest, oldest = [("local/app", "v2"), ("local/app", str(one))], [("local/app", "v1")]
        rest = [("local/app", str(blob)), ("local/team/other", "v1"), *oldest]
        for limit in (1, 2, 3, 5, 100):
            told = await self.deleted(limit=limit)
            self.assertEqual(set(newest), set(told[:2]))
            self.assertEqual(rest, told[2:])
            self.assertEqual(
                [each for each in told if each[0] == "local/app"], [*told[:2], rest[0], *oldest]
            )
            self.assertEqual(told[:3] + oldest, await self.deleted(APP, limit=limit))
        shown = Allowed(None, [Patterns(("local/team/*",))])
        self.assertEqual([("local/team/other", "v1")], await self.deleted(limit=1, shown=shown))
        self.assertEqual([], await self.deleted(ImageName("local", "absent")))
