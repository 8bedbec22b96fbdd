"""``artifactd retention``: drop the tags that no rule keeps, or tell why each stays or goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from artifactd.catalog.garbage import Collected, Garbage
from artifactd.commands.offline import DataCommand, is_read_only, once_free
from artifactd.commands.table import JSON, Table, shown_time
from artifactd.daemon.assemble import Assembly
from artifactd.oci.names import Patterns
from artifactd.registry.upkeep.retention import Verdict
from artifactd.settings.settings import Settings


class Retain(DataCommand):
    """``artifactd retention``: what the collection does with tags, now or as a list."""

    longdesc = (
        "Drop the tags that no retention rule of the settings keeps, as each garbage collection"
        " does, in the images whose names match PATTERN (default: all).  undelete brings them back."
        "  A dry run lists each tag, and by which rule it stays or goes."
    )
    synopsis = "[options] [PATTERN]"
    optFlags: ClassVar = [
        ["dry-run", "n", "Only list each tag, and by which rule it stays or goes."],
        JSON,
    ]

    # Options calls this with the arguments left over.
    def parseArgs(self, pattern: str = "*") -> None:
        self.pattern = pattern
        self.chosen: Callable[[str], bool] = Patterns((pattern,)).match

    async def work(self, parts: Assembly, settings: Settings) -> int:
        as_json, retention = bool(self["json"]), parts.collector.retention
        if not retention.judges:
            _tell("the settings have no rule of retention: all tags stay")
            return 0
        if self["dry-run"]:
            table = Table("TAG", "VERDICT", "WHY", "PUSHED", "PULLED", as_json=as_json)
            is_for_some = False
            async for verdicts in retention.judged(self.chosen):
                table.add([_verdict_row(each) for each in verdicts])
                is_for_some = True
            if not is_for_some:
                _tell(f"no rule of retention is for a tag of {self.pattern}: all stay")
            return 0
        if is_read_only(parts):
            return 1
        table = Table("TAG", "VERDICT", as_json=as_json)

        def report(collected: Collected) -> None:
            assert collected.why is Garbage.RETENTION
            row = {"image": str(collected.image), "tag": collected.name, "verdict": "dropped"}
            table.add([(row, [f"{collected.image}:{collected.name}", "dropped"])])

        parts.collector.report = report
        collector = parts.collector
        await once_free(partial(collector.retain, self.chosen), collector.clock)
        return 0


def _tell(text: str) -> None:
    print(f"artifactd: {text}", file=sys.stderr)


def _verdict_row(verdict: Verdict) -> tuple[object, Sequence[str]]:
    use = verdict.use
    told = "keep" if verdict.kept else "drop"
    row = {
        "image": str(verdict.image),
        "tag": use.name,
        "digest": use.digest,
        "verdict": told,
        "rules": verdict.rules,
        "why": verdict.why,
        "pushed": use.pushed,
        "pulled": use.pulled or None,
    }
    when = [shown_time(use.pushed), shown_time(use.pulled or None)]
    return row, [f"{verdict.image}:{use.name}", told, verdict.why, *when]
