"""Processes that share memory with a test."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from typing import Self

from artifactd.kit.shared import SharedMemory


class Helper:
    """
    A process that runs ``code`` on the memory, named ``memory`` there, and then waits.

    It has run it when the context is entered, and is killed when that ends.
    """

    def __init__(self, memory: SharedMemory, code: str) -> None:
        descriptor = memory.descriptor
        begin = (
            f"from artifactd.kit.shared import SharedMemory\nmemory = SharedMemory({descriptor})\n"
        )
        end = "\nimport sys\nprint('done', flush=True)\nsys.stdin.read()\n"
        self._process = subprocess.Popen(
            [sys.executable, "-c", begin + dedent(code) + end],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"done\n":
            self.kill()
            raise AssertionError("the process has failed")
        return self

    def kill(self) -> None:
        """Kill it as kill -9 does, and wait for its end."""
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            assert end is not None
            end.close()

    def __exit__(self, *error: object) -> None:
        if self._process.returncode is None:
            self.kill()
