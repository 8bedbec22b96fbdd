"""
Settings: a TOML file and the environment, parsed once into frozen values.

``etc/artifactd.toml`` explains every setting; the defaults here are the same, so that the daemon
runs without any file.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from artifactd.oci.errors import NameInvalid
from artifactd.oci.name import RepositoryName
from artifactd.quantity import Duration, Size
from artifactd.startup import StartError

_PREFIX = "ARTIFACTD_"
# Tests read the first; Kubernetes sets the others in every pod beside a service named artifactd.
_NOT_SETTINGS = re.compile(r"REQUIRE_PROGRAMS|PORT(_.*)?|SERVICE_.*")

# What each setting may be; the description completes "expected …" in an error.
_Listen = Annotated[
    tuple[Annotated[str, Meta(pattern="^[a-z0-9]+:.")], ...],
    Meta(min_length=1, description='Twisted endpoint strings such as "tcp:5000"'),
]
_Folder = Annotated[Path, Meta(description="the path of a folder")]
_Text = Annotated[str, Meta(description="a text")]
_Flag = Annotated[bool, Meta(description="true or false")]
_AccessLog = Annotated[Literal["text", "json", "off"], Meta(description='"text", "json" or "off"')]
_Threads = Annotated[int, Meta(ge=1, le=64, description="a whole number from 1 to 64")]
_Duration = Annotated[Duration, Meta(description='a number with unit such as "60s", "15m", "24h"')]
_Size = Annotated[Size, Meta(description='a number with unit such as "64KiB", "4MiB", "1GiB"')]
_Local = Annotated[Literal["local"], Meta(description='"local"')]

_LEAST: Mapping[str, Duration | Size] = {
    "idle_timeout": Duration(0.001),
    "stall_timeout": Duration(0.001),
    "upload_timeout": Duration(0.001),
    "sweep_interval": Duration(0.001),
    "transfer_buffers": Size(4 << 20),
    "max_manifest": Size(1),
}


class RepositorySettings(Struct, frozen=True):
    """``[repository.<name>]``: the images under ``/v2/<name>/``."""

    kind: _Local
    other_media_types: _Flag = False
    sparse_indexes: _Flag = False
    delete_held: _Flag = False


class DefaultSettings(Struct, frozen=True):
    """
    ``[default]``: the images whose names begin with no configured repository.

    :ivar push: the repository that takes their pushes; empty if there is none.
    """

    push: _Text = "local"


class Settings(Struct, frozen=True, kw_only=True):
    """
    Everything an operator can set; ``etc/artifactd.toml`` tells what each means.

    Made by :meth:`load`; ``Settings()`` has the embedded defaults.
    """

    listen: _Listen = ("tcp:5000:interface=127.0.0.1",)
    data: _Folder = Path("./var")
    access_log: _AccessLog = "text"
    access_log_file: _Text = ""
    shutdown_timeout: _Duration = Duration(30)
    idle_timeout: _Duration = Duration(60)
    stall_timeout: _Duration = Duration(60)
    upload_timeout: _Duration = Duration(24 * 3600)
    sweep_interval: _Duration = Duration(3600)
    transfer_buffers: _Size = Size(64 << 20)
    max_manifest: _Size = Size(4 << 20)
    min_chunk: _Size = Size(0)
    threads: _Threads = 8
    repository: Mapping[str, RepositorySettings] = field(
        default_factory=lambda: {"local": RepositorySettings(kind="local")}
    )
    default: DefaultSettings = DefaultSettings()

    @classmethod
    def load(cls, path: Path | None, environ: Mapping[str, str]) -> Settings:
        """
        The defaults, changed by the file at ``path``, if any, and by ``ARTIFACTD_<NAME>`` variables
        for top-level settings, lists separated by spaces.

        :raises StartError: naming the first setting that is wrong, and what it should be.
        """
        tables = {} if path is None else _read(path)
        repositories = _repositories(tables.pop("repository", None), f"{path}: repository")
        default = _default(tables.pop("default", {}), f"{path}: default", repositories)
        values = _values(cls, tables, lambda name: f"{path}: {name}")
        values |= _from_environment(environ)
        return cls(**values, repository=repositories, default=default)

    def __str__(self) -> str:
        """The settings as a TOML document, which :meth:`load` reads as the same settings."""
        return "\n".join(_lines(self))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StartError(f"{path}: can't be read: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"{path}: not TOML: {error}") from None


def _repositories(tables: object, where: str) -> Mapping[str, RepositorySettings]:
    """``[repository.<name>]``; the embedded one if there is none."""
    if tables is None:
        return Settings().repository
    named = _table(tables, where)
    return {name: _repository(name, table, f"{where}.{name}") for name, table in named.items()}


def _repository(name: str, table: object, where: str) -> RepositorySettings:
    try:
        RepositoryName.parse(name)
    except NameInvalid as error:
        raise StartError(f"{where}: {error.message}") from None
    if "/" in name:
        raise StartError(f"{where}: expected a name of one component, without /")
    values = _values(RepositorySettings, _table(table, where), lambda key: f"{where}.{key}")
    if "kind" not in values:
        raise StartError(f'{where}.kind: expected "local", got nothing')
    return RepositorySettings(**values)


def _default(table: object, where: str, known: Collection[str]) -> DefaultSettings:
    values = _values(DefaultSettings, _table(table, where), lambda key: f"{where}.{key}")
    push = values.get("push", "local" if "local" in known else "")
    if push and push not in known:
        choice = ", ".join(f'"{name}"' for name in sorted(known))
        raise StartError(
            f'{where}.push: expected a configured repository ({choice}) or "", got "{push}"'
        )
    return DefaultSettings(push)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The top-level settings that ``environ`` overrides."""
    table: dict[str, object] = {}
    defaults = Settings()
    for variable in sorted(environ):
        name = variable.removeprefix(_PREFIX)
        if name == variable or _NOT_SETTINGS.fullmatch(name):
            continue
        default = getattr(defaults, name.lower(), None)
        if name != name.upper() or isinstance(default, Mapping | Struct):
            raise StartError(f"{variable}: no such setting; tables are set in the file")
        value = environ[variable]
        table[name.lower()] = value.split() if isinstance(default, tuple) else value
    return _values(Settings, table, lambda name: _PREFIX + name.upper(), strict=False)


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StartError(f"{where}: expected a table, got {_shown(value)}")
    return value


