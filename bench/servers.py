"""
The servers that the scripts beside this one measure, each in processes of its own.

Not a script: :func:`artifactd` and :func:`docker_registry` start one on a free port of 127.0.0.1,
:class:`Server` tells what its processes take, and :func:`private_folder` has room for their data.
:func:`in_process` does other work in a process of its own, such as to fill a catalog.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from attrs import frozen

CHECKOUT = Path(__file__).parents[1]
MEGABYTE = 1e6
PATIENCE = 600.0  # seconds for a start: the catalog may be large, and may have to be migrated
_TICKS = os.sysconf("SC_CLK_TCK")


@frozen
class Server:
    """
    A server that runs.

    :ivar pid: of its first process.
    """

    pid: int
    port: int

    @property
    def processes(self) -> list[int]:
        """The ids of its first process, and of those that this one has started: the workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [self.pid, *map(int, children.split())]

    @property
    def processor_time(self) -> float:
        """The seconds of processor time that its processes have taken so far."""
        ticks = 0
        for pid in self.processes:
            # Behind the name of the program, which may have spaces: user and system time.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICKS

    @property
    def peaks(self) -> list[float]:
        """The most bytes that were resident in each process, since :meth:`forget_peaks` if ever."""
        return [_status(pid, "VmHWM") for pid in self.processes]

    @property
    def memory(self) -> float:
        """The bytes that its processes have now; those that they share are counted once."""
        return sum(_proportional(pid) for pid in self.processes)

    def forget_peaks(self) -> None:
        """Measure :attr:`peaks` from now on."""
        for pid in self.processes:
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _proportional(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def exit_on_sigterm() -> None:
    """Let SIGTERM leave all contexts, which stop servers and remove files, before this ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


@contextmanager
def private_folder(parent: Path | None) -> Iterator[Path]:
    """
    A new folder until the end of the context, also if that is SIGTERM.

    :param parent: where it is made; ``None``: where temporary files go.
    """
    exit_on_sigterm()
    folder = Path(tempfile.mkdtemp(prefix="artifactd-bench-", dir=parent)).absolute()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def artifactd(
    folder: Path,
    settings: str = "",
    *,
    workers: int = 1,
    access_log: str = "off",
    tree: Path = CHECKOUT,
) -> Iterator[Server]:
    """
    artifactd, that keeps its data in ``folder/data``, once all its workers are ready.

    :param settings: the content of its settings file.
    :param workers: an older checkout that has none is one process all the same.
    :param access_log: as in the settings; it goes to the same file as the log.
    :param tree: the checkout that it is run from; another one has a ``.venv`` of its own.
    """
    python = sys.executable if tree == CHECKOUT else str(tree / ".venv/bin/python")
    file = folder / "artifactd.toml"
    file.write_text(settings)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ARTIFACTD_")}
    environment |= {
        "ARTIFACTD_LISTEN": "tcp:0:interface=127.0.0.1",
        "ARTIFACTD_DATA": str(folder / "data"),
        "ARTIFACTD_ACCESS_LOG": access_log,
    }
    if has_workers(tree):
        environment["ARTIFACTD_WORKERS"] = str(workers)
    else:
        workers = 1

    def port(log: str) -> int | None:
        listening = re.search(r"listening on .*127\.0\.0\.1:(\d+)", log)
        is_ready = workers == 1 or len(re.findall(r"worker \d+ is ready", log)) >= workers
        return int(listening[1]) if listening and is_ready else None

    argv = [python, "-m", "artifactd", "--config", str(file)]
    with _running(argv, folder / "artifactd.log", port, environment, tree) as server:
        yield server


def has_workers(tree: Path) -> bool:
    """Whether a checkout of artifactd knows the setting ``workers``."""
    return "\nworkers = " in (tree / "etc/artifactd.toml").read_text()


@contextmanager
def docker_registry(
    folder: Path, *, upstream: int | None = None, access_log: bool = False
) -> Iterator[Server]:
    """
    Debian's docker-registry, that keeps its data in ``folder``; its deletions are allowed.

    :param upstream: the port of the registry of 127.0.0.1 that it is a cache of, if it is.
    """
    chosen = free_port()
    document: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": not access_log}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "registry")},
            "cache": {"blobdescriptor": "inmemory"},
            "delete": {"enabled": True},
        },
        "http": {"addr": f"127.0.0.1:{chosen}"},
    }
    if upstream is not None:
        document["proxy"] = {"remoteurl": f"http://127.0.0.1:{upstream}"}
    file = folder / "docker-registry.yml"
    file.write_text(json.dumps(document))

    def port(_: str) -> int | None:
        with socket.socket() as probe:
            return chosen if probe.connect_ex(("127.0.0.1", chosen)) == 0 else None

    argv = ["docker-registry", "serve", str(file)]
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    with _running(argv, folder / "docker-registry.log", port, environment, folder) as server:
        yield server


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(
    argv: list[str],
    log: Path,
    port: Callable[[str], int | None],
    environment: dict[str, str],
    folder: Path,
) -> Iterator[Server]:
    """A program, from when ``port`` finds in its log that it serves, until the context ends."""
    with log.open("w") as out:
        process = subprocess.Popen(argv, env=environment, stdout=out, stderr=out, cwd=folder)
    try:
        deadline = time.monotonic() + PATIENCE
        while (found := port(log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{argv[0]} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield Server(process.pid, found)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Tell a process to stop, and kill it if it has not within a minute."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def in_process(work: Callable[..., object], *arguments: object) -> list[float]:
    """
    Do ``work`` in a process of its own.

    Returns the seconds of wall-clock time and of processor time, and the bytes of its peak memory.
    What a process has counts as the peak of those that it starts, so this one has to stay small.
    """
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_report, args=(its, work, arguments))
    process.start()
    its.close()
    try:
        measured: list[float] = ours.recv()
    except EOFError:
        raise SystemExit(f"{work.__name__} has failed") from None
    finally:
        process.join()
    return measured


def _report(told: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    begun, before = time.perf_counter(), time.process_time()
    work(*arguments)
    took, spent = time.perf_counter() - begun, time.process_time() - before
    told.send([took, spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024])
