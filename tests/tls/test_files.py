"""Files of keys and certificates, and the errors about wrong ones."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.start import StartError
from artifactd.tls.context import make_context
from artifactd.tls.files import TlsFiles
from tests.tls.authority import ROOT
from tests.tls.case import Files

SERVER = ROOT.sign("server")
INTERMEDIATE = ROOT.sign("intermediate", authority=True)


class FilesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.here = Files(self, clients=True)
        self.here.write(SERVER)

    def assert_refused(self, words: str) -> None:
        with self.assertRaises(StartError) as caught:
            make_context(self.here.files, self.here.files.read(), False)
        self.assertEqual(str(caught.exception), words)

    def test_a_chain_is_kept_in_its_order(self) -> None:
        server = INTERMEDIATE.sign("server")
        self.here.write(server, INTERMEDIATE)
        pair = self.here.files.read()
        self.assertEqual(pair.chain, (server.certificate, INTERMEDIATE.certificate))
        self.assertEqual(pair.authorities, (ROOT.certificate,))
        make_context(self.here.files, pair, True)

    def test_one_file_may_have_both(self) -> None:
        self.here.cert.write_bytes(SERVER.pem + b"and the key\n" + SERVER.key_pem)
        pair = TlsFiles(self.here.cert, self.here.cert).read()
        self.assertEqual(pair.chain, (SERVER.certificate,))
        self.assertEqual(pair.authorities, ())

    def test_a_file_that_is_not_there_is_named(self) -> None:
        for path in (self.here.key, self.here.cert, self.here.client_ca):
            path.rename(path.with_suffix(".away"))
            self.assert_refused(f"{path} can't be read: No such file or directory")
            path.with_suffix(".away").rename(path)

    def test_a_file_that_others_may_write_is_named(self) -> None:
        for path in (self.here.key, self.here.cert, self.here.client_ca):
            path.chmod(0o666)
            self.assert_refused(f"{path}: others may write it (mode 0666): chmod go-w")
            path.chmod(0o600)

    def test_a_file_without_what_it_is_for_is_named(self) -> None:
        self.here.key.write_bytes(SERVER.pem)
        self.assert_refused(f"{self.here.key} has no private key in it (PEM is needed)")
        self.here.write(SERVER)
        self.here.cert.write_bytes(SERVER.key_pem)
        self.assert_refused(f"{self.here.cert} has no certificate in it (PEM is needed)")
        self.here.write(SERVER)
        self.here.client_ca.write_bytes(b"")
        self.assert_refused(f"{self.here.client_ca} has no certificate in it (PEM is needed)")

    def test_a_file_that_is_broken_is_named(self) -> None:
        self.here.key.write_bytes(SERVER.key_pem[:40] + b"AAAA" + SERVER.key_pem[44:])
        self.assert_refused(f"{self.here.key} has a broken private key in it")
        self.here.write(SERVER)
        for path in (self.here.cert, self.here.client_ca):
            good = path.read_bytes()
            path.write_bytes(good[:60] + good[80:])
            self.assert_refused(f"{path} has a broken certificate in it")
            path.write_bytes(good[:-40])
            self.assert_refused(f"{path} has a broken certificate in it")
            path.write_bytes(good)

    def test_a_file_that_is_written_but_in_part_is_not_used(self) -> None:
        self.here.cert.write_bytes(SERVER.pem + INTERMEDIATE.pem[:-100])
        self.assert_refused(f"{self.here.cert} has a broken certificate in it")

    def test_a_passphrase_is_asked_of_nobody(self) -> None:
        self.here.key.write_bytes(SERVER.secret(b"secret"))
        self.assert_refused(f"{self.here.key}: the key has a passphrase; one without is needed")

    def test_a_key_of_another_certificate_is_told(self) -> None:
        self.here.key.write_bytes(ROOT.sign("server").key_pem)
        self.assert_refused(
            f"the key {self.here.key} is not that of the certificate {self.here.cert}"
        )

    def test_a_chain_in_the_wrong_order_is_told(self) -> None:
        self.here.cert.write_bytes(INTERMEDIATE.pem + SERVER.pem)
        self.assert_refused(
            f"{self.here.cert}: the certificate of the key {self.here.key}"
            " has to be the first in it"
        )

    def test_a_key_too_weak_for_openssl_is_told(self) -> None:
        weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
        self.here.write(ROOT.sign("server", key=weak))
        with self.assertRaises(StartError) as caught:
            make_context(self.here.files, self.here.files.read(), False)
        self.assertRegex(str(caught.exception), f"^{self.here.cert}: .*key too small$")

    def test_what_a_link_leads_to_is_looked_at(self) -> None:
        first, second = Files(self), Files(self)
        for each in (first, second):
            each.write(SERVER)
        link = self.here.folder / "..data"
        link.symlink_to(first.folder.absolute())
        files = TlsFiles(link / "key.pem", link / "cert.pem")
        before = files.stamp()
        self.assertEqual(files.stamp(), before)
        new = self.here.folder / "..new"
        new.symlink_to(second.folder.absolute())
        os.replace(new, link)
        self.assertNotEqual(files.stamp(), before)

    def test_a_file_that_may_be_read_again_has_changed(self) -> None:
        before = self.here.files.stamp()
        self.here.key.chmod(0o640)
        self.assertNotEqual(self.here.files.stamp(), before)
