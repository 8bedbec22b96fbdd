"""The access rules of the settings, decided on every request's path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from attrs import frozen

from artifactd.auth.identity import Identity, Kind
from artifactd.oci.names import ImageName, Patterns
from artifactd.settings.access import Action, Claims, Subject

Matcher = Callable[[Identity], bool]

_NOTHING: frozenset[Action] = frozenset()
_REMEMBERED = 1024  # identities


@frozen
class Rule:
    """One ``[[access]]``: ``who`` may do what ``may`` says to images of names like ``images``."""

    who: tuple[Subject, ...]
    may: frozenset[Action]
    images: tuple[str, ...]


@frozen
class Limit:
    """
    What a robot can't exceed, whatever the rules allow it.

    :ivar expires: in UTC; from then on it may do nothing; ``None``: never.
    """

    may: frozenset[Action]
    images: tuple[str, ...]
    expires: datetime | None = None


@frozen
class _Grant:
    may: frozenset[Action]
    images: Patterns
    everything: bool  # whether it is for all images there could be


class AccessRules:
    """
    Rules that allow: what none of them allows is denied.

    :param robots: by their names, what limits them; any other robot may do nothing.
    :param now: seconds since the epoch (:func:`time.time`), by which robots expire.
    """

    def __init__(
        self, rules: Iterable[Rule], robots: Mapping[str, Limit], now: Callable[[], float]
    ) -> None:
        self._rules = [
            (tuple(matcher(subject) for subject in rule.who), _grant(rule.may, rule.images))
            for rule in rules
        ]
        self._limits = {
            name: (_grant(limit.may, limit.images), _timestamp(limit.expires))
            for name, limit in robots.items()
        }
        self._now = now
        self._grants: dict[Identity, tuple[_Grant, ...]] = {}

    def granted(self, identity: Identity, image: ImageName) -> frozenset[Action]:
        """
        What ``identity`` may do to ``image``, in microseconds; nothing is looked up, so the image
        needn't exist.
        """
        name = str(image)
        return self._allowed(identity, lambda grant: grant.images.match(name))

    def granted_everywhere(self, identity: Identity) -> frozenset[Action]:
        """
        What ``identity`` may do to every image there could be: what a rule for ``*`` allows it.
        Whoever may administer everywhere may administer the registry itself.
        """
        return self._allowed(identity, lambda grant: grant.everything)

    def grants_any(self, identity: Identity, action: Action) -> bool:
        """
        Whether a rule allows ``identity`` to do ``action`` to some images; where a robot's limit
        is for others there may be none, though.
        """
        return action in self._allowed(identity, lambda _: True)

    def _allowed(self, identity: Identity, covers: Callable[[_Grant], bool]) -> frozenset[Action]:
        limit = None
        if identity.kind is Kind.ROBOT:
            limit, expires = self._limits.get(identity.name, (None, 0.0))
            if limit is None or self._now() >= expires or not covers(limit):
                return _NOTHING
        allowed = _NOTHING
        for grant in self._grants_of(identity):
            if not grant.may <= allowed and covers(grant):
                allowed |= grant.may
        return allowed if limit is None else allowed & limit.may

    def _grants_of(self, identity: Identity) -> tuple[_Grant, ...]:
        """Those of the rules that are for ``identity``: whoever asks, asks often."""
        if identity.claims:  # those of each token differ, and are not in the hash
            return self._find_grants(identity)
        grants = self._grants.get(identity)
        if grants is None:
            grants = self._find_grants(identity)
            if len(self._grants) >= _REMEMBERED:
                del self._grants[next(iter(self._grants))]
            self._grants[identity] = grants
        return grants

    def _find_grants(self, identity: Identity) -> tuple[_Grant, ...]:
        return tuple(grant for who, grant in self._rules if any(meant(identity) for meant in who))


def _grant(may: frozenset[Action], images: tuple[str, ...]) -> _Grant:
    return _Grant(may, Patterns(images), "*" in images)


def _timestamp(moment: datetime | None) -> float:
    return float("inf") if moment is None else moment.timestamp()


def matcher(subject: Subject) -> Matcher:
    """A function that says in about a microsecond whether an identity is ``subject``."""
    match subject.kind:
        case "anonymous":
            return lambda identity: True
        case "authenticated":
            # Anybody may have an account at an upstream.
            return lambda identity: identity.kind not in (Kind.ANONYMOUS, Kind.UPSTREAM)
        case "group":
            group = subject.name
            return lambda identity: group in identity.groups
        case "issuer":
            issuer = f"{subject.name}/"
            return lambda identity: (
                identity.kind is Kind.ISSUER and identity.name.startswith(issuer)
            )
        case "claim":
            return _claims_matcher(subject.claims)
        case kind:
            named, names = Kind(kind), Patterns((subject.name,))
            return lambda identity: identity.kind is named and names.match(identity.name)


def _claims_matcher(claims: Claims) -> Matcher:
    issuer = f"{claims.issuer}/"
    wanted = [(name, Patterns((pattern,))) for name, pattern in claims.wanted]

    def matches(identity: Identity) -> bool:
        if identity.kind is not Kind.ISSUER or not identity.name.startswith(issuer):
            return False
        had = identity.claims
        return all(name in had and patterns.match(had[name]) for name, patterns in wanted)

    return matches
