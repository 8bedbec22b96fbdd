"""Where the login at an upstream comes from: settings, a client, or a command that prints it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from attrs import define, field
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactd.kit.deferreds import SingleFlight
from artifactd.kit.printable import printable
from artifactd.oci.foreign import decode_foreign
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.values import Secret, User
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import LoginRefused


class CredentialSource(Protocol):
    """Gives the login at one upstream: the daemon's own, or a client's."""

    async def get(self) -> Credentials | None:
        """
        Return the login in force now; ``None``: there is none, the upstream is asked anonymously.

        :raises LoginRefused: if the login can't be had; the log says why.
        """

    def refused(self, credentials: Credentials) -> None:
        """Note that the upstream has refused ``credentials``; others may be had by :meth:`get`."""


@define(eq=False)
class GivenCredentials:
    """
    The login that a function returns.

    :param read: returns it, anew each time; may raise OSError and ValueError, whose texts hold
        nothing of it.
    :param host: the upstream, for reasons and the log.
    """

    read: Callable[[], Credentials | None]
    host: str

    _log = Logger()

    async def get(self) -> Credentials | None:
        try:
            return self.read()
        except (OSError, ValueError) as error:
            # The reason goes to clients, which our paths do not concern.
            self._log.error(
                "the credentials for {host} can't be read: {error}", host=self.host, error=error
            )
            raise LoginRefused(
                f"the credentials for {self.host} can't be read (the log says why)"
            ) from None

    def refused(self, credentials: Credentials) -> None:
        """Do nothing: the function is asked each time."""


ANONYMOUS = GivenCredentials(lambda: None, "")
"""There is no login."""


KEPT_SECONDS = 300.0
"""
How long a printed login is used before the command is asked again.

