"""Client certificates as identities."""

from __future__ import annotations

import ssl

from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.api.served import Served
from tests.process import Answer, request
from tests.tls.authority import CLIENT, OTHER, ROOT, Signed
from tests.tls.case import Files

RULES = """
[[access]]
who = ["certificate:ci"]
may = ["pull", "push"]
images = ["local/*"]

[[access]]
who = ["certificate:node-*"]
may = ["pull"]
images = ["local/app"]

[[access]]
who = ["anonymous"]
may = ["pull"]
images = ["local/public"]

[[access]]
who = ["user:alice"]
may = ["pull", "push"]
images = ["*"]
"""
LAYER = b"layer"
DIGEST = Digest.of(LAYER)


class CertificateIdentityTests(TestCase):
    def setUp(self) -> None:
        here = Files(self)
        here.write(ROOT.sign("server"))
        users = here.folder / "htpasswd"
        users.write_text("")
        self.audit = here.folder.absolute() / "audit.log"
        self.served = Served.start(
            self,
            f'audit_log = "{self.audit}"\n[auth]\nhtpasswd = "{users.absolute()}"\n{RULES}',
            listen=f"artifactd-tls:0:interface=127.0.0.1:key={here.key}:cert={here.cert}"
            f":client_ca={here.client_ca}:client_auth=optional",
        )
        self.nobody = ROOT.trusting()
        self.ci = self.who("ci")
        self.node = self.who("node-1")

    def who(self, name: str, authority: Signed = ROOT) -> ssl.SSLContext:
        shown = authority.sign(name, usage=CLIENT)
        context: ssl.SSLContext = ROOT.trusting(shown, folder=self.mktemp())
        return context

    async def ask(
        self,
        tls: ssl.SSLContext,
        method: str,
        path: str,
        body: bytes | None = None,
        **headers: str,
    ) -> Answer:
        return await request(self.served.port, method, path, body=body, headers=headers, tls=tls)

    async def push(self, tls: ssl.SSLContext, name: str = "app") -> Answer:
        return await self.ask(tls, "POST", f"/v2/{name}/blobs/uploads/?digest={DIGEST}", LAYER)

    async def pull(self, tls: ssl.SSLContext, name: str = "app") -> Answer:
        return await self.ask(tls, "GET", f"/v2/{name}/blobs/{DIGEST}")

    async def test_a_certificate_may_what_its_name_may(self) -> None:
        self.assertEqual((await self.push(self.ci)).status, 201)
        answer = await self.pull(self.node)
        self.assertEqual((answer.status, answer.body), (200, LAYER))

    async def test_a_certificate_may_no_more(self) -> None:
        self.assertEqual((await self.push(self.node)).status, 403)
        self.assertEqual((await self.push(self.ci, "other")).status, 201)
        self.assertEqual((await self.pull(self.node, "other")).status, 403)

    async def test_who_shows_one_need_not_log_in(self) -> None:
        self.assertEqual((await self.ask(self.node, "GET", "/v2/")).status, 200)
        self.assertEqual((await self.ask(self.nobody, "GET", "/v2/")).status, 401)

    async def test_a_login_of_nobody_beside_it_is_none(self) -> None:
        answer = await self.ask(self.node, "GET", "/v2/", Authorization="Basic Og==")
        self.assertEqual(answer.status, 200)

    async def test_who_shows_none_is_anonymous(self) -> None:
        self.assertEqual((await self.push(self.ci, "public")).status, 201)
        self.assertEqual((await self.push(self.ci)).status, 201)
        self.assertEqual((await self.pull(self.nobody, "public")).status, 200)
        self.assertEqual((await self.pull(self.nobody)).status, 401)

    async def test_the_name_of_a_user_on_a_certificate_is_not_the_user(self) -> None:
        self.assertEqual((await self.push(self.who("alice"))).status, 403)

    async def test_a_certificate_of_another_authority_is_nobodys_name(self) -> None:
        with self.assertRaises(OSError):
            await self.push(self.who("ci", OTHER))

    async def test_the_audit_log_has_its_name(self) -> None:
        await self.ask(self.ci, "GET", "/v2/")
        self.assertIn("certificate:ci", self.audit.read_text())
