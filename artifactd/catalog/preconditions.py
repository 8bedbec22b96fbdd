"""What a client wants to be so before anything is changed."""

from __future__ import annotations

from attrs import frozen

from artifactd.oci.digest import Digest


@frozen
class Precondition:
    """
    RFC 9110, 13.1.1 and 13.1.2, on what a reference points at now.

    ``if_match``: strong comparison, ``("*",)`` for "anything"; ``None`` where the header is absent.
    Values are entity tags without weakness, e.g. ``"sha256:…"`` with its quotes; a weak one
    (``W/"…"``) stands here with its prefix, so that it never matches strongly.
    """

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None

    def holds(self, current: Digest | None) -> bool:
        """Whether it holds where the reference now points at ``current``."""
        etag = f'"{current}"'
        if self.if_match is not None and (
            current is None or not ("*" in self.if_match or etag in self.if_match)
        ):
            return False
        return not (
            self.if_none_match is not None
            and current is not None
            and ("*" in self.if_none_match or etag in (_strong(t) for t in self.if_none_match))
        )


def _strong(etag: str) -> str:
    return etag.removeprefix("W/")


ANYHOW = Precondition()
"""Nothing has to be so."""
