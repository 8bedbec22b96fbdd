"""How often a push of a small blob goes from the reactor to a thread and back, and when not."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from artifactd.catalog.catalog import Catalog
from artifactd.kit.deferreds import Threads
from artifactd.oci.names import Digest
from artifactd.registry.uploads import SMALL, EarlyBody
from artifactd.store.uploads import UploadStore
from tests.api.case import ApiTestCase, Connection
from tests.programs import wait_for

CONTENT = b"blob" * 1024
DIGEST = Digest.of(CONTENT)
UPLOADS = "/v2/hello/blobs/uploads/"


class TurnTests(ApiTestCase):
    """:ivar turns: how often work was given to a thread."""

    def setUp(self) -> None:
        super().setUp()
        self.turns = 0
        give = Threads.callInThreadWithCallback

        def counted(pool: Threads, *args: Any, **kwargs: Any) -> None:
            self.turns += 1
            give(pool, *args, **kwargs)

        self.patch(Threads, "callInThreadWithCallback", counted)

    async def fewest(self, push: Callable[[bytes, Digest], Awaitable[object]]) -> int:
        """The turns of ``push``, by whichever of some had the daemon to itself."""
        taken = []
        for number in range(20):
            content = b"%d" % number * 2048
            before = self.turns
            await push(content, Digest.of(content))
            taken.append(self.turns - before)
        return min(taken)

    async def test_a_session_takes_none_before_its_first_byte(self) -> None:
        async def start(content: bytes, digest: Digest) -> None:
            await self.start_upload()

        self.assertEqual(await self.fewest(start), 0)

    async def test_a_small_blob_in_a_chunk_takes_three(self) -> None:
        for chunked in (False, True):

            async def push(content: bytes, digest: Digest, chunked: bool = chunked) -> None:
                location = await self.start_upload()
                await self.accepted(202, "PATCH", location, content, chunked=chunked)
                await self.accepted(201, "PUT", f"{location}?digest={digest}")

            self.assertEqual(await self.fewest(push), 3)

    async def test_a_small_blob_that_comes_with_the_closing_request_takes_two(self) -> None:
        async def push(content: bytes, digest: Digest) -> None:
            location = await self.start_upload()
            await self.accepted(201, "PUT", f"{location}?digest={digest}", content)

        self.assertEqual(await self.fewest(push), 2)

    async def test_a_small_blob_in_one_request_takes_two(self) -> None:
        for method in ("POST", "PUT"):

            async def push(content: bytes, digest: Digest, method: str = method) -> None:
                await self.accepted(201, method, f"{UPLOADS}?digest={digest}", content)

            self.assertEqual(await self.fewest(push), 2)


class BufferTests(ApiTestCase):
    async def test_a_small_blob_takes_no_buffer_while_its_row_is_written(self) -> None:
        stores: list[UploadStore] = []
        used: list[int] = []
        close, add = UploadStore.close, Catalog.add_blob

        def closing(store: UploadStore, *args: Any, **kwargs: Any) -> Any:
            stores.append(store)
            return close(store, *args, **kwargs)

        def adding(*args: Any, **kwargs: Any) -> Any:
            used.append(stores[-1].budget.used)
            return add(*args, **kwargs)

        self.patch(UploadStore, "close", closing)
        self.patch(Catalog, "add_blob", adding)
        for chunked in (False, True):
            location = await self.start_upload()
            for method, path in (("PUT", location), ("POST", UPLOADS)):
                query = f"?digest={DIGEST}"
                await self.accepted(201, method, path + query, CONTENT, chunked=chunked)
        self.assertEqual(used, [0] * 4)

    async def test_what_is_gathered_of_a_body_of_unknown_length_is_acquired_before(self) -> None:
        gathered: list[tuple[int, int]] = []
        gather = EarlyBody.gather

        async def gathering(early: EarlyBody, clock: IReactorTime) -> None:
            budget = early._budget.used
            await gather(early, clock)
            gathered.append((early.size, budget))

        self.patch(EarlyBody, "gather", gathering)
        for _ in range(8):
            location = await self.start_upload()
            await self.accepted(202, "PATCH", location, bytes(8 * SMALL + 1), chunked=True)
        self.assertEqual([pair for pair in gathered if pair[0] > pair[1]], [])


class SlowBodyTests(ApiTestCase):
    async def resume(self, location: str) -> None:
        """Send the rest of a body whose client has left after 100 bytes."""

        async def resumed() -> bool:
            # 416 as long as the registry has not noticed that the client is gone.
            headers = {"Content-Range": f"100-{len(CONTENT) - 1}"}
            answer = await self.registry.request("PATCH", location, CONTENT[100:], headers)
            return answer.status == 202

        await wait_for(resumed)

    async def test_its_session_is_claimed_while_it_arrives(self) -> None:
        location = await self.start_upload()
        chunk = await Connection.begin_body(
            self, self.registry.port, "PATCH", location, len(CONTENT)
        )
        await chunk.send(CONTENT[:100])
        file = self.registry.data / "uploads" / location.rpartition("/")[2]

        def claimed() -> bool:
            fd = os.open(file, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fd)
            return False

        await wait_for(claimed)
        answer = await self.registry.request("PATCH", location, b"evil")
        self.assert_error(answer, 416, "BLOB_UPLOAD_INVALID")
        await chunk.send(CONTENT[100:])
        self.assertEqual((await chunk.answer()).status, 202)
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_what_has_arrived_of_it_stays_when_the_client_leaves(self) -> None:
        location = await self.start_upload()
        chunk = await Connection.begin_body(
            self, self.registry.port, "PATCH", location, len(CONTENT)
        )
        await chunk.send(CONTENT[:100])
        chunk.leave()
        file = self.registry.data / "uploads" / location.rpartition("/")[2]
        await wait_for(lambda: file.stat().st_size == 100)
        await self.resume(location)
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_what_has_arrived_stays_when_the_client_leaves_before_it_is_claimed(self) -> None:
        for method in ("PATCH", "PUT"):
            location = await self.start_upload()
            query = f"?digest={DIGEST}" if method == "PUT" else ""
            chunk = Connection(self, self.registry.port)
            await chunk.head(f"{method} {location}{query}", f"Content-Length: {len(CONTENT)}")
            await chunk.send(CONTENT[:100])
            chunk.leave()

            await self.resume(location)
            await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_a_body_that_turns_out_large_is_passed_on_whole(self) -> None:
        content = os.urandom(8 * SMALL + 1)
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, content, chunked=True)
        await self.accepted(201, "PUT", f"{location}?digest={Digest.of(content)}")
        answer = await self.accepted(200, "GET", f"/v2/hello/blobs/{Digest.of(content)}")
        self.assertEqual(answer.body, content)
