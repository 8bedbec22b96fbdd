"""One request to one host, as far as the headers of its answer, within its time."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import TCPTimedOutError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from artifactd.upstream.causes import cause
from artifactd.upstream.errors import TimedOut, Unreachable
from artifactd.upstream.tunnel import ProxyRefused


@define(eq=False)
class Hop:
    """
    A request under way.

    Whoever connects for it says so, so that connecting, the name's resolution and the proxy's
    tunnel included, and waiting for the answer have a time of their own.

    :ivar host: who is asked, with the proxy if there is one, for messages.
    """

    _clock: IReactorTime
    host: str
    _connect_timeout: float
    _first_byte_timeout: float
    _asking: Deferred[IResponse] | None = field(default=None, init=False)
    _answered: Deferred[IResponse] = field(init=False)
    _deadline: IDelayedCall | None = field(default=None, init=False)
    # Why the request was given up from here, if it was.
    _given_up: BaseException | None = field(default=None, init=False)

    def ask(self, request: Callable[[], Deferred[IResponse]]) -> Deferred[IResponse]:
        """
        Its answer.  Cancelling it closes the connection.

        :raises TimedOut: if connecting, or the answer's headers, take too long.
        :raises Unreachable: if no answer comes.
        """
        self._answered = Deferred(self._cancelled)
        self.connected()
        self._asking = maybeDeferred(request)
        self._asking.addCallbacks(self._succeeded, self._failed)
        return self._answered

    def connecting(self) -> None:
        """A new connection is needed."""
        self._allow(self._connect_timeout, self._no_connection())

    def connected(self) -> None:
        """The request is sent, or about to be."""
        seconds = self._first_byte_timeout
        self._allow(seconds, f"{self.host} did not answer within {seconds:g} seconds")

    def give_up(self, error: BaseException) -> None:
        """Close the connection; the request fails with ``error``."""
        self._given_up = error
        if self._asking is not None:
            self._asking.cancel()

    def _no_connection(self) -> str:
        return f"{self.host}: no connection within {self._connect_timeout:g} seconds"

    def _allow(self, seconds: float, reason: str) -> None:
        self._stop_waiting()
        self._deadline = self._clock.callLater(seconds, self.give_up, TimedOut(reason))

    def _stop_waiting(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def _cancelled(self, _: Deferred[IResponse]) -> None:
        self.give_up(CancelledError())

    def _succeeded(self, response: IResponse) -> None:
        self._stop_waiting()
        self._answered.callback(response)

    def _failed(self, failure: Failure) -> None:
        self._stop_waiting()
        self._answered.errback(self._given_up or self._explained(failure))

    def _explained(self, failure: Failure) -> BaseException | Failure:
        if isinstance(failure.value, Unreachable):
            return failure.value
        if failure.check(ConnectTimeout, TCPTimedOutError):
            return TimedOut(self._no_connection())
        why = cause(failure)
        if why is None:
            return failure
        status = failure.value.status if isinstance(failure.value, ProxyRefused) else None
        return Unreachable(f"{self.host} can't be reached: {why}", status)
