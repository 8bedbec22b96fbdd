"""
Python programs that start in no time: forks of a process that has imported what they need.

``tests.programs.Process.fork`` asks it, and its programs do for those that they start: the workers
of a daemon.  It is one process for each that runs tests, and ends with that one, however that ends;
so do the programs.
"""

from __future__ import annotations

import fcntl
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
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone, ProcessDone, ProcessTerminated
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

_CHECKOUT = Path(__file__).parents[1]

# What takes long to import; no module among them is ever run as ``python -m`` would.
_IMPORTED = (
    "artifactd.commands.backup",
    "artifactd.commands.check_config",
    "artifactd.commands.offline",
    "artifactd.daemon.service",
    "artifactd.daemon.supervisor",
    "artifactd.daemon.tap",
    "artifactd.tls.endpoint",
    "twisted.scripts.twistd",
)

# Bytes; more than a program's arguments and environment take.
_REQUEST = 200_000

# Programs have no descriptors with a name from here on.
_FREE = 64


@frozen
class Program:
    """
    What a fork becomes: ``python -m module argv`` in ``folder``.

    :ivar environ: all of its environment.
    :ivar numbers: those of the descriptors that it gets beside the standard ones, in their order.
    """

    module: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    folder: str
    numbers: Sequence[int] = ()

    def run(self, nursery: socket.socket, descriptors: Sequence[int]) -> None:
        """
        Become the program, in a process that has just been forked.

        :param nursery: where to ask for programs that it starts.
        """
        reactor: Any = _reactor
        # As if it had just been installed: a fork shares the epoll instance and the waker of the
        # process that it comes from.
        assert nursery.fileno() not in self.numbers
        reactor._poller.close()  # now, and not when its number is another descriptor's
        _place(dict(zip(self.numbers, descriptors, strict=True)))
        reactor.__init__()
        reactor.spawnProcess = _Spawning(nursery, reactor, reactor.spawnProcess)
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environ)
        sys.path.insert(0, self.folder)
        sys.argv = [self.module, *self.argv]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


def _place(descriptors: Mapping[int, int]) -> None:
    """Give descriptors other numbers: those that they are named by."""
    # By numbers that are nobody's, since one may have the number that another one shall have.
    copies = [(n, fcntl.fcntl(d, fcntl.F_DUPFD, _FREE)) for n, d in descriptors.items()]
    for number, copy in copies:
        os.dup2(copy, number)
        os.close(copy)


@frozen
class _Spawning:
    """
    Starts processes in the place of a reactor: a Python program by the nursery, so that it is one
    of its forks too, and any other as the reactor does.  ``TEST_WORKER`` in the environment is the
    module that is to be started in the place of the one that is asked for.
    """

    nursery: socket.socket
    reactor: Any
    other: Any

    def __call__(
        self,
        protocol: Any,
        executable: str,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        path: str | None = None,
        *more: Any,
        childFDs: Mapping[int, Any] | None = None,
        **named: Any,
    ) -> Any:
        given = childFDs or {}
        if (
            list(args[:3]) != [sys.executable, "-P", "-m"]
            or not {0, 1, 2} <= given.keys()
            or not all(isinstance(descriptor, int) for descriptor in given.values())
        ):
            return self.other(
                protocol, executable, args, env, path, *more, childFDs=childFDs, **named
            )
        numbers = sorted(given.keys() - {0, 1, 2})
        environment = dict(env or {})
        module = environment.get("TEST_WORKER") or args[3]
        program = Program(module, args[4:], environment, path or os.getcwd(), numbers)
        told, its = socket.socketpair()
        with its:
            descriptors = [given[1], given[2], its.fileno(), *(given[n] for n in numbers)]
            _send(self.nursery, program, descriptors)
        return _Child(protocol, told, self.reactor)


