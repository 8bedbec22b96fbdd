"""``twistd artifactd``."""

import signal
from typing import Any

from twisted.application.service import ServiceMaker


class _Daemon(ServiceMaker):
    @property
    def options(self) -> Any:
        # Importing the daemon takes a moment, and after that it handles the signal.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return super().options


artifactd = _Daemon(
    "artifactd",
    "artifactd.daemon.tap",
    "A Docker/OCI registry.",
    "artifactd",
)
