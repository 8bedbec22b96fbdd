"""bench/soak.py, for seconds instead of minutes."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

import artifactd
from tests.programs import run

_SOAK = Path(artifactd.__file__).parents[1] / "bench" / "soak.py"


class SoakTests(TestCase):
    async def test_it_loses_nothing_and_leaves_nothing_behind(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        command = (sys.executable, str(_SOAK), "--seconds", "4", "--data", str(folder))
        soaked = await run(self, *command)
        for line in ("losses: 0", "corrupt: 0", "amiss: 0", "bytes of anybody else's: 0"):
            self.assertIn(f"{line}\n", soaked.out)
        self.assertRegex(soaked.out, r"seed: \d+\n")
        self.assertRegex(soaked.out, r"operations: [1-9]\d*\n")
        self.assertEqual(list(folder.iterdir()), [])
