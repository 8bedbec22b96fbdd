"""An upstream that behaves as Docker Hub does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Self

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.trial.unittest import TestCase
from twisted.web.server import Request

from artifactd.oci.names import Digest
from tests.programs import reactor
from tests.upstreams.answers import RegistryAnswers
from tests.upstreams.backing import Backing, Bytes, Content
from tests.upstreams.cdn import Cdn
from tests.upstreams.faulty import Faults, Withhold
from tests.upstreams.images import Images
from tests.upstreams.reply import Reply
from tests.upstreams.requests import Asked, Requests, Role
from tests.upstreams.sending import send
from tests.upstreams.serving import Handler, Server
from tests.upstreams.tokens import Token, Tokens, challenge, granted, pull_scope

_SERVICE = "registry.docker.io"


class Hub:
    """
    A registry with its token server, and on another address the CDN that it redirects blobs to.

    All images are public.  A name that does not exist is answered 401 in spite of a token, and so
    is one that is ``private`` without a login.  It ends with the test.

    :ivar backing: what it serves.
    :ivar faults: what is to go wrong; challenges (401) are never faulty.
    :ivar tokens: those given out, and who may log in.
    :ivar realm: where it says that tokens are to be had; ``elsewhere`` is on a host of its own.
    :ivar private: the names for which one has to log in.
    :ivar readers: of private names, the users that may have them; all, where a name is not in it.
    :ivar beside: whether it redirects blobs to storage on its own host instead of the CDN.
    :ivar challenges: whether it wants tokens at all.
    :ivar answers: how it answers: pages, pulls left, redirects.
    """

    def __init__(self, backing: Backing, clock: IReactorTime) -> None:
        self.backing = backing
        self.faults = Faults()
        self.tokens = Tokens(clock)
        self.private: set[str] = set()
        self.readers: dict[str, set[str]] = {}
        self.challenges = True
        self.beside = False
        self._asked = Requests()
        self._registry = Server(reactor, "127.0.0.1", self._handler("registry"))
        self._blobs = Server(reactor, "127.0.0.2", self._handler("cdn"))
        self._auth = Server(reactor, "127.0.0.3", self._handler("token"))
        self._cdn = Cdn(clock)
        self.answers = RegistryAnswers(backing, self._redirect)
        self.resume()
        self.realm = f"{self.url}/token"

    @classmethod
    def start(
        cls, test: TestCase, backing: Backing | None = None, clock: IReactorTime = reactor
    ) -> Self:
        """
        Start one on free ports.

        :param backing: what it serves; if not given :class:`Images`, none at first.
        :param clock: says when tokens and signatures have expired.
        """
        self = cls(backing or Images(), clock)
        test.addCleanup(self.close)
        return self

    def resume(self) -> None:
        """Listen again, at the same addresses, after :meth:`stop`."""
        for server in (self._registry, self._blobs, self._auth):
            server.start()

    async def stop(self) -> None:
        """Be gone: connections are cut, and new ones refused."""
        for server in (self._registry, self._blobs, self._auth):
            await server.stop()

    async def close(self) -> None:
        """Be gone for ever."""
        for server in (self._registry, self._blobs, self._auth):
            await server.close()

    @property
    def images(self) -> Images:
        """What it serves, where that is in memory."""
        assert isinstance(self.backing, Images)
        return self.backing

    @property
    def host(self) -> str:
        """``host:port`` of the registry; that of the CDN is another host."""
        return self._registry.host

    @property
    def cdn_host(self) -> str:
        return self._blobs.host

    @property
    def url(self) -> str:
        """Of the registry, as settings have it."""
        return f"http://{self.host}"

    @property
    def elsewhere(self) -> str:
        """A realm that is on another host than the registry."""
        return f"http://{self._auth.host}/token"

    # -- What it was asked

    @property
    def requests(self) -> Sequence[Asked]:
        """All requests, to any of its hosts, in order."""
        return self._asked.matching()

    @property
    def bytes_sent(self) -> int:
        """Bytes of all bodies."""
        return sum(asked.sent for asked in self.requests)

    def asked(self, method: str = "*", pattern: str = "*") -> list[Asked]:
        """The requests of that method (``*``: any) whose path is matched by ``pattern``."""
        return self._asked.matching(method, pattern)

    def count(self, method: str = "*", pattern: str = "*") -> int:
        """How many :meth:`asked` are."""
        return len(self.asked(method, pattern))

    def coming(self, method: str, pattern: str, times: int = 1) -> Deferred[Asked]:
        """Fires once there have been so many of these requests, with the last of them."""
        return self._asked.coming(method, pattern, times)

    def forget_requests(self) -> None:
        """Count from now on."""
        self._asked.clear()

    def withhold(self, pattern: str, at: int) -> Withhold:
        """Let no body of that path go beyond offset ``at``, until that is released."""
        held = Withhold(at)
        self.faults.add(held, on=pattern, times=None)
        return held

    # -- What it answers

    def _handler(self, role: Role) -> Handler:
        async def handle(request: Request) -> None:
            asked = Asked.read(role, request)
            self._asked.add(asked)
            reply = await self._reply(asked)
            await reply.resolve(asked.headers)
            asked.status = reply.status
            await send(request, reply, asked.wrote)

        return handle

    async def _reply(self, asked: Asked) -> Reply:
        reply = Reply(asked.uri)
        if asked.role == "cdn" or asked.path.startswith("/data/"):
            self._cdn.answer(asked, reply)
        elif asked.path == "/token":
            self._give_token(asked, reply)
        elif asked.role == "token":
            reply.fail(404, "UNSUPPORTED", "this is the token server")
        elif not await self._admitted(asked, reply):
            return reply
        else:
            await self.answers.answer(asked, reply)
        for fault in self.faults.take(asked.method, asked.path):
            fault.change(reply)
        if reply.expired:
            self.tokens.forget()
            reply = Reply(asked.uri)
            await self._admitted(asked, reply)
        return reply

    async def _admitted(self, asked: Asked, reply: Reply) -> bool:
        """Whether its token is good; if not, ``reply`` is the challenge."""
        name = self.answers.image_of(asked.path)
        if not self.challenges:
            return True
        token = self.tokens.good(asked.headers.get("authorization"))
        if token is not None and (name is None or await self._granted(token, name)):
            return True
        error = None
        if "authorization" in asked.headers:
            error = "insufficient_scope" if token else "invalid_token"
        scope = None if name is None else pull_scope(name)
        reply.fail(401, "UNAUTHORIZED", "authentication required")
        reply.headers["WWW-Authenticate"] = challenge(self.realm, _SERVICE, scope, error)
        reply.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        return False

    async def _granted(self, token: Token, name: str) -> bool:
        if token.user is not None and token.user not in self.readers.get(name, {token.user}):
            return False
        return granted(token, name, self.private) and await self.backing.knows(name)

    def _give_token(self, asked: Asked, reply: Reply) -> None:
        try:
            user = self.tokens.user(asked.headers.get("authorization"))
        except PermissionError:
            reply.fail(401, "UNAUTHORIZED", "incorrect username or password")
            return
        token = self.tokens.give(asked.query.get("scope", []), user)
        reply.headers["Content-Type"] = "application/json"
        reply.content = Bytes(json.dumps(token).encode())

    def _redirect(self, digest: Digest, content: Content) -> str:
        signed = self._cdn.sign(digest, content)
        return signed if self.beside else f"http://{self.cdn_host}{signed}"
