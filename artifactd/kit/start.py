"""What stops the start."""

from __future__ import annotations


class StartError(Exception):
    """
    The daemon can't start as things are; the message is one line for the operator, saying what to
    do about it.
    """
