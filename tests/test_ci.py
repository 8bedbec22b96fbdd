"""What ``.ci/run`` finds on the machine that it runs on."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import TestCase

import artifactd
from tests.programs import run

SCRIPT = Path(artifactd.__file__).parents[1] / ".ci" / "run"


class NewerPythonsTests(TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.script(".venv/bin/python", "echo 11")

    def script(self, name: str, does: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o755)

    async def newer(self) -> list[str]:
        """Those that the quick tests are run with, too."""
        lines = SCRIPT.read_text(encoding="utf-8").splitlines()
        part = lines[lines.index("newer=()") :]
        part = part[: part.index("done") + 1]
        script = ["set -euo pipefail", f"cd {self.folder}", *part, 'echo "${newer[@]}"']
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return (await run(self, "bash", "-c", "\n".join(script), env={"PATH": path})).out.split()

    async def test_each_that_can_make_virtual_environments_once(self) -> None:
        for name in ("python3.9", "python3.11", "python3.98", "python3.99", "python3.99-config"):
            self.script(f"bin/{name}", "exit 0")
        self.script("bin/python3.97", "echo 'apt install python3.97-venv'; exit 1")
        self.assertEqual((await self.newer())[-2:], ["python3.98", "python3.99"])
        self.assertNotIn("python3.97", await self.newer())

    async def test_none_is_no_failure(self) -> None:
        self.script(".venv/bin/python", "echo 99")
        self.assertEqual(await self.newer(), [])
