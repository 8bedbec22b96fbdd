"""What ``Cache-Control`` tells caches in front: for ever what is verified, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from artifactd.oci.names import Digest
from tests.pull.case import ALPINE, HELD, PullCase, noise, remote
from tests.pull.download import Download
from tests.upstreams.faulty import CDN

SIZE = 1_000_000
CONTENT = noise(SIZE)
FOR_EVER, NEVER = "max-age=31536000, immutable", "no-store"


class CachingTests(PullCase):
    settings = remote(freshness="1d")

    def setUp(self) -> None:
        super().setUp()
        self.digest = self.blob(CONTENT)

    def assert_caching(self, answer: Download, expected: str, status: int) -> None:
        self.assertEqual(
            (answer.status, answer.headers["cache-control"]), (status, expected), answer.headers
        )

    async def head(self, digest: Digest, headers: Mapping[str, str] | None = None) -> str | None:
        """The ``Cache-Control`` of a HEAD."""
        path = f"/v2/docker.io/{ALPINE}/blobs/{digest}"
        return (await self.registry.request("HEAD", path, headers=headers)).header("Cache-Control")

    async def test_what_is_here_is_for_ever_whole_and_in_parts(self) -> None:
        await self.pull(self.digest)
        self.assert_caching(await self.pull(self.digest), FOR_EVER, 200)
        for wanted in ("0-9", "5-9", "5-", "-9"):
            self.assert_caching(await self.pull(self.digest, wanted), FOR_EVER, 206)
        self.assertEqual(await self.head(self.digest), FOR_EVER)

    async def test_a_part_that_is_fetched_alone_is_for_no_cache_nor_is_it_when_it_is_kept(
        self,
    ) -> None:
        for wanted in ("1000-1999", "-1000"):
            self.assert_caching(await self.pull(self.digest, wanted), NEVER, 206)
        await self.recorded(self.digest, 2)
        self.assert_caching(await self.pull(self.digest, "1500-1600"), NEVER, 206)
        await self.restart()
        self.assert_caching(await self.pull(self.digest, "1500-1600"), NEVER, 206)

    async def test_neither_is_one_that_another_client_waits_for(self) -> None:
        held = self.hub.withhold(CDN, 1500)
        parts = [await self.ask(self.digest, "1000-1999")]
        await held.reached
        parts += [await self.ask(self.digest, wanted) for wanted in ("1000-1999", "1100-1899")]
        for part in parts:
            self.assert_caching(await part.has(0), NEVER, 206)
        held.release()
        for part in parts:
            await part.end()

    async def test_nothing_is_while_the_blob_comes(self) -> None:
        held = self.hub.withhold(CDN, SIZE // 2)
        whole = await (await self.ask(self.digest)).has(1)
        self.assert_caching(whole, NEVER, 200)
        # Passed by the fill, or to come; the ends of the latter are held back.
        for wanted in ("5-99", "0-399999", "5-", f"5-{SIZE - 1}"):
            self.assert_caching(await (await self.ask(self.digest, wanted)).has(1), NEVER, 206)
        held.release()
        self.assertTrue((await whole.end()).body == CONTENT)
        await self.settled(self.digest)
        self.assert_caching(await self.pull(self.digest), FOR_EVER, 200)

    async def test_a_small_blob_is_verified_before_its_headers_go(self) -> None:
        small = self.blob(CONTENT[:HELD])
        self.assert_caching(await self.pull(small), FOR_EVER, 200)

    async def test_a_size_that_the_upstream_alone_has_told_is_for_no_cache(self) -> None:
        self.assertEqual(await self.head(self.digest), NEVER)
        self.assertEqual(await self.head(self.digest, {"If-None-Match": f'"{self.digest}"'}), NEVER)
