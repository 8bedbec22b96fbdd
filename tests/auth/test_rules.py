"""What the access rules allow."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.identity import ANONYMOUS, Identity, Kind
from artifactd.auth.rules import AccessRules, matcher
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action, Subject, implied
from artifactd.settings.accounts import AccessSettings, RobotSettings, SecretHash
from artifactd.settings.values import Expiry, Pattern

PULL, CREATE, PUSH, DELETE, ADMINISTER = Action
APP = ImageName("local", "mycorp/app")
HUB = ImageName("docker.io", "library/alpine")
ALICE = Identity(Kind.USER, "alice", frozenset({"dev"}))
BOB = Identity(Kind.USER, "bob")
CI = Identity(Kind.ROBOT, "ci")


def rule(who: str, may: tuple[Action, ...], *images: str) -> AccessSettings:
    return AccessSettings(who=(Subject.parse(who),), may=may, images=tuple(map(Pattern, images)))


def limit(may: tuple[Action, ...], *images: str, expires: str = "") -> RobotSettings:
    return RobotSettings(
        secret_hash=SecretHash(""),
        may=may,
        images=tuple(map(Pattern, images)),
        expires=Expiry(expires),
    )


def rules(*given: AccessSettings, now: float = 0.0, **robots: RobotSettings) -> AccessRules:
    return AccessRules(given, robots, lambda: now)


class RulesTests(SynchronousTestCase):
    def assert_granted(
        self, rules: AccessRules, identity: Identity, image: ImageName, *actions: Action
    ) -> None:
        self.assertEqual(rules.granted(identity, image), implied(actions))

    def test_without_a_rule_nobody_may_do_anything(self) -> None:
        for identity in (ANONYMOUS, ALICE, CI):
            self.assert_granted(rules(), identity, APP)
            self.assertEqual(rules().granted_everywhere(identity), set())

    def test_a_rule_is_for_whom_it_names_and_for_images_like_its_patterns(self) -> None:
        access = rules(rule("user:alice", (PULL, PUSH), "local/mycorp/*"))
        self.assert_granted(access, ALICE, APP, PULL, PUSH)
        self.assert_granted(access, ALICE, HUB)
        self.assert_granted(access, ALICE, ImageName("local", "mycorporation"))
        self.assert_granted(access, BOB, APP)
        self.assert_granted(access, ANONYMOUS, APP)

    def test_what_several_rules_allow_adds_up_in_any_order(self) -> None:
        some = (
            rule("anonymous", (PULL,), "docker.io/*"),
            rule("group:dev", (PULL, PUSH), "local/*"),
            rule("user:alice", (DELETE,), "*/mycorp/*"),
        )
        for order in (some, some[::-1]):
            access = rules(*order)
            self.assert_granted(access, ALICE, APP, PULL, PUSH, DELETE)
            self.assert_granted(access, ALICE, HUB, PULL)
            self.assert_granted(access, BOB, APP)
            self.assert_granted(access, BOB, HUB, PULL)
            self.assert_granted(access, ANONYMOUS, HUB, PULL)

    def test_the_rules_that_grant_are_told_from_those_that_lack_one_thing(self) -> None:
        access = rules(
            rule("user:alice", (PULL,), "local/mycorp/*"),
            rule("user:bob", (PULL,), "local/mycorp/*"),
            rule("user:alice", (PUSH,), "local/mycorp/*"),
            rule("group:dev", (PULL,), "docker.io/*"),
            rule("anonymous", (PULL, PUSH), "*"),
        )
        judged = access.judge(ALICE, PULL, APP)
        self.assertEqual([0, 4], [each.rule for each in judged if each.grants])
        self.assertEqual(
            [(False, True, True), (True, False, True), (True, True, False)],
            [(each.who, each.may, each.images) for each in judged[1:4]],
        )
        self.assertEqual([4], [e.rule for e in access.judge(ALICE, PULL, None) if e.grants])

    @given(
        st.lists(
            st.builds(
                rule,
                st.sampled_from(("anonymous", "authenticated", "user:a*", "group:dev", "robot:ci")),
                st.lists(st.sampled_from(Action), min_size=1).map(tuple),
                st.sampled_from(("*", "local/*", "docker.io/*", "local/mycorp/app")),
            )
        ),
        st.sampled_from((ANONYMOUS, ALICE, BOB, CI)),
        st.sampled_from(Action),
        st.sampled_from((APP, HUB)),
    )
    def test_what_is_told_is_what_the_gate_decides(
        self, given: list[AccessSettings], identity: Identity, action: Action, image: ImageName
    ) -> None:
        access = rules(*given, ci=limit(tuple(Action), "*"))
        told = [each.grants for each in access.judge(identity, action, image)]
        self.assertEqual(action in access.granted(identity, image), any(told))
        told = [each.grants for each in access.judge(identity, action, None)]
        self.assertEqual(action in access.granted_everywhere(identity), any(told))

    def test_no_action_implies_another_but_push_to_create(self) -> None:
        for action in Action:
            granted = rules(rule("anonymous", (action,), "*")).granted(BOB, APP)
            self.assertEqual(granted, {PUSH, CREATE} if action is PUSH else {action})

    def test_a_robot_that_is_limited_to_create_may_not_push_what_is_there(self) -> None:
        access = rules(rule("robot:ci", (PUSH,), "*"), ci=limit((PULL, CREATE), "*"))
        self.assertEqual(access.granted(CI, APP), {CREATE})
        self.assertTrue(access.limited(CI, PUSH, APP))
        self.assertFalse(access.limited(CI, CREATE, APP))

    def test_everywhere_is_what_a_rule_for_all_images_says(self) -> None:
        access = rules(
            rule("user:alice", (ADMINISTER,), "x", "*"), rule("user:bob", (ADMINISTER,), "local/*")
        )
        self.assertEqual(access.granted_everywhere(ALICE), {ADMINISTER})
        self.assertEqual(access.granted_everywhere(BOB), set())

    def test_any_is_what_some_rule_says_of_some_images(self) -> None:
        access = rules(rule("user:bob", (PULL,), "local/x"), rule("group:dev", (PUSH,), "*"))
        self.assertTrue(access.allowed(BOB, PULL).grants)
        self.assertFalse(access.allowed(BOB, PUSH).grants)
        self.assertFalse(access.allowed(ALICE, PULL).grants)
        self.assertFalse(access.allowed(ANONYMOUS, PULL).grants)

    def test_groups_tell_identities_of_one_name_apart(self) -> None:
        access = rules(rule("group:dev", (PULL,), "*"))
        self.assert_granted(access, ALICE, APP, PULL)
        self.assert_granted(access, Identity(Kind.USER, "alice"), APP)

    def test_claims_tell_tokens_of_one_subject_apart(self) -> None:
        access = rules(rule("claim:gitlab:ref=main", (PUSH,), "*"))
        for ref, actions in (("main", (PUSH,)), ("topic", ()), ("main", (PUSH,))):
            job = Identity(Kind.ISSUER, "gitlab/1", claims={"ref": ref})
            self.assert_granted(access, job, APP, *actions)

    def test_tokens_of_one_subject_are_not_remembered_since_they_would_all_collide(self) -> None:
        access = AccessRules([rule("issuer:gitlab", (PULL,), "*")], {}, lambda: 0.0)
        job = Identity(Kind.ISSUER, "gitlab/1", claims={"job": "7"})
        self.assert_granted(access, job, APP, PULL)
        self.assertEqual(len(access._cache), 0)

    def test_whoever_asks_it_remembers_few(self) -> None:
        access = AccessRules([rule("user:*", (PULL,), "*")], {}, lambda: 0.0)
        for number in range(3000):
            self.assert_granted(access, Identity(Kind.USER, f"u{number}"), APP, PULL)
        self.assertLessEqual(len(access._cache), 1024)
        self.assert_granted(access, Identity(Kind.USER, "u0"), APP, PULL)

    @given(st.sampled_from([ALICE, BOB, CI, ANONYMOUS]), st.permutations(list(Action)))
    def test_more_rules_never_allow_less(self, who: Identity, actions: list[Action]) -> None:
        some = [rule("anonymous", (action,), "local/*") for action in actions]
        robot = limit((PULL, PUSH), "*")
        before: frozenset[Action] = frozenset()
        for count in range(len(some) + 1):
            now = rules(*some[:count], ci=robot).granted(who, APP)
            self.assertLessEqual(before, now)
            before = now


class RobotLimitTests(SynchronousTestCase):
    ALL = rule("anonymous", tuple(Action), "*")

    def granted(
        self, robot: RobotSettings, image: ImageName = APP, now: float = 0.0
    ) -> set[Action]:
        return set(rules(self.ALL, now=now, ci=robot).granted(CI, image))

    def test_a_robot_may_do_what_rules_and_its_limits_allow(self) -> None:
        robot = limit((PULL, PUSH), "local/*")
        self.assertEqual(self.granted(robot), {PULL, CREATE, PUSH})
        self.assertEqual(self.granted(robot, HUB), set())

    def test_robots_that_are_taken_later_count_from_then_on(self) -> None:
        access = rules(self.ALL, ci=limit((PULL,), "*"))
        self.assertEqual(access.granted(CI, APP), {PULL})
        before = access.state()
        self.assertIs(access.state(), before)
        access.take_robots({"ci": limit((PUSH,), "*")})
        self.assertEqual(access.granted(CI, APP), {CREATE, PUSH})
        self.assertIsNot(access.state(), before)
        access.take_robots({})
        self.assertEqual(access.granted(CI, APP), set())

    def test_limits_alone_allow_nothing(self) -> None:
        self.assertEqual(rules(ci=limit(tuple(Action), "*")).granted(CI, APP), set())

    def test_everywhere_is_limited_too(self) -> None:
        for images, actions in (("*", {PULL}), ("local/*", set[Action]())):
            access = rules(self.ALL, ci=limit((PULL,), images))
            self.assertEqual(access.granted_everywhere(CI), actions)

    def test_any_is_limited_too(self) -> None:
        access = rules(self.ALL, ci=limit((PULL,), "local/*"))
        self.assertTrue(access.allowed(CI, PULL).grants)
        self.assertFalse(access.allowed(CI, PUSH).grants)

    def test_it_is_told_apart_whether_the_rules_or_its_limits_exclude_it(self) -> None:
        robot = limit((PULL,), "local/*")
        some = rules(self.ALL, ci=robot)
        self.assertTrue(some.limited(CI, PUSH, APP))
        self.assertTrue(some.limited(CI, PULL, HUB))
        self.assertFalse(some.limited(CI, PULL, APP))
        self.assertFalse(rules(ci=robot).limited(CI, PUSH, APP))
        self.assertFalse(rules(self.ALL).limited(ALICE, PUSH, APP))

    def test_an_expired_robot_may_do_nothing_whatever_token_it_has(self) -> None:
        robot = limit(tuple(Action), "*", expires="2027-01-31T00:00:00Z")
        expires = datetime(2027, 1, 31, tzinfo=UTC).timestamp()
        self.assertEqual(self.granted(robot, now=expires - 0.001), set(Action))
        self.assertEqual(self.granted(robot, now=expires), set())

    def test_a_robot_that_is_in_the_settings_no_more_may_do_nothing(self) -> None:
        self.assertEqual(rules(self.ALL).granted(CI, APP), set())

    def test_a_users_name_is_not_limited_as_the_robots(self) -> None:
        access = rules(self.ALL, ci=limit(()))
        self.assertEqual(access.granted(Identity(Kind.USER, "ci"), APP), set(Action))


ANNE = Identity(Kind.USER, "alice", frozenset({"dev"}))
ROBOT = Identity(Kind.ROBOT, "ci")
NODE = Identity(Kind.CERTIFICATE, "node-1.example")
JOB = Identity(
    Kind.ISSUER,
    "gitlab/project_path:mycorp/app:ref_type:branch:ref:main",
    claims={"project_path": "mycorp/app", "ref": "main", "https://x.example/y": "z"},
)
EVERYBODY = (ANONYMOUS, ANNE, ROBOT, NODE, JOB)


class SubjectTests(SynchronousTestCase):
    def assert_meant(self, subject: str, *meant: Identity) -> None:
        matches = matcher(Subject.parse(subject))
        self.assertEqual([each for each in EVERYBODY if matches(each)], list(meant))

    def test_what_anonymous_may_whoever_is_logged_in_may(self) -> None:
        self.assert_meant("anonymous", *EVERYBODY)

    def test_authenticated_is_who_is_logged_in(self) -> None:
        self.assert_meant("authenticated", ANNE, ROBOT, NODE, JOB)

    def test_a_name_is_of_one_kind(self) -> None:
        self.assert_meant("user:alice", ANNE)
        self.assert_meant("robot:ci", ROBOT)
        self.assert_meant("user:ci")
        self.assert_meant("robot:alice")

    def test_names_may_be_patterns(self) -> None:
        self.assert_meant("user:*", ANNE)
        self.assert_meant("robot:c?", ROBOT)
        self.assert_meant("certificate:node-*", NODE)
        self.assert_meant("certificate:*.other")

    def test_a_pattern_has_to_match_the_whole_name(self) -> None:
        self.assert_meant("user:lice")
        self.assert_meant("certificate:node-")

    def test_groups_have_members(self) -> None:
        self.assert_meant("group:dev", ANNE)
        self.assert_meant("group:ops")

    def test_an_issuers_tokens(self) -> None:
        self.assert_meant("issuer:gitlab", JOB)
        self.assert_meant("issuer:git")

    def test_a_claim_is_compared_with_a_pattern(self) -> None:
        self.assert_meant("claim:gitlab:project_path=mycorp/*", JOB)
        self.assert_meant("claim:gitlab:project_path=other/*")
        self.assert_meant("claim:gitlab:https://x.example/y=z", JOB)

    def test_a_claim_that_is_missing_matches_nothing(self) -> None:
        self.assert_meant("claim:gitlab:environment=*")

    def test_a_claim_counts_of_its_issuer_alone(self) -> None:
        self.assert_meant("claim:github:project_path=mycorp/*")
        self.assert_meant("claim:git:project_path=mycorp/*")

    def test_several_claims_have_to_be_there_all(self) -> None:
        self.assert_meant("claim:gitlab:project_path=mycorp/*&ref=main", JOB)
        self.assert_meant("claim:gitlab:project_path=mycorp/*&ref=release")

    def test_anything_else_is_refused(self) -> None:
        for text in (
            "",
            "alice",
            "user:",
            "user",
            "user:a b",
            "user:a:b",
            "anonymous:x",
            "authenticated:",
            "claim:gitlab",
            "claim:gitlab:project_path",
            "claim:gitlab:project_path=",
            "claim:gitlab:=x",
            "claim::a=b",
            "claim:gitlab:a=b&",
            "claim:gitlab:a=b&c",
            "kind:alice",
        ):
            with self.assertRaises(ValueError, msg=text):
                Subject.parse(text)
