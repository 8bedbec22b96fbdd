"""``artifactd fsck``: whether the catalog and the store agree."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from attrs import define, field

from artifactd.daemon.assemble import Assembly
from artifactd.maintenance import used, with_parts
from artifactd.options import SettingsOptions
from artifactd.registry.local import LocalRepository
from artifactd.registry.upkeep.collector import Sweep
from artifactd.registry.upkeep.fsck import Check, Finding, State


@define
class _Listing:
    """Prints what is found, and counts it."""

    counts: Counter[State] = field(factory=Counter)

    def add(self, finding: Finding) -> None:
        self.counts[finding.state] += 1
        print(f"{finding.state}: {finding.kind}: {finding.name}: {finding.text}", flush=True)


class CheckData(SettingsOptions):
    """``artifactd fsck``: check the catalog against the store, both ways."""

    longdesc = (
        "Check that all that the catalog lists is in the store, and the other way round, beside a"
        " running daemon or without one.  A line for each problem says what to do; the exit status"
        " is 1 if any is left."
    )
    optFlags: ClassVar = [
        ["repair", "r", "Mend what can be proven; nothing that was pushed is dropped."],
        ["no-hash", None, "Don't read all bytes: see that files are there, in their size."],
    ]

    def run(self) -> int:
        settings = used(self.load())
        timeout = settings.upload_timeout
        return with_parts(settings, lambda parts: self._check(parts, timeout))

    async def _check(self, parts: Assembly, upload_timeout: float) -> int:
        parts.damage.heals = False  # the daemon's work, or a later pull's
        listing = _Listing()
        check = Check(
            parts.catalog,
            parts.repairs,
            parts.garbage,
            parts.blobs,
            parts.uploads,
            parts.fills.store,
            parts.damage,
            {
                name: repository.rules
                for name, repository in parts.registry.repositories.items()
                if isinstance(repository, LocalRepository)
            },
            parts.run,
            listing.add,
            repair=bool(self["repair"]),
            hashes=not self["no-hash"],
        )
        if self["repair"]:
            await Sweep(
                parts.catalog, parts.blobs, parts.uploads, parts.fills.store, upload_timeout
            ).run()
        await check.run()
        counts = listing.counts
        print(
            f"checked {check.blobs_checked} blobs and {check.manifests_checked} manifests:"
            f" {counts[State.LEFT]} problems left, {counts[State.MENDED]} repaired,"
            f" {counts[State.NOTE]} notes"
        )
        return 1 if counts[State.LEFT] else 0
