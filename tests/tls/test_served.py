"""The daemon behind TLS."""

from __future__ import annotations

import random
import ssl

from twisted.trial.unittest import TestCase

from artifactd.daemon.service import RegistryService
from artifactd.kit.start import StartError
from artifactd.oci.names import Digest
from artifactd.settings.settings import Settings
from tests.api.served import Served
from tests.process import Answer, request
from tests.programs import reactor
from tests.tls.authority import ROOT
from tests.tls.case import Files

SHOWN = ROOT.sign("server")
BLOB = random.Random(7).randbytes(20_000_001)
DIGEST = Digest.of(BLOB)


class ServedTests(TestCase):
    def setUp(self) -> None:
        self.here = Files(self)
        self.here.write(SHOWN)
        self.served = Served.start(
            self,
            listen=f"artifactd-tls:0:interface=127.0.0.1:key={self.here.key}:cert={self.here.cert}",
        )

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        chunked: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        return await request(
            self.served.port,
            method,
            path,
            body=body,
            headers=headers,
            chunked=chunked,
            tls=tls or ROOT.trusting(),
        )

    async def test_what_is_pushed_comes_back_byte_for_byte(self) -> None:
        answer = await self.ask("POST", f"/v2/a/blobs/uploads/?digest={DIGEST}", BLOB)
        self.assertEqual(answer.status, 201, answer)
        answer = await self.ask("GET", f"/v2/a/blobs/{DIGEST}")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.body == BLOB)
        answer = await self.ask(
            "GET", f"/v2/a/blobs/{DIGEST}", headers={"Range": "bytes=16383-19000000"}
        )
        self.assertEqual(answer.status, 206)
        self.assertTrue(answer.body == BLOB[16383:19000001])

    async def test_an_upload_in_chunks_ends_whole(self) -> None:
        answer = await self.ask("POST", "/v2/a/blobs/uploads/", b"")
        where = answer.header("Location") or ""
        answer = await self.ask("PATCH", where, BLOB[:9_000_000], chunked=True)
        self.assertEqual((answer.status, answer.header("Range")), (202, "0-8999999"))
        where = answer.header("Location") or ""
        separator = "&" if "?" in where else "?"
        answer = await self.ask("PUT", f"{where}{separator}digest={DIGEST}", BLOB[9_000_000:])
        self.assertEqual(answer.status, 201, answer)

    async def test_tls_1_2_serves_as_well(self) -> None:
        context = ROOT.trusting()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        answer = await self.ask("GET", "/v2/", tls=context)
        self.assertEqual(answer.status, 200)

    async def test_http_is_answered_with_a_hint(self) -> None:
        answer = await request(self.served.port, "GET", "/v2/")
        self.assertEqual(answer.status, 400)
        self.assertIn(b"this port speaks HTTPS: use https://", answer.body)

    async def test_metrics_tell_when_the_certificate_expires(self) -> None:
        metrics = (await self.ask("GET", "/metrics")).body.decode()
        until = SHOWN.certificate.not_valid_after_utc.timestamp()
        values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[:1] != "#")
        listener = 'listener="artifactd-tls:0:interface=127.0.0.1"'
        expiry = f"artifactd_tls_certificate_expiry_timestamp_seconds{{{listener}}}"
        self.assertEqual(float(values[expiry]), until)
        self.assertEqual(values[f"artifactd_tls_reload_failing{{{listener}}}"], "0.0")


class StartTests(TestCase):
    def assert_refused(self, listen: str, words: str) -> None:
        settings = Settings.load(
            None, {"ARTIFACTD_LISTEN": listen, "ARTIFACTD_DATA": self.mktemp()}
        )
        with self.assertRaises(StartError) as caught:
            RegistryService(settings, reactor).start()
        self.assertEqual(str(caught.exception), f"listen: {listen}: {words}")

    def test_a_file_that_cannot_be_used_stops_the_start_and_is_named(self) -> None:
        here = Files(self)
        here.write(SHOWN)
        here.key.write_bytes(ROOT.sign("other").key_pem)
        self.assert_refused(
            f"artifactd-tls:0:interface=127.0.0.1:key={here.key}:cert={here.cert}",
            f"the key {here.key} is not that of the certificate {here.cert}",
        )

    def test_a_string_that_is_wrong_stops_the_start(self) -> None:
        self.assert_refused(
            "artifactd-tls:0", "cert= is missing: the certificate, with the intermediate ones"
        )
