"""How the buffers of transfers are divided."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactd.daemon.assemble import Budgets
from artifactd.settings.settings import Settings
from artifactd.settings.values import Size

MIB = 1 << 20


class BudgetTests(SynchronousTestCase):
    def dealt(self, buffers: int, manifest: int) -> tuple[int, int]:
        """What transfers and manifests get, in MiB."""
        budgets = Budgets.of(
            Settings(transfer_buffers=Size(buffers * MIB), max_manifest=Size(manifest * MIB))
        )
        return budgets.transfers.limit // MIB, budgets.manifests // MIB

    def test_lists_have_an_eighth_and_one_owner_half_of_that(self) -> None:
        answers = Budgets.of(Settings(transfer_buffers=Size(64 * MIB))).answers
        self.assertEqual((answers.limit // MIB, answers.share // MIB), (8, 4))

    def test_manifests_have_a_quarter(self) -> None:
        self.assertEqual(self.dealt(64, 4), (40, 16))

    def test_or_what_one_of_them_may_need(self) -> None:
        self.assertEqual(self.dealt(12, 4), (6, 4))

    def test_but_no_more_than_half(self) -> None:
        self.assertEqual(self.dealt(4, 4), (1, 2))
        self.assertEqual(self.dealt(64, 100), (24, 32))
