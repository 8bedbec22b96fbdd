"""Settings of accounts, access rules and tokens: what is accepted and what is refused."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime

from msgspec.structs import fields

from artifactd.kit.start import StartError
from artifactd.settings.access import Action
from artifactd.settings.accounts import AuthSettings, IssuerSettings, TokenServiceSettings
from artifactd.settings.settings import Settings
from artifactd.settings.toml import read_table
from artifactd.settings.values import Expiry
from tests.settings.test_settings import SHIPPED, SettingsCase

HASH = "sha256:" + "0" * 64
BCRYPT = "$2y$05$" + "a" * 53
CI = f'[robot.ci]\nsecret_hash = "{HASH}"\n'
ROBOTS = '[auth]\nrobots_file = "/etc/artifactd/robots.toml"\n'
AUTH = '[auth]\nhtpasswd = "/etc/artifactd/htpasswd"\n'


GITLAB = '[issuer.gitlab]\nissuer = "https://gitlab.example"\naudience = ["r"]\n'


def rule(who: str = '["authenticated"]', may: str = '["pull"]', images: str = '["*"]') -> str:
    return f"[[access]]\nwho = {who}\nmay = {may}\nimages = {images}\n"


class AuthTests(SettingsCase):
    def test_by_default_there_is_no_authentication(self) -> None:
        settings = Settings()
        self.assertEqual((settings.auth, settings.access, settings.robot), (AuthSettings(), (), {}))
        self.assertFalse(settings.authentication)

    def test_groups_alone_are_none(self) -> None:
        self.assertFalse(self.load('[auth.groups]\ndev = ["alice"]').authentication)

    def test_any_account_or_rule_is_one(self) -> None:
        for toml in (AUTH + rule(), rule(), CI + rule(), ROBOTS + rule()):
            self.assertTrue(self.load(toml).authentication, toml)

    def test_groups_list_users_and_robots(self) -> None:
        settings = self.load(
            f'{AUTH}[auth.groups]\ndev = ["alice", "robot:ci", "a@b.example"]\nnone = []\n'
            + CI
            + rule('["group:dev", "group:none"]')
        )
        self.assertEqual(
            settings.auth.groups, {"dev": ("alice", "robot:ci", "a@b.example"), "none": ()}
        )

    def test_with_a_file_of_robots_rules_and_groups_may_name_robots_that_come_later(self) -> None:
        groups = '[auth.groups]\ndev = ["robot:ci"]\n'
        settings = self.load(ROBOTS + groups + rule('["robot:ci", "group:dev"]'))
        self.assertEqual(("robot:ci",), settings.auth.groups["dev"])
        with self.assertRaisesRegex(StartError, r"expected at least one \[\[access\]\]"):
            self.load(ROBOTS)

    def test_a_rule_says_who_may_do_what_to_which_images(self) -> None:
        who = '["user:alice", "issuer:gitlab", "claim:gitlab:project_path=mycorp/*&ref=main"]'
        (access,) = self.load(
            AUTH + rule(who, '["pull", "push"]', '["local/mycorp/*", "*/base"]') + GITLAB
        ).access
        self.assertEqual(access.who[0], "user:alice")
        self.assertEqual(access.may, (Action.PULL, Action.PUSH))
        self.assertEqual(access.images, ("local/mycorp/*", "*/base"))

    def test_a_robot_has_a_hash_and_may_have_limits(self) -> None:
        settings = self.load(
            f'[robot.a]\nsecret_hash = "{HASH}"\nexpires = 2027-01-31T01:00:00+01:00\n'
            f'may = ["pull"]\nimages = ["local/*"]\n[robot."b.c"]\nsecret_hash = "{BCRYPT}"\n'
            + rule()
        )
        one, other = settings.robot["a"], settings.robot["b.c"]
        self.assertEqual(one.expires.moment, datetime(2027, 1, 31, tzinfo=UTC))
        self.assertEqual((one.may, one.images), (("pull",), ("local/*",)))
        self.assertEqual((other.may, other.images), (tuple(Action), ("*",)))
        self.assertIsNone(other.expires.moment)

    def test_what_it_prints_it_reads_again(self) -> None:
        settings = self.load(
            AUTH
            + 'remember = "0"\nname_failures = 3\naddress_failures = 9\nfailure_period = "1h"\n'
            + f'[auth.groups]\n"d.v" = ["alice", "robot:ci"]\n[robot.ci]\nsecret_hash = "{HASH}"\n'
            + 'expires = 2027-01-31T00:00:00Z\nmay = ["push"]\n'
            + rule('["group:d.v", "anonymous"]', '["pull", "push"]')
            + rule()
        )
        self.assertEqual(self.load(str(settings)), settings)
        self.assertIn("[[access]]", str(settings).splitlines())

    def test_what_the_shipped_file_shows_in_comments_can_be_used(self) -> None:
        text = SHIPPED.read_text("utf-8")
        shown = re.sub(
            "^# (?=# |\\[|[a-z_]+ = )", "", text[text.index("# [[access]]") :], flags=re.MULTILINE
        )
        settings = self.load(text + "\n" + shown)
        self.assertEqual(settings.access[0].who, ("anonymous",))
        self.assertEqual(settings.robot["ci"].images, ("*",))


class RefusalTests(SettingsCase):
    def test_a_rule_says_all_three(self) -> None:
        for missing, description in (
            ("who", 'a list of "anonymous", "authenticated"'),
            ("may", 'a list of "pull"'),
            ("images", 'patterns such as "*"'),
        ):
            toml = "\n".join(line for line in rule().splitlines() if not line.startswith(missing))
            with self.assertRaisesRegex(
                StartError, rf"access\[0\]\.{missing}: expected {re.escape(description)}.* nothing$"
            ):
                self.load(toml)

    def test_what_nobody_can_be_is_refused(self) -> None:
        for who in ('["alice"]', "[]", '"anonymous"', '["user:"]', '["claim:gitlab"]'):
            self.assert_refused(
                rule(who),
                'access[0].who: expected a list of "anonymous", "authenticated", "user:<name>",'
                ' "group:<name>", "robot:<name>", "certificate:<name>", "issuer:<name>",'
                f' "upstream:<repository>/*", "claim:<issuer>:<claim>=<pattern>", got {who}',
            )

    def test_what_nobody_can_do_is_refused(self) -> None:
        for may in ('["write"]', "[]", '["*"]', '"pull"'):
            self.assert_refused(
                rule() + rule(may=may),
                'access[1].may: expected a list of "pull", "create", "push", "delete",'
                ' "administer", got ' + may,
            )

    def test_an_unknown_setting_is_named(self) -> None:
        self.assert_refused(rule() + "actions = []", "access[0].actions: no such setting")
        self.assert_refused(
            '[auth]\nhtpaswd = ""', "auth.htpaswd: no such setting; did you mean htpasswd?"
        )

    def test_a_group_must_be_there(self) -> None:
        self.assert_refused(
            rule('["group:dev"]'),
            'access[0].who: expected configured groups (there are none), got "dev"',
        )
        self.assert_refused(
            "[auth.groups]\nops = []\n" + rule('["anonymous", "group:dev"]'),
            'access[0].who: expected configured groups ("ops"), got "dev"',
        )

    def test_a_robot_must_be_there_or_one_that_its_pattern_matches(self) -> None:
        self.load(CI + rule('["robot:c*"]'))
        for name in ("cd", "d*"):
            self.assert_refused(
                CI + rule(f'["robot:{name}"]'),
                f'access[0].who: expected configured robots ("ci"), got "{name}"',
            )
        self.assert_refused(
            CI + rule() + '[auth.groups]\ndev = ["robot:cd"]',
            'auth.groups.dev: expected configured robots ("ci"), got "cd"',
        )

    def test_users_need_their_file(self) -> None:
        self.assert_refused(
            rule('["user:alice"]'),
            'access[0].who: "user:alice": expected auth.htpasswd with it',
        )

    def test_an_issuer_must_be_there(self) -> None:
        for who in ("issuer:gitlab", "claim:gitlab:ref=main"):
            self.load(rule(f'["{who}"]') + GITLAB)
            self.assert_refused(
                rule(f'["{who}"]') + GITLAB.replace("issuer.gitlab", "issuer.github"),
                'access[0].who: expected configured issuers ("github"), got "gitlab"',
            )

    def test_patterns_are_of_canonical_names(self) -> None:
        for pattern in ("mycorp/*", "local", "alpine", "ghcr.io/*"):
            problem = (
                f'images: expected patterns of canonical names ("docker.io/*", "local/*"), got'
                f' "{pattern}"'
            )
            self.assert_refused(rule(images=f'["{pattern}"]'), f"access[0].{problem}")
            self.assert_refused(CI + f'images = ["{pattern}"]\n' + rule(), f"robot.ci.{problem}")
        for pattern in ("*", "*/app", "loc*", "l*/x", "docker.io/library/*", "[dl]*/x", "loca?/x"):
            self.load(rule(images=f'["{pattern}"]'))

    def test_accounts_that_may_do_nothing_are_refused(self) -> None:
        for toml in (AUTH, CI):
            self.assert_refused(
                toml,
                "access: expected at least one [[access]]: without any nobody may do anything",
            )

    def test_a_secret_itself_is_refused_and_so_is_any_other_hash(self) -> None:
        for wrong in ("artifactd_secret", "sha256:0", "sha1:" + "0" * 40, "$2x$" + BCRYPT[4:]):
            self.assert_refused(
                f'[robot.ci]\nsecret_hash = "{wrong}"\n' + rule(),
                'robot.ci.secret_hash: expected "sha256:…" as "artifactd robot" prints it, or a'
                f' bcrypt hash ("$2b$…"), got "{wrong}"',
            )

    def test_a_robot_needs_a_secret(self) -> None:
        self.assert_refused(
            "[robot.ci]\n" + rule(),
            'robot.ci.secret_hash: expected "sha256:…" as "artifactd robot" prints it, or a bcrypt'
            ' hash ("$2b$…"), got nothing',
        )

    def test_a_robot_expires_at_a_moment(self) -> None:
        for written, got in (
            ("2027-01-31", '"2027-01-31"'),
            ("2027-01-31T00:00:00", '"2027-01-31 00:00:00"'),
            ('"tomorrow"', '"tomorrow"'),
            ('"9999-12-31T23:59:59-01:00"', '"9999-12-31T23:59:59-01:00"'),
            ("7", "7"),
        ):
            self.assert_refused(
                f"{CI}expires = {written}\n" + rule(),
                "robot.ci.expires: expected a date-time with offset such as 2027-01-31T00:00:00Z,"
                f' or "", got {got}',
            )

    def test_a_moment_is_no_other_setting(self) -> None:
        with self.assertRaisesRegex(StartError, r"access\[0\]\.images: expected patterns"):
            self.load(rule(images="[2027-01-31T00:00:00Z]"))

    def test_names_of_robots_and_groups_are_plain(self) -> None:
        for name in ('"a b"', '"a:b"', '"a/b"', '""', '"-a"', '"a+b"'):
            expected = f"expected a name of letters, digits, '.', '_' and '-', got {name}"
            self.assert_refused(
                f'[robot.{name}]\nsecret_hash = "{HASH}"\n' + rule(),
                f"robot.{name if name != chr(34) + '-a' + chr(34) else '-a'}: {expected}",
            )
            self.assert_refused(
                f"[auth.groups]\n{name} = []",
                f"auth.groups.{name if name != chr(34) + '-a' + chr(34) else '-a'}: {expected}",
            )

    def test_a_table_is_a_table(self) -> None:
        self.assert_refused("access = 3", "access: expected [[access]] tables, got 3")
        self.assert_refused("access = [3]", "access[0]: expected a table, got 3")
        self.assert_refused(
            "[access]\nwho = []", 'access: expected [[access]] tables, got {"who": []}'
        )
        self.assert_refused("auth = 3", "auth: expected a table, got 3")
        self.assert_refused("robot = 3", "robot: expected a table, got 3")
        self.assert_refused("[robot]\nci = 3", "robot.ci: expected a table, got 3")

    def test_bounds_are_told(self) -> None:
        self.assert_refused(
            "[auth]\nname_failures = 0",
            "auth.name_failures: expected a whole number from 1 to 10000, got 0",
        )
        self.assert_refused(
            '[auth]\nfailure_period = "0"', 'auth.failure_period: expected at least 1ms, got "0"'
        )

    def test_an_expiry_is_any_moment_or_none(self) -> None:
        self.assertIsNone(Expiry.parse("").moment)
        self.assertEqual(
            Expiry.parse("2027-01-31T00:00:00.5Z").moment,
            datetime(2027, 1, 31, 0, 0, 0, 500_000, UTC),
        )


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
