"""Proofs of access."""

from __future__ import annotations

from artifactd.catalog.proofs import ProofCatalog
from tests.catalog.fixture import (
    CatalogTestCase,
)

FIRST, SECOND, THIRD = (bytes([number]) * 32 for number in range(3))


class ProofTests(CatalogTestCase):
    """:ivar kept: of the same catalog as ``catalog``."""

    def setUp(self) -> None:
        super().setUp()
        self.kept = ProofCatalog(self.catalog.database)

    async def test_what_was_added_is_known_until_when_it_counts(self) -> None:
        await self.kept.add_proofs([FIRST, SECOND], self.time + 60)
        expected = {FIRST: self.time + 60, SECOND: self.time + 60}
        self.assertEqual(await self.kept.proofs([FIRST, SECOND, THIRD]), expected)
        self.assertEqual(await self.kept.proofs([]), {})

    async def test_a_later_word_takes_the_place_of_an_earlier(self) -> None:
        for seconds in (60, 600, 30):
            await self.kept.add_proofs([FIRST], self.time + seconds)
            self.assertEqual(await self.kept.proofs([FIRST]), {FIRST: self.time + seconds})

    async def test_another_process_knows_it(self) -> None:
        other = ProofCatalog(self.open_catalog().database)
        await self.kept.add_proofs([FIRST], self.time + 60)
        self.assertEqual(await other.proofs([FIRST]), {FIRST: self.time + 60})

    async def test_what_has_expired_is_forgotten_with_the_next(self) -> None:
        await self.kept.add_proofs([FIRST], self.time + 60)
        self.time += 60
        await self.kept.add_proofs([SECOND], self.time + 60)
        self.assertEqual(await self.kept.proofs([FIRST, SECOND]), {SECOND: self.time + 60})

    async def test_many_are_asked_for_at_once(self) -> None:
        many = [number.to_bytes(32, "big") for number in range(1300)]
        await self.kept.add_proofs(many, self.time + 60)
        self.assertEqual(set(await self.kept.proofs(many)), set(many))
