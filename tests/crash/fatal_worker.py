"""
``artifactd.daemon.worker``, but that it kills itself (SIGKILL) in the middle of what it does.

``FATAL_STEPS`` in the environment is the most steps on the disk after which it does; 0: it doesn't.
"""

from __future__ import annotations

import os
import sys
from random import Random
from typing import Any

from artifactd.daemon import service, worker
from artifactd.daemon.assemble import Assembly, assemble
from tests.crash.fatal import Fatal

steps = int(os.environ["FATAL_STEPS"])


def assemble_fatally(*given: Any, **named: Any) -> Assembly:
    """Put the rooms together; the files are :class:`Fatal`."""
    count = Random(f"{steps} {os.getpid()}").randint(1, steps) if steps else 0
    return assemble(*given, **{**named, "files": Fatal(count)})


if __name__ == "__main__":
    vars(service).update(assemble=assemble_fatally)
    sys.exit(worker.main(sys.argv[1:]))
