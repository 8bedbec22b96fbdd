"""What the daemon leaves out of Python's garbage collections."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

# Makes the service, and prints how many objects are left out once the reactor runs.
_PROGRAM = """
import gc, sys
from twisted.internet import reactor
from artifactd.daemon import tap
options = tap.Options()
options.parseOptions(["--config", sys.argv[1]])
tap.makeService(options)
def look():
    print(gc.get_freeze_count())
    reactor.stop()
reactor.callWhenRunning(reactor.callLater, 0, look)
reactor.run()
"""


class FrozenTests(SynchronousTestCase):
    def test_all_that_the_start_has_made_is_looked_at_no_more(self) -> None:
        """A collection of it takes about 0.1 s, in which no request is answered."""
        settings = Path(self.mktemp())
        settings.write_text("")
        program = [sys.executable, "-c", _PROGRAM, str(settings)]
        frozen = int(subprocess.check_output(program, text=True))
        self.assertGreater(frozen, 50_000)
