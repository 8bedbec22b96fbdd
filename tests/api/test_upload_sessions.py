"""Upload sessions that are nothing but their ids, before their first byte and after their end."""

from __future__ import annotations

import os
import time
from functools import partial
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import UploadRecord
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Algorithm, Digest, ImageName
from artifactd.registry.uploads import SMALL
from artifactd.store.uploads import Owners
from tests.api.case import ApiTestCase, Connection
from tests.api.served import Served
from tests.catalog.fixture import add_upload
from tests.process import Answer
from tests.programs import reactor

CONTENT = b"0123456789"
DIGEST = Digest.of(CONTENT)
LARGE = bytes(4 * SMALL)
UPLOADS = "/v2/hello/blobs/uploads/"
HOUR = 3600.0


class SessionTestCase(ApiTestCase):
    async def assert_unknown(self, location: str) -> None:
        """No step of a session is possible at ``location``, and none leaves anything."""
        for method, path, body in (
            ("GET", location, None),
            ("PATCH", location, b""),
            ("PATCH", location, CONTENT),
            ("PATCH", location, LARGE),
            ("PUT", f"{location}?digest={Digest.of(b'other')}", b"other"),
            ("PUT", f"{location}?digest={Digest.of(b'other')}", None),
            ("PUT", f"{location}?digest={Digest.of(LARGE[1:])}", LARGE[1:]),
            ("DELETE", location, None),
        ):
            await self.refused(404, "BLOB_UPLOAD_UNKNOWN", method, path, body)
        headers = {"Content-Range": "0-9"}
        await self.refused(404, "BLOB_UPLOAD_UNKNOWN", "PATCH", location, CONTENT, headers)


class UnusedTests(SessionTestCase):
    """A session that has had no byte."""

    async def test_it_stores_nothing(self) -> None:
        before = self.state()
        location = await self.start_upload()
        for method, body in (("GET", None), ("PATCH", b"")):
            status = {"GET": 204, "PATCH": 202}[method]
            answer = await self.accepted(status, method, location, body)
            self.assertEqual(answer.header("Range"), "0-0")
            self.assertEqual(answer.header("Location"), f"{location}?offset=0")
        self.assertEqual(self.state(), before)
        self.assertEqual(self.registry.files(), [])

    async def test_its_location_is_short_and_it_belongs_to_its_image(self) -> None:
        location = await self.start_upload("a" * 200)
        self.assertLess(len(location), 400)
        await self.assert_unknown(location.replace("a" * 200, "a" * 199))
        await self.accepted(204, "GET", location)

    async def test_its_image_has_two_names(self) -> None:
        location = await self.start_upload()
        other = location.replace("/v2/hello/", "/v2/local/hello/")
        await self.accepted(202, "PATCH", other, CONTENT)
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}")

    async def test_one_that_was_made_up_is_unknown(self) -> None:
        location = await self.start_upload()
        head, _, upload_id = location.rpartition("/")
        uuid, seal = upload_id.split(".")
        forged = [uuid, str(uuid4()), f"{uuid4()}.{seal}", f"{uuid}.{seal[:-1]}"]
        for other in (*forged, f"{uuid}.{'A' * 30}"):
            await self.assert_unknown(f"{head}/{other}")

    async def test_the_first_chunk_belongs_at_its_beginning(self) -> None:
        location = await self.start_upload()
        for body in (CONTENT, LARGE):
            for path, headers in (
                (f"{location}?offset=4", {}),
                (location, {"Content-Range": f"4-{3 + len(body)}"}),
            ):
                answer = await self.refused(
                    416, "BLOB_UPLOAD_INVALID", "PATCH", path, body, headers
                )
                self.assertEqual(answer.header("Location"), f"{location}?offset=0")
        await self.accepted(202, "PATCH", location, CONTENT)

    async def test_a_client_that_leaves_before_the_first_byte_leaves_nothing(self) -> None:
        location = await self.start_upload()
        chunk = await Connection.begin_body(self, self.registry.port, "PATCH", location, 10)
        self.assertEqual(len(self.registry.files()), 1)
        chunk.leave()
        answer = await self.registry.request("PATCH", location, CONTENT)
        while answer.status == 416:  # the registry has not noticed yet that the client is gone
            answer = await self.registry.request("PATCH", location, CONTENT)
        self.assertEqual((answer.status, answer.header("Range")), (202, "0-9"))
        await self.accepted(204, "DELETE", location)
        self.assertEqual(self.registry.files(), [])


