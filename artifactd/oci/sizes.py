"""Numbers of bytes, as people read them."""

from __future__ import annotations


def shown_bytes(size: int) -> str:
    """``size`` in its largest unit: 1536 is ``1.5 KiB``."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def exact_bytes(size: int) -> str:
    """``size`` in bytes, and in its largest unit if that is another: ``1536 bytes (1.5 KiB)``."""
    return f"{size} bytes" if size < 1024 else f"{size} bytes ({shown_bytes(size)})"
