"""What the daemon has seen of its clients."""

from __future__ import annotations

import os
import re
from contextlib import suppress

from attrs import frozen

from tests.process import Daemon

_LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+)" (?P<status>\d+) (?P<sent>\d+) [\d.]+ "')


@frozen
class Answered:
    """A line of the access log; ``path`` with the query, ``sent`` in bytes of the body."""

    method: str
    path: str
    status: int
    sent: int


def answered(daemon: Daemon) -> list[Answered]:
    """
    What ``daemon`` has answered since it was last started, in the order of the answers' ends.

    The log may lag behind what a client has been told.
    """
    return [
        Answered(line["method"], line["path"], int(line["status"]), int(line["sent"]))
        for line in _LINE.finditer(daemon.process.output)
    ]


def stored(daemon: Daemon) -> int:
    """How many bytes its data folder holds, those of unfinished uploads included."""
    total = 0
    for folder, _, files in os.walk(daemon.data):
        for file in files:
            with suppress(FileNotFoundError):  # published or removed meanwhile
                total += os.stat(os.path.join(folder, file)).st_size
    return total
