"""Another issuer: a CI system with keys of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jwt
from attrs import define, field
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.auth.accounts import Now

GITHUB = "https://token.actions.githubusercontent.com"
AUDIENCE = "https://registry.example.com"

# Making one takes a while.
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk(key: Any, **more: object) -> dict[str, Any]:
    """The public part of ``key``."""
    public = key.public_key()
    algorithm: Any = OKPAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = RSAAlgorithm
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = ECAlgorithm
    document: dict[str, Any] = json.loads(algorithm.to_jwk(public))
    document.pop("key_ops", None)
    return {**document, **more}


@define
class FakeIssuer:
    """
    :ivar keys: private ones, by their ids.
    """

    now: Now
    issuer: str = GITHUB
    keys: dict[str, Any] = field(factory=lambda: {"one": RSA_KEY})

    def key_set(self) -> bytes:
        """What it publishes."""
        keys = [jwk(key, kid=kid, use="sig") for kid, key in self.keys.items()]
        return json.dumps({"keys": keys}).encode()

    def token(
        self,
        kid: str | None = "one",
        algorithm: str = "RS256",
        headers: Mapping[str, Any] | None = None,
        **claims: object,
    ) -> str:
        """One for a job, as GitHub Actions gives it; claims that are ``None`` are left out."""
        now = int(self.now.seconds)
        every = {
            "iss": self.issuer,
            "sub": "repo:octo/hello:ref:refs/heads/main",
            "aud": AUDIENCE,
            "exp": now + 300,
            "nbf": now - 60,
            "iat": now,
            "jti": "1",
            "repository": "octo/hello",
            "ref": "refs/heads/main",
            "run_attempt": 2,
            **claims,
        }
        named = {} if kid is None else {"kid": kid}
        return jwt.encode(
            {name: value for name, value in every.items() if value is not None},
            self.keys.get(kid or "", RSA_KEY),
            algorithm=algorithm,
            headers={**named, **(headers or {})},
        )


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """A fresh one."""
    return ec.generate_private_key(curve or ec.SECP256R1())


def ed_key() -> ed25519.Ed25519PrivateKey:
    """A fresh one."""
    return ed25519.Ed25519PrivateKey.generate()
