"""
A process that dies between publishing a blob and writing its row.

usage: python -m tests.crash.dying DATA CONTENT

The moment is too short to be met from outside.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, execute

from artifactd.oci.names import Digest
from artifactd.store.blobs import BlobStore
from artifactd.store.folder import DataFolder

_P = ParamSpec("_P")
_T = TypeVar("_T")


def at_once(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
    """In the place of a thread pool."""
    return execute(function, *args, **kwargs)


async def publish_and_die(data: Path, content: bytes) -> None:
    folder = DataFolder.open(data)
    folder.settle()
    staged = await BlobStore(folder, at_once).stage(Digest.of(content), content)
    await staged.publish()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Deferred.fromCoroutine(publish_and_die(Path(sys.argv[1]), sys.argv[2].encode()))
