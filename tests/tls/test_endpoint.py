"""The endpoint string ``artifactd-tls:``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase

import artifactd
from artifactd.kit.start import StartError
from artifactd.tls.endpoint import TlsEndpoint
from tests.programs import run
from tests.tls.authority import ROOT
from tests.tls.case import Files

CHECKOUT = Path(artifactd.__file__).parents[1]


class StringTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def parse(self, string: str) -> TlsEndpoint:
        endpoint = serverFromString(self.reactor, string)
        assert isinstance(endpoint, TlsEndpoint)
        return endpoint

    def test_all_of_it(self) -> None:
        endpoint = self.parse(
            r"artifactd-tls:5443:interface=\:\:1:backlog=7:key=k.pem:cert=c.pem:client_ca=a.pem"
            ":client_auth=optional"
        )
        self.assertEqual((endpoint.port, endpoint.interface, endpoint.backlog), (5443, "::1", 7))
        certificates = endpoint.certificates
        self.assertEqual(certificates.listener, "artifactd-tls:5443:interface=::1")
        files = certificates.files
        self.assertEqual(
            (files.key, files.cert, files.client_ca), (Path("k.pem"), Path("c.pem"), Path("a.pem"))
        )
        self.assertFalse(certificates.required)

    def test_as_little_as_there_may_be(self) -> None:
        endpoint = self.parse("artifactd-tls:5443:cert=both.pem")
        self.assertEqual((endpoint.port, endpoint.interface), (5443, ""))
        files = endpoint.certificates.files
        self.assertEqual((files.key, files.cert, files.client_ca), (files.cert, files.cert, None))

    def test_who_asks_for_certificates_requires_them_unless_it_says_otherwise(self) -> None:
        endpoint = self.parse("artifactd-tls:5443:cert=c.pem:client_ca=a.pem")
        self.assertTrue(endpoint.certificates.required)

    def test_what_is_wrong_is_told(self) -> None:
        for rest, words in (
            ("5443", "cert= is missing: the certificate, with the intermediate ones"),
            ("https:cert=c", "the port is a number up to 65535, not https"),
            ("65536:cert=c", "the port is a number up to 65535, not 65536"),
            ("5443:5444:cert=c", "expected one port, then options, got 2 ports"),
            ("cert=c", "expected one port, then options, got 0 ports"),
            ("5443:cert=c:backlog=-1", "backlog= is a number up to 65535, not -1"),
            (
                "5443:certKey=c",
                "unknown certKey=; there are interface, backlog, key, cert, client_ca, client_auth",
            ),
            (
                "5443:cert=c:client_ca=a:client_auth=maybe",
                "client_auth= is required or optional, not maybe",
            ),
            (
                "5443:cert=c:client_auth=required",
                "client_auth= needs client_ca=: the authorities of the clients",
            ),
        ):
            with self.assertRaises(ValueError) as caught:
                self.parse(f"artifactd-tls:{rest}")
            self.assertEqual(str(caught.exception), words)


class ListeningTests(SynchronousTestCase):
    def test_files_are_looked_at_while_it_listens(self) -> None:
        reactor = MemoryReactorClock()
        here = Files(self)
        here.write(ROOT.sign("server"))
        endpoint = TlsEndpoint.parse(reactor, "0", key=str(here.key), cert=str(here.cert))
        self.successResultOf(endpoint.listen(Factory()))
        (_, factory, _, _) = reactor.tcpServers[0]
        self.assertEqual(reactor.getDelayedCalls(), [])
        factory.doStart()
        self.assertEqual(len(reactor.getDelayedCalls()), 1)
        factory.doStop()
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_files_that_are_wrong_are_not_listened_with(self) -> None:
        reactor = MemoryReactorClock()
        endpoint = TlsEndpoint.parse(reactor, "0", cert="absent.pem")
        failure = self.failureResultOf(endpoint.listen(Factory()), StartError)
        self.assertEqual(
            failure.getErrorMessage(), "absent.pem can't be read: No such file or directory"
        )
        self.assertEqual(reactor.tcpServers, [])


PROGRAM = """
import sys
installed, checkout = sys.argv[1:]
sys.path[:] = [installed, *(path for path in sys.path if path != checkout)]
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactorClock
try:
    endpoint = serverFromString(MemoryReactorClock(), "artifactd-tls:5443:cert=c.pem")
except ValueError as error:
    print(error)
else:
    print(type(endpoint).__name__, sys.modules["twisted.plugins.artifactd_endpoints"].__file__)
"""


class PluginTests(TestCase):
    def setUp(self) -> None:
        self.installed = Path(self.mktemp()).absolute()
        self.plugins = self.installed / "twisted" / "plugins"
        self.plugins.mkdir(parents=True)
        self.cache = self.plugins / "dropin.cache"
        for source in (CHECKOUT / "twisted" / "plugins").glob("*.py"):
            (self.plugins / source.name).write_text(source.read_text())
        (self.installed / "artifactd").symlink_to(CHECKOUT / "artifactd")

    async def looked_for(self) -> str:
        """Look for the plugin in another process: its class, and its file."""
        arguments = (str(self.installed), str(CHECKOUT))
        return (await run(self, sys.executable, "-c", PROGRAM, *arguments)).out.strip()

    async def assert_found(self) -> None:
        found = await self.looked_for()
        self.assertEqual(found, f"TlsEndpoint {self.plugins / 'artifactd_endpoints.py'}")

    async def test_it_is_found_without_a_cache_and_with_it(self) -> None:
        await self.assert_found()
        self.assertTrue(self.cache.is_file())
        await self.assert_found()

    async def test_it_is_found_where_the_cache_cannot_be_written(self) -> None:
        self.cache.mkdir()
        await self.assert_found()

    async def test_it_is_found_beside_a_cache_of_a_version_that_did_not_have_it(self) -> None:
        module = self.plugins / "artifactd_endpoints.py"
        aside = module.rename(self.plugins / "aside")
        self.assertEqual(await self.looked_for(), "Unknown endpoint type: 'artifactd-tls'")
        aside.rename(module)
        os.utime(module, (1, 1))  # as packages have it: older than the cache
        self.assertTrue(self.cache.is_file())
        await self.assert_found()

    async def test_nothing_of_artifactd_is_imported_for_other_programs(self) -> None:
        program = (
            "import sys; from twisted.plugins import artifactd_endpoints;"
            "print([name for name in sys.modules if name.startswith('artifactd')])"
        )
        env = {"PYTHONPATH": str(CHECKOUT)}
        result = await run(self, sys.executable, "-c", program, env=env)
        self.assertEqual(result.out.strip(), "[]")
