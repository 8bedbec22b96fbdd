"""What the process that twistd runs imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.test_architecture import within

# Makes the daemon, and prints what has been imported.
_PROGRAM = """
import sys
from artifactd.daemon import tap
options = tap.Options()
options.parseOptions(["--config", sys.argv[1]])
tap.makeService(options)
print(*sys.modules)
"""

# What serves requests, and only that.
_SERVING = (
    *("artifactd.daemon.service", "artifactd.catalog", "artifactd.registry"),
    *("artifactd.upstream.client", "artifactd.web.api", "artifactd.web.server.protocol"),
    *("klein", "treq", "twisted.web", "jinja2", "jwt", "prometheus_client", "sqlite3"),
)


class ImportTests(SynchronousTestCase):
    def imported(self, workers: int) -> list[str]:
        """The names of the modules that a daemon of so many workers imports."""
        settings = Path(self.mktemp())
        settings.write_text(f"workers = {workers}")
        program = [sys.executable, "-c", _PROGRAM, str(settings)]
        return subprocess.check_output(program, text=True).split()

    def test_a_supervisor_imports_nothing_that_serves(self) -> None:
        """It would take the memory of one more worker, and start half as fast."""
        imported = self.imported(2)
        self.assertIn("artifactd.daemon.supervisor", imported)
        self.assertEqual([name for name in imported if within(name, *_SERVING)], [])

    def test_one_process_imports_all_and_no_supervisor(self) -> None:
        imported = self.imported(1)
        self.assertNotIn("artifactd.daemon.supervisor", imported)
        self.assertLessEqual(set(_SERVING), set(imported))
