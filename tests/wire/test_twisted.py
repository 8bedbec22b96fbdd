"""The names private to Twisted that the HTTP server uses are there in the installed Twisted."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http
from twisted.web.http_headers import Headers

from artifactd.web import server
from artifactd.web.server.protocol import PRIVATE


class PrivateNameTests(SynchronousTestCase):
    def test_each_exists(self) -> None:
        channel = http.HTTPChannel()
        channel.makeConnection(StringTransport())
        self.addCleanup(channel.connectionLost, None)
        channel.dataReceived(b"GET / HTTP/1.1\r\nHost: a")
        request = channel.requests[0]
        instances: dict[type, object] = {http.HTTPChannel: channel, http.Request: request}
        instances[Headers] = request.requestHeaders
        missing = [
            f"{owner.__name__}.{name}"
            for owner, names in PRIVATE.items()
            for name in names
            if not hasattr(instances[owner], name)
        ]
        self.assertEqual(missing, [])

    def test_no_others_are_used(self) -> None:
        listed = {name for names in PRIVATE.values() for name in names}
        base = {
            name
            for owner in PRIVATE
            for ancestor in owner.__mro__
            for name in vars(ancestor)
            if name.startswith("_") and not name.startswith("__")
        } | listed
        for path in Path(server.__file__).parent.glob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            wrong = used & base - {"_log"}
            self.assertEqual(wrong - listed if path.name == "protocol.py" else wrong, set(), path)
