"""What one client may push, and how often it may ask."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode

from twisted.internet.task import Clock

from artifactd.catalog import manifests
from artifactd.kit.shared import SharedMemory
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from artifactd.registry.uploads import SMALL
from artifactd.web.server.limits import Rates
from tests.api.case import ApiTestCase, Connection
from tests.api.served import descriptor, image_index, image_manifest

_UPLOADS = "/v2/hello/blobs/uploads/"


class BlobSizeTests(ApiTestCase):
    """The largest blob."""

    toml = '[limits]\nblob_size = "10B"\n'

    async def test_a_blob_of_that_size_is_accepted_in_every_way(self) -> None:
        content = b"0123456789"
        await self.registry.push_blob("hello", content)
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, content[:6], chunked=True)
        await self.accepted(201, "PUT", f"{location}?digest={Digest.of(content)}", content[6:])

    async def test_a_larger_one_is_refused_before_its_body_and_while_it_comes(self) -> None:
        content = b"0123456789a"
        location = await self.start_upload()
        for method, path in (
            ("POST", f"{_UPLOADS}?digest={Digest.of(content)}"),
            ("PUT", f"{_UPLOADS}?digest={Digest.of(content)}"),
            ("PATCH", location),
            ("PUT", f"{location}?digest={Digest.of(content)}"),
        ):
            for chunked in (False, True):
                answer = await self.refused(
                    413, "SIZE_INVALID", method, path, content, chunked=chunked
                )
                self.assertEqual(json.loads(answer.body)["errors"][0]["detail"], {"limit": 10})

    async def test_what_is_here_already_counts(self) -> None:
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, b"01234567")
        for chunked in (False, True):
            await self.refused(413, "SIZE_INVALID", "PATCH", location, b"890", chunked=chunked)
            await self.assert_offset(location, 8)


class QuotaTests(ApiTestCase):
    """What a repository may hold."""

    toml = (
        '[repository.local]\nkind = "local"\nquota = "1000B"\n[repository.other]\nkind = "local"\n'
        '[default]\npush = "local"\npull = ["local"]\n'
    )

    async def test_figures_are_told_and_nothing_is_left(self) -> None:
        await self.registry.push_blob("hello", b"a" * 600)
        content = b"b" * 500
        digest = Digest.of(content)
        location = await self.start_upload()
        for method, path in (
            ("POST", f"{_UPLOADS}?digest={digest}"),
            ("PATCH", location),
            ("PUT", f"{location}?digest={digest}"),
        ):
            answer = await self.refused(403, "DENIED", method, path, content)
            self.assertEqual(
                json.loads(answer.body)["errors"][0]["detail"],
                {"repository": "local", "quota": 1000, "used": 600, "requested": 500},
            )
            answer = await self.refused(403, "DENIED", method, path, content, chunked=True)
            # Of a body without a length it is known that it has one byte more than fits.
            self.assertEqual(json.loads(answer.body)["errors"][0]["detail"]["requested"], 401)
        await self.registry.push_blob("hello", b"b" * 400)

    async def test_what_the_repository_has_costs_nothing_more(self) -> None:
        content = b"a" * 500
        digest = await self.registry.push_blob("hello", content)
        await self.registry.push_blob("again", content)
        await self.registry.push_blob("hello", b"b" * 500)
        await self.registry.push_blob("hello", content)
        await self.accepted(201, "POST", f"/v2/third/blobs/uploads/?mount={digest}&from=hello")

    async def test_it_does_not_tell_what_other_images_have(self) -> None:
        digest = await self.registry.push_blob("hello", b"a" * 600)
        for wanted in (digest, Digest.of(b"b" * 600)):
            path = f"/v2/other-image/blobs/uploads/?digest={wanted}"
            for body, chunked in ((b"c" * 600, False), (b"a" * 600, False), (b"a" * 600, True)):
                await self.refused(403, "DENIED", "POST", path, body, chunked=chunked)

    async def test_of_what_the_image_has_no_more_may_come_than_that(self) -> None:
        digest = await self.registry.push_blob("hello", b"a" * 900)
        path = f"{_UPLOADS}?digest={digest}"
        for chunked in (False, True):
            await self.refused(403, "DENIED", "POST", path, b"a" * 901, chunked=chunked)
            await self.refused(400, "DIGEST_INVALID", "POST", path, b"b" * 900, chunked=chunked)
            await self.accepted(201, "POST", path, b"a" * 900, chunked=chunked)

    async def test_other_repositories_have_theirs(self) -> None:
        await self.registry.push_blob("hello", b"a" * 1000)
        digest = await self.registry.push_blob("other/hello", b"b" * 2000)
        await self.refused(403, "DENIED", "POST", f"{_UPLOADS}?mount={digest}&from=other/hello")

    async def test_manifests_count(self) -> None:
        await self.registry.push_blob("hello", b"{}")
        small = image_manifest(b"{}")
        await self.registry.push_manifest("hello", "a", small)
        await self.registry.push_manifest("hello", "b", small)
        large = image_manifest(b"{}", annotations={"a": "b" * 800})
        await self.refused(
            403,
            "DENIED",
            "PUT",
            "/v2/hello/manifests/c",
            large,
            {"Content-Type": OCI_MANIFEST},
        )

    async def test_a_session_that_does_not_fit_any_more_waits_until_there_is_room(self) -> None:
        first, second = b"1" * 600, b"2" * 600
        location = await self.start_upload()
        await self.accepted(202, "PATCH", location, second)
        digest = await self.registry.push_blob("hello", first)
        path = f"{location}?digest={Digest.of(second)}"
        await self.refused(403, "DENIED", "PUT", path)
        await self.accepted(202, "DELETE", f"/v2/hello/blobs/{digest}")
        await self.accepted(201, "PUT", path)

    async def test_of_two_bodies_that_fit_alone_the_second_is_refused_at_its_end(self) -> None:
        contents = [b"%d" % n * 600 for n in range(2)]
        connections = [
            await Connection.begin_body(
                self,
                self.registry.port,
                "POST",
                f"{_UPLOADS}?digest={Digest.of(content)}",
                len(content),
            )
            for content in contents
        ]
        answers = []
        for connection, content in zip(connections, contents, strict=True):
            await connection.send(content)
            answers.append(await connection.answer("POST"))
        self.assertEqual([answer.status for answer in answers], [201, 403])
        self.assert_error(answers[1], 403, "DENIED")
        self.assertEqual(len(self.registry.files()), 1, "nothing is left of the second")
        self.assertEqual(len(self.log.events), 1)

    async def test_what_is_deleted_makes_room(self) -> None:
        digest = await self.registry.push_blob("hello", b"a" * 1000)
        await self.accepted(202, "DELETE", f"/v2/hello/blobs/{digest}")
        await self.registry.push_blob("hello", b"b" * 1000)


class IndexTests(ApiTestCase):
    """How deep indexes may be nested."""

    toml = (
        '[limits]\nindex_depth = 2\n[repository.local]\nkind = "local"\nsparse = "indexes"\n'
        '[default]\npush = "local"\npull = ["local"]\n'
    )

    def nest(self, depth: int) -> list[bytes]:
        """Indexes, each but the first holding the one before."""
        documents = [image_index(b"absent")]
        for _ in range(depth - 1):
            child = descriptor(documents[-1], OCI_INDEX)
            documents.append(
                json.dumps(
                    {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}
                ).encode()
            )
        return documents

    async def test_deeper_is_refused(self) -> None:
        *fine, deep = self.nest(3)
        for document in fine:
            await self.registry.push_manifest("hello", "latest", document, OCI_INDEX)
        await self.refused(
            400,
            "MANIFEST_INVALID",
            "PUT",
            "/v2/hello/manifests/latest",
            deep,
            {"Content-Type": OCI_INDEX},
        )

    async def test_in_whatever_order_they_come(self) -> None:
        inner, middle, outer = self.nest(3)
        for document in (outer, middle):
            await self.registry.push_manifest(
                "hello", str(Digest.of(document)), document, OCI_INDEX
            )
        await self.refused(
            400,
            "MANIFEST_INVALID",
            "PUT",
            f"/v2/hello/manifests/{Digest.of(inner)}",
            inner,
            {"Content-Type": OCI_INDEX},
        )


class WideIndexTests(ApiTestCase):
    """How many entries the indexes in an index may have."""

    toml = (
        '[repository.local]\nkind = "local"\nsparse = "indexes"\n'
        '[default]\npush = "local"\npull = ["local"]\n'
    )

    def holding(self, *children: bytes, **more: object) -> bytes:
        """An index of indexes."""
        held = [descriptor(child, OCI_INDEX) for child in children]
        return json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": held, **more}
        ).encode()

    async def test_the_entries_of_all_that_an_index_holds_are_bounded(self) -> None:
        """Each is visited, though all hold the same three."""
        self.patch(manifests, "NESTED", 6)
        leaves = [bytes([number]) for number in range(3)]
        wide = [image_index(*leaves, annotations={"number": str(number)}) for number in range(3)]
        for document in (*wide, self.holding(*wide[:2])):
            await self.registry.push_manifest("hello", "latest", document, OCI_INDEX)
        self.assertEqual(await self.put(self.holding(*wide)), {"limit": 6})

    async def test_so_are_those_that_hold_it(self) -> None:
        self.patch(manifests, "NESTED", 6)
        inner = image_index(b"absent")
        for number in range(6):
            outer = self.holding(inner, annotations={"number": str(number)})
            await self.registry.push_manifest("hello", "latest", outer, OCI_INDEX)
        await self.registry.push_manifest("hello", "inner", inner, OCI_INDEX)
        one_more = self.holding(inner, annotations={"number": "6"})
        await self.registry.push_manifest("hello", "latest", one_more, OCI_INDEX)
        self.assertEqual(await self.put(inner), {"limit": 6})

    async def put(self, document: bytes) -> object:
        """Push an index that is refused; returns the detail of the error."""
        path, headers = "/v2/hello/manifests/refused", {"Content-Type": OCI_INDEX}
        answer = await self.refused(400, "MANIFEST_INVALID", "PUT", path, document, headers)
        detail = self.assert_error(answer, 400, "MANIFEST_INVALID")
        await self.refused(404, "MANIFEST_UNKNOWN", "GET", path)
        return detail


class ManifestTests(ApiTestCase):
    """What a manifest may ask of its readers."""

    toml = "[limits]\njson_depth = 8\nmanifest_entries = 3\nmanifest_annotations = 2\n"

    async def test_each_limit(self) -> None:
        for content in (
            image_manifest(b"{}", x=[[[[[[[[[]]]]]]]]]),
            image_manifest(b"{}", b"1", b"2", b"3"),
            image_manifest(b"{}", annotations={"a": "", "b": "", "c": ""}),
            image_manifest(b"{}")[:-1] + b',"layers":[]}',
            image_manifest(b"{}")[:-1] + b',"annotations":{"a":"\\ud800"}}',
            image_manifest(b"{}")[:-1] + b',"x":' + b"[" * 1_000_000,
        ):
            await self.refused(
                400,
                "MANIFEST_INVALID",
                "PUT",
                "/v2/hello/manifests/a",
                content,
                {"Content-Type": OCI_MANIFEST},
            )


class ManifestBufferTests(ApiTestCase):
    """Manifests are gathered in buffers of their own."""

    toml = 'transfer_buffers = "4MiB"\n'

    async def test_those_that_are_awaited_hold_up_nothing_else(self) -> None:
        waited = await Connection.begin_body(
            self, self.registry.port, "PUT", "/v2/hello/manifests/a", 4 << 20
        )
        await waited.send(b"{")
        content = b"a" * (1 << 20)
        digest = await self.registry.push_blob("hello", content)
        answer = await self.accepted(200, "GET", f"/v2/hello/blobs/{digest}")
        self.assertEqual(answer.body, content)


_ROBOTS = "".join(
    f'[robot.{name}]\nsecret_hash = "sha256:{hashlib.sha256(name.encode()).hexdigest()}"\n'
    for name in ("ann", "ben")
)


def _robot(name: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"robot+{name}:{name}".encode()).decode()}


class ManifestShareTests(ApiTestCase):
    """One owner holds a share of the memory for manifests at most."""

    toml = '[[access]]\nwho = ["anonymous"]\nmay = ["pull", "push"]\nimages = ["*"]\n' + _ROBOTS

    async def test_what_one_owner_announces_holds_up_no_other(self) -> None:
        await self.registry.push_image("hello", "a")
        notes = {f"note-{number}": "a" * 100 for number in range(800)}
        large = image_manifest(b'{"tag": "a"}', annotations=notes)
        for _ in range(4):
            held = await Connection.begin_body(
                self, self.registry.port, "PUT", "/v2/hello/manifests/a", 4 << 20
            )
            await held.send(bytes(100 << 10))
        headers = {**_robot("ann"), "Content-Type": OCI_MANIFEST}
        await self.accepted(201, "PUT", "/v2/hello/manifests/b", large, headers)


class UserLimitTests(ApiTestCase):
    """What counts by whoever asks."""

    toml = (
        'trusted_proxies = ["127.0.0.1"]\n'
        "[limits]\nuser_requests = 1\nuser_burst = 6\n"
        "address_requests = 1\naddress_burst = 5\n"
        '[[access]]\nwho = ["anonymous"]\nmay = ["pull", "push"]\nimages = ["*"]\n' + _ROBOTS
    )

    async def test_requests_of_one_user_on_the_way_to_whatever(self) -> None:
        answers = [
            await self.registry.request("GET", "/v2/", None, _robot("ann")) for _ in range(9)
        ]
        last = answers[-1]
        self.assert_error(last, 429, "TOOMANYREQUESTS")
        self.assertEqual(last.header("Retry-After"), "1")
        await self.accepted(200, "GET", "/v2/", None, _robot("ben"))

    async def test_requests_of_one_address(self) -> None:
        headers = {"X-Forwarded-For": "5.6.7.8"}
        answers = [await self.registry.request("GET", "/v2/", None, headers) for _ in range(9)]
        self.assert_error(answers[-1], 429, "TOOMANYREQUESTS")
        await self.refused(
            429, "TOOMANYREQUESTS", "PUT", "/v2/hello/manifests/a", b"{}" * 1000, headers
        )
        for path in ("/healthz", "/readyz"):
            await self.accepted(200, "GET", path, None, headers)

    async def test_failed_logins_count_as_requests_of_their_address(self) -> None:
        site = self.registry.running.site
        for path, login in (
            ("/v2/", "Bearer nonsense"),
            ("/v2/", "Basic malformed"),
            ("/v2/hello/tags/list", "Basic " + b64encode(b"robot+ann:wrong").decode()),
            ("/token", "Basic malformed"),
        ):
            # A clock that stands still: on a slow machine no request is forgiven.
            site.rates = Rates(site.limits, SharedMemory.create(), Clock().seconds)
            headers = {"X-Forwarded-For": "192.0.2.1", "Authorization": login}
            statuses = [
                (await self.registry.request("GET", path, None, headers)).status for _ in range(7)
            ]
            self.assertEqual(statuses, [401] * 5 + [429] * 2, path)


class UserSessionsTests(ApiTestCase):
    """Upload sessions that have bytes."""

    toml = (
        'trusted_proxies = ["127.0.0.1"]\n[limits]\nuser_uploads = 2\n'
        '[[access]]\nwho = ["anonymous"]\nmay = ["pull", "push"]\nimages = ["*"]\n' + _ROBOTS
    )

    async def test_sessions_of_one_user_and_of_one_address(self) -> None:
        for headers in (
            _robot("ann"),
            _robot("ben"),
            {"X-Forwarded-For": "2001:db8::1"},
            {"X-Forwarded-For": "2001:db8:0:1::1"},
        ):
            locations = [
                (await self.accepted(202, "POST", _UPLOADS, None, headers)).header("Location") or ""
                for _ in range(3)
            ]
            for location in locations[:2]:
                await self.accepted(202, "PATCH", location, b"blob", headers)
            for method, path, body in (
                ("POST", _UPLOADS, None),
                ("PATCH", locations[2], b"blob"),
                ("PATCH", locations[2], b"b" * (SMALL + 1)),
                ("PUT", f"{locations[2]}&digest={Digest.of(b'blob')}", b"blob"),
            ):
                answer = await self.refused(429, "TOOMANYREQUESTS", method, path, body, headers)
                self.assertEqual(answer.header("Retry-After"), "60")
            await self.accepted(204, "DELETE", locations[0], None, headers)
            await self.accepted(202, "PATCH", locations[2], b"blob", headers)


class EndedSessionTests(ApiTestCase):
    """A session counts from its first byte until it ends, however it ends."""

    toml = (
        "[limits]\nuser_uploads = 1\n"
        '[[access]]\nwho = ["anonymous"]\nmay = ["pull", "push"]\nimages = ["*"]\n' + _ROBOTS
    )

    async def test_one_that_a_wrong_digest_ends_counts_no_longer(self) -> None:
        ann = _robot("ann")
        wrong = Digest.of(b"something else")
        for content in (b"small", b"a" * (SMALL + 1)):
            started = await self.accepted(202, "POST", _UPLOADS, None, ann)
            await self.accepted(202, "POST", _UPLOADS, None, ann)
            location = (started.header("Location") or "").partition("?")[0]
            await self.accepted(202, "PATCH", location, b"begun", ann)
            await self.refused(429, "TOOMANYREQUESTS", "POST", _UPLOADS, None, ann)
            path = f"{location}?digest={wrong}"
            answer = await self.registry.request("PUT", path, content, ann)
            self.assert_error(answer, 400, "DIGEST_INVALID")
        await self.accepted(202, "POST", _UPLOADS, None, ann)

    async def test_one_that_is_completed_or_cancelled_counts_no_longer(self) -> None:
        ann = _robot("ann")
        for content in (b"small", b"a" * (SMALL + 1)):
            started = await self.accepted(202, "POST", _UPLOADS, None, ann)
            path = f"{started.header('Location')}?digest={Digest.of(content)}"
            await self.accepted(201, "PUT", path, content, ann)
        for _ in range(2):
            started = await self.accepted(202, "POST", _UPLOADS, None, ann)
            await self.accepted(202, "PATCH", started.header("Location") or "", b"begun", ann)
            await self.accepted(204, "DELETE", started.header("Location") or "", None, ann)

    async def test_one_whose_chunk_is_refused_has_not_begun_to_count(self) -> None:
        ann = _robot("ann")
        for content in (b"short", b"a" * (SMALL + 1)):
            started = await self.accepted(202, "POST", _UPLOADS, None, ann)
            wrong = {**ann, "Content-Range": "0-9"}
            path = started.header("Location") or ""
            await self.refused(400, "SIZE_INVALID", "PATCH", path, content, wrong)
            await self.accepted(202, "PATCH", path, b"", ann)
        self.assertEqual(self.registry.files(), [])
        await self.accepted(202, "POST", _UPLOADS, None, ann)


class EndedByQuotaTests(ApiTestCase):
    """A session whose bytes don't fit any more at their end."""

    toml = (
        "[limits]\nuser_uploads = 1\n"
        '[repository.local]\nkind = "local"\nquota = "1000B"\n'
        '[default]\npush = "local"\npull = ["local"]\n'
        '[[access]]\nwho = ["anonymous"]\nmay = ["pull", "push"]\nimages = ["*"]\n' + _ROBOTS
    )

    async def test_one_that_exceeds_the_quota_at_its_end_counts_no_longer(self) -> None:
        ann, content = _robot("ann"), b"1" * 600
        started = await self.accepted(202, "POST", _UPLOADS, None, ann)
        connection = await Connection.begin_body(
            self,
            self.registry.port,
            "PUT",
            f"{started.header('Location')}?digest={Digest.of(content)}",
            len(content),
            f"Authorization: {ann['Authorization']}",
        )
        await self.registry.push_blob("hello", b"2" * 600)
        await connection.send(content)
        self.assert_error(await connection.answer("PUT"), 403, "DENIED")
        await self.accepted(202, "POST", _UPLOADS, None, ann)


