"""Answers that are no success, as errors."""

from __future__ import annotations

import msgspec

from artifactd.upstream.errors import (
    Missing,
    RangeRefused,
    Throttled,
    Unreachable,
    UpstreamError,
)
from artifactd.upstream.http import HttpResponse
from artifactd.upstream.throttle import retry_after

# Bytes of the body of an error that are read, seconds that it may take, since nobody shall wait for
# its words, and characters of its message that are passed on.
_BODY = 64 << 10
_SECONDS = 5.0
_MESSAGE = 200


class _Error(msgspec.Struct):
    message: str | None = None


class _Body(msgspec.Struct):
    """distribution-spec, "Error Codes"; Docker Hub's gateways send a bare ``message``."""

    errors: list[_Error] | None = None
    message: str | None = None


_decoder = msgspec.json.Decoder(_Body)


async def refusal(response: HttpResponse, *secrets: str) -> UpstreamError:
    """
    The error that ``response`` is, its body read to the end, if that comes soon.

    :param secrets: what was sent along: a message that repeats one of them is left out.
    """
    return error_of(response, f"answers {response.status}" + await _message(response, secrets))


def error_of(response: HttpResponse, what: str) -> UpstreamError:
    """
    The error that ``response`` is by its status; its body is somebody else's to end.

    :param what: what it does, for the reason, after the name of the host.
    """
    status, reason = response.status, f"{response.host} {what}"
    if status in (401, 403, 404, 410):
        return Missing(reason, status)
    if status == 416:
        return RangeRefused(reason, status)
    if status == 429:
        return Throttled(reason, retry_after(response))
    if status >= 500:
        return Unreachable(reason, status)
    return Unreachable(f"{reason} (unexpected status)", status)


async def _message(response: HttpResponse, secrets: tuple[str, ...]) -> str:
    """``: `` and what the body says went wrong; or nothing."""
    try:
        body = _decoder.decode(await response.read(_BODY, _SECONDS))
    except (UpstreamError, msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    message = (body.errors[0].message if body.errors else body.message) or ""
    if any(secret in message for secret in secrets):
        return ""
    printable = "".join(c for c in message if c.isprintable()).strip()[:_MESSAGE]
    return f": {printable}" if printable else ""
