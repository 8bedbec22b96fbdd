"""The daemon while the time of day is set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

# Begins a process of the daemon, sets the time of day, and prints what the reactor calls then.
_PROGRAM = """
import sys, time
from contextlib import suppress
real, ahead = time.time, 0.0
time.time = lambda: real() + ahead  # before Twisted takes it
from artifactd.daemon import tap, worker
kind, settings = sys.argv[1:]
if kind == "worker":
    with suppress(OSError):  # it has no supervisor
        worker.main([settings])
else:
    options = tap.Options()
    options.parseOptions(["--config", settings])
    tap.makeService(options)
from twisted.internet import reactor
reactor.callLater(0, print, "due")
reactor.callLater(1800, print, "not due")
for ahead in (-3600.0, 3600.0):
    reactor.runUntilCurrent()
"""


class ClockTests(SynchronousTestCase):
    def test_what_is_due_is_called_however_the_time_of_day_is_set(self) -> None:
        settings = Path(self.mktemp())
        for kind, workers in (("service", 1), ("supervisor", 2), ("worker", 2)):
            settings.write_text(f"workers = {workers}")
            program = [sys.executable, "-c", _PROGRAM, kind, str(settings)]
            self.assertEqual(subprocess.check_output(program, text=True), "due\n", kind)
