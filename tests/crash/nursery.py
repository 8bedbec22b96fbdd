"""
Daemons that start in no time: a process that has all modules, and forks for each of them.

usage: python -m tests.crash.nursery DATA CONFIG

It starts a daemon for each line that it reads: ``COUNT``, the number of steps on the disk after
which the daemon kills itself (SIGKILL) in the middle of what it does; 0: it does not.  It writes
``PID PORT`` when it listens, and ``ended STATUS`` when it has ended.  It is forked as twistd does
that makes itself a daemon: with a reactor, and nothing opened.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed

from artifactd.daemon.tap import RegistryService
from artifactd.settings.settings import Settings
from artifactd.store.files import FileOperations


class Fatal(FileOperations):
    """Kills its process at a step of which nobody knows which it will be."""

    def __init__(self, count: int) -> None:
        self._left = count

    def _step(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)

    def create(self, directory: int, name: str) -> int:
        self._step()
        return super().create(directory, name)

    def write(self, fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        self._step()
        return super().write(fd, pieces, offset)

    def append(self, fd: int, piece: bytes) -> int:
        self._step()
        return super().append(fd, piece)

    def set_mode(self, fd: int, mode: int) -> None:
        self._step()
        super().set_mode(fd, mode)

    def sync(self, fd: int) -> None:
        self._step()
        super().sync(fd)

    def link(self, directory: int, name: str, target: int, target_name: str) -> None:
        self._step()
        super().link(directory, name, target, target_name)

    def rename(self, directory: int, name: str, target: int, target_name: str) -> None:
        self._step()
        super().rename(directory, name, target, target_name)

    def unlink(self, directory: int, name: str) -> None:
        self._step()
        super().unlink(directory, name)


def say(text: str) -> None:
    """Write a line."""
    os.write(1, f"{text}\n".encode())


def serve(settings: Settings, count: int) -> None:
    """Be a daemon, to the end."""
    reactor: Any = installed
    service = RegistryService(settings, reactor, Fatal(count))

    def listen() -> None:
        service.startService()
        say(f"{os.getpid()} {service.ports[0].getHost().port}")  # type: ignore[attr-defined]

    reactor.callWhenRunning(listen)
    reactor.run(installSignalHandlers=False)


def main(data: Path, config: Path) -> None:
    """Start one after the other."""
    environment = {
        "ARTIFACTD_DATA": str(data),
        "ARTIFACTD_LISTEN": "tcp:0:interface=127.0.0.1",
        "ARTIFACTD_ACCESS_LOG": "off",
    }
    settings = Settings.load(config, environment)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            serve(settings, int(line))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
