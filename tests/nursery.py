"""
Python programs that start in no time: forks of a process that has imported what they need.

``tests.programs.Process.fork`` asks it.  It is one process for each that runs tests, and ends with
that one, however that ends; so do the programs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from attrs import asdict, define, field, frozen
from twisted.internet import reactor as _reactor

_CHECKOUT = Path(__file__).parents[1]

# What takes long to import; no module among them is ever run as ``python -m`` would.
_IMPORTED = (
    "artifactd.commands.backup",
    "artifactd.commands.check_config",
    "artifactd.commands.offline",
    "artifactd.daemon.tap",
    "artifactd.tls.endpoint",
    "twisted.scripts.twistd",
)

# Bytes; more than a program's arguments and environment take.
_REQUEST = 200_000


@frozen
class Program:
    """
    What a fork becomes: ``python -m module argv`` in ``folder``.

    :ivar environ: all of its environment.
    """

    module: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    folder: str

    def run(self) -> None:
        """Become the program, in a process that has just been forked."""
        reactor: Any = _reactor
        # As if it had just been installed: a fork shares the epoll instance and the waker of the
        # process that it comes from.
        reactor.__init__()
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environ)
        sys.path.insert(0, self.folder)
        sys.argv = [self.module, *self.argv]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


@define
class _Nursery:
    """
    The process that forks.

    :ivar requests: a socket of messages, each a :class:`Program` in JSON, with three descriptors:
        the program's standard output and error, and where to write ``PID\\n``, and at its end
        ``STATUS\\n``.
    """

    requests: socket.socket
    _told: dict[int, tuple[int, int]] = field(factory=dict)  # by pidfd: its pid, where to tell

    def serve(self) -> Program:
        """
        Fork for each request, until there will be none.

        :returns: in each fork what it is to be; the process itself exits.
        """
        with DefaultSelector() as selector:
            selector.register(self.requests, EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is not self.requests:
                        selector.unregister(key.fd)
                        self._ended(key.fd)
                        continue
                    message, descriptors, *_ = socket.recv_fds(self.requests, _REQUEST, 3)
                    if not message:
                        self._kill_all()
                        sys.exit()
                    out, err, told = descriptors
                    pid = os.fork()
                    if not pid:
                        self._become(out, err, told)
                        return Program(**json.loads(message))
                    os.close(out)
                    os.close(err)
                    pidfd = os.pidfd_open(pid)
                    self._told[pidfd] = pid, told
                    selector.register(pidfd, EVENT_READ)
                    _tell(told, pid)

    def _become(self, out: int, err: int, told: int) -> None:
        """Take over the descriptors of the program, and close all others."""
        self.requests.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, standard in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(fd, standard)
            os.close(fd)
        os.close(told)
        # Tests wait for what a program prints.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a text file
        for pidfd, (_, other) in self._told.items():
            os.close(pidfd)
            os.close(other)

    def _ended(self, pidfd: int) -> None:
        pid, told = self._told.pop(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        _tell(told, os.waitstatus_to_exitcode(status))
        os.close(told)

    def _kill_all(self) -> None:
        for pid, _ in self._told.values():
            os.kill(pid, signal.SIGKILL)


def _tell(told: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the test is over
        os.write(told, b"%d\n" % number)


@cache
def _nursery() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the nursery of this process: where to send requests, and the process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ARTIFACTD_")}
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            stdin=its.fileno(),
            env=environment,
            cwd=_CHECKOUT,
            # It isn't told by the terminal's Ctrl-C, but by the end of this process.
            start_new_session=True,
        )
    return ours, process


def start(program: Program, out: int, err: int, told: int) -> None:
    """
    Start a program, with descriptors for its standard output and error, and for what is told of it:
    ``PID\\n``, and at its end ``STATUS\\n``, or minus the signal.

    This process keeps its copies of the descriptors.
    """
    message = json.dumps(asdict(program)).encode()
    requests, _ = _nursery()
    socket.send_fds(requests, [message], [out, err, told])


def main() -> None:
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # forks share the memory of what is never looked at again
    _Nursery(socket.socket(fileno=os.dup(0))).serve().run()


if __name__ == "__main__":
    main()
