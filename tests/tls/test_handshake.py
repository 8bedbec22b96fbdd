"""Handshakes over real sockets: clients that a listener accepts and refuses."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.tls.endpoint import TlsEndpoint
from artifactd.web.server.accesslog import AccessLog
from artifactd.web.server.protocol import RegistryRequest, RegistrySite
from tests.leaf import leaf
from tests.process import Answer, request
from tests.programs import reactor, wait_for
from tests.tls.authority import CLIENT, DAY, OTHER, ROOT, SERVER, Signed
from tests.tls.case import Files, logged

SHOWN = ROOT.sign("server")
INTERMEDIATE = ROOT.sign("department", authority=True)
LONG_AGO = datetime.now(UTC) - 100 * DAY


class ListenerCase(TestCase):
    async def listen(self, **options: str) -> None:
        """Have :meth:`who` answer; ``options`` are those of the endpoint."""
        self.here = Files(self)
        self.here.write(SHOWN)
        self.secure: list[bool] = []
        self.endpoint = TlsEndpoint.parse(
            reactor,
            "0",
            interface="127.0.0.1",
            key=str(self.here.key),
            cert=str(self.here.cert),
            **options,
        )
        app = Klein()
        app.route("/")(self.who)
        self.site = RegistrySite(leaf(app), reactor, AccessLog("off"))
        port = await self.endpoint.listen(self.site)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.site.drain(5)))
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port  # type: ignore[attr-defined]

    def who(self, request: RegistryRequest) -> bytes:
        """Answer with the subject of the client's certificate."""
        self.secure.append(request.isSecure())
        shown = request.channel.transport.getPeerCertificate()  # type: ignore[attr-defined]
        subject = "" if shown is None else shown.to_cryptography().subject.rfc4514_string()
        request.setHeader(b"Content-Length", b"%d" % len(subject))
        return subject.encode()

    async def ask(self, context: ssl.SSLContext) -> Answer:
        return await request(self.port, "GET", "/", tls=context)

    async def speak(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """A connection once TLS is agreed on."""

        def connect() -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", self.port), 30)
            return context.wrap_socket(plain, server_hostname="127.0.0.1")

        speaking = await deferToThread(connect)
        self.addCleanup(speaking.close)
        return speaking


class ProtocolTests(ListenerCase):
    async def test_a_client_that_trusts_the_authority_gets_in(self) -> None:
        await self.listen()
        answer = await self.ask(ROOT.trusting())
        self.assertEqual((answer.status, answer.body), (200, b""))

    async def test_requests_are_known_to_be_safe_from_others(self) -> None:
        """A realm begins with https:// then, and no sendfile writes past TLS."""
        await self.listen()
        await self.ask(ROOT.trusting())
        self.assertEqual(self.secure, [True])

    async def test_who_does_not_trust_it_is_told_of_with_the_reason(self) -> None:
        await self.listen()
        with logged() as lines:
            await self.assertFailure(
                Deferred.fromCoroutine(self.ask(OTHER.trusting())), ssl.SSLError
            )
            await wait_for(lambda: not self.site.channels)
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], "^no TLS with .*127.0.0.1.*: .*alert unknown ca")

    async def test_tls_1_1_is_refused(self) -> None:
        await self.listen()
        context = ROOT.trusting()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with logged() as lines:
            error = await self.assertFailure(
                Deferred.fromCoroutine(self.speak(context)), ssl.SSLError
            )
            await wait_for(lambda: not self.site.channels)
        self.assertIn("PROTOCOL_VERSION", str(error))
        self.assertEqual(len(lines), 1)
        self.assertIn("unsupported protocol", lines[0])

    async def test_tls_1_2_and_1_3_have_forward_secrecy_and_authenticated_ciphers(self) -> None:
        await self.listen()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ROOT.trusting()
            context.minimum_version = context.maximum_version = version
            speaking = await self.speak(context)
            cipher = speaking.cipher()
            assert cipher is not None
            self.assertRegex(cipher[0], r"^(ECDHE|TLS)[-_].*(GCM|POLY1305)")

    async def test_a_cipher_of_yesterday_is_refused(self) -> None:
        await self.listen()
        context = ROOT.trusting()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        for cipher in ("ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256"):
            context.set_ciphers(cipher)
            await self.assertFailure(Deferred.fromCoroutine(self.speak(context)), ssl.SSLError)

    async def test_of_alpn_only_http_1_1_is_agreed_on(self) -> None:
        await self.listen()
        for offered, agreed in (
            (["h2", "http/1.1"], "http/1.1"),
            (["http/1.1"], "http/1.1"),
            (["h2"], None),
        ):
            context = ROOT.trusting()
            context.set_alpn_protocols(offered)
            self.assertEqual((await self.speak(context)).selected_alpn_protocol(), agreed)

    async def test_no_session_is_resumed(self) -> None:
        """Its client's certificate would not be verified again."""
        await self.listen()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ROOT.trusting()
            context.minimum_version = context.maximum_version = version

            def twice(context: ssl.SSLContext = context) -> bool | None:
                session = None
                for _ in range(2):
                    plain = socket.create_connection(("127.0.0.1", self.port), 30)
                    with context.wrap_socket(
                        plain, server_hostname="127.0.0.1", session=session
                    ) as each:
                        each.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                        each.recv(65536)  # TLS 1.3 sends sessions after the handshake
                        session, reused = each.session, each.session_reused
                return reused

            self.assertIs(await deferToThread(twice), False)


