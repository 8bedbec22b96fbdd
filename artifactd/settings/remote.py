"""Settings of a remote repository: one whose images come from an upstream."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from artifactd.kit.start import StartError
from artifactd.kit.trusted import Untrusted, check_trusted, read_trusted
from artifactd.settings.toml import Section, key
from artifactd.settings.values import (
    Attempts,
    Bytes,
    Command,
    Duration,
    Flag,
    Host,
    Hosts,
    Length,
    Location,
    Login,
    NamePrefix,
    NameWithin,
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
    Within,
)

_Remote = Annotated[Literal["remote"], Meta(description='"local" or "remote"')]

# The hosts of Docker Hub, where "alpine" is short for "library/alpine".
_DOCKER_HUB = {"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}


class RemoteSettings(Section, frozen=True, kw_only=True):
    """
    ``[repository.<name>]`` of kind ``remote``; ``etc/artifactd.toml`` explains each setting.

    :ivar ca_file, password_file: a path, or empty.
    """

    kind: _Remote = "remote"
    enabled: Flag = True
    upstream: Annotated[Location, Meta(extra={"missing": "the URL of a registry"})]
    hosts: Hosts = ()
    prefix: NameWithin = Within("")
    library: NamePrefix = Prefix("")
    username: Login = User("")
    password: Password = Secret("")
    password_file: Text = ""
    password_env: Text = ""
    credential_command: Command = ()
    auth_hosts: Hosts = ()
    private_hosts: Hosts = ()
    foreign_layers: Flag = False
    proof_of_access: Flag = False
    proof_lifetime: Timeout = Duration(3600)
    ca_file: Text = ""
    allow: Patterns = (Pattern("*"),)
    deny: Patterns = ()
    freshness: Length = Duration(60)
    negative_freshness: Length = Duration(10)
    max_stale: Length = Duration(0)
    stale_after: Length = Duration(5)
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
    def complete(cls, name: str, values: dict[str, Any]) -> None:
        """Let the repository answer for its own name and its upstream's host by default."""
        host = values["upstream"].host
        values["hosts"] = tuple(dict.fromkeys(values.get("hosts", (Host(name), host))))
        # Another cache of Docker Hub has its images under the same names, below the prefix.
        hosts = {host, *values["hosts"]} if values.get("prefix") else {host}
        values.setdefault("library", Prefix("library/" if hosts & _DOCKER_HUB else ""))

    def name_there(self, image: str) -> str:
        """The name that the upstream has for ``image``, the image's name in this repository."""
        return f"{self.prefix}/{image}" if self.prefix and image else image

    @property
    def most_bytes(self) -> int:
        """How many bytes the repository may hold; 0: any number."""
        return self.size_cap

    @property
    def origin(self) -> str:
        """Says which images these are: what is remembered for one origin is not for another."""
        return f"{self.upstream} {self.prefix}" if self.prefix else str(self.upstream)

    def read_password(self, environ: Mapping[str, str]) -> Secret:
        """
        Return the password in force now; empty if there is no login.

        The file of the password is read again each time, so that it can be changed.  The newline at
        the end of the file is not part of it.

        :raises ValueError: if the password can't be read; the message is one line that begins with
            the setting's name.
        """
        if self.password_file:
            return read_secret("password_file", self.password_file)
        if self.password_env:
            if self.password_env not in environ:
                raise ValueError(f"password_env: {self.password_env}: not in the environment")
            return _secret("password_env", self.password_env, environ[self.password_env])
        return self.password

    def find_program(self, environ: Mapping[str, str]) -> str:
        """
        Return the absolute path of the program of ``credential_command``, which has to be set.

        :param environ: its ``PATH`` says where a program without a path is looked for.
        :raises ValueError: if it can't be run; the message is one line that begins with the
            setting's name.
        """
        program = self.credential_command[0]
        where = f"credential_command: {program}"
        if not program:
            raise ValueError("credential_command: expected a program first, got nothing")
        if "/" in program and not program.startswith("/"):
            raise ValueError(f"{where}: expected an absolute path, or a name to look for in PATH")
        path = environ.get("PATH", os.defpath)
        found = shutil.which(program, path=path)
        if found is None or not found.startswith("/"):
            there = "" if program.startswith("/") else f" in PATH ({path})"
            raise ValueError(f"{where}: there is no such program that can be run{there}")
        try:
            check_trusted(os.stat(found))
        except Untrusted as error:
            raise ValueError(f"{where}: {error}") from None
        except OSError as error:
            raise ValueError(f"{where}: can't be run: {error.strerror}") from None
        return found


