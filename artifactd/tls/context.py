"""
How TLS is spoken with clients: the protocols and ciphers of Mozilla's "intermediate" but for DHE,
HTTP/1.1 alone, and certificates of clients that OpenSSL verifies or does not let in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey, X509StoreFlags

from artifactd.kit.start import StartError
from artifactd.tls.files import KeyPair, TlsFiles

# Those of TLS 1.2; all of TLS 1.3's are good.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

# Certificates between a client's and its root, at most.
_DEPTH = 8

# Bytes of names of authorities that clients are told: RFC 5246, 7.4.4 has room for 65,535, and a
# client that is told none may show what it has.
_NAMES = 32768

# What OpenSSL's numbers mean that clients come by: X509_verify_cert_error_string(3).
_ERRORS = {
    7: "its signature is wrong",
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is signed by itself",
    19: "its root is not in client_ca",
    20: "its authority is not in client_ca, or an intermediate certificate was not sent",
    21: "its authority is not in client_ca, or an intermediate certificate was not sent",
    22: "its chain is too long",
    24: "what signed it is no authority",
    26: "it is not for clients (extended key usage)",
    79: "what signed it is no authority",
}


def make_context(files: TlsFiles, pair: KeyPair, required: bool) -> SSL.Context:
    """
    TLS as ``pair`` says.

    :param required: whether a client has to show a certificate; if not, one that shows none gets
        in, but one that shows a wrong one does not.
    :raises StartError: naming the file, if OpenSSL won't have what is in it.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    # No session is resumed: its client would not be verified again.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(
        SSL.OP_NO_COMPRESSION
        | SSL.OP_NO_TICKET
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_alpn_select_callback(_select)
    try:
        context.use_certificate(X509.from_cryptography(pair.chain[0]))
        for each in pair.chain[1:]:
            context.add_extra_chain_cert(X509.from_cryptography(each))
    except SSL.Error as error:
        raise StartError(f"{files.cert}: {reason_of(error)}") from None
    try:
        context.use_privatekey(PKey.from_cryptography_key(pair.key))
        context.check_privatekey()
    except (SSL.Error, TypeError) as error:
        raise StartError(f"{files.key}: {reason_of(error)}") from None
    if pair.authorities:
        _ask_clients(context, pair.authorities, required)
    return context


def _ask_clients(
    context: SSL.Context, authorities: Sequence[x509.Certificate], required: bool
) -> None:
    store = context.get_cert_store()
    assert store is not None
    for each in authorities:
        store.add_cert(X509.from_cryptography(each))
    # Also one that somebody else vouches for, as a company's department is given.
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    if sum(len(each.subject.public_bytes()) for each in authorities) <= _NAMES:
        for each in authorities:
            context.add_client_ca(X509.from_cryptography(each))
    context.set_verify_depth(_DEPTH)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)
    context.set_verify(mode, _verify)


def _verify(connection: SSL.Connection, shown: X509, error: int, depth: int, ok: int) -> bool:
    """OpenSSL's own verdict, noted where the connection is."""
    if not ok:
        why = _ERRORS.get(error, f"X.509 error {error}")
        protocol = connection.get_app_data()
        protocol.refusal = f"the client's certificate {_named(shown)} is refused: {why}"
    return bool(ok)


def _named(certificate: X509) -> str:
    # Whoever connects has written it: no line of its own in the log, and not a long one.
    try:
        return ascii(certificate.to_cryptography().subject.rfc4514_string()[:100])
    except Exception:
        return "(unreadable)"


def _select(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def reason_of(error: Exception) -> str:
    """What OpenSSL says, in short."""
    first = error.args[0] if error.args else None
    if isinstance(first, list) and first:
        return str(first[-1][-1])
    return str(error) or type(error).__name__
