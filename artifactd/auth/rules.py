"""The access rules of the settings, decided on every request's path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

from attrs import frozen
from cachetools import LRUCache

from artifactd.auth.identity import Identity, Kind
from artifactd.oci.names import ImageName, Patterns
from artifactd.settings.access import Action, Claims, Subject, implied
from artifactd.settings.accounts import AccessSettings, RobotSettings
from artifactd.settings.values import Puller

Matcher = Callable[[Identity], bool]

_NOTHING: frozenset[Action] = frozenset()
_REMEMBERED = 1024  # identities


@frozen
class _Grant:
    may: frozenset[Action]
    images: Patterns
    everything: bool  # whether it is for all images there could be

    @classmethod
    def of(cls, settings: AccessSettings | RobotSettings) -> Self:
        images = settings.images
        return cls(implied(settings.may), Patterns(images), "*" in images)


@frozen
class Allowed:
    """
    A test for the images that an identity may do an action to, decided by the rules as they were
    when it was made.  It can be called in any thread.

    :ivar limit: the limit of a robot, or ``None``.
    :ivar grants: those that allow the action.
    """

    limit: Patterns | None
    grants: Sequence[Patterns]

    def __call__(self, image: ImageName) -> bool:
        name = str(image)
        if self.limit is not None and not self.limit.match(name):
            return False
        return any(grant.match(name) for grant in self.grants)

    @property
    def patterns(self) -> list[str]:
        """All such images, and perhaps more, match one of these, which have no brackets."""
        return list(dict.fromkeys(each for grant in self.grants for each in grant.wide))

    @property
    def prefixes(self) -> list[str]:
        """The prefixes of the canonical names of all such images; none begins with another."""
        shortest: list[str] = []
        for prefix in sorted(each for grant in self.grants for each in grant.prefixes):
            if not shortest or not prefix.startswith(shortest[-1]):
                shortest.append(prefix)
        return shortest


@frozen
class Judged:
    """
    How a rule fits a question.

    :ivar rule: its number in the settings, from 0.
    :ivar who: whether it is for the identity.
    :ivar may: whether it allows the action.
    :ivar images: whether it is for the image.
    """

    rule: int
    who: bool
    may: bool
    images: bool

    @property
    def grants(self) -> bool:
        """Whether the rule allows what was asked for."""
        return self.who and self.may and self.images


class AccessRules:
    """
    Decides what identities may do.  Rules only allow: what no rule allows is denied.

    A robot may do what both the rules and its own limits allow, until it expires;
    a robot that is not listed may do nothing.

    :param robots: by their names.
    :param now: seconds since the epoch (:func:`time.time`).
    """

    def __init__(
        self,
        rules: Iterable[AccessSettings],
        robots: Mapping[str, RobotSettings],
        now: Callable[[], float],
    ) -> None:
        self._rules = [
            (tuple(matcher(subject) for subject in rule.who), _Grant.of(rule)) for rule in rules
        ]
        self.take_robots(robots)
        self._now = now
        self._cache: LRUCache[Identity, tuple[_Grant, ...]] = LRUCache(_REMEMBERED)

    def take_robots(self, robots: Mapping[str, RobotSettings]) -> None:
        """Decide by the limits of these robots from now on."""
        self._limits = {
            name: (_Grant.of(robot), robot.expires.timestamp) for name, robot in robots.items()
        }

    def state(self) -> object:
        """Return another object whenever an identity may have been given or denied anything."""
        return self._limits

    def granted(self, identity: Identity, image: ImageName) -> frozenset[Action]:
        """
        The actions that ``identity`` may do to ``image``, in microseconds.  Nothing is looked up,
        so the image needn't exist.
        """
        name = str(image)
        limit, grants = self._grants_of(identity)
        if limit is not None and not limit.images.match(name):
            return _NOTHING
        allowed = _NOTHING
        for grant in grants:
            if not grant.may <= allowed and grant.images.match(name):
                allowed |= grant.may
        return allowed if limit is None else allowed & limit.may

    def limited(self, identity: Identity, action: Action, image: ImageName) -> bool:
        """Whether a robot's own limit forbids it to do ``action`` to ``image``, not the rules."""
        limit, grants = self._grants_of(identity)
        if limit is None or (action in limit.may and limit.images.match(str(image))):
            return False
        return any(action in each.may and each.images.match(str(image)) for each in grants)

    def allowed(self, identity: Identity, action: Action) -> Allowed:
        """A test for the images that ``identity`` may do ``action`` to, as :meth:`granted` says."""
        limit, grants = self._grants_of(identity)
        if limit is not None and action not in limit.may:
            return Allowed(None, ())
        permitting = [grant.images for grant in grants if action in grant.may]
        return Allowed(None if limit is None else limit.images, permitting)

    def granted_everywhere(self, identity: Identity) -> frozenset[Action]:
        """
        The actions that ``identity`` may do to every image there could be, by a rule for ``*``, and
        to the registry itself.
        """
        limit, grants = self._grants_of(identity)
        allowed = _NOTHING.union(*(grant.may for grant in grants if grant.everything))
        if limit is None:
            return allowed
        return allowed & limit.may if limit.everything else _NOTHING

    def judge(self, identity: Identity, action: Action, image: ImageName | None) -> list[Judged]:
        """
        How each rule fits, in the order of the settings: which of them grant, and what the others
        lack.  A robot's own limits come on top, see :meth:`granted` and :meth:`limited`.

        :param image: ``None``: every image there could be, see :meth:`granted_everywhere`.
        """

        def has(images: _Grant) -> bool:
            return images.everything if image is None else images.images.match(str(image))

        return [
            Judged(number, any(meant(identity) for meant in who), action in grant.may, has(grant))
            for number, (who, grant) in enumerate(self._rules)
        ]

    def _grants_of(self, identity: Identity) -> tuple[_Grant | None, tuple[_Grant, ...]]:
        """The robot's own limit, if ``identity`` is a robot, and the grants of the rules for it."""
        limit = None
        if identity.kind is Kind.ROBOT:
            limit, expires = self._limits.get(identity.name, (None, 0.0))
            if limit is None or self._now() >= expires:
                return None, ()
        grants = None if identity.claims else self._cache.get(identity)
        if grants is None:
            grants = tuple(
                grant for who, grant in self._rules if any(meant(identity) for meant in who)
            )
            if not identity.claims:  # those of each token differ, and are not in the hash
                self._cache[identity] = grants
        return limit, grants


class Uncounted:
    """
    Tells the pulls that don't count as a use of an image.

    :param pullers: of the settings.
    """

    def __init__(self, pullers: Iterable[Puller]) -> None:
        pullers = tuple(pullers)
        self._agents = Patterns(p.pattern.lower() for p in pullers if p.kind == "agent")
        self._names = {
            kind: Patterns(p.pattern for p in pullers if p.kind == kind)
            for kind in (Kind.USER, Kind.ROBOT, Kind.CERTIFICATE)
        }

    def __call__(self, identity: Identity, agent: str) -> bool:
        """:param agent: the client's ``User-Agent``; its case does not count."""
        names = self._names.get(identity.kind)
        if names is not None and names.match(identity.name):
            return True
        return self._agents.match(agent.lower())


def matcher(subject: Subject) -> Matcher:
    """A function that tells in about a microsecond whether ``subject`` means an identity."""
    match subject.kind:
        case "anonymous":
            return lambda identity: True
        case "authenticated":
            # An account at an upstream is open to everybody.
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