class _Child(FileDescriptor):
    """A process that the nursery has forked for another one, as the transport of its protocol."""

    def __init__(self, protocol: Any, told: socket.socket, reactor: Any) -> None:
        super().__init__(reactor)
        self._protocol, self._socket = protocol, told
        pid, _, self._told = told.recv(100).partition(b"\n")
        self.pid = int(pid)
        protocol.makeConnection(self)
        self.startReading()

    def signalProcess(self, name: str) -> None:
        os.kill(self.pid, getattr(signal, f"SIG{name}"))

    def fileno(self) -> int:
        return self._socket.fileno()

    def doRead(self) -> Failure | None:
        more = self._socket.recv(100)
        self._told += more
        return None if more else Failure(ConnectionDone())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._socket.close()
        status = int(self._told or -signal.SIGKILL)  # without one the nursery has ended
        error: Exception = ProcessDone(None)
        if status:
            error = ProcessTerminated(max(status, 0), -status if status < 0 else None)
        self._protocol.processExited(Failure(error))
        self._protocol.processEnded(Failure(error))


@define
class _Nursery:
    """
    The process that forks.

    :ivar requests: a socket of messages, each a :class:`Program` in JSON, with descriptors: the
        program's standard output and error, where to write ``PID\\n``, and at its end
        ``STATUS\\n``, and those that it gets besides.
    """

    requests: socket.socket
    _told: dict[int, tuple[int, int]] = field(factory=dict)  # by pidfd: its pid, where to tell
    _programs: set[socket.socket] = field(factory=set)  # what programs ask by

    def serve(self) -> tuple[Program, socket.socket, list[int]]:
        """
        Fork for each request, until there will be none.

        :returns: in each fork what :meth:`Program.run` needs; the process itself exits.
        """
        with DefaultSelector() as selector:
            selector.register(self.requests, EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if not isinstance(key.fileobj, socket.socket):
                        selector.unregister(key.fd)
                        self._ended(key.fd)
                        continue
                    message, descriptors, *_ = socket.recv_fds(key.fileobj, _REQUEST, 16)
                    if message:
                        nursery = self._fork(descriptors, selector)
                        if nursery is not None:
                            return Program(**json.loads(message)), nursery, descriptors[3:]
                    elif key.fileobj is self.requests:
                        self._kill_all()
                        sys.exit()
                    else:
                        selector.unregister(key.fileobj)
                        self._programs.remove(key.fileobj)
                        key.fileobj.close()

    def _fork(self, descriptors: list[int], selector: DefaultSelector) -> socket.socket | None:
        """
        Fork for a request that came with ``descriptors``.

        :returns: in the fork the socket to ask the nursery by; ``None`` in the nursery.
        """
        out, err, told, *more = descriptors
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            ours.close()
            self._become(out, err, told)
            return its
        for descriptor in (out, err, *more):
            os.close(descriptor)
        its.close()
        self._programs.add(ours)
        selector.register(ours, EVENT_READ)
        pidfd = os.pidfd_open(pid)
        self._told[pidfd] = pid, told
        selector.register(pidfd, EVENT_READ)
        _tell(told, pid)
        return None

    def _become(self, out: int, err: int, told: int) -> None:
        """Take over the standard descriptors of the program, and close all of the nursery's."""
        self.requests.close()
        for program in self._programs:
            program.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, standard in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(fd, standard)
            os.close(fd)
        os.close(told)
        # The files of before may know that they can seek.  Tests wait for what a program prints.
        sys.stdout, sys.stderr = (
            open(fd, "w", buffering=1, errors=errors, closefd=False)  # noqa: SIM115 - to the end
            for fd, errors in ((1, "strict"), (2, "backslashreplace"))
        )
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


def _send(requests: socket.socket, program: Program, descriptors: Sequence[int]) -> None:
    socket.send_fds(requests, [json.dumps(asdict(program)).encode()], descriptors)


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
    requests, _ = _nursery()
    _send(requests, program, [out, err, told])


def main() -> None:
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # forks share the memory of what is never looked at again
    program, nursery, descriptors = _Nursery(socket.socket(fileno=os.dup(0))).serve()
    program.run(nursery, descriptors)


if __name__ == "__main__":
    main()
