"""
``artifactd.daemon.worker``, on the clock of a test.

``TEST_CLOCK`` in the environment is the path of the clock.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from artifactd.daemon import service, worker
from artifactd.daemon.assemble import assemble
from artifactd.web.server.hot import HotAnswers
from tests.collection.clock import SharedClock


class ClockedAnswers(HotAnswers):
    """Hot answers that grow old with the clock of the catalog."""

    def __init__(self, versions: Any, recall: Any, rules: Any, limit: int, reactor: Any) -> None:
        its: Any = clock  # all of a clock that they use
        super().__init__(versions, recall, rules, limit, its)


clock = SharedClock(Path(os.environ["TEST_CLOCK"]))

if __name__ == "__main__":
    vars(service).update(assemble=partial(assemble, now=clock), HotAnswers=ClockedAnswers)
    sys.exit(worker.main(sys.argv[1:]))