def _values(
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
    """
    types = {known.name: known.type for known in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in types:
            near = "".join(f"; did you mean {n}?" for n in get_close_matches(name, types, 1))
            raise StartError(f"{label(name)}: no such setting{near}")
        try:
            values[name] = msgspec.convert(value, types[name], strict=strict, dec_hook=_parse)
        except (msgspec.ValidationError, UnicodeError):
            expected = next(m.description for m in types[name].__metadata__)
            raise StartError(f"{label(name)}: expected {expected}, got {_shown(value)}") from None
        if name in _LEAST and values[name] < _LEAST[name]:
            raise StartError(
                f"{label(name)}: expected at least {_LEAST[name]}, got {_shown(value)}"
            )
    return values


def _parse(kind: type, value: object) -> object:
    """Read what TOML has no type for."""
    if kind is Path:
        if isinstance(value, str) and value:
            return Path(value)
    elif issubclass(kind, Duration | Size):
        return kind.parse(str(value))
    raise ValueError(value)


def _shown(value: object) -> str:
    """``value`` on a short line of an error."""
    return _written(value)[:100]


def _written(value: object) -> str:
    """``value`` in TOML; what has no TOML (bytes in a path that are no UTF-8), escaped."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def _lines(settings: Struct, table: str = "") -> Iterator[str]:
    """``settings`` in TOML: first what has no table of its own, then the tables."""
    inner: dict[str, Struct] = {}
    if table:
        yield ""
        yield f"[{table}]"
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Struct):
            inner[name] = value
        elif isinstance(value, Mapping):
            inner |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            plain = str(value) if isinstance(value, Duration | Size) else value
            yield f"{name} = {_written(plain)}"
    for name, struct in inner.items():
        yield from _lines(struct, name)
