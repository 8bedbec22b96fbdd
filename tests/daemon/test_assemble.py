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

    def test_manifests_have_a_quarter(self) -> None:
        self.assertEqual(self.dealt(64, 4), (48, 16))

    def test_or_what_one_of_them_may_need(self) -> None:
        self.assertEqual(self.dealt(12, 4), (8, 4))

    def test_but_no_more_than_transfers_have(self) -> None:
        self.assertEqual(self.dealt(4, 4), (2, 2))
        self.assertEqual(self.dealt(64, 100), (32, 32))