class ConnectionTests(ApiTestCase):
    """What is set for a connection holds for it."""

    toml = (
        '[limits]\nconnections = 3\nheader_count = 10\nheader_size = "1KiB"\n'
        'header_timeout = "50ms"\nbody_rate = "1MiB"\nbody_window = "50ms"\n'
    )

    def setUp(self) -> None:
        super().setUp()
        self.connection = Connection(self, self.registry.port)

    async def answered(self) -> int:
        """The status of the answer after which the connection is closed."""
        answer = await self.connection.answer()
        self.assertEqual((await self.connection.rest(), len(self.log.events)), (b"", 1))
        return answer.status

    async def test_headers_are_few(self) -> None:
        await self.connection.head("GET /v2/", *(f"X: {n}" for n in range(10)))
        self.assertEqual(await self.answered(), 431)

    async def test_headers_are_small(self) -> None:
        await self.connection.head("GET /v2/", "X: " + "a" * 1024)
        self.assertEqual(await self.answered(), 431)

    async def test_headers_come_in_time(self) -> None:
        await self.connection.send("GET /v2/ HTTP/1.1\r\nHost:")
        self.assertEqual(await self.answered(), 408)

    async def test_bodies_come_in_time_and_their_session_stays(self) -> None:
        location = await self.start_upload()
        await self.connection.head(f"PATCH {location}", "Content-Length: 100")
        await self.connection.send(b"0123456789")
        with self.assertRaises(ConnectionResetError):
            await self.connection.rest()
        self.assertEqual(len(self.log.events), 1)
        await self.accepted(204, "GET", location)

    async def test_connections_are_few(self) -> None:
        others = [self.connection, *(Connection(self, self.registry.port) for _ in range(2))]
        for other in others:
            await other.head("GET /v2/")
            self.assertEqual((await other.answer()).status, 200)
        self.connection = Connection(self, self.registry.port)
        self.assertEqual(await self.answered(), 503)
        others[0].leave()
        await others[1].head("GET /v2/")
        self.assertEqual((await others[1].answer()).status, 200)
