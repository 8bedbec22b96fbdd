"""Tests; the tree mirrors the package.  None of them fails because the machine is busy."""

from __future__ import annotations

import faulthandler
from functools import wraps
from unittest import TestResult

from hypothesis import HealthCheck, settings
from twisted.trial import util
from twisted.trial.unittest import SynchronousTestCase

# Seconds that a test may take: many start processes, one after the other.  One that hangs is named.
util.DEFAULT_TIMEOUT_DURATION = 600.0

BOUND = 900.0
"""
Seconds after which the process of a test ends with a traceback: trial's timeout is a timed call,
and is never called when the test, or what it tests, does not let go of the reactor.
"""

settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")

_run = SynchronousTestCase.run


@wraps(_run)
def _run_bounded(self: SynchronousTestCase, result: TestResult) -> None:
    faulthandler.dump_traceback_later(BOUND, exit=True, file=2)
    try:
        _run(self, result)
    finally:
        faulthandler.cancel_dump_traceback_later()


# Trial has no hook around every test.
SynchronousTestCase.run = _run_bounded  # type: ignore[method-assign]
