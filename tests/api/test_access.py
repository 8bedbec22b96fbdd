"""Access as clients with a password see it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from hashlib import sha256

from artifactd.catalog.catalog import Catalog
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.case import Connection
from tests.api.guarded import ABSENT, BLOB, CONFIG, RULES, GuardedCase, basic, shape
from tests.api.served import image_index, image_manifest
from tests.process import Answer

# Each endpoint that is about an image, asked for what the team's image has.
READS = (
    "GET /v2/{name}/manifests/v1",
    "HEAD /v2/{name}/manifests/v1",
    f"GET /v2/{{name}}/blobs/{Digest.of(BLOB)}",
    f"HEAD /v2/{{name}}/blobs/{Digest.of(BLOB)}",
    "GET /v2/{name}/tags/list",
    f"GET /v2/{{name}}/referrers/{Digest.of(BLOB)}",
)
WRITES = (
    "POST /v2/{name}/blobs/uploads/",
    f"POST /v2/{{name}}/blobs/uploads/?mount={Digest.of(BLOB)}&from=team/app",
    f"PUT /v2/{{name}}/blobs/uploads/?digest={Digest.of(BLOB)}",
    "PATCH /v2/{name}/blobs/uploads/00000000-0000-0000-0000-000000000000",
    f"PUT /v2/{{name}}/blobs/uploads/0?digest={Digest.of(BLOB)}",
    "GET /v2/{name}/blobs/uploads/0",
    "DELETE /v2/{name}/blobs/uploads/0",
    "PUT /v2/{name}/manifests/v1",
)
DELETES = (
    "DELETE /v2/{name}/manifests/v1",
    f"DELETE /v2/{{name}}/blobs/{Digest.of(BLOB)}",
)


class VersionTests(GuardedCase):
    """Where clients find out how to log in."""

    async def test_a_stranger_is_asked_for_basic(self) -> None:
        answer = await self.refused(401, "UNAUTHORIZED", "GET", "/v2/")
        self.assertEqual(
            answer.headers.get_all("WWW-Authenticate"), ['Basic realm="artifactd", charset="UTF-8"']
        )

    async def refused(self, status: int, code: str, *asked: str, **headers: str) -> Answer:  # type: ignore[override]
        method, path = asked
        answer = await self.registry.request(method, path, None, headers)
        self.assert_error(answer, status, code)
        return answer

    async def test_whoever_logs_in_is_let_in(self) -> None:
        for name in ("alice", "bob", "nobody"):
            self.assertEqual(await self.status("GET", "/v2/", name), 200)

    async def test_a_wrong_password_is_as_good_as_an_unknown_name(self) -> None:
        wrong = await self.refused(401, "UNAUTHORIZED", "GET", "/v2/", **basic("alice", "wrong"))
        unknown = await self.refused(401, "UNAUTHORIZED", "GET", "/v2/", **basic("who", "wrong"))
        self.assertEqual(shape(wrong, "alice"), shape(unknown, "who"))
        self.assertIn("Basic", wrong.header("WWW-Authenticate") or "")

    async def test_a_wrong_password_is_no_way_to_what_anybody_may_have(self) -> None:
        await self.have("public/app")
        path = "/v2/public/app/manifests/v1"
        self.assertEqual(await self.status("GET", path), 200)
        await self.refused(401, "UNAUTHORIZED", "GET", path, **basic("bob", "wrong"))

    async def test_neither_a_name_nor_a_password_is_nobody(self) -> None:
        await self.have("public/app", "private/app")
        nobody = basic("", "")
        path = "/v2/public/app/manifests/v1"
        self.assertEqual(await self.status("GET", path, headers=nobody), 200)
        for path in ("/v2/", "/v2/private/app/manifests/v1"):
            answer = await self.refused(401, "UNAUTHORIZED", "GET", path, **nobody)
            self.assertEqual(answer.body, (await self.ask("GET", path)).body)
            self.assertIn("Basic", answer.header("WWW-Authenticate") or "")
        for name, password in (("", "alice!"), ("alice", "")):
            await self.refused(401, "UNAUTHORIZED", "GET", path, **basic(name, password))

    async def test_malformed_credentials_are_unauthorized(self) -> None:
        for given in ("Basic", "Basic !", "Basic YQ==", "Basic /w==", "Digest x", "Bearer x", ""):
            answer = await self.refused(401, "UNAUTHORIZED", "GET", "/v2/", Authorization=given)
            self.assertIn("Basic", answer.header("WWW-Authenticate") or "")

    async def test_two_sets_of_credentials_are_a_bad_request(self) -> None:
        connection = Connection(self, self.registry.port)
        login = basic("alice")["Authorization"]
        twice = [f"Authorization: {login}"] * 2
        await connection.head("GET /v2/", *twice)
        self.assert_error(await connection.answer(), 400, "UNSUPPORTED")

    async def test_the_schemes_name_has_no_case(self) -> None:
        login = basic("alice")["Authorization"].replace("Basic", "bAsIc")
        self.assertEqual(
            (await self.ask("GET", "/v2/", headers={"Authorization": login})).status, 200
        )

    async def test_health_is_told_to_anybody_whatever_he_brings(self) -> None:
        for path in ("/healthz", "/readyz"):
            self.assertEqual(await self.status("GET", path, headers=basic("who", "x")), 200)


class RefusalTests(GuardedCase):
    """What is refused is refused alike, whether it exists or not."""

    async def alike(self, asked: str, status: int, code: str, who: str | None) -> None:
        method, path = asked.split()
        shapes = []
        for name in ("secret/app", "absent/app"):
            answer = await self.ask(method, path.format(name=name), who)
            self.assertEqual(answer.status, status, asked)
            if method != "HEAD":
                self.assert_error(answer, status, code)
            for told in ("Cache-Status", "Server-Timing", "Docker-Content-Digest"):
                self.assertIsNone(answer.header(told), asked)
            self.assertEqual(answer.header("WWW-Authenticate") is not None, status == 401, asked)
            shapes.append(shape(answer, name))
        self.assertEqual(*shapes)

    async def test_anonymous_is_asked_to_log_in(self) -> None:
        await self.have("secret/app")
        for asked in (*READS, *WRITES, *DELETES):
            await self.alike(asked, 401, "UNAUTHORIZED", None)

    async def test_whoever_is_known_is_denied(self) -> None:
        await self.have("secret/app")
        for asked in (*READS, *WRITES, *DELETES):
            await self.alike(asked, 403, "DENIED", "nobody")

    async def test_nothing_refused_is_done(self) -> None:
        await self.have("secret/app")
        before = self.state()
        for who in (None, "bob"):
            for asked in (*WRITES, *DELETES):
                method, path = asked.split()
                await self.ask(method, path.format(name="secret/app"), who, b"bytes")
        self.assertEqual(self.state(), before)

    async def test_a_name_of_no_repository_is_refused_alike(self) -> None:
        path = "/v2/app/manifests/v1?ns=elsewhere.example"
        self.assert_error(await self.ask("GET", path), 401, "UNAUTHORIZED")
        self.assert_error(await self.ask("GET", path, "bob"), 403, "DENIED")
        self.assert_error(await self.ask("GET", path, "alice"), 404, "NAME_UNKNOWN")


class GrantTests(GuardedCase):
    """What a rule grants, and no more."""

    async def test_who_may_pull_sees_what_is_there_and_what_is_not(self) -> None:
        await self.have("team/app")
        found = await self.ask("GET", "/v2/team/app/manifests/v1", "bob")
        self.assertEqual(found.status, 200)
        self.assertEqual(found.header("Cache-Status"), "artifactd; hit")
        self.assertIsNotNone(found.header("Server-Timing"))
        missing = await self.ask("GET", f"/v2/team/app/blobs/{ABSENT}", "bob")
        self.assert_error(missing, 404, "BLOB_UNKNOWN")
        self.assertIsNotNone(missing.header("Server-Timing"))

    async def test_who_may_pull_may_not_push(self) -> None:
        await self.have("team/app")
        for asked in (*WRITES, *DELETES):
            method, path = asked.split()
            self.assertEqual(await self.status(method, path.format(name="team/app"), "bob"), 403)

    async def test_who_may_push_may_neither_pull_nor_delete(self) -> None:
        path = f"/v2/team/app/blobs/uploads/?digest={Digest.of(BLOB)}"
        pushed = await self.ask("POST", path, "writer", BLOB)
        self.assertEqual(pushed.status, 201)
        self.assertIsNone(pushed.header("Cache-Status"))
        for asked in (*READS, *DELETES):
            method, path = asked.split()
            status = await self.status(method, path.format(name="team/app"), "writer")
            self.assertEqual(status, 403, asked)

    async def test_anybody_may_do_what_anonymous_may(self) -> None:
        await self.have("public/app")
        for who in (None, "nobody", "bob"):
            path = "/v2/public/app/manifests/v1"
            self.assertEqual(await self.status("GET", path, who), 200, who)

    async def test_the_journal_has_who_it_was(self) -> None:
        await self.have("team/app")
        with closing(sqlite3.connect(self.registry.data / "catalog.sqlite3")) as db:
            tables = [t for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            rows = [row for table in tables for row in db.execute(f"SELECT * FROM {table}")]
        self.assertTrue(any("alice@127.0.0.1" in row for row in rows))


class MountTests(GuardedCase):
    """A blob of another image is had only by who may pull it there."""

    async def mount(self, who: str, query: str) -> int:
        path = f"/v2/team/copy/blobs/uploads/?mount={Digest.of(BLOB)}{query}"
        return await self.status("POST", path, who)

    async def test_who_may_pull_the_source_mounts(self) -> None:
        await self.have("secret/app")
        self.assertEqual(await self.mount("alice", "&from=secret/app"), 201)

    async def test_to_who_may_not_the_source_has_nothing(self) -> None:
        await self.have("secret/app")
        for query in ("&from=secret/app", "&from=absent/app", "&from=team/absent", ""):
            self.assertEqual(await self.mount("writer", query), 202, query)
        self.assertEqual(
            await self.status("HEAD", f"/v2/team/copy/blobs/{Digest.of(BLOB)}", "bob"), 404
        )


class CatalogTests(GuardedCase):
    """The list of images shows each caller the images that they may pull."""

    async def listed(self, who: str | None, query: str = "") -> list[str]:
        answer = await self.ask("GET", f"/v2/_catalog{query}", who)
        self.assertEqual(answer.status, 200)
        names: list[str] = json.loads(answer.body)["repositories"]
        return names

    async def test_each_sees_his_own(self) -> None:
        await self.have("public/a", "secret/a", "team/a", "team/b")
        self.assertEqual(await self.listed("alice"), ["public/a", "secret/a", "team/a", "team/b"])
        self.assertEqual(await self.listed("bob"), ["public/a", "team/a", "team/b"])
        self.assertEqual(await self.listed("writer"), ["public/a"])
        self.assertEqual(await self.listed(None), ["public/a"])

    async def test_every_page_but_the_last_is_full(self) -> None:
        await self.have("public/z", "secret/a", "secret/b", "team/a", "team/b", "team/c")
        seen: list[list[str]] = []
        path: str | None = "/v2/_catalog?n=2"
        while path is not None:
            answer = await self.ask("GET", path, "bob")
            seen.append(json.loads(answer.body)["repositories"])
            link = answer.header("Link")
            path = None if link is None else link.partition(">")[0].removeprefix("<")
        self.assertEqual(seen, [["public/z", "team/a"], ["team/b", "team/c"]])

    async def test_a_stranger_who_would_see_nothing_is_asked_who_he_is(self) -> None:
        await self.have("team/a")
        answer = await self.ask("GET", "/v2/_catalog")
        self.assert_error(answer, 401, "UNAUTHORIZED")
        self.assertIn("Basic", answer.header("WWW-Authenticate") or "")

    async def test_how_long_it_took_is_not_told(self) -> None:
        await self.have("team/a")
        answer = await self.ask("GET", "/v2/_catalog", "bob")
        self.assertIsNone(answer.header("Server-Timing"))


class NobodysCatalogTests(GuardedCase):
    """The list of images, where no rule lets a stranger pull anything."""

    rules = '[[access]]\nwho = ["user:bob"]\nmay = ["pull"]\nimages = ["*"]\n'

    async def test_whom_no_rule_lets_pull_is_answered_without_a_look_into_the_catalog(self) -> None:
        def listed(*_: object) -> None:
            raise AssertionError("the images were looked up")

        self.patch(Catalog, "images_between", listed)
        self.assertEqual(await self.status("GET", "/v2/_catalog"), 401)
        answer = await self.ask("GET", "/v2/_catalog", "nobody")
        self.assertEqual((answer.status, json.loads(answer.body)), (200, {"repositories": []}))


class MetricsTests(GuardedCase):
    """Figures are for this machine and for administrators."""

    async def test_this_machine_reads_them(self) -> None:
        self.assertEqual(await self.status("GET", "/metrics"), 200)

    async def test_from_afar_only_an_administrator_of_everything_does(self) -> None:
        rebound = {"Host": "evil.example"}  # by a page in a browser on this machine
        for headers in ({"X-Forwarded-For": "192.0.2.1"}, rebound):
            for who, status in ((None, 401), ("bob", 403), ("alice", 200)):
                told = await self.status("GET", "/metrics", who, headers=headers)
                self.assertEqual(told, status, headers)


class StatusTests(GuardedCase):
    """What goes on is for this machine and for administrators of all images."""

    async def test_this_machine_reads_it(self) -> None:
        answer = await self.ask("GET", "/status")
        self.assertEqual((200, "no-store"), (answer.status, answer.header("Cache-Control")))
        status = json.loads(answer.body)
        self.assertEqual((0, []), (status["requests"], status["transfers"]))

    async def test_from_afar_only_an_administrator_of_everything_reads_it(self) -> None:
        for headers in {"X-Forwarded-For": "192.0.2.1"}, {"Host": "evil.example"}:
            for who, status in (None, 401), ("bob", 403), ("writer", 403), ("alice", 200):
                told = await self.status("GET", "/status", who, headers=headers)
                self.assertEqual(told, status, headers)


class SomeMetricsTests(GuardedCase):
    """An administrator of some images is none of the registry."""

    rules = (
        RULES
        + """
