"""The daemon's own log, on a stream."""

from __future__ import annotations

import json
import sys
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher, formatTime
from twisted.logger._legacy import publishToNewObserver
from twisted.python.log import textFromEventDict
from twisted.python.usage import Options
from twisted.scripts._twistd_unix import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

from artifactd.daemon.log import StreamLog
from artifactd.kit.printable import make_printable
from artifactd.oci.names import Digest, ImageName
from artifactd.settings.settings import Settings
from artifactd.web.server.accesslog import Access, AccessLog


class FullDisk(StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class JsonLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.stream = Clock(), StringIO()
        self.publisher = LogPublisher(make_printable)
        self.log = StreamLog(self.stream, self.clock, self.clock.seconds)
        self.log.configure(Settings(log_format="json", log_level="info"))
        self.publisher.addObserver(self.log)
        self.logger = Logger("part", observer=self.publisher)

    def written(self) -> list[dict[str, Any]]:
        """The lines, each of which is an object."""
        self.clock.advance(0)
        lines = self.stream.getvalue().split("\n")
        self.assertEqual(lines.pop(), "")
        for line in lines:
            self.assertTrue(line.isascii() and line.isprintable(), ascii(line))
        return [json.loads(line) for line in lines]

    def test_an_event_has_its_message_and_the_values_in_it(self) -> None:
        digest = Digest.of(b"")
        self.logger.warn(
            "fetched {digest} of {image} in {seconds} s",
            digest=digest,
            image=ImageName("local", "app"),
            seconds=1.5,
            request_id="00ff",
            other=object(),
        )
        (line,) = self.written()
        self.assertRegex(line.pop("time"), r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
        self.assertEqual(
            line,
            {
                "level": "warn",
                "logger": "part",
                "message": f"fetched {digest} of local/app in 1.5 s",
                "digest": str(digest),
                "image": "local/app",
                "seconds": 1.5,
                "request": "00ff",
            },
        )

    def test_a_traceback_is_a_field_of_one_line(self) -> None:
        for text in ("broken", "a\nb \x1b[2J\u202e"):
            try:
                raise ValueError(text)
            except ValueError:
                self.logger.failure("{what} failed", what="it")
        for line in self.written():
            self.assertEqual((line["level"], line["message"]), ("critical", "it failed"))
            self.assertIn("Traceback", line["traceback"])
            self.assertIn("ValueError: ", line["traceback"])

    def test_lines_of_the_older_log_and_of_the_standard_output_are_objects_too(self) -> None:
        publishToNewObserver(
            self.publisher,
            {"message": ("hello", 1), "time": 0.0, "system": "-", "isError": 0},
            textFromEventDict,
        )
        (line,) = self.written()
        self.assertEqual((line["message"], line["level"]), ("hello 1", "info"))

    def test_requests_and_changes_are_objects_with_the_same_fields(self) -> None:
        access = AccessLog("json", own=self.log.lines_of("artifactd.access"), now=lambda: 0.0)
        for status in (200, 503):
            access.write(Access("::1", "al\u202e", "GET", "/v2/", status, 2, 0.01, "curl", "0"))
        audit = self.log.lines_of("artifactd.audit", always=True)
        audit('{"time":"1970-01-01T00:00:00.000Z","who":"alice"}', 'alice "pushed"')
        first, second, third = self.written()
        self.assertEqual(list(first)[:4], ["time", "level", "logger", "message"])
        self.assertEqual((first["level"], second["level"]), ("info", "error"))
        self.assertEqual((first["message"], first["user"]), ("GET /v2/ 200", "al\u202e"))
        self.assertEqual((third["message"], third["who"]), ('alice "pushed"', "alice"))

    def test_what_is_below_the_level_is_not_written_but_for_the_audit_log(self) -> None:
        for style in ("text", "json"):
            self.stream.truncate(0)
            self.log.configure(Settings(log_format=style, log_level="error"))
            access = self.log.lines_of("access")
            line = '{"time":"1970-01-01T00:00:00.000Z","n":1}'
            access(line, "fine")
            access(line, "failed", is_error=True)
            self.log.lines_of("audit", always=True)(line, "pushed")
            self.logger.warn("strange")
            self.logger.error("wrong")
            self.clock.advance(0)
            text = self.stream.getvalue()
            self.assertEqual(len(text.splitlines()), 3, text)
            self.assertIn("wrong", text)
            self.assertNotIn("strange", text)


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
