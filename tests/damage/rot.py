"""The ways in which a file of the store goes bad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from artifactd.oci.names import Digest


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _zero_page(content: bytes) -> bytes:
    return bytes(min(4096, len(content))) + content[4096:]


WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit flips": _flip,
    "it is cut short": lambda content: content[:-1],
    "it grows": lambda content: content + b"\0",
    "it is gone": lambda _: None,
    "a page is zeros": _zero_page,
    "it is empty": lambda _: b"",
}
"""What becomes of the content, by name; ``None``: the file goes."""


def file_of(data: Path, digest: Digest) -> Path:
    """Where a blob lies in a data folder."""
    return data / "blobs" / digest.algorithm / digest.encoded[:2] / digest.encoded


def rot(data: Path, digest: Digest, way: str) -> None:
    """Let a blob go bad, in the same file."""
    file = file_of(data, digest)
    content = WAYS[way](file.read_bytes())
    if content is None:
        file.unlink()
    else:
        file.chmod(0o600)
        with file.open("r+b") as opened:
            opened.truncate(len(content))
            opened.write(content)
        file.chmod(0o444)
