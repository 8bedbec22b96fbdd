"""Other programs in tests: whether they are installed, and running them without waiting idly."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from attrs import define, frozen
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorProcess,
    IReactorSocket,
    IReactorTCP,
    IReactorThreads,
    IReactorTime,
)
from twisted.internet.protocol import ProcessProtocol, Protocol, ServerFactory, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase

from tests import nursery
from tests.nursery import Program


class IReactor(
    IReactorCore, IReactorProcess, IReactorSocket, IReactorTCP, IReactorThreads, IReactorTime
):
    """What the tests use of the reactor that they run in."""


reactor = cast(IReactor, _reactor)

# How many seconds to wait for what should come at once: no test fails because the machine is busy.
PATIENCE = 300.0


def require(*names: str, root: bool = False) -> None:
    """
    Go on only where the programs ``names`` are installed, and if ``root`` only as root.

    :raises SkipTest: if not; where ``ARTIFACTD_REQUIRE_PROGRAMS`` is set, as in CI, a failure.
    """
    missing = [name for name in names if shutil.which(name) is None]
    if root and os.geteuid() != 0:
        missing.append("being root")
    if missing:
        reason = f"needs {', '.join(missing)}"
        if os.environ.get("ARTIFACTD_REQUIRE_PROGRAMS"):
            raise AssertionError(reason)
        raise SkipTest(reason)


async def wait_for(
    condition: Callable[[], bool | Awaitable[bool]], seconds: float = PATIENCE
) -> None:
    """
    Wait until ``condition`` holds, for what tells no event.

    :raises AssertionError: if it does not within ``seconds``.
    """
    deadline = reactor.seconds() + seconds
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        if reactor.seconds() > deadline:
            raise AssertionError(f"not within {seconds} s: {inspect.getsource(condition).strip()}")
        await deferLater(reactor, 0.02)


class Process(ProcessProtocol):
    """
    A child process, killed at the end of the test if it still runs then.

    :ivar out: what it has written to its standard output.
    :ivar err: the same of its standard error.
    """

    def __init__(self, argv: tuple[str, ...]) -> None:
        self.argv = argv
        self.out = bytearray()
        self.err = bytearray()
        self.status: int | None = None
        self.pid = 0
        self._written = bytearray()
        self._ends: list[Deferred[int]] = []
        self._matches: list[tuple[re.Pattern[str], Deferred[re.Match[str]]]] = []

    @classmethod
    def start(
        cls,
        test: TestCase,
        *argv: str,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stdin: bytes = b"",
    ) -> Self:
        """
        Run ``argv`` in ``folder`` with ``env`` (if ``None`` the tests' own) and ``stdin``.

        :raises AssertionError: if there is no such program.
        """
        program = shutil.which(argv[0])
        assert program is not None, f"{argv[0]} is not installed"
        self = cls(argv)
        environment = dict(os.environ if env is None else env)
        transport = reactor.spawnProcess(
            self, program, argv, environment, None if folder is None else str(folder)
        )
        self.pid = transport.pid
        transport.write(stdin)
        transport.closeStdin()
        test.addCleanup(self.kill, signal.SIGKILL)
        return self

    @classmethod
    def fork(
        cls,
        test: TestCase,
        module: str,
        *argv: str,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Self:
        """
        Run ``python -m module argv`` with an empty standard input, by a fork of a process that has
        imported artifactd: that takes a tenth of the time.

        Parameters as of :meth:`start`.
        """
        self = cls((module, *argv))
        program = Program(
            module, argv, dict(os.environ if env is None else env), str(folder or Path.cwd())
        )
        ours, its = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        nursery.start(program, *(each.fileno() for each in its))
        for each in its:
            each.close()
        with ours[2].makefile("rb", buffering=0) as told:
            pid = told.readline()
        assert pid, "the nursery has ended"
        self.pid = int(pid)
        forked = _Forked(self)
        for number, each in enumerate(ours, 1):
            each.setblocking(False)
            factory: ServerFactory[Any] = ServerFactory()
            factory.protocol = partial(_Reader, forked, number)
            reactor.adoptStreamConnection(each.fileno(), socket.AF_UNIX, factory)
            each.close()
        test.addCleanup(self.kill, signal.SIGKILL)
        return self

    @property
    def output(self) -> str:
        """All that it has written, in the order of reading."""
        return self._written.decode(errors="replace")

    def matched(self, pattern: str, seconds: float = PATIENCE) -> Deferred[re.Match[str]]:
        """
        The first match of ``pattern`` in its output, once it is there.

        Fails with its output if it ends before, or after ``seconds``.
        """
        expected: Deferred[re.Match[str]] = Deferred()
        self._matches.append((re.compile(pattern), expected))
        self._look()
        return expected.addTimeout(seconds, reactor).addErrback(self._explain)

    def ended(self, seconds: float = PATIENCE) -> Deferred[int]:
        """
        Its exit status, or minus the signal that ended it, once it has ended.

        Fails with its output if it does not end within ``seconds``.
        """
        end: Deferred[int] = Deferred()
        if self.status is None:
            self._ends.append(end)
        else:
            end.callback(self.status)
        return end.addTimeout(seconds, reactor).addErrback(self._explain)

    def kill(self, number: int, seconds: float = PATIENCE) -> Deferred[int]:
        """Send it a signal, if it still runs, and wait for its end as :meth:`ended`."""
        if self.status is None:
            os.kill(self.pid, number)
        return self.ended(seconds)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        (self.out if childFD == 1 else self.err).extend(data)
        self._written += data
        self._look()

    def processEnded(self, reason: Failure) -> None:
        end = reason.value
        assert isinstance(end, ProcessDone | ProcessTerminated)
        self.end(end.exitCode if end.signal is None else -end.signal)

    def end(self, status: int) -> None:
        """It has ended with ``status``, and all that it wrote has been read."""
        self.status = status
        ends, self._ends = self._ends, []
        for waiting in ends:
            waiting.callback(self.status)
        matches, self._matches = self._matches, []
        for pattern, expected in matches:
            expected.errback(AssertionError(f"it ended without writing {pattern.pattern}"))

    def _look(self) -> None:
        text = self.output
        for waiting in self._matches[:]:
            found = waiting[0].search(text)
            if found:
                self._matches.remove(waiting)
                waiting[1].callback(found)

    def _explain(self, failure: Failure) -> Failure:
        what = "took too long" if failure.check(TimeoutError) else failure.getErrorMessage()
        return Failure(
            AssertionError(f"{' '.join(self.argv)} (status {self.status}): {what}\n{self.output}")
        )


@define
class _Forked:
    """
    A process that the nursery has forked; it has ended when all that comes from it has.

    :ivar told: what the nursery says of it: its status.
    """

    process: Process
    told: bytes = b""
    open: int = 3

    def received(self, number: int, data: bytes) -> None:
        if number == 3:
            self.told += data
        else:
            self.process.childDataReceived(number, data)

    def closed(self) -> None:
        self.open -= 1
        if not self.open:
            assert self.told, "the nursery has ended"
            self.process.end(int(self.told))


class _Reader(Protocol):
    """Reads standard output (1) or error (2) of a forked process, or what is told of it (3)."""

    def __init__(self, forked: _Forked, number: int) -> None:
        self._forked = forked
        self._number = number

    def dataReceived(self, data: bytes) -> None:
        self._forked.received(self._number, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._forked.closed()


@frozen
class Result:
    """How a program ended; ``out`` and ``err`` are what it wrote, decoded."""

    status: int
    out: str
    err: str


async def run(
    test: TestCase,
    *argv: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    seconds: float = PATIENCE,
    check: bool = True,
) -> Result:
    """
    Run a program to its end.

    :param env: variables added to the tests' own.
    :param check: fail if its status is not 0.
    :raises AssertionError: with its output, if it fails or does not end within ``seconds``.
    """
    process = Process.start(test, *argv, env={**os.environ, **(env or {})}, stdin=stdin)
    return await _result(process, seconds, check)


async def run_module(
    test: TestCase, module: str, *argv: str, env: Mapping[str, str], check: bool = True
) -> Result:
    """
    Run ``python -m module argv`` to its end, as :meth:`Process.fork` does.

    :param env: variables added to the tests' own.
    :param check: as of :func:`run`.
    """
    process = Process.fork(test, module, *argv, env={**os.environ, **env})
    return await _result(process, PATIENCE, check)


async def _result(process: Process, seconds: float, check: bool) -> Result:
    status = await process.ended(seconds)
    if check and status:
        raise AssertionError(f"{' '.join(process.argv)}: status {status}\n{process.output}")
    return Result(
        status, process.out.decode(errors="replace"), process.err.decode(errors="replace")
    )


class DockerEngine:
    """
    A Docker Engine of the test's own; root only.

    It has no bridge: containers run with ``--network none`` or ``host``.  Registries on 127.0.0.0/8
    are reached over plain HTTP, or TLS that is not verified; by the address 0.0.0.0, which is this
    machine too, over TLS that is.

    :ivar host: what ``DOCKER_HOST`` has to be.
    :ivar config: the file where ``docker login`` keeps what it was told.
    """

    def __init__(self, test: TestCase, folder: Path, trusted: Path | None = None) -> None:
        self.host = f"unix://{folder}/docker.sock"
        self.config = folder / "config/config.json"
        self._test = test
        self._folder = folder
        self._trusted = {} if trusted is None else {"SSL_CERT_FILE": str(trusted.absolute())}

    @classmethod
    async def start(cls, test: TestCase, *options: str, trusted: Path | None = None) -> Self:
        """
        Start one, with more ``options`` to dockerd; it ends with the test.

        :param trusted: the authorities that it trusts, in PEM, in place of the machine's.
        :raises SkipTest: as :func:`require`.
        """
        require("docker", "dockerd", "containerd", root=True)
        # Not test.mktemp(): the path of a socket has room for 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
        self = cls(test, folder, trusted)
        test.addCleanup(self._clear)
        (folder / "daemon.json").write_text("{}")
        state = {"data-root": "root", "exec-root": "exec", "pidfile": "pid"}
        daemon = Process.start(
            test,
            "dockerd",
            f"--config-file={folder}/daemon.json",
            *(f"--{option}={folder}/{name}" for option, name in state.items()),
            f"--host={self.host}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            *options,
            env={**os.environ, **self._trusted},
        )
        test.addCleanup(daemon.kill, signal.SIGTERM)
        await daemon.matched(r"API listen on \S+docker\.sock")
        return self

    async def docker(
        self, *argv: str, stdin: bytes = b"", seconds: float = PATIENCE, check: bool = True
    ) -> Result:
        """Run ``docker`` against it; parameters as of :func:`run`."""
        env = {
            "DOCKER_HOST": self.host,
            "DOCKER_CONFIG": str(self.config.parent),
            "DOCKER_BUILDKIT": "0",  # it would be a program of its own
            **self._trusted,
        }
        return await run(
            self._test, "docker", *argv, env=env, stdin=stdin, seconds=seconds, check=check
        )

    async def _clear(self) -> None:
        """End what the engine left behind when it could not end by itself; remove its files."""
        children = self._folder / "exec/containerd/containerd.pid"
        if children.exists():
            pid = int(children.read_text())
            if str(self._folder) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed(mounts):
            if Path(mount).is_relative_to(self._folder):
                await run(self._test, "umount", "--lazy", mount)
        await deferToThread(shutil.rmtree, self._folder)