def docker_hub() -> RemoteSettings:
    """The embedded ``[repository."docker.io"]``."""
    return RemoteSettings(
        upstream=Url("https://registry-1.docker.io"),
        hosts=(Host("docker.io"), Host("index.docker.io"), Host("registry-1.docker.io")),
        library=Prefix("library/"),
    )


def check_remotes(
    repositories: Mapping[str, object], where: str, environ: Mapping[str, str]
) -> None:
    """
    :param where: names the table of all repositories in an error.
    :param environ: the variables that ``password_env`` may name.
    :raises StartError: if two remote repositories answer for one host, or a login is incomplete,
        its password can't be read, or its command can't be run.
    """
    answering: dict[str, str] = {}
    for name, remote in repositories.items():
        if not isinstance(remote, RemoteSettings):
            continue
        place = f"{where}.{key(name)}"
        _check_login(remote, place)
        try:
            remote.read_password(environ)
            if remote.credential_command:
                remote.find_program(environ)
        except ValueError as error:
            raise StartError(f"{place}.{error}") from None
        for host in remote.hosts:
            other = answering.setdefault(host, name)
            if other != name:
                raise StartError(
                    f"{place}.hosts: expected hosts of its own, got"
                    f' "{host}", which is one of {key(other)} too'
                )


def _check_login(remote: RemoteSettings, where: str) -> None:
    """A user name and one password, a command that prints both, or nothing."""
    passwords = {
        "password": remote.password,
        "password_file": remote.password_file,
        "password_env": remote.password_env,
        "credential_command": remote.credential_command,
    }
    given = [setting for setting, value in passwords.items() if value]
    if len(given) > 1:
        raise StartError(f"{where}.{given[1]}: expected one login, got {given[0]} too")
    if remote.username and remote.credential_command:
        raise StartError(
            f"{where}.credential_command: expected no username with it: the command prints it"
        )
    if remote.username and not given:
        raise StartError(
            f"{where}.username: expected password, password_file or password_env with it"
        )
    if remote.proof_of_access and not given:
        raise StartError(
            f"{where}.proof_of_access: expected username and a password, or credential_command,"
            " with it: what others have shown that they may have is fetched with them"
        )
    if given and not remote.username and not remote.credential_command:
        raise StartError(f"{where}.{given[0]}: expected username with it")


def read_secret(setting: str, path: str) -> Secret:
    """
    Return what a file holds, without the newline at its end.

    :raises ValueError: if it can't be read, others may write it, or it holds no secret; the message
        is one line that begins with ``setting``.
    """
    try:
        text = read_trusted(Path(path)).decode().replace("\r\n", "\n")
    except UnicodeError:
        raise ValueError(f"{setting}: {path}: not UTF-8") from None
    except Untrusted as error:
        raise ValueError(f"{setting}: {path}: {error}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{setting}: {path}: can't be read: {reason}") from None
    return _secret(setting, path, text.removesuffix("\n"))


def _secret(setting: str, source: str, text: str) -> Secret:
    if not text:
        raise ValueError(f"{setting}: {source}: expected a password, got nothing")
    try:
        return Secret.parse(text)
    except ValueError as error:
        raise ValueError(f"{setting}: {source}: not a password: {error}") from None