class ReloadTests(ListenerCase):
    def serial(self, speaking: ssl.SSLSocket) -> int:
        """Of the certificate that a connection was shown."""
        shown = speaking.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    async def test_new_connections_see_the_new_certificate_and_old_ones_live_on(self) -> None:
        await self.listen()
        old = await self.speak(ROOT.trusting())
        self.assertEqual(self.serial(old), SHOWN.certificate.serial_number)
        other = ROOT.sign("server")
        self.here.write(other)
        await self.endpoint.certificates.look()
        new = await self.speak(ROOT.trusting())
        self.assertEqual(self.serial(new), other.certificate.serial_number)

        def ask() -> bytes:
            old.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            return old.recv(65536)

        self.assertTrue((await deferToThread(ask)).startswith(b"HTTP/1.1 200"))

    async def test_files_that_are_wrong_leave_the_old_certificate_in_use(self) -> None:
        await self.listen()
        self.here.cert.write_bytes(b"nothing")
        for _ in range(2):
            await self.endpoint.certificates.look()
        shown = await self.speak(ROOT.trusting())
        self.assertEqual(self.serial(shown), SHOWN.certificate.serial_number)

    async def test_other_authorities_count_for_new_connections(self) -> None:
        ca = Files(self)
        await self.listen(client_ca=str(ca.client_ca))
        client = ROOT.trusting(ROOT.sign("node-1", usage=CLIENT), folder=self.mktemp())
        self.assertEqual((await self.ask(client)).body, b"CN=node-1")
        ca.client_ca.write_bytes(OTHER.pem)
        await self.endpoint.certificates.look()
        await self.assertFailure(Deferred.fromCoroutine(self.ask(client)), OSError)
        client = ROOT.trusting(OTHER.sign("node-2", usage=CLIENT), folder=self.mktemp())
        self.assertEqual((await self.ask(client)).body, b"CN=node-2")


NOT_IN_CA = (
    "'CN=node-1' is refused: its authority is not in client_ca,"
    " or an intermediate certificate was not sent"
)
LEAF = ROOT.sign("node-1", usage=CLIENT)

