"""A certificate that is replaced while the daemon runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from cryptography import x509
from OpenSSL.crypto import X509
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.start import StartError
from artifactd.tls.certificates import LOOK_EVERY, Certificates
from artifactd.tls.files import TlsFiles
from tests.tls.authority import DAY, ROOT, Signed
from tests.tls.case import Files, logged

_P = ParamSpec("_P")
_T = TypeVar("_T")

LISTENER = "artifactd-tls:5443"
START = datetime(2030, 1, 1, tzinfo=UTC)
FIRST = ROOT.sign("first", begin=START)
SECOND = ROOT.sign("second", begin=START)
UNTIL = "valid until 2030-04-01 00:00:00 UTC"


class CertificatesCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.now = START + DAY
        self.here = Files(self)
        self.here.write(FIRST)
        self.read: Callable[[Callable[[], Any]], Deferred[Any]] = maybeDeferred
        self.certificates = self.make(self.here.files)

    def make(self, files: TlsFiles) -> Certificates:
        return Certificates(
            files,
            LISTENER,
            False,
            self.clock,
            self.in_thread,
            self.wall_clock,
        )

    def in_thread(
        self, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        return self.read(partial(work, *args, **kwargs))

    def wall_clock(self) -> float:
        return self.now.timestamp()

    def begin(self) -> None:
        self.certificates.load()
        self.certificates.start()
        self.addCleanup(self.certificates.stop)

    def shown(self) -> x509.Certificate:
        """Return the certificate that a new connection would send."""
        connection = self.certificates.serverConnectionForTLS(cast(TLSMemoryBIOProtocol, None))
        certificate = connection.get_certificate()
        assert isinstance(certificate, X509)
        return certificate.to_cryptography()

    def assert_shows(self, signed: Signed) -> None:
        self.assertEqual(self.shown().subject, signed.certificate.subject)

    def look(self) -> list[str]:
        """Return the log lines of the next look."""
        with logged() as lines:
            self.clock.advance(LOOK_EVERY)
        return lines


class ReloadTests(CertificatesCase):
    def test_what_is_replaced_is_shown_from_then_on(self) -> None:
        with logged() as lines:
            self.begin()
        self.assertEqual(lines, [f"{LISTENER}: certificate of CN=first, {UNTIL}"])
        self.assertEqual(self.look(), [])
        self.assert_shows(FIRST)
        self.here.write(SECOND)
        self.assertEqual(self.look(), [f"{LISTENER}: certificate of CN=second, {UNTIL}"])
        self.assert_shows(SECOND)
        self.assertEqual(self.look(), [])

    def test_a_key_that_comes_before_its_certificate_changes_nothing(self) -> None:
        self.begin()
        self.here.key.write_bytes(SECOND.key_pem)
        self.assertEqual(self.look(), [])
        self.assert_shows(FIRST)
        self.here.cert.write_bytes(SECOND.pem)
        self.assertEqual(self.look(), [f"{LISTENER}: certificate of CN=second, {UNTIL}"])
        self.assert_shows(SECOND)

    def test_a_certificate_that_comes_before_its_key_changes_nothing(self) -> None:
        self.begin()
        self.here.cert.write_bytes(SECOND.pem)
        self.assertEqual(self.look(), [])
        self.assert_shows(FIRST)
        self.here.key.write_bytes(SECOND.key_pem)
        self.look()
        self.assert_shows(SECOND)

    def test_a_key_without_its_certificate_is_told_once(self) -> None:
        self.begin()
        self.here.key.write_bytes(SECOND.key_pem)
        lines = [line for _ in range(5) for line in self.look()]
        self.assertEqual(
            lines,
            [
                f"{LISTENER}: the certificate in use stays, the new files can't be used: "
                f"the key {self.here.key} is not that of the certificate {self.here.cert}"
            ],
        )
        self.assertTrue(self.certificates.failing)
        self.assert_shows(FIRST)

    def test_another_reason_is_told_too(self) -> None:
        self.begin()
        self.here.cert.write_bytes(b"-----BEGIN CERTIFICATE-----")
        first = [line for _ in range(3) for line in self.look()]
        self.here.cert.unlink()
        second = [line for _ in range(3) for line in self.look()]
        self.assertEqual(len(first), 1)
        self.assertIn("has a broken certificate in it", first[0])
        self.assertEqual(len(second), 1)
        self.assertIn("can't be read: No such file or directory", second[0])

    def test_what_comes_back_as_it_was_is_no_failure_any_more(self) -> None:
        self.begin()
        aside = self.here.cert.with_suffix(".aside")
        self.here.cert.rename(aside)
        self.look()
        self.assertTrue(self.certificates.failing)
        aside.rename(self.here.cert)
        self.look()
        self.assertFalse(self.certificates.failing)
        self.assert_shows(FIRST)

    def test_a_link_that_is_put_in_place_of_another_is_followed(self) -> None:
        """Kubernetes does so with the secrets that it mounts."""
        folder = Path(self.mktemp())
        folder.mkdir()
        for name, signed in (("..1", FIRST), ("..2", SECOND)):
            (folder / name).mkdir()
            (folder / name / "tls.key").write_bytes(signed.key_pem)
            (folder / name / "tls.crt").write_bytes(signed.pem)
        (folder / "..data").symlink_to("..1")
        for name in ("tls.key", "tls.crt"):
            (folder / name).symlink_to(f"..data/{name}")
        self.certificates = self.make(TlsFiles(folder / "tls.key", folder / "tls.crt"))
        self.begin()
        self.assert_shows(FIRST)
        (folder / "..data_tmp").symlink_to("..2")
        os.replace(folder / "..data_tmp", folder / "..data")
        self.look()
        self.assert_shows(SECOND)

    def test_files_that_change_while_they_are_read_are_read_again(self) -> None:
        self.begin()
        self.here.write(SECOND)

        def read_late(work: Callable[[], Any]) -> Deferred[Any]:
            self.read = maybeDeferred
            done = maybeDeferred(work)
            self.here.write(FIRST)
            return done

        self.read = read_late
        self.look()
        self.assert_shows(SECOND)
        self.look()
        self.assert_shows(FIRST)

    def test_what_is_unchanged_is_not_read(self) -> None:
        self.begin()
        used = self.certificates.serverConnectionForTLS(cast(TLSMemoryBIOProtocol, None))
        self.look()
        again = self.certificates.serverConnectionForTLS(cast(TLSMemoryBIOProtocol, None))
        self.assertIs(used.get_context(), again.get_context())

    def test_one_look_is_taken_at_a_time(self) -> None:
        self.begin()
        waiting: list[Deferred[Any]] = []

        def hang(work: Callable[[], Any]) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1].addCallback(lambda _: work())

        self.read = hang
        for _ in range(5):
            self.look()
        self.assertEqual(len(waiting), 1)
        self.read = maybeDeferred
        self.here.write(SECOND)
        waiting[0].callback(None)
        self.look()
        self.assert_shows(SECOND)

    def test_looking_goes_on_whatever_happens(self) -> None:
        self.begin()
        self.read = lambda work: maybeDeferred(lambda: 1 // 0)
        self.look()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.read = maybeDeferred
        self.here.write(SECOND)
        self.look()
        self.assert_shows(SECOND)

    def test_nothing_is_left_to_do_after_the_end(self) -> None:
        self.begin()
        self.certificates.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_first_files_have_to_be_right(self) -> None:
        self.here.key.write_bytes(SECOND.key_pem)
        self.assertRaises(StartError, self.certificates.load)


class ExpiryTests(CertificatesCase):
    def load(self, life: timedelta, now: datetime) -> list[str]:
        self.here.write(ROOT.sign("server", begin=START, life=life))
        self.now = now
        with logged() as lines:
            self.begin()
        return lines[1:]

    def test_two_weeks_before_it_is_told_each_day(self) -> None:
        self.assertEqual(self.load(90 * DAY, START + 75 * DAY), [])
        self.now += DAY
        told = [f"{LISTENER}: its certificate expires at 2030-04-01 00:00:00 UTC"]
        self.assertEqual(self.look(), told)
        self.assertEqual(self.look(), [])
        self.now += DAY
        self.assertEqual(self.look(), told)

    def test_one_that_does_not_live_long_is_not_always_about_to_expire(self) -> None:
        self.assertEqual(self.load(DAY, START + 0.7 * DAY), [])
        self.now = START + 0.8 * DAY
        self.assertEqual(len(self.look()), 1)

    def test_when_it_has_expired_that_is_told_at_once(self) -> None:
        self.assertEqual(len(self.load(90 * DAY, START + 89.9 * DAY)), 1)
        self.now = START + 90 * DAY
        self.assertEqual(
            self.look(), [f"{LISTENER}: its certificate has expired at 2030-04-01 00:00:00 UTC"]
        )
        self.assertEqual(self.look(), [])

    def test_one_that_is_not_valid_yet_is_told(self) -> None:
        self.assertEqual(
            self.load(90 * DAY, START - DAY),
            [f"{LISTENER}: its certificate is not valid before 2030-01-01 00:00:00 UTC"],
        )

    def test_an_intermediate_one_may_expire_first(self) -> None:
        intermediate = ROOT.sign("authority", begin=START, life=20 * DAY, authority=True)
        self.here.write(intermediate.sign("server", begin=START), intermediate)
        self.begin()
        self.assertEqual(self.certificates.not_after, (START + 20 * DAY).timestamp())
