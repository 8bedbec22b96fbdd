"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.malloc import give_back_freed_memory

# Frees a block of 20 MiB, after which glibc by itself takes those of 16 MiB from the heap; prints
# how much memory is still resident after one of these was freed behind a smaller one.
_PROGRAM = """
import sys
from artifactd.kit.malloc import give_back_freed_memory
if sys.argv[1:]:
    assert give_back_freed_memory({})
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmRSS" in line)
first = bytearray(20 << 20)
del first
before = resident()
large, behind = bytearray(16 << 20), bytearray(1 << 20)
del large
print((resident() - before) // 1024)
"""


def _left(*arguments: str) -> int:
    """MiB that the program leaves resident."""
    clean = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    program = [sys.executable, "-c", _PROGRAM, *arguments]
    return int(subprocess.check_output(program, env=clean, text=True))


def _is_glibc() -> bool:
    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@skipUnless(_is_glibc(), "another C library")
class MallocTests(SynchronousTestCase):
    """The allocator of the C library."""

    def test_a_large_block_is_given_back_when_it_is_freed(self) -> None:
        self.assertGreaterEqual(_left(), 16)  # or else there would be nothing to do
        self.assertLess(_left("set"), 8)

    def test_what_the_environment_says_holds(self) -> None:
        for name in ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
            self.assertFalse(give_back_freed_memory({name: "1"}))
