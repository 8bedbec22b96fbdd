"""Logging in to an upstream as its challenges ask for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from attrs import define, field, frozen
from twisted.logger import Logger

from artifactd.upstream.challenge import Challenge, parse_challenges
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import LoginRefused, Missing
from artifactd.upstream.target import Target
from artifactd.upstream.tokens import Token, TokenRequest, Tokens


@frozen
class Authorization:
    """
    What is sent with a request.

    :ivar value: of the header field.
    :ivar secrets: the parts of it that nobody else may read.
    :ivar who: as whom that asks, for reasons: ``as user alice``, ``anonymously``.
    :ivar token: the token that it is, if it is one.
    :ivar user: whose credentials it is, or was given for; ``None``: nobody's.
    """

    value: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    who: str
    token: Token | None = None
    user: str | None = None

    @classmethod
    def of_token(cls, token: Token) -> Authorization:
        """RFC 6750, 2.1."""
        who = f"as user {token.user}" if token.user else "anonymously"
        return cls(f"Bearer {token.text}", (token.text,), who, token, token.user)

    @classmethod
    def of_credentials(cls, credentials: Credentials) -> Authorization:
        """RFC 7617."""
        user = credentials.username
        return cls(credentials.basic(), credentials.secrets, f"as user {user}", user=user)


@define(eq=False)
class Login:
    """
    What one upstream wants to see, as far as it has told.

    :param credentials: ours, read anew each time that they are needed; may raise
        OSError and ValueError, whose text must hold nothing of them.
    :param limit: of how many images it is remembered which token they need.
    """

    disclosure: Disclosure
    credentials: Callable[[], Credentials | None]
    tokens: Tokens
    limit: int = 4096
    _wanted: OrderedDict[str, TokenRequest] = field(factory=OrderedDict, init=False)
    _basic: bool = field(default=False, init=False)

    _log = Logger()

    def known(self, image: str) -> Authorization | None:
        """
        What may be sent without having been asked for: a token that is here, or the credentials to
        an upstream that has wanted them before.

        :raises LoginRefused: if the credentials can't be read.
        """
        if wanted := self._wanted.get(image):
            token = self.tokens.kept(wanted)
            return Authorization.of_token(token) if token else None
        credentials = self._credentials() if self._basic else None
        return Authorization.of_credentials(credentials) if credentials else None

    async def answer(
        self, image: str, fields: Sequence[str], refused: Authorization | None
    ) -> Authorization:
        """
        What a 401 is answered with.

        :param fields: the ``WWW-Authenticate`` fields of the 401.
        :param refused: what was sent and did not do.
        :raises LoginRefused: if it is not to be had, or there is no other than ``refused``.
        :raises Missing, Throttled: as :meth:`Tokens.fetch`.
        """
        challenges = parse_challenges(fields)
        if wanted := self._token_request(image, challenges):
            return await self._token(image, wanted, refused)
        if any(challenge.scheme == "basic" for challenge in challenges):
            return self._from_credentials(refused)
        schemes = ", ".join(challenge.scheme for challenge in challenges)[:100]
        raise LoginRefused(
            f"{self._host} wants a login by {schemes or 'no scheme that it names'},"
            " of which none is supported",
            401,
        )

    def withheld(self, image: str) -> str:
        """
        Where the token for ``image`` was asked for without the credentials that there are: a
        sentence's end that says so, else nothing.
        """
        wanted = self._wanted.get(image)
        if wanted is None or self.disclosure.shows(wanted.realm):
            return ""
        try:
            return _withheld_from(wanted.realm) if self._credentials() else ""
        except LoginRefused:
            return ""

    def reject(self, image: str, refused: Authorization) -> None:
        """``refused`` does not do, fresh as it is: don't send it again."""
        wanted = self._wanted.pop(image, None)
        if wanted and refused.token:
            self.tokens.drop(wanted, refused.token)

    @property
    def _host(self) -> str:
        return self.disclosure.upstream.authority

    def _token_request(self, image: str, challenges: Sequence[Challenge]) -> TokenRequest | None:
        for challenge in challenges:
            realm = challenge.parameters.get("realm")
            if challenge.scheme == "bearer" and realm:
                pull = f"repository:{image}:pull" if image else ""
                scope = challenge.parameters.get("scope") or pull
                return TokenRequest(self._realm(realm), challenge.parameters.get("service"), scope)
        # Some say 401 without a challenge when a token has expired.
        return None if challenges else self._wanted.get(image)

    def _realm(self, text: str) -> Target:
        try:
            realm = Target.parse(text)
        except ValueError as error:
            raise LoginRefused(
                f"{self._host} names a realm that can't be asked: {error}", 401
            ) from None
        if not self.disclosure.asks(realm):
            raise LoginRefused(
                f"{self._host} wants a token of {realm.authority}, which is not asked without TLS",
                401,
            )
        return realm

    async def _token(
        self, image: str, wanted: TokenRequest, refused: Authorization | None
    ) -> Authorization:
        if refused and refused.token:
            self.tokens.drop(wanted, refused.token)
        token = self.tokens.kept(wanted) or await self._fetch(wanted)
        self._wanted[image] = wanted
        self._wanted.move_to_end(image)
        while len(self._wanted) > self.limit:
            self._wanted.popitem(last=False)
        return Authorization.of_token(token)

    async def _fetch(self, wanted: TokenRequest) -> Token:
        credentials = self._credentials()
        if credentials is None or self.disclosure.shows(wanted.realm):
            return await self.tokens.fetch(wanted, credentials)
        try:
            return await self.tokens.fetch(wanted, None)
        except Missing as error:
            raise LoginRefused(
                f"{error.reason} ({_withheld_from(wanted.realm)})", error.status
            ) from error

    def _from_credentials(self, refused: Authorization | None) -> Authorization:
        credentials = self._credentials()
        if credentials is None:
            raise LoginRefused(
                f"{self._host} wants a user name and a password, and none are set", 401
            )
        authorization = Authorization.of_credentials(credentials)
        if refused is not None and refused.value == authorization.value:
            raise LoginRefused(
                f"{self._host} refuses the login of user {credentials.username}", 401
            )
        self._basic = True
        return authorization

    def _credentials(self) -> Credentials | None:
        try:
            return self.credentials()
        except (OSError, ValueError) as error:
            # The reason goes to clients, whom our paths do not concern.
            self._log.error(
                "the credentials for {host} can't be read: {error}", host=self._host, error=error
            )
            raise LoginRefused(
                f"the credentials for {self._host} can't be read (the log says why)"
            ) from None


def _withheld_from(realm: Target) -> str:
    return (
        f"the credentials are not shown to {realm.authority}:"
        " list it in auth_hosts if it may have them"
    )
