"""
``twistd artifactd``: the process that twistd runs, which serves or supervises.

It imports what it does, and not the other: a supervisor has no use for most of the program.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.logger import globalLogPublisher

from artifactd.daemon.log import StreamLog
from artifactd.daemon.options import SettingsFileOptions
from artifactd.daemon.signals import Signals
from artifactd.kit.clock import keep_steady
from artifactd.kit.printable import make_printable, printable
from artifactd.kit.shared import SharedMemory
from artifactd.kit.start import StartError
from artifactd.settings.settings import Settings


class Options(SettingsFileOptions):
    """``twistd artifactd [--config FILE]``."""

    longdesc = "An OCI/Docker registry.  etc/artifactd.toml explains every setting."


def makeService(options: Options) -> Service:
    """Make the daemon.  :raises SystemExit: with one line that names the first wrong setting."""
    # Before the observers that twistd adds later, so that these see the events already changed.
    globalLogPublisher.addObserver(make_printable)
    try:
        settings = options.load()
    except StartError as error:
        raise SystemExit(printable(f"artifactd: {error}")) from None
    return _supervisor(options, settings) if settings.processes > 1 else _service(options, settings)


def _supervisor(options: Options, settings: Settings) -> Service:
    """Let this process supervise several that serve."""
    from twisted.internet import reactor

    from artifactd.daemon.supervisor import Supervisor

    keep_steady(reactor)
    memory = SharedMemory.create()
    log = _log_of(options, reactor, settings, memory.descriptor)
    supervisor = Supervisor(settings, reactor, memory, options.config, log)
    Signals(reactor, supervisor.hurry, supervisor.reload).handle()
    return supervisor


def _service(options: Options, settings: Settings) -> Service:
    """Let this process serve."""
    from twisted.internet import reactor

    from artifactd.daemon.service import RegistryService, prepare

    keep_steady(reactor)
    log = _log_of(options, reactor, settings)
    prepare(reactor)
    service = RegistryService(settings, reactor, source=options.config, log=log)
    Signals(reactor, service.hurry).handle()
    return service


def _log_of(
    options: Options, reactor: Any, settings: Settings, lock: int | None = None
) -> StreamLog | None:
    """
    Return the log that replaces twistd's, or ``None`` where that stays.

    :raises SystemExit: if twistd's stays, and does not write as the settings want.
    """
    twistd = getattr(options, "parent", None)  # its options
    if twistd is None:
        return None
    log = StreamLog.replacing(twistd, reactor, lock)
    if log is not None:
        log.configure(settings)
        return log
    for name in ("log_format", "log_level"):
        if getattr(settings, name) != getattr(Settings(), name):
            raise SystemExit(
                f"artifactd: {name}: is for the log on the standard output: start twistd with"
                " --nodaemon, and without --logfile, --syslog and --logger"
            )
    return None
