"""The certificate in use, replaced while the daemon runs when its files change."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from attrs import define, field, frozen
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from artifactd.kit.deferreds import RunInThread
from artifactd.kit.followed import Followed
from artifactd.tls.context import make_context
from artifactd.tls.files import KeyPair, TlsFiles

# Seconds between two looks at the files.
LOOK_EVERY = 2.0

# A certificate that is renewed in time is so with a third of its life left.
_SOON = timedelta(days=14)
_SOON_SHARE = 4
_REMIND_EVERY = timedelta(days=1)

_log = Logger()


@frozen
class _Loaded:
    """The content of the files."""

    pair: KeyPair
    context: SSL.Context


@implementer(IOpenSSLServerConnectionCreator)
@define(eq=False)
class Certificates:
    """
    Creates TLS connections with the certificate of :class:`TlsFiles`, and follows the files.

    A change takes effect within two looks at the files.  Files that can't be used then (a key that
    has been replaced before its certificate, a file that is gone) leave the old certificate in use
    and are tried again at each look.  New connections get the new certificate; open ones keep the
    old one.

    :param listener: the listener's name in the log: its kind, port and interface.
    :param required: whether clients have to show a certificate, where there are authorities.
    :param run: reads files in a thread.
    :param now: wall-clock time, in seconds since the epoch.
    """

    files: TlsFiles
    listener: str
    required: bool
    _clock: IReactorTime
    _run: RunInThread
    _now: Callable[[], float] = time.time
    _followed: Followed[_Loaded] = field(init=False)
    _looking: LoopingCall | None = field(default=None, init=False)
    _reminded: datetime | None = field(default=None, init=False)

    @_followed.default
    def _follow(self) -> Followed[_Loaded]:
        return Followed(
            self.files.stamp,
            self._read,
            self._run,
            self._clock.seconds,
            LOOK_EVERY,
            refused=self._refused,
            changed=self._used,
            settling=True,
        )

    @property
    def not_after(self) -> float:
        """The time when the certificate in use expires, in seconds since the epoch."""
        return self._followed.content.pair.not_after.timestamp()

    @property
    def failing(self) -> bool:
        """Whether the last look found files that can't be used."""
        return self._followed.failing

    def load(self) -> None:
        """
        Read the files; blocks.

        :raises StartError: naming the one that can't be used, and why.
        """
        self._followed.load()
        self._used(self._followed.content)

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self._followed.content.context)

    def start(self) -> None:
        """Look at the files every :data:`LOOK_EVERY` seconds."""
        self._looking = LoopingCall(lambda: Deferred.fromCoroutine(self.look()))
        self._looking.clock = self._clock
        self._looking.start(LOOK_EVERY, now=False)

    def stop(self) -> None:
        """Stop looking at the files."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.stop()

    async def look(self) -> None:
        """Use the files' new content if they have changed and can be used."""
        try:
            await self._followed.look(fresh=True)
            self._remind()
        except Exception:
            # An exception would end the loop for good.
            _log.failure("{listener}: can't look at its files", listener=self.listener)

    def _read(self) -> _Loaded:
        pair = self.files.read()
        return _Loaded(pair, make_context(self.files, pair, self.required))

    def _refused(self, problem: str) -> None:
        _log.error(
            "{listener}: the certificate in use stays, the new files can't be used: {reason}",
            listener=self.listener,
            reason=problem,
        )

    def _used(self, loaded: _Loaded) -> None:
        self._reminded = None
        _log.info(
            "{listener}: certificate of {subject}, valid until {until}",
            listener=self.listener,
            subject=loaded.pair.chain[0].subject.rfc4514_string() or "nobody in particular",
            until=_shown(loaded.pair.not_after),
        )
        self._remind()

    def _remind(self) -> None:
        """Log, once a day, that the certificate expires soon, or is not valid."""
        pair, now = self._followed.content.pair, datetime.fromtimestamp(self._now(), UTC)
        soon = min(_SOON, (pair.not_after - pair.not_before) / _SOON_SHARE)
        if now < pair.not_before:
            what = f"is not valid before {_shown(pair.not_before)}"
        elif now >= pair.not_after:
            what = f"has expired at {_shown(pair.not_after)}"
        elif now >= pair.not_after - soon:
            what = f"expires at {_shown(pair.not_after)}"
        else:
            return
        # Each day, and when it has just expired.
        last = self._reminded
        expired = last is not None and last < pair.not_after <= now
        if last is None or expired or now - last >= _REMIND_EVERY:
            self._reminded = now
            _log.warn("{listener}: its certificate {what}", listener=self.listener, what=what)


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
