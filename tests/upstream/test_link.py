"""``Link`` to the next page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.upstream.client import next_page

nearly = st.text(alphabet='<>;,=" \\relnxt?a&', max_size=60)


class LinkTests(TestCase):
    def assert_next(self, expected: dict[str, str] | None, *fields: str) -> None:
        self.assertEqual(expected, next_page(fields, {}), fields)

    def test_a_relative_one(self) -> None:
        self.assert_next({"n": "2", "last": "b"}, '</v2/a/tags/list?n=2&last=b>; rel="next"')

    def test_an_absolute_one_gives_its_parameters_and_nothing_else(self) -> None:
        self.assert_next({"last": "b"}, "<http://evil.example/elsewhere?last=b>; rel=next")

    def test_one_with_a_query_only(self) -> None:
        self.assert_next({"last": "b"}, '<?last=b>;rel="next"')

    def test_parameters_are_decoded(self) -> None:
        self.assert_next({"last": "a b/ü", "x": ""}, '<?last=a%20b%2F%C3%BC&x=>; rel="next"')

    def test_the_next_one_is_found_among_others(self) -> None:
        self.assert_next({"n": "3"}, '<?n=1>; rel="first", <?n=2>; rel=prev, <?n=3>; rel="next"')
        self.assert_next({"n": "3"}, '<?n=1>; rel="first"', '<?n=3>; rel="next"')

    def test_rel_is_a_list_in_any_case(self) -> None:
        self.assert_next({"n": "3"}, '<?n=3>; title="a, <b>; rel=c"; REL="Last NEXT"')

    def test_the_first_rel_counts(self) -> None:
        self.assert_next(None, '<?n=3>; rel="prev"; rel="next"')

    def test_others_are_none(self) -> None:
        for value in ("", "?n=3", '<?n=3>; rel="nextish"', "<?n=3>", '<?n=3>; title="rel=next"',
                      '</v2/a/tags/list>; rel="next"', '<http://[?n=3>; rel="next"'):  # fmt: skip
            self.assert_next(None, value)

    def test_a_page_is_not_followed_by_itself(self) -> None:
        self.assertIsNone(next_page(['<?n=2&last=b>; rel="next"'], {"last": "b", "n": "2"}))

    def test_a_page_without_parameters_is_the_first_one(self) -> None:
        self.assertIsNone(next_page(['</v2/a/tags/list>; rel="next"'], {"n": "2"}))

    @given(nearly | st.text(), st.integers(1, 4))
    def test_any_field_can_be_read(self, value: str, times: int) -> None:
        found = next_page([value * times], {})
        self.assertTrue(found is None or found)
