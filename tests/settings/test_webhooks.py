"""Settings of webhooks: what is accepted and what is refused."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

from artifactd.kit.start import StartError
from artifactd.settings.settings import Settings
from artifactd.settings.webhooks import EventKind, WebhookSettings
from tests.settings.test_settings import SettingsCase

SECRET = "correct horse battery staple"
TOKEN = "https://hooks.example/services/T0KEN?key=S3CRET"


class WebhookSettingsTests(SettingsCase):
    def webhook(self, more: str = "", url: str = "https://ci.example/hook") -> WebhookSettings:
        return self.load(f'[webhook.ci]\nurl = "{url}"\n{more}').webhook["ci"]

    def refused(self, more: str, expected: str) -> None:
        self.refuses(f'[webhook.ci]\nurl = "https://ci.example/hook"\n{more}', expected)

    def refuses(self, toml: str, expected: str, **environ: str) -> None:
        error = self.assertRaises(StartError, self.load, toml, **environ)
        self.assertIn(expected, str(error))
        self.assertNotIn("T0KEN", str(error))

    def file(self, content: str) -> Path:
        path = Path(self.mktemp()).absolute()
        path.write_text(content)
        path.chmod(0o600)
        return path

    def test_a_url_is_enough(self) -> None:
        webhook = self.webhook()
        self.assertEqual(webhook.events, (EventKind.PUSH, EventKind.DELETE))
        self.assertEqual(list(webhook.read_keys()), [])

    def test_urls(self) -> None:
        for url in ("http://127.0.0.1:8080", "https://[::1]/a?b=c", TOKEN):
            self.assertEqual(self.webhook(url=url).url, url)
        for url in (
            "ftp://ci.example",
            "https://user:pw@ci.example/",
            "https://ci.example/#here",
            "https://ci.example:0/",
            "https://ci.example:99999/",
            "https://ci example/",
            "https:///hook",
            "ci.example/hook",
            "",
        ):
            line = 'webhook.ci.url: expected a URL such as "https://ci.example.com/hook"'
            self.refuses(f'[webhook.ci]\nurl = "{url}"\n', line)
        self.refuses("[webhook.ci]\n", "webhook.ci.url: expected the URL of a receiver")

    def test_a_url_may_hold_a_token_and_is_not_shown(self) -> None:
        settings = self.load(f'[webhook.ci]\nurl = "{TOKEN}"\n')
        self.assertNotIn("T0KEN", f"{settings} {settings!r}")
        self.assertEqual(settings.webhook["ci"].url.origin, "https://hooks.example")
        self.refuses(f'[webhook.ci]\nurl = "{TOKEN}#"\n', "got something else")

    def test_a_secret_is_not_shown(self) -> None:
        settings = self.load(f'[webhook.ci]\nurl = "https://ci.example"\nsecret = "{SECRET}"\n')
        self.assertNotIn(SECRET, f"{settings} {settings!r}")

    def test_a_secret_is_a_text_or_base64(self) -> None:
        self.assertEqual(self.webhook(f'secret = "{SECRET}"').read_keys(), [SECRET.encode()])
        key = bytes(range(32))
        standard = f"whsec_{b64encode(key).decode()}"
        self.assertEqual(self.webhook(f'secret = "{standard}"').read_keys(), [key])

    def test_a_file_of_secrets_is_read_again(self) -> None:
        path = self.file("a" * 24 + " " + "b" * 24 + "\n")
        webhook = self.webhook(f'secret_file = "{path}"')
        self.assertEqual(webhook.read_keys(), [b"a" * 24, b"b" * 24])
        path.write_text("b" * 24)
        self.assertEqual(webhook.read_keys(), [b"b" * 24])

    def test_wrong_secrets_stop_the_start(self) -> None:
        self.refused('secret = "short"', "webhook.ci.secret: expected at least 24 bytes, got 5")
        self.refused('secret = "whsec_c2hvcnQ="', "webhook.ci.secret: expected at least 24 bytes")
        self.refused('secret = "whsec_!"', "webhook.ci.secret: expected Base64 behind whsec_")
        self.refused('secret_file = "/no/file"', "webhook.ci.secret_file: /no/file: can't be read")
        path = self.file(SECRET.replace(" ", "-"))
        both = f'secret = "{SECRET}"\nsecret_file = "{path}"'
        self.refused(both, "webhook.ci.secret_file: expected one secret, got secret too")
        path.chmod(0o666)
        self.refused(f'secret_file = "{path}"', "others may write it")

    def test_other_wrong_settings_stop_the_start(self) -> None:
        self.refused("events = []", 'webhook.ci.events: expected a list of "push", "delete"')
        self.refused('events = ["pull"]', 'webhook.ci.events: expected a list of "push"')
        self.refused('format = "xml"', 'webhook.ci.format: expected "distribution" or')
        self.refused(
            'images = ["hello"]', "webhook.ci.images: expected patterns of canonical names"
        )
        self.refused("most = 0", "webhook.ci.most: expected a whole number from 1")
        self.refused('keep = "0"', "webhook.ci.keep: expected at least 1ms")
        self.refused('link = ""', "webhook.ci.link: no such setting")
        name = '[webhook."a b"]\nurl = "https://ci.example"\n'
        self.refuses(name, "expected a name of letters, digits")

    def test_no_variable_of_the_environment_sets_them(self) -> None:
        self.refuses("", "ARTIFACTD_WEBHOOK: no such setting", ARTIFACTD_WEBHOOK="x")
        self.assertEqual(Settings().webhook, {})
