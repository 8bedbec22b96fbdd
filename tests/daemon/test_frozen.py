"""What the start of the daemon sets of the interpreter, so that no request waits long for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

# Makes the service, and prints how many objects are left out of garbage collections once the
# reactor runs, and the milliseconds after which threads take turns.
_PROGRAM = """
import gc, sys
from twisted.internet import reactor
from artifactd.daemon import tap
options = tap.Options()
options.parseOptions(["--config", sys.argv[1]])
tap.makeService(options)
def look():
    print(gc.get_freeze_count(), round(1000 * sys.getswitchinterval()))
    reactor.stop()
reactor.callWhenRunning(reactor.callLater, 0, look)
reactor.run()
"""


class FrozenTests(SynchronousTestCase):
    def test_all_that_the_start_has_made_is_looked_at_no_more(self) -> None:
        """A collection of it takes about 0.1 s; threads that compute are interrupted often."""
        settings = Path(self.mktemp())
        settings.write_text("workers = 1")
        program = [sys.executable, "-c", _PROGRAM, str(settings)]
        frozen, turn = map(int, subprocess.check_output(program, text=True).split())
        self.assertGreater(frozen, 50_000)
        self.assertEqual(turn, 1)