# Why a certificate is refused where ROOT alone is in client_ca, and what the client sends.
REFUSED: list[tuple[str, list[Signed]]] = [
    (NOT_IN_CA, [INTERMEDIATE.sign("node-1", usage=CLIENT)]),
    (NOT_IN_CA, [OTHER.sign("node-1", usage=CLIENT)]),
    # Another authority of the same name.
    (".* is refused: .*", [type(OTHER).make("the authority of the tests").sign("a", usage=CLIENT)]),
    ("'CN=a' is refused: it has expired", [ROOT.sign("a", usage=CLIENT, begin=LONG_AGO)]),
    (
        "'CN=a' is refused: it is not valid yet",
        [ROOT.sign("a", usage=CLIENT, begin=datetime.now(UTC) + DAY)],
    ),
    (".* is refused: it is signed by itself", [type(OTHER).make("node-1")]),
    # A certificate that is no authority signs nothing.
    (".* is refused: .*no authority", [LEAF.sign("administrator", usage=CLIENT), LEAF]),
    ("'CN=web' is refused: it is not for clients .*", [ROOT.sign("web", usage=SERVER)]),
    # A name makes no line of its own in the log.
    (
        r"'CN=a\\\\?n.*b' is refused: .*",
        [OTHER.sign("a\nlistening on b", usage=CLIENT)],
    ),
]


class ClientsCase(ListenerCase):
    """Listeners that ask for certificates, of clients by TLS 1.2 and 1.3."""

    async def begin(self, auth: str, *authorities: Signed) -> None:
        ca = Files(self).client_ca
        ca.write_bytes(b"".join(each.pem for each in authorities or (ROOT,)))
        await self.listen(client_ca=str(ca), client_auth=auth)

    async def assert_in(self, name: str, client: Signed | None, *chain: Signed) -> None:
        for context in self.contexts(client, *chain):
            answer = await self.ask(context)
            self.assertEqual((answer.status, answer.body), (200, name.encode()))

    async def assert_refused(self, why: str, client: Signed | None, *chain: Signed) -> None:
        for context in self.contexts(client, *chain):
            with logged() as lines:
                # An alert, unless the end of the connection overtakes it.
                await self.assertFailure(Deferred.fromCoroutine(self.ask(context)), OSError)
                await wait_for(lambda: not self.site.channels)
            self.assertEqual(len(lines), 1, lines)
            self.assertRegex(lines[0], f"^no TLS with .*127.0.0.1.*: {why}$")

    def contexts(self, *shown: Any) -> list[ssl.SSLContext]:
        contexts = []
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ROOT.trusting(*shown, folder=self.mktemp())
            context.minimum_version = context.maximum_version = version
            contexts.append(context)
        return contexts


class ClientTests(ClientsCase):
    async def test_a_right_certificate_is_known_by_its_name(self) -> None:
        for auth in ("required", "optional"):
            await self.begin(auth)
            await self.assert_in("CN=node-1", LEAF)
            by_department = INTERMEDIATE.sign("node-1", usage=CLIENT)
            await self.assert_in("CN=node-1", by_department, INTERMEDIATE)

    async def test_a_wrong_certificate_is_refused_with_the_reason(self) -> None:
        for auth in ("required", "optional"):
            await self.begin(auth)
            for why, shown in REFUSED:
                await self.assert_refused(f"the client's certificate {why}", *shown)

    async def test_a_trusted_intermediate_vouches_but_its_root_does_not(self) -> None:
        for auth in ("required", "optional"):
            await self.begin(auth, INTERMEDIATE)
            await self.assert_in("CN=node-1", INTERMEDIATE.sign("node-1", usage=CLIENT))
            why = "the client's certificate .* is refused: its root is not in client_ca"
            await self.assert_refused(why, LEAF)

    async def test_a_client_without_a_certificate_is_refused_where_it_is_required(self) -> None:
        await self.begin("required")
        await self.assert_refused("peer did not return a certificate", None)

    async def test_a_client_without_a_certificate_is_anonymous_where_it_is_optional(self) -> None:
        await self.begin("optional")
        await self.assert_in("", None)


class UnaskedTests(ListenerCase):
    async def test_who_is_not_asked_shows_none(self) -> None:
        await self.listen()
        client = ROOT.trusting(ROOT.sign("node-1", usage=CLIENT), folder=self.mktemp())
        self.assertEqual((await self.ask(client)).body, b"")
