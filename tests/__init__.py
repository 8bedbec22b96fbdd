"""Tests; the tree mirrors the package.  None of them fails because the machine is busy."""

from hypothesis import HealthCheck, settings
from twisted.trial import util

# Seconds that a test may take: many start processes, one after the other.  One that hangs is named.
util.DEFAULT_TIMEOUT_DURATION = 600.0

settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")
