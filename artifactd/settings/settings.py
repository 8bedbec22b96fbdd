"""
Settings: a TOML file and the environment, parsed once into frozen values.

``etc/artifactd.toml`` explains every setting; the defaults here are the same, so that the daemon
runs without any file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, field
from msgspec.structs import replace

from artifactd.kit import machine
from artifactd.kit.start import StartError
from artifactd.kit.trusted import Untrusted, read_trusted
from artifactd.oci.errors import NameInvalid
from artifactd.oci.manifest import ManifestBounds
from artifactd.oci.names import RepositoryName
from artifactd.settings.accounts import (
    AccessSettings,
    AuthSettings,
    IssuerSettings,
    RobotSettings,
    TokenServiceSettings,
    check_accounts,
    check_issuers,
)
from artifactd.settings.remote import RemoteSettings, check_remotes, docker_hub
from artifactd.settings.toml import (
    Section,
    as_table,
    fields_of,
    key,
    read_values,
    shown,
    write_lines,
)
from artifactd.settings.values import (
    Buffers,
    Bytes,
    Duration,
    Endpoint,
    ExternalUrl,
    Flag,
    Folder,
    Length,
    Level,
    Limit,
    Listen,
    LogFormat,
    Logging,
    Names,
    Origin,
    Pattern,
    Patterns,
    Probes,
    Proxies,
    Pullers,
    Rate,
    Retention,
    Size,
    Sparseness,
    Text,
    Threads,
    Timeout,
    Untagged,
    WebOrigins,
    Workers,
)
from artifactd.settings.webhooks import WebhookSettings, check_webhooks

_MOST = 10**9

_Count = Annotated[int, Meta(ge=0, le=_MOST, description=f"a whole number from 0 to {_MOST}")]
_Some = Annotated[int, Meta(ge=1, le=_MOST, description=f"a whole number from 1 to {_MOST}")]
_Headers = Annotated[int, Meta(ge=10, le=10_000, description="a whole number from 10 to 10000")]
_HeaderSize = Annotated[Bytes, Meta(extra={"least": Size(1 << 10)})]
_Depth = Annotated[int, Meta(ge=1, le=100, description="a whole number from 1 to 100")]
_Newest = Annotated[int, Meta(ge=0, le=1000, description="a whole number from 0 to 1000")]
_Nesting = Annotated[int, Meta(ge=8, le=500, description="a whole number from 8 to 500")]


class LimitsSettings(Section, frozen=True, kw_only=True):
    """``[limits]``; ``etc/artifactd.toml`` explains each.  0, where allowed: no limit."""

    connections: _Count = 4096
    address_connections: _Count = 512
    header_size: _HeaderSize = Size(16 << 10)
    header_count: _Headers = 100
    header_timeout: Timeout = Duration(20)
    body_rate: Bytes = Size(512)
    body_window: Timeout = Duration(60)
    address_requests: _Count = 0
    address_burst: _Some = 1000
    user_requests: _Count = 0
    user_burst: _Some = 1000
    user_uploads: _Count = 10_000
    blob_size: Bytes = Size(0)
    manifest_entries: _Count = 10_000
    manifest_annotations: _Count = 1000
    index_depth: _Depth = 4
    json_depth: _Nesting = 100

    @property
    def manifest_bounds(self) -> ManifestBounds:
        """The bounds of a manifest, as they are handed to its parser."""
        return ManifestBounds(
            nesting=self.json_depth,
            entries=self.manifest_entries,
            annotations=self.manifest_annotations,
        )


_PREFIX = "ARTIFACTD_"
# Tests read the first; Kubernetes sets the others in pods beside a service named artifactd.
_NOT_SETTINGS = re.compile(r"REQUIRE_PROGRAMS|PORT(_.*)?|SERVICE_.*")

_LOCAL, _HUB = "local", "docker.io"
_EMBEDDED = (_LOCAL, _HUB)
_Local = Annotated[Literal["local"], Meta(description='"local" or "remote"')]


class RetentionRule(Section, frozen=True, kw_only=True):
    """
    ``[[repository.<name>.retention]]``: which of the tags that it is for stay.  Any other goes, if
    no other rule keeps it.

    :ivar images: patterns of the images' names in the repository.
    :ivar tags: patterns of the tags that the rule is for.
    :ivar newest: how many of these stay that were pushed last, in each image.
    :ivar pushed: seconds for which a tag stays after its last push.
    :ivar pulled: seconds for which a tag stays after its last pull or push.
    :ivar keep: patterns of tags that stay.
    :ivar drop_last: whether the last tag of an image goes, too.
    """

    images: Patterns = (Pattern("*"),)
    tags: Patterns = (Pattern("*"),)
    newest: _Newest = 0
    pushed: Length = Duration(0)
    pulled: Length = Duration(0)
    keep: Patterns = ()
    drop_last: Flag = False


class LocalSettings(Section, frozen=True):
    """``[repository.<name>]`` of kind ``local``: images under ``/v2/<name>/`` that clients push."""

    kind: _Local = "local"
    enabled: Flag = True
    other_media_types: Flag = False
    sparse: Sparseness = "no"
    delete_held: Flag = False
    immutable_tags: Patterns = ()
    untagged: Retention = Untagged("keep")
    quota: Bytes = Size(0)
    retention: tuple[RetentionRule, ...] = ()

    @property
    def most_bytes(self) -> int:
        """How many bytes the repository may hold; 0: any number."""
        return self.quota


RepositorySettings = LocalSettings | RemoteSettings


class DefaultSettings(Section, frozen=True):
    """
    ``[default]``: the images whose names begin with no configured repository.

    :ivar push: the local repository that takes their pushes; empty if there is none.
    :ivar pull: the repositories that are searched for them, in this order, ``push`` first.
    :ivar local_only: patterns of names that no upstream is asked for.
    """

    push: Text = _LOCAL
    pull: Names = (_LOCAL, _HUB)
    local_only: Patterns = ()


# The most workers that "auto" is: the catalog has one writer at a time, and each takes memory.
_MOST_WORKERS = 8
# Bytes that a worker may take beside its buffers and its hot answers; the supervisor takes fewer.
_WORKER = 128 << 20


class Settings(Section, frozen=True, kw_only=True):
    """
    All settings; ``etc/artifactd.toml`` explains each.

    Made by :meth:`load`; ``Settings()`` has the embedded defaults.
    """

    listen: Listen = (Endpoint("tcp:5000:interface=127.0.0.1"),)
    data: Folder = Path("./var")
    workers: Workers = "auto"
    log_format: LogFormat = "text"
    log_level: Level = "info"
    access_log: Logging = "text"
    access_log_file: Text = ""
    access_log_omit: Probes = ()
    audit_log: Text = ""
    audit_blobs: Flag = False
    external_url: ExternalUrl = Origin("")
    absolute_locations: Flag = False
    trusted_proxies: Proxies = ()
    cors_origins: WebOrigins = ()
    page: Flag = True
    read_only: Flag = False
    shutdown_timeout: Length = Duration(30)
    idle_timeout: Timeout = Duration(60)
    stall_timeout: Timeout = Duration(60)
    upload_timeout: Timeout = Duration(24 * 3600)
    sweep_interval: Timeout = Duration(3600)
    lease: Timeout = Duration(24 * 3600)
    grace: Length = Duration(7 * 24 * 3600)
    gc_interval: Timeout = Duration(3600)
    gc_rate: Rate = 1000
    uncounted_pulls: Pullers = ()
    scrub_rate: Bytes = Size(8 << 20)
    scrub_pause: Timeout = Duration(7 * 24 * 3600)
    quarantine_keep: Length = Duration(90 * 24 * 3600)
    transfer_buffers: Buffers = Size(64 << 20)
    hot_answers: Bytes = Size(8 << 20)
    max_manifest: Limit = Size(4 << 20)
    min_chunk: Bytes = Size(0)
    threads: Threads = 8
    limits: LimitsSettings = LimitsSettings()
    repository: Mapping[str, RepositorySettings] = field(
        default_factory=lambda: {_LOCAL: LocalSettings(), _HUB: docker_hub()}
    )
    default: DefaultSettings = DefaultSettings()
    auth: AuthSettings = AuthSettings()
    token_service: TokenServiceSettings = TokenServiceSettings()
    access: tuple[AccessSettings, ...] = ()
    robot: Mapping[str, RobotSettings] = field(default_factory=dict)
    issuer: Mapping[str, IssuerSettings] = field(default_factory=dict)
    webhook: Mapping[str, WebhookSettings] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """
        How many processes serve: ``workers``, or as many as there are cores for, up to 8, and
        memory.
        """
        if self.workers != "auto":
            return self.workers
        each = _WORKER + self.transfer_buffers + self.hot_answers
        room = (machine.memory() - _WORKER) // each
        return max(1, min(machine.cores(), room, _MOST_WORKERS))

    @property
    def authentication(self) -> bool:
        """
        Whether any authentication is configured; then only the rules of ``access`` allow anything.
        """
        auth = self.auth
        accounts = auth.htpasswd or auth.robots_file or self.robot
        return bool(accounts or self.access or self.issuer or self.proving)

    @property
    def proving(self) -> Sequence[str]:
        """The names of the remote repositories with ``proof_of_access``."""
        return [
            name
            for name, each in self.repository.items()
            if isinstance(each, RemoteSettings) and each.proof_of_access
        ]

    @classmethod
    def load(
        cls, path: Path | None, environ: Mapping[str, str], text: bytes | None = None
    ) -> Settings:
        """
        The defaults, overridden by the file at ``path``, and that by the variables
        ``ARTIFACTD_<NAME>``: for top-level settings only, lists separated by spaces.

        :param text: the content of the file, if it has been read already.
        :raises StartError: naming the first setting that is wrong, and what it should be.
        """
        tables = {} if path is None else _parsed(path, read(path) if text is None else text)
        default = tables.pop("default", {})
        if isinstance(tables.get("listen"), str):
            tables["listen"] = [tables["listen"]]
        named = tables.get("repository", {})
        if isinstance(named, dict):
            switches = {n for n, t in named.items() if n in _EMBEDDED and _switches_only(t)}
            tables["repository"] = {n: t for n, t in named.items() if n not in switches}
        _refuse_retention(named, f"{path}: repository")
        values = read_values(cls, tables, lambda name: f"{path}: {name}")
        repositories = _with_embedded(values["repository"], named)
        values["repository"] = repositories
        values |= _from_environment(environ, repositories)
        _check_names(repositories, f"{path}: repository")
        _check_retention(repositories, f"{path}: repository")
        check_remotes(repositories, f"{path}: repository", environ)
        values["default"] = _default(default, f"{path}: default", repositories)
        settings = cls(**values)
        check_issuers(settings.issuer, f"{path}: issuer")
        check_webhooks(settings.webhook, f"{path}: webhook", repositories)
        check_accounts(
            settings.auth,
            settings.access,
            settings.robot,
            str(path),
            repositories,
            settings.issuer,
            settings.proving,
        )
        return settings

    def __str__(self) -> str:
        """
        The settings as a TOML document.  :meth:`load` reads it as the same settings, except for
        the passwords, which are left out.
        """
        off = [name for name in Settings().repository if name not in self.repository]
        tables = (f"\n[repository.{key(name)}]\nenabled = false" for name in off)
        return "\n".join([*write_lines(self), *tables])


def read(path: Path) -> bytes:
    """
    Return the content of a settings file.

    :raises StartError: if it can't be read, or others may write it.
    """
    try:
        return read_trusted(path)
    except OSError as error:
        raise StartError(f"{path}: can't be read: {error.strerror}") from None
    except Untrusted as error:
        raise StartError(f"{path}: {error}") from None


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(text.decode())
    except ValueError as error:
        raise StartError(f"{path}: not TOML: {error}") from None


_LONGEST = 64  # characters of a repository's name: files in the store are named after it, too


def _switches_only(table: object) -> bool:
    """Whether the ``table`` of an embedded repository says only whether it is enabled."""
    return (
        isinstance(table, dict)
        and list(table) == ["enabled"]
        and isinstance(table["enabled"], bool)
    )


def _with_embedded(
    read: Mapping[str, RepositorySettings], named: Mapping[str, Any]
) -> dict[str, RepositorySettings]:
    """
    The repositories in force: the enabled ones of the file, and the embedded ones that it does not
    replace or switch off.

    :param named: the tables of the file, by their names.
    """
    enabled = {name: each for name, each in read.items() if each.enabled}
    embedded = {
        name: each
        for name, each in Settings().repository.items()
        if name not in read and named.get(name, {"enabled": True})["enabled"]
    }
    hub = embedded.get(_HUB)
    if isinstance(hub, RemoteSettings):
        # Another repository may answer for hosts of Docker Hub.
        taken = {h for e in enabled.values() if isinstance(e, RemoteSettings) for h in e.hosts}
        embedded[_HUB] = replace(hub, hosts=tuple(h for h in hub.hosts if h not in taken))
    return {**embedded, **enabled}


def _check_names(repositories: Iterable[str], where: str) -> None:
    for name in repositories:
        try:
            RepositoryName.parse(name)
        except NameInvalid as error:
            raise StartError(f"{where}.{key(name)}: {error.message}") from None
        if "/" in name:
            raise StartError(f"{where}.{key(name)}: expected a name of one component, without /")
        if len(name) > _LONGEST:
            raise StartError(f"{where}.{key(name)}: expected at most {_LONGEST} characters")


def _refuse_retention(named: object, where: str) -> None:
    """Refuse the retention of a remote repository with a line that says what it has instead."""
    for name, table in named.items() if isinstance(named, dict) else ():
        if isinstance(table, dict) and table.get("kind") == "remote" and "retention" in table:
            raise StartError(
                f"{where}.{key(name)}.retention: expected it for kind local alone: images of an"
                " upstream are evicted by size_cap and max_age"
            )


def _check_retention(repositories: Mapping[str, RepositorySettings], where: str) -> None:
    """:raises StartError: if a rule keeps nothing, which is more likely a mistake."""
    for name, repository in repositories.items():
        rules = repository.retention if isinstance(repository, LocalSettings) else ()
        for number, rule in enumerate(rules):
            if not (rule.newest or rule.pushed or rule.pulled or rule.keep):
                raise StartError(
                    f"{where}.{key(name)}.retention[{number}]: expected newest, pushed, pulled or"
                    " keep: without one of them it keeps no tag"
                )


def _default(table: object, where: str, known: Mapping[str, RepositorySettings]) -> DefaultSettings:
    values = read_values(DefaultSettings, as_table(table, where), lambda key: f"{where}.{key}")
    local = [name for name, each in known.items() if isinstance(each, LocalSettings)]
    push = values.setdefault("push", _LOCAL if _LOCAL in local else "")
    if push and push not in local:
        raise StartError(
            f"{where}.push: expected a configured local repository ({_choice(local)})"
            f' or "", got {shown(push)}'
        )
    hub = [_HUB] if _HUB in known and _HUB not in local else []
    values.setdefault("pull", (*([push] if push else []), *hub))
    _check_pull(values["pull"], f"{where}.pull", push, local, known)
    return DefaultSettings(**values)


def _check_pull(
    pull: Sequence[str], where: str, push: str, local: Sequence[str], known: Mapping[str, object]
) -> None:
    for position, name in enumerate(pull):
        if name not in known:
            raise StartError(
                f"{where}: expected configured repositories ({_choice(known)}), got {shown(name)}"
            )
        if name in local and name != push:
            raise StartError(f"{where}: expected none of kind local but push, got {shown(name)}")
        if name in pull[:position]:
            raise StartError(f"{where}: expected each once, got {shown(name)} twice")
    # A pushed image is served before an upstream is asked for its name.
    if push and push not in pull[:1]:
        raise StartError(
            f"{where}: expected {shown(push)}, which is push, first, got {shown(pull)}"
        )


def _choice(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names))


def _from_environment(
    environ: Mapping[str, str], repositories: Mapping[str, RepositorySettings]
) -> dict[str, Any]:
    """The top-level settings that ``environ`` has."""
    passwords = {
        each.password_env for each in repositories.values() if isinstance(each, RemoteSettings)
    }
    table: dict[str, object] = {}
    defaults = Settings()
    # A setting that is one value has a description; a table has none.
    tables = {each.name for each in fields_of(Settings) if not hasattr(each.type, "__metadata__")}
    for variable in sorted(environ.keys() - passwords):
        name = variable.removeprefix(_PREFIX)
        if name == variable or _NOT_SETTINGS.fullmatch(name):
            continue
        default = getattr(defaults, name.lower(), None)
        if name != name.upper() or name.lower() in tables:
            raise StartError(f"{variable}: no such setting; tables are set in the file")
        value = environ[variable]
        table[name.lower()] = value.split() if isinstance(default, tuple) else value
    return read_values(Settings, table, lambda name: _PREFIX + name.upper(), strict=False)
