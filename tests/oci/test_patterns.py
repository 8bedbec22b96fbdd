"""Patterns of names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.names import Patterns, matches

TEXTS = st.text("ab/*?[]!-.\n", max_size=8)


class PatternsTests(SynchronousTestCase):
    @given(TEXTS, st.lists(TEXTS, max_size=3))
    def test_compiled_they_match_the_same(self, name: str, patterns: list[str]) -> None:
        self.assertEqual(Patterns(patterns).match(name), matches(name, patterns))

    @given(TEXTS, TEXTS)
    def test_one_without_brackets_matches_the_same_names_and_perhaps_more(
        self, name: str, pattern: str
    ) -> None:
        (wide,) = Patterns([pattern]).wide
        self.assertNotIn("[", wide)
        if matches(name, [pattern]):
            self.assertTrue(matches(name, [wide]))
        if "[" not in pattern:
            self.assertEqual(pattern, wide)

    def test_a_star_stands_for_slashes_too_and_the_whole_name_has_to_match(self) -> None:
        patterns = Patterns(["local/mycorp/*", "docker.io/?lpine"])
        for name in ("local/mycorp/a", "local/mycorp/a/b", "docker.io/alpine"):
            self.assertTrue(patterns.match(name), name)
        for name in ("local/mycorp", "x/local/mycorp/a", "docker.io/alpine/x", "docker.io/lpine"):
            self.assertFalse(patterns.match(name), name)

    def test_no_pattern_matches_nothing(self) -> None:
        self.assertFalse(Patterns([]).match(""))
