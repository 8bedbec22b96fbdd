"""Control characters, which never reach a log."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

from twisted.logger import (
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    Logger,
    LogPublisher,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.python.failure import Failure
from twisted.python.log import ILogObserver as IOlderLogObserver
from twisted.python.log import LogPublisher as OlderLogPublisher
from twisted.python.log import textFromEventDict
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from artifactd.kit.printable import make_printable, printable

HOSTILE = (
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e",
    *"\u2066\u2067\u2068\u2069\ufeff\ud800\udcff\U000e0001",
)
ALL = "".join(HOSTILE)


class PrintableTests(SynchronousTestCase):
    def test_each_control_character_is_escaped(self) -> None:
        for char in HOSTILE:
            shown = printable(f"a{char}b")
            self.assertRegex(shown, r"\Aa(\\u[0-9a-f]{4}){1,2}b\Z", ascii(char))
            self.assertTrue(shown.isascii())

    def test_other_text_is_left_as_it_is(self) -> None:
        for text in ("", "plain text", "größer: 日本 ✓ 🐳", "C:\\dir"):
            self.assertIs(printable(text), text)

    def test_in_json_the_text_is_the_same(self) -> None:
        text = ALL.replace("\ud800", "").replace("\udcff", "")
        written = json.dumps({"a": text}, ensure_ascii=False)
        self.assertEqual(json.loads(printable(written)), {"a": text})


class EventTests(SynchronousTestCase):
    """Lines as twistd's observers write them."""

    def setUp(self) -> None:
        self.file = StringIO()
        self.later: list[LogEvent] = []
        self.publisher = LogPublisher(make_printable, textFileLogObserver(self.file))

        @implementer(ILogObserver)
        def later(event: LogEvent) -> None:
            self.later.append(event)

        self.publisher.addObserver(later)
        self.log = Logger("test", observer=self.publisher)

    def lines(self) -> list[str]:
        """The lines of the file; none has a control character."""
        lines = self.file.getvalue().removesuffix("\n").split("\n")
        for line in lines:
            self.assertTrue(line.removeprefix("\t").isprintable(), ascii(line))
        return lines

    def test_an_event_is_one_line_whatever_its_values_hold(self) -> None:
        self.log.warn("the upstream says {text}: {error}", text=ALL, error=ValueError(ALL))
        (line,) = self.lines()
        self.assertIn("the upstream says \\u0000\\u0001", line)

    def test_printable_events_are_left_as_they_are(self) -> None:
        self.log.info("{name} is pulled by {who!r}", name="größer", who="\x1b[1m")
        (event,) = self.later
        self.assertEqual(event["log_format"], "{name} is pulled by {who!r}")
        self.assertIn("größer is pulled by '\\x1b[1m'", self.lines()[0])

    def test_a_traceback_keeps_its_lines_and_its_exception_is_one(self) -> None:
        failure = self.failure()
        self.log.failure("asking {who} failed", failure, who="a\nb")
        first, *lines = self.lines()
        self.assertIn("asking a\\u000ab failed", first)
        self.assertGreater(len(lines), 3)
        self.assertEqual(
            [n for n, line in enumerate(lines) if "ValueError: " in line], [len(lines) - 2]
        )
        self.assertIn("forged\\u000a2026-01-01 line \\u001b[2J\\u202e", lines[-2])

    def test_a_harmless_failure_is_left_to_the_observers(self) -> None:
        try:
            raise ValueError("größer")
        except ValueError:
            self.log.failure("failed")
        self.assertIn("log_failure", self.later[0])
        self.lines()

    def test_errors_that_are_logged_by_the_older_functions_of_twisted(self) -> None:
        older = OlderLogPublisher(publishPublisher=self.publisher)
        failure = self.failure()
        older.msg(failure=failure, why="it\x07failed", isError=1)
        lines = self.lines()
        self.assertIn("it\\u0007failed", lines[0])
        self.assertGreater(len(lines), 4)
        older.msg("a message\nof \u202e two lines")
        self.assertIn("a message\\u000aof \\u202e two lines", self.lines()[-1])

    def test_observers_of_the_older_kind_write_the_same(self) -> None:
        written: list[str] = []

        @implementer(IOlderLogObserver)
        def observe(event: dict[str, Any]) -> None:
            written.append(textFromEventDict(event) or "")

        self.publisher.addObserver(LegacyLogObserverWrapper(observe))
        older = OlderLogPublisher(publishPublisher=self.publisher)
        failure = self.failure()
        older.msg(failure=failure, why="it\x07failed", isError=1)
        older.msg("a message\nof \u202e two lines")
        older.msg(format="%(a)s failed", a="it\x1b")
        self.log.info("{a} failed", a="it\x1b")
        self.log.failure("{a} failed", failure, a="it\x1b")
        self.assertEqual(len(written), 5)
        for text in written:
            for line in text.split("\n"):
                self.assertTrue(line.isprintable(), ascii(line))
        self.assertEqual(written[1], "a message\\u000aof \\u202e two lines")
        self.assertEqual(written[2:4], ["it\\u001b failed"] * 2)

    def test_events_in_json_too(self) -> None:
        file = StringIO()
        publisher = LogPublisher(make_printable, jsonFileLogObserver(file))
        Logger("test", observer=publisher).failure("{who}", self.failure(), who=ALL)
        (line,) = file.getvalue().removeprefix("\x1e").removesuffix("\n").split("\n")
        self.assertTrue(line.isprintable())

    def test_an_event_that_comes_twice_stays_the_same(self) -> None:
        self.log.failure("failed", self.failure())
        (event,) = self.later
        before = dict(event)
        make_printable(event)
        self.assertEqual(event, before)

    def failure(self) -> Failure:
        """Of an exception whose text forges a line."""
        try:
            raise ValueError("forged\n2026-01-01 line \x1b[2J\u202e")
        except ValueError:
            return Failure()
