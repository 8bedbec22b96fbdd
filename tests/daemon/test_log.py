"""The daemon's own log, on a stream."""

from __future__ import annotations

import sys
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher, formatTime
from twisted.python.usage import Options
from twisted.scripts._twistd_unix import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

from artifactd.daemon.log import StreamLog


class FullDisk(StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class StreamLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.stream = Clock(), StringIO()
        self.log = StreamLog(self.stream, self.clock, self.clock.seconds)

    def test_ready_lines_are_written_together_when_the_turn_has_ended(self) -> None:
        access, audit = self.log.lines_of("artifactd.access"), self.log.lines_of("artifactd.audit")
        access("GET {braces}")
        audit("done")
        self.assertEqual(self.stream.getvalue(), "")
        self.clock.advance(0)
        at = formatTime(0.0)
        self.assertEqual(
            self.stream.getvalue(),
            f"{at} [artifactd.access#info] GET {{braces}}\n{at} [artifactd.audit#info] done\n",
        )

    def test_each_has_the_time_at_which_it_came(self) -> None:
        write = self.log.lines_of("a")
        write("first")
        self.clock.advance(61)
        write("second")
        self.clock.advance(0)
        first, second = self.stream.getvalue().splitlines()
        self.assertEqual(first, f"{formatTime(0.0)} [a#info] first")
        self.assertEqual(second, f"{formatTime(61.0)} [a#info] second")

    def test_an_event_comes_behind_the_lines_before_it_in_the_form_of_twistd(self) -> None:
        self.log.lines_of("a")("line")
        Logger("b", observer=LogPublisher(self.log)).warn("event {n}", n=1)
        line, event = self.stream.getvalue().splitlines()
        self.assertTrue(line.endswith(" [a#info] line"), line)
        self.assertTrue(event.endswith(" [b#warn] event 1"), event)

    def test_what_a_full_disk_refuses_is_dropped(self) -> None:
        log = StreamLog(FullDisk(), self.clock, self.clock.seconds)
        log.lines_of("a")("line")
        self.clock.advance(0)
        log.flush()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_characters_that_the_terminal_has_not_are_escaped(self) -> None:
        written = BytesIO()
        self.patch(sys, "stdout", TextIOWrapper(written, "ascii"))
        options: Any = {"syslog": False, "nodaemon": True, "logfile": None}
        log = StreamLog.replacing(options, self.clock)
        assert log is not None
        log.lines_of("a")("GET /caf\xe9")
        log.lines_of("a")("next")
        Logger("b", observer=LogPublisher(log)).info("event \u20ac")
        lines = [line.partition(b"] ")[2] for line in written.getvalue().splitlines()]
        self.assertEqual(lines, [rb"GET /caf\xe9", b"next", rb"event \u20ac"])

    def test_it_replaces_the_log_of_twistd_on_the_terminal_alone(self) -> None:
        def made(*arguments: str) -> bool:
            options = ServerOptions()
            # Without a subcommand, for which the plugins would be searched.
            Options.parseOptions(options, [*arguments])
            reactor: Any = self.clock
            return StreamLog.replacing(options, reactor) is not None

        self.patch(ServerOptions, "subCommands", [])
        self.patch(ServerOptions, "postOptions", lambda _: None)
        self.assertTrue(made("-n"))
        self.assertTrue(made("-n", "--logfile=-"))
        for elsewhere in ([], ["-n", "--logfile=log"], ["-n", "--syslog"], ["--logfile=log"]):
            self.assertFalse(made(*elsewhere), elsewhere)