class EndTests(SessionTestCase):
    """However a session ends, it stays ended."""

    async def test_cancelled_before_its_first_byte(self) -> None:
        location = await self.start_upload()
        await self.accepted(204, "DELETE", location)
        await self.assert_unknown(location)

    async def test_cancelled_later(self) -> None:
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, CONTENT)
        await self.accepted(204, "DELETE", location)
        await self.assert_unknown(location)

    async def test_closed(self) -> None:
        for body in (CONTENT, LARGE):
            for chunk in (b"", body[:4]):
                location = await self.start_upload()
                await self.accepted(202, "PATCH", location, chunk)
                path = f"{location}?digest={Digest.of(body)}"
                await self.accepted(201, "PUT", path, body[len(chunk) :])
                await self.assert_unknown(location)
                await self.accepted(201, "PUT", path)

    async def test_by_a_wrong_digest(self) -> None:
        for body in (b"wrong", LARGE + b"wrong"):
            location = await self.start_upload()
            answer = await self.registry.request("PUT", f"{location}?digest={DIGEST}", body)
            self.assert_error(answer, 400, "DIGEST_INVALID")
            await self.assert_unknown(location)
        self.assertEqual(self.registry.files(), [])

    async def test_by_its_age(self) -> None:
        uploads = self.registry.parts.registry.uploads
        location, begun = await self.start_upload(), await self.start_upload()
        await self.accepted(202, "PATCH", begun, CONTENT[:4])
        uploads.now = lambda: time.time() + 24 * HOUR - 60
        await self.accepted(204, "GET", location)
        uploads.now = lambda: time.time() + 24 * HOUR + 1
        await self.assert_unknown(location)
        # What is written to lives on.
        await self.assert_offset(begun, 4)
        await self.accepted(201, "PUT", f"{begun}?digest={DIGEST}", CONTENT[4:])
        await self.assert_unknown(begun)

    async def test_what_is_noted_of_it_is_forgotten_when_its_id_has_expired(self) -> None:
        catalog, sweep = self.registry.parts.catalog, self.registry.parts.sweep
        location = await self.start_upload()
        await self.accepted(204, "DELETE", location)
        upload_id = location.rpartition("/")[2]
        for age, noted in ((24 * HOUR - 60, True), (24 * HOUR + 1, False)):
            sweep.now = partial(time.time().__add__, age)
            await sweep.run()
            self.assertEqual(await catalog.is_upload_ended(upload_id), noted)


class RaceTests(SessionTestCase):
    """A session that ends while its first chunk is under way."""

    async def test_it_is_cancelled_before_that_is_looked_at(self) -> None:
        is_ended = Catalog.is_upload_ended

        async def cancelled_first(catalog: Catalog, upload_id: str) -> bool:
            self.patch(Catalog, "is_upload_ended", is_ended)
            await self.accepted(204, "DELETE", location)
            return await catalog.is_upload_ended(upload_id)

        for content in (CONTENT, LARGE):
            location = await self.start_upload()
            self.patch(Catalog, "is_upload_ended", cancelled_first)
            answer = await self.registry.request("PATCH", location, content)
            self.assert_error(answer, 404, "BLOB_UPLOAD_UNKNOWN")
            self.assertEqual(self.registry.files(), [])
            await self.assert_unknown(location)

    async def test_one_whose_end_can_not_be_noted_is_not_begun_anew(self) -> None:
        end = Catalog.end_upload

        async def locked(*_: object) -> bool:
            raise Unavailable("the catalog is locked")

        wrong = f"?digest={Digest.of(b'other')}"
        for status, method, query in ((503, "PUT", wrong), (204, "DELETE", "")):
            location = await self.start_upload()
            await self.accepted(202, "PATCH", location, LARGE)
            self.patch(Catalog, "end_upload", locked)
            await self.accepted(status, method, location + query)
            self.patch(Catalog, "end_upload", end)
            sizes = [(self.registry.data / file).stat().st_size for file in self.registry.files()]
            self.assertEqual(sizes, [0])
            for headers in (None, {"Content-Range": "0-9"}, {"Content-Range": "10-19"}):
                answer = await self.registry.request("PATCH", location, CONTENT[:10], headers)
                self.assert_error(answer, 404, "BLOB_UPLOAD_UNKNOWN")
            await self.accepted(404, "GET", location)
            if method == "PUT":
                await self.accepted(204, "DELETE", location)
            else:
                [left] = self.registry.files()
                os.utime(self.registry.data / left, times=(0, 0))
                await self.registry.parts.sweep.run()
            await self.assert_unknown(location)
            self.assertEqual(self.registry.files(), [])

    async def test_it_is_cancelled_behind_that(self) -> None:
        """The file is made between the two steps of the cancellation."""
        end = Catalog.end_upload
        location = await self.start_upload()

        async def begun_first(catalog: Catalog, upload_id: str, *args: object) -> bool:
            self.patch(Catalog, "end_upload", end)
            await self.accepted(202, "PATCH", location, CONTENT)
            self.assertEqual(len(self.registry.files()), 1)
            return await end(catalog, upload_id, *args)  # type: ignore[arg-type]  # as it came

        self.patch(Catalog, "end_upload", begun_first)
        await self.accepted(204, "DELETE", location)
        self.assertEqual(self.registry.files(), [])
        await self.assert_unknown(location)

    async def test_it_is_closed_in_another_process_behind_that(self) -> None:
        second = Served.start(self, data=self.registry.data)
        add = Catalog.add_blob
        location = await self.start_upload()

        async def begun_first(catalog: Catalog, *args: object) -> None:
            self.patch(Catalog, "add_blob", add)
            answer = await second.request("PATCH", location, b"late")
            self.assertEqual(answer.status, 202)
            await add(catalog, *args)  # type: ignore[arg-type]  # as they came

        self.patch(Catalog, "add_blob", begun_first)
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}", CONTENT)
        encoded = DIGEST.encoded
        self.assertEqual(self.registry.files(), [f"blobs/sha256/{encoded[:2]}/{encoded}"])
        await self.assert_unknown(location)

    async def test_it_is_cancelled_while_it_is_closed(self) -> None:
        add = Catalog.add_blob
        location = await self.start_upload()

        async def cancelled_first(catalog: Catalog, *args: object) -> None:
            self.patch(Catalog, "add_blob", add)
            await self.accepted(204, "DELETE", location)
            await add(catalog, *args)  # type: ignore[arg-type]  # as they came

        self.patch(Catalog, "add_blob", cancelled_first)
        path = f"{location}?digest={DIGEST}"
        answer = await self.registry.request("PUT", path, CONTENT)
        self.assert_error(answer, 404, "BLOB_UPLOAD_UNKNOWN")
        self.assertEqual(self.registry.files(), [])
        await self.assert_unknown(location)

    async def test_whoever_writes_first_to_a_file_that_another_has_made_looks_for_its_end(
        self,
    ) -> None:
        other = Served.start(self, data=self.registry.data)
        create, answers = Owners.create, list[Answer]()
        location = await self.start_upload()
        await self.accepted(201, "PUT", f"{location}?digest={DIGEST}", CONTENT)

        def ask() -> Deferred[None]:
            asking = Deferred.fromCoroutine(other.request("PATCH", location, CONTENT))
            return asking.addCallback(answers.append)

        def overtaken(owners: Owners, upload_id: str) -> bool:
            self.patch(Owners, "create", create)
            made = create(owners, upload_id)
            blockingCallFromThread(reactor, ask)  # type: ignore[arg-type]  # may be a Deferred
            return made

        self.patch(Owners, "create", overtaken)
        answers.append(await self.registry.request("PATCH", location, CONTENT))
        for answer in answers:
            self.assert_error(answer, 404, "BLOB_UPLOAD_UNKNOWN")
        await self.assert_unknown(location)

    async def test_a_first_chunk_behind_the_end_is_not_closed_by_the_digest_of_the_bytes_before(
        self,
    ) -> None:
        other = Served.start(self, data=self.registry.data)
        is_ended = Catalog.is_upload_ended
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, CONTENT)  # which this one has hashed
        path = f"{location}?digest={DIGEST}"
        self.assertEqual((await other.request("PUT", path)).status, 201)

        async def closed_first(catalog: Catalog, upload_id: str) -> bool:
            self.patch(Catalog, "is_upload_ended", is_ended)
            await self.registry.request("PUT", path)
            return await catalog.is_upload_ended(upload_id)

        self.patch(Catalog, "is_upload_ended", closed_first)
        answer = await other.request("PATCH", location, CONTENT[::-1])
        self.assert_error(answer, 404, "BLOB_UPLOAD_UNKNOWN")
        [file] = self.registry.files()
        self.assertEqual((self.registry.data / file).read_bytes(), CONTENT)


