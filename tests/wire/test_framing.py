"""What a request has to look like: RFC 9112, read strictly."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from artifactd.web.server.framing import (
    ChunkedDecoder,
    FramingError,
    closes,
    field_problem,
    request_problem,
)
from artifactd.web.server.protocol import RegistryRequest
from tests.wire.connection import WireCase, chunked, request, statuses


class FieldTests(SynchronousTestCase):
    """Lines of a header section."""

    def test_ordinary_lines_are_fine(self) -> None:
        for line in (b"Host: a", b"X:", b"x-y:\t a b ", b"Content-Length: 123", b"A: \xe9\xff"):
            self.assertIsNone(field_problem(line), line)

    def test_folded_lines_are_refused(self) -> None:
        for line in (b" more", b"\tX: y"):
            self.assertEqual(field_problem(line), "a header line begins with white space")

    def test_white_space_before_the_colon_no_colon_no_name(self) -> None:
        for line in (b"Host : a", b"Host\t: a", b"Host", b": a", b"H\xe9: a", b"(Host): a"):
            self.assertEqual(field_problem(line), "a header line is malformed", line)

    def test_control_characters_but_for_tabs(self) -> None:
        for byte in (*range(9), *range(10, 32), 127):
            line = b"X: a%cb" % byte
            self.assertEqual(field_problem(line), "a header line is malformed", line)

    def test_a_length_that_nothing_has(self) -> None:
        self.assertIsNone(field_problem(b"Content-Length: " + b"9" * 18))
        for value in (b"9" * 19, b"9" * 5000, b"0" * 19):
            self.assertEqual(
                field_problem(b"content-length:" + value), "Content-Length is too large"
            )


class RequestTests(SynchronousTestCase):
    """A request line with its headers."""

    def problem(
        self, target: bytes = b"/v2/", version: bytes = b"1.1", **headers: str | list[str]
    ) -> str | None:
        given = Headers()
        for name, values in {"Host": "a", **headers}.items():
            for value in [values] if isinstance(values, str) else values:
                given.addRawHeader(name.replace("_", "-"), value)
        return request_problem(target, b"HTTP/" + version, given)

    def test_targets(self) -> None:
        for target in (b"/", b"/a?b=c", b"http://a/b", b"HTTPS://a:5?b", b"http://a", b"*"):
            self.assertIsNone(self.problem(target), target)
        for target in (b"a", b"a:443", b"file:///a", b"http:///a", b"http://a@b/c", b"/a#b", b"?a"):
            self.assertIn("target", self.problem(target) or "", target)

    def test_one_host(self) -> None:
        for host in ("", "a", "a.b:5000", "127.0.0.1", "[::1]:65535", "a_b", "a%41"):
            self.assertIsNone(self.problem(Host=host), host)
        for host in ("a, b", "a b", "a/b", "a@b", "a:b", "[::1", "a:123456", "a:65536"):
            self.assertIn("Host", self.problem(Host=host) or "", host)
        self.assertIn("Host", self.problem(Host=["a", "a"]) or "")
        self.assertIn("Host", self.problem(Host=[]) or "")
        self.assertIsNone(self.problem(version=b"1.0", Host=[]))

    def test_an_address_may_have_a_zone(self) -> None:
        for host in ("[fe80::1%25eth0]", "[fe80::1%eth0]:5000"):
            self.assertIsNone(self.problem(Host=host), host)
        for host in ("[fe80::1%]", "[fe80::1%a/b]", "[%25eth0]", "[fe80::1%25eth0"):
            self.assertIn("Host", self.problem(Host=host) or "", host)

    def test_a_transfer_coding_is_chunked_alone(self) -> None:
        self.assertIsNone(self.problem(Transfer_Encoding="Chunked"))
        for codings in ("identity", "gzip", "chunked, chunked", "", ["chunked", "chunked"]):
            self.assertIn("Transfer-Encoding", self.problem(Transfer_Encoding=codings) or "")
        self.assertIn("1.0", self.problem(version=b"1.0", Transfer_Encoding="chunked") or "")
        both = self.problem(Transfer_Encoding="chunked", Content_Length="0")
        self.assertIn("beside", both or "")


class ConnectionTests(WireCase):
    """What a connection does about it."""

    def setUp(self) -> None:
        super().setUp()
        self.bodies: list[RegistryRequest] = []

        @self.app.route("/", methods=["GET", "PUT"])
        def keep(request: RegistryRequest) -> bytes:
            self.bodies.append(request)
            return b"text"

    def test_what_is_refused_is_told_why_reaches_no_route_and_ends_the_connection(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/", "Transfer-Encoding: identity") + request("GET", "/"))
        received = wire.received()
        self.assertEqual(statuses(received), [400])
        self.assertIn(b"Transfer-Encoding may be chunked alone", received)
        self.assertFalse(wire.open)
        wire.send(request("GET", "/"))
        self.assertEqual((wire.received(), self.bodies), (b"", []))

    def test_connection_tokens_are_a_list_in_any_case_in_any_number_of_fields(self) -> None:
        for fields in (["Close"], ["keep-alive,close"], ["TE, close"], ["TE", "close"]):
            wire = self.connect()
            wire.send(request("GET", "/", *(f"Connection: {field}" for field in fields)))
            self.assertIn(b"Connection: close", wire.received())
            self.assertFalse(wire.open, fields)
        for field in ("keep-alive", "closed", "not close"):
            self.assertFalse(closes([field.encode()]))

    def test_a_request_without_a_body_is_not_told_to_go_on(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/", "Expect: 100-continue"))
        self.assertEqual(statuses(wire.received()), [200])


class ChunkTests(SynchronousTestCase):
    """Bodies in the chunked transfer coding, read by read."""

    def decode(self, *reads: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return what is delivered, and what is behind the end."""
        delivered: list[bytes] = []
        behind: list[bytes] = []
        decoder = ChunkedDecoder(delivered.append, behind.append, 1000, 10)
        for read in reads:
            decoder.dataReceived(read)
        return delivered, behind

    @given(st.lists(st.binary(min_size=1, max_size=9)), st.lists(st.integers(0, 200)), st.binary())
    def test_however_it_is_cut_it_is_the_same(
        self, pieces: list[bytes], cuts: list[int], behind: bytes
    ) -> None:
        whole = chunked(*pieces) + behind
        end = len(whole) - len(behind)
        places = sorted({0, end, *(cut for cut in cuts if cut < end)})
        reads = [whole[a:b] for a, b in pairwise(places)]
        reads[-1] += behind
        delivered, rest = self.decode(*reads)
        self.assertEqual(b"".join(delivered), b"".join(pieces))
        self.assertLessEqual(len(delivered), len(reads))
        self.assertEqual(rest, [behind])

    def test_the_content_of_a_read_is_copied_once_or_not_at_all(self) -> None:
        content = bytes(range(256)) * 4
        one = self.decode(b"%x\r\n" % (2 * len(content)), content)[0][-1]
        self.assertIs(one, content)
        whole = chunked(content, content)
        (joined,) = self.decode(whole)[0]
        self.assertEqual(joined, 2 * content)

    def test_a_size_that_follows_a_chunk_may_be_written_in_any_way(self) -> None:
        for size in (b"3", b"03", b"0000000000000000003", b"3;x=y"):
            for step in (1, 2, 3, 50):
                whole = b"2\r\nab\r\n%b\r\ncde\r\n0\r\n\r\n" % size
                reads = [whole[at : at + step] for at in range(0, len(whole), step)]
                delivered, behind = self.decode(*reads)
                self.assertEqual((b"".join(delivered), behind), (b"abcde", [b""]), (size, step))

    def test_wrong_ones_are_told_why_and_what_comes_before_is_delivered(self) -> None:
        for wrong, problem in (
            (b"f" * 16 + b"\r\nab", "too large"),
            (b"f" * 1000 + b"\r\nab", "too large"),
            (b"0" * 1025, "more than 1024"),
            (b"1;" + b"a" * 1023 + b"\r\n", "more than 1024"),
            (b"\r\n", "malformed"),
            (b" 1\r\na\r\n", "malformed"),
            (b"1 ;a\r\na\r\n", "malformed"),
            (b"0x1\r\na\r\n", "malformed"),
            (b"+1\r\na\r\n", "malformed"),
            (b"1_0\r\n0123456789abcdef\r\n", "malformed"),
            (b"1;a\n\r\na\r\n", "malformed"),
            (b"1;a\\\r\na\r\n", "malformed"),
            (b"1\na\r\n", "malformed"),
            (b"1\r\nab\r\n", "not as long"),
            (b"1\r\na\n0\r\n\r\n", "not as long"),
        ):
            for step in (1, 5000):
                delivered: list[bytes] = []
                decoder = ChunkedDecoder(delivered.append, self.fail, 1000, 10)
                whole = b"3\r\nabc\r\n" + wrong

                def decode(
                    decoder: ChunkedDecoder = decoder, whole: bytes = whole, step: int = step
                ) -> None:
                    for at in range(0, len(whole), step):
                        decoder.dataReceived(whole[at : at + step])

                error = self.assertRaises(FramingError, decode)
                self.assertIn(problem, str(error), wrong[:20])
                self.assertEqual(b"".join(delivered)[:3], b"abc")