[[access]]
who = ["user:bob"]
may = ["administer"]
images = ["local/*", "docker.io/*"]

[[access]]
who = ["user:writer"]
may = ["pull", "push", "delete"]
images = ["*"]

[robot.all]
secret_hash = "sha256:%(all)s"

[robot.some]
secret_hash = "sha256:%(some)s"
images = ["local/team/*"]

[[access]]
who = ["robot:all", "robot:some"]
may = ["pull", "administer"]
images = ["*"]
"""
        % {name: sha256(name.encode()).hexdigest() for name in ("all", "some")}
    )

    async def test_from_afar_figures_take_the_administration_of_all_images(self) -> None:
        afar = {"X-Forwarded-For": "192.0.2.1"}
        for login, status in (
            (basic("bob"), 403),
            (basic("writer"), 403),
            (basic("robot+some", "some"), 403),
            (basic("robot+all", "all"), 200),
            (basic("alice"), 200),
        ):
            answer = await self.ask("GET", "/metrics", headers={**login, **afar})
            self.assertEqual(answer.status, status, login)
            self.assertEqual(b"artifactd_" in answer.body, status == 200, login)

    async def test_a_robot_that_its_own_limits_exclude_is_told_so(self) -> None:
        for name, login, why in (
            ("local/other", basic("robot+some", "some"), "images in [robot.some], exclude it"),
            ("local/other", basic("robot+all", "all"), ""),
            ("local/team/app", basic("robot+some", "some"), ""),
        ):
            answer = await self.ask("GET", f"/v2/{name}/tags/list", headers=login)
            self.assertEqual(answer.status, 403 if why else 404)
            self.assertIn(why, answer.body.decode())
        login = basic("robot+all", "all")
        answer = await self.ask("POST", "/v2/local/other/blobs/uploads/", headers=login)
        self.assertEqual(answer.status, 403)
        self.assertIn(b"no access rule", answer.body)


class SharedCacheTests(GuardedCase):
    """A cache between clients and the registry may give to all only what anybody may pull."""

    async def caching(self, method: str, path: str, who: str | None, **headers: str) -> str | None:
        answer = await self.ask(method, path, who, headers=headers)
        self.assertEqual(answer.header("Vary"), "Authorization", (path, who))
        return answer.header("Cache-Control")

    async def test_answers_to_a_login_are_for_its_client_alone(self) -> None:
        for_ever = "max-age=31536000, immutable"
        await self.have("team/app", "public/app")
        digest, blob = Digest.of(image_manifest(CONFIG, BLOB)), Digest.of(BLOB)
        for name in ("team/app", "public/app"):
            for path, expected in (
                (f"blobs/{blob}", f"private, {for_ever}"),
                (f"manifests/{digest}", f"private, {for_ever}"),
                ("manifests/v1", "private, no-cache"),
                ("tags/list", "private"),
                (f"referrers/{digest}", "private"),
                (f"blobs/{ABSENT}", "private"),
                ("manifests/absent", "private"),
            ):
                for method in ("GET", "HEAD"):
                    told = await self.caching(method, f"/v2/{name}/{path}", "alice")
                    self.assertEqual(told, expected, path)
        path = f"/v2/team/app/blobs/{blob}"
        for headers in ({"If-None-Match": f'"{blob}"'}, {"Range": "bytes=1-2"}):
            told = await self.caching("GET", path, "alice", **headers)
            self.assertEqual(told, f"private, {for_ever}")
        for path in ("/v2/_catalog", "/v2/", "/metrics"):
            self.assertEqual(await self.caching("GET", path, "alice"), "private")
        self.assertEqual(await self.caching("GET", "/v2/team/app/tags/list", "nobody"), "private")
        self.assertEqual(
            await self.caching("GET", "/v2/team/app/tags/list", None, **basic("bob", "x")),
            "private",
        )

    async def test_what_anybody_may_pull_may_be_cached_for_all(self) -> None:
        await self.have("public/app")
        path = f"/v2/public/app/blobs/{Digest.of(BLOB)}"
        for_ever = "max-age=31536000, immutable"
        self.assertEqual(await self.caching("GET", path, None), for_ever)
        self.assertEqual(await self.caching("GET", "/v2/public/app/manifests/v1", None), "no-cache")


class StoredFactsTests(GuardedCase):
    """A client that may not pull an image learns nothing of what it holds by changing it."""

    rules = (
        RULES.replace(', "docker.io/*"', "")
        + """
