"""The audit log: a line for every change, every attempt at one, every login and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import DeferredQueue
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from artifactd.kit.lines import LineFile
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from artifactd.store.folder import ReadOnlyMode
from tests.api.case import ApiTestCase, Connection
from tests.api.guarded import ABSENT, BLOB, CONFIG, GuardedCase, basic
from tests.api.served import Served, image_manifest

MANIFEST = "/v2/team/app/manifests/v1"


class AuditCase(GuardedCase):
    def start(self) -> Served:
        self.path = Path(self.mktemp()).absolute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.top = f"{type(self).top}\naudit_log = {json.dumps(str(self.path))}"
        return super().start()

    def lines(self) -> list[dict[str, Any]]:
        """What has been written since the last time."""
        text = self.path.read_text()
        self.path.write_text("")
        return [json.loads(line) for line in text.splitlines()]

    async def line(self, method: str, path: str, who: str | None = None, **more: Any) -> Any:
        """The one line of a request, without what differs each time."""
        self.lines()
        await self.ask(method, path, who, **more)
        (line,) = self.lines()
        self.assertRegex(line.pop("time"), r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
        self.assertRegex(line.pop("request"), r"\A[0-9a-f]{16}\Z")
        return line


class AuditTests(AuditCase):
    async def test_a_push_of_an_image_is_one_line(self) -> None:
        await self.have("team/app")
        (line,) = self.lines()
        manifest = image_manifest(CONFIG, BLOB)
        del line["time"], line["request"]
        self.assertEqual(
            line,
            {
                "who": "alice",
                "address": "127.0.0.1",
                "action": "push",
                "method": "PUT",
                "outcome": "done",
                "status": 201,
                "image": "local/team/app",
                "tag": "v1",
                "digest": str(Digest.of(manifest)),
                "bytes": len(manifest) + len(CONFIG) + len(BLOB),
            },
        )

    async def test_changes_by_the_json_api_are_told_alike(self) -> None:
        await self.have("team/app")
        digest = str(Digest.of(image_manifest(CONFIG, BLOB)))
        image = "/api/v1/images/team/app"
        line = await self.line("PUT", f"{image}/tags/v2?digest={digest}", "writer")
        told = ("done", "writer", "local/team/app", "v2", digest)
        self.assertEqual(
            told, tuple(line[each] for each in ("outcome", "who", "image", "tag", "digest"))
        )
        line = await self.line("DELETE", f"{image}/tags/v2", "alice")
        self.assertEqual(("delete", "v2", digest), (line["action"], line["tag"], line["before"]))
        line = await self.line("POST", f"{image}/deleted?reference=v2", "alice")
        self.assertEqual(("done", "v2"), (line["outcome"], line["tag"]))
        line = await self.line("DELETE", f"{image}/tags/v2", "bob")
        self.assertEqual(("refused", "v2"), (line["outcome"], line["tag"]))
        line = await self.line("POST", f"{image}/deleted?reference=absent", "alice")
        self.assertEqual(("failed", "absent"), (line["outcome"], line["tag"]))

    async def test_a_tag_that_moves_has_the_digest_before(self) -> None:
        await self.have("team/app")
        first, second = image_manifest(CONFIG, BLOB), image_manifest(CONFIG)
        kind = {"Content-Type": OCI_MANIFEST}
        line = await self.line("PUT", MANIFEST, "alice", body=second, headers=kind)
        self.assertEqual(line["digest"], str(Digest.of(second)))
        self.assertEqual(line["before"], str(Digest.of(first)))
        line = await self.line("PUT", MANIFEST, "alice", body=second, headers=kind)
        self.assertEqual(line["before"], line["digest"], "the same again")

    async def test_a_manifest_has_a_line_without_a_tag_and_each_of_several_tags_has_one(
        self,
    ) -> None:
        await self.have("team/app")
        manifest = image_manifest(CONFIG)
        digest = Digest.of(manifest)
        path, kind = f"/v2/team/app/manifests/{digest}", {"Content-Type": OCI_MANIFEST}
        line = await self.line("PUT", path, "alice", body=manifest, headers=kind)
        self.assertEqual((line["digest"], line.get("tag")), (str(digest), None))
        self.lines()
        await self.ask("PUT", f"{path}?tag=a&tag=b", "alice", body=manifest, headers=kind)
        lines = self.lines()
        self.assertEqual([line["tag"] for line in lines], ["a", "b"])
        self.assertEqual({line["digest"] for line in lines}, {str(digest)})

    async def test_the_program_of_the_client_is_named(self) -> None:
        headers = {"User-Agent": "docker/29.0 \x9b" + "x" * 300}
        line = await self.line("DELETE", MANIFEST, headers=headers)
        self.assertEqual(len(line["agent"]), 255)
        self.assertTrue(line["agent"].startswith("docker/29.0 "), line)

    async def test_a_delete_is_one(self) -> None:
        await self.have("team/app")
        digest = str(Digest.of(image_manifest(CONFIG, BLOB)))
        line = await self.line("DELETE", MANIFEST, "alice")
        self.assertEqual((line["action"], line["outcome"]), ("delete", "done"))
        self.assertEqual((line["tag"], line["before"], line.get("digest")), ("v1", digest, None))
        line = await self.line("DELETE", f"/v2/team/app/manifests/{digest}", "alice")
        self.assertEqual((line["digest"], line.get("tag")), (digest, None))
        blob = str(Digest.of(BLOB))
        line = await self.line("DELETE", f"/v2/team/app/blobs/{blob}", "alice")
        self.assertEqual((line["outcome"], line["digest"]), ("done", blob))

    async def test_a_login_is_one(self) -> None:
        line = await self.line("GET", "/v2/", "alice")
        self.assertEqual((line["action"], line["outcome"]), ("login", "done"))
        self.assertEqual((line["who"], line["address"]), ("alice", "127.0.0.1"))

    async def test_a_blob_is_none_unless_it_is_refused(self) -> None:
        blob = f"/v2/team/app/blobs/uploads/?digest={Digest.of(BLOB)}"
        self.assertEqual(await self.status("POST", blob, "alice", body=b"other"), 400)
        self.assertEqual(await self.status("POST", blob, "alice", body=BLOB), 201)
        self.assertEqual(self.lines(), [])
        line = await self.line("POST", blob, "bob", body=BLOB)
        self.assertEqual((line["outcome"], line["digest"]), ("refused", str(Digest.of(BLOB))))

    async def test_what_could_not_be_done_says_why(self) -> None:
        line = await self.line("DELETE", f"/v2/team/app/blobs/{ABSENT}", "alice")
        self.assertEqual(
            (line["outcome"], line["status"], line["code"]), ("failed", 404, "BLOB_UNKNOWN")
        )
        line = await self.line("PUT", "/v2/Not-A-Name/manifests/v1", "alice")
        self.assertEqual((line["outcome"], line["image"]), ("failed", "Not-A-Name"))

    async def test_every_refusal_is_one_whether_of_a_read_or_of_a_write(self) -> None:
        for method, who, status, code in (
            ("GET", None, 401, "UNAUTHORIZED"),
            ("GET", "nobody", 403, "DENIED"),
            ("DELETE", None, 401, "UNAUTHORIZED"),
            ("DELETE", "bob", 403, "DENIED"),
        ):
            line = await self.line(method, "/v2/secret/app/manifests/v1", who)
            self.assertEqual((line["outcome"], line["status"]), ("refused", status))
            self.assertEqual((line["code"], line["image"]), (code, "local/secret/app"))
            self.assertEqual(line["who"], who or "anonymous")

    async def test_a_failed_login_says_as_whom(self) -> None:
        line = await self.line("GET", "/v2/", headers=basic("alice", "wrong"))
        self.assertEqual((line["outcome"], line["who"], line["claimed"]), ("refused", "-", "alice"))
        self.assertNotIn("wrong", json.dumps(line))

    async def test_too_many_failed_logins_are_refused_too(self) -> None:
        for _ in range(6):
            line = await self.line("GET", "/v2/", headers=basic("alice", "wrong"))
        self.assertEqual((line["status"], line["code"]), (429, "TOOMANYREQUESTS"))

    async def test_what_the_read_only_mode_keeps_from_happening_is_refused(self) -> None:
        ReadOnlyMode(self.registry.data).turn_on()
        line = await self.line("DELETE", MANIFEST, "alice")
        self.assertEqual((line["outcome"], line["status"]), ("refused", 405))

    async def test_reading_is_none_and_neither_is_asking_how_to_log_in(self) -> None:
        await self.have("team/app")
        self.lines()
        await self.ask("GET", "/v2/")
        for method, path in (
            ("GET", MANIFEST),
            ("GET", f"/v2/team/app/blobs/{ABSENT}"),
            ("GET", "/v2/_catalog"),
            ("GET", "/v2/team/app/blobs/uploads/0"),
        ):
            await self.ask(method, path, "alice")
        self.assertEqual(self.lines(), [])

    async def test_a_name_can_forge_no_line(self) -> None:
        line = await self.line("GET", "/v2/", headers=basic('a\u2028{x}"\\', "wrong"))
        self.assertEqual(line["claimed"], 'a\u2028{x}"\\')

    async def test_a_name_takes_no_more_of_it_than_a_name_may_have(self) -> None:
        line = await self.line("PUT", f"/v2/{'a' * 2000}/manifests/v1", "alice")
        self.assertEqual((line["status"], len(line["image"])), (400, 255))
        line = await self.line("GET", "/v2/", headers=basic("a" * 2000))
        self.assertEqual((line["status"], line["claimed"]), (401, "a" * 255))


class TokenAuditTests(AuditCase):
    tokens = True

    async def test_a_failed_login_by_a_form_says_as_whom(self) -> None:
        form = {"service": "artifactd", "client_id": "test", "grant_type": "password"}
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        for password, status in (("wrong", 401), ("alice!", 200)):
            body = urlencode({**form, "username": "alice", "password": password}).encode()
            answer = await self.ask("POST", "/token", body=body, headers=kind)
            self.assertEqual(answer.status, status)
        refused, done = self.lines()
        self.assertEqual((refused["outcome"], refused["claimed"]), ("refused", "alice"))
        self.assertNotIn("wrong", json.dumps(refused))
        self.assertEqual((done["action"], done["outcome"], done["who"]), ("token", "done", "alice"))

    async def test_a_token_is_a_login_and_its_use_is_none(self) -> None:
        token = json.loads((await self.ask("GET", "/token?service=artifactd", "alice")).body)
        (line,) = self.lines()
        self.assertEqual((line["action"], line["who"]), ("token", "alice"))
        bearer = {"Authorization": f"Bearer {token['token']}"}
        self.assertEqual(await self.status("GET", "/v2/", headers=bearer), 200)
        self.assertEqual(await self.status("GET", "/token"), 200, "anonymous")
        self.assertEqual(self.lines(), [])


class BlobAuditTests(AuditCase):
    top = "audit_blobs = true"

    async def test_each_request_of_a_push_is_a_line(self) -> None:
        start = await self.ask("POST", "/v2/team/app/blobs/uploads/", "alice")
        location = start.headers["location"]
        await self.ask("PATCH", location, "alice", body=BLOB)
        await self.ask("PUT", f"{location}&digest={Digest.of(BLOB)}", "alice")
        lines = self.lines()
        self.assertEqual([line["method"] for line in lines], ["POST", "PATCH", "PUT"])
        self.assertIn(lines[1]["upload"], location)
        self.assertEqual(lines[2]["digest"], str(Digest.of(BLOB)))

    async def test_so_is_one_that_fails(self) -> None:
        line = await self.line("PATCH", "/v2/team/app/blobs/uploads/0", "alice", body=BLOB)
        self.assertEqual((line["outcome"], line["status"]), ("failed", 404))


class ProxiedAuditTests(AuditCase):
    top = 'trusted_proxies = ["127.0.0.1"]'

    async def test_the_address_is_the_clients(self) -> None:
        headers = {"X-Forwarded-For": "198.51.100.9"}
        line = await self.line("DELETE", MANIFEST, "alice", headers=headers)
        self.assertEqual(line["address"], "198.51.100.9")

    async def test_guessing_from_one_address_does_not_lock_out_another(self) -> None:
        for _ in range(7):
            headers = {**basic("alice", "wrong"), "X-Forwarded-For": "198.51.100.9"}
            status = await self.status("GET", "/v2/", headers=headers)
        self.assertEqual(status, 429)
        headers = {"X-Forwarded-For": "203.0.113.1"}
        self.assertEqual(await self.status("GET", "/v2/", "alice", headers=headers), 200)


class OpenAuditTests(ApiTestCase):
    """Without any authentication, and without a file: lines go to the daemon's log."""

    def setUp(self) -> None:
        self.toml = "audit_blobs = true"
        super().setUp()
        self.lines: DeferredQueue[dict[str, Any]] = DeferredQueue()
        self.texts: list[str] = []

        @implementer(ILogObserver)
        def observer(event: LogEvent) -> None:
            if event.get("log_namespace") == "artifactd.audit":
                text = formatEvent(event)
                self.texts.append(text)
                self.lines.put(json.loads(text))

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    async def test_a_body_that_broke_off_is_a_line_without_a_status(self) -> None:
        location = await self.start_upload("hello")
        await self.lines.get()
        connection = await Connection.begin_body(self, self.registry.port, "PATCH", location, 100)
        await connection.send(b"some")
        connection.leave()
        line = await self.lines.get()
        self.assertEqual((line["outcome"], line["status"]), ("failed", 0))

    async def test_no_character_of_a_client_is_written_as_it_is(self) -> None:
        for sent, received in (("%7F", "\x7f"), ("%C3%A9%E2%80%AE%7F", "é\u202e\x7f")):
            await self.registry.request("POST", f"/v2/hello/blobs/uploads/?mount={sent}")
            line = await self.lines.get()
            self.assertEqual((line["outcome"], line["digest"]), ("failed", received))
            text = self.texts[-1]
            self.assertTrue(text.isascii() and text.isprintable(), ascii(text))

    async def test_what_is_done_and_what_is_refused_are_lines(self) -> None:
        await self.registry.push_blob("hello", BLOB)
        headers = {"Via": "1.1 proxy"}
        await self.registry.request("DELETE", "/v2/hello/manifests/v1", headers=headers)
        done, refused = await self.lines.get(), await self.lines.get()
        self.assertEqual((done["who"], done["outcome"]), ("-", "done"))
        self.assertEqual((refused["outcome"], refused["image"]), ("refused", "local/hello"))

    async def test_a_disk_that_fails_is_logged_and_stops_nothing(self) -> None:
        registry = Served.start(self, audit_log="/dev/full", audit_blobs="true")
        await registry.push_blob("hello", BLOB)
        await registry.push_blob("hello", b"other")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1, "told once")

    def test_a_file_that_can_not_be_opened_stops_the_start(self) -> None:
        with self.assertRaises(SystemExit) as caught:
            Served.start(self, audit_log="/nowhere/audit")
        self.assertIn("audit_log: /nowhere/audit", str(caught.exception))


class LineFileTests(SynchronousTestCase):
    def test_what_can_be_written_again_after_a_failure_is_told_of_again(self) -> None:
        file = LineFile("/dev/full", "test log")
        file.write("dropped: it is not open")
        for _ in range(2):
            file.open()
            file.write("lost")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        file.close()
