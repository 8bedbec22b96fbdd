"""
The TLS context for clients: versions and ciphers of Mozilla's "intermediate" without DHE, HTTP/1.1
alone, and client certificates that OpenSSL verifies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey, X509StoreFlags

from artifactd.kit.start import StartError
from artifactd.tls.files import KeyPair, TlsFiles

# For TLS 1.2; of TLS 1.3 all are allowed.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

# Certificates between a client's and its root, at most.
_DEPTH = 8

# Bytes up to which the names of the authorities are sent to clients; TLS 1.2 has room for 65,535
# (RFC 5246, 7.4.4).  A client that gets no names may send any certificate.
_NAMES = 32768

# OpenSSL's errors that clients' certificates cause: X509_verify_cert_error_string(3).
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
    Make the context of ``pair``.

    :param required: whether a client has to send a certificate; a wrong one is refused in any case.
    :raises StartError: naming the file, if OpenSSL refuses its content.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    # Without sessions: the client of a resumed one would not be verified again.
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
    # An authority of client_ca may be intermediate, such as a department's.
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    if sum(len(each.subject.public_bytes()) for each in authorities) <= _NAMES:
        for each in authorities:
            context.add_client_ca(X509.from_cryptography(each))
    context.set_verify_depth(_DEPTH)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)
    context.set_verify(mode, _verify)


def _verify(connection: SSL.Connection, shown: X509, error: int, depth: int, ok: int) -> bool:
    """Accept OpenSSL's verdict, and note a refusal for the connection's log line."""
    if not ok:
        why = _ERRORS.get(error, f"X.509 error {error}")
        protocol = connection.get_app_data()
        protocol.refusal = f"the client's certificate {_named(shown)} is refused: {why}"
    return bool(ok)


def _named(certificate: X509) -> str:
    # The client has chosen the name: it must not make lines of its own in the log, or long ones.
    try:
        return ascii(certificate.to_cryptography().subject.rfc4514_string()[:100])
    except Exception:
        return "(unreadable)"


def _select(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def reason_of(error: Exception) -> str:
    """Return the last reason that OpenSSL gave."""
    first = error.args[0] if error.args else None
    if isinstance(first, list) and first:
        return str(first[-1][-1])
    return str(error) or type(error).__name__
