"""TLS to upstreams."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from OpenSSL.crypto import FILETYPE_PEM, dump_certificate
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import TestCase

from artifactd.kit.start import StartError
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.transport import RECEIVE_SIZE, Transport
from tests.tls.authority import OTHER, ROOT
from tests.upstream.wire import Peer, Server, Sink, TransportCase, head, start


class TlsCase(TransportCase):
    def setUp(self) -> None:
        super().setUp()
        self.reactor.names = {"registry.example": "127.0.0.1", "other.example": "127.0.0.1"}
        self.ca_file = Path(self.mktemp())
        self.ca_file.parent.mkdir(parents=True, exist_ok=True)
        self.ca_file.write_bytes(ROOT.pem)
        self.transport = self.make(self.ca_file)

    def serve(self, options: CertificateOptions) -> Server:
        """A server that speaks TLS."""
        server = Server()
        secured: Any = TLSMemoryBIOFactory(options, False, server)
        server.listen(self, secured)
        self.server = server
        return server

    def served(self) -> Server:
        return self.serve(ROOT.options("registry.example", "127.0.0.1"))

    def ask(self, host: str = "registry.example", transport: Transport | None = None) -> Any:
        url = self.server.url("/?signature=secret", host, "https")
        return start((transport or self.transport).request("GET", url, {}))

    async def assert_unreachable(self, words: str, host: str = "registry.example") -> None:
        error = await self.error(self.ask(host))
        self.assertEqual(error.reason, f"{host}:{self.server.port} can't be reached: {words}")

    async def assert_answers(
        self, host: str = "registry.example", transport: Transport | None = None
    ) -> Peer:
        answer = self.ask(host, transport)
        peer, _ = await self.server.asked.get()
        peer.answer(body=b"ok")
        self.assertEqual(await (await answer).read(2), b"ok")
        return peer


class VerificationTests(TlsCase):
    async def test_a_certificate_of_an_authority_in_the_file_is_accepted(self) -> None:
        self.served()
        await self.assert_answers()
        await self.assert_answers("127.0.0.1")

    async def test_its_name_may_be_one_that_idna_does_not_allow(self) -> None:
        for host in ("my_bucket.cdn.example", "ab--cd.cdn.example"):
            self.reactor.names[host] = "127.0.0.1"
            self.serve(ROOT.options(host))
            await self.assert_answers(host)
            self.serve(ROOT.options("*.cdn.example"))
            await self.assert_answers(host)

    async def test_the_server_is_told_its_name_but_no_address(self) -> None:
        for host, name in (("registry.example", b"registry.example"), ("127.0.0.1", None)):
            self.served()
            peer = await self.assert_answers(host)
            transport: Any = peer.transport
            self.assertEqual(name, transport._tlsConnection.get_servername())

    async def test_a_certificate_for_another_name_is_refused(self) -> None:
        self.served()
        await self.assert_unreachable("its certificate is for another name", "other.example")

    async def test_a_certificate_without_a_name_that_counts_is_refused(self) -> None:
        for hosts in ((), ("*.*.example",), ("registry.example", "*.example.*")):
            # So that it is seen at once if one is accepted.
            self.serve(ROOT.options(*hosts)).asked.get().addCallback(lambda on: on[0].answer())
            for host in ("other.example", "127.0.0.1"):
                await self.assert_unreachable(
                    "its certificate has no valid name in it (subjectAltName)", host
                )

    async def test_a_certificate_of_another_authority_is_refused(self) -> None:
        self.serve(OTHER.options("registry.example"))
        await self.assert_unreachable("TLS failed: certificate verify failed")

    async def test_an_expired_certificate_is_refused(self) -> None:
        self.serve(ROOT.options("registry.example", expired=True))
        await self.assert_unreachable("TLS failed: certificate verify failed")

    async def test_an_authority_in_the_file_needs_nobody_to_vouch_for_it(self) -> None:
        appointed = OTHER.sign("an authority of a department", authority=True)
        self.ca_file.write_bytes(appointed.pem)
        self.serve(appointed.options("registry.example"))
        await self.assert_answers(transport=self.make(self.ca_file))

    async def test_a_servers_own_certificate_in_the_file_is_good_for_its_name_alone(self) -> None:
        options = OTHER.options("registry.example")
        assert options.certificate is not None
        self.ca_file.write_bytes(dump_certificate(FILETYPE_PEM, options.certificate))
        transport = self.make(self.ca_file)
        self.serve(options)
        await self.assert_answers(transport=transport)
        error = await self.error(self.ask("other.example", transport))
        self.assertIn("its certificate is for another name", error.reason)

    async def test_without_the_file_its_authority_is_unknown(self) -> None:
        self.served()
        transport = self.make()
        await self.error(self.ask(transport=transport))

    async def test_the_platforms_authorities_are_trusted_besides_those_of_the_file(self) -> None:
        platform = Path(self.mktemp())
        platform.write_bytes(OTHER.pem)
        self.addCleanup(os.environ.pop, "SSL_CERT_FILE", None)
        os.environ["SSL_CERT_FILE"] = str(platform)
        for authority in (OTHER, ROOT):
            self.serve(authority.options("registry.example"))
            await self.assert_answers(transport=self.make(self.ca_file))

    async def test_all_certificates_of_the_file_are_trusted(self) -> None:
        self.ca_file.write_bytes(b"The first:\n" + OTHER.pem + b"\nthe second:\n" + ROOT.pem)
        transport = self.make(self.ca_file)
        for authority in (OTHER, ROOT):
            self.serve(authority.options("registry.example"))
            await self.assert_answers(transport=transport)


class ConversationTests(TlsCase):
    async def test_only_http_1_1_is_offered(self) -> None:
        self.serve(ROOT.options("registry.example", protocols=(b"h2", b"http/1.1")))
        peer = await self.assert_answers()
        transport: Any = peer.transport
        self.assertEqual(transport.negotiatedProtocol, b"http/1.1")

    async def test_a_server_without_tls_is_unreachable(self) -> None:
        answer = self.ask()
        while not self.server.peers:
            await self.round_trip()
        self.server.peers[0].send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        error = await self.error(answer)
        self.assertIn("TLS failed: ", error.reason)

    async def test_a_connection_is_used_again(self) -> None:
        self.served()
        self.assertIs(await self.assert_answers(), await self.assert_answers())

    async def test_a_large_body_comes_whole_in_spite_of_pauses(self) -> None:
        self.served()
        answer = self.ask()
        peer, _ = await self.server.asked.get()
        content = bytes(range(256)) * 20_000
        peer.send(head("200 OK", f"Content-Length: {len(content)}"))
        sink = Sink()
        sink.on_write = sink.pause
        delivered = (await answer).deliver_to(sink)
        peer.send(content)
        await sink.has(1)
        sink.on_write = lambda: None
        await self.round_trip()
        self.assertLessEqual(len(sink.content), RECEIVE_SIZE)
        sink.resume()
        self.assertEqual(await delivered, len(content))
        self.assertEqual(sink.content, content)

    async def test_an_unwanted_body_closes_the_connection(self) -> None:
        self.served()
        answer = self.ask()
        peer, _ = await self.server.asked.get()
        peer.send(head("200 OK", "Content-Length: 10"))
        (await answer).abort()
        await peer.lost

    async def test_a_peer_that_does_not_end_tls_is_closed_none_the_less(self) -> None:
        self.served()
        peer = await self.assert_answers()
        # It reads nothing more, so it neither agrees to the end of TLS nor sees that of TCP; but
        # it learns that the connection is gone when it sends.
        producer: Any = peer.transport
        producer.pauseProducing()
        self.clock.advance(60)
        for _ in range(10):
            peer.send(b"x")
            await self.round_trip()
        self.assertTrue(peer.lost.called)

    async def round_trip(self) -> None:
        """Let what is on its way on loopback arrive."""
        server = Server.start(self)
        transport = self.make()
        answer = start(transport.request("GET", server.url(), {}))
        peer, _ = await server.asked.get()
        peer.answer()
        (await answer).abort()


class FileTests(TestCase):
    def assert_stops_the_start(self, path: Path, words: str) -> None:
        error = self.assertRaises(StartError, Trust.load, str(path))
        self.assertIn(str(path), str(error))
        self.assertIn(words, str(error))

    def test_a_file_that_is_not_there_stops_the_start(self) -> None:
        self.assert_stops_the_start(Path(self.mktemp()), "No such file")

    def test_a_file_that_others_may_write_stops_the_start(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(ROOT.pem)
        path.chmod(0o666)
        self.assert_stops_the_start(path, "others may write it (mode 0666): chmod go-w")

    def test_a_file_without_certificates_stops_the_start(self) -> None:
        path = Path(self.mktemp())
        path.write_text("-----BEGIN PRIVATE KEY-----")
        self.assert_stops_the_start(path, "no certificate in it")

    def test_a_file_with_a_broken_certificate_stops_the_start(self) -> None:
        path = Path(self.mktemp())
        broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        path.write_bytes(ROOT.pem + broken)
        self.assert_stops_the_start(path, "broken certificate")
