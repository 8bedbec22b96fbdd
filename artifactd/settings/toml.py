"""TOML tables of settings: read into checked values, and written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from artifactd.kit.start import StartError
from artifactd.settings.values import Duration, Expiry, Secret, Size

_NOT_SHOWN = "(not shown)"
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_table(value: object, where: str) -> dict[str, Any]:
    """``value`` if it is a table.  :raises StartError: if not, with ``where`` it stands."""
    if not isinstance(value, dict):
        raise StartError(f"{where}: expected a table, got {shown(value)}")
    return value


def read_values(
    kind: type[Struct],
    table: Mapping[str, object],
    label: Callable[[str], str],
    *,
    strict: bool = True,
) -> dict[str, Any]:
    """
    What ``table`` sets of ``kind``, checked.

    :param label: what an error calls the setting of a given name.
    :param strict: refuse a text where a number or a flag is due.
    :raises StartError: naming the first setting that is unknown or wrong.
    """
    types = {known.name: known.type for known in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in types:
            near = "".join(f"; did you mean {n}?" for n in get_close_matches(name, types, 1))
            raise StartError(f"{label(name)}: no such setting{near}")
        values[name] = _read_value(types[name], value, label(name), strict)
    return values


def _read_value(kind: Any, value: object, where: str, strict: bool) -> Any:
    metadata: list[msgspec.Meta] = getattr(kind, "__metadata__", [])
    got = "something else" if kind.__origin__ is Secret else shown(value)
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
    """Read what TOML has no type for."""
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
    """``value`` on a short line of an error; without the login that a URL may hold."""
    return re.sub(r"//[^/]*@", "//…@", _written(value))[:100]


def _written(value: object) -> str:
    """``value`` in TOML; what has no TOML (bytes in a path that are no UTF-8), escaped."""
    text = json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text.encode(errors="backslashreplace").decode()


def write_lines(settings: Struct, table: str = "") -> Iterator[str]:
    """
    ``settings`` in TOML, a line at a time: first what has no table of its own, then the tables.

    A password is not among them: another text stands in its place, with a comment that says so.

    :param table: the name of the table that they are, if they are not the whole document.
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
    """Whether it has a table of its own, or several."""
    if isinstance(value, tuple):
        return bool(value) and isinstance(value[0], Struct)
    return isinstance(value, Struct | Mapping)
