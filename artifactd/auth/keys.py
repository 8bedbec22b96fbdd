"""The keys that this registry signs its tokens with (ES256), and their rotation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Self

import msgspec
from attrs import define, field, frozen
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from jwt.algorithms import ECAlgorithm
from jwt.exceptions import PyJWTError
from jwt.utils import base64url_encode
from twisted.logger import Logger

from artifactd.kit.deferreds import RunInThread
from artifactd.kit.followed import Followed
from artifactd.kit.start import StartError
from artifactd.store.folder import PrivateFile

# Seconds for which another process may still sign with a key that has just been replaced.
_HAND_OVER = 60.0
# Seconds between two looks at whether another process has changed the keys.
_LOOK_EVERY = 1.0


class _Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    A key in the file.

    :ivar x, y, d: the members of a JSON Web Key (RFC 7518, 6.2); a key that no longer signs has
        lost its ``d``.
    :ivar made: the time it was made at, in seconds since 1970.
    :ivar until: the time at which the last token that it signed has expired; 0: it still signs.
    """

    x: str
    y: str
    made: float
    d: str = ""
    until: float = 0.0


class _Content(msgspec.Struct, frozen=True):
    """The file: the first key is the newest, and the one that signs."""

    keys: list[_Kept]


@frozen
class SigningKey:
    """
    The key that signs.

    :ivar kid: its id, which is its thumbprint (RFC 7638).
    :ivar made: the time it was made at, in seconds since 1970.
    """

    kid: str
    private: EllipticCurvePrivateKey = field(repr=False)
    made: float


@frozen
class _Ring:
    """The keys in the file."""

    signing: SigningKey
    verifying: Mapping[str, EllipticCurvePublicKey]
    until: Mapping[str, float]

    @classmethod
    def read(cls, content: bytes) -> Self:
        """:raises ValueError: if ``content`` was not written by this class."""
        keys = _decode(content)
        if not keys or not keys[0].d:
            raise ValueError("the file has no key that signs: remove it")
        private = None
        verifying: dict[str, EllipticCurvePublicKey] = {}
        for each in keys:
            public = {"kty": "EC", "crv": "P-256", "x": each.x, "y": each.y}
            try:
                key = ECAlgorithm.from_jwk(public)
                if each is keys[0]:
                    private = ECAlgorithm.from_jwk({**public, "d": each.d})
            except (PyJWTError, ValueError) as error:
                raise ValueError(f"the file has a broken key ({error}): remove it") from None
            assert isinstance(key, EllipticCurvePublicKey)
            verifying[thumbprint(each.x, each.y)] = key
        assert isinstance(private, EllipticCurvePrivateKey)
        until = {thumbprint(each.x, each.y): each.until for each in keys}
        signing = SigningKey(thumbprint(keys[0].x, keys[0].y), private, keys[0].made)
        return cls(signing, verifying, until)


