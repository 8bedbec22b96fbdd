"""Why no answer came, in plain words."""

from __future__ import annotations

import os

from OpenSSL import SSL
from service_identity import CertificateError
from twisted.internet import error
from twisted.internet.ssl import VerificationError
from twisted.python.failure import Failure

from artifactd.upstream.tunnel import ProxyRefused

_CAUSES: tuple[tuple[type[Exception], str], ...] = (
    (error.DNSLookupError, "its name can't be resolved"),
    (error.ConnectionRefusedError, "connection refused"),
    (error.NoRouteError, "no route to it"),
    (VerificationError, "its certificate is for another name"),
    (CertificateError, "its certificate has no valid name in it (subjectAltName)"),
    (SSL.SysCallError, "it broke off the TLS handshake"),
    (error.ConnectionAborted, "the connection was given up"),
    (error.ConnectionDone, "it closed the connection"),
    (error.ConnectionLost, "it broke off the connection"),
)


def cause(failure: Failure) -> str | None:
    """
    What went wrong between the request and the end of the headers of its answer.

    It completes a sentence about the host, and holds nothing that the peer has sent.  ``None``: it
    is no fault of the host or the network.
    """
    if failure.check(ValueError):
        return "that is not the name of a host"  # says IDNA, before anything is sent
    reasons = _reasons(failure)
    known = [words for reason in reasons if (words := _words(reason.value))]
    if known:
        return known[0]
    # What the parser raises, of whatever type, comes inside of another failure.
    return None if reasons == [failure] else "its answer is not valid HTTP/1.1"


def _reasons(failure: Failure) -> list[Failure]:
    """The failures inside of one of Twisted's that has some, else itself."""
    inner: list[Failure] = getattr(failure.value, "reasons", None) or [failure]
    return inner


def _words(problem: BaseException | None) -> str | None:
    if isinstance(problem, ProxyRefused):
        answer = "something that is not HTTP" if problem.status is None else problem.status
        return f"the proxy answers {answer} to CONNECT"
    for kind, words in _CAUSES:
        if isinstance(problem, kind):
            return words
    if isinstance(problem, SSL.Error):
        return f"TLS failed: {_tls_reason(problem)}"
    if isinstance(problem, error.ConnectError):
        return _os_reason(problem)
    return None


def _tls_reason(problem: SSL.Error) -> str:
    """OpenSSL's words for it, such as ``certificate verify failed``."""
    stack = problem.args[0] if problem.args and isinstance(problem.args[0], list) else []
    return stack[0][2] if stack else "no reason given"


def _os_reason(problem: error.ConnectError) -> str:
    number = problem.osError
    return os.strerror(number).lower() if isinstance(number, int) else "no connection"
