"""A daemon behind TLS, with accounts: who may do what in the tests of real clients."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Self

import bcrypt
from attrs import frozen
from twisted.trial.unittest import TestCase

from artifactd.auth.passwords import hash_secret, make_secret
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.clients.images import image, manifest_bytes
from tests.process import Behind, Daemon
from tests.tls.authority import CLIENT, ROOT
from tests.tls.case import Files

# The image that nobody has to log in for, the one that its team has, and one that only Alice has.
PUBLIC, TEAM, PRIVATE = "public/hello", "team/hello", "private/hello"
SAYS = "hello from a layer"

_SETTINGS = """
[auth]
htpasswd = "{users}"
# Logins that are wrong on purpose all come from one address.
name_failures = 1000
address_failures = 1000

[token_service]
enabled = {tokens}

[[access]]
who = ["anonymous"]
may = ["pull"]
images = ["local/public/*"]

[[access]]
who = ["user:alice", "certificate:alices-machine"]
may = ["pull", "push", "delete"]
images = ["local/*"]

[[access]]
who = ["user:bob", "certificate:node-*"]
may = ["pull"]
images = ["local/team/*"]

[[access]]
who = ["robot:ci"]
may = ["pull", "push"]
images = ["local/*"]

[robot.ci]
secret_hash = "{robot}"
images = ["local/team/*"]
"""


@frozen
class Login:
    """A name, and what it is proved by."""

    name: str
    password: str


@frozen
class Secured:
    """
    The daemon, which the authority of the tests vouches for.

    :ivar alice: who may do everything.
    :ivar bob: who may pull what is the team's.
    :ivar robot: which may pull and push that.
    """

    daemon: Daemon
    alice: Login
    bob: Login
    robot: Login

    @classmethod
    async def start(cls, test: TestCase, *, tokens: bool) -> Self:
        """
        Start it.  Clients may show certificates of the same authority, and need not.

        :param tokens: whether it has a token service; if not, there is Basic alone.
        """
        here = Files(test)
        here.write(ROOT.sign("server"))
        folder = here.folder.absolute()
        # By characters that break what is quoted badly on the way.
        alice, bob = Login("alice", 'pass: "wörd" + &'), Login("bob", "another")
        robot = Login("robot+ci", make_secret())
        users = folder / "htpasswd"
        users.write_text("".join(_line(each) for each in (alice, bob)), "utf-8")
        toml = _SETTINGS.format(
            users=users, tokens=str(tokens).lower(), robot=hash_secret(robot.password)
        )
        pem = (f"{name}={folder / file}" for name, file in _FILES)
        behind = Behind(f":{':'.join(pem)}:client_auth=optional", ROOT.trusting())
        return cls(await Daemon.start(test, toml=toml, behind=behind), alice, bob, robot)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.daemon.port

    async def publish(self, *names: str) -> None:
        """Let Alice push tag ``1`` of an image that writes :data:`SAYS`, without a real client."""
        config, layer = image(SAYS)
        for name in names:
            for blob in (layer, config):
                path = f"/v2/{name}/blobs/uploads/?digest={Digest.of(blob)}"
                await self._push("POST", path, blob)
            await self._push("PUT", f"/v2/{name}/manifests/1", manifest_bytes(config, layer))

    async def _push(self, method: str, path: str, body: bytes) -> None:
        login = b64encode(f"{self.alice.name}:{self.alice.password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": OCI_MANIFEST}
        answer = await self.daemon.request(method, path, body, headers)
        assert answer.status == 201, answer


_FILES = (("key", "key.pem"), ("cert", "cert.pem"), ("client_ca", "ca.pem"))


def _line(login: Login) -> str:
    hashed = bcrypt.hashpw(login.password.encode(), bcrypt.gensalt(4)).decode()
    return f"{login.name}:{hashed}\n"


def client_certificate(folder: Path, name: str) -> Path:
    """
    A folder as ``--cert-dir`` names it: a certificate called ``name``, and whom to trust.

    :param folder: is made for it.
    """
    folder.mkdir(parents=True)
    shown = ROOT.sign(name, usage=CLIENT)
    (folder / "client.cert").write_bytes(shown.pem)
    (folder / "client.key").write_bytes(shown.key_pem)
    (folder / "ca.crt").write_bytes(ROOT.pem)
    return folder.absolute()


def trusted(folder: Path) -> Path:
    """A file in ``folder``, made for it, with the authority that vouches for the daemon."""
    folder.mkdir(parents=True)
    path = folder / "ca.pem"
    path.write_bytes(ROOT.pem)
    return path
