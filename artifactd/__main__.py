"""``python -m artifactd [options]``: the daemon in the foreground, as ``twistd -n artifactd``."""

from __future__ import annotations

import sys

from twisted.scripts.twistd import run

if __name__ == "__main__":
    sys.argv[1:1] = ["--nodaemon", "--pidfile=", "artifactd"]
    run()
