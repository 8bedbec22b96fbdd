"""What may be on a disk after a power loss, by what was done and synced before it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from random import Random

from attrs import define, field, frozen

from tests.durability.events import (
    Answered,
    Asked,
    Committed,
    Committing,
    Cut,
    Entry,
    Event,
    Mode,
    Name,
    Opened,
    Released,
    Synced,
    Wrote,
)

_CREATED = 0o600


@frozen
class File:
    """A file as it may be found."""

    content: bytes
    mode: int


@frozen
class State:
    """
    What may be found.

    :ivar names: by path from the root; a file that several name is one object.
    :ivar folders: the paths of directories.
    :ivar catalog: the database, or ``None``: there is none yet.
    """

    names: Mapping[str, tuple[int, File]]
    folders: Sequence[str]
    catalog: bytes | None


@define
class _Stored:
    durable: File = File(b"", _CREATED)
    pending: list[Wrote | Cut | Mode] = field(factory=list)

    def sync(self) -> None:
        self.durable, self.pending = _applied(self.durable, self.pending), []

    def found(self) -> list[File]:
        """All that may be found: nothing of what was not synced, all of it, or parts."""
        whole = _applied(self.durable, self.pending)
        modes = [step for step in self.pending if isinstance(step, Mode)]
        steps = [step for step in self.pending if not isinstance(step, Mode)]
        found = [self.durable, whole, _applied(self.durable, modes), _applied(self.durable, steps)]
        if steps:
            # The size has grown, and the bytes have not come.
            found.append(_applied(self.durable, [_zeroed(step) for step in steps]))
            *before, last = steps
            if isinstance(last, Wrote) and len(last.content) > 1:
                torn = Wrote(last.number, last.offset, last.content[: len(last.content) // 2])
                found.append(_applied(self.durable, [*before, torn]))
        if len(steps) > 1:
            # The last write came before the others did.
            found.append(_applied(self.durable, [*map(_zeroed, steps[:-1]), steps[-1]]))
            found.append(_applied(self.durable, steps[:-1]))
        # What a process sees comes last.
        return [*dict.fromkeys(f for f in found if f != whole), whole]


@define
class Disk:
    """
    A disk that is told the events of a recording, one after the other.

    A name's change is durable once its directory is synced; until then any of the changes of one
    name, in order, may be what is found, whatever is found of other names.  A commit is durable
    once it has returned; one that is under way may be, or not.

    :param root: the directory of the data folder.
    :ivar promised: what each path of the API has to answer: any of these.
    :ivar sessions: the paths of upload sessions that clients may come back to.
    """

    root: int
    promised: dict[str, set[bytes | None]] = field(factory=dict)
    sessions: list[str] = field(factory=list)
    _files: dict[int, _Stored] = field(factory=dict)
    _folders: set[int] = field(factory=set)
    _names: dict[Name, list[int | None]] = field(factory=dict)
    _catalogs: list[bytes | None] = field(factory=lambda: [None])
    _wanted: dict[str, bytes | None] = field(factory=dict)

    def apply(self, event: Event, ahead: Sequence[Event] = ()) -> None:
        """
        :param ahead: what comes after it: how a commit ends that begins now.
        """
        match event:
            case Entry(name, number, folder):
                self._names.setdefault(name, [None]).append(number)
                if number is not None:
                    if folder:
                        self._folders.add(number)
                    else:
                        self._files.setdefault(number, _Stored())
            case Wrote(number) | Cut(number) | Mode(number):
                self._files.setdefault(number, _Stored()).pending.append(event)
            case Synced(number):
                self._sync(number)
            case Committing():
                ended = next((e for e in ahead if isinstance(e, Committed)), None)
                if ended is not None:
                    self._catalogs.append(ended.catalog)
            case Committed(catalog, durable):
                if durable:
                    self._catalogs = [catalog]
            case _:
                self._promise(event)

    def _sync(self, number: int) -> None:
        if number in self._files:
            self._files[number].sync()
        for name, numbers in self._names.items():
            if name[0] == number:
                del numbers[:-1]

    def _promise(self, event: Event) -> None:
        match event:
            case Asked(key, content):
                self._wanted[key] = content
                self.promised.setdefault(key, {None}).add(content)
            case Answered(key):
                self.promised[key] = {self._wanted[key]}
            case Opened(path):
                self.sessions.append(path)
            case Released(key):
                self.promised.setdefault(key, set()).update((None, self._wanted.get(key)))

    # -- what may be found

    def states(self, limit: int, random: Random) -> Iterator[tuple[bool, State]]:
        """
        What may be found if the power fails now: all of it, or where that are more than ``limit``,
        the two extremes, what is as a process sees it but for one thing, and a sample of the rest.

        With each goes whether it is no part of the sample.
        """
        open_names = {name: n for name, n in self._names.items() if len(n) > 1}
        open_files = {n: f.found() for n, f in self._files.items() if f.pending}
        choices: list[Sequence[object]] = [
            *map(_distinct, open_names.values()),
            *open_files.values(),
            self._catalogs,
        ]
        for chosen, pick in _picked(choices, limit, random):
            names = dict(zip(open_names, pick[: len(open_names)], strict=True))
            files = dict(zip(open_files, pick[len(open_names) : -1], strict=True))
            catalog = pick[-1]
            assert catalog is None or isinstance(catalog, bytes)
            yield chosen, self._state(names, files, catalog)

    def _state(
        self,
        names: Mapping[Name, object],
        files: Mapping[int, object],
        catalog: bytes | None,
    ) -> State:
        below: dict[int, dict[str, int]] = {}
        for name, numbers in self._names.items():
            number = names.get(name, numbers[-1])
            if isinstance(number, int):
                below.setdefault(name[0], {})[name[1]] = number
        found: dict[str, tuple[int, File]] = {}
        folders: list[str] = []

        def walk(directory: int, prefix: str) -> None:
            for name, number in sorted(below.get(directory, {}).items()):
                if number in self._folders:
                    folders.append(prefix + name)
                    walk(number, f"{prefix}{name}/")
                    continue
                file = files.get(number, self._files[number].durable)
                assert isinstance(file, File)
                found[prefix + name] = number, file

        walk(self.root, "")
        return State(found, folders, catalog)


def _picked(
    choices: Sequence[Sequence[object]], limit: int, random: Random
) -> Iterator[tuple[bool, Sequence[object]]]:
    """One of each of ``choices``, as :meth:`Disk.states` says; a process sees the last of each."""
    last = [choice[-1] for choice in choices]
    chosen: list[Sequence[object]] = [last, [choice[0] for choice in choices]]
    for number, choice in enumerate(choices):
        chosen += [[*last[:number], other, *last[number + 1 :]] for other in choice[:-1]]
    if prod(map(len, choices)) <= limit:
        for each in itertools.product(*choices):
            yield list(each) in chosen, each
        return
    for pick in chosen:
        yield True, pick
    for _ in range(limit - len(chosen)):
        yield False, [random.choice(choice) for choice in choices]


def _distinct(numbers: Sequence[int | None]) -> list[int | None]:
    return [*dict.fromkeys(n for n in numbers if n != numbers[-1]), numbers[-1]]


def _zeroed(step: Wrote | Cut) -> Wrote | Cut:
    if isinstance(step, Wrote):
        return Wrote(step.number, step.offset, bytes(len(step.content)))
    return step


def _applied(file: File, steps: Sequence[Wrote | Cut | Mode]) -> File:
    content, mode = bytearray(file.content), file.mode
    for step in steps:
        match step:
            case Wrote(_, offset, piece):
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(piece)] = piece
            case Cut(_, size):
                content[size:] = bytes(max(0, size - len(content)))
            case Mode(_, new):
                mode = new
    return File(bytes(content), mode)