The protocol says nothing of it.  Logins of Amazon's ECR hold for 12 hours, but Google's metadata
server hands a token out until five minutes before its end.  A refused one is replaced at once.
"""

PAUSE_SECONDS = 10.0
"""The least time from the end of a run to the next, if it has failed or its login is refused."""

RUN_SECONDS = 30.0
"""How long the command may run: clients wait meanwhile."""

_MOST_PRINTED = 64 << 10  # bytes
_MOST_SAID = 4 << 10  # bytes of stderr that are kept, of which a line is logged
_LINE = 200  # characters

# Others are not passed on: the daemon's environment may have passwords of other upstreams.
_PASSED = frozenset(
    {"HOME", "LANG", "LOGNAME", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "USER"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
)

# docker-credential-helpers: Docker Hub goes by its old address, and an identity token by this user
# name; a helper that has no login says so on its standard output.
_DOCKER_HUB = "https://index.docker.io/v1/"
_IDENTITY_TOKEN = "<token>"
_NOT_FOUND = b"credentials not found in native keychain"


class _Printed(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


_decoder = msgspec.json.Decoder(_Printed)


class CommandFailed(Exception):
    """A command has printed no login; the text says why, in one printable line without a secret."""


@define(eq=False)
class CommandCredentials:
    """
    The login that a command prints, in the protocol of Docker's credential helpers.

    The command is run without a shell as ``program arguments… get``, with the registry on its
    standard input, and prints ``{"Username": …, "Secret": …}``.  All that ask at the same time wait
    for one run.  The login is kept in memory alone.

    :param name: the repository, for the log.
    :param settings: have a ``credential_command``.
    :param reactor: runs the command, and is the clock.
    :param environ: the daemon's environment, of which the command gets the little that it needs.
    """

    name: str
    settings: RemoteSettings
    reactor: Any
    environ: Mapping[str, str]
    _kept: Credentials | None = field(default=None, init=False, repr=False)
    _since: float = field(default=0.0, init=False)
    _failed: bool = field(default=False, init=False)
    _runs: SingleFlight[None, Credentials] = field(factory=SingleFlight, init=False)
    _running: _Run | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    _log = Logger()

    async def get(self) -> Credentials | None:
        age = self.reactor.seconds() - self._since
        if self._kept is not None and age < KEPT_SECONDS:
            return self._kept
        if self._closed or (self._failed and age < PAUSE_SECONDS):
            raise self._without()
        return await self._runs.join(None, self._ask)

    def refused(self, credentials: Credentials) -> None:
        """Drop ``credentials``, unless others are kept by now, or they were printed just now."""
        if self.reactor.seconds() - self._since >= PAUSE_SECONDS and credentials == self._kept:
            self._kept = None

    async def close(self) -> None:
        """Kill the command if it runs, and run it no more; returns when it has ended."""
        self._closed = True
        if self._running is not None:
            await self._running.stop("the daemon ends")

    async def _ask(self) -> Credentials:
        self._kept = None
        try:
            self._kept = _login(await self._run())
            self._failed = False
            return self._kept
        except CommandFailed as error:
            self._failed = True
            if not self._closed:
                self._log.error(
                    "{name}: credential_command gives no login: {problem}",
                    name=self.name,
                    problem=str(error),
                )
            raise self._without() from None
        finally:
            self._since = self.reactor.seconds()

    async def _run(self) -> bytes:
        """
        Run the command.  Returns what it has printed.

        :raises CommandFailed: if it can't be run, or does not end well.
        """
        try:
            program = self.settings.find_program(self.environ)
        except ValueError as error:
            raise CommandFailed(printable(str(error))) from None
        upstream = Disclosure.of(self.settings)
        server = _DOCKER_HUB if upstream.is_docker_hub else upstream.upstream.authority
        run = _Run(server.encode(), self.reactor)
        command: Sequence[str] = (program, *self.settings.credential_command[1:], "get")
        passed = {name: value for name, value in self.environ.items() if name in _PASSED}
        try:
            # Twisted starts it by posix_spawn, which takes some milliseconds, every five minutes.
            self.reactor.spawnProcess(run, program, command, passed)
        except OSError as error:
            raise CommandFailed(f"{program} can't be run: {error.strerror}") from None
        self._running = run
        try:
            return await run.printed
        finally:
            self._running = None

    def _without(self) -> LoginRefused:
        # The reason goes to clients, which the operator's command does not concern.
        return LoginRefused(f"there is no login for {self.name} at present (the log says why)")


def _login(printed: bytes) -> Credentials:
    """:raises CommandFailed: if ``printed`` is no login."""
    try:
        found = decode_foreign(_decoder, printed)
    except ValueError:
        raise CommandFailed("it prints no JSON object with Username and Secret") from None
    if not found.username or not found.secret:
        raise CommandFailed("it prints no Username, or no Secret")
    identity_token = found.username == _IDENTITY_TOKEN
    try:
        return Credentials(
            str(User.parse(found.username)), str(Secret.parse(found.secret)), identity_token
        )
    except ValueError:
        raise CommandFailed(
            "it prints a Username with a colon, or a control character in one of the two"
        ) from None


@define(eq=False)
class _Run(ProcessProtocol):
    """
    One run of a command.

    :param given: what it reads from its standard input.
    :ivar printed: fires with its standard output if it ends with the status 0 in time; otherwise
        with :class:`CommandFailed`.
    """

    given: bytes
    clock: Any
    printed: Deferred[bytes] = field(factory=Deferred, init=False)
    _output: bytearray = field(factory=bytearray, init=False)
    _said: bytearray = field(factory=bytearray, init=False)
    _gone: Deferred[None] = field(factory=Deferred, init=False)
    _deadline: IDelayedCall | None = field(default=None, init=False)

    transport: Any = field(default=None, init=False)

    def connectionMade(self) -> None:
        self._deadline = self.clock.callLater(
            RUN_SECONDS, self._kill, f"it has not ended within {RUN_SECONDS:g} s"
        )
        self.transport.write(self.given)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        if self.printed.called:
            return
        self._output += data
        if len(self._output) > _MOST_PRINTED:
            self._kill(f"it prints more than {_MOST_PRINTED} bytes")

    def errReceived(self, data: bytes) -> None:
        self._said += data[: _MOST_SAID - len(self._said)]

    def processEnded(self, reason: Failure) -> None:
        ended: Any = reason.value
        if ended.exitCode == 0:
            self._finish(bytes(self._output))
        else:
            how = f"it ends with status {ended.exitCode}"
            if ended.exitCode is None:
                how = f"it is killed by signal {ended.signal}"
            self._finish(Failure(CommandFailed(how + self._explanation())))
        self._gone.callback(None)

    async def stop(self, why: str) -> None:
        """Kill it; returns when it has ended, or after a second."""
        self._kill(why)
        with contextlib.suppress(TimeoutError):
            await self._gone.addTimeout(1.0, self.clock)

    def _kill(self, why: str) -> None:
        self._finish(Failure(CommandFailed(why)))
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")
        self.transport.loseConnection()  # a child of its own may hold the pipes

    def _finish(self, outcome: bytes | Failure) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        if not self.printed.called:
            self.printed.callback(outcome)

    def _explanation(self) -> str:
        """Return ``: `` and what the command says of its failure, if that holds no secret."""
        if self._output.strip() == _NOT_FOUND:
            return f": it has no login for {self.given.decode()}"
        lines = self._said.decode("utf-8", "replace").split("\n")
        line = next((line.strip() for line in lines if line.strip()), "")
        with contextlib.suppress(ValueError):
            secret = decode_foreign(_decoder, bytes(self._output)).secret
            if secret and secret in line:
                return ""
        return f": {printable(line[:_LINE])}" if line else ""
