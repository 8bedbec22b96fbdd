"""Who gets which login and token where an upstream leads elsewhere, or wants another one."""

from __future__ import annotations

from tests.pull.case import ALPINE, PullCase, noise, remote
from tests.upstreams.faulty import BLOBS, CDN, RedirectTo, Status, Truncate
from tests.upstreams.hub import Hub

SIZE = 200_000
CONTENT = noise(SIZE)


class StorageTests(PullCase):
    """Storage on the registry's own host: it takes a signature or ``Authorization``, not both."""

    async def test_it_gets_no_authorization(self) -> None:
        self.hub.beside = True
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=100_000), on=CDN)
        self.assert_whole(await self.pull(digest), CONTENT)
        for asked in self.hub.asked("GET", CDN):
            self.assertEqual((asked.role, asked.headers.get("authorization")), ("registry", None))

    async def test_its_refusal_is_no_challenge_and_costs_no_token(self) -> None:
        self.hub.beside = True
        digest = self.blob(CONTENT)
        self.hub.faults.add(Status(403), on=CDN, method="*", times=None)
        self.assertEqual((await self.pull(digest)).error[0], 502)
        self.assertEqual(self.hub.count("GET", "/token"), 1)
        self.hub.faults.clear()
        self.assert_whole(await self.pull(digest), CONTENT)


class RedirectedTests(PullCase):
    """The upstream is a name before another registry, which wants a token as for anybody."""

    settings = remote(username="bob", password="hunter2")

    def setUp(self) -> None:
        super().setUp()
        self.back = Hub.start(self)
        self.hub.tokens.users["bob"] = "hunter2"

    async def test_manifests_blobs_and_lists_are_had_with_its_token_and_not_with_ours(self) -> None:
        manifest = self.back.images.add_image(ALPINE, "latest", b"layer")
        digest = self.back.images.add_blob(CONTENT, ALPINE)
        self.hub.images.add_image(ALPINE, "latest", b"of the first")
        paths = [
            f"/v2/{ALPINE}/{path}" for path in ("manifests/latest", f"blobs/{digest}", "tags/list")
        ]
        for path in paths:
            self.hub.faults.add(RedirectTo(self.back.url + path), on=path, method="*", times=None)
        answer = await self.registry.request("GET", f"/v2/docker.io/{ALPINE}/manifests/latest")
        self.assertEqual(answer.header("Docker-Content-Digest"), str(manifest))
        self.assert_whole(await self.pull(digest), CONTENT)
        answer = await self.registry.request("GET", f"/v2/docker.io/{ALPINE}/tags/list")
        self.assertEqual(answer.status, 200)
        ours = [token.text for token in self.hub.tokens.given]
        self.assertEqual(self.hub.tokens.given[0].user, "bob")
        self.assertEqual([token.user for token in self.back.tokens.given], [None])
        shown = {asked.headers.get("authorization") for asked in self.back.requests}
        self.assertEqual(shown, {None, f"Bearer {self.back.tokens.given[0].text}"})
        self.assertNotIn(f"Bearer {ours[0]}", shown)

    async def test_what_is_not_there_is_not_found(self) -> None:
        self.hub.images.add_image(ALPINE, "latest", b"of the first")
        path = f"/v2/{ALPINE}/manifests/latest"
        self.hub.faults.add(RedirectTo(self.back.url + path), on=path, method="*", times=None)
        answer = await self.registry.request("GET", f"/v2/docker.io/{ALPINE}/manifests/latest")
        self.assertEqual(answer.status, 404)


class DeadTokenTests(PullCase):
    """A token that the registry refuses before its time."""

    async def test_it_is_replaced_at_once_and_no_client_notices(self) -> None:
        for number, status in enumerate((400, 401, 403)):
            content = noise(1000, number)
            digest = self.blob(content)
            await self.pull(self.blob(noise(500, number)))  # with a token that is good
            before = len(self.hub.tokens.given)
            self.hub.faults.add(Status(status), on=BLOBS)
            self.assert_whole(await self.pull(digest), content)
            self.assertEqual(len(self.hub.tokens.given), before + 1)


class RefusedLoginTests(PullCase):
    """The token server refuses the daemon's login."""

    settings = remote(username="bob", password="wrong")

    async def test_public_images_are_had_and_private_ones_are_no_404(self) -> None:
        for name in (ALPINE, "org/private"):
            self.hub.images.add_image(name, "latest", b"layer")
        self.hub.private.add("org/private")
        for name, status in ((ALPINE, 200), ("org/private", 502)):
            answer = await self.registry.request("GET", f"/v2/docker.io/{name}/manifests/latest")
            self.assertEqual(answer.status, status, answer.body)
        self.assertIn(b"login refused to user bob", answer.body)
        self.assertEqual(
            len(self.logged("login refused to user bob", "images are asked for anonymously")), 1
        )
