"""A registry whose disk is bad, and its scrubber."""

from __future__ import annotations

from artifactd.oci.names import Digest
from artifactd.settings.settings import Settings
from artifactd.settings.values import Duration, Size
from tests.damage.rot import rot
from tests.pull.case import PullCase, noise

LARGE = noise(300_000, 1)
"""More than what is answered from memory."""

SMALL = b"a small blob"
FAST = Settings(scrub_rate=Size(1 << 40), scrub_pause=Duration(0), quarantine_keep=Duration(0))
NAME = "library/app"


class DamageCase(PullCase):
    def setUp(self) -> None:
        super().setUp()
        self.parts.scrubber.settings = FAST

    def rot(self, digest: Digest, way: str) -> None:
        rot(self.registry.data, digest, way)

    async def scrub(self) -> None:
        """A round, and all that comes of it."""
        await self.parts.scrubber.run()
        await self.seen_to()

    async def seen_to(self) -> None:
        """Wait for what is looked into, or fetched again, in the background."""
        while self.parts.damage._background:
            await next(iter(self.parts.damage._background.values()))

    def quarantined(self) -> list[str]:
        """The digests of what is in quarantine; each has a record beside it."""
        names = sorted(path.name for path in (self.registry.data / "quarantine").iterdir())
        files = [name for name in names if not name.endswith(".json")]
        self.assertEqual([n for n in names if n.endswith(".json")], [f"{n}.json" for n in files])
        return [name.partition(".")[0].replace("-", ":", 1) for name in files]

    async def statuses(self, path: str) -> tuple[int, int]:
        """Of GET and HEAD."""
        got = await self.registry.request("GET", path)
        head = await self.registry.request("HEAD", path)
        return got.status, head.status

    async def damaged(self, name: str) -> float:
        """A counter of damage."""
        metrics = (await self.registry.request("GET", "/metrics")).body.decode()
        (line,) = [text for text in metrics.splitlines() if text.startswith(f"artifactd_{name} ")]
        return float(line.rpartition(" ")[2])
