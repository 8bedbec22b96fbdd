"""What the daemon does, over all its processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import Deferred

from artifactd.kit.peers import Reply
from artifactd.registry.mirror.stale import StaleTags
from artifactd.web.status import WholeDaemon
from tests.wire.connection import WireCase


class HungPeersTests(WireCase):
    def test_a_process_that_hangs_is_waited_for_once(self) -> None:
        asked: dict[str, Deferred[list[Reply]]] = {}

        async def ask(question: str) -> list[Reply]:
            asked[question] = Deferred()
            return await asked[question]

        nothing = cast(Any, None)
        peers = cast(Any, SimpleNamespace(ask=ask))
        whole = WholeDaemon(peers, nothing, lambda: [], StaleTags(), nothing)
        asking = cast(Any, SimpleNamespace(site=self.site))
        status = Deferred.fromCoroutine(whole.status(asking))
        self.assertEqual(sorted(asked), ["stale", "status"])
        for replies in asked.values():
            replies.callback([Reply(7, None)])
        self.assertEqual(self.successResultOf(status).processes, 1)
