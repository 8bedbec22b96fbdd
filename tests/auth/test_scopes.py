"""The grammar of scopes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.auth.tokens import Scope, parse_scopes
from artifactd.settings.access import Action


class ScopeTests(TestCase):
    def test_a_scope_is_a_type_a_name_and_actions(self) -> None:
        for text, expected in (
            ("repository:samalba/my-app:pull,push", ("samalba/my-app", ("pull", "push"))),
            ("repository(plugin):a/b:pull", ("a/b", ("pull",))),
            (
                "repository:registry.example:5000/team/app:pull",
                ("registry.example:5000/team/app", ("pull",)),
            ),
            ("repository:a:*", ("a", ("*",))),
            ("repository:a:", ("a", ())),
            ("repository:a:pull,,pull,fly", ("a", ("pull", "fly"))),
        ):
            scope = Scope.parse(text)
            assert scope is not None, text
            self.assertEqual((scope.type, scope.name, scope.actions), ("repository", *expected))

    def test_the_list_of_images_is_a_resource_of_the_registry(self) -> None:
        self.assertEqual(Scope.parse("registry:catalog:*"), Scope("registry", "catalog", ("*",)))

    def test_what_is_none_grants_nothing(self) -> None:
        for text in ("", "repository", "repository:a", ":a:pull", "Repository:a:pull", "a:b:PULL"):
            self.assertIsNone(Scope.parse(text), text)

    def test_several_may_come_in_one_text_and_in_several(self) -> None:
        scopes = list(
            parse_scopes(["repository:a:pull repository:b:push", "nonsense", "repository:a:push"])
        )
        self.assertEqual(list(map(str, scopes)), ["repository:a:pull,push", "repository:b:push"])

    def test_a_star_is_every_action_and_unknown_ones_are_none(self) -> None:
        self.assertEqual(Scope("repository", "a", ("*",)).wanted, frozenset(Action))
        self.assertEqual(Scope("repository", "a", ("fly", "delete")).wanted, {Action.DELETE})

    @settings(deadline=None)
    @given(st.lists(st.text(max_size=60), max_size=5))
    def test_any_text_is_parsed(self, texts: list[str]) -> None:
        for scope in parse_scopes(texts):
            self.assertEqual(Scope.parse(str(scope)), scope)
