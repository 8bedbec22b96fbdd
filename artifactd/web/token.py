"""``/token``: registry-auth-token (GET) and registry-auth-oauth (POST)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from datetime import UTC, datetime
from typing import Final

from artifactd.auth.identity import Caller
from artifactd.auth.passwords import fits_basic
from artifactd.auth.token_service import Asked, Granted, TokenService
from artifactd.oci.errors import QueryInvalid, RegistryError, TooManyRequests, Unauthorized
from artifactd.web.answer import Answer
from artifactd.web.fields import form_fields, parameter, parameters
from artifactd.web.server.protocol import RegistryRequest

_FIELDS = 50
# RFC 6749, 5.1, asks for both.
_HEADERS: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
# RFC 9110, 15.5.2: a 401 has a challenge; a login for a token is by Basic.
_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="artifactd", charset="UTF-8"'}
_CLIENT = re.compile(r"[ -~]+")  # RFC 6749, A.1


class FormInvalid(QueryInvalid):
    """
    A form that registry-auth-oauth does not allow.

    :ivar error: the code of RFC 6749, 5.2.
    """

    def __init__(self, message: str, error: str = "invalid_request") -> None:
        super().__init__(message)
        self.error = error


async def answer_get(service: TokenService, request: RegistryRequest, caller: Caller) -> Answer:
    """
    Answer with a token for ``caller``: registry-auth-token, "Requesting a Token".

    :param caller: authenticated by Basic or by another issuer's token, or anonymous.
    :raises Unauthorized, QueryInvalid: see :meth:`TokenService.for_caller`.
    """
    asked = Asked(
        scopes=parameters(request, "scope"),
        service=parameter(request, "service") or "",
        offline=parameter(request, "offline_token") in ("true", "1"),
    )
    try:
        return _answer(await service.for_caller(caller, asked))
    except RegistryError as error:
        raise _marked(error) from None


async def answer_post(service: TokenService, request: RegistryRequest, address: str) -> Answer:
    """
    Answer with a token for the login in a form: registry-auth-oauth, "Getting a token".

    Errors have the members of RFC 6749, 5.2, beside those of the spec.  A login that fails is 401
    for Docker's sake, as with :func:`answer_get`.

    :param address: the client's address.
    :raises Unauthorized, TooManyRequests, QueryInvalid: see :class:`TokenService`.
    :raises ContentTooLarge: if the form has more than :data:`FORM_LIMIT` bytes.
    """
    try:
        form = await _read_form(request)
        return _answer(await _by_form(service, request, form, address))
    except RegistryError as error:
        marked = _marked(error)
        marked.beside |= {"error": _oauth_error(error), "error_description": error.message}
        raise marked from None


async def _by_form(
    service: TokenService, request: RegistryRequest, form: Mapping[str, str], address: str
) -> Granted:
    asked = Asked(
        scopes=[form.get("scope", "")],
        service=_required(form, "service"),
        offline=form.get("access_type") == "offline",
    )
    grant = _required(form, "grant_type")
    if not _CLIENT.fullmatch(_required(form, "client_id")):
        raise FormInvalid("client_id: expected printable ASCII characters")
    if grant == "password":
        name, password = _required(form, "username"), _required(form, "password")
        if not fits_basic(name, password):
            raise FormInvalid(
                "username, password: expected no control characters, and no ':' in the username"
            )
        request.claimed = name
        granted = await service.for_login(name, password, address, asked)
        request.claimed, request.actor = "", granted.who
        return granted
    if grant == "refresh_token":
        granted = await service.for_refresh_token(_required(form, "refresh_token"), asked)
        request.actor = granted.who
        return granted
    raise FormInvalid(
        'grant_type: expected "password" or "refresh_token"', "unsupported_grant_type"
    )


async def _read_form(request: RegistryRequest) -> Mapping[str, str]:
    """
    Read the form of ``request``.

    Several fields ``scope``, as containers/image sends them, become one: a scope holds no space.

    :raises FormInvalid: if the body is no form, or has another field twice (RFC 6749, 3.2).
    """
    try:
        pairs = await form_fields(request, _FIELDS)
    except QueryInvalid as error:
        raise FormInvalid(error.message) from None
    form = dict(pairs)
    scopes = [value for name, value in pairs if name == "scope"]
    if len(form) < len(pairs) - max(len(scopes) - 1, 0):
        raise FormInvalid("the form has a field twice")
    return {**form, "scope": " ".join(scopes)}


def _required(form: Mapping[str, str], name: str) -> str:
    value = form.get(name)
    if not value:
        raise FormInvalid(f"{name} is missing in the form")
    return value


def _answer(granted: Granted) -> Answer:
    issued = datetime.fromtimestamp(granted.issued_at, UTC)
    document = {
        "token": granted.token,
        "access_token": granted.token,
        "token_type": "Bearer",  # RFC 6749, 5.1
        "expires_in": granted.expires_in,
        "issued_at": issued.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "scope": granted.scope,
    }
    if granted.refresh_token is not None:
        document["refresh_token"] = granted.refresh_token
    return Answer.json(document, _HEADERS)


def _marked(error: RegistryError) -> RegistryError:
    """
    Return a copy of ``error`` with the header fields of a token's answer.

    A copy, since other requests with the same login may have got the same exception.
    """
    marked = copy(error)
    marked.headers = {**error.headers, **_HEADERS}
    if isinstance(error, Unauthorized):
        marked.headers |= _CHALLENGE
    marked.beside = dict(error.beside)
    return marked


def _oauth_error(error: RegistryError) -> str:
    """Return the code of RFC 6749, 5.2; for too many requests that of RFC 8628, 3.5."""
    if isinstance(error, FormInvalid):
        return error.error
    if isinstance(error, Unauthorized):
        return "invalid_grant"
    return "slow_down" if isinstance(error, TooManyRequests) else "invalid_request"
