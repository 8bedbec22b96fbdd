"""Reading TOML tables into checked structs, and writing structs as TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo, fields

from artifactd.kit.start import StartError
from artifactd.settings.values import Duration, Expiry, ReceiverUrl, Secret, Size

_NOT_SHOWN = "(not shown)"
_BARE = re.compile(r"[A-Za-z0-9_-]+")

_S = TypeVar("_S", bound="Section")


class Section(Struct, frozen=True):
    """The settings of one table."""

    @classmethod
    def complete(cls, name: str, values: dict[str, Any]) -> None:
        """
        Add to ``values`` the defaults that depend on the table's name or on its other settings.

        :param name: the last part of the table's name: ``ghcr.io`` of ``[repository."ghcr.io"]``.
        """


@cache
def fields_of(kind: type[Section]) -> tuple[FieldInfo, ...]:
    """The settings of a table, looked up once: msgspec evaluates all annotations at each call."""
    return fields(kind)


def read_table(kind: type[_S], value: object, where: str, name: str = "") -> _S:
    """
    Read a table of the file, and the tables in it.

    :param where: names the table in an error.
    :param name: the last part of the table's name.
    :raises StartError: naming the first setting that is unknown, wrong or missing.
    """
    values = read_values(kind, as_table(value, where), lambda each: f"{where}.{each}")
    for each in fields_of(kind):
        if each.required and each.name not in values:
            metas = each.type.__metadata__
            expected = next((m.extra["missing"] for m in metas if "missing" in (m.extra or {})), "")
            expected = expected or next(m.description for m in metas if m.description)
            raise StartError(f"{where}.{each.name}: expected {expected}, got nothing")
    kind.complete(name, values)
    return kind(**values)


def as_table(value: object, where: str) -> dict[str, Any]:
    """:raises StartError: if ``value``, which ``where`` names, is not a table."""
    if not isinstance(value, dict):
        raise StartError(f"{where}: expected a table, got {shown(value)}")
    return value


def read_values(
    kind: type[Section],
    table: Mapping[str, object],
    label: Callable[[str], str],
    *,
    strict: bool = True,
) -> dict[str, Any]:
    """
    Read the settings of ``kind`` that ``table`` has.

    :param label: names a setting in an error.
    :param strict: refuse a text where a number or a flag is expected.
    :raises StartError: naming the first setting that is unknown or wrong.
    """
    types = {known.name: known.type for known in fields_of(kind)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in types:
            near = "".join(f"; did you mean {n}?" for n in get_close_matches(name, types, 1))
            raise StartError(f"{label(name)}: no such setting{near}")
        values[name] = _read(types[name], value, label(name), name, strict)
    return values


def _read(kind: Any, value: object, where: str, name: str, strict: bool) -> Any:
    """A setting, a table, a table of named tables, or a list of tables."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _read_value(kind, value, where, strict)
    if origin is Mapping:
        return {
            each: _read(arguments[1], table, f"{where}.{key(each)}", each, strict)
            for each, table in as_table(value, where).items()
        }
    if origin is tuple:
        if not isinstance(value, list):
            raise StartError(f"{where}: expected [[{name}]] tables, got {shown(value)}")
        return tuple(
            read_table(arguments[0], table, f"{where}[{number}]")
            for number, table in enumerate(value)
        )
    if origin is UnionType:
        return _read_kind(arguments, as_table(value, where), where, name)
    return read_table(kind, value, where, name)


def _read_kind(kinds: Sequence[type[Section]], table: dict[str, Any], where: str, name: str) -> Any:
    """A table of one of ``kinds``, which differ in the default of their setting ``kind``."""
    if "kind" not in table:
        raise StartError(f'{where}.kind: expected "local" or "remote", got nothing')
    by_name = {
        each.default: kind for kind in kinds for each in fields_of(kind) if each.name == "kind"
    }
    kind = by_name.get(table["kind"], kinds[0]) if isinstance(table["kind"], str) else kinds[0]
    # An unknown kind is reported before settings that no kind has.
    return read_table(kind, {"kind": table["kind"], **table}, where, name)


def _read_value(kind: Any, value: object, where: str, strict: bool) -> Any:
    metadata: Sequence[msgspec.Meta] = kind.__metadata__
    got = "something else" if kind.__origin__ in (Secret, ReceiverUrl) else shown(value)
    try:
        read = msgspec.convert(value, kind, strict=strict, dec_hook=_parse)
    except (msgspec.ValidationError, UnicodeError):
        expected = next(m.description for m in metadata if m.description)
        raise StartError(f"{where}: expected {expected}, got {got}") from None
    for meta in metadata:
        least = (meta.extra or {}).get("least")
        if least is not None and read < least:
            raise StartError(f"{where}: expected at least {least}, got {got}")
    return read


def _parse(kind: Any, value: object) -> object:
    """Parse a value of a type that TOML lacks."""
    if kind is Path:
        if isinstance(value, str) and value:
            return Path(value)
    elif issubclass(kind, Duration | Size):
        return kind.parse(str(value))
    elif isinstance(value, str):
        return kind.parse(value)
    elif isinstance(value, datetime) and kind is Expiry:
        return kind.parse(value.isoformat())
    raise ValueError(value)


def key(name: str) -> str:
    """``name`` as a key in TOML: quoted where it has to be."""
    return name if _BARE.fullmatch(name) else _written(name)


def shown(value: object) -> str:
    """``value`` on one short line of an error, without the login that a URL may hold."""
    return re.sub(r"//[^/]*@", "//…@", _written(value))[:100]


def _written(value: object) -> str:
    """``value`` in TOML; bytes of a path that are not UTF-8 are escaped."""
    text = json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text.encode(errors="backslashreplace").decode()


def write_lines(settings: Struct, table: str = "") -> Iterator[str]:
    """
    ``settings`` in TOML, line by line: first the single values, then the tables.

    A password is replaced by another text, with a comment that says so.

    :param table: the name of the table, unless ``settings`` are the whole document.
    """
    values = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return _write_table(values, table)


def _write_table(values: Mapping[str, Any], table: str) -> Iterator[str]:
    inner = {}
    prefix = f"{table}." if table else ""
    for name, value in values.items():
        if _is_table(value):
            inner[prefix + key(name)] = value
        elif isinstance(value, Secret) and value:
            yield f"{key(name)} = {_written(_NOT_SHOWN)}  # there is one; this is not it"
        else:
            plain = str(value) if isinstance(value, Duration | Size) else value
            yield f"{key(name)} = {_written(plain)}"
    for name, value in inner.items():
        if isinstance(value, Mapping) and all(map(_is_table, value.values())):
            for each, struct in value.items():
                yield from ("", f"[{name}.{key(each)}]")
                yield from write_lines(struct, f"{name}.{key(each)}")
        elif isinstance(value, tuple):
            for struct in value:
                yield from ("", f"[[{name}]]")
                yield from write_lines(struct, name)
        else:
            yield from ("", f"[{name}]")
            yield from (
                write_lines(value, name) if isinstance(value, Struct) else _write_table(value, name)
            )


def _is_table(value: object) -> bool:
    """Whether TOML writes ``value`` as a table or as several."""
    if isinstance(value, tuple):
        return bool(value) and isinstance(value[0], Struct)
    return isinstance(value, Struct | Mapping)
