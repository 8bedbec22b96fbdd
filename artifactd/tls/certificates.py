"""The certificate that is in use, which follows its files while the daemon runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

from attrs import define, field, frozen
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from artifactd.kit.start import StartError
from artifactd.tls.context import make_context
from artifactd.tls.files import KeyPair, Stamp, TlsFiles

# Seconds between two looks at the files.
LOOK_EVERY = 2.0

# A certificate that is renewed in time is so with a third of its life left.
_SOON = timedelta(days=14)
_SOON_SHARE = 4
_REMIND_EVERY = timedelta(days=1)

_log = Logger()


class Run(Protocol):
    """Calls something that blocks, where that harms nobody."""

    def __call__(self, work: Callable[[], Any], /) -> Deferred[Any]: ...


@frozen
class _Loaded:
    """What the files had in them, and what they looked like before they were read."""

    stamps: tuple[Stamp, ...]
    pair: KeyPair
    context: SSL.Context


@frozen
class _Unusable:
    """The same of files that can't be used."""

    stamps: tuple[Stamp, ...]
    reason: str


@implementer(IOpenSSLServerConnectionCreator)
@define(eq=False)
class Certificates:
    """
    Speaks TLS with what :class:`TlsFiles` have in them.

    A change is seen within two looks.  What can't be used then (a key that has been replaced before
    its certificate, a file that is gone) changes nothing and is looked at again, until it can be.
    New connections get the new certificate; those that are there go on.

    :param listener: what the log calls it, its kind, port and interface.
    :param required: whether clients have to show a certificate, where there are authorities.
    :param run: reads files.
    :param now: wall-clock time, in seconds since the epoch.
    """

    files: TlsFiles
    listener: str
    required: bool
    _clock: IReactorTime
    _run: Run
    _now: Callable[[], float] = time.time
    _loaded: _Loaded | None = field(default=None, init=False)
    _looking: LoopingCall | None = field(default=None, init=False)
    # What the last look found wrong, and what of it has been told.
    _wrong: _Unusable | None = field(default=None, init=False)
    _told: str = field(default="", init=False)
    _reminded: datetime | None = field(default=None, init=False)

    @property
    def not_after(self) -> float:
        """When the certificate in use expires, in seconds since the epoch."""
        assert self._loaded is not None
        return self._loaded.pair.not_after.timestamp()

    @property
    def failing(self) -> bool:
        """Whether the files have something in them that can't be used."""
        return self._wrong is not None

    def load(self) -> None:
        """
        Read the files; blocks.

        :raises StartError: naming the one that can't be used, and why.
        """
        loaded = self._read(self.files.stamps())
        if isinstance(loaded, _Unusable):
            raise StartError(loaded.reason)
        self._use(loaded)

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        assert self._loaded is not None
        return SSL.Connection(self._loaded.context)

    def start(self) -> None:
        """Look at the files every :data:`LOOK_EVERY` seconds."""
        self._looking = LoopingCall(lambda: Deferred.fromCoroutine(self.look()))
        self._looking.clock = self._clock
        self._looking.start(LOOK_EVERY, now=False)

    def stop(self) -> None:
        """Don't look any more."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.stop()

    async def look(self) -> None:
        """Take what has changed, if it can be taken."""
        assert self._loaded is not None
        try:
            found = await self._run(partial(self._read_if_not, self._loaded.stamps))
            if isinstance(found, _Unusable):
                self._refuse(found)
            else:
                self._wrong, self._told = None, ""
                if found is not None:
                    self._use(found)
            self._remind()
        except Exception:
            # The loop would stop for good.
            _log.failure("{listener}: can't look at its files", listener=self.listener)

    def _read_if_not(self, known: tuple[Stamp, ...]) -> _Loaded | _Unusable | None:
        stamps = self.files.stamps()
        return None if stamps == known else self._read(stamps)

    def _read(self, stamps: tuple[Stamp, ...]) -> _Loaded | _Unusable:
        """:param stamps: of before: what changes meanwhile is seen the next time."""
        try:
            pair = self.files.read()
            return _Loaded(stamps, pair, make_context(self.files, pair, self.required))
        except StartError as error:
            return _Unusable(stamps, str(error))

    def _refuse(self, found: _Unusable) -> None:
        # The first time it may be between one file and the next.
        again, self._wrong = found == self._wrong, found
        if again and found.reason != self._told:
            self._told = found.reason
            _log.error(
                "{listener}: the certificate in use stays, the new files can't be used: {reason}",
                listener=self.listener,
                reason=found.reason,
            )

    def _use(self, loaded: _Loaded) -> None:
        self._loaded, self._reminded = loaded, None
        _log.info(
            "{listener}: certificate of {subject}, valid until {until}",
            listener=self.listener,
            subject=loaded.pair.chain[0].subject.rfc4514_string() or "nobody in particular",
            until=_shown(loaded.pair.not_after),
        )
        self._remind()

    def _remind(self) -> None:
        """Tell, once a day, that the certificate expires soon, or is not valid."""
        assert self._loaded is not None
        pair, now = self._loaded.pair, datetime.fromtimestamp(self._now(), UTC)
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
