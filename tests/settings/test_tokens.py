"""Settings of tokens: what is accepted and what is refused."""

from __future__ import annotations

import re
import tomllib

from msgspec.structs import fields

from artifactd.kit.start import StartError
from artifactd.settings.accounts import IssuerSettings, TokenServiceSettings
from artifactd.settings.settings import Settings
from artifactd.settings.toml import read_table
from tests.settings.test_settings import SHIPPED, SettingsCase

GITHUB = """\
[[access]]
who = ["issuer:github"]
may = ["pull"]
images = ["*"]

[issuer.github]
issuer = "https://token.actions.githubusercontent.com"
audience = ["https://registry.example.com"]
"""


# With none at all nobody might do anything, which is refused.
RULE = '[[access]]\nwho = ["anonymous"]\nmay = ["pull"]\nimages = ["*"]\n'


class RefusedCase(SettingsCase):
    def load(self, toml: str, **environ: str) -> Settings:
        return super().load(f"{toml}\n{RULE}", **environ)

    def refused(self, toml: str, *words: str) -> None:
        error = self.assertRaises(StartError, self.load, toml)
        for word in words:
            self.assertIn(word, str(error))


class TokenServiceSettingsTests(RefusedCase):
    def test_the_file_changes_what_it_says(self) -> None:
        settings = self.load('[token_service]\nservice = "r.example"\nlifetime = "15m"\n')
        expected = TokenServiceSettings(
            service="r.example", lifetime=settings.token_service.lifetime
        )
        self.assertEqual(settings.token_service, expected)
        self.assertEqual(settings.token_service.lifetime, 900)

    def test_no_token_lives_for_less_than_a_minute(self) -> None:
        self.refused('[token_service]\nlifetime = "59s"\n', "token_service.lifetime", "at least 1m")

    def test_a_service_can_stand_in_a_challenge(self) -> None:
        for name in ("", 'say \\"hi\\"', "a b", "a\\\\b", "ü"):
            self.refused(f'[token_service]\nservice = "{name}"\n', "token_service.service")


class IssuerSettingsTests(RefusedCase):
    def issuer(self, more: str = "", toml: str = GITHUB) -> IssuerSettings:
        return self.load(toml + more).issuer["github"]

    def test_an_issuer_has_a_url_and_an_audience(self) -> None:
        issuer = self.issuer()
        self.assertEqual(issuer.audience, ("https://registry.example.com",))
        self.assertEqual(issuer.algorithms, ("RS256", "ES256"))

    def test_the_shipped_file_has_an_example_of_every_setting(self) -> None:
        text = SHIPPED.read_text("utf-8")
        example = text[text.index("# [issuer.github]") :].split("\n\n")[0]
        document = tomllib.loads(re.sub(r"^# ?", "", example, flags=re.M))
        shown = document["issuer"]["github"]
        self.assertEqual(list(shown), [each.name for each in fields(IssuerSettings)])
        owner = 'claims = ["repository_owner=octo-org"]\n'
        self.assertEqual(read_table(IssuerSettings, shown, ""), self.issuer(owner))

    def test_required_claims_have_patterns(self) -> None:
        for claim in ("repository", "=octo", "a b=c", "a="):
            self.refused(f'{GITHUB}claims = ["{claim}"]\n', "issuer.github.claims", "octo-org")

    def test_a_rule_is_for_an_issuer_that_there_is(self) -> None:
        for subject in ("issuer:gitlab", "claim:gitlab:project_path=a/*"):
            rule = f'[[access]]\nwho = ["{subject}"]\nmay = ["pull"]\nimages = ["*"]\n'
            self.refused(GITHUB + rule, "].who", "gitlab")
            self.load(GITHUB.replace("github]", "gitlab]").replace(":github", ":gitlab") + rule)

    def test_settings_with_issuers_are_printed_and_read_again(self) -> None:
        settings = self.load(GITHUB)
        self.assertEqual(SettingsCase.load(self, str(settings)), settings)

    def test_what_is_required_is_required(self) -> None:
        self.refused('[issuer.a]\naudience = ["x"]\n', "issuer.a.issuer", "nothing")
        self.refused('[issuer.a]\nissuer = "https://x"\n', "issuer.a.audience", "nothing")
        self.refused('[issuer.a]\nissuer = "https://x"\naudience = []\n', "issuer.a.audience")

    def test_keys_come_from_one_place(self) -> None:
        both = 'jwks_file = "/keys.json"\njwks_url = "https://x/keys"\n'
        self.refused(GITHUB + both, "issuer.github.jwks_url", "jwks_file too")

    def test_nobody_on_the_way_can_change_the_keys(self) -> None:
        for url in ("http://keys.example/", "ftp://x", "keys", "https://user@x/", "http://[x"):
            self.refused(f'{GITHUB}jwks_url = "{url}"\n', "issuer.github.jwks_url", "https")
        self.refused('[issuer.a]\nissuer = "http://x"\naudience = ["x"]\n', "issuer.a.issuer")

    def test_keys_may_come_from_this_machine_in_clear(self) -> None:
        for url in ("http://localhost:8200/keys", "http://127.0.0.1/keys", "http://[::1]/keys"):
            self.assertEqual(self.issuer(f'jwks_url = "{url}"\n').jwks_url, url)

    def test_an_issuer_whose_keys_are_in_a_file_may_be_any_text(self) -> None:
        toml = GITHUB.replace("https://token.actions.githubusercontent.com", "ci")
        self.assertEqual(self.issuer('jwks_file = "/keys.json"\n', toml).issuer, "ci")

    def test_no_algorithm_rests_on_a_shared_secret_or_on_none(self) -> None:
        for name in ("HS256", "none", "None", "ES256K", "RS256 "):
            self.refused(f'{GITHUB}algorithms = ["{name}"]\n', "issuer.github.algorithms", "RS256")
        self.refused(f"{GITHUB}algorithms = []\n", "issuer.github.algorithms")

    def test_two_issuers_can_be_told_apart(self) -> None:
        twice = GITHUB + GITHUB.replace("issuer.github", "issuer.other")
        self.refused(twice, "issuer.other.issuer", "github too")
        self.refused(GITHUB.replace("issuer.github", 'issuer."a/b"'), "issuer", "a/b")
