"""Listening on endpoints."""

from __future__ import annotations

import contextlib
import socket
from types import SimpleNamespace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import fail
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.daemon.listen import listen_on, stop_listening

CLIENTS = 200  # many more than the 50 that Twisted lets wait


class BurstTests(TestCase):
    """Clients that connect while the reactor is busy."""

    def connected(self, endpoint: str) -> int:
        """
        Listen on ``endpoint``.  Returns how many of :data:`CLIENTS` are connected at once although
        none is accepted.
        """
        _, port = listen_on(endpoint, Factory(), reactor)
        self.addCleanup(port.stopListening)
        address: Any = port.getHost()
        count = 0
        with contextlib.ExitStack() as opened:
            for _ in range(CLIENTS):
                client = opened.enter_context(socket.socket())
                client.setblocking(False)
                # On loopback the kernel answers within the call, unless it drops the client.
                client.connect_ex((address.host, address.port))
                with contextlib.suppress(OSError):
                    client.getpeername()
                    count += 1
        return count

    def test_none_has_to_ask_again(self) -> None:
        self.assertEqual(self.connected("tcp:0:interface=127.0.0.1"), CLIENTS)

    def test_the_endpoint_may_say_how_many_wait(self) -> None:
        self.assertLess(self.connected("tcp:0:interface=127.0.0.1:backlog=5"), 20)


class CloseTests(SynchronousTestCase):
    def test_a_port_that_can_not_be_closed_is_told_and_the_others_are_closed(self) -> None:
        closed: list[bool] = []
        one: Any = SimpleNamespace(stopListening=lambda: fail(OSError("no")))
        other: Any = SimpleNamespace(stopListening=lambda: closed.append(True))
        self.successResultOf(stop_listening([one, other]))
        self.assertEqual(closed, [True])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
