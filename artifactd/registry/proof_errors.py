"""Why somebody is not served who has not shown that the upstream lets him have an image."""

from __future__ import annotations

from artifactd.oci.errors import BadGateway, Denied, RegistryError, Unauthorized
from artifactd.presented import Presented


class NoProof(RegistryError):
    """What all of them are: the caller may not know whether the image is here."""


class ProofWanted(NoProof, Unauthorized):
    """
    He has to log in, or again.

    :ivar token_error: what is wrong with the token that came: RFC 6750, 3.1; empty: nothing.
    """

    token_error = ""


class ProofRefused(NoProof, Denied):
    """The upstream does not let him have it, or he has not logged in with a credential of it."""


class ProofUnavailable(NoProof, BadGateway):
    """The upstream can't be asked, and nothing that it has said before counts any more."""


def login_wanted() -> ProofWanted:
    """To somebody nobody knows; the same for all names."""
    return ProofWanted("authentication required: log in with your own credentials of the upstream")


def login_refused(presented: Presented, reason: str) -> ProofWanted:
    """The password is wrong."""
    return ProofWanted(
        f"the upstream refuses the login as {presented.user}: log in with your own credentials"
        " of the upstream",
        {"reason": reason},
    )


def token_outlived() -> ProofWanted:
    """A token that came is not enough; another one can be had by logging in."""
    error = ProofWanted(
        "nothing shows any more that the upstream lets you have this image: get another token by"
        " logging in with your own credentials of the upstream"
    )
    error.token_error = "invalid_token"
    return error


def image_refused(presented: Presented, name: str, reason: str) -> ProofRefused:
    """The upstream says so to that credential."""
    return ProofRefused(
        f"the upstream does not let {presented.user} have this image, or there is none",
        {"name": name, "reason": reason},
    )


def own_login_wanted(repository: str, name: str) -> ProofRefused:
    """To somebody who is known here, but not by a credential of that upstream."""
    return ProofRefused(
        "nobody may have this image without a login of its own at the upstream: log in here as"
        f" {repository}/<user> with the user and password that the upstream knows",
        {"name": name},
    )


def unavailable(reason: str, name: str | None = None) -> ProofUnavailable:
    """It can't be asked."""
    detail = {"reason": reason} if name is None else {"name": name, "reason": reason}
    return ProofUnavailable(
        "the upstream can't be asked whether you may have this: try again later", detail
    )
