"""Retention: which tags of local images the rules of the settings keep; docs/retention.md."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from heapq import nlargest

from attrs import define, evolve, field, frozen

from artifactd.catalog.records import ImmutableTags
from artifactd.catalog.retention import HOUR, Drop, Newest, RetentionCatalog, TagUse
from artifactd.kit.janitor import pages
from artifactd.oci.names import ImageName, Patterns
from artifactd.settings.settings import LocalSettings, RepositorySettings, RetentionRule

_PAGE = 500  # images or tags that are read at a time


@frozen
class Verdict:
    """
    Whether a tag stays, and why.

    :ivar why: the rule that keeps it and by what, or the rules that don't.
    :ivar rules: the names of these, such as ``retention[0]``.
    :ivar drop: how to drop it; ``None``: it stays.
    """

    image: ImageName
    use: TagUse
    why: str
    rules: tuple[str, ...] = ()
    drop: Drop | None = None

    @property
    def kept(self) -> bool:
        """Whether the tag stays."""
        return self.drop is None


@frozen
class _Rule:
    """
    A rule of a repository.

    :ivar newest: those that it keeps as the newest of the image that is judged; ``None``: no tag is
        older.
    """

    name: str
    settings: RetentionRule
    images: Patterns
    tags: Patterns
    keep: Patterns
    newest: Newest | None = None

    @classmethod
    def of(cls, number: int, settings: RetentionRule) -> _Rule:
        images, tags, keep = map(Patterns, (settings.images, settings.tags, settings.keep))
        return cls(f"retention[{number}]", settings, images, tags, keep)

    def find_newest(self, uses: Iterable[TagUse], found: list[TagUse]) -> list[TagUse]:
        """The newest of ``uses`` and of those that were ``found`` before."""
        its = (use for use in uses if self.tags.match(use.name))
        return nlargest(self.settings.newest, [*found, *its], lambda use: use.age)

    def beside(self, newest: Sequence[TagUse]) -> _Rule:
        """The rule for an image in which it has found these."""
        if not newest or len(newest) < self.settings.newest:
            return self
        return evolve(self, newest=Newest(tuple(u.name for u in newest), newest[-1].age))

    def keeps(self, use: TagUse, now: float, known_since: float) -> str:
        """By what the rule keeps a tag that it is for; an empty text: it does not."""
        settings, newest = self.settings, self.newest
        if self.keep.match(use.name):
            return "it matches keep"
        if settings.newest and (newest is None or use.age >= newest.oldest):
            return f"it is one of the {settings.newest} newest"
        if settings.pushed and use.pushed > now - settings.pushed:
            return f"it was pushed within {settings.pushed}"
        # A pull that comes within an hour of another one is not noted, also where the tag has been
        # deleted and pushed again in between.
        used = max(max(use.pushed, use.pulled) + HOUR, known_since)
        if settings.pulled and used > now - settings.pulled:
            return f"it was pulled or pushed within {settings.pulled}"
        return ""


@define(eq=False)
class Retention:
    """
    Judges tags, page by page, in memory that does not grow with their number.

    :param repositories: of the settings.
    :param now: seconds since the epoch.
    """

    catalog: RetentionCatalog
    repositories: Mapping[str, RepositorySettings]
    now: Callable[[], float] = time.time
    _rules: Mapping[str, Sequence[_Rule]] = field(init=False)

    @_rules.default
    def _of_settings(self) -> Mapping[str, Sequence[_Rule]]:
        return {
            name: [_Rule.of(number, rule) for number, rule in enumerate(each.retention)]
            for name, each in self.repositories.items()
            if isinstance(each, LocalSettings) and each.retention
        }

    @property
    def judges(self) -> Collection[str]:
        """The names of the repositories that have rules."""
        return self._rules.keys()

    async def judged(
        self, images: Callable[[str], bool] | None = None
    ) -> AsyncIterator[Sequence[Verdict]]:
        """
        A verdict on each tag of the images that a rule is for, in pages, each of one image.

        :param images: tells whether to judge an image, by its canonical name; ``None``: all.
        """
        known_since = await self.catalog.pulls_known_since()
        for repository in self._rules:
            found = pages(
                partial(self.catalog.images, repository),
                "",
                lambda image: image.image,
                _PAGE,
            )
            async for page in found:
                for image in page:
                    if images is None or images(str(image)):
                        async for verdicts in self._judged(image, known_since):
                            yield verdicts

    async def _judged(
        self, image: ImageName, known_since: float
    ) -> AsyncIterator[Sequence[Verdict]]:
        rules = [rule for rule in self._rules[image.repository] if rule.images.match(image.image)]
        first = await self.catalog.tags(image, "", _PAGE) if rules else []
        if not first:
            return
        latest, rules = await self._look_for_newest(image, first, rules)
        settings = self.repositories[image.repository]
        assert isinstance(settings, LocalSettings)
        immutable = ImmutableTags(settings.immutable_tags)
        any_kept, last = False, None
        async for uses in self._tags(image, first):
            verdicts = []
            for use in uses:
                verdict = self._verdict(image, use, rules, immutable, known_since)
                if verdict.drop is not None and use.name == latest and not verdict.drop.may_be_last:
                    last = verdict  # it stays if no other tag does
                    continue
                any_kept = any_kept or verdict.kept
                verdicts.append(verdict)
            yield verdicts
        if last is not None:
            yield [
                last if any_kept else Verdict(image, last.use, "it is the last tag of its image")
            ]

    async def _tags(
        self, image: ImageName, first: Sequence[TagUse]
    ) -> AsyncIterator[Sequence[TagUse]]:
        """All tags of an image in pages, of which the first has been read."""
        page = first
        while page:
            yield page
            if len(page) < _PAGE:
                break
            page = await self.catalog.tags(image, page[-1].name, _PAGE)

    async def _look_for_newest(
        self, image: ImageName, first: Sequence[TagUse], rules: Sequence[_Rule]
    ) -> tuple[str, list[_Rule]]:
        """Returns the newest tag of all, and the rules with the tags that each keeps as newest."""
        latest = first[0]
        found: list[list[TagUse]] = [[] for _ in rules]
        async for uses in self._tags(image, first):
            latest = max(latest, *uses, key=lambda use: use.age)
            found = [r.find_newest(uses, f) for r, f in zip(rules, found, strict=True)]
        return latest.name, [r.beside(f) for r, f in zip(rules, found, strict=True)]

    def _verdict(
        self,
        image: ImageName,
        use: TagUse,
        rules: Sequence[_Rule],
        immutable: ImmutableTags,
        known_since: float,
    ) -> Verdict:
        pattern = immutable.rule(image, use.name)
        if pattern is not None:
            return Verdict(image, use, f'immutable_tags: it matches "{pattern}"')
        its = [rule for rule in rules if rule.tags.match(use.name)]
        if not its:
            return Verdict(image, use, "no rule is for it")
        now = self.now()
        for rule in its:
            reason = rule.keeps(use, now, known_since)
            if reason:
                return Verdict(image, use, f"{rule.name}: {reason}", (rule.name,))
        names = tuple(rule.name for rule in its)
        actor = ", ".join(names)
        drop = Drop(
            use,
            actor,
            tuple(rule.newest for rule in its if rule.newest is not None),
            all(rule.settings.drop_last for rule in its),
        )
        return Verdict(image, use, f"{actor}: nothing keeps it", names, drop)

    async def drop(self, image: ImageName, verdicts: Sequence[Verdict]) -> Sequence[TagUse]:
        """
        Drop the tags of an image that don't stay; returns those that have gone.

        :param verdicts: of one page of :meth:`judged`.
        """
        drops = [each.drop for each in verdicts if each.drop is not None]
        return await self.catalog.drop(image, drops)


def asks_for_pulls(settings: RepositorySettings) -> bool:
    """Whether a rule of the repository's retention counts pulls."""
    return isinstance(settings, LocalSettings) and any(rule.pulled for rule in settings.retention)
