"""A test that never lets go of the reactor is ended from outside."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.programs import run

_SPINNING = """
from unittest import TestResult
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
import tests

tests.BOUND = 0.01

class SpinningTests(TestCase):
    timeout = 0.01

    def retry(self):
        while True:
            pass

    def test_it(self):
        reactor.callLater(0, self.retry)
        return Deferred()

SpinningTests("test_it").run(TestResult())
print("it came back")
"""


class BoundTests(TestCase):
    async def test_a_reactor_that_spins_ends_with_a_traceback(self) -> None:
        env = {"PYTHONPATH": str(Path(__file__).parents[1])}
        ended = await run(self, sys.executable, "-c", _SPINNING, env=env, check=False)
        self.assertEqual((ended.status, ended.out), (1, ""))
        self.assertRegex(ended.err, r"(?s)\ATimeout \(0:00:00\.01.* in _run_bounded\n")
