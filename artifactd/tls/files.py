"""The files of a listener: its key, its certificate, and the authorities of its clients."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from artifactd.kit.followed import stamp_of
from artifactd.kit.start import StartError
from artifactd.kit.trusted import Untrusted, read_trusted

_LABEL = rb"(?:[A-Z0-9]+ )*PRIVATE KEY"
_KEY = re.compile(rb"-----BEGIN (%b)-----.*?-----END \1-----" % _LABEL, re.DOTALL)


@frozen
class KeyPair:
    """
    The key and certificates of a listener.

    :ivar chain: its own certificate, then those of the authorities between it and the root.
    :ivar authorities: those that may sign clients' certificates; empty: clients aren't asked for
        certificates.
    """

    key: Any
    chain: tuple[x509.Certificate, ...]
    authorities: tuple[x509.Certificate, ...] = ()

    @property
    def not_before(self) -> datetime:
        """The time from which on all certificates of the chain are valid."""
        return max(each.not_valid_before_utc for each in self.chain)

    @property
    def not_after(self) -> datetime:
        """The time at which the first certificate of the chain expires."""
        return min(each.not_valid_after_utc for each in self.chain)


@frozen
class TlsFiles:
    """
    The paths of a listener's files, all in PEM.

    :ivar key: a private key without a passphrase; the same file as ``cert`` if that has both.
    :ivar cert: the certificate of the key, followed by the intermediate ones.
    :ivar client_ca: the authorities that clients' certificates are verified against; ``None``:
        clients aren't asked for any.
    """

    key: Path
    cert: Path
    client_ca: Path | None = None

    def stamp(self) -> object:
        """A value that changes whenever one of the files does."""
        authorities = () if self.client_ca is None else (self.client_ca,)
        return stamp_of(self.key, self.cert, *authorities)

    def read(self) -> KeyPair:
        """Read the files.  Raises StartError naming the one that can't be used, and why."""
        key = _key(self.key)
        chain = _certificates(self.cert)
        public = key.public_key()
        owners = [position for position, each in enumerate(chain) if each.public_key() == public]
        if not owners:
            raise StartError(f"the key {self.key} is not that of the certificate {self.cert}")
        if owners[0]:
            raise StartError(
                f"{self.cert}: the certificate of the key {self.key} has to be the first in it"
            )
        return KeyPair(key, chain, () if self.client_ca is None else _certificates(self.client_ca))


def _read(path: Path) -> bytes:
    try:
        return read_trusted(path)
    except OSError as error:
        raise StartError(f"{path} can't be read: {error.strerror}") from None
    except Untrusted as error:
        raise StartError(f"{path}: {error}") from None


def _key(path: Path) -> Any:
    found = _KEY.search(_read(path))
    if found is None:
        raise StartError(f"{path} has no private key in it (PEM is needed)")
    try:
        return load_pem_private_key(found[0], None)
    except TypeError:
        raise StartError(f"{path}: the key has a passphrase; one without is needed") from None
    except (ValueError, UnsupportedAlgorithm):
        # OpenSSL's own words would not help anyone.
        raise StartError(f"{path} has a broken private key in it") from None


def _certificates(path: Path) -> tuple[x509.Certificate, ...]:
    content = _read(path)
    begun = content.count(b"-----BEGIN CERTIFICATE-----")
    if not begun:
        raise StartError(f"{path} has no certificate in it (PEM is needed)")
    try:
        certificates = tuple(x509.load_pem_x509_certificates(content))
        for each in certificates:
            each.public_key()
        if len(certificates) != begun:
            raise ValueError("cut off")  # as when it is just being written
    except (ValueError, UnsupportedAlgorithm):
        raise StartError(f"{path} has a broken certificate in it") from None
    return certificates
