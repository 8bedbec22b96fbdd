"""
A daemon that kills itself (SIGKILL) in the middle of what it does.

usage: python -m tests.crash.fatal DATA CONFIG COUNT

``COUNT`` is the number of steps on the disk after which it does; 0: it does not.  It writes
``port PORT`` when it listens.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed

from artifactd.daemon.service import RegistryService
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


def main(data: Path, config: Path, count: int) -> None:
    """Be the daemon, to the end."""
    environment = {
        "ARTIFACTD_DATA": str(data),
        "ARTIFACTD_LISTEN": "tcp:0:interface=127.0.0.1",
        "ARTIFACTD_ACCESS_LOG": "off",
    }
    reactor: Any = installed
    service = RegistryService(Settings.load(config, environment), reactor, Fatal(count))

    def listen() -> None:
        service.startService()
        print("port", service.ports[0].getHost().port, flush=True)  # type: ignore[attr-defined]

    reactor.callWhenRunning(listen)
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
