"""Files of a listener, and the log lines about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.tls.files import TlsFiles
from tests.tls.authority import ROOT, Signed


class Files:
    """
    A folder with ``key.pem``, ``cert.pem`` and ``ca.pem``.

    :ivar files: them.
    """

    def __init__(self, test: SynchronousTestCase | TestCase, *, clients: bool = False) -> None:
        self.folder = Path(test.mktemp())
        self.folder.mkdir(parents=True)
        self.key, self.cert, self.client_ca = (
            self.folder / name for name in ("key.pem", "cert.pem", "ca.pem")
        )
        self.client_ca.write_bytes(ROOT.pem)
        self.files = TlsFiles(self.key, self.cert, self.client_ca if clients else None)

    def write(self, signed: Signed, *chain: Signed) -> None:
        """Have ``signed`` shown to clients, with ``chain``."""
        self.key.write_bytes(signed.key_pem)
        self.cert.write_bytes(signed.pem + b"".join(each.pem for each in chain))


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the log lines of ``artifactd.tls`` in the context; the list is filled at its end."""
    lines: list[str] = []
    with capturedLogs() as events:
        yield lines
    lines += [
        formatEvent(e) for e in events if e.get("log_namespace", "").startswith("artifactd.tls")
    ]