class ProcessTests(SessionTestCase):
    async def test_another_process_goes_on_with_it_at_each_step_and_so_does_a_restarted_one(
        self,
    ) -> None:
        second = Served.start(self, data=self.registry.data)
        unused, used = await self.start_upload(), await self.start_upload()
        answer = await second.request("PATCH", used, CONTENT[:4])
        self.assertEqual(answer.status, 202)
        await second.stop()
        await self.registry.stop()
        self.registry = Served.start(self, data=self.registry.data)
        await self.assert_offset(used, 4)
        await self.accepted(201, "PUT", f"{used}?digest={DIGEST}", CONTENT[4:])
        await self.accepted(204, "DELETE", unused)
        third = Served.start(self, data=self.registry.data)
        for location in (used, unused):
            self.assertEqual((await third.request("PATCH", location, b"more")).status, 404)

    async def test_one_that_an_older_release_has_opened_goes_on(self) -> None:
        uploads = self.registry.parts.registry.uploads
        empty, begun = str(uuid4()), str(uuid4())
        for upload_id, content in ((empty, b""), (begun, CONTENT[:4])):
            record = UploadRecord(upload_id, ImageName("local", "hello"), Algorithm.SHA256, 1.0)
            await uploads.catalog.database.write(partial(add_upload, record=record))
            (self.registry.data / "uploads" / upload_id).write_bytes(content)
        await self.assert_unknown(f"/v2/other/blobs/uploads/{begun}")
        await self.assert_offset(UPLOADS + begun, 4)
        answer = await self.accepted(202, "PATCH", UPLOADS + begun, CONTENT[4:8])
        self.assertEqual(answer.header("Docker-Upload-UUID"), begun)
        await self.accepted(201, "PUT", f"{UPLOADS}{begun}?digest={DIGEST}", CONTENT[8:])
        await self.accepted(204, "DELETE", UPLOADS + empty)
        for upload_id in (begun, empty):
            await self.assert_unknown(UPLOADS + upload_id)
        self.assertEqual(await uploads.catalog.uploads("", 9), [])
