"""The lengths of answers."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import maybeDeferred

from artifactd.kit.timers import Timers
from artifactd.oci.ranges import ByteRange
from artifactd.web.answer import Answer
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.sendfile import FileSender
from tests.leaf import leaf
from tests.wire.connection import WireCase, request
from tests.wire.growing import Fill, Follower
from tests.wire.loopback import CountingBudget


class AnswerLengthTests(WireCase):
    def setUp(self) -> None:
        super().setUp()
        self.content = bytes(range(256)) * 1000
        sender = FileSender(Timers(self.clock), maybeDeferred, CountingBudget())

        @self.app.route("/", methods=["GET", "HEAD"])
        async def answer(request: RegistryRequest) -> None:
            sending = self.answer.send(request, sender)
            if sending is not None:
                await sending

        self.site.resource = leaf(self.app)

    def ask(self, answer: Answer, method: str = "GET") -> tuple[bytes, bytes]:
        """Headers and body of ``answer``."""
        self.answer = answer
        wire = self.connect()
        wire.send(request(method, "/"))
        headers, _, body = wire.received().partition(b"\r\n\r\n")
        return headers, body

    def blob(self, size: int | None) -> Follower:
        """A blob all of which is here."""
        fill = Fill(Path(self.mktemp()), self.content, size)
        fill.grow(len(self.content))
        return Follower(fill)

    def test_a_blob_without_a_span_is_all_of_it(self) -> None:
        headers, body = self.ask(Answer(blob=self.blob(256_000)))
        self.assertIn(b"Content-Length: 256000", headers)
        self.assertEqual(body, self.content)

    def test_a_blob_with_a_span_is_that(self) -> None:
        headers, body = self.ask(Answer(206, blob=self.blob(256_000), span=ByteRange(2, 9)))
        self.assertIn(b"Content-Length: 8", headers)
        self.assertEqual(body, self.content[2:10])

    def test_a_blob_whose_length_nobody_knows_has_none(self) -> None:
        headers, body = self.ask(Answer(blob=self.blob(None)))
        self.assertNotIn(b"Content-Length", headers)
        size, _, rest = body.partition(b"\r\n")
        self.assertGreater(int(size, 16), 0)
        self.assertTrue(rest.startswith(self.content[: int(size, 16)]))

    def test_a_head_may_do_without(self) -> None:
        for answer in (Answer(), Answer(blob=self.blob(None))):
            headers, body = self.ask(answer, "HEAD")
            self.assertNotIn(b"Content-Length", headers)
            self.assertNotIn(b"Transfer-Encoding", headers)
            self.assertEqual(body, b"")

    def test_a_head_says_the_length_that_a_get_would_have(self) -> None:
        for answer in (
            Answer(length=5),
            Answer(body=b"12345"),
            Answer(blob=self.blob(256_000), span=ByteRange(0, 4)),
        ):
            headers, body = self.ask(answer, "HEAD")
            self.assertIn(b"Content-Length: 5\r\n", headers + b"\r\n")
            self.assertEqual(body, b"")

    def test_nothing_is_a_length_too(self) -> None:
        for answer, method in ((Answer(201), "GET"), (Answer(length=0), "HEAD")):
            self.assertIn(b"Content-Length: 0", self.ask(answer, method)[0])

    def test_where_there_is_no_body_there_is_no_length(self) -> None:
        for status in (204, 304):
            self.assertNotIn(b"Content-Length", self.ask(Answer(status))[0])
