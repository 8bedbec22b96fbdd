"""Tests; the tree mirrors the package."""

from twisted.trial import util

# Seconds that a test may take.  Hundreds of processes are started by turns, on machines that may be
# busy with other things; a test that hangs is still named.
util.DEFAULT_TIMEOUT_DURATION = 600.0
