"""``<blob>.info``: what an upstream has told of a blob that is coming, as JSON."""

from __future__ import annotations

import os
from uuid import uuid4

import msgspec

from artifactd.storage.files import Directory, FileOperations, write_all
from artifactd.storage.growing import FillInfo

_decoder = msgspec.json.Decoder(FillInfo)
_MOST = 64 * 1024


def info_name(blob: str) -> str:
    """The name of what is known of the blob whose files' names begin with ``blob``."""
    return f"{blob}.info"


def read_info(directory: Directory, files: FileOperations, blob: str) -> FillInfo | None:
    """
    What is known, or ``None``; what can't be understood counts as nothing.  Blocks.

    :raises OSError: if it can't be read.
    """
    try:
        fd, _ = directory.open_file(info_name(blob))
    except FileNotFoundError:
        return None
    try:
        info = _decoder.decode(files.read(fd, _MOST, 0))
    except ValueError:
        return None
    finally:
        os.close(fd)
    return info if info.size is None or info.size >= 0 else None


def write_info(directory: Directory, files: FileOperations, blob: str, info: FillInfo) -> None:
    """
    Keep ``info`` in place of what was known before.  Blocks.

    Not synced, for somebody waits for the blob: after a power cut it may be as good as absent.

    :raises OSError: if it can't be written; what was known before is then still there.
    """
    written = f"{blob}.{uuid4()}.new"
    fd = files.create(directory.fd, written)
    try:
        write_all(files, fd, [msgspec.json.encode(info)], 0)
        files.rename(directory.fd, written, directory.fd, info_name(blob))
    except BaseException:
        files.unlink(directory.fd, written)
        raise
    finally:
        os.close(fd)