@define(eq=False)
class Keys:
    """
    The signing keys, shared by all processes on a data folder.

    The first start makes a key; after ``rotation`` seconds a new one replaces it.  A replaced key
    verifies until the last token that it signed has expired.

    :param now: seconds since 1970.
    :param rotation: seconds after which a new key is made; 0: never.
    :param lifetime: seconds for which a token is valid at most.
    """

    file: PrivateFile
    run: RunInThread
    now: Callable[[], float]
    rotation: float
    lifetime: float
    _followed: Followed[_Ring] = field(init=False)
    _log = Logger()

    @_followed.default
    def _follow(self) -> Followed[_Ring]:
        return Followed(
            self.file.version,
            self._load,
            self.run,
            self.now,
            _LOOK_EVERY,
            refused=self._refused,
            cheap=True,
        )

    def start(self) -> None:
        """
        Read the keys, or make the first one.  Blocks.

        :raises StartError: if that fails.
        """
        try:
            self._followed.load()
        except (OSError, ValueError) as error:
            raise StartError(
                f"the keys that tokens are signed with can't be used: {error}"
            ) from None

    def rotate(self, *, forget: bool = False) -> str:
        """
        Sign with a new key from now on, and return its id.  Blocks.

        :param forget: refuse all tokens that were given before.
        :raises OSError, ValueError: if it can't be done; then nothing has changed.
        """
        ring, version = self._renew(lambda keys: [] if forget else keys)
        self._followed.put(ring, version)
        return ring.signing.kid

    async def signing(self) -> SigningKey:
        """
        Return the key to sign with; make a new one if the last one is older than the rotation.
        """
        await self._followed.look(fresh=True)
        if self._is_due(self._followed.content.signing.made):
            try:
                self._followed.put(*await self.run(self._renew, self._unless_renewed))
            except (OSError, ValueError) as error:
                self._log.error(
                    "no new key can be made; the old one still signs: {error}", error=error
                )
        return self._followed.content.signing

    async def verifying(self, kid: str, *, look: bool = False) -> EllipticCurvePublicKey | None:
        """
        Return the key of that id; ``None`` if all tokens that it signed have expired.

        :param look: check first whether another process has just dropped the key; otherwise up to a
            second passes before this process notices.
        """
        await self._followed.look(fresh=look)
        if kid not in self._followed.content.verifying:
            # Another process may have made it within this second.
            await self._followed.look(fresh=True)
        return self._key(kid)

    def holds(self, kid: str) -> bool:
        """
        Whether :meth:`verifying` would return the key of that id; ``False`` too if it would look at
        the file first.  Takes microseconds.
        """
        return self._followed.is_fresh() and self._key(kid) is not None

    def _key(self, kid: str) -> EllipticCurvePublicKey | None:
        ring = self._followed.content
        if kid not in ring.verifying or 0 < ring.until[kid] <= self.now():
            return None
        return ring.verifying[kid]

    def _refused(self, problem: str) -> None:
        self._log.error("the old keys of tokens stay in use: {error}", error=problem)

    def _load(self) -> _Ring:
        found = self.file.read()
        if found is not None:
            return _Ring.read(found[0])
        return self._renew(lambda keys: None if keys else keys)[0]

    def _is_due(self, made: float) -> bool:
        return bool(self.rotation) and self.now() - made >= self.rotation

    def _unless_renewed(self, keys: list[_Kept]) -> list[_Kept] | None:
        # Another process may have been here first.
        return keys if not keys or self._is_due(keys[0].made) else None

    def _renew(self, keep: Callable[[list[_Kept]], list[_Kept] | None]) -> tuple[_Ring, object]:
        """
        Make a new key and put it before those in the file.

        :param keep: returns the old keys to keep, or ``None`` to change nothing.
        :returns: the keys, and the version of the file.
        """

        def renewed(content: bytes | None) -> bytes | None:
            old = keep([] if content is None else _decode(content))
            if old is None:
                return None
            now = self.now()
            last = now + self.lifetime + _HAND_OVER
            retired = [_retired(each, last) for each in old]
            keys = [_new_key(now), *(each for each in retired if each.until > now)]
            return msgspec.json.encode(_Content(keys))

        content, version = self.file.update(renewed)
        return _Ring.read(content), version


def thumbprint(x: str, y: str) -> str:
    """The id of the P-256 key with these coordinates: RFC 7638, 3."""
    canonical = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    return base64url_encode(hashlib.sha256(canonical.encode()).digest()).decode()


def _decode(content: bytes) -> list[_Kept]:
    try:
        return msgspec.json.decode(content, type=_Content).keys
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"the file is damaged ({error}): remove it, and everybody logs in again"
        ) from None


def _new_key(now: float) -> _Kept:
    key = ECAlgorithm.to_jwk(generate_private_key(SECP256R1()), as_dict=True)
    return _Kept(x=key["x"], y=key["y"], d=key["d"], made=now)


def _retired(key: _Kept, until: float) -> _Kept:
    """A copy of the key without its private part, for verifying only."""
    return key if key.until else _Kept(x=key.x, y=key.y, made=key.made, until=until)