[[access]]
who = ["user:writer", "user:bob"]
may = ["push", "delete"]
images = ["local/team/*"]

[repository.local]
kind = "local"
quota = "2KiB"

[default]
push = "local"
pull = ["local"]
"""
    )

    async def test_a_refused_change_tells_what_is_stored_to_callers_that_may_pull(self) -> None:
        await self.have("team/app")
        child = image_manifest(CONFIG, BLOB)
        index = image_index(child)
        other, typed = image_manifest(CONFIG), {"Content-Type": OCI_MANIFEST}
        wrong = other.replace(b'"size": 2', b'"size": 3')
        put, large = "PUT /v2/team/app/manifests/v1", b"a" * 4096
        path = "/v2/team/app/manifests/index"
        await self.ask("PUT", path, "alice", index, {"Content-Type": OCI_INDEX})
        used = await self.registry.parts.catalog.repository_size("local")
        told: list[tuple[str, bytes, dict[str, str], int, dict[str, object], dict[str, object]]] = [
            (
                put,
                other,
                {"If-Match": f'"{ABSENT}"', **typed},
                412,
                {"reference": "v1"},
                {"current": str(Digest.of(child))},
            ),
            (
                put,
                other,
                {"If-None-Match": "*", **typed},
                412,
                {"reference": "v1"},
                {"current": str(Digest.of(child))},
            ),
            (
                put,
                wrong,
                typed,
                400,
                {"digest": str(Digest.of(CONFIG)), "size": 3},
                {"actual": 2},
            ),
            (
                f"DELETE /v2/team/app/manifests/{Digest.of(child)}",
                b"",
                {},
                405,
                {"digest": str(Digest.of(child))},
                {"heldBy": [str(Digest.of(index))]},
            ),
            (
                f"DELETE /v2/team/app/blobs/{Digest.of(BLOB)}",
                b"",
                {},
                405,
                {"digest": str(Digest.of(BLOB))},
                {"heldBy": [str(Digest.of(child))]},
            ),
            (
                f"POST /v2/team/app/blobs/uploads/?digest={Digest.of(large)}",
                large,
                {},
                403,
                {"repository": "local", "quota": 2048, "requested": 4096},
                {"used": used},
            ),
        ]
        for asked, body, headers, status, detail, stored in told:
            method, path = asked.split()
            for who, expected in (("writer", detail), ("bob", {**detail, **stored})):
                answer = await self.ask(method, path, who, body, headers)
                (error,) = json.loads(answer.body)["errors"]
                self.assertEqual((answer.status, error["detail"]), (status, expected), asked)
                if who == "writer":
                    for fact in (str(value) for value in stored.values()):
                        self.assertNotIn(fact, error["message"].split(), asked)

    async def test_no_answer_to_a_change_names_a_digest_that_was_not_asked_for(self) -> None:
        await self.have("team/app")
        held = str(Digest.of(image_manifest(CONFIG, BLOB)))
        headers = {"Content-Type": OCI_MANIFEST, "If-Match": f'"{ABSENT}"'}
        for asked in (*WRITES, *DELETES[::-1], "GET /v2/team/app/manifests/v1"):
            method, path = asked.format(name="team/app").split()
            answer = await self.ask(method, path, "writer", image_manifest(CONFIG), headers)
            self.assertNotIn(held, answer.body.decode(), asked)
            self.assertNotIn(held, str(answer.headers), asked)
            for told in ("Cache-Status", "Server-Timing", "Warning"):
                self.assertIsNone(answer.header(told), asked)


class ManifestTests(GuardedCase):
    async def test_pushing_a_manifest_needs_push(self) -> None:
        await self.have("team/app")
        manifest = image_manifest(CONFIG, BLOB)
        path = "/v2/team/app/manifests/v2"
        for who, status in ((None, 401), ("bob", 403), ("writer", 201)):
            headers = {"Content-Type": OCI_MANIFEST}
            self.assertEqual(
                await self.status("PUT", path, who, body=manifest, headers=headers), status
            )
