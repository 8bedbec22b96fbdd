"""Webhooks of a whole daemon: what clients do reaches a receiver."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from artifactd.catalog.events import Event
from artifactd.oci.names import Digest
from artifactd.settings.webhooks import EventKind
from tests.api.served import Served, image_manifest
from tests.damage.rot import rot
from tests.upstreams.settings import UNREACHABLE
from tests.webhooks.hook import Hook


class EachKindTests(TestCase):
    async def test_each_event_of_the_settings_is_told_when_it_happens(self) -> None:
        hook = Hook(self)
        kinds = ", ".join(f'"{kind}"' for kind in EventKind)
        registry = Served.start(
            self,
            f"""
            [webhook.all]
            url = "{hook.url}"
            events = [{kinds}]
            [repository.local]
            kind = "local"
            [[repository.local.retention]]
            images = ["kept"]
            newest = 1
            [repository.small]
            kind = "local"
            quota = "1KiB"
            [repository.hub]
            kind = "remote"
            upstream = "{UNREACHABLE}"
            retries = 0
            """,
        )
        await registry.push_image("app", "v1", b"one")
        moved = await registry.push_image("app", "v1", b"two")
        await registry.request("DELETE", "/v2/app/manifests/v1")
        for tag in ("old", "new"):
            await registry.push_image("kept", tag, tag.encode())
        await registry.once_free(registry.parts.collector.retain)
        upload = f"/v2/small/app/blobs/uploads/?digest={moved}"
        await registry.request("POST", upload, b"x" * 2000)
        rot(registry.data, Digest.of(b"two"), "it is gone")
        await registry.request("GET", f"/v2/app/blobs/{Digest.of(b'two')}")
        while {each.event["action"] for each in hook.told} != set(EventKind):
            answer = await registry.request("GET", f"/v2/hub/app{len(hook.told)}/manifests/v1")
            self.assertEqual(answer.status, 502)
        about: dict[str, set[str]] = {kind: set() for kind in EventKind}
        for each in hook.told:
            about[each.event["action"]].add(each.event["artifactd"]["subject"])
        # Of several images any may be told first, and the rest after the last kind.
        self.assertLessEqual(about.pop("push"), {"local/app", "local/kept"})
        self.assertEqual(
            about,
            {
                "tag_moved": {"local/app"},
                "delete": {"local/app"},
                "retention": {"local/kept"},
                "quota": {"small/app"},
                "damage": {"local/app"},
                "upstream_down": {"hub"},
            },
        )


class WebhookTests(TestCase):
    def setUp(self) -> None:
        self.hook = Hook(self)
        self.cloud = Hook(self)
        self.registry = Served.start(
            self,
            f"""
            [webhook.ci]
            url = "{self.hook.url}"
            [webhook.cloud]
            url = "{self.cloud.url}"
            format = "cloudevents"
            events = ["tag_moved", "quota", "upstream_down"]
            [repository.local]
            kind = "local"
            [repository.small]
            kind = "local"
            quota = "1KiB"
            """,
        )

    async def test_a_push_and_a_delete_reach_a_receiver(self) -> None:
        digest = await self.registry.push_image("team/app", "v1", b"layer")
        headers = {"User-Agent": "x" * 1000, "Host": "registry.example:5000"}
        await self.registry.request("DELETE", f"/v2/team/app/manifests/{digest}", headers=headers)
        bodies = await self.hook.wait_for(3)
        push, tag, manifest = (each.event for each in bodies)
        self.assertEqual("push", push["action"])
        self.assertEqual(
            ("team/app", "v1", str(digest)),
            (push["target"]["repository"], push["target"]["tag"], push["target"]["digest"]),
        )
        self.assertEqual("PUT", push["request"]["method"])
        self.assertEqual("127.0.0.1", push["request"]["addr"])
        self.assertEqual({}, push["actor"])
        self.assertEqual(("delete", "v1"), (tag["action"], tag["target"]["tag"]))
        self.assertNotIn("tag", manifest["target"])
        self.assertEqual("registry.example:5000", manifest["request"]["host"])
        self.assertEqual(255, len(manifest["request"]["useragent"]))

    async def test_what_is_read_or_refused_is_not_told(self) -> None:
        await self.registry.push_image("app", "v1", b"layer")
        await self.registry.request("GET", "/v2/app/manifests/v1")
        await self.registry.request("DELETE", "/v2/app/manifests/v2")
        await self.registry.request("PUT", "/v2/app/manifests/v3", image_manifest(b"absent"))
        await self.registry.push_image("app", "v4", b"layer")
        bodies = await self.hook.wait_for(2)
        self.assertEqual(["v1", "v4"], [each.event["target"]["tag"] for each in bodies])

    async def test_a_tag_that_moves_is_told_as_a_cloudevent(self) -> None:
        first = await self.registry.push_image("app", "v1", b"one")
        second = await self.registry.push_image("app", "v1", b"two")
        (told,) = await self.cloud.wait_for(1)
        event = told.body
        self.assertEqual(("artifactd.tag_moved", "local/app:v1"), (event["type"], event["subject"]))
        data = event["data"]
        self.assertEqual((str(second), str(first)), (data["digest"], data["before"]))

    async def test_a_push_that_a_quota_refuses_is_told_once_in_a_minute(self) -> None:
        for _ in range(5):
            answer = await self.registry.request(
                "POST", "/v2/small/app/blobs/uploads/?digest=sha256:" + "0" * 64, b"x" * 2000
            )
            self.assertEqual(403, answer.status)
        await self.registry.push_image("app", "v1", b"one")
        await self.registry.push_image("app", "v1", b"two")
        # Those about different subjects come in any order.
        moved, quota = sorted(
            await self.cloud.wait_for(2), key=lambda told: str(told.body["data"]["subject"])
        )
        self.assertEqual("artifactd.quota", quota.body["type"])
        self.assertEqual("small/app", quota.body["data"]["subject"])
        self.assertIn("the quota of small is exceeded", quota.body["data"]["reason"])
        self.assertEqual("POST", quota.body["data"]["request"]["method"])
        self.assertEqual("artifactd.tag_moved", moved.body["type"])

    async def test_an_upstream_that_is_down_is_told(self) -> None:
        reports = self.registry.parts.reports
        reports.tell(Event(kind="upstream_down", repository="docker.io", reason="it hangs"))
        reports.tell(Event(kind="upstream_down", repository="docker.io", reason="it hangs"))
        reports.tell(Event(kind="upstream_down", repository="ghcr.io", reason="\udcff" * 1000))
        told = sorted(
            await self.cloud.wait_for(2), key=lambda told: str(told.body["data"]["subject"])
        )
        self.assertEqual(
            [("docker.io", "it hangs"), ("ghcr.io", "\\udcff\\u")],
            [(each.body["data"]["subject"], each.body["data"]["reason"][:8]) for each in told],
        )
        self.assertEqual(255, len(told[1].body["data"]["reason"]))
