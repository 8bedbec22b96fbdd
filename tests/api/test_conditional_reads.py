"""RFC 9110, 13 and 14, on reads: ``ETag``, 304, ``Cache-Control``, ``Range``."""

from __future__ import annotations

from tests.api.case import ApiTestCase

CONTENT = b"0123456789"
FOR_EVER = "max-age=31536000, immutable"


class NotModifiedTests(ApiTestCase):
    async def paths(self) -> dict[str, tuple[str, str]]:
        """Paths of a blob and of a manifest: their digests, and what caches are told."""
        blob = await self.registry.push_blob("hello", CONTENT)
        manifest = await self.registry.push_image("hello", "v1")
        return {
            f"/v2/hello/blobs/{blob}": (str(blob), FOR_EVER),
            f"/v2/hello/manifests/{manifest}": (str(manifest), FOR_EVER),
            "/v2/hello/manifests/v1": (str(manifest), "no-cache"),
        }

    async def test_what_the_client_has_is_not_sent_again(self) -> None:
        for path, (digest, caching) in (await self.paths()).items():
            for tags in (f'"{digest}"', f'W/"{digest}"', f'"x", "{digest}"', "*"):
                for method in ("GET", "HEAD"):
                    answer = await self.accepted(304, method, path, None, {"If-None-Match": tags})
                    self.assertEqual(answer.body, b"")
                    self.assertEqual(answer.header("ETag"), f'"{digest}"')
                    self.assertEqual(answer.header("Cache-Control"), caching)

    async def test_what_the_client_does_not_have_is_sent(self) -> None:
        for path, (digest, caching) in (await self.paths()).items():
            for tags in ('"x"', digest, '""', "nonsense"):
                answer = await self.accepted(200, "GET", path, None, {"If-None-Match": tags})
                self.assertGreater(len(answer.body), 0)
                self.assertEqual(answer.header("Cache-Control"), caching)

    async def test_a_tag_that_has_moved_is_sent_again(self) -> None:
        before = await self.registry.push_image("hello", "v1")
        after = await self.registry.push_image("hello", "v1", b"layer")
        answer = await self.accepted(
            200, "GET", "/v2/hello/manifests/v1", None, {"If-None-Match": f'"{before}"'}
        )
        self.assertEqual(answer.header("Docker-Content-Digest"), str(after))


class RangeTests(ApiTestCase):
    async def test_part_of_a_blob_is_pulled(self) -> None:
        digest = await self.registry.push_blob("hello", CONTENT)
        for wanted, first, last in (
            ("bytes=0-0", 0, 0),
            ("bytes=2-4", 2, 4),
            ("bytes=7-", 7, 9),
            ("bytes=-3", 7, 9),
            ("bytes=0-", 0, 9),
            ("bytes=8-99", 8, 9),
            ("bytes=-99", 0, 9),
            ("Bytes=1-1", 1, 1),
        ):
            answer = await self.accepted(
                206, "GET", f"/v2/hello/blobs/{digest}", None, {"Range": wanted}
            )
            self.assertEqual(answer.body, CONTENT[first : last + 1], wanted)
            self.assertEqual(answer.header("Content-Range"), f"bytes {first}-{last}/10")
            self.assertEqual(answer.header("Content-Length"), str(last - first + 1))
            self.assertEqual(answer.header("Docker-Content-Digest"), str(digest))

    async def test_part_of_a_large_blob_is_pulled(self) -> None:
        content = bytes(range(251)) * 10_000
        digest = await self.registry.push_blob("hello", content)
        answer = await self.accepted(
            206, "GET", f"/v2/hello/blobs/{digest}", None, {"Range": "bytes=123456-2345678"}
        )
        self.assertEqual(answer.body, content[123456:2345679])

    async def test_a_range_without_a_byte_of_the_blob_is_refused(self) -> None:
        digest = await self.registry.push_blob("hello", CONTENT)
        path = f"/v2/hello/blobs/{digest}"
        for wanted in ("bytes=10-", "bytes=10-12", "bytes=-0", "bytes=9999999999999999999-"):
            answer = await self.refused(416, "SIZE_INVALID", "GET", path, None, {"Range": wanted})
            self.assertEqual(answer.header("Content-Range"), "bytes */10")

    async def test_a_blob_of_no_bytes_has_no_range(self) -> None:
        digest = await self.registry.push_blob("hello", b"")
        path = f"/v2/hello/blobs/{digest}"
        answer = await self.refused(416, "SIZE_INVALID", "GET", path, None, {"Range": "bytes=0-"})
        self.assertEqual(answer.header("Content-Range"), "bytes */0")

    async def test_a_range_that_is_not_understood_is_ignored(self) -> None:
        digest = await self.registry.push_blob("hello", CONTENT)
        for wanted in ("bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes", "bytes=a-b"):
            answer = await self.accepted(
                200, "GET", f"/v2/hello/blobs/{digest}", None, {"Range": wanted}
            )
            self.assertEqual(answer.body, CONTENT, wanted)
            self.assertIsNone(answer.header("Content-Range"))

    async def test_head_takes_no_notice_of_a_range(self) -> None:
        digest = await self.registry.push_blob("hello", CONTENT)
        answer = await self.accepted(
            200, "HEAD", f"/v2/hello/blobs/{digest}", None, {"Range": "bytes=2-4"}
        )
        self.assertEqual((answer.header("Content-Length"), answer.body), ("10", b""))

    async def test_a_range_applies_if_the_client_has_the_rest(self) -> None:
        digest = await self.registry.push_blob("hello", CONTENT)
        for condition, status in (
            (f'"{digest}"', 206),
            (f'W/"{digest}"', 200),
            ('"other"', 200),
            ("Sat, 29 Oct 1994 19:43:31 GMT", 200),
        ):
            headers = {"Range": "bytes=2-4", "If-Range": condition}
            answer = await self.accepted(status, "GET", f"/v2/hello/blobs/{digest}", None, headers)
            self.assertEqual(answer.body, CONTENT[2:5] if status == 206 else CONTENT)

    async def test_what_the_client_has_is_not_sent_in_part_either(self) -> None:
        digest = await self.registry.push_blob("hello", CONTENT)
        headers = {"Range": "bytes=2-4", "If-None-Match": f'"{digest}"'}
        await self.accepted(304, "GET", f"/v2/hello/blobs/{digest}", None, headers)
