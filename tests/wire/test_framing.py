"""What a request has to look like: RFC 9112, read strictly."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from artifactd.web.server.framing import closes, field_problem, request_problem
from artifactd.web.server.protocol import RegistryRequest
from tests.wire.connection import WireCase, request, statuses


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
        for host in ("", "a", "a.b:5000", "127.0.0.1", "[::1]:5000", "a_b", "a%41"):
            self.assertIsNone(self.problem(Host=host), host)
        for host in ("a, b", "a b", "a/b", "a@b", "a:b", "[::1", "a:123456"):
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

    def test_a_chunk_of_a_size_that_nothing_has(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/", "Transfer-Encoding: chunked") + b"f" * 16 + b"\r\nab")
        self.assertFalse(wire.open)
