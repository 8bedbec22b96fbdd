"""Settings of remote repositories: what is accepted, refused and printed."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from artifactd.kit.start import StartError
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import Settings
from artifactd.settings.values import Url
from tests.settings.test_settings import QUAY, SettingsCase


class RemoteCase(SettingsCase):
    def program(self, name: str) -> Path:
        """A program that can be run."""
        folder = Path(self.mktemp())
        folder.mkdir()
        path = (folder / name).absolute()
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path


class RemoteTests(RemoteCase):
    def remote(self, name: str, upstream: str, more: str = "", **environ: str) -> RemoteSettings:
        head = f'[repository."{name}"]\nkind = "remote"\nupstream = "{upstream}"\n'
        repository = self.load(head + more, **environ).repository[name]
        assert isinstance(repository, RemoteSettings)
        return repository

    def test_it_answers_for_its_own_name_and_its_upstreams_host(self) -> None:
        hosts = self.remote("ghcr.io", "https://mirror.example:8443/ghcr").hosts
        self.assertEqual(hosts, ("ghcr.io", "mirror.example:8443"))
        self.assertEqual(self.remote("quay.io", "https://quay.io").hosts, ("quay.io",))

    def test_it_may_answer_for_others_or_for_none(self) -> None:
        chosen = 'hosts = ["Docker.IO", "docker.io"]'
        self.assertEqual(self.remote("hub", "https://r.example", chosen).hosts, ("docker.io",))
        self.assertEqual(self.remote("hub", "https://r.example", "hosts = []").hosts, ())

    def test_names_of_one_component_have_a_prefix_at_docker_hub_alone(self) -> None:
        self.assertEqual(self.remote("hub", "https://registry-1.docker.io").library, "library/")
        self.assertEqual(self.remote("quay.io", "https://quay.io").library, "")

    def test_a_prefix_can_be_chosen(self) -> None:
        for prefix in ("", "library/", "docker-hub/library/"):
            chosen = f'library = "{prefix}"'
            self.assertEqual(self.remote("hub", "https://docker.io", chosen).library, prefix)

    def test_an_upstream_may_have_all_images_under_one_name(self) -> None:
        for prefix in ("", "dockerhub-proxy", "group/dependency_proxy/containers"):
            remote = self.remote("quay.io", "https://r.example", f'prefix = "{prefix}"')
            there = f"{prefix}/org/app" if prefix else "org/app"
            self.assertEqual((remote.name_there("org/app"), remote.library), (there, ""))

    def test_docker_hubs_images_under_a_prefix_are_in_its_library_too(self) -> None:
        hub = self.remote("docker.io", "https://r.example", 'prefix = "hub"')
        self.assertEqual(hub.name_there(f"{hub.library}alpine"), "hub/library/alpine")
        chosen = self.remote("docker.io", "https://r.example", 'prefix = "hub"\nlibrary = ""')
        self.assertEqual(chosen.library, "")

    def test_another_prefix_is_another_origin(self) -> None:
        ways = ("", 'prefix = "a"', 'prefix = "b"')
        origins = [self.remote("a.io", "https://r.example", way).origin for way in ways]
        self.assertEqual(len(set(origins)), 3)
        self.assertEqual(origins[0], "https://r.example")  # as it was before there were prefixes

    def test_an_upstreams_url_is_written_in_one_way(self) -> None:
        for written, url, host in (
            ("https://quay.io", "https://quay.io", "quay.io"),
            ("HTTPS://Quay.IO:443/", "https://quay.io:443", "quay.io:443"),
            ("http://my_registry/Path/to//", "http://my_registry/Path/to", "my_registry"),
            ("http://[::1]:5000", "http://[::1]:5000", "[::1]:5000"),
        ):
            self.assertEqual(Url.parse(written), url)
            self.assertEqual(Url.parse(written).host, host)

    def test_a_password_stands_in_the_file(self) -> None:
        remote = self.remote("a", "https://b", 'username = "u"\npassword = "p w"')
        self.assertEqual((remote.username, remote.read_password({})), ("u", "p w"))

    def test_a_password_comes_from_the_environment(self) -> None:
        login = 'username = "u"\npassword_env = "ARTIFACTD_HUB"'
        remote = self.remote("a", "https://b", login, ARTIFACTD_HUB="secret")
        self.assertEqual(remote.read_password({"ARTIFACTD_HUB": "other"}), "other")

    def test_a_password_file_is_read_whenever_it_is_needed(self) -> None:
        path = Path(self.mktemp())
        path.write_text("first\n")
        remote = self.remote("a", "https://b", f'username = "u"\npassword_file = "{path}"')
        self.assertEqual(remote.read_password({}), "first")
        path.write_bytes(b"second \r\n")
        self.assertEqual(remote.read_password({}), "second ")

    def test_a_command_prints_the_login(self) -> None:
        path = self.program("helper")
        for program in (str(path), "helper"):
            command = f'credential_command = ["{program}", "", "--profile=x y"]'
            remote = self.remote("a", "https://b", command, PATH=f"/nowhere:{path.parent}")
            self.assertEqual(remote.credential_command, (program, "", "--profile=x y"))
            self.assertEqual(remote.find_program({"PATH": str(path.parent)}), str(path))
            settings = self.load(QUAY + command, PATH=str(path.parent))
            self.assertEqual(self.load(str(settings), PATH=str(path.parent)), settings)

    def test_proof_of_access_may_fetch_with_it(self) -> None:
        toml = f'credential_command = ["{self.program("helper")}"]\nproof_of_access = true\n'
        access = '[[access]]\nwho = ["anonymous"]\nmay = ["pull"]\nimages = ["*"]\n'
        self.assertTrue(self.remote("a", "https://b", toml + access).proof_of_access)

    def test_without_a_login_there_is_no_password(self) -> None:
        self.assertEqual(self.remote("quay.io", "https://quay.io").read_password({}), "")


class PrintedTests(SettingsCase):
    LOGIN = QUAY + 'username = "builder"\npassword = "s3cret"\n'

    def test_names_with_dots_are_quoted(self) -> None:
        self.assertIn('[repository."docker.io"]', str(Settings()).splitlines())
        self.assertEqual(self.load(str(Settings())), Settings())

    def test_every_setting_of_an_upstream_is_read_again(self) -> None:
        settings = self.load(
            f'{QUAY}hosts = []\nlibrary = "a/"\nusername = "u"\npassword_env = "HOME"\n'
            'auth_hosts = ["auth.quay.io"]\nprivate_hosts = ["10.0.0.9:80"]\n'
            'ca_file = "/ca.pem"\nallow = ["a/*", "[bc]"]\n'
            'deny = ["a/b"]\nfreshness = "0s"\nmax_stale = "7d"\ncooldown = "36h"\n'
            'cooldown_except = ["*:edge"]\nsize_cap = "200GiB"\nmax_age = "30d"\npinned = ["a/c"]\n'
            "retries = 0\nresumes = 100\noffline = true\nfinish_fills = false\n",
            HOME="x",
        )
        self.assertEqual(self.load(str(settings), HOME="x"), settings)

    def test_a_password_is_neither_printed_nor_shown(self) -> None:
        settings = self.load(self.LOGIN)
        self.assertNotIn("s3cret", str(settings) + repr(settings))

    def test_that_there_is_a_password_can_be_read_and_the_rest_read_again(self) -> None:
        printed = str(self.load(self.LOGIN))
        self.assertIn('password = "(not shown)"  # there is one; this is not it', printed)
        again = self.load(printed)
        self.assertEqual(str(again), printed)
        other = self.load(self.LOGIN.replace("s3cret", "(not shown)"))
        self.assertEqual(again, other)

    def test_where_a_password_is_kept_is_printed(self) -> None:
        settings = self.load(QUAY + 'username = "u"\npassword_env = "TOKEN"\n', TOKEN="s3cret")
        self.assertIn('password_env = "TOKEN"', str(settings))
        self.assertNotIn("s3cret", str(settings))

    @given(st.text(st.characters(codec="utf-8")))
    def test_any_text_is_read_as_it_was_printed(self, text: str) -> None:
        settings = Settings(access_log_file=text)
        printed = str(settings)
        self.assertEqual(tomllib.loads(printed)["access_log_file"], text)


class RemoteRefusalTests(RemoteCase):
    def assert_refused(self, toml: str, expected: str, **environ: str) -> None:
        super().assert_refused(QUAY + toml, f'repository."quay.io".{expected}', **environ)

    def test_an_upstream_must_be_given(self) -> None:
        with self.assertRaises(StartError) as caught:
            self.load('[repository.hub]\nkind = "remote"')
        self.assertIn(
            "repository.hub.upstream: expected the URL of a registry, got nothing",
            str(caught.exception),
        )

    def test_an_upstream_is_a_url_of_a_registry(self) -> None:
        for url in (
            "",
            "quay.io",
            "ftp://quay.io",
            "https://",
            "https:///v2",
            "https://-.io",
            "https://quay.io:0",
            "https://quay.io:65536",
            "https://quay.io/?n=1",
            "https://quay.io/#top",
            "https://quay.io/v2/",
            "https://quay.io/a/../b",
            "https://quay.io ",
            "https://quäy.io",
        ):
            with self.assertRaises(StartError) as caught:
                self.load(f'[repository.hub]\nkind = "remote"\nupstream = "{url}"')
            self.assertIn(
                "repository.hub.upstream: expected a URL such as"
                f' "https://registry-1.docker.io", without user, query and /v2/, got "{url}"',
                str(caught.exception),
            )

    def test_a_login_in_a_url_is_refused_and_not_shown(self) -> None:
        with self.assertRaises(StartError) as caught:
            self.load('[repository.hub]\nkind = "remote"\nupstream = "https://u:s3cret@quay.io"')
        self.assertIn('got "https://…@quay.io"', str(caught.exception))
        self.assertNotIn("s3cret", str(caught.exception))

    def test_an_unknown_setting_is_named_with_the_likely_one(self) -> None:
        self.assert_refused("freshnes = 3", "freshnes: no such setting; did you mean freshness?")
        self.assert_refused("sparse = 'images'", "sparse: no such setting")

    def test_hosts_are_hosts(self) -> None:
        for host in ("", "https://quay.io", "quay.io/a", "quay.io:", "a b", "[::1"):
            self.assert_refused(
                f'hosts = ["{host}"]',
                f'hosts: expected hosts such as "ghcr.io", "registry.example:5000", got ["{host}"]',
            )

    def test_a_prefix_ends_in_a_slash(self) -> None:
        for prefix in ("hub/", "/hub", "/", "Hub", "a//b", "../hub", "hub?"):
            self.assert_refused(
                f'prefix = "{prefix}"',
                'prefix: expected "" or a name such as "dockerhub-proxy", without a slash at its'
                f' ends, got "{prefix}"',
            )
        for prefix in ("library", "/", "Library/", "a//"):
            self.assert_refused(
                f'library = "{prefix}"',
                f'library: expected "" or a text such as "library/", got "{prefix}"',
            )

    def test_a_pattern_is_not_empty(self) -> None:
        for setting in ("allow", "deny", "cooldown_except", "pinned"):
            self.assert_refused(
                f'{setting} = ["a", ""]',
                f'{setting}: expected patterns such as "*", "library/*", "team/*/app",'
                ' got ["a", ""]',
            )

    def test_bounds_are_told(self) -> None:
        for setting in ("connect_timeout", "first_byte_timeout", "idle_timeout"):
            self.assert_refused(f'{setting} = "0s"', f'{setting}: expected at least 1ms, got "0s"')
        for setting in ("retries", "resumes"):
            for number in (-1, 101):
                self.assert_refused(
                    f"{setting} = {number}",
                    f"{setting}: expected a whole number from 0 to 100, got {number}",
                )

    def test_a_host_is_answered_by_one_repository(self) -> None:
        with self.assertRaises(StartError) as caught:
            self.load(QUAY + '[repository.mirror]\nkind = "remote"\nupstream = "https://quay.io"')
        self.assertIn(
            'repository.mirror.hosts: expected hosts of its own, got "quay.io", which is one of'
            ' "quay.io" too',
            str(caught.exception),
        )

    def test_there_is_one_password_at_most(self) -> None:
        self.assert_refused(
            'username = "u"\npassword = "p"\npassword_env = "HOME"',
            "password_env: expected one login, got password too",
            HOME="x",
        )

    def test_a_command_is_the_only_login(self) -> None:
        command = f'credential_command = ["{self.program("helper")}"]\n'
        self.assert_refused(
            command + 'username = "u"',
            "credential_command: expected no username with it: the command prints it",
        )
        self.assert_refused(
            command + 'username = "u"\npassword_file = "p"',
            "credential_command: expected one login, got password_file too",
        )

    def test_a_command_is_a_list_of_texts(self) -> None:
        for value in ('"helper"', "[3]", '["a\\u0000"]', '["a\\n"]'):
            with self.assertRaises(StartError) as caught:
                self.load(f"{QUAY}credential_command = {value}")
            self.assertIn(
                'repository."quay.io".credential_command: expected a program and its arguments such'
                ' as ["docker-credential-ecr-login"], got ',
                str(caught.exception),
            )

    def test_a_program_that_cannot_be_run_is_named(self) -> None:
        path = self.program("helper")
        other = path.with_name("other")
        for program, why in (
            ("", "expected a program first, got nothing"),
            ("./helper", "./helper: expected an absolute path, or a name to look for in PATH"),
            (str(other), f"{other}: there is no such program that can be run"),
            ("other", f"other: there is no such program that can be run in PATH ({path.parent})"),
        ):
            self.assert_refused(
                f'credential_command = ["{program}"]',
                f"credential_command: {why}",
                PATH=str(path.parent),
            )
        setting = f'credential_command = ["{path}"]'
        path.chmod(0o757)
        self.assert_refused(
            setting, f"credential_command: {path}: others may write it (mode 0757): chmod go-w"
        )
        path.chmod(0o644)
        self.assert_refused(
            setting, f"credential_command: {path}: there is no such program that can be run"
        )

    def test_a_user_has_a_password(self) -> None:
        self.assert_refused(
            'username = "u"',
            "username: expected password, password_file or password_env with it",
        )

    def test_a_password_has_a_user(self) -> None:
        for setting in ("password", "password_file", "password_env"):
            self.assert_refused(f'{setting} = "p"', f"{setting}: expected username with it")

    def test_a_name_or_password_that_cannot_be_sent_is_refused(self) -> None:
        self.assert_refused(
            'username = "a:b"', 'username: expected the name of a login, without a colon, got "a:b"'
        )
        for value in ('"s3cret\\n"', "3"):
            self.assert_refused(
                f'username = "u"\npassword = {value}',
                "password: expected a text without control characters, got something else",
            )

    def test_a_variable_that_is_not_set_is_named(self) -> None:
        login = 'username = "u"\npassword_env = "TOKEN"'
        self.assert_refused(login, "password_env: TOKEN: not in the environment")
        self.assert_refused(
            login, "password_env: TOKEN: expected a password, got nothing", TOKEN=""
        )
        self.assert_refused(
            login, "password_env: TOKEN: not a password: it is not UTF-8", TOKEN="s3cret\udcff"
        )

    def test_a_password_file_that_cannot_be_read_is_named(self) -> None:
        path = Path(self.mktemp())
        login = f'username = "u"\npassword_file = "{path}"'
        self.assert_refused(
            login, f"password_file: {path}: can't be read: No such file or directory"
        )
        path.write_bytes(b"\xff")
        self.assert_refused(login, f"password_file: {path}: not UTF-8")
        path.chmod(0o666)
        self.assert_refused(
            login, f"password_file: {path}: others may write it (mode 0666): chmod go-w"
        )
        path.chmod(0o644)
        path.write_bytes(b"\n")
        self.assert_refused(login, f"password_file: {path}: expected a password, got nothing")
        path.write_bytes(b"s3cret\nmore\n")
        self.assert_refused(
            login, f"password_file: {path}: not a password: it holds a control character"
        )
