"""Settings of a remote repository: one whose images come from an upstream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from artifactd.kit.start import StartError
from artifactd.settings.toml import key, read_values
from artifactd.settings.values import (
    Attempts,
    Bytes,
    Duration,
    Flag,
    Host,
    Hosts,
    Length,
    Location,
    Login,
    NamePrefix,
    Password,
    Pattern,
    Patterns,
    Prefix,
    Secret,
    Size,
    Text,
    Timeout,
    Url,
    User,
)

_Remote = Annotated[Literal["remote"], Meta(description='"local" or "remote"')]

# Whichever of its addresses Docker Hub is asked at, "alpine" is "library/alpine" there.
_DOCKER_HUB = {"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
_PASSWORDS = ("password", "password_file", "password_env")


class RemoteSettings(Struct, frozen=True, kw_only=True):
    """
    ``[repository.<name>]`` of kind ``remote``: ``etc/artifactd.toml`` tells what each means.

    :ivar ca_file: a path, or empty, as is ``password_file``.
    """

    kind: _Remote = "remote"
    upstream: Location
    hosts: Hosts = ()
    library: NamePrefix = Prefix("")
    username: Login = User("")
    password: Password = Secret("")
    password_file: Text = ""
    password_env: Text = ""
    auth_hosts: Hosts = ()
    proof_of_access: Flag = False
    proof_lifetime: Timeout = Duration(3600)
    ca_file: Text = ""
    allow: Patterns = (Pattern("*"),)
    deny: Patterns = ()
    freshness: Length = Duration(60)
    negative_freshness: Length = Duration(10)
    max_stale: Length = Duration(0)
    cooldown: Length = Duration(0)
    cooldown_except: Patterns = ()
    size_cap: Bytes = Size(0)
    max_age: Length = Duration(0)
    pinned: Patterns = ()
    connect_timeout: Timeout = Duration(10)
    first_byte_timeout: Timeout = Duration(30)
    idle_timeout: Timeout = Duration(30)
    retries: Attempts = 2
    resumes: Attempts = 5
    offline: Flag = False
    finish_fills: Flag = True

    @classmethod
    def read(
        cls, name: str, table: Mapping[str, object], where: str, environ: Mapping[str, str]
    ) -> RemoteSettings:
        """
        The settings that ``table`` has for the repository ``name``.

        :param where: what an error calls the table.
        :param environ: where ``password_env`` is looked up.
        :raises StartError: naming the first setting that is wrong, and what it should be.
        """
        values = read_values(cls, table, lambda setting: f"{where}.{setting}")
        if "upstream" not in values:
            raise StartError(f"{where}.upstream: expected the URL of a registry, got nothing")
        host = values["upstream"].host
        values.setdefault("hosts", (Host(name), host))
        values["hosts"] = tuple(dict.fromkeys(values["hosts"]))
        values.setdefault("library", Prefix("library/" if host in _DOCKER_HUB else ""))
        _check_login(values, where)
        settings = cls(**values)
        try:
            settings.read_password(environ)
        except ValueError as error:
            raise StartError(f"{where}.{error}") from None
        return settings

    def read_password(self, environ: Mapping[str, str]) -> Secret:
        """
        The password as it is now: a file is read again, so that it can be changed in place.

        It is empty if there is no login.  Of a file the end of the last line does not count.

        :raises ValueError: in one line that begins with the setting's name.
        """
        if self.password_file:
            return _secret("password_file", self.password_file, _read_file(self.password_file))
        if self.password_env:
            if self.password_env not in environ:
                raise ValueError(f"password_env: {self.password_env}: not in the environment")
            return _secret("password_env", self.password_env, environ[self.password_env])
        return self.password


def docker_hub() -> RemoteSettings:
    """The embedded ``[repository."docker.io"]``."""
    return RemoteSettings(
        upstream=Url("https://registry-1.docker.io"),
        hosts=(Host("docker.io"), Host("index.docker.io"), Host("registry-1.docker.io")),
        library=Prefix("library/"),
    )


def proving(repositories: Mapping[str, object]) -> list[str]:
    """The names of those that want proof of access."""
    return [
        name
        for name, each in repositories.items()
        if isinstance(each, RemoteSettings) and each.proof_of_access
    ]


def check_hosts(repositories: Mapping[str, object], where: str) -> None:
    """:raises StartError: if two remote repositories answer for one host."""
    answering: dict[str, str] = {}
    for name, repository in repositories.items():
        if isinstance(repository, RemoteSettings):
            for host in repository.hosts:
                other = answering.setdefault(host, name)
                if other != name:
                    raise StartError(
                        f"{where}.{key(name)}.hosts: expected hosts of its own, got"
                        f' "{host}", which is one of {key(other)} too'
                    )


def _check_login(values: Mapping[str, Any], where: str) -> None:
    """A name and one password, or neither."""
    given = [setting for setting in _PASSWORDS if values.get(setting)]
    if len(given) > 1:
        raise StartError(f"{where}.{given[1]}: expected one password, got {given[0]} too")
    if values.get("username") and not given:
        raise StartError(
            f"{where}.username: expected password, password_file or password_env with it"
        )
    if values.get("proof_of_access") and not given:
        raise StartError(
            f"{where}.proof_of_access: expected username and a password with it: what others have"
            " shown that they may have is fetched with them"
        )
    if given and not values.get("username"):
        raise StartError(f"{where}.{given[0]}: expected username with it")


def _read_file(path: str) -> str:
    try:
        text = Path(path).read_text("utf-8")
    except UnicodeError:
        raise ValueError(f"password_file: {path}: not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"password_file: {path}: can't be read: {reason}") from None
    return text.removesuffix("\n")


def _secret(setting: str, source: str, text: str) -> Secret:
    if not text:
        raise ValueError(f"{setting}: {source}: expected a password, got nothing")
    try:
        return Secret.parse(text)
    except ValueError as error:
        raise ValueError(f"{setting}: {source}: not a password: {error}") from None
