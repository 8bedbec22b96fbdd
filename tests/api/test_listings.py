"""``_catalog``, and distribution-spec, "Listing Tags": end-8a, end-8b."""

from __future__ import annotations

import json
import re

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase
from tests.api.served import Served

TAGS = ["1", "10", "B", "_", "a", "a-1", "a.1", "b"]


def next_page(link: str | None) -> str | None:
    """The path in a ``Link`` header: RFC 8288, relation ``next``."""
    if link is None:
        return None
    match = re.fullmatch(r'<(/v2/[^>]+)>; rel="next"', link)
    assert match is not None, link
    return match[1]


async def pages(registry: Served, path: str, field: str) -> list[list[str]]:
    """What ``field`` holds, page by page, following ``Link``."""
    found = []
    following: str | None = path
    while following is not None:
        answer = await registry.request("GET", following)
        assert answer.status == 200, answer
        assert answer.header("Content-Type") == "application/json"
        found.append(json.loads(answer.body)[field])
        following = next_page(answer.header("Link"))
    return found


class TagTests(ApiTestCase):
    async def push_tags(self) -> None:
        digest = await self.registry.push_image("hello", TAGS[0])
        got = await self.accepted(200, "GET", f"/v2/hello/manifests/{digest}")
        query = "&".join(f"tag={tag}" for tag in reversed(TAGS))
        path = f"/v2/hello/manifests/{digest}?{query}"
        await self.accepted(201, "PUT", path, got.body)

    async def test_tags_are_listed_in_ascii_order(self) -> None:
        await self.push_tags()
        answer = await self.accepted(200, "GET", "/v2/hello/tags/list")
        self.assertEqual(json.loads(answer.body), {"name": "hello", "tags": TAGS})
        self.assertIsNone(answer.header("Link"))

    async def test_tags_are_listed_page_by_page(self) -> None:
        await self.push_tags()
        for n in (1, 3, 4, 8, 100):
            expected = [TAGS[first : first + n] for first in range(0, len(TAGS), n)]
            self.assertEqual(
                await pages(self.registry, f"/v2/hello/tags/list?n={n}", "tags"), expected
            )

    async def test_tags_are_listed_behind_the_last_one(self) -> None:
        await self.push_tags()
        for query, expected in (
            ("last=a", TAGS[5:]),
            ("last=a&n=2", TAGS[5:7]),
            ("n=2&last=a.0", TAGS[6:8]),  # need not be there
            ("last=b", []),
            ("last=", TAGS),
            ("n=", TAGS),
            ("n", TAGS),
            ("n=&last=a", TAGS[5:]),
            ("n=99999999999999999999"[:21], TAGS),
        ):
            answer = await self.accepted(200, "GET", f"/v2/hello/tags/list?{query}")
            self.assertEqual(json.loads(answer.body)["tags"], expected, query)

    async def test_no_tags_are_listed_if_none_are_asked_for(self) -> None:
        await self.push_tags()
        answer = await self.accepted(200, "GET", "/v2/hello/tags/list?n=0")
        self.assertEqual(json.loads(answer.body), {"name": "hello", "tags": []})
        self.assertIsNone(answer.header("Link"))

    async def test_a_number_that_is_none_is_refused(self) -> None:
        for n in ("-1", "x", "1.5", "%D9%A1", "1e3", "9" * 20):
            await self.refused(400, "UNSUPPORTED", "GET", f"/v2/hello/tags/list?n={n}")

    async def test_an_unknown_name_has_no_list(self) -> None:
        await self.refused(404, "NAME_UNKNOWN", "GET", "/v2/hello/tags/list")
        await self.registry.push_blob("hello", b"content")
        await self.start_upload()
        await self.refused(404, "NAME_UNKNOWN", "GET", "/v2/hello/tags/list")

    async def test_an_emptied_image_has_an_empty_list(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{digest}")
        answer = await self.accepted(200, "GET", "/v2/hello/tags/list")
        self.assertEqual(json.loads(answer.body), {"name": "hello", "tags": []})

    async def test_head_of_a_list_has_no_body(self) -> None:
        await self.push_tags()
        answer = await self.accepted(200, "HEAD", "/v2/hello/tags/list")
        self.assertEqual(answer.body, b"")


class CatalogTests(ApiTestCase):
    toml = """
        [repository.local]
        kind = "local"
        [repository.team]
        kind = "local"
        [repository.team-2]
        kind = "local"
    """

    async def push_images(self) -> list[str]:
        """Push some, and under more names than they are listed by; their names as listed."""
        await self.registry.push_image("hello", "v1")
        await self.registry.push_image("local/hello", "v2")
        for name in ("a/b", "a-b", "team", "team.x", "zoo/x"):
            await self.registry.push_image(f"local/{name}", "v1")
        for name in ("team/x", "team/hello", "team-2/x", "local/team/x", "local/team-2/y"):
            await self.registry.push_image(name, "v1")
        await self.registry.push_blob("blobs-only", b"content")
        return [
            "a-b",
            "a/b",
            "hello",
            "local/team-2/y",
            "local/team/x",
            "team",
            "team-2/x",
            "team.x",
            "team/hello",
            "team/x",
            "zoo/x",
        ]

    async def test_each_image_is_listed_once_and_with_a_prefix_where_needed(self) -> None:
        listed = await self.push_images()
        answer = await self.accepted(200, "GET", "/v2/_catalog")
        self.assertEqual(json.loads(answer.body), {"repositories": listed})
        self.assertIsNone(answer.header("Link"))
        for name in listed:
            await self.accepted(200, "GET", f"/v2/{name}/manifests/v1")

    async def test_images_are_listed_page_by_page(self) -> None:
        listed = await self.push_images()
        for n in (1, 2, 5, 11, 50):
            expected = [listed[first : first + n] for first in range(0, len(listed), n)]
            self.assertEqual(
                await pages(self.registry, f"/v2/_catalog?n={n}", "repositories"), expected
            )

    async def test_images_are_listed_behind_the_last_one(self) -> None:
        listed = await self.push_images()
        for last in (*listed, "", "local", "local/", "team/", "m", "zzz", "%FF"):
            answer = await self.accepted(200, "GET", f"/v2/_catalog?n=3&last={last}")
            behind = [name for name in listed if name > last.replace("%FF", "\ufffd")]
            self.assertEqual(json.loads(answer.body)["repositories"], behind[:3], last)

    async def test_no_image_is_listed_if_none_is_asked_for(self) -> None:
        await self.push_images()
        answer = await self.accepted(200, "GET", "/v2/_catalog?n=0")
        self.assertEqual((answer.body, answer.header("Link")), (b'{"repositories":[]}', None))

    async def test_an_emptied_image_is_listed_still(self) -> None:
        digest = await self.registry.push_image("hello", "v1")
        self.assertEqual(digest.algorithm, Digest.of(b"").algorithm)
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{digest}")
        answer = await self.accepted(200, "GET", "/v2/_catalog")
        self.assertEqual(json.loads(answer.body), {"repositories": ["hello"]})


class LongListTests(ApiTestCase):
    """Lists that are longer than the longest page, which is what a client gets that names none."""

    MOST = 10_000

    async def write(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        """Insert rows into the catalog."""
        database = self.registry.parts.catalog.database
        await database.write(lambda db: db.executemany(statement, rows).rowcount)

    async def assert_pages(self, path: str, field: str, expected: list[str], most: int) -> None:
        """A client that follows ``Link`` gets all of it, in full pages."""
        found = await pages(self.registry, path, field)
        self.assertEqual([len(page) for page in found], [most, len(expected) - most])
        self.assertEqual(sorted(each for page in found for each in page), sorted(expected))

    async def test_tags(self) -> None:
        await self.registry.push_image("hello", "a")
        tags = [f"t{number:05}" for number in range(self.MOST)]
        await self.write(
            "INSERT INTO tag (image_id, name, manifest_id, moved_at)"
            " SELECT image_id, ?, id, 1.0 FROM manifest",
            [(tag,) for tag in tags],
        )
        for query in ("", "?n=20000"):
            path = f"/v2/hello/tags/list{query}"
            await self.assert_pages(path, "tags", ["a", *tags], self.MOST)

    async def test_images(self) -> None:
        names = [f"app/{number:05}" for number in range(self.MOST + 1)]
        await self.write(
            "INSERT INTO image (repository, name, known_at) VALUES ('local', ?, 1.0)",
            [(name,) for name in names],
        )
        await self.assert_pages("/v2/_catalog", "repositories", names, self.MOST)

    async def test_referrers(self) -> None:
        await self.registry.push_image("hello", "a")
        subject = Digest.of(b"subject")
        digests = [str(Digest.of(b"%d" % number)) for number in range(1001)]
        await self.write(
            "INSERT INTO blob (digest, size, created_at) VALUES (?, 10, 1.0)",
            [(digest,) for digest in digests],
        )
        await self.write(
            "INSERT INTO manifest (image_id, digest, media_type, subject, annotations, pushed_at)"
            " SELECT id, ?, ?, ?, '{}', 1.0 FROM image",
            [(digest, OCI_MANIFEST, str(subject)) for digest in digests],
        )
        found: list[list[str]] = []
        following: str | None = f"/v2/hello/referrers/{subject}"
        while following is not None:
            answer = await self.accepted(200, "GET", following)
            found.append([each["digest"] for each in json.loads(answer.body)["manifests"]])
            following = next_page(answer.header("Link"))
        self.assertEqual([len(page) for page in found], [1000, 1])
        self.assertEqual(sorted(each for page in found for each in page), sorted(digests))
