"""Who gets which login and token where an upstream leads elsewhere, or wants another one."""

from __future__ import annotations

from tests.pull.case import PullCase, noise
from tests.upstreams.faulty import CDN, Status, Truncate

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
