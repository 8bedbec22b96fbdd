"""
Whatever bytes come: no 500, no hang, no answer to somebody else, no body taken for a request.

``FUZZ_EXAMPLES=20000`` in the environment makes a longer campaign of it, other examples each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.api.served import Served
from tests.fuzz.messages import (
    HIDDEN,
    LINES,
    PLACES,
    REQUESTS,
    SOUND,
    TARGETED,
    UNSOUND,
    mutated,
    whole,
)
from tests.fuzz.peer import Exchange, Log, Reply, replies

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
_fuzzed = settings(
    max_examples=_EXAMPLES or 100,
    derandomize=not _EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)

_CUTS = st.lists(st.integers(1, 400), max_size=4)


def _ask(name: str) -> bytes:
    return f"GET /v2/{name}/tags/list HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def _pieces(message: bytes, cuts: list[int]) -> list[bytes]:
    """``message`` cut where ``cuts`` say."""
    ends = sorted({min(cut, len(message)) for cut in cuts} | {len(message)})
    return [message[a:b] for a, b in zip([0, *ends], ends, strict=False) if a < b]


class HostileBytesTests(TestCase):
    """The whole registry, asked by somebody who means no good, and by somebody else beside."""

    timeout = 3600 if _EXAMPLES else 600

    def setUp(self) -> None:
        path = Path(self.mktemp()).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.registry = Served.start(self, access_log="json", access_log_file=str(path))
        self.log = Log(path)
        self.site = self.registry.running.site
        self.counted = 0

    async def run_in_thread(self, property_: Callable[[], None]) -> None:
        self.bystander = Exchange(self.site, self.registry.port)
        self.addCleanup(self.bystander.close)
        await deferToThread(property_)
        self.assertEqual(self.flushLoggedErrors(), [])

    def exchange(self, message: bytes, cuts: list[int]) -> list[Reply]:
        """
        Send ``message`` between two requests that are in order, while somebody else asks on another
        connection; the answers, after what holds whatever was sent has been looked at.
        """
        self.counted += 1
        before, after = f"before-{self.counted}", f"after-{self.counted}"
        other = f"other-{self.counted}"
        asked = _ask(other)
        self.bystander.send(asked[:20])
        mine = Exchange(self.site, self.registry.port)
        mine.send(_ask(before), *_pieces(message, cuts), _ask(after))
        received = mine.end()
        self.bystander.send(asked[20:])
        told = self.bystander.read_reply()
        self.assertEqual((told.status, told.name), (404, f"local/{other}"))
        lines = self.log.new()
        for line in lines:
            self.assertLess(line["status"], 500, line)
        self.assertEqual([line["status"] for line in lines if other in line["path"]], [404])
        answers = self.answers(received, message)
        self.assertEqual(answers[:1], [Reply(404, answers[0].body)] if answers else [])
        for answer in answers:
            self.assertLess(answer.status, 500)
            self.assertNotEqual(answer.name, f"local/{other}")
        self.hidden = [line for line in lines if line["path"].startswith(f"/v2/{HIDDEN}/")]
        return answers

    def answers(self, received: bytes, message: bytes) -> list[Reply]:
        if message.lstrip(b"\r\n")[:4].upper() == b"HEAD":
            return []  # whose answers have no bodies, and so are not to be told apart here
        return replies(received)

    async def test_no_body_is_taken_for_a_request(self) -> None:
        @_fuzzed
        @given(REQUESTS, _CUTS)
        def check(message: bytes, cuts: list[int]) -> None:
            self.exchange(message, cuts)
            self.assertEqual(self.hidden, [])

        await self.run_in_thread(check)

    async def test_every_ambiguous_framing_is_refused_and_ends_the_connection(self) -> None:
        def check() -> None:
            for framing in UNSOUND:
                answers = self.exchange(whole(PLACES[0], framing, []), [])
                self.assertEqual([a.status for a in answers], [404, 400], framing)
                self.assertEqual(self.hidden, [], framing)

        await self.run_in_thread(check)

    async def test_every_sound_framing_is_understood_and_the_next_request_answered(self) -> None:
        def check() -> None:
            for framing in SOUND:
                answers = self.exchange(whole(PLACES[0], framing, []), [])
                self.assertEqual([a.status for a in answers], [404, 400, 404], framing)
                self.assertIn(b"MANIFEST_INVALID", answers[1].body)
                self.assertEqual(answers[2].name, f"local/after-{self.counted}")
                self.assertEqual(self.hidden, [], framing)

        await self.run_in_thread(check)

    async def test_lines_that_are_no_http(self) -> None:
        def check() -> None:
            for line in LINES:
                self.exchange(line, [])

        await self.run_in_thread(check)

    async def test_any_target(self) -> None:
        @_fuzzed
        @given(TARGETED, _CUTS)
        def check(message: bytes, cuts: list[int]) -> None:
            self.exchange(message, cuts)

        await self.run_in_thread(check)

    async def test_requests_that_have_been_tampered_with(self) -> None:
        @_fuzzed
        @given(mutated(), _CUTS)
        @example(b"", [])
        def check(message: bytes, cuts: list[int]) -> None:
            self.exchange(message, cuts)

        await self.run_in_thread(check)
