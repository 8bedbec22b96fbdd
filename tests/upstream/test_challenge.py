"""``WWW-Authenticate``."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.upstream.login import Challenge, parse_challenges

nearly = st.text(alphabet='Basicrelm="\\, \t/:', max_size=60)


class ChallengeTests(TestCase):
    """RFC 9110, 11.6.1, and what registries send."""

    def assert_parsed(self, *fields: str, to: list[tuple[str, dict[str, str]]]) -> None:
        self.assertEqual([Challenge(*one) for one in to], parse_challenges(fields))

    def test_docker_hubs(self) -> None:
        self.assert_parsed(
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
            'scope="repository:samalba/my-app:pull,push"',
            to=[
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:samalba/my-app:pull,push",
                    },
                )
            ],
        )

    def test_several_in_one_field(self) -> None:
        self.assert_parsed(
            'Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"',
            to=[
                ("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
                ("basic", {"realm": "simple"}),
            ],
        )

    def test_several_fields(self) -> None:
        self.assert_parsed(
            "Negotiate",
            'Basic realm="a"',
            to=[("negotiate", {}), ("basic", {"realm": "a"})],
        )

    def test_names_are_read_in_any_case_and_values_as_they_are(self) -> None:
        self.assert_parsed('BEARER Realm="HTTPS://A/T"', to=[("bearer", {"realm": "HTTPS://A/T"})])

    def test_a_token68_is_no_parameter(self) -> None:
        self.assert_parsed(
            'Negotiate YII=, Custom a/b==, Bearer realm="r"',
            to=[("negotiate", {}), ("custom", {}), ("bearer", {"realm": "r"})],
        )

    def test_space_where_the_grammar_lets_it_be(self) -> None:
        self.assert_parsed(
            ' , Bearer  realm = "r" ,\tservice="s", ,Basic',
            to=[("bearer", {"realm": "r", "service": "s"}), ("basic", {})],
        )

    def test_a_url_without_quotes_is_read(self) -> None:
        self.assert_parsed(
            "Bearer realm=https://a/t?x=1,service=s",
            to=[("bearer", {"realm": "https://a/t?x=1", "service": "s"})],
        )

    def test_the_first_of_two_parameters_of_a_name_counts(self) -> None:
        self.assert_parsed('Bearer realm="a",realm="b"', to=[("bearer", {"realm": "a"})])

    def test_what_follows_something_malformed_is_left_out(self) -> None:
        self.assert_parsed('Basic realm="a", @@, Bearer realm="b"', to=[("basic", {"realm": "a"})])
        self.assert_parsed('Bearer realm="never ends', to=[("bearer", {}), ("realm", {})])

    @given(st.lists(nearly | st.text(), max_size=3))
    def test_any_fields_can_be_read(self, fields: list[str]) -> None:
        for challenge in parse_challenges(fields):
            self.assertTrue(challenge.scheme)
            self.assertEqual(challenge.scheme.lower(), challenge.scheme)
